"""The picture of a probe: dots with intervals by backbone, the label beside the site, over the line of chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing

from pathfm.figures import COLOURS, FAINT, INK, STYLE
from pathfm.probetasks import LABEL, NEW_SITES, SITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

_TITLES = {
    LABEL: "which label\n(higher is better)",
    SITE: "which site\n(closer to chance is better)",
    NEW_SITES: "which label, on new sites\n(higher is better)",
}
# Told apart without colour too: a full circle and an open square.
_STYLES: dict[str, Any] = {
    "knn": {"color": COLOURS[1], "marker": "s", "markerfacecolor": "white"},
    "linear": {"color": COLOURS[0], "marker": "o"},
}
_NAMES = {"knn": "kNN", "linear": "linear probe"}
_CHANCE: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": ":"}
_BY_LABEL: dict[str, Any] = {"color": COLOURS[2], "linewidth": 1.6, "linestyle": (0, (1, 3))}
_APART = 0.3  # of a row, from one probe to the other


def draw_probe(results: pd.DataFrame, caption: Sequence[str]) -> Drawing:
    """One panel a question, one row a backbone, in each a dot a probe with its 95 % interval.

    Args:
        results: the table that `probe` returns.
        caption: lines below.
    """
    backbones = list(dict.fromkeys(results["backbone"]))
    answered = set(results["target"][results["balanced_accuracy"].notna()])
    targets = [target for target in _TITLES if target in answered or target != NEW_SITES]
    with mpl.rc_context(STYLE):
        size = (1.6 + 2.9 * len(targets), 1.5 + 0.62 * len(backbones) + 0.16 * len(caption))
        drawing = Drawing(figsize=size, layout="constrained")
        panels = drawing.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            _panel(axes, results[results["target"] == target], backbones)
            axes.set_title(_TITLES[target], fontsize=9)
        panels[0].set(yticks=range(len(backbones)), yticklabels=backbones)
        panels[0].set_ylim(len(backbones) - 0.5, -0.5)
        handles = [
            panels[0].plot([], [], linewidth=2, label=_NAMES[name], **style)[0] for name, style in _STYLES.items()
        ]
        handles += panels[0].plot([], [], label="chance", **_CHANCE)
        if (results["by_label"] > results["chance"]).any():
            handles += panels[0].plot([], [], label="by the label alone", **_BY_LABEL)
        drawing.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
        drawing.supxlabel("\n".join(["balanced accuracy", *caption]), fontsize=8)
        return drawing


def _panel(axes: Axes, rows: pd.DataFrame, backbones: Sequence[str]) -> None:
    axes.set(xlim=(-0.02, 1.02))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    known = rows[rows["balanced_accuracy"].notna()]
    if known.empty:
        axes.text(
            0.5,
            0.5,
            _wrapped(str(rows["note"].iloc[0])),
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=FAINT,
            fontsize=8,
        )
        return
    axes.axvline(float(known["chance"].iloc[0]), **_CHANCE)
    if (known["by_label"] > known["chance"]).any():
        axes.axvline(float(known["by_label"].iloc[0]), **_BY_LABEL)
    for row in known.to_dict("records"):
        y = backbones.index(row["backbone"]) + _APART * (list(_STYLES).index(row["probe"]) - 0.5)
        style = _STYLES[row["probe"]]
        axes.plot([row["low"], row["high"]], [y, y], color=style["color"], linewidth=2)
        axes.plot([row["balanced_accuracy"]], [y], linestyle="", markersize=6, markeredgewidth=1.5, **style)


def _wrapped(text: str, width: int = 34) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
