"""Backbones that are models of the transformers library: built, loaded, run. Never with code of a repository."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from pathfm.backbones.tokens import pool_tokens
from pathfm.backbones.weights import weights_folder
from pathfm.errors import BackboneError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from pathfm.backbones.row import Backbone


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

    Raises:
        MissingExtraError: transformers is not installed.
        WeightsMissingError: gated, offline or absent weights.
        BackboneError: the installed version has no such model.
        ValueError: the weights lack a part of the model, or one has another shape.
    """
    model_class = _model_class(row)
    folder = weights_folder(row)
    with _without_reports():
        model, report = model_class.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **row.load_kwargs
        )
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        message = f"the weights lack or misfit {', '.join(wrong[:5])}"
        raise ValueError(message)
    return cast("nn.Module", model.float())  # recent versions keep the type of the file


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
