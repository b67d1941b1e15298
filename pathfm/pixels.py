"""What is done to pixels once they are read: missing ones made white, squares made smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]

_WHOLE = 1e-6  # of a pixel, and of a factor
_BAND_ROWS = 64


def whole_factor(scale: float, x_rest: float, y_rest: float) -> int | None:
    """The whole number that a scale is, where the square starts on a whole pixel; None where it has to be resampled."""
    factor = round(scale)
    return factor if factor >= 1 and abs(scale - factor) < _WHOLE and max(x_rest, y_rest) < _WHOLE else None


def area_mean(pixels: NDArray[np.uint8], factor: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The mean of each block of factor x factor pixels, rounded to the nearest; a half goes up at 2, to even elsewhere.

    A block's mean depends on that block alone, so a picture may be shrunk in parts.

    Args:
        pixels: uint8 (h, w, 3), both sides multiples of the factor.
        factor: 1 leaves them as they are.
        out: uint8 (h / factor, w / factor, 3) to fill.

    Returns:
        `out`, or a new array; `pixels` themselves for the factor 1 without `out`.
    """
    if factor == 1:
        return pixels if out is None else filled(out, pixels)
    size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
    if out is not None and out.flags.c_contiguous:
        return cast("NDArray[np.uint8]", cv2.resize(pixels, size, dst=out, interpolation=cv2.INTER_AREA))
    shrunk = cast("NDArray[np.uint8]", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return shrunk if out is None else filled(out, shrunk)


def resampled(
    pixels: NDArray[np.uint8], size: tuple[int, int], kernel: Image.Resampling, box: Box
) -> NDArray[np.uint8]:
    """A box of the pixels at another size, antialiased; what of the box is outside of them is left out."""
    height, width = pixels.shape[:2]
    inside = (box[0], box[1], min(box[2], width), min(box[3], height))
    return np.array(Image.fromarray(pixels).resize(size, kernel, inside))  # a copy: what Pillow gives is read-only


def on_white(
    rgba: NDArray[np.uint8], out: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """(rgb on white, opaque or None where all of it is); the one place where missing pixels become white."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        target = np.empty((*alpha.shape, 3), np.uint8) if out is None else out
        return filled(target, rgba[..., :3]), None
    rgb = np.empty((*alpha.shape, 3), np.uint8) if out is None else out
    for first in range(0, len(rgba), _BAND_ROWS):  # in bands: what is between is four times the picture
        band = rgba[first : first + _BAND_ROWS]
        share = band[..., 3:].astype(np.uint16)
        rgb[first : first + _BAND_ROWS] = (band[..., :3] * share + 255 * (255 - share) + 127) // 255
    return rgb, alpha > 127


def filled(out: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`out` with the pixels in it."""
    out[...] = pixels
    return out
