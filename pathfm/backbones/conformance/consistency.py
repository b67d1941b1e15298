"""Checks of a row by itself, without its network: what it says of itself, the tiles it refuses, the image it makes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pathfm.backbones.conformance.check import Check, looked
from pathfm.backbones.conformance.trial import input_px, known_tile
from pathfm.backbones.sound import require_sound
from pathfm.backbones.transform import require_tiles, to_input
from pathfm.errors import TileSpecMismatchError
from pathfm.licences import UNKNOWN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.backbones.row import Backbone

# A tie may be rounded the other way across and down by torch and by Pillow, and seldom is.
_MOST_GREY, _MEAN_GREY = 2.5, 0.1
# A value that grows by about one a pixel is rounded in the tile, and twice in a resize, which also bends its ends.
_MARKER_PX = 1.5
_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_NOTHING: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def row_checks(row: Backbone) -> list[Check]:
    """All that can be said of a row without its network."""
    return [
        looked("row", "one that can be", lambda: _sound(row)),
        _source(row),
        _colour(row),
        *_terms(row),
        looked("tiles", f"takes {row.tile}, refuses others", lambda: _refusals(row)),
        looked("transform", "what Pillow makes of the same tile", lambda: _against_pillow(row)),
        looked("field of view", _field(row), lambda: _seen(row)),
    ]


def pillow_image(tile: NDArray[np.uint8], row: Backbone) -> NDArray[np.float64]:
    """The input of a backbone as Pillow and NumPy make it, apart from `to_input`.

    Args:
        tile: uint8 (h, w, 3), RGB, h = w.
        row: says how wide, which part of it, and which mean and deviation.

    Returns:
        float64 (h, w, 3).
    """
    image = Image.fromarray(tile)
    if row.resize_px is not None:
        image = image.resize((row.resize_px, row.resize_px), _KERNELS[row.interpolation], (0, 0, *image.size))
    if row.crop_px is not None:
        left = (image.width - row.crop_px) // 2
        image = image.crop((left, left, left + row.crop_px, left + row.crop_px))
    mean, deviation = row.mean_std or _NOTHING
    values = np.asarray(image, dtype=np.float64) / 255
    with np.errstate(divide="ignore", invalid="ignore"):  # a deviation of 0 is found by others
        image_input: NDArray[np.float64] = (values - np.array(mean)) / np.array(deviation)
    return image_input


def _sound(row: Backbone) -> tuple[str, bool]:
    # the name of a variant or of a source says more than one that is registered may
    require_sound(replace(row, name="row"))
    return f"{row.output} of {', '.join(row.outputs) or row.output}, {row.dim or 'any'} numbers", True


def _source(row: Backbone) -> Check:
    named = row.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", row.repo) is not None
    pins = (row.shapes_sha8, 8), (row.weights_sha256, 64)
    pinned = all(not value or re.fullmatch(f"[0-9a-f]{{{count}}}", value) for value, count in pins)
    return Check("source", "owner/repo on the hub or a place here; digests in hex", row.source, named and pinned)


def _colour(row: Backbone) -> Check:
    wanted = "of values from 0 to 1, so themselves within"
    if row.mean_std is None:
        return Check("mean and deviation", wanted, "none", passed=True)
    mean, deviation = (", ".join(f"{value:g}" for value in values) for values in row.mean_std)
    good = all(0 <= value <= 1 for values in row.mean_std for value in values)
    return Check("mean and deviation", wanted, f"{mean} and {deviation}", good)


def _terms(row: Backbone) -> list[Check]:
    clause = row.licence == UNKNOWN or row.terms.permissive or bool(row.derivatives)
    licence = bool(row.licence) and (row.licence != UNKNOWN or None)
    return [
        Check("licence", "stated", row.licence or "nothing", licence),
        Check("derivatives", "a clause where the licence restricts", row.derivatives or "none", clause),
        Check("citation", "the paper", row.citation or "none given", bool(row.citation) or None),
    ]


def _refusals(row: Backbone) -> tuple[str, bool]:
    """Whether `require_tiles` lets the row's own tiles pass, and no others."""
    size_px, mpp = row.default_size_px, row.default_mpp
    good = [(size_px, one) for one in (mpp, *row.other_mpp)]
    bad = [(row.least_px - 1, mpp)]
    if row.size_px is not None:
        bad.append((size_px + 32, mpp))
    if row.mpp is not None:
        bad += [(size_px, 1.1 * max(mpp, *row.other_mpp, mpp)), (size_px, 0.9 * min(mpp, *row.other_mpp, mpp))]
    wrong = [f"refuses {size} px @ {one:g} mpp" for size, one in good if not _passes(row, size, one)]
    wrong += [f"takes {size} px @ {one:g} mpp" for size, one in bad if _passes(row, size, one)]
    return "; ".join(wrong) or "it does", not wrong


