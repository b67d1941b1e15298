"""Pixels of the levels of an open slide, by the fastest reader that is proven to give what OpenSlide gives.

OpenSlide is the measure. Another reader is compared with it on each level before it is used there, at places that cross
JPEG tiles; whatever that reader cannot read, OpenSlide is asked for.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import openslide

from pathfm.errors import SlideUnreadableError, TileUnreadableError
from pathfm.pixels import area_mean, on_white
from pathfm.privacy import allowed
from pathfm.progress import logger
from pathfm.readers.cucim import CucimReader
from pathfm.readers.direct import DirectReader
from pathfm.slidefiles import open_handle

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.readers.direct import Place


Reader = Literal["auto", "openslide", "cucim"]
"""Who reads tiles: "auto" decodes JPEG tiles directly where that gives OpenSlide's pixels."""

_TIFF_VENDORS = ("aperio", "generic-tiff")
_COMPARED = 3  # places a level, about 5 ms each
_CORNER_PX = 400


class Levels:
    """The levels of an open slide, read at whole pixels; usable from several threads at once.

    Attributes:
        sizes: (width, height) of each.
        stated_downsamples: what OpenSlide divides level-0 positions by.
    """

    def __init__(self, path: Path, handle: openslide.AbstractSlide, reader: Reader) -> None:
        self.sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.stated_downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
        self._path, self._handle = path, handle
        self._lock, self._proving = threading.Lock(), threading.Lock()
        self._others: list[_Other] = _other_readers(path, handle, reader)
        self._proven: dict[int, _Other | None] = {}

    def close(self) -> None:
        """Closes the file; no thread may be reading."""
        self._handle.close()
        for other in self._others:
            other.close()

    def reader_of(self, level: int) -> str:
        """What reads squares anywhere in a level: "direct", "openslide" or "cucim"."""
        other = self._other(level)
        return other.name if other and _is_whole(self.stated_downsamples[level]) else "openslide"

    def read(
        self,
        level: int,
        start_px0: tuple[int, int],
        size: tuple[int, int],
        factor: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Pixels of a level on white, or their mean over blocks of a whole factor (see `area_mean`).

        Args:
            level: of the slide.
            start_px0: (x, y), as OpenSlide takes it.
            size: (width, height) in pixels of the level, multiples of the factor.
            factor: pixels of the level a pixel.
            out: uint8 (height / factor, width / factor, 3) to fill and return.

        Raises:
            TileUnreadableError: they cannot be decoded.
        """
        pixels = self.read_other(level, start_px0, size, factor, out)
        if pixels is not None:
            return pixels
        rgba = self.read_openslide(level, start_px0, size)
        rgb, _ = on_white(rgba, out if factor == 1 else None)
        return rgb if factor == 1 else area_mean(rgb, factor, out)

    def read_other(
        self,
        level: int,
        start_px0: tuple[int, int],
        size: tuple[int, int],
        factor: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8] | None:
        """As `read`, by another reader than OpenSlide; all of it opaque. None where there is none, or it cannot."""
        stated = self.stated_downsamples[level]
        if not _is_whole(stated) and start_px0 != (0, 0):
            return None  # there OpenSlide interpolates
        other = self._other(level)
        if other is None:
            return None
        x, y = (round(start / stated) for start in start_px0)
        if (round(x * stated), round(y * stated)) != start_px0:
            return None
        return other.read(level, (x, y), size, factor, out)

    def read_openslide(self, level: int, start_px0: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """RGBA pixels of a level; a handle that has seen an error stays broken, so another is opened and tried once.

        The second try has a handle of its own: another thread's bad tile must not take this one along.

        Raises:
            TileUnreadableError: they cannot be decoded, also not from a fresh handle.
        """
        handle = self._handle
        with suppress(openslide.OpenSlideError):
            return np.asarray(handle.read_region(start_px0, level, size))
        fresh = None
        try:
            fresh = open_handle(self._path)
            pixels = np.asarray(fresh.read_region(start_px0, level, size))
        except (openslide.OpenSlideError, SlideUnreadableError) as error:
            if fresh is not None:
                self._replace(handle, open_handle(self._path))
            said = " ".join(str(error).split())
            message = f"{self._path} cannot be decoded at {start_px0}, level {level} ({said}); copy the slide again"
            raise TileUnreadableError(self._path, "corrupt tile", message) from error
        self._replace(handle, fresh)
        return pixels

    def _replace(self, broken: openslide.AbstractSlide, fresh: openslide.AbstractSlide) -> None:
        """Swaps the shared handle once; a broken one closes itself when its last reader lets go of it."""
        with self._lock:
            if self._handle is broken:
                self._handle = fresh

    def _other(self, level: int) -> _Other | None:
        """The reader of a level that has been compared with OpenSlide there, the first that gives the same."""
        if level in self._proven or not self._others:
            return self._proven.get(level)
        with self._proving:
            if level not in self._proven:
                self._proven[level] = next((other for other in self._others if self._agrees(other, level)), None)
        return self._proven[level]

    def _agrees(self, other: _Other, level: int) -> bool:
        """Whether a reader gives OpenSlide's pixels at the few places where that is tried."""
        stated, compared = self.stated_downsamples[level], 0
        places = other.places(level)
        if places and not _is_whole(stated):
            places = [((0, 0), _corner(self.sizes[level]))]
        for start, size in places:
            theirs = other.read(level, start, size, 1, None)
            if theirs is None:
                continue
            x_px0, y_px0 = (round(at * stated) for at in start)
            try:
                ours = self.read_openslide(level, (x_px0, y_px0), size)
                why = "its pixels differ" if _differ(ours, theirs) else ""
            except TileUnreadableError:
                why = "it reads what OpenSlide refuses"
            if why:
                logger.info(
                    "%s: %s does not read level %d, %s at %s", self._path, other.name, level, why, (x_px0, y_px0)
                )
                return False
            compared += 1
            if compared == _COMPARED:
                break
        return compared > 0


class _Other(Protocol):
    """A reader that may give what OpenSlide gives."""

    name: str

    def places(self, level: int) -> list[Place]: ...

    def read(
        self, level: int, start: tuple[int, int], size: tuple[int, int], factor: int, out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None: ...

    def close(self) -> None: ...


def _other_readers(path: Path, handle: openslide.AbstractSlide, reader: Reader) -> list[_Other]:
    """Those to be tried, best first."""
    others: list[_Other] = []
    if reader == "cucim":
        others.append(CucimReader(path, handle.level_dimensions, handle.level_downsamples))
    vendor = allowed(handle.properties).get(openslide.PROPERTY_NAME_VENDOR)
    if reader != "openslide" and vendor in _TIFF_VENDORS:
        with suppress(OSError):
            others.append(DirectReader(path, handle.level_dimensions))
    return others


def _is_whole(downsample: float) -> bool:
    return downsample == round(downsample)


def _corner(size: tuple[int, int]) -> tuple[int, int]:
    return min(size[0], _CORNER_PX), min(size[1], _CORNER_PX)


def _differ(rgba: NDArray[np.uint8], rgb: NDArray[np.uint8]) -> bool:
    return bool((rgba[..., 3] != 255).any()) or not np.array_equal(rgba[..., :3], rgb)
