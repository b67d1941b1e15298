"""Backbones that are models of timm: built as their row says, and loaded strictly from the one file that was proven."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pathfm.backbones.weights import CONFIG, read_tensors, weights_file, weights_folder
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.backbones.row import Backbone

# As trainings save a network, inside of what else they save.
_INSIDE = ("model", "state_dict", "teacher")
_AROUND = ("module.", "backbone.")


def build_timm(row: Backbone) -> nn.Module:
    """The model of a row with random weights, without a head."""
    import timm  # takes seconds, and not every backbone is one of timm's

    return _without_the_rest(timm.create_model(row.arch, **_arguments(row)), row)


def load_timm(row: Backbone) -> nn.Module:
    """The model of a row with its weights, without a head.

    What is built is what the row says, whatever a configuration beside the weights says. Every tensor of the model comes
    from the file and has its shape there, and the file has no others but those of a head. timm knows other libraries'
    names for the parts.

    Raises:
        WeightsMissingError: gated, offline or absent weights.
        WeightsDamagedError: not the weights that the row pins.
        ValueError: a tensor would have to be resampled.
        RuntimeError: tensors are missing, or are too many.
    """
    import timm

    state = _state(row)
    with torch.device("meta"):
        _require_no_resampling(state, timm.create_model(row.arch, **_arguments(row)))
    # a file that has no head left is loaded strictly by timm
    overlay = {"state_dict": state, "source": "", "classifier": None, "num_classes": 0, "custom_load": False}
    model = timm.create_model(row.arch, pretrained=True, pretrained_cfg_overlay=overlay, **_arguments(row))
    return _without_the_rest(model, row)


def arguments_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a timm config.json says of how its model is built, as arguments of `create_model`.

    Args:
        config: with an architecture, and the facts of "pretrained_cfg" beside or inside of it.
    """
    import timm

    inner = config.get("pretrained_cfg")
    facts = {**config, **inner} if isinstance(inner, dict) else dict(config)
    given = facts.get("model_args")
    arguments = dict(given) if isinstance(given, dict) else {}
    arguments.pop("num_classes", None)
    if isinstance(inner, dict) and isinstance(inner.get("global_pool"), str):
        arguments.setdefault("global_pool", inner["global_pool"])
    usual = timm.get_pretrained_cfg(str(config.get("architecture")).partition(".")[0], allow_unregistered=True)
    size = facts.get("input_size")
    if usual is not None and usual.fixed_input_size and isinstance(size, list) and len(size) == 3:
        arguments.setdefault("img_size", size[-1])
    return arguments


def with_architecture(row: Backbone) -> Backbone:
    """The row, with the architecture that the config.json beside its weights names where it names none itself.

    Raises:
        WeightsMissingError: its config.json cannot be had.
        BackboneError: its config.json is none of timm's.
    """
    if row.library != "timm" or row.arch:
        return row
    config = read_config(row)
    return replace(row, arch=config["architecture"], arch_kwargs=arguments_of_config(config) | row.arch_kwargs)


def read_config(row: Backbone) -> dict[str, Any]:
    """The timm configuration beside the weights of a row.

    Raises:
        WeightsMissingError: it cannot be had.
        BackboneError: it is none.
    """
    path = weights_folder(row, config_only=True) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{path} is no JSON ({error}); fetch it again"
        raise BackboneError(message) from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        message = f"{row.source} has a {CONFIG} without 'architecture', so it is no timm model; register a row for it"
        raise BackboneError(message)
    return config


def _state(row: Backbone) -> dict[str, Tensor]:
    """The tensors of a row's file, under their own names and without those of a head."""
    import timm

    state: Any = read_tensors(weights_file(row))
    for key in _INSIDE:
        state = state.get(key, state) if not isinstance(state.get(key), Tensor) else state
    for around in _AROUND:
        if all(name.startswith(around) for name in state):
            state = {name.removeprefix(around): tensor for name, tensor in state.items()}
    usual = timm.get_pretrained_cfg(row.arch, allow_unregistered=True)
    heads = usual.classifier if usual is not None else None
    names = (heads,) if isinstance(heads, str) else tuple(heads or ())
    endings = tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    return {name: tensor for name, tensor in state.items() if name not in endings}


def _require_no_resampling(state: Mapping[str, Tensor], shell: nn.Module) -> None:
    """Timm would resample position and patch embeddings to another size of input without a word."""
    for name, built in shell.state_dict().items():
        if name not in state or state[name].numel() == built.numel():
            continue
        found, wanted = tuple(state[name].shape), tuple(built.shape)
        # DINOv2 with registers has a place for the class token, which timm adds to that token
        if name == "pos_embed" and "register_tokens" in state and found[1] == wanted[1] + 1:
            continue
        message = f"the weights have {name} of {found}, its row makes it {wanted}"
        raise ValueError(message)


def _arguments(row: Backbone) -> dict[str, Any]:
    import timm

    layers: Any = timm.layers
    swiglu = {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if row.swiglu else {}
    return row.arch_kwargs | swiglu | {"num_classes": 0}


def _without_the_rest(model: nn.Module, row: Backbone) -> nn.Module:
    """Drops the stage and the head of a ResNet that its third stage does not need."""
    if row.output == "layer3":
        network = cast("Any", model)
        network.layer4, network.fc = nn.Identity(), nn.Identity()
    return model
