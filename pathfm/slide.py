"""A whole-slide image with an exact scale: open it, read a square of so many microns, read all of it small.

Every position is (x, y) in level-0 pixels. Levels are read at whole pixels of the level and resampled with an
antialiasing filter whose box carries the fraction, so a tile is `size_px * mpp` microns wide on every scanner; there
are no bins of magnification. Label and macro images are never opened, nor is any property but the scale.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import openslide
from PIL import Image

from pathfm.errors import MppError, SlideUnreadableError, TileUnreadableError
from pathfm.privacy import allowed
from pathfm.progress import logger
from pathfm.scale import MPP_SANE, MppSource, objective_power, require_sane_mpp, settled_mpp, stated_mpp
from pathfm.slidefiles import open_handle, require_readable, series_files, slide_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["MPP_SANE", "MppSource", "Slide", "open_slide", "series_files", "slide_digest"]

_LEVEL_TOLERANCE = 1 + 1e-3
_OVERVIEW_TOLERANCE = 1.25
_BAND_PX = 1 << 24
_MOST_PX = 1 << 40
_MOST_OVERVIEW_PX = 4 * 10**8
_MOST_ROW_PX = 1 << 30
_BLOCK_PX = 256
_MOST_BLOCKS = 1000
_MOST_FINER_PX = 1 << 12  # a block of a level eight or sixteen times finer is read; more would take too long

Box = tuple[float, float, float, float]


def open_slide(
    path: Path, mpp_override: float | None = None, mpp_source: MppSource = "override", slide_id: str | None = None
) -> Slide:
    """Opens a slide of any format that OpenSlide reads, or a plain image with a stated mpp.

    Args:
        path: the slide; any file of a DICOM series stands for the series.
        mpp_override: microns per pixel of level 0 where the slide states none, or an absurd or contradicted one; a
            believable one is overruled by the cohort alone.
        mpp_source: where the override comes from; recorded.
        slide_id: its name in the cohort; the file stem where not given.

    Raises:
        SlideUnreadableError: it does not open, or claims more than 2**40 pixels; the reason is typed.
        MppError: its mpp is missing, outside `MPP_SANE`, or contradicted, by itself or by the override.
        InputError: the override is outside `MPP_SANE`.
    """
    if mpp_override is not None:
        require_sane_mpp(mpp_override, f"--mpp-override {mpp_override:g} for {path}")
    require_readable(path)
    handle = open_handle(path)
    try:
        _require_size(path, handle.dimensions)
        mpp = settled_mpp(path, handle.properties, mpp_override, mpp_source)
    except (MppError, SlideUnreadableError):
        handle.close()
        raise
    return Slide(path, slide_id or path.stem, handle, mpp, "metadata" if mpp_override is None else mpp_source)


class Slide:
    """An open slide; a context manager, usable from several threads at once.

    Attributes:
        path: the file it was opened by.
        slide_id: its name in the cohort.
        mpp: microns per pixel of level 0.
        mpp_source: "metadata", "override" or "cohort".
        mpp_stated: what the slide itself states, None where it states nothing; differs from `mpp` under an override.
        size_px0: (width, height) of level 0.
        level_sizes: (width, height) of each level.
        level_downsamples: level-0 pixels per pixel of each level, ascending; the whole number that the level was made
            with where its size allows that, for OpenSlide divides rounded sizes and says 3.9995, half a pixel off at
            the far side.
        objective_power: as stated, None where it is not.
        unreadable_px0: (left, top, right, bottom) of what the last `read_overview` could not decode at any level.
        vendor: OpenSlide's name of the format, "image" for a plain image.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        handle: openslide.AbstractSlide,
        mpp: float,
        mpp_source: MppSource,
    ) -> None:
        self.path, self.slide_id = path, slide_id
        self.mpp, self.mpp_source, self.mpp_stated = mpp, mpp_source, stated_mpp(handle.properties)
        self._handle, self._lock = handle, threading.Lock()
        self.size_px0: tuple[int, int] = handle.dimensions
        self.level_sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self._stated_downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
        self.level_downsamples = tuple(map(self._true_downsample, self.level_sizes, self._stated_downsamples))
        self.objective_power = objective_power(handle.properties)
        self.vendor = allowed(handle.properties).get(openslide.PROPERTY_NAME_VENDOR, "image")
        self.unreadable_px0: tuple[Box, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files that make up the slide, sorted."""
        return series_files(self.path)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; no thread may be reading."""
        self._handle.close()

    def read_tile(self, x_px0: int, y_px0: int, size_px: int, mpp: float) -> NDArray[np.uint8]:
        """The square of `size_px * mpp` microns whose top-left corner is (x_px0, y_px0).

        Read from the coarsest level that is not coarser than `mpp`, resampled bicubically with antialiasing (Pillow;
        pixels outside the square have no part in it), untouched where the level has exactly that mpp. Outside the scan
        and where the scan is transparent it is white.

        Returns:
            uint8 (size_px, size_px, 3), RGB.

        Raises:
            TileUnreadableError: it cannot be decoded, also not from a fresh handle; later tiles can still be read.
        """
        level = self._level_for(mpp, _LEVEL_TOLERANCE)
        scale = mpp / self.mpp / self.level_downsamples[level]
        (x_at, x_rest), (y_at, y_rest) = self._whole_pixel(x_px0, level), self._whole_pixel(y_px0, level)
        box = (x_rest, y_rest, x_rest + size_px * scale, y_rest + size_px * scale)
        window = (math.ceil(box[2] - 1e-6), math.ceil(box[3] - 1e-6))
        rgb, _ = _on_white(self._read(x_at, y_at, level, window))
        if abs(scale - 1) < 1e-6 and max(x_rest, y_rest) < 1e-6:
            return rgb
        return _resample(rgb, (size_px, size_px), Image.Resampling.BICUBIC, box)

    def read_level(self, level: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A whole level: (rgb uint8 (h, w, 3) on white, opaque bool (h, w), False where the scanner has no pixels).

        Raises:
            TileUnreadableError: it cannot be decoded.
        """
        return _on_white(self._read(0, 0, level, self.level_sizes[level]))

    def read_overview(self, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The whole scan, resampled with an antialiasing triangle filter so that a pixel is exactly `mpp` microns wide.

        Pixel (i, j) covers level-0 x from `j * mpp / slide.mpp` to `(j + 1) * mpp / slide.mpp`. The last row and column
        may reach past the scan; what lies outside is white and not opaque. A level up to 1.25 times coarser than asked
        is used where there is one: it saves reading sixteen times as much. Read in bands, so memory stays bounded.
        A block of about 256 level pixels that cannot be decoded is read from a finer level; where none can be, it is
        white and not opaque, `unreadable_px0` names it, and the log says how many there are.

        Returns:
            (rgb uint8 (h, w, 3), opaque bool (h, w)).

        Raises:
            TileUnreadableError: nothing of it can be decoded, or over 1000 blocks cannot.
            SlideUnreadableError: it would have more than 4e8 pixels, or a row of it as many level pixels as memory.
        """
        level = self._level_for(mpp, _OVERVIEW_TOLERANCE)
        scale = mpp / self.mpp / self.level_downsamples[level]
        width, height = self.overview_size(mpp)
        if width * height > _MOST_OVERVIEW_PX or width * scale * max(scale, 1) > _MOST_ROW_PX:
            message = f"{self.path} has too many pixels for an overview ({width} x {height} at {mpp:g} mpp); convert it to a pyramidal TIFF"
            raise SlideUnreadableError(self.path, "unsupported", message)
        lost: list[tuple[Box, TileUnreadableError]] = []
        bands = [self._band(level, mpp, width, rows, lost) for rows in _bands(height, scale, width * scale)]
        if lost:
            if not any(opaque.any() for _, opaque in bands):
                raise lost[0][1]
            logger.warning("%d blocks of the overview are left white, the first: %s", len(lost), lost[0][1])
        self.unreadable_px0 = tuple(box for box, _ in lost)
        return np.concatenate([rgb for rgb, _ in bands]), np.concatenate([opaque for _, opaque in bands])

    def overview_size(self, mpp: float) -> tuple[int, int]:
        """(width, height) of the overview at this mpp; it covers the scan, so a broken last pixel counts whole."""
        width, height = (math.ceil(size * self.mpp / mpp - 1e-6) for size in self.size_px0)
        return width, height

    def _band(
        self, level: int, mpp: float, width: int, rows: tuple[int, int], lost: list[tuple[Box, TileUnreadableError]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Rows of the overview from the level's pixels that they cover."""
        scale = mpp / self.mpp / self.level_downsamples[level]
        y_at, y_rest = self._whole_pixel(rows[0] * mpp / self.mpp, level)
        box = (0.0, y_rest, width * scale, y_rest + (rows[1] - rows[0]) * scale)
        window = (math.ceil(box[2] - 1e-6), math.ceil(box[3] - 1e-6))
        rgb, opaque = _on_white(
            self._read_blocks(0, round(y_at / self._stated_downsamples[level]), level, window, lost)
        )
        size = (width, rows[1] - rows[0])
        if opaque.all():
            return _resample(rgb, size, Image.Resampling.BILINEAR, box), np.ones(size[::-1], bool)
        seen = _resample(opaque.astype(np.uint8) * 255, size, Image.Resampling.BILINEAR, box)
        return _resample(rgb, size, Image.Resampling.BILINEAR, box), seen > 127

    def _read_blocks(
        self, x_at: int, y_at: int, level: int, size: tuple[int, int], lost: list[tuple[Box, TileUnreadableError]]
    ) -> NDArray[np.uint8]:
        """RGBA pixels from a place in level pixels; halved where it cannot be decoded, until only bad blocks are blank."""
        stated = self._stated_downsamples[level]
        try:
            return self._read(round(x_at * stated), round(y_at * stated), level, size)
        except TileUnreadableError as error:
            if max(size) <= _BLOCK_PX:
                pixels = self._from_finer_level(x_at, y_at, level, size)
                if pixels is not None:
                    return pixels
                true = self.level_downsamples[level]
                box = (x_at * true, y_at * true, (x_at + size[0]) * true, (y_at + size[1]) * true)
                lost.append((box, error))
                if len(lost) > _MOST_BLOCKS:
                    raise
                return np.zeros((size[1], size[0], 4), np.uint8)
        if size[0] >= size[1]:
            cut = _cut(x_at, size[0])
            left = self._read_blocks(x_at, y_at, level, (cut, size[1]), lost)
            return np.hstack([left, self._read_blocks(x_at + cut, y_at, level, (size[0] - cut, size[1]), lost)])
        cut = _cut(y_at, size[1])
        top = self._read_blocks(x_at, y_at, level, (size[0], cut), lost)
        return np.vstack([top, self._read_blocks(x_at, y_at + cut, level, (size[0], size[1] - cut), lost)])

    def _from_finer_level(self, x_at: int, y_at: int, level: int, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """RGBA pixels of a block of a level, averaged from the next finer level that can be decoded there."""
        true = self.level_downsamples[level]
        for finer in range(level - 1, -1, -1):
            ratio = true / self.level_downsamples[finer]
            window = (round(size[0] * ratio), round(size[1] * ratio))
            if max(window) > _MOST_FINER_PX:
                return None
            with suppress(TileUnreadableError):
                pixels = self._read(round(x_at * true), round(y_at * true), finer, window)
                return np.asarray(Image.fromarray(pixels, "RGBA").resize(size, Image.Resampling.BOX))
        return None

    def _level_for(self, mpp: float, tolerance: float) -> int:
        """The coarsest level that is not coarser than `mpp`, within a factor."""
        wanted = mpp / self.mpp * tolerance
        fitting = [level for level, downsample in enumerate(self.level_downsamples) if downsample <= wanted]
        return fitting[-1] if fitting else 0

    def _true_downsample(self, size: tuple[int, int], stated: float) -> float:
        """The whole number next to a stated downsample, if the level's size is that of level 0 divided by it and rounded."""
        whole = round(stated)
        fits = all(abs(full / whole - part) < 1 for full, part in zip(self.size_px0, size, strict=True))
        return float(whole) if fits else stated

    def _whole_pixel(self, position_px0: float, level: int) -> tuple[int, float]:
        """(level-0 position to ask OpenSlide for, what is left from there to the position in level pixels).

        The level pixel at or before the position. OpenSlide takes whole level-0 positions and divides by its own
        downsample; where that is no whole number it interpolates by up to half a level-0 pixel, accounted for here.
        """
        wanted = position_px0 / self.level_downsamples[level]
        stated = self._stated_downsamples[level]
        at = round(math.floor(wanted + 1e-6) * stated)
        if at / stated > wanted + 1e-6:
            at = round((math.floor(wanted + 1e-6) - 1) * stated)
        return at, max(0.0, wanted - at / stated)

    def _read(self, x_px0: int, y_px0: int, level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """RGBA pixels of a level; a handle that has seen an error stays broken, so another is opened and tried once.

        The second try has a handle of its own: another thread's bad tile must not take this one along.
        """
        handle = self._handle
        with suppress(openslide.OpenSlideError):
            return np.asarray(handle.read_region((x_px0, y_px0), level, size))
        fresh = None
        try:
            fresh = open_handle(self.path)
            pixels = np.asarray(fresh.read_region((x_px0, y_px0), level, size))
        except (openslide.OpenSlideError, SlideUnreadableError) as error:
            if fresh is not None:
                self._replace(handle, open_handle(self.path))
            said = " ".join(str(error).split())
            message = (
                f"{self.path} cannot be decoded at ({x_px0}, {y_px0}), level {level} ({said}); copy the slide again"
            )
            raise TileUnreadableError(self.path, "corrupt tile", message) from error
        self._replace(handle, fresh)
        return pixels

    def _replace(self, broken: openslide.AbstractSlide, fresh: openslide.AbstractSlide) -> None:
        """Swaps the shared handle once; a broken one closes itself when its last reader lets go of it."""
        with self._lock:
            if self._handle is broken:
                self._handle = fresh


def _require_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MOST_PX:
        message = f"{path} claims {size[0]} x {size[1]} pixels, more than any scan has; scan or convert it again"
        raise SlideUnreadableError(path, "unsupported", message)


def _cut(start: int, length: int) -> int:
    """Where to halve a side that is longer than a block: at the block border next to its middle."""
    return round((start + length / 2) / _BLOCK_PX) * _BLOCK_PX - start


def _bands(height: int, scale: float, level_width: float) -> Iterator[tuple[int, int]]:
    """Row ranges of an overview whose level pixels stay under a bound."""
    rows = max(1, int(_BAND_PX / max(1.0, level_width) / scale))
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def _resample(
    pixels: NDArray[np.uint8], size: tuple[int, int], kernel: Image.Resampling, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    inside = (box[0], box[1], min(box[2], width), min(box[3], height))
    return np.asarray(Image.fromarray(pixels).resize(size, kernel, inside))


def _on_white(rgba: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The one place where missing pixels become white."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3]), np.ones(alpha.shape, bool)
    share = alpha[..., None].astype(np.uint16)
    rgb = (rgba[..., :3] * share + 255 * (255 - share) + 127) // 255
    return rgb.astype(np.uint8), alpha > 127
