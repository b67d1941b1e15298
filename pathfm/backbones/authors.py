"""Backbones that come with their authors' own package, or whose small addition to a timm network is written out here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pathfm.backbones.weights import weights_file

if TYPE_CHECKING:
    from pathfm.backbones.row import Backbone


class Adapted(nn.Module):
    """A network whose embedding is had by a call of its own.

    Args:
        network: with its weights.
        method: its method that takes the images as `image`; "" calls the network itself.
        options: further arguments.
    """

    def __init__(self, network: nn.Module, method: str = "", **options: Any) -> None:
        super().__init__()
        self.network, self.method, self.options = network, method, options

    def forward(self, images: Tensor) -> Tensor:
        """Float (b, dim) of float32 images (b, 3, h, w); of several results the first, which is the image's."""
        call = getattr(self.network, self.method) if self.method else self.network
        given = call(image=images, **self.options)
        return given if isinstance(given, Tensor) else given[0]


class Keep(nn.Module):
    """The image half of KEEP (arXiv:2412.13126): a ViT-L/16, then a projection with one hidden layer, at unit length.

    Args:
        dim: length of an embedding.
        arguments: of the ViT, beside those that it has anyway.
    """

    def __init__(self, dim: int, **arguments: Any) -> None:
        super().__init__()
        usual = {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
        visual: Any = timm.create_model("vit_large_patch16_224", **(usual | arguments))
        self.visual = visual
        self.visual_head = nn.Sequential(nn.Linear(visual.num_features, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Float (b, dim), each of length 1, of float32 images (b, 3, h, w)."""
        return functional.normalize(self.visual_head(self.visual(images)), dim=-1)


def conch(row: Backbone) -> nn.Module:
    """CONCH's image encoder before the projection by which it was contrasted, as its authors advise for slides.

    Raises:
        ImportError: its package is not installed.
        WeightsMissingError: gated, offline or absent weights.
    """
    from conch.open_clip_custom import create_model_from_pretrained

    network, _ = create_model_from_pretrained("conch_ViT-B-16", str(weights_file(row)))
    return Adapted(network, "encode_image", proj_contrast=False, normalize=False)


def musk(row: Backbone) -> nn.Module:
    """MUSK's image encoder on a tile at several scales, side by side, as its authors advise for slides.

    Raises:
        ImportError: its package is not installed.
        WeightsMissingError: gated, offline or absent weights.
    """
    return _musk(row, several_scales=True)


def musk_single_scale(row: Backbone) -> nn.Module:
    """MUSK's image encoder on the tile as it is.

    Raises:
        ImportError: its package is not installed.
        WeightsMissingError: gated, offline or absent weights.
    """
    return _musk(row, several_scales=False)


def keep(row: Backbone) -> nn.Module:
    """KEEP's image half, as `Keep` has it; of its repository only the weights are used.

    Raises:
        WeightsMissingError: offline or absent weights.
        RuntimeError: the weights do not fit.
    """
    network = Keep(int(row.dim or 768), **row.arch_kwargs)
    # transformers, which saved them, renames what is called gamma
    state = {
        name.replace(".ls1.weight", ".ls1.gamma").replace(".ls2.weight", ".ls2.gamma"): tensor
        for name, tensor in load_file(weights_file(row)).items()
        if name.startswith("visual")
    }
    network.load_state_dict(state)
    return network


def _musk(row: Backbone, *, several_scales: bool) -> nn.Module:
    from musk import modeling  # noqa: F401 - adds its network to those of timm

    network = timm.create_model(row.arch)
    network.load_state_dict(load_file(weights_file(row)))
    return Adapted(network, with_head=False, out_norm=False, ms_aug=several_scales, return_global=True)
