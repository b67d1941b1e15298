"""Small networks with random weights, as folders and as classes, and tiles for them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.backbones import Backbone


class Weighted(nn.Module):
    """A backbone of the user's own."""

    VERSION = 3
    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 5) * self.scale


def from_folder(row: Backbone, folder: Path, **changes: Any) -> Backbone:
    """A row whose weights lie in a folder, and are not those that it is pinned to."""
    return dataclasses.replace(
        row, source=f"local-dir:{folder}", revision="main", weights_sha256="", n_params=None, **changes
    )


def tiny_model() -> nn.Module:
    """A ViT for 160 px with 64 dimensions, one prefix token and a head of 7 classes, always the same."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=7).eval()
    return model


def save_tiny(folder: Path, model: nn.Module) -> Path:
    """As timm saves a model for the hub: config.json and model.safetensors."""
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def random_tiles(count: int, size_px: int) -> NDArray[np.uint8]:
    """Uint8 (count, size_px, size_px, 3), always the same."""
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
