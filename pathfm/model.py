"""A model directory: weights without pickle in `model.safetensors`, and all that is known about them in `model.json`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pathfm.embeddings import recipe_sha256
from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.files import write_atomically, write_json
from pathfm.heads import Head, build_head
from pathfm.licences import Licence, licences_in_recipe, licences_of, unknown_licences
from pathfm.tables import first_line, read_document
from pathfm.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FORMAT = "pathfm-model"
FORMAT_VERSION = 2
_SHAPE: dict[str, Any] = {
    "pathfm_version": str,
    "head": {"name": str, "kwargs": dict},
    "label": str,
    "classes": [str],
    "dim": int,
    "recipe": {"backbone?": dict, "joined?": [{"backbone": {"name": str}}]},
    "recipe_sha256": str,
    "licence?": dict,
    "licences?": [{"backbone": str, "licence": str, "derivatives": str, "page": str}],
    "training": {"fingerprint": str, "epochs": int, "patients": [str], "slides": {"*": str}},
    "figures": (dict, None),
    "weights_sha256": str,
}
_REMEDY = "train the model again, or fetch a whole copy of its folder"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained head and what a user of it has to know.

    Attributes:
        head: on the CPU, in evaluation mode.
        label: the label column it was trained on.
        classes: names of the logits in order; the last of two is the positive class.
        recipe: of the embeddings it takes; no others fit.
        training: settings, seed, epochs, fingerprint, n_patients, n_slides, patients (ids), slides (slide_id to the
            sha256 of the slide); JSON types.
        figures: metrics.json of the cross-validation it comes from, None where there was none.
        licences: of the backbones whose embeddings it was trained on, which it inherits. Where none is given, what the
            recipe of an older cache says, else "unknown".
    """

    head: Head
    label: str
    classes: list[str]
    recipe: dict[str, Any]
    training: dict[str, Any]
    figures: dict[str, Any] | None = None
    licences: tuple[Licence, ...] = ()

    def __post_init__(self) -> None:
        """Leaves no model without a licence: one that is not stated restricts."""
        if not self.licences:
            object.__setattr__(self, "licences", licences_in_recipe(self.recipe))


def write_model(folder: Path, model: Model) -> None:
    """Writes `model.safetensors`, then `model.json`, which holds the digest of the former.

    Raises:
        DiskFullError: no space; a model that was there before is then either whole or refused by `read_model`.
    """
    weights = save({name: value.contiguous() for name, value in model.head.state_dict().items()})
    write_atomically(folder / "model.safetensors", weights)
    write_json(folder / "model.json", _description(model) | {"weights_sha256": hashlib.sha256(weights).hexdigest()})


def read_model(folder: Path) -> Model:
    """Reads a model directory that may come from anywhere: nothing in it is run, and sizes are checked before allocation.

    Raises:
        ModelError: missing, damaged, of a newer format, or its two files do not belong together; the key is named.
    """
    described = read_description(folder)
    tensors = _read_weights(folder, described["weights_sha256"])
    return Model(
        head=_head(folder, described, tensors),
        label=described["label"],
        classes=described["classes"],
        recipe=described["recipe"],
        training=described["training"],
        figures=described["figures"],
        licences=tuple(map(Licence.of_facts, described["licences"])),
    )


def read_description(folder: Path) -> dict[str, Any]:
    """What `model.json` says, checked like `read_model` does, without the weights; key `licences` also in an older one.

    Raises:
        ModelError: missing, damaged, or of a newer format; the key is named.
    """
    path = folder / "model.json"
    if not path.is_file():
        message = f"{folder} is not a model directory, it has no model.json; pass --model a folder that train, crossval or run wrote"
        raise ModelError(message)
    try:
        described = read_document(path, FORMAT, FORMAT_VERSION, _SHAPE, _REMEDY)
    except InputError as error:
        raise ModelError(str(error)) from error
    _require_sense(path, described)
    return described | {"licences": [one.facts() for one in _licences(path, described)]}


def _description(model: Model) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pathfm_version": __version__,
        "head": {"name": model.head.name, "kwargs": model.head.kwargs()},
        "label": model.label,
        "classes": model.classes,
        "dim": model.head.dim,
        "recipe": model.recipe,
        "recipe_sha256": recipe_sha256(model.recipe),
        "licences": [one.facts() for one in model.licences],
        "training": model.training,
        "figures": model.figures,
    }


def _require_sense(path: Path, described: dict[str, Any]) -> None:
    classes = described["classes"]
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise _damaged(path, "key 'classes' is not a list of two or more different names")
    if described["dim"] < 1:
        raise _damaged(path, "key 'dim' is not a width")
    try:
        digest = recipe_sha256(described["recipe"])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"key 'recipe' cannot be hashed ({first_line(error)})") from error
    if described["recipe_sha256"] != digest:
        raise _damaged(path, "key 'recipe_sha256' does not match its recipe")


def _licences(path: Path, described: dict[str, Any]) -> tuple[Licence, ...]:
    """Version 1 had one backbone and its licence under another name."""
    key = "licence" if described["format_version"] == 1 else "licences"
    if key not in described:
        raise _damaged(path, f"lacks the key {key!r}")
    if key == "licence":
        return (Licence.of_facts(described[key]),)
    try:
        return licences_of(described[key]) or unknown_licences(described["recipe"])
    except ValueError as error:
        raise _damaged(path, f"key 'licences' cannot be read ({first_line(error)})") from error


def _read_weights(folder: Path, wanted_sha256: str) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise _damaged(path, "is missing")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != wanted_sha256:
        raise _damaged(path, "does not match key 'weights_sha256' of model.json")
    try:
        return load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, f"is not a safetensors file ({first_line(error)})") from error


def _head(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    path, name = folder / "model.json", described["head"]["name"]
    try:
        with torch.device("meta"):  # sizes without memory: they are only claims so far
            head = build_head(name, described["dim"], len(described["classes"]), **described["head"]["kwargs"])
    except UnknownNameError as error:
        raise _damaged(path, f"key 'head.name': {first_line(error)}") from error
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _damaged(
            path, f"key 'head.kwargs' or 'dim' does not fit the head {name!r} ({first_line(error)})"
        ) from error
    wanted = {key: (value.shape, value.dtype) for key, value in head.state_dict().items()}
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted or (tensors[key].shape, tensors[key].dtype) != wanted[key]:
            raise _damaged(
                folder / "model.safetensors", f"tensor {key!r} does not fit the head that model.json describes"
            )
        if not torch.isfinite(tensors[key]).all():
            raise _damaged(folder / "model.safetensors", f"tensor {key!r} holds a number that is not finite")
    head.load_state_dict(tensors, assign=True)
    return head.eval()


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} {what}; {_REMEDY}")
