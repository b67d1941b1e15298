"""The heads of a model directory that may come from anywhere: what model.json claims is checked before memory is taken."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.heads import Head, build_head
from pathfm.tables import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

REMEDY = "train the model again, or fetch a whole copy of its folder"
_WIDEST = 1 << 16
_MOST_OF_AN_OPTION = 1 << 10  # such as layers, each of which takes time to build before any weight is looked at


def read_heads(folder: Path, described: dict[str, Any], sizes: tuple[int, int, int]) -> tuple[Head, ...]:
    """The heads with their weights, on the CPU, in evaluation mode.

    Args:
        folder: the model directory.
        described: its `model.json`, of a shape that has been checked.
        sizes: width of the embeddings, logits, and numbers of the covariates.

    Raises:
        ModelError: weights that are missing, damaged, not finite, or not those of the heads that are described.
    """
    path, heads = folder / "model.safetensors", []
    tensors = _read_weights(path, described["weights_sha256"])
    keys: set[str] = set()
    for place, one in enumerate(described["heads"]):
        with torch.device("meta"):  # sizes without memory: they are only claims so far
            head = _unfilled(folder / "model.json", one, sizes)
        wanted = {f"{place}.{name}": (name, value) for name, value in head.state_dict().items()}
        for key, (_, value) in wanted.items():
            _require_fits(path, key, tensors.get(key), value)
        head.load_state_dict({name: tensors[key] for key, (name, _) in wanted.items()}, assign=True)
        heads.append(head.eval())
        keys |= wanted.keys()
    if keys != tensors.keys():
        raise damaged(path, f"tensor {min(tensors.keys() - keys)!r} belongs to no head that model.json describes")
    return tuple(heads)


def _read_weights(path: Path, wanted_sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise damaged(path, "is missing")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != wanted_sha256:
        raise damaged(path, "does not match key 'weights_sha256' of model.json")
    try:
        return load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, f"is not a safetensors file ({first_line(error)})") from error


def _require_fits(path: Path, key: str, found: Tensor | None, wanted: Tensor) -> None:
    if found is None or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise damaged(path, f"tensor {key!r} does not fit the head that model.json describes")
    if not torch.isfinite(found).all():
        raise damaged(path, f"tensor {key!r} holds a number that is not finite")


def _unfilled(path: Path, one: dict[str, Any], sizes: tuple[int, int, int]) -> Head:
    name, kwargs = one["name"], one["kwargs"]
    for key, value in kwargs.items():
        most = _WIDEST if key in ("hidden", "attention") else _MOST_OF_AN_OPTION
        if isinstance(value, int) and value > most:
            raise damaged(path, f"key 'heads.kwargs.{key}' is {value}, more than any head has")
    try:
        return build_head(name, *sizes, **kwargs)
    except UnknownNameError as error:
        raise damaged(path, f"key 'heads': {first_line(error)}") from error
    except (InputError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        what = f"key 'heads.kwargs' or 'dim' does not fit the head {name!r} ({first_line(error)})"
        raise damaged(path, what) from error


def damaged(path: Path, what: str) -> ModelError:
    """The error of a model directory: a file of it and what is wrong with that."""
    return ModelError(f"{path} {what}; {REMEDY}")
