"""Where the tissue is: a mask at about 8 microns per pixel, from colour in optical-density space.

Glass, dust, shadows, bubbles and the marks of a black pen are grey; stained tissue is not. So the method looks at how
far a pixel is from grey *in absorbance*, where stain adds up linearly (Beer-Lambert; Ruifrok and Johnston, Anal Quant
Cytol Histol 2001), instead of at brightness or HSV saturation, which call a shadow tissue and a dark pixel colourful:

1. The whole slide is read at `mpp`, from the level that fits, and its glass colour is estimated: the
   brightest common colour among nearly grey pixels. Optical density is taken against it, so a scanner's tint drops out.
2. *Chroma* is the largest minus the smallest optical density of the three channels, median-filtered. Otsu's threshold on it
   (IEEE Trans SMC 1979) is clamped to [`min_chroma`, `max_chroma`]: an empty slide has no two classes and yields
   nothing instead of its noise; a slide with one dark and one faint piece does not lose the faint one.
3. Left out: pixels the scanner has not scanned; black ones (padding, background, black pen), dark in all channels;
   and blue or green pen, which absorbs more red than green: haematoxylin, eosin and DAB all absorb at least about as
   much green as red, pen inks do not.
4. Closing joins what belongs together, opening takes off threads, pieces under `min_piece_um2` go, holes under
   `max_hole_um2` are filled and larger ones (vessels, lumina, tears) stay.

Made for haematoxylin-eosin and haematoxylin-DAB on bright field. A fluorescence slide is dark everywhere: no tissue.
Blue counterstains (Alcian blue, trichrome) look like pen: set `pen_ratio` to 0 there. A red pen is not told from eosin.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import cv2
import numpy as np

from pathfm.errors import InputError
from pathfm.thumbnailhash import UNKNOWN_HASH, thumbnail_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cv2.typing import MatLike
    from numpy.typing import ArrayLike, NDArray

    from pathfm.slide import Slide

_GLASS_DARKEST, _GLASS_TINT = 130, 40  # smallest channel of a pixel of glass, and largest difference of two
_WIDEST_UM = 2000.0  # of a filter: more would join or erase whole slides, and takes hours
_WIDEST_MEDIAN_PX = 255  # what OpenCV's counters can hold
_BAND_PX = 1 << 22
_STEPS = 1000  # chroma is held as 0 to 255 thousandths of optical density; what is more counts as 0.255


@dataclass(frozen=True)
class TissueSpec:
    """How tissue is found."""

    mpp: float = 8.0
    """Microns per pixel of the mask."""
    min_chroma: float = 0.02
    """Lowest threshold on optical-density chroma; lower finds fainter stain, and at last the noise of the glass."""
    max_chroma: float = 0.03
    """Highest threshold on optical-density chroma; a faint piece beside a dark one stays above it."""
    black: int = 70
    """A pixel whose brightest channel (0-255) is below this is black, also one whose middle channel is below a third of it."""
    pen_ratio: float = 1.1
    """Ink absorbs this many times more red than green; 0 keeps ink, for blue counterstains."""
    smooth_um: float = 24.0
    """Width in microns of the median filter on chroma."""
    close_um: float = 40.0
    """Gaps up to this width in microns are closed."""
    open_um: float = 24.0
    """Threads up to this width in microns are taken off."""
    min_piece_um2: float = 15_000.0
    """Pieces of tissue smaller than this area in square microns are dust."""
    max_hole_um2: float = 15_000.0
    """Holes up to this area in square microns are filled."""

    def __post_init__(self) -> None:
        """Refuses what cannot be computed.

        Raises:
            InputError: a value out of range; the message names the flag.
        """
        bounds = {
            "mpp": (0.5, 100.0),
            "min_chroma": (0.0, 0.25),
            "max_chroma": (self.min_chroma, 0.25),
            "black": (0, 255),
        }
        for field in ("pen_ratio", "min_piece_um2", "max_hole_um2"):
            bounds[field] = (0.0, 1e12)
        bounds["close_um"] = bounds["open_um"] = (0.0, _WIDEST_UM)
        bounds["smooth_um"] = (0.0, min(_WIDEST_UM, _WIDEST_MEDIAN_PX * self.mpp))
        for field, (low, high) in bounds.items():
            value = getattr(self, field)
            if not low <= value <= high:
                message = f"--tissue.{field} is {value:g}; give a number from {low:g} to {high:g}"
                raise InputError(message)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where the tissue is.

    Attributes:
        mask: bool (h, w); pixel (i, j) covers level-0 x from `j * mpp / slide.mpp`, y from `i * mpp / slide.mpp`.
        mpp: microns per pixel of the mask.
        source: "found" by the method of this module, or a hand-made "outline".
        glass_rgb: the estimated colour of the empty slide, 0-255; white for an outline.
        threshold: the chroma above which a pixel was tissue; NaN for an outline.
        thumbnail_hash: what the overview it was found in looks like; "" for an outline.
    """

    mask: NDArray[np.bool_]
    mpp: float
    source: Literal["found", "outline"] = "found"
    glass_rgb: tuple[int, int, int] = (255, 255, 255)
    threshold: float = float("nan")
    thumbnail_hash: str = UNKNOWN_HASH

    @property
    def area_mm2(self) -> float:
        """Area of the tissue in square millimetres."""
        return float(np.count_nonzero(self.mask)) * self.mpp**2 / 1e6

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the mask, its shape and its mpp."""
        head = f"{self.mask.shape[0]}x{self.mask.shape[1]}@{self.mpp!r};".encode()
        return hashlib.sha256(head + np.packbits(self.mask).tobytes()).hexdigest()

    def coverage(self, x_px0: ArrayLike, y_px0: ArrayLike, extent_px0: float, slide_mpp: float) -> NDArray[np.float64]:
        """The share of each square that is tissue.

        Exact also where a square cuts through mask pixels: the integral image is linear inside a pixel. What lies
        outside the mask is no tissue.

        Args:
            x_px0: (n,), left edges in level-0 pixels.
            y_px0: (n,), top edges.
            extent_px0: width and height of the squares.
            slide_mpp: microns per pixel of level 0.

        Returns:
            float64 (n,), 0 to 1.
        """
        scale = slide_mpp / self.mpp
        left, top = np.asarray(x_px0, np.float64) * scale, np.asarray(y_px0, np.float64) * scale
        side = extent_px0 * scale
        right, bottom = left + side, top + side
        area = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top) + self._area(left, top)
        return np.clip(area / side**2, 0.0, 1.0)

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue above and left of points, in mask pixels; bilinear in the integral image."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        u, v = x - column, y - row
        table = self._integral
        upper = table[row, column] * (1 - u) + table[row, column + 1] * u
        lower = table[row + 1, column] * (1 - u) + table[row + 1, column + 1] * u
        return cast("NDArray[np.float64]", upper * (1 - v) + lower * v)

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        return cast("NDArray[np.float64]", cv2.integral(self.mask.astype(np.uint8), sdepth=cv2.CV_64F))


_DEFAULT = TissueSpec()


def find_tissue(slide: Slide, spec: TissueSpec = _DEFAULT) -> TissueMask:
    """Finds the tissue of a slide; see the head of this module for the method. Deterministic.

    Raises:
        TileUnreadableError: the overview cannot be decoded.
    """
    rgb, opaque = slide.read_overview(spec.mpp)
    return replace(tissue_of_image(rgb, opaque, spec), thumbnail_hash=thumbnail_hash(rgb, opaque))


def tissue_of_image(rgb: NDArray[np.uint8], opaque: NDArray[np.bool_], spec: TissueSpec = _DEFAULT) -> TissueMask:
    """Finds the tissue in a picture of `spec.mpp` microns per pixel.

    Args:
        rgb: uint8 (h, w, 3).
        opaque: bool (h, w), False where nothing was scanned.
        spec: the parameters.
    """
    channels = [np.ascontiguousarray(rgb[..., c]) for c in range(3)]
    low, high = _low_high(channels)
    glass = _glass_rgb(channels, low, high, opaque)
    tables = [_density_of_levels(white) for white in glass]
    usable = opaque & ~_black(channels, high, spec) & ~_ink(channels, tables, spec)
    chroma = _chroma([cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)], usable, spec)
    threshold = _threshold(chroma, usable, spec)
    mask = _cleaned((chroma > threshold * _STEPS) & usable, spec)
    return TissueMask(mask, spec.mpp, "found", glass, threshold)


def _low_high(channels: Sequence[MatLike]) -> tuple[MatLike, MatLike]:
    """The smallest and the largest of three channels at each pixel."""
    first, second, third = channels
    return cv2.min(cv2.min(first, second), third), cv2.max(cv2.max(first, second), third)


def _glass_rgb(
    channels: Sequence[MatLike], low: MatLike, high: MatLike, opaque: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """The colour of the brightest common tone among bright, nearly grey pixels; white where there is no such pixel.

    Common is what a quarter of the most frequent tone reaches, so pale tissue that covers most of a slide is not taken
    for its glass. All channels are looked at in the same pixels: uneven light moves them together. Pixels of exactly
    255 in all channels are padding that no scanner saw, unless there is nothing else.
    """
    bright = opaque & (low >= _GLASS_DARKEST) & (cv2.subtract(high, low) <= _GLASS_TINT)
    real = bright & (low < 255)
    chosen = real if np.count_nonzero(real) > 0.005 * real.size else bright
    tones = np.convolve(_counts(low, chosen), np.ones(3), "same")
    if not tones.any():
        return 255, 255, 255
    tone = int(np.flatnonzero(tones >= tones.max() / 4)[-1])
    alike = (chosen & (cv2.absdiff(low, np.full_like(low, tone)) <= 2)).astype(np.uint8)
    red, green, blue = (round(cv2.mean(channel, alike)[0]) for channel in channels)
    return red, green, blue


def _density_of_levels(white: int) -> NDArray[np.uint16]:
    """Thousandths of -log10 of the transmitted share of light at each level 0-255, 0 where brighter than the glass."""
    levels = np.arange(256) + 1
    density = _STEPS * np.maximum(0, np.log10((white + 1) / levels))
    return cast("NDArray[np.uint16]", np.rint(density).astype(np.uint16))


def _black(channels: Sequence[MatLike], high: MatLike, spec: TissueSpec) -> NDArray[np.bool_]:
    """Dark in all channels, or nearly out in two of them as a fluorescent dye is; no stain is."""
    first, second, third = channels
    middle = cv2.max(cv2.min(first, second), cv2.min(cv2.max(first, second), third))
    # Whole numbers on both sides: a fraction would turn every pixel into eight bytes.
    return (high < math.ceil(spec.black)) | (middle < math.ceil(spec.black / 3))


def _ink(channels: Sequence[MatLike], tables: Sequence[NDArray[np.uint16]], spec: TissueSpec) -> NDArray[np.bool_]:
    """Blue and green ink and the rim around it where it fades.

    Absorbance falls with the level, so for each level of green it is ink below some level of red.
    """
    (red, green, _), (red_density, green_density, _) = channels, tables
    most = spec.pen_ratio * green_density + 0.03 * _STEPS
    ends = (red_density > most[:, None]).sum(axis=1).astype(np.uint8)
    return (red < cv2.LUT(green, ends)) & (spec.pen_ratio > 0)


def _chroma(densities: Sequence[MatLike], usable: NDArray[np.bool_], spec: TissueSpec) -> MatLike:
    """Thousandths of optical density between the most and the least absorbed channel, up to 255, median-filtered."""
    low, high = _low_high(densities)
    chroma = cv2.convertScaleAbs(cv2.subtract(high, low))
    chroma[~usable] = 0
    return cv2.medianBlur(chroma, _odd(spec.smooth_um, spec))


def _threshold(chroma: MatLike, usable: NDArray[np.bool_], spec: TissueSpec) -> float:
    """Otsu's threshold in optical density, clamped."""
    counts = _counts(chroma, usable)
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    otsu = float(np.nan_to_num(between).argmax()) / _STEPS
    return min(max(otsu, spec.min_chroma), spec.max_chroma)


