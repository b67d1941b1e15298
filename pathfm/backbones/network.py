"""The networks behind the rows: built by timm, by transformers or by a class, and what of their output is the embedding."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pathfm.backbones.weights import CONFIG, weights_folder
from pathfm.errors import BackboneError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pathfm.backbones.row import Backbone, Library, Output

# What timm, transformers and the readers of weights raise for files that are damaged or do not fit each other.
_MISFIT_ERRORS = (
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    UnpicklingError,
    SafetensorError,
)


def build_network(row: Backbone) -> nn.Module:
    """The network of a row with its weights, in eval mode on the CPU.

    Raises:
        WeightsMissingError: gated, offline or absent weights.
        MissingExtraError: it is a transformers model and transformers is not installed.
        BackboneError: the weights do not fit the architecture, or what it gives is not what its row says.
    """
    try:
        return _BUILDERS[row.library](row).eval().requires_grad_(requires_grad=False)
    except _MISFIT_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        message = (
            f"{row.source} does not load as a {row.library} model ({said}); check that name and weights belong together"
        )
        raise BackboneError(message) from error


def build_architecture(row: Backbone, *, pretrained: bool = False) -> nn.Module:
    """The network of a timm row; with random weights it needs no network and no files.

    Under `with torch.device("meta")` it costs no memory either.
    """
    import timm  # takes seconds, and not every backbone is one of timm's

    kwargs = dict(row.arch_kwargs)
    if row.swiglu:
        layers: Any = timm.layers
        kwargs |= {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU}
    if pretrained:
        folder = weights_folder(row)
        overlay = {} if row.arch_kwargs else _size_overlay(folder)
        # The class count stays as the weights have it, for timm then loads them strictly; no head is ever used.
        model: nn.Module = timm.create_model(
            f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
        )
    else:
        model = timm.create_model(row.arch, pretrained=False, num_classes=0, **kwargs)
    if row.output == "layer3":
        model.layer4, model.fc = nn.Identity(), nn.Identity()
    return model


def forward(model: nn.Module, images: Tensor, row: Backbone) -> Tensor:
    """What of the network's output is the embedding: float (b, dim)."""
    if row.library == "python":
        return cast("Tensor", model(images))
    if row.library == "transformers":
        return pool_tokens(model(pixel_values=images).last_hidden_state, row.output, row.prefix_tokens)
    network: Any = model
    features: Tensor = network.forward_features(images)
    if row.output == "pooled":
        return cast("Tensor", network.forward_head(features, pre_logits=True))
    if row.output == "layer3":
        return features.mean(dim=(2, 3))
    return pool_tokens(features, row.output, row.prefix_tokens)


def pool_tokens(tokens: Tensor, output: Output, prefix_tokens: int) -> Tensor:
    """The embedding in a sequence of tokens.

    Args:
        tokens: float (b, t, d): the class token, the registers, then the patches.
        output: "cls", "mean" of the patches, or "cls+mean", one beside the other.
        prefix_tokens: class token and registers; no mean has them.

    Returns:
        float (b, d), or (b, 2 d) for "cls+mean".
    """
    if output == "cls":
        return tokens[:, 0]
    patches = tokens[:, prefix_tokens:].mean(dim=1)
    return patches if output == "mean" else torch.cat([tokens[:, 0], patches], dim=1)


def with_model_facts(row: Backbone, model: nn.Module) -> Backbone:
    """Fills `dim`, and holds what the row says against what the model has."""
    network: Any = model
    if row.library == "python":
        return replace(row, dim=int(network.dim))
    if row.library == "transformers" or row.output == "layer3":
        return row
    if row.output == "pooled":
        return replace(row, dim=int(getattr(network, "head_hidden_size", network.num_features)))
    dim = int(network.num_features) * (2 if row.output == "cls+mean" else 1)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    if (row.dim, row.prefix_tokens) != (dim, prefix):
        message = (
            f"backbone {row.name}: the loaded model has {dim} dimensions and {prefix} tokens before the patches,"
            f" its row says {row.dim} and {row.prefix_tokens}; correct the row"
        )
        raise BackboneError(message)
    return row


def python_class(row: Backbone) -> Any:
    """The class that "python:package.module:Class" names."""
    module, _, name = row.source.removeprefix("python:").partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        message = f"backbone {row.name} is {row.source}, which cannot be imported ({error}); correct the row's source"
        raise BackboneError(message) from error


def _build_timm(row: Backbone) -> nn.Module:
    return build_architecture(row, pretrained=True)


def _build_python(row: Backbone) -> nn.Module:
    return cast("nn.Module", python_class(row)())


def _build_transformers(row: Backbone) -> nn.Module:
    """Never runs code of the repository."""
    try:
        from transformers import AutoModel
    except ImportError as error:
        what, extra = f"backbone {row.name}", "hf"
        raise MissingExtraError(what, extra) from error
    model, report = AutoModel.from_pretrained(
        weights_folder(row), trust_remote_code=False, output_loading_info=True, **row.arch_kwargs
    )
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        message = f"the weights lack or misfit {', '.join(wrong[:5])}"
        raise ValueError(message)
    return cast("nn.Module", model.float())  # recent versions keep the type of the file


_BUILDERS: dict[Library, Callable[[Backbone], nn.Module]] = {
    "timm": _build_timm,
    "python": _build_python,
    "transformers": _build_transformers,
}


def _size_overlay(folder: Path) -> dict[str, Any]:
    """Makes timm build a model at the input size of its configuration.

    Without it timm resamples the position embeddings of the weights to the architecture's usual size as soon as the
    configuration does not say that its size is fixed.
    """
    import timm

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    usual = timm.get_pretrained_cfg(str(config.get("architecture")).partition(".")[0], allow_unregistered=True)
    return {"fixed_input_size": True} if usual is not None and usual.fixed_input_size else {}
