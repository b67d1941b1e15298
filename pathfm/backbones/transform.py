"""From the pixels of tiles to what a backbone takes: resize, crop, normalise, on the device that runs the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pathfm.errors import TileSpecMismatchError

if TYPE_CHECKING:
    from torch import Tensor

    from pathfm.backbones.row import Backbone

_MPP_TOLERANCE = 0.01


def to_input(tiles: Tensor, row: Backbone) -> Tensor:
    """The input of a backbone, made on the device of the tiles.

    Args:
        tiles: uint8 (b, size_px, size_px, 3), RGB.
        row: says how wide, which part of it, and which mean and deviation.

    Returns:
        float32 (b, 3, h, w), RGB; h = w = crop_px, or resize_px, or the width of the tiles. The resize gives what
        Pillow gives, for with Pillow the models were trained.
    """
    images = tiles.permute(0, 3, 1, 2).float()
    if row.resize_px is not None and row.resize_px != images.shape[-1]:
        images = _resized(images, row.resize_px, row.interpolation)
    if row.crop_px is not None:
        images = _centre(images, row.crop_px)
    if row.mean_std is None:
        return images / 255
    # (x / 255 - mean) / deviation in one pass over memory
    mean, deviation = (images.new_tensor(values).view(1, 3, 1, 1) for values in row.mean_std)
    return torch.addcmul(-mean / deviation, images, 1 / (255 * deviation))


def transform_facts(row: Backbone) -> dict[str, Any]:
    """The transform as a recipe says it; JSON types."""
    mean, deviation = row.mean_std or ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return {
        "resize_px": row.resize_px,
        "crop_px": row.crop_px,
        "interpolation": row.interpolation,
        "mean": list(mean),
        "std": list(deviation),
    }


def require_tiles(row: Backbone, size_px: int, mpp: float, *, allow_mismatch: bool = False) -> None:
    """Refuses tiles that a backbone was not made for; mpp may be off by 1 %.

    Raises:
        TileSpecMismatchError: names both, and the flag that lets it pass; below `least_px`, or what is cut out of it, nothing does.
    """
    if size_px < row.least_px:
        message = f"backbone {row.name} needs tiles of {row.least_px} px or more, not {size_px}; raise --tiles.size_px"
        raise TileSpecMismatchError(message)
    if row.crop_px is not None and (row.resize_px or size_px) < row.crop_px:
        message = f"backbone {row.name} looks at the {row.crop_px} px in the middle of a tile, more than {size_px}; raise --tiles.size_px"
        raise TileSpecMismatchError(message)
    wrong_size = row.size_px is not None and size_px != row.size_px
    fitting = (row.mpp, *row.other_mpp) if row.mpp is not None else (mpp,)
    wrong_mpp = all(abs(mpp / one - 1) > _MPP_TOLERANCE for one in fitting if one is not None)
    if (wrong_size or wrong_mpp) and not allow_mismatch:
        flags = f"--tiles.size_px {row.default_size_px} --tiles.mpp {row.mpp or mpp:g}"
        message = (
            f"backbone {row.name} was made for tiles of {row.tile}, asked for are {size_px} px @ {mpp:g} mpp;"
            f" pass {flags}, or --tiles.allow_mismatch true to use it outside of what it was made for"
        )
        raise TileSpecMismatchError(message)


def _resized(images: Tensor, width_px: int, interpolation: str) -> Tensor:
    """Across, then down, antialiased, each rounded to a grey level and cut off at 0 and 255, as Pillow does it."""
    for size in ((images.shape[-2], width_px), (width_px, width_px)):
        images = functional.interpolate(images, size, mode=interpolation, align_corners=False, antialias=True)
        images = images.add_(0.5).floor_().clamp_(0, 255)
    return images


def _centre(images: Tensor, width_px: int) -> Tensor:
    top, left = ((length - width_px) // 2 for length in images.shape[-2:])
    return images[..., top : top + width_px, left : left + width_px]