def _counts(channel: MatLike, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Histogram of 256 steps over some pixels."""
    counts = cv2.calcHist([channel], [0], where.astype(np.uint8), [256], [0, 256])
    return counts.ravel().astype(np.float64)


def _cleaned(raw: NDArray[np.bool_], spec: TissueSpec) -> NDArray[np.bool_]:
    mask: MatLike = raw.astype(np.uint8)
    for step, width_um in ((cv2.MORPH_CLOSE, spec.close_um), (cv2.MORPH_OPEN, spec.open_um)):
        width = _odd(width_um, spec)
        mask = cv2.morphologyEx(mask, step, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    pieces = _without_small(mask, spec.min_piece_um2 / spec.mpp**2)
    return _without_holes(pieces, spec.max_hole_um2 / spec.mpp**2).astype(bool)


def _without_small(mask: MatLike, least_px: float) -> NDArray[np.uint8]:
    """A 0/1 mask without its pieces of fewer pixels; touching corners join."""
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    keep = (_areas(labels, count) >= least_px).astype(np.uint8)
    keep[0] = 0
    return cast("NDArray[np.uint8]", keep[labels])


def _without_holes(mask: MatLike, most_px: float) -> NDArray[np.uint8]:
    """A 0/1 mask with its holes of so many pixels filled; what is open to the edge is no hole."""
    background = cv2.copyMakeBorder(1 - mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    count, labels = cv2.connectedComponents(background, connectivity=4)
    hole = (_areas(labels, count) <= most_px).astype(np.uint8)
    hole[[0, labels[0, 0]]] = 0
    return cast("NDArray[np.uint8]", mask | hole[labels][1:-1, 1:-1])


def _areas(labels: MatLike, count: int) -> NDArray[np.int64]:
    """Pixels of each label; OpenCV's own statistics take twice as long, for boxes and centres that nobody asks for.

    In bands, for each pixel takes eight bytes while it is counted.
    """
    areas = np.zeros(count, np.int64)
    for band in np.array_split(labels, 1 + labels.size // _BAND_PX):
        areas += np.bincount(band.ravel(), minlength=count)
    return areas


def _odd(width_um: float, spec: TissueSpec) -> int:
    """The odd number of mask pixels nearest to a width, at least 1."""
    return 2 * int(width_um / spec.mpp / 2) + 1
