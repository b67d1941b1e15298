"""Backbones that are models of the transformers library: built, loaded, run. Never with code of a repository."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from pathfm.backbones.tokens import pool_tokens
from pathfm.backbones.weights import CONFIG, read_tensors, weights_file, weights_folder
from pathfm.errors import BackboneError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from pathfm.backbones.row import Backbone


# What a configuration says that changes what is computed with the same weights.
_COMPUTES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "mlp_ratio",
    "hidden_act",
    "hidden_activation",
    "layer_norm_eps",
    "rms_norm_eps",
    "image_size",
    "patch_size",
    "num_register_tokens",
    "use_swiglu_ffn",
    "qkv_bias",
    "projection_dim",
    "pooling_kernel_size",
    "standardize",
)


def build_transformers(row: Backbone) -> nn.Module:
    """The model of a row with random weights.

    Raises:
        MissingExtraError: transformers is not installed.
        BackboneError: the installed version has no such model.
    """
    model_class = _model_class(row)
    taken = inspect.signature(model_class).parameters
    # of what from_pretrained takes, the rest is about files
    kwargs = {key: value for key, value in row.load_kwargs.items() if key in taken}
    return cast("nn.Module", model_class(model_class.config_class(**row.arch_kwargs), **kwargs))


def load_transformers(row: Backbone) -> nn.Module:
    """The model of a row with its weights, float32.

    Its configuration is the one beside the weights, and has to say what the row says. Every tensor of the model comes
    from the file that was proven, and that has no others below the model's own parts.

    Raises:
        MissingExtraError: transformers is not installed.
        WeightsMissingError: gated, offline or absent weights.
        WeightsDamagedError: not the weights that the row pins.
        BackboneError: the installed version has no such model.
        ValueError: the weights lack a part of the model, or have more than one; or the configuration is another.
    """
    model_class = _model_class(row)
    config = _config(row, model_class)
    arguments = dict(row.load_kwargs)
    state = _renamed(file_tensors(row), arguments.pop("key_mapping", None))
    with _without_reports():
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **arguments,
        )
    own = {name.partition(".")[0] for name in model.state_dict()}
    more = [name for name in report["unexpected_keys"] if str(name).partition(".")[0] in own]
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"], *more]))
    if wrong:
        message = f"the weights lack, misfit or have too many {', '.join(wrong[:5])}"
        raise ValueError(message)
    return cast("nn.Module", model.float())


def file_tensors(row: Backbone) -> dict[str, Tensor]:
    """The tensors of a row's file by the names there; of a whole model with other halves also theirs."""
    read = read_tensors(weights_file(row))
    return {name: value for name, value in read.items() if isinstance(value, torch.Tensor)}


def transformers_architecture(model: nn.Module) -> dict[str, Any]:
    """What the configuration of a model says of what it computes."""
    config: Any = cast("Any", model).config
    return {"arch": type(model).__name__} | {key: getattr(config, key) for key in _COMPUTES if hasattr(config, key)}


def transformers_embedding(model: nn.Module, images: Tensor, row: Backbone) -> Tensor:
    """What of the model's output is the embedding: float (b, dim) of float32 images (b, 3, h, w)."""
    network: Any = model
    if network.config.model_type == "gemma4_vision":
        return pool_tokens(_gemma_tokens(network, images), row.output, row.prefix_tokens)
    given = network(pixel_values=images)
    if row.output != "pooled":
        return pool_tokens(given.last_hidden_state, row.output, row.prefix_tokens)
    projected = getattr(given, "image_embeds", None)
    return cast("Tensor", given.pooler_output if projected is None else projected)


def transformers_facts(model: nn.Module, row: Backbone) -> tuple[int, int]:
    """Length of the embedding that a model gives, and its tokens before the patches, from its configuration."""
    config: Any = cast("Any", model).config
    if row.output == "pooled":
        return int(getattr(config, "projection_dim", 0) or config.hidden_size), row.prefix_tokens
    # of the models in question this one alone has no class token
    prefix = 0 if config.model_type == "gemma4_vision" else 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    return int(config.hidden_size) * (2 if row.output == "cls+mean" else 1), prefix


def _model_class(row: Backbone) -> Any:
    try:
        import transformers
    except ImportError as error:
        what, extra = f"backbone {row.name}", "hf"
        raise MissingExtraError(what, extra) from error
    found = getattr(transformers, row.arch or "AutoModel", None)
    if row.arch and not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        message = (
            f"backbone {row.name} is a {row.arch}, which transformers {transformers.__version__} does not have as a"
            " model; update transformers, or correct the row's arch"
        )
        raise BackboneError(message)
    return found


def _config(row: Backbone, model_class: Any) -> Any:
    """The configuration beside the weights.

    Raises:
        ValueError: it is no configuration of such a model, or says something else than the row.
    """
    from transformers import AutoConfig

    kind: Any = getattr(model_class, "config_class", None) or AutoConfig
    with _without_reports():
        config = kind.from_pretrained(weights_folder(row), trust_remote_code=False)
    config.quantization_config = None
    said = {key: getattr(config, key, None) for key in row.arch_kwargs}
    differing = [f"{key} {said[key]}, its row {value}" for key, value in row.arch_kwargs.items() if said[key] != value]
    if differing:
        message = f"its {CONFIG} says {'; '.join(differing[:3])}"
        raise ValueError(message)
    return config


def _renamed(tensors: dict[str, Tensor], mapping: dict[str, str] | None) -> dict[str, Tensor]:
    """Tensors by the model's names; with a mapping only those that it is about."""
    if mapping is None:
        return tensors
    return {
        re.sub(pattern, new, name): tensor
        for name, tensor in tensors.items()
        for pattern, new in mapping.items()
        if re.search(pattern, name)
    }


def _gemma_tokens(network: Any, images: Tensor) -> Tensor:
    """Float (b, t, d): the tokens of a Gemma 4 vision tower, which takes patches in rows instead of images.

    Its own forward looks at values to find padding, which whole images do not have; without that it also runs on the
    meta device, and compiled. A test holds the two against each other.
    """
    count, channels, height, width = images.shape
    side, pooled = int(network.config.patch_size), int(network.config.pooling_kernel_size)
    rows, columns = height // side, width // side
    grid = images.reshape(count, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    patches = grid.reshape(count, rows * columns, side * side * channels)
    y, x = torch.meshgrid(
        torch.arange(rows, device=images.device), torch.arange(columns, device=images.device), indexing="ij"
    )
    places = torch.stack([x.flatten(), y.flatten()], dim=1).expand(count, -1, -1)
    padded = torch.zeros_like(places[..., 0], dtype=torch.bool)
    embedded = network.patch_embedder(patches, places, padded)
    hidden = network.encoder(inputs_embeds=embedded, attention_mask=None, pixel_position_ids=places).last_hidden_state
    tokens: Tensor = network.pooler(hidden, places, padded, patches.shape[1] // pooled**2)[0]
    if network.config.standardize:
        tokens = (tokens - network.std_bias.float()) * network.std_scale.float()
    return tokens


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keeps transformers from listing the parts of a file that are not asked for, such as the text half of CLIP."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
