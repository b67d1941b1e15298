"""All of a scan at a small size, read in bands; what cannot be decoded costs its own block."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pathfm.errors import TileUnreadableError
from pathfm.pixels import Box, on_white, resampled
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pathfm.readers import Levels

    Pixels = tuple[NDArray[np.uint8], NDArray[np.bool_] | None]
    """(rgb, opaque or None where all of it is)."""

_BAND_PX = 1 << 24
_BLOCK_PX = 256
_MOST_BLOCKS = 1000
_MOST_FINER_PX = 1 << 12  # a block of a level eight or sixteen times finer is read; more would take too long


class Overview:
    """Reads one level of a slide from side to side.

    Attributes:
        unreadable_px0: (left, top, right, bottom) of what could not be decoded at any level.
    """

    def __init__(self, levels: Levels, downsamples: Sequence[float], level: int) -> None:
        self._levels, self._downsamples, self._level = levels, downsamples, level
        self._lost: list[tuple[Box, TileUnreadableError]] = []

    @property
    def unreadable_px0(self) -> tuple[Box, ...]:
        """What was left white."""
        return tuple(box for box, _ in self._lost)

    def read(
        self, size: tuple[int, int], scale: float, bands: Iterable[tuple[tuple[int, int], int, float]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The overview; see `Slide.read_overview`.

        Args:
            size: (width, height) of the overview.
            scale: pixels of the level a pixel of it.
            bands: (first and last row, level-0 y to read from, what is left from there in pixels of the level).

        Raises:
            TileUnreadableError: nothing of it can be decoded, or over 1000 blocks cannot.
        """
        rgb, opaque = np.empty((size[1], size[0], 3), np.uint8), np.ones(size[::-1], bool)
        for (first, last), y_px0, y_rest in bands:
            rgb[first:last], seen = self._band((size[0], last - first), scale, y_px0, y_rest)
            opaque[first:last] = True if seen is None else seen
        if self._lost:
            first_error = self._lost[0][1]
            if not opaque.any():
                raise first_error
            logger.warning("%d blocks of the overview are left white, the first: %s", len(self._lost), first_error)
        return rgb, opaque

    def _band(self, size: tuple[int, int], scale: float, y_px0: int, y_rest: float) -> Pixels:
        """Rows of the overview from the level's pixels that they cover."""
        box = (0.0, y_rest, size[0] * scale, y_rest + size[1] * scale)
        rgb, opaque = self._pixels(y_px0, (math.ceil(box[2] - 1e-6), math.ceil(box[3] - 1e-6)))
        small = resampled(rgb, size, Image.Resampling.BILINEAR, box)
        if opaque is None or opaque.all():
            return small, None
        seen = resampled(opaque.astype(np.uint8) * 255, size, Image.Resampling.BILINEAR, box)
        return small, seen > 127

    def _pixels(self, y_px0: int, window: tuple[int, int]) -> Pixels:
        """The level's pixels of a band; the last may reach past the level, where there is white."""
        width, height = self._levels.sizes[self._level]
        y_at = round(y_px0 / self._levels.stated_downsamples[self._level])
        inside = (min(window[0], width), min(window[1], height - y_at))
        found = self._levels.read_other(self._level, (0, y_px0), inside) if min(inside) > 0 else None
        if found is None:
            return on_white(self._blocks(0, y_at, window))
        if inside == window:
            return found, None
        rgb, opaque = np.full((window[1], window[0], 3), 255, np.uint8), np.zeros(window[::-1], bool)
        rgb[: inside[1], : inside[0]], opaque[: inside[1], : inside[0]] = found, True
        return rgb, opaque

    def _blocks(self, x_at: int, y_at: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """RGBA pixels from a place in level pixels; halved where it cannot be decoded, until only bad blocks are blank."""
        stated = self._levels.stated_downsamples[self._level]
        try:
            return self._levels.read_openslide(self._level, (round(x_at * stated), round(y_at * stated)), size)
        except TileUnreadableError as error:
            if max(size) <= _BLOCK_PX:
                pixels = self._from_finer_level(x_at, y_at, size)
                if pixels is not None:
                    return pixels
                true = self._downsamples[self._level]
                box = (x_at * true, y_at * true, (x_at + size[0]) * true, (y_at + size[1]) * true)
                self._lost.append((box, error))
                if len(self._lost) > _MOST_BLOCKS:
                    raise
                return np.zeros((size[1], size[0], 4), np.uint8)
        if size[0] >= size[1]:
            cut = _cut(x_at, size[0])
            left = self._blocks(x_at, y_at, (cut, size[1]))
            return np.hstack([left, self._blocks(x_at + cut, y_at, (size[0] - cut, size[1]))])
        cut = _cut(y_at, size[1])
        top = self._blocks(x_at, y_at, (size[0], cut))
        return np.vstack([top, self._blocks(x_at, y_at + cut, (size[0], size[1] - cut))])

    def _from_finer_level(self, x_at: int, y_at: int, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """RGBA pixels of a block of a level, averaged from the next finer level that can be decoded there."""
        true = self._downsamples[self._level]
        for finer in range(self._level - 1, -1, -1):
            ratio = true / self._downsamples[finer]
            window = (round(size[0] * ratio), round(size[1] * ratio))
            if max(window) > _MOST_FINER_PX:
                return None
            with suppress(TileUnreadableError):
                pixels = self._levels.read_openslide(finer, (round(x_at * true), round(y_at * true)), window)
                return np.asarray(Image.fromarray(pixels, "RGBA").resize(size, Image.Resampling.BOX))
        return None


def bands_of(height: int, scale: float, level_width: float) -> Iterator[tuple[int, int]]:
    """Row ranges of an overview whose level pixels stay under a bound."""
    rows = max(1, int(_BAND_PX / max(1.0, level_width) / scale))
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def _cut(start: int, length: int) -> int:
    """Where to halve a side that is longer than a block: at the block border next to its middle."""
    return round((start + length / 2) / _BLOCK_PX) * _BLOCK_PX - start