def _passes(row: Backbone, size_px: int, mpp: float) -> bool:
    try:
        require_tiles(row, size_px, mpp)
    except TileSpecMismatchError:
        return False
    return True


def _against_pillow(row: Backbone) -> tuple[str, bool]:
    """How far `to_input` is off the reference, in grey levels of 255."""
    tile = known_tile(row.default_size_px)
    ours = to_input(tile, row)[0].permute(1, 2, 0).double().numpy()
    wanted = pillow_image(tile[0].numpy(), row)
    if ours.shape != wanted.shape:
        return f"shape {ours.shape}, not {wanted.shape}", False
    off = np.abs(ours - wanted) * 255 * np.array((row.mean_std or _NOTHING)[1])
    # without a resize nothing is rounded
    most, mean = (_MOST_GREY, _MEAN_GREY) if row.resize_px not in (None, tile.shape[1]) else (1e-2, 1e-3)
    found = f"off by {off.max():.2g} grey levels of 255 at most, {off.mean():.2g} on average"
    return found, bool(off.max() <= most and off.mean() <= mean)


def _field(row: Backbone) -> str:
    first, last, scale = _columns(row)
    coarser = f", at {scale * row.mpp:.3g} mpp" if row.mpp is not None else ""
    return f"columns and rows {first:.1f} to {last:.1f} of {row.default_size_px} px{coarser}"


def _columns(row: Backbone) -> tuple[float, float, float]:
    """First and last column of the tile that the network sees, as centres of pixels, and its pixels in those of the tile."""
    size_px, width_px = row.default_size_px, row.resize_px or row.default_size_px
    scale, out = size_px / width_px, (width_px - input_px(row)) // 2
    return scale * (out + 0.5) - 0.5, scale * (width_px - out - 0.5) - 0.5, scale


def _seen(row: Backbone) -> tuple[str, bool]:
    """Where the ends of the input come from, in a tile whose red says the column of a pixel and whose green its row."""
    size_px = row.default_size_px
    ramp = 255 * torch.arange(size_px) / (size_px - 1)
    tile = torch.zeros(1, size_px, size_px, 3)
    tile[..., 0], tile[..., 1] = ramp[None, :], ramp[:, None]
    image = to_input(tile.round().to(torch.uint8), row)[0].double()
    mean, deviation = row.mean_std or _NOTHING
    across, down = ((image[c] * deviation[c] + mean[c]) * (size_px - 1) for c in (0, 1))
    middle = image.shape[1] // 2
    ends = [float(across[middle, 0]), float(across[middle, -1]), float(down[0, middle]), float(down[-1, middle])]
    first, last, _ = _columns(row)
    off = max(abs(end - place) for end, place in zip(ends, [first, last, first, last], strict=True))
    return "columns {:.1f} to {:.1f}, rows {:.1f} to {:.1f}".format(
        *(round(end, 1) + 0.0 for end in ends)
    ), off <= _MARKER_PX
