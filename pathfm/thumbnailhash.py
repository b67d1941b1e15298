"""What a scan looks like from afar, as 64 bits that its copies share: compressed, cropped, rescaled, turned or scanned again.

A perceptual hash in the manner of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): the
signs of the lowest frequencies of a small grey picture. Two things are made for slides. The picture is the window of the
overview that the tissue fills, found by the mean and the deviation of its darkness along each axis, so that another
margin of glass changes little. And a bit is the sign of a frequency, not whether it is above their median: mirrored, a
picture has the same frequencies with every other sign turned, so the hashes of all eight ways to lay a slide on a scanner
follow from one.

64 bits say that two pictures may be of one slide. They say nothing of the tissue to a reader, but whoever has a scan can
tell whether a hash is of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.fft import dctn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UNKNOWN_HASH = ""
"""The hash of a slide of which none is known."""
_HASH = re.compile(r"[0-9a-f]{16}")
_SIDE = 8  # frequencies kept along each axis
_PICTURE_PX = 32
_WORKING_PX = 1024
_REACH = 1.6  # half width of the window in deviations of the darkness; an evenly filled frame ends at the root of 3
_GLASS = 0.95  # share of the bright end of the picture from which on a pixel counts as glass
_LEAST_DARKNESS = 1e-3  # mean over the picture, of 1; below it there is nothing to see


def thumbnail_hash(rgb: NDArray[np.uint8], opaque: NDArray[np.bool_]) -> str:
    """The hash of an overview, 16 hex digits; "" where there is nothing on the glass.

    Bit 8 v + u, the highest first, says whether the cosine transform (type II) of the window has a positive coefficient
    at frequency u along x and v along y; the bit of the mean, which says nothing, is 0.

    Args:
        rgb: uint8 (h, w, 3), all of the scan at a few microns a pixel.
        opaque: bool (h, w), False where nothing was scanned, which counts as glass.
    """
    grey, opaque = _reduced(rgb, opaque)
    bright = float(np.quantile(grey[opaque], 0.99)) if opaque.any() else 0.0
    darkness = np.clip(1 - grey / max(_GLASS * bright, 1.0), 0, 1)
    darkness[~opaque] = 0
    if not darkness.mean() > _LEAST_DARKNESS:
        return UNKNOWN_HASH
    left, right = _window(darkness.mean(axis=0))
    top, bottom = _window(darkness.mean(axis=1))
    small = Image.fromarray(darkness).resize(
        (_PICTURE_PX, _PICTURE_PX), Image.Resampling.BOX, (left, top, right, bottom)
    )
    waves = dctn(np.asarray(small, np.float64))[:_SIDE, :_SIDE]
    bits = waves > 0
    bits[0, 0] = False
    return np.packbits(bits).tobytes().hex()


def is_thumbnail_hash(text: object) -> bool:
    """Whether this is what `thumbnail_hash` gives, "" included."""
    return isinstance(text, str) and (text == UNKNOWN_HASH or _HASH.fullmatch(text) is not None)


def turned_hashes(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """The hashes of the same pictures in each of the eight ways to turn and mirror them, uint64 (n, 8), the first as it is.

    Args:
        hashes: of 16 hex digits each.
    """
    octets = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)
    bits = np.unpackbits(octets).reshape(-1, _SIDE, _SIDE).astype(bool)
    odd = np.arange(_SIDE) % 2 == 1
    ways = []
    for laid in (bits, bits.swapaxes(1, 2)):
        for across in (False, True):
            for down in (False, True):
                way = laid ^ (odd & across)[None, None, :] ^ (odd & down)[None, :, None]
                way[:, 0, 0] = False
                ways.append(np.packbits(way.reshape(-1, _SIDE * _SIDE), axis=1).view(">u8").astype(np.uint64))
    return np.concatenate(ways, axis=1)


def _reduced(rgb: NDArray[np.uint8], opaque: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The picture in grey, float32 (h, w), and what was scanned, so small that no step takes long."""
    times = max(1, max(opaque.shape) // _WORKING_PX)
    grey = Image.fromarray(rgb).convert("L").reduce(times)
    seen = Image.fromarray(opaque.astype(np.uint8) * 255).reduce(times)
    return np.asarray(grey, np.float32), np.asarray(seen) > 127


def _window(profile: NDArray[np.floating]) -> tuple[float, float]:
    """From where to where the tissue lies along one axis, in pixels, inside the picture and at least one wide."""
    places = np.arange(len(profile)) + 0.5
    weights = profile / profile.sum()
    middle = float(weights @ places)
    reach = max(_REACH * float(np.sqrt(weights @ (places - middle) ** 2)), 0.5)
    return max(middle - reach, 0.0), min(middle + reach, float(len(profile)))
