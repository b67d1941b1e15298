"""Attention on the slide, as a picture, as a gallery of tiles and as GeoJSON; the drawing apart from the command.

Attention is shown relative to the average tile of the bag: 1x is what every tile would have if the head preferred none. The
colour scale is logarithmic and the same on every slide, so a slide on which the head prefers nothing looks flat.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from pathfm.figures import INK, STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from pathfm.slide import Slide

    Floats = NDArray[np.floating[Any]]
    Integers = NDArray[np.integer[Any]]

COLOUR_MAP = "viridis"
RANGE = 10.0
"""The colours go from 1/10 to 10 times the average; what lies beyond has the colour of the end."""
_LONGEST_PX = 1400
_OPACITY = 0.55
_COLUMNS = 4


def draw_heatmap(
    slide: Slide, coords: Integers, extent_px0: float, attention: Floats, title: str, n_bag: int | None = None
) -> Drawing:
    """The slide as it looks, and beside it in grey with the attention of its tiles in colour.

    Args:
        slide: an open slide; read once, at no more than 1400 pixels on its longest side.
        coords: int (n, 2), (x, y) of the tiles' top-left corners in level-0 pixels.
        extent_px0: width of a tile in level-0 pixels.
        attention: float (n,), summing to 1 over the bag; where tiles overlap their mean is drawn.
        title: one or two lines above the picture.
        n_bag: tiles of the bag, where it holds other slides too.

    Raises:
        TileUnreadableError: the slide cannot be decoded.
    """
    mpp = max(slide.mpp, max(slide.size_px0) * slide.mpp / _LONGEST_PX)
    rgb, _ = slide.read_overview(mpp)
    heat = paint_tiles(
        rgb.shape[:2], coords * (slide.mpp / mpp), extent_px0 * slide.mpp / mpp, relative(attention, n_bag)
    )
    with mpl.rc_context(STYLE):
        drawing, (plain, coloured) = _panels(rgb.shape[1] / rgb.shape[0])
        plain.imshow(rgb)
        coloured.imshow(_blend(rgb, heat))
        _colour_bar(drawing, coloured)
        _scale_bar(plain, mpp, rgb.shape[1], rgb.shape[0])
        drawing.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
        return drawing


def draw_gallery(tiles: Sequence[NDArray[np.uint8]], attention: Sequence[float], mpp: float, title: str) -> Drawing:
    """Tiles in the order given with their rank and their relative attention.

    Args:
        tiles: uint8 (size_px, size_px, 3) each.
        attention: relative attention of each.
        mpp: microns per pixel of the tiles, for the scale bar.
        title: a line above.
    """
    rows = math.ceil(len(tiles) / _COLUMNS)
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(2.0 * _COLUMNS, 2.25 * rows + 0.4), layout="constrained")
        for index, (tile, value) in enumerate(zip(tiles, attention, strict=True)):
            axes = drawing.add_subplot(rows, _COLUMNS, index + 1)
            axes.imshow(tile)
            axes.set_title(f"{index + 1}.  {times(value)}", fontsize=9, loc="left", pad=3)
            _bare(axes)
        if tiles:
            _scale_bar(drawing.axes[0], mpp, tiles[0].shape[1], tiles[0].shape[0], share=0.4)
        drawing.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
        return drawing


def attention_geojson(
    coords: Integers, extent_px0: float, attention: Floats, n_bag: int | None = None
) -> dict[str, Any]:
    """A GeoJSON FeatureCollection in level-0 pixels with a tile object per tile, as QuPath (0.4 and later) reads and writes it.

    Measurements: "attention" relative to the average tile, "attention share" (sums to 1 over the bag), "attention rank" among
    the tiles of the slide (1 is highest).
    The tiles carry the colours of the picture; in QuPath, Measure > Show measurement maps colours them anew.
    """
    values = relative(attention, n_bag)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    colours = (mpl.colormaps[COLOUR_MAP](_scale()(values))[:, :3] * 255).round().astype(int)
    features = [
        _tile_feature(
            corner.tolist(), extent_px0, colour.tolist(), _measurements(float(value), float(share), int(rank))
        )
        for corner, colour, value, share, rank in zip(coords, colours, values, attention, ranks, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def relative(attention: Floats, n_bag: int | None = None) -> NDArray[np.float64]:
    """Attention as multiples of the average tile's, float64 (n,).

    Args:
        attention: float (n,), of all tiles of a bag, or of some.
        n_bag: tiles of the bag, where these are not all.
    """
    return np.asarray(attention, dtype=np.float64) * (len(attention) if n_bag is None else n_bag)


def times(value: float) -> str:
    """A multiple in words: two digits, "12x", "0.40x"."""
    digits = 0 if value >= 10 else 1 if value >= 1 else 2
    return f"{value:.{digits}f}\u00d7"


def paint_tiles(shape: tuple[int, ...], corners: Floats, extent: float, values: Floats) -> NDArray[np.float64]:
    """The mean value of the tiles that cover each pixel, float64 (h, w), NaN where there is none.

    Args:
        shape: (h, w) of the picture.
        corners: float (n, 2), (x, y) of the tiles in pixels of the picture.
        extent: width of a tile in pixels of the picture; a tile is at least one pixel wide.
        values: float (n,).
    """
    height, width = shape[:2]
    start = np.clip(np.rint(corners), 0, [width - 1, height - 1]).astype(np.int64)
    end = np.clip(np.rint(np.asarray(corners) + extent), start + 1, [width, height]).astype(np.int64)
    sums, counts = (np.zeros((height + 1, width + 1)) for _ in range(2))
    for (x, y), sign in (((start, start), 1), ((end, start), -1), ((start, end), -1), ((end, end), 1)):
        np.add.at(sums, (y[:, 1], x[:, 0]), sign * np.asarray(values, dtype=np.float64))
        np.add.at(counts, (y[:, 1], x[:, 0]), sign)
    sums, counts = (grid.cumsum(axis=0).cumsum(axis=1)[:height, :width] for grid in (sums, counts))
    return np.asarray(np.divide(sums, counts, out=np.full((height, width), np.nan), where=counts > 0.5))


def scale_bar_um(width_um: float, share: float = 0.2) -> float:
    """A round length of 1, 2 or 5 times a power of ten, at most `share` of the width, in microns."""
    longest = width_um * share
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))


def _scale() -> LogNorm:
    return LogNorm(1 / RANGE, RANGE, clip=True)


def _panels(aspect: float) -> tuple[Drawing, tuple[Axes, Axes]]:
    """Two panels beside each other, or one above the other for a wide slide; about 11 inches at most."""
    stacked = aspect > 1.5
    beside, above = (10.4 * min(aspect, 1) + 1.2, 5.2 / max(aspect, 1) + 0.8), (10.5, 19 / aspect + 0.9)
    drawing = Drawing(figsize=above if stacked else beside, layout="constrained")
    axes = drawing.subplots(2, 1) if stacked else drawing.subplots(1, 2)
    for one in axes:
        _bare(one)
    return drawing, (axes[0], axes[1])


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _blend(rgb: NDArray[np.uint8], heat: Floats) -> NDArray[np.uint8]:
    """The slide in grey, and over it the colours of the attention where there is any."""
    grey = np.repeat(rgb.mean(axis=2, keepdims=True, dtype=np.float32), 3, axis=2)
    seen = np.isfinite(heat)
    colours = mpl.colormaps[COLOUR_MAP](_scale()(heat[seen]))[:, :3] * np.float32(255)
    grey[seen] = (1 - _OPACITY) * grey[seen] + _OPACITY * colours
    return grey.round().astype(np.uint8)


def _colour_bar(drawing: Drawing, axes: Axes) -> None:
    colours = ScalarMappable(_scale(), COLOUR_MAP)
    bar = drawing.colorbar(colours, ax=axes, extend="both", fraction=0.05, pad=0.02, alpha=_OPACITY)
    bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["0.1\u00d7", "0.3\u00d7", "1\u00d7", "3\u00d7", "10\u00d7"])
    bar.ax.minorticks_off()
    bar.set_label("attention, relative to the average tile", fontsize=8)
    bar.outline.set_visible(False)


def _scale_bar(axes: Axes, mpp: float, width_px: int, height_px: int, share: float = 0.2) -> None:
    length_um = scale_bar_um(width_px * mpp, share)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} \u00b5m"
    length_px, thick_px, margin_px = length_um / mpp, max(width_px * 0.008, length_um / mpp * 0.05), width_px * 0.03
    x, y = margin_px, height_px - margin_px - thick_px
    axes.add_patch(Rectangle((x, y), length_px, thick_px, facecolor=INK, edgecolor="white", linewidth=0.8))
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.2}
    axes.text(x + length_px / 2, y - thick_px, text, ha="center", va="bottom", fontsize=8, bbox=box)


def _measurements(value: float, share: float, rank: int) -> dict[str, float]:
    return {"attention": round(value, 6), "attention share": float(f"{share:.6g}"), "attention rank": rank}


def _tile_feature(
    corner: list[int], extent_px0: float, colour: list[int], measurements: dict[str, float]
) -> dict[str, Any]:
    left, top = corner
    right, bottom = left + extent_px0, top + extent_px0
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "tile", "color": colour, "measurements": measurements},
    }
