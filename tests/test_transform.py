from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathfm.backbones import BACKBONES, Backbone, find_backbone, require_tiles
from pathfm.backbones.transform import to_input
from pathfm.errors import TileSpecMismatchError

# Of a model whose tile has this grey, the first channel of its input, by the table of an independent benchmark.
INCEPTION = ("kaiko-vits16", "kaiko-vits8", "kaiko-vitb16", "kaiko-vitb8", "kaiko-vitl14", "midnight-12k", "musk")
IMAGENET = ("virchow", "virchow2", "uni", "uni2-h", "gigapath", "phikon", "phikon-v2", "gpfm", "mstar", "openmidnight")
OWN = {
    "h-optimus-0": (0.707223, 0.211883),
    "h-optimus-1": (0.707223, 0.211883),
    "h0-mini": (0.707223, 0.211883),
    "hibou-b": (0.7068, 0.195),
    "hibou-l": (0.7068, 0.195),
    "lunit-vits16": (0.70322989, 0.21716536),
    "lunit-vits8": (0.70322989, 0.21716536),
    "genbio-pathfm": (0.697, 0.188),
    "rudolfv2": (0.7072, 0.2119),
    "plip": (0.48145466, 0.26862954),
    "conch": (0.48145466, 0.26862954),
}


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        *((name, 0.5, 0.5) for name in INCEPTION),
        *((name, 0.485, 0.229) for name in IMAGENET),
        *((name, *values) for name, values in OWN.items()),
    ],
)
def test_a_tile_is_normalised_as_its_makers_did(name: str, mean: float, deviation: float) -> None:
    row = BACKBONES[name]
    images = to_input(torch.full((1, 256, 256, 3), 128, dtype=torch.uint8), row)
    assert images[0, 0, 3, 3].item() == pytest.approx((128 / 255 - mean) / deviation, abs=1e-5)
    assert images.shape[-1] == (row.crop_px or row.resize_px)


@pytest.mark.parametrize("name", ["ctranspath", "chief-ctranspath"])
def test_what_was_trained_at_ten_times_is_refused_at_twenty(name: str) -> None:
    require_tiles(BACKBONES[name], 256, 1.0)
    with pytest.raises(TileSpecMismatchError, match="256 px @ 1 mpp"):
        require_tiles(BACKBONES[name], 256, 0.5)


def test_a_variant_sees_the_same_tile() -> None:
    tiles = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    assert torch.equal(to_input(tiles, find_backbone("virchow2:cls")), to_input(tiles, BACKBONES["virchow2"]))


def test_gigapath_sees_the_centre_of_its_tile_at_the_same_scale() -> None:
    tiles = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    images = to_input(tiles, BACKBONES["gigapath"])
    frame = torch.full_like(tiles, 255)
    frame[:, 16:240, 16:240] = tiles[:, 16:240, 16:240]
    mean, deviation = (torch.tensor(values) for values in BACKBONES["gigapath"].mean_std or ())
    expected = (tiles[:, 16:240, 16:240].float() / 255 - mean) / deviation
    assert torch.equal(images, to_input(frame, BACKBONES["gigapath"]))
    assert torch.allclose(images, expected.permute(0, 3, 1, 2), atol=1e-6)


def test_uni_sees_its_whole_tile() -> None:
    tiles = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    marked = tiles.clone()
    marked[:, 0, 0] = 255
    assert to_input(tiles, BACKBONES["uni"]).shape == (1, 3, 224, 224)
    assert not torch.equal(to_input(tiles, BACKBONES["uni"]), to_input(marked, BACKBONES["uni"]))


@pytest.mark.parametrize(("interpolation", "ties"), [("bicubic", 0.002), ("bilinear", 0.1)])
@pytest.mark.parametrize("size_px", [160, 256, 512])
def test_resizing_is_that_of_pillow(interpolation: Any, ties: float, size_px: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    row = Backbone(name="r", source="", resize_px=224, interpolation=interpolation)
    kernel = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), kernel), dtype=float)
    ours = to_input(torch.from_numpy(pixels)[None], row)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - expected).max() < 2.5  # a tie may tip the other way in both passes
    assert np.mean(np.abs(ours - expected) > 0.5) < ties


@pytest.mark.parametrize(("size_px", "mpp"), [(224, 0.5), (256, 0.25), (256, 0.506)])
def test_tiles_that_a_backbone_was_not_made_for_are_refused_with_both_named(size_px: int, mpp: float) -> None:
    with pytest.raises(TileSpecMismatchError) as caught:
        require_tiles(BACKBONES["uni"], size_px, mpp)
    for words in ("256 px @ 0.5 mpp", f"{size_px} px @ {mpp:g} mpp", "--tiles.allow_mismatch true"):
        assert words in str(caught.value)
    require_tiles(BACKBONES["uni"], size_px, mpp, allow_mismatch=True)


def test_tiles_that_fit_pass() -> None:
    require_tiles(BACKBONES["uni"], 256, 0.504)
    require_tiles(BACKBONES["virchow2"], 224, 2.0)
    require_tiles(BACKBONES["colour"], 77, 3.3)
    require_tiles(BACKBONES["resnet50"], 256, 1.7)


def test_a_tile_smaller_than_a_backbone_can_take_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(TileSpecMismatchError, match="32 px or more"):
        require_tiles(BACKBONES["colour"], 16, 0.5, allow_mismatch=True)
