"""The grid of tiles over a slide's tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pathfm.errors import InputError, MppError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.slide import Slide
    from pathfm.tissue import TissueMask

UPSAMPLING_TOLERANCE = 1.10
"""How much finer than the scan a tile may be without `--tiles.allow_upsampling true`."""

_SIZE_PX = (8, 4096)
_MPP = (0.05, 100.0)
_MOST_POSITIONS = 20_000_000  # of a grid: ten times a large slide in overlapping tiles


@dataclass(frozen=True)
class TileSpec:
    """How a slide is cut into tiles."""

    size_px: int | None = None
    """Width and height of a tile in pixels, as the backbone sees it; the backbone's own where not given."""
    mpp: float | None = None
    """Microns per pixel of a tile; a tile is size_px * mpp microns wide on every slide; the backbone's own where not given."""
    stride_px: int | None = None
    """Pixels from one tile to the next; size_px where not given, so tiles touch; less makes them overlap."""
    min_tissue: float = 0.5
    """A tile is kept where at least this share of it is tissue; 0 keeps every tile of the scan."""
    allow_upsampling: bool = False
    """Read tiles finer than the scan by more than 10 %; their detail is interpolated."""
    allow_mismatch: bool = False
    """Let the backbone have tiles of a size or mpp that it was not made for."""

    def __post_init__(self) -> None:
        """Refuses what cannot be cut.

        Raises:
            InputError: a value out of range; the message names the flag.
        """
        _require("size_px", self.size_px, *_SIZE_PX)
        _require("mpp", self.mpp, *_MPP)
        _require("stride_px", self.stride_px, 1, 16 * _SIZE_PX[1])
        _require("min_tissue", self.min_tissue, 0, 1)

    def resolved(self, size_px: int, mpp: float) -> TileSpec:
        """The same spec with every None filled: size and mpp from a backbone's row, stride with the size."""
        size = self.size_px or size_px
        return replace(self, size_px=size, mpp=self.mpp or mpp, stride_px=self.stride_px or size)


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of a slide, row by row from the top, left to right in a row.

    Attributes:
        coords: int32 (n, 2), (x, y) of each tile's top-left corner in level-0 pixels.
        coverage: float32 (n,), the share of each tile that is tissue.
        size_px: width and height in pixels as read.
        mpp: microns per pixel as read.
        stride_px: pixels from one tile to the next.
        extent_px0: width and height of a tile in level-0 pixels; a float, for scale is exact.
    """

    coords: NDArray[np.int32]
    coverage: NDArray[np.float32]
    size_px: int
    mpp: float
    stride_px: int
    extent_px0: float

    def __len__(self) -> int:
        return len(self.coords)


def tile_slide(slide: Slide, mask: TissueMask, spec: TileSpec) -> Tiles:
    """The tiles of a slide that hold enough tissue.

    The grid starts at (0, 0); column k starts at `round(k * stride)` level-0 pixels, so rounding does not add up. Only
    tiles that lie wholly inside the scan count: a slide smaller than a tile has none. Where the slide could not be read
    when its tissue was sought, nobody knows whether there is some: such tiles are kept, so that reading them fails and
    says so.

    Args:
        slide: the slide.
        mask: its tissue.
        spec: resolved: size and mpp are given.

    Raises:
        MppError: the tiles are finer than the scan by more than 10 % and `allow_upsampling` is off.
        InputError: the spec has no size or no mpp, or a stride so small that tiles coincide or are over 20 million.
    """
    if spec.size_px is None or spec.mpp is None:
        message = (
            "the tiles have no size or no mpp, and no backbone states them; pass --tiles.size_px 224 --tiles.mpp 0.5"
        )
        raise InputError(message)
    require_scan_fine_enough(slide, spec)
    stride_px = spec.stride_px or spec.size_px
    extent_px0, stride_px0 = spec.size_px * spec.mpp / slide.mpp, stride_px * spec.mpp / slide.mpp
    _require_stride(slide, extent_px0, stride_px0)
    x_px0, y_px0 = (_starts(size, extent_px0, stride_px0) for size in slide.size_px0)
    y_grid, x_grid = np.meshgrid(y_px0, x_px0, indexing="ij")
    coords = np.stack([x_grid.ravel(), y_grid.ravel()], axis=1).astype(np.int32)
    coverage = mask.coverage(coords[:, 0], coords[:, 1], extent_px0, slide.mpp)
    coverage = coverage + _unreadable(slide, coords, extent_px0)
    kept = coverage >= spec.min_tissue - 1e-9
    return Tiles(coords[kept], coverage[kept].astype(np.float32), spec.size_px, spec.mpp, stride_px, extent_px0)


def _unreadable(slide: Slide, coords: NDArray[np.int32], extent_px0: float) -> NDArray[np.float64]:
    """The share of each tile that could not be read when tissue was sought, float64 (n,)."""
    share = np.zeros(len(coords))
    x, y = coords[:, 0].astype(np.float64), coords[:, 1].astype(np.float64)
    for left, top, right, bottom in slide.unreadable_px0:
        across = np.clip(np.minimum(x + extent_px0, right) - np.maximum(x, left), 0, None)
        down = np.clip(np.minimum(y + extent_px0, bottom) - np.maximum(y, top), 0, None)
        share += across * down / extent_px0**2
    return share


def require_scan_fine_enough(slide: Slide, spec: TileSpec) -> None:
    """Refuses tiles finer than the scan.

    Raises:
        MppError: by more than `UPSAMPLING_TOLERANCE`, and `allow_upsampling` is off.
    """
    if spec.mpp is not None and spec.mpp * UPSAMPLING_TOLERANCE < slide.mpp and not spec.allow_upsampling:
        message = (
            f"{slide.path} has {slide.mpp:g} mpp, too coarse for tiles of {spec.mpp:g} mpp;"
            f" pass --tiles.mpp {slide.mpp:.3g} or more, or --tiles.allow_upsampling true"
        )
        raise MppError(slide.path, "upsampling", message)


def _starts(length_px0: int, extent_px0: float, stride_px0: float) -> NDArray[np.int64]:
    """Rounded starts of the tiles along one axis."""
    count = _count(length_px0, extent_px0, stride_px0)
    starts = np.floor(np.arange(count) * stride_px0 + 0.5).astype(np.int64)
    inside: NDArray[np.int64] = starts[starts + extent_px0 <= length_px0 + 1e-6]
    return inside


def _count(length_px0: int, extent_px0: float, stride_px0: float) -> int:
    """How many starts can lie inside along one axis, or one more."""
    return max(0, int((length_px0 - extent_px0) / stride_px0) + 2)


def _require_stride(slide: Slide, extent_px0: float, stride_px0: float) -> None:
    if stride_px0 < 1 - 1e-9:
        message = (
            f"tiles of {slide.path} would be {stride_px0:.2g} pixels of the scan apart; pass a larger --tiles.stride_px"
        )
        raise InputError(message)
    width, height = slide.size_px0
    positions = _count(width, extent_px0, stride_px0) * _count(height, extent_px0, stride_px0)
    if positions > _MOST_POSITIONS:
        message = (
            f"the grid over {slide.path} has {positions} positions, over {_MOST_POSITIONS};"
            " pass a larger --tiles.stride_px"
        )
        raise InputError(message)


def _require(field: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        message = f"--tiles.{field} is {value:g}; give a number from {low:g} to {high:g}"
        raise InputError(message)
