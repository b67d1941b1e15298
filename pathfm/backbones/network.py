"""The networks behind the rows: built by timm, transformers, a class or their authors' package, and what they give."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import replace
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError

from pathfm.backbones.huggingface import (
    build_transformers,
    load_transformers,
    transformers_architecture,
    transformers_embedding,
    transformers_facts,
)
from pathfm.backbones.timm_models import build_timm, load_timm, with_architecture
from pathfm.backbones.tokens import pool_tokens
from pathfm.errors import BackboneError, PathfmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pathfm.backbones.row import Backbone, Library

# What timm, transformers and the readers of weights raise for files that are damaged or do not fit each other.
_MISFIT_ERRORS = (
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
    UnpicklingError,
    SafetensorError,
)


def build_network(row: Backbone) -> nn.Module:
    """The network of a row with its weights, in eval mode on the CPU.

    Raises:
        WeightsMissingError: gated, offline or absent weights.
        WeightsDamagedError: not the weights that the row pins.
        MissingExtraError: it is a transformers model and transformers is not installed.
        BackboneError: the weights do not fit the architecture, its authors' package is not installed, or they publish
            it as code to be run alone.
    """
    try:
        return _BUILDERS[row.library](with_architecture(row)).eval().requires_grad_(requires_grad=False)
    except PathfmError:
        raise  # which is said already
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
        return build_timm(row)
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
        BackboneError: another dimension, another number of parameters or of tokens before the patches.
    """
    n_params = sum(parameter.numel() for parameter in model.parameters())
    if row.n_params is not None and n_params != row.n_params:
        message = f"backbone {row.name}: the loaded model has {n_params:,} parameters, its row says {row.n_params:,}; correct the row"
        raise BackboneError(message)
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


def architecture_facts(row: Backbone, model: nn.Module) -> dict[str, Any]:
    """What is computed with the weights, as a recipe says it: the same weights in another network give other numbers.

    JSON types; {} where the version of a class or a package says it.
    """
    if row.library == "timm":
        facts: dict[str, Any] = {"arch": row.arch, "swiglu": row.swiglu, **row.arch_kwargs}
    elif row.library == "transformers":
        facts = transformers_architecture(model)
    else:
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


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
    "timm": load_timm,
    "python": _build_python,
    "transformers": load_transformers,
    "package": _build_package,
    "remote": _refuse_remote,
}
