"""`colour`: the same numbers in any company, finite anywhere, and texture that does not move with the stain."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from pathfm.backbones.colour import FEATURES, ColourTexture

TEXTURE = [k for k, name in enumerate(FEATURES) if name.startswith("texture_")]
COLOUR = [k for k, name in enumerate(FEATURES) if name.startswith("colour_")]


def tissue_tile(seed: int, nucleus_px: float, side_px: int = 128, stain: float = 1.0, tint: float = 0.0) -> Tensor:
    """Eosin with round nuclei that cover an eighth of the tile whatever their size: float32 (3, side, side) in [0, 1]."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((side_px, side_px), np.float32)
    for _ in range(round(0.125 * side_px**2 / (np.pi * nucleus_px**2))):
        x, y = rng.integers(0, side_px, 2)
        cv2.circle(plane, (int(x), int(y)), round(nucleus_px), 0.8, cv2.FILLED, cv2.LINE_AA)
    haematoxylin = cv2.GaussianBlur(plane, (0, 0), 0.7) * stain
    eosin = (0.25 + 0.02 * rng.standard_normal(plane.shape)) * stain
    vectors = np.array([[0.60 + tint, 0.70, 0.35], [0.17, 0.83 - tint, 0.48 + tint]])
    od = haematoxylin[None] * vectors[0][:, None, None] + eosin[None] * vectors[1][:, None, None]
    return torch.from_numpy((10**-od).astype(np.float32))


def embed(*tiles: Tensor) -> Tensor:
    with torch.no_grad():
        return ColourTexture().forward(torch.stack(tiles))


def test_every_feature_has_a_name_of_its_own_and_a_place() -> None:
    found = embed(tissue_tile(0, 3))
    assert found.shape == (1, ColourTexture.dim)
    assert found.dtype == torch.float32
    assert len(set(FEATURES)) == ColourTexture.dim == len(TEXTURE) + len(COLOUR)


def test_a_tile_gets_the_same_numbers_alone_as_in_company() -> None:
    tiles = [tissue_tile(seed, 2 + seed) for seed in range(8)]
    together = embed(*tiles)
    alone = torch.cat([embed(tile) for tile in tiles])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_the_numbers_are_the_same_every_time() -> None:
    assert torch.equal(embed(tissue_tile(1, 3)), embed(tissue_tile(1, 3)))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_tile_of_one_colour_is_finite_and_has_no_texture(level: float) -> None:
    found = embed(torch.full((3, 64, 64), level))
    assert bool(found.isfinite().all())
    assert float(found[:, TEXTURE].abs().max()) < 1e-3


@pytest.mark.parametrize("side_px", [32, 33, 47, 224])
def test_any_size_from_32_px_gives_finite_numbers_of_order_one(side_px: int) -> None:
    found = embed(torch.rand(3, side_px, side_px, generator=torch.Generator().manual_seed(0)))
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) < 10


def test_turning_a_tile_leaves_its_numbers() -> None:
    tile = tissue_tile(2, 4)
    torch.testing.assert_close(embed(tile), embed(torch.rot90(tile, 1, (1, 2))), rtol=0, atol=1e-4)


def test_stain_and_tint_move_the_texture_far_less_than_another_texture_does() -> None:
    small = embed(*[tissue_tile(seed, 2.5) for seed in range(12)])[:, TEXTURE]
    large = embed(*[tissue_tile(seed, 6) for seed in range(12)])[:, TEXTURE]
    tinted = embed(*[tissue_tile(seed, 2.5, stain=1.3, tint=0.06) for seed in range(12)])[:, TEXTURE]
    by_size = (large.mean(0) - small.mean(0)).norm()
    by_tint = (tinted.mean(0) - small.mean(0)).norm()
    assert float(by_tint) < 0.25 * float(by_size)


def test_stain_moves_the_colour() -> None:
    pale, dark = embed(tissue_tile(0, 3, stain=0.8), tissue_tile(0, 3, stain=1.2))
    mean_od = [FEATURES.index(f"colour_od_mean_{c}") for c in "rgb"]
    assert bool((dark[mean_od] > pale[mean_od] * 1.3).all())


def test_sizes_of_nuclei_are_told_apart_at_equal_colour() -> None:
    small = embed(*[tissue_tile(seed, 2.5) for seed in range(12)])
    large = embed(*[tissue_tile(seed, 6) for seed in range(12)])
    coarse = FEATURES.index("texture_dark_2")
    assert float(large[:, coarse].min()) > float(small[:, coarse].max())


def test_straight_fibres_are_coherent_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    lines = np.tile(rng.uniform(0.4, 0.9, (1, 128)), (128, 1)).astype(np.float32)
    noise = rng.uniform(0.4, 0.9, (128, 128)).astype(np.float32)
    tiles = [torch.from_numpy(np.stack([image] * 3)) for image in (lines, noise)]
    coherence = embed(*tiles)[:, FEATURES.index("texture_coherence_all")]
    assert float(coherence[0]) > 0.9
    assert float(coherence[1]) < 0.2


def test_haematoxylin_and_eosin_are_told_apart() -> None:
    haematoxylin, eosin = (
        torch.tensor(10 ** -(0.5 * np.array(vector)), dtype=torch.float32)[:, None, None].expand(3, 32, 32)
        for vector in ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
    )
    found = embed(haematoxylin, eosin)
    h, e = FEATURES.index("colour_h_mean"), FEATURES.index("colour_e_mean")
    torch.testing.assert_close(found[:, [h, e]], torch.tensor([[0.5, 0.0], [0.0, 0.5]]), rtol=0, atol=0.01)
