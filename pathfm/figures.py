"""Plots of figures with their uncertainty, in colours that colour-blind readers tell apart, and images as text for HTML.

Drawn through matplotlib's object interface: no global state, no backend chosen for the caller.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import PercentFormatter
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from pathfm.curves import PrecisionRecallBand, ReliabilityBin, RocBand
    from pathfm.metrics import Figure
    from pathfm.netbenefit import DecisionCurve
    from pathfm.survivalcurves import SurvivalCurve

# Okabe and Ito (2008): distinct under the common colour blindnesses; black and the light yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#8a8a8a"
_LINES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P")
STYLE: Any = {  # Any: matplotlib 3.11 types the keys one by one, older ones as text
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a slide named a$b$ is no formula
    "svg.hashsalt": "pathfm",  # equal drawings give equal bytes
}


def draw_roc(bands: Mapping[str, RocBand]) -> Drawing:
    """ROC curves by name, each with its band."""
    with mpl.rc_context(STYLE):
        drawing, axes = _square("1 \u2212 specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":", label="chance")
        for index, (name, band) in enumerate(bands.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.fill_between(band.fpr, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                band.fpr, band.tpr, color=colour, linestyle=_LINES[index % len(_LINES)], linewidth=1.8, label=name
            )
        axes.legend(loc="lower right", frameon=False, fontsize=8)
        return drawing


def draw_calibration(bins: Mapping[str, Sequence[ReliabilityBin]]) -> Drawing:
    """Observed share over predicted probability by name, each point with its interval and its count as size."""
    with mpl.rc_context(STYLE):
        drawing, axes = _square("predicted probability", "share observed")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":", label="perfect")
        for index, (name, points) in enumerate(bins.items()):
            _calibration_points(axes, name, points, index)
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        return drawing


def draw_precision_recall(bands: Mapping[str, PrecisionRecallBand]) -> Drawing:
    """Precision over recall by name, each with its band and, dotted, the share of positives, which is chance."""
    with mpl.rc_context(STYLE):
        drawing, axes = _square("sensitivity (recall)", "share of the flagged that have it (precision)")
        for index, (name, band) in enumerate(bands.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.axhline(band.prevalence, color=colour, linewidth=0.8, linestyle=":")
            axes.fill_between(band.recall, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
            line = _LINES[index % len(_LINES)]
            axes.plot(band.recall, band.precision, color=colour, linestyle=line, linewidth=1.8, label=name)
        axes.legend(loc="lower left", frameon=False, fontsize=8)
        return drawing


def draw_net_benefit(curves: Mapping[str, DecisionCurve]) -> Drawing:
    """Net benefit over the probability from which one acts, each with its band and, dotted, that of acting on everybody."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(3.9, 3.7), layout="constrained")
        axes = drawing.add_subplot()
        axes.axhline(0, color=FAINT, linewidth=0.8, label="act on nobody")
        for index, (name, curve) in enumerate(curves.items()):
            colour, line = COLOURS[index % len(COLOURS)], _LINES[index % len(_LINES)]
            everybody = f"{name}: act on everybody" if len(curves) > 1 else "act on everybody"
            axes.plot(curve.thresholds, curve.treat_all, color=colour, linewidth=1.2, linestyle=":", label=everybody)
            axes.fill_between(curve.thresholds, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(curve.thresholds, curve.model, color=colour, linestyle=line, linewidth=1.8, label=name)
        top = max((float(np.nanmax(curve.high)) for curve in curves.values()), default=1.0)
        axes.set(xlim=(0, 1), ylim=(-0.35 * top, 1.25 * top))
        axes.set(xlabel="probability from which one would act", ylabel="net benefit")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="best", frameon=False, fontsize=8)
        return drawing


def draw_survival(curves: Mapping[str, SurvivalCurve], label: str) -> Drawing:
    """Survival of groups by name, each with its band, and below it how many were still followed.

    Args:
        curves: by name of the group.
        label: of the time.
    """
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(5.6, 3.6 + 0.22 * len(curves)), layout="constrained")
        axes = drawing.add_subplot()
        last = max(float(curve.time[-1]) for curve in curves.values())
        for index, (name, curve) in enumerate(curves.items()):
            colour, time = COLOURS[index % len(COLOURS)], np.r_[0.0, curve.time]
            low, high = (np.r_[1.0, np.nan_to_num(ends, nan=1.0)] for ends in (curve.low, curve.high))
            axes.fill_between(time, low, high, step="post", color=colour, alpha=0.18, linewidth=0)
            line = _LINES[index % len(_LINES)]
            axes.step(time, np.r_[1.0, curve.survival], where="post", color=colour, linestyle=line, label=name)
        axes.set(xlim=(0, last), ylim=(-0.02, 1.02), xlabel=label, ylabel="free of the event")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="upper right", frameon=False, fontsize=8)
        _at_risk(axes, curves, last)
        return drawing


