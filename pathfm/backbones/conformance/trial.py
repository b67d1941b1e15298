"""A network to try a row of the table on: its own where the weights are here, else one with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from pathfm.backbones.engines import Embedder, check_tiles
from pathfm.backbones.network import build_architecture, build_network, with_model_facts
from pathfm.backbones.transform import to_input
from pathfm.backbones.weights import weights_available

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathfm.backbones.row import Backbone, Precision

# Above these a network with random weights is built with two of its layers; the others take little more than 2 GiB, and a
# minute or two of one core. The work is parameters times pixels of the input: of a ViT-L at 224 px it is 1.5e13.
_MOST_PARAMETERS = 400_000_000
_MOST_WORK = 2e13
_FEW_LAYERS = 2
_SCALE_OF_BRANCHES = 0.5
_CONVOLVED_PX = 32  # a place of the last map of most convolutional networks


@dataclass(frozen=True)
class Size:
    """How much of a network is built where its weights are random.

    Attributes:
        layers: of it; None for all, or two where it has more than 400 million parameters or a very wide input.
        grid: tokens along a side of its input; None for as many as the row's tile gives.
    """

    layers: int | None = None
    grid: int | None = None


WHOLE = Size()


@dataclass(frozen=True)
class Trial:
    """A network, in eval mode on a device, and what is run through it.

    Attributes:
        row: what it is tried for; its transform makes images of the width that the network takes.
        model: the network.
        device: where it is.
        scale: what of the real network it is, in words.
    """

    row: Backbone
    model: nn.Module
    device: torch.device
    scale: str

    def images(self) -> Tensor:
        """Float32 (8, 3, h, w) on the device: texture, noise, flat tiles and `known_tile`, through the row's transform."""
        size_px = self.row.default_size_px
        return to_input(torch.cat([check_tiles(size_px), known_tile(size_px)]), self.row).to(self.device)

    @torch.inference_mode()
    def embed(self, images: Tensor, precision: Precision = "float32") -> Tensor:
        """Float32 (b, dim) on the CPU, as an extraction computes it in that precision."""
        embeddings: Tensor = Embedder(self.model, self.row, self.device, precision)(images)
        return embeddings.float().cpu()


def on_trial(row: Backbone, blueprint: nn.Module, size: Size, device: torch.device) -> Trial:
    """The network of a row, with its own weights where they are on this machine.

    Args:
        row: of a library that pathfm builds.
        blueprint: its network, which may be on the meta device.
        size: of a network with random weights.
        device: where to.

    Raises:
        BackboneError: it cannot be built, or its weights do not fit it.
        MissingExtraError: what it needs is not installed.
    """
    if weights_available(row):
        model = build_network(row)
        words = "its own weights" if any(True for _ in model.parameters()) else "no weights"
        return Trial(with_model_facts(row, model), model.to(device), device, words)
    smaller, words = reduced(row, blueprint, size)
    return Trial(smaller, random_network(smaller).to(device), device, words)


def random_network(row: Backbone) -> nn.Module:
    """The architecture of a row with random weights, always the same ones, in eval mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_architecture(row).eval().requires_grad_(requires_grad=False)
    # Branches that start at 1e-5 of the trunk would leave a network that gives one embedding for every image.
    for parameter in model.parameters():
        is_scale = parameter.ndim == 1 and 0 < float(parameter[0]) < _SCALE_OF_BRANCHES
        if is_scale and bool((parameter == parameter[0]).all()):
            parameter.fill_(_SCALE_OF_BRANCHES)
    return model


def reduced(row: Backbone, blueprint: nn.Module, size: Size) -> tuple[Backbone, str]:
    """A row for fewer layers or a smaller input of the same architecture, and in words what was reduced.

    Width, kind of layer and tokens before the patches stay; a network that has no layers to leave out stays whole.
    """
    layers, full = size.layers, _layers(blueprint)
    parameters = sum(parameter.numel() for parameter in blueprint.parameters())
    if layers is None and (parameters > _MOST_PARAMETERS or parameters * input_px(row) ** 2 > _MOST_WORK):
        layers = _FEW_LAYERS
    is_timm, words, kwargs = row.library == "timm", ["random weights"], dict(row.arch_kwargs)
    if layers is not None and full is not None and layers < full:
        kwargs["depth" if is_timm else "num_hidden_layers"] = layers
        words.append(f"{layers} of {full} layers")
    side_px = token_px(blueprint)
    if size.grid is not None and side_px is not None:
        width_px = size.grid * side_px
        if is_timm or hasattr(cast("Any", blueprint).config, "image_size"):
            kwargs["img_size" if is_timm else "image_size"] = width_px
        row = replace(row, resize_px=width_px, crop_px=None)
        words.append(f"{width_px} px")
    elif size.grid is not None and is_timm and not hasattr(blueprint, "patch_embed"):
        width_px = size.grid * _CONVOLVED_PX
        row = replace(row, resize_px=width_px, crop_px=None)
        words.append(f"{width_px} px")
    return replace(row, arch_kwargs=kwargs), ", ".join(words)


def input_px(row: Backbone) -> int:
    """The width of the image that the network of a row is given."""
    return row.crop_px or row.resize_px or row.default_size_px


def known_tile(size_px: int) -> Tensor:
    """A tile without any symmetry: gradients across and down, a pattern, noise, and a dark corner with sharp edges.

    Returns:
        uint8 (1, size_px, size_px, 3), RGB.
    """
    ramp = torch.linspace(0, 255, size_px)
    across, down = ramp[None, :].expand(size_px, -1), ramp[:, None].expand(-1, size_px)
    noise = 255 * torch.rand(size_px, size_px, generator=torch.Generator().manual_seed(1))
    pattern = torch.where((across / 17).floor() % 2 == (down / 29).floor() % 2, 220.0, 0.3 * noise)
    tile = torch.stack([across, 0.8 * down + 0.2 * noise, pattern], dim=-1)
    tile[: size_px // 5, : size_px // 3] = torch.tensor([90.0, 20.0, 130.0])
    return tile.round().to(torch.uint8)[None]


def _layers(model: nn.Module) -> int | None:
    """How many layers a transformer stacks, where fewer can be asked for."""
    network: Any = model
    if hasattr(network, "config"):
        return cast("int | None", getattr(network.config, "num_hidden_layers", None))
    blocks = getattr(network, "blocks", None) if hasattr(network, "patch_embed") else None
    return len(blocks) if isinstance(blocks, torch.nn.Sequential | torch.nn.ModuleList) else None


def token_px(model: nn.Module) -> int | None:
    """Pixels along a side of one token, where an input of another width can be asked for."""
    network: Any = model
    if _layers(network) is None:
        return None
    if hasattr(network, "config"):
        patch_px = getattr(network.config, "patch_size", None)
        return patch_px and int(patch_px) * int(getattr(network.config, "pooling_kernel_size", 1))
    return int(network.patch_embed.patch_size[0])
