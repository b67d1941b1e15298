"""The networks behind the rows: built by timm, transformers, a class or their authors' package, and what they give."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import replace
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from pathfm.backbones.huggingface import (
    build_transformers,
    load_transformers,
    transformers_embedding,
    transformers_facts,
)
from pathfm.backbones.tokens import pool_tokens
from pathfm.backbones.weights import CONFIG, read_tensors, weights_file, weights_folder
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pathfm.backbones.row import Backbone, Library

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
        BackboneError: the weights do not fit the architecture, its authors' package is not installed, or they publish
            it as code to be run alone.
    """
    try:
        return _BUILDERS[row.library](row).eval().requires_grad_(requires_grad=False)
    except _MISFIT_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        message = (
            f"{row.source} does not load as a {row.library} model ({said}); check that name and weights belong together"
        )
        raise BackboneError(message) from error


def build_architecture(row: Backbone) -> nn.Module:
    """The network of a row with random weights; it needs no network and no files.

    Under `with torch.device("meta")` it costs no memory either.

    Raises:
        MissingExtraError: it is a transformers model and transformers is not installed.
        BackboneError: no architecture is known that could be built here: that of a package, or of code in a repository.
    """
    if row.library == "python":
        return _build_python(row)
    if row.library == "transformers" and row.arch:
        return build_transformers(row)
    if row.library == "timm" and row.arch:
        import timm  # takes seconds, and not every backbone is one of timm's

        return _without_the_rest(timm.create_model(row.arch, num_classes=0, **_timm_arguments(row)), row)
    message = f"backbone {row.name}: its row names no architecture that could be built without its weights"
    raise BackboneError(message)


def state_shapes_sha256(model: nn.Module) -> str:
    """Hex digest of the names and shapes of a state dict, in the order of the names; the same on the meta device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
    return digest.hexdigest()


def forward(model: nn.Module, images: Tensor, row: Backbone) -> Tensor:
    """What of the network's output is the embedding: float (b, dim)."""
    if row.library in ("python", "package"):
        return cast("Tensor", model(images))
    if row.library == "transformers":
        return transformers_embedding(model, images, row)
    network: Any = model
    features: Tensor = network.forward_features(images)
    if row.output == "pooled":
        return cast("Tensor", network.forward_head(features, pre_logits=True))
    if row.output == "layer3":
        return features.mean(dim=(2, 3))
    return pool_tokens(features, row.output, row.prefix_tokens)


def with_model_facts(row: Backbone, model: nn.Module) -> Backbone:
    """Fills `dim`, and holds what the row says against what the model has.

    Raises:
        BackboneError: another dimension or another number of tokens before the patches.
    """
    network: Any = model
    if row.library == "python":
        return replace(row, dim=int(network.dim))
    if row.library == "package" or row.output == "layer3":
        return row
    if row.library == "transformers":
        dim, prefix = transformers_facts(model, row)
    elif row.output == "pooled":
        dim, prefix = int(getattr(network, "head_hidden_size", network.num_features)), row.prefix_tokens
    else:
        dim = int(network.num_features) * (2 if row.output == "cls+mean" else 1)
        prefix = int(getattr(network, "num_prefix_tokens", 0))
    if (row.dim or dim, row.prefix_tokens) != (dim, prefix):
        message = (
            f"backbone {row.name}: the loaded model has {dim} dimensions and {prefix} tokens before the patches,"
            f" its row says {row.dim} and {row.prefix_tokens}; correct the row"
        )
        raise BackboneError(message)
    return replace(row, dim=dim)


def python_class(row: Backbone) -> Any:
    """The class that "python:package.module:Class" names."""
    return _imported(row, row.source.removeprefix("python:"))


def _imported(row: Backbone, place: str) -> Any:
    """What "package.module:name" names."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"backbone {row.name} is {place}, which cannot be imported ({error}); correct its row"
        raise BackboneError(message) from error


def _build_timm(row: Backbone) -> nn.Module:
    import timm

    folder = weights_folder(row)
    if row.weights_file:
        return _without_the_rest(_built_by_row(row), row)
    overlay = {} if "img_size" in row.arch_kwargs else _size_overlay(folder)
    # The class count stays as the weights have it, for timm then loads them strictly; no head is ever used.
    model: nn.Module = timm.create_model(
        f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay, **_timm_arguments(row)
    )
    return _without_the_rest(model, row)


def _built_by_row(row: Backbone) -> nn.Module:
    """The network of a bare file of weights: the row says what it is, and timm knows its makers' names for the parts."""
    import timm

    file = weights_file(row)
    state: Any = read_tensors(file)
    for key in ("model", "state_dict", "teacher"):  # as trainings save it
        state = state.get(key, state)
    state = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}
    # timm would resample them to another size of input without a word
    places = state["pos_embed"].shape[1] if "pos_embed" in state else None
    # the same class count as of the model, for else timm does not load strictly
    overlay = {"state_dict": state, "source": "", "num_classes": 0}
    model: nn.Module = timm.create_model(
        row.arch, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **_timm_arguments(row)
    )
    built: Any = getattr(model, "pos_embed", None)
    if places is not None and built is not None and built.shape[1] not in (places, places - 1):
        message = f"{file.name} has position embeddings of {places} places, its row makes {built.shape[1]}"
        raise ValueError(message)
    return model


def _build_python(row: Backbone) -> nn.Module:
    return cast("nn.Module", python_class(row)())


def _build_package(row: Backbone) -> nn.Module:
    build = _imported(row, row.build)
    try:
        return cast("nn.Module", build(row))
    except ImportError as error:
        message = f"backbone {row.name} needs its authors' package ({error}); run: {row.install}"
        raise BackboneError(message) from error


def _refuse_remote(row: Backbone) -> nn.Module:
    message = (
        f"backbone {row.name} cannot be loaded: its authors publish it only as code that would have to run here, and"
        " pathfm runs no such code; embed the tiles with their own code and `pathfm import` the features"
    )
    raise BackboneError(message)


_BUILDERS: dict[Library, Callable[[Backbone], nn.Module]] = {
    "timm": _build_timm,
    "python": _build_python,
    "transformers": load_transformers,
    "package": _build_package,
    "remote": _refuse_remote,
}


def _timm_arguments(row: Backbone) -> dict[str, Any]:
    import timm

    layers: Any = timm.layers
    return row.arch_kwargs | ({"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if row.swiglu else {})


def _without_the_rest(model: nn.Module, row: Backbone) -> nn.Module:
    """Drops the stage and the head of a ResNet that its third stage does not need."""
    if row.output == "layer3":
        model.layer4, model.fc = nn.Identity(), nn.Identity()
    return model


def _size_overlay(folder: Path) -> dict[str, Any]:
    """Makes timm build a model at the input size of its configuration.

    Without it timm resamples the position embeddings of the weights to the architecture's usual size as soon as the
    configuration does not say that its size is fixed, or at 224 px where it says no size.
    """
    import timm

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    usual = timm.get_pretrained_cfg(str(config.get("architecture")).partition(".")[0], allow_unregistered=True)
    if usual is None or not usual.fixed_input_size:
        return {}
    says_size = "input_size" in {**config, **config.get("pretrained_cfg", {})}
    return {"fixed_input_size": True} | ({} if says_size else {"input_size": usual.input_size})