def draw_forest(rows: Sequence[tuple[str, Figure]], reference: float, label: str) -> Drawing:
    """Values with their intervals, one row each, top down, over a dashed line at `reference`. Rows without a value stay empty."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(5.6, 0.62 + 0.34 * len(rows)), layout="constrained")
        axes = drawing.add_subplot()
        axes.axvline(reference, color=FAINT, linewidth=0.8, linestyle=":")
        for y, (_, figure) in enumerate(rows):
            if figure["value"] is None or figure["low"] is None or figure["high"] is None:
                continue
            axes.plot([figure["low"], figure["high"]], [y, y], color=COLOURS[0 if y == 0 else 1], linewidth=2)
            axes.plot([figure["value"]], [y], marker=_MARKS[0 if y == 0 else 1], color=COLOURS[0 if y == 0 else 1])
        ends = [figure[end] or 0.0 for _, figure in rows for end in ("low", "high")]
        axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], xlabel=label)
        axes.set_xlim(min(-0.02, *ends), max(1.02, *ends))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return drawing


def draw_predicted(true: NDArray[np.float64], predicted: NDArray[np.float64], label: str) -> Drawing:
    """One dot a patient (or slide): the number predicted over the true one, with the line where both are equal."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(3.9, 3.7), layout="constrained")
        axes = drawing.add_subplot()
        both = np.concatenate([true, predicted])
        margin = 0.05 * (float(np.ptp(both)) or 1.0)
        ends = (float(both.min()) - margin, float(both.max()) + margin)
        axes.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle=":", label="equal")
        axes.scatter(true, predicted, s=22, alpha=0.75, linewidths=0, color=COLOURS[0])
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"true {label}", ylabel=f"predicted {label}")
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        return drawing


def draw_scores(groups: Mapping[str, NDArray[np.float64]], label: str, at: float | None) -> Drawing:
    """One dot a patient (or slide): its probability, in one row for each true class; a line where a decision falls."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(5.6, 0.7 + 0.5 * len(groups)), layout="constrained")
        axes = drawing.add_subplot()
        if at is not None:
            axes.axvline(at, color="0.35", linewidth=0.8, linestyle=":")
        for y, (_, values) in enumerate(groups.items()):
            # a fixed spread: dots of equal probability stay apart and a second run gives the same picture
            spread = (np.arange(len(values)) * 0.381966 % 1 - 0.5) * 0.5
            style: Any = {"marker": _MARKS[y % len(_MARKS)], "color": COLOURS[y % len(COLOURS)]}
            axes.scatter(np.sort(values), y + spread, s=22, alpha=0.75, linewidths=0, **style)
        names = [f"{name} (n = {len(values)})" for name, values in groups.items()]
        axes.set(yticks=range(len(groups)), yticklabels=names, xlim=(-0.02, 1.02), xlabel=label)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return drawing


def png_bytes(drawing: Drawing, dpi: int = 150) -> bytes:
    """The drawing, which stays at this dpi and on white, as PNG; equal drawings give equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawing.set(dpi=dpi, facecolor="white")
        canvas: Any = FigureCanvasAgg(drawing)  # its methods are not typed
        canvas.draw()  # once, where savefig draws twice
    rgb = np.asarray(canvas.buffer_rgba())[..., :3]
    # level 3 encodes a heatmap in half the time of zlib's own 6, for 7 % more room
    Image.fromarray(rgb).save(buffer, "png", compress_level=3, dpi=(dpi, dpi))
    return buffer.getvalue()


def svg_bytes(drawing: Drawing) -> bytes:
    """The drawing as SVG with its letters as shapes, so that it looks the same everywhere; equal drawings give equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawing.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a `data:` address; `kind` is a media type such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _square(x_label: str, y_label: str) -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(3.9, 3.7), layout="constrained")
    axes = drawing.add_subplot()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x_label, ylabel=y_label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    return drawing, axes


def _at_risk(axes: Axes, curves: Mapping[str, SurvivalCurve], last: float) -> None:
    """A row a group below the axis: how many were followed up to each of five times."""
    times = np.linspace(0, last, 5)
    axes.set_xticks(times, [f"{time:.3g}" for time in times])
    for index, (name, curve) in enumerate(curves.items()):
        style: Any = {"color": COLOURS[index % len(COLOURS)], "fontsize": 8, "annotation_clip": False}
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        down = -38 - 13 * index
        for time in times:
            later = np.searchsorted(curve.time, time)
            n = int(curve.at_risk[later]) if later < len(curve.time) else 0
            axes.annotate(str(n), (float(time), 0), xytext=(0, down), ha="center", **place, **style)
        axes.annotate(f"{name} ", (0, 0), xytext=(-14, down), ha="right", **place, **style)


def _calibration_points(axes: Axes, name: str, points: Sequence[ReliabilityBin], index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    x, y = [p.predicted for p in points], [p.observed for p in points]
    axes.vlines(x, [p.low for p in points], [p.high for p in points], color=colour, linewidth=1.3, alpha=0.6)
    axes.plot(x, y, color=colour, linestyle=_LINES[index % len(_LINES)], linewidth=1.2, label=name)
    axes.scatter(
        x, y, s=[14 + 3 * min(p.n, 30) for p in points], color=colour, marker=_MARKS[index % len(_MARKS)], zorder=3
    )
