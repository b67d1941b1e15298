"""A whole-slide image with an exact scale: open it, read a square of so many microns, read all of it small.

Every position is (x, y) in level-0 pixels. Levels are read at whole pixels of the level; where a pixel asked for is a
whole number of them it is their mean, else they are resampled with an antialiasing filter whose box carries the
fraction. So a tile is `size_px * mpp` microns wide on every scanner; there are no bins of magnification. Label and
macro images are never opened, nor is any property but the scale.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import openslide
from PIL import Image

from pathfm.errors import InputError, MppError, SlideUnreadableError
from pathfm.overview import Overview, bands_of
from pathfm.pixels import Box, filled, on_white, resampled, whole_factor
from pathfm.privacy import allowed
from pathfm.readers import Levels, Reader
from pathfm.scale import MPP_SANE, MppSource, objective_power, require_sane_mpp, settled_mpp, stated_mpp
from pathfm.slidefiles import open_handle, require_readable, series_files, slide_digest

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["MPP_SANE", "MppSource", "Reader", "Slide", "open_slide", "series_files", "slide_digest"]

_LEVEL_TOLERANCE = 1 + 1e-3
_OVERVIEW_TOLERANCE = 1.25
_MOST_PX = 1 << 40
_MOST_OVERVIEW_PX = 4 * 10**8
_MOST_ROW_PX = 1 << 30


def open_slide(
    path: Path,
    mpp_override: float | None = None,
    mpp_source: MppSource = "override",
    slide_id: str | None = None,
    reader: Reader = "auto",
) -> Slide:
    """Opens a slide of any format that OpenSlide reads, or a plain image with a stated mpp.

    Args:
        path: the slide; any file of a DICOM series stands for the series.
        mpp_override: microns per pixel of level 0 where the slide states none, or an absurd or contradicted one; a
            believable one is overruled by the cohort alone.
        mpp_source: where the override comes from; recorded.
        slide_id: its name in the cohort; the file stem where not given.
        reader: "auto" decodes JPEG tiles directly where that is found to give OpenSlide's pixels, "openslide" never;
            "cucim" reads by cuCIM where that gives them, else as "auto".

    Raises:
        SlideUnreadableError: it does not open, or claims more than 2**40 pixels; the reason is typed.
        MppError: its mpp is missing, outside `MPP_SANE`, or contradicted, by itself or by the override.
        InputError: the override is outside `MPP_SANE`, or the reader is not installed.
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
    try:
        return Slide(
            path, slide_id or path.stem, handle, mpp, "metadata" if mpp_override is None else mpp_source, reader
        )
    except InputError:
        handle.close()
        raise


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
        reader: Reader = "auto",
    ) -> None:
        self.path, self.slide_id = path, slide_id
        self.mpp, self.mpp_source, self.mpp_stated = mpp, mpp_source, stated_mpp(handle.properties)
        self._levels = Levels(path, handle, reader)
        self.size_px0: tuple[int, int] = handle.dimensions
        self.level_sizes = self._levels.sizes
        self.level_downsamples = tuple(map(self._true_downsample, self.level_sizes, self._levels.stated_downsamples))
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
        self._levels.close()

    def reader_for(self, mpp: float) -> str:
        """What reads tiles of this mpp: "direct", "openslide" or "cucim"; the first call for a level compares them."""
        return self._levels.reader_of(self._level_for(mpp, _LEVEL_TOLERANCE))

    def read_tile(
        self, x_px0: int, y_px0: int, size_px: int, mpp: float, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The square of `size_px * mpp` microns whose top-left corner is (x_px0, y_px0).

        Read from the coarsest level that is not coarser than `mpp`, untouched where the level has exactly that mpp. Where
        a pixel is a whole number of the level's in each direction, and the square starts on one, it is their mean,
        rounded to the nearest (a half goes up for 2 x 2, else to the even number). Else it is resampled bicubically with
        antialiasing (Pillow); pixels outside the square have no part in it. Outside the scan and where the scan is
        transparent it is white.

        Args:
            x_px0: of the corner.
            y_px0: of the corner.
            size_px: the side of the tile in its own pixels.
            mpp: microns per pixel of the tile.
            out: uint8 (size_px, size_px, 3) to fill, C-contiguous; may be a view of shared memory.

        Returns:
            uint8 (size_px, size_px, 3), RGB; `out` where it is given.

        Raises:
            TileUnreadableError: it cannot be decoded, also not from a fresh handle; later tiles can still be read.
            ValueError: `out` is of another shape or type, or may not be written to.
        """
        if out is not None and (out.shape != (size_px, size_px, 3) or out.dtype != np.uint8 or not out.flags.writeable):
            message = f"out is {out.dtype} {out.shape}, a tile is writeable uint8 ({size_px}, {size_px}, 3)"
            raise ValueError(message)
        level = self._level_for(mpp, _LEVEL_TOLERANCE)
        scale = mpp / self.mpp / self.level_downsamples[level]
        (x_at, x_rest), (y_at, y_rest) = self._whole_pixel(x_px0, level), self._whole_pixel(y_px0, level)
        factor = whole_factor(scale, x_rest, y_rest)
        if factor:
            side = size_px * factor
            return self._levels.read(level, (x_at, y_at), (side, side), factor, out)
        box = (x_rest, y_rest, x_rest + size_px * scale, y_rest + size_px * scale)
        window = (math.ceil(box[2] - 1e-6), math.ceil(box[3] - 1e-6))
        pixels = self._levels.read(level, (x_at, y_at), window)
        tile = resampled(pixels, (size_px, size_px), Image.Resampling.BICUBIC, box)
        return tile if out is None else filled(out, tile)

    def read_level(self, level: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A whole level: (rgb uint8 (h, w, 3) on white, opaque bool (h, w), False where the scanner has no pixels).

        Raises:
            TileUnreadableError: it cannot be decoded.
        """
        rgb, opaque = on_white(self._levels.read_openslide(level, (0, 0), self.level_sizes[level]))
        return rgb, np.ones(rgb.shape[:2], bool) if opaque is None else opaque

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
        overview = Overview(self._levels, self.level_downsamples, level)
        bands = (
            (rows, *self._whole_pixel(rows[0] * mpp / self.mpp, level))
            for rows in bands_of(height, scale, width * scale)
        )
        rgb, opaque = overview.read((width, height), scale, bands)
        self.unreadable_px0 = overview.unreadable_px0
        return rgb, opaque

    def overview_size(self, mpp: float) -> tuple[int, int]:
        """(width, height) of the overview at this mpp; it covers the scan, so a broken last pixel counts whole."""
        width, height = (math.ceil(size * self.mpp / mpp - 1e-6) for size in self.size_px0)
        return width, height

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
        stated = self._levels.stated_downsamples[level]
        at = round(math.floor(wanted + 1e-6) * stated)
        if at / stated > wanted + 1e-6:
            at = round((math.floor(wanted + 1e-6) - 1) * stated)
        return at, max(0.0, wanted - at / stated)


def _require_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MOST_PX:
        message = f"{path} claims {size[0]} x {size[1]} pixels, more than any scan has; scan or convert it again"
        raise SlideUnreadableError(path, "unsupported", message)
