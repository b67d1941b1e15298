"""A model directory: weights without pickle in `model.safetensors`, and all that is known about them in `model.json`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from safetensors.torch import save

from pathfm.cardfile import SHAPE as CARD
from pathfm.cardfile import Card
from pathfm.covariates import Covariates
from pathfm.embeddings import recipe_sha256
from pathfm.errors import InputError, ModelError
from pathfm.files import sha256_file, write_atomically, write_json
from pathfm.frozen import Frozen, frozen_sha256
from pathfm.licences import Licence, licences_in_recipe, licences_of, unknown_licences
from pathfm.modelheads import REMEDY, damaged, read_heads
from pathfm.patients import Unit
from pathfm.reference import Reference, read_reference, write_reference
from pathfm.tables import first_line, read_document
from pathfm.targets import Task
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.heads import Head

FORMAT = "pathfm-model"
FORMAT_VERSION = 4
MOST_HEADS = 256
"""Members of an ensemble: more than any cross-validation has folds and repeats."""
_TARGETS = [{"name": str, "kind": str}]
_SHAPE: dict[str, Any] = {
    "pathfm_version": str,
    "heads": [{"name": str, "kwargs": {"*": (int, float, bool, str)}, "targets": _TARGETS}],
    "targets": _TARGETS,
    "unit": get_args(Unit),
    "covariates": ([{"name": str, "levels": [str]}], None),
    "dim": int,
    "recipe": {"backbone?": dict, "joined?": [{"backbone": {"name": str}}]},
    "recipe_sha256": str,
    "licences": [{"backbone": str, "licence": str, "derivatives": str, "page": str}],
    "training": {"fingerprint": str, "epochs": int, "patients": [str], "slides": {"*": str}, "sites": [str]},
    "figures": ({"*": dict}, None),
    "frozen": ({"*": dict}, None),
    "card": CARD,
    "frozen_sha256": (str, None),
    "reference_sha256": (str, None),
    "weights_sha256": str,
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """One trained head, or an ensemble of several, and what a user of it has to know.

    Attributes:
        heads: on the CPU, in evaluation mode; the scores of several are the means of their scores.
        task: the targets in the order of the logits.
        tasks: of each head the task as it was fitted to its own training rows; where none is given, `task`.
        unit: what a bag is of: a slide, or all slides of a patient.
        covariates: what of the cohort table the heads read beside the slides, None for nothing.
        recipe: of the embeddings it takes; no others fit.
        training: settings, seed, epochs, fingerprint, n_patients, n_slides, patients (ids), slides (slide_id to the
            sha256 of the slide), sites; JSON types.
        figures: metrics.json of the cross-validation it comes from, by the name of the target; None where there was none.
        frozen: by the name of the target what was chosen on development predictions, such as the operating point; None
            where nothing was.
        reference: the slides that it has seen in numbers, for what resembles them; None where it does not carry them.
        card: what its makers say of it, such as what it is meant for; nothing where they have not.
        licences: of the backbones whose embeddings it was trained on, which it inherits. Where none is given, what the
            recipe of an older cache says, else "unknown".
    """

    heads: tuple[Head, ...]
    task: Task
    tasks: tuple[Task, ...] = ()
    unit: Unit = "slide"
    covariates: Covariates | None = None
    recipe: dict[str, Any]
    training: dict[str, Any]
    figures: dict[str, Any] | None = None
    frozen: dict[str, Frozen] | None = None
    reference: Reference | None = field(default=None, compare=False)
    card: Card = Card()
    licences: tuple[Licence, ...] = ()

    def __post_init__(self) -> None:
        """Leaves no head without its task and no model without a licence: one that is not stated restricts."""
        if not self.tasks:
            object.__setattr__(self, "tasks", (self.task,) * len(self.heads))
        if not self.licences:
            object.__setattr__(self, "licences", licences_in_recipe(self.recipe))

    @property
    def label(self) -> str:
        """The names of the targets with commas between."""
        return self.task.label


def ensemble(models: Sequence[Model]) -> Model:
    """Models of the same targets and recipe as one, which has seen what any of them has seen.

    Raises:
        ModelError: models that do not belong together.
    """
    first = models[0]
    alike = [(one.unit, one.covariates, one.recipe, _columns(one.task)) for one in models]
    if any(one != alike[0] for one in alike) or len({head.dim for one in models for head in one.heads}) > 1:
        message = "models of different targets, units, covariates or recipes make no ensemble"
        raise ModelError(message)
    records = [one.training for one in models]
    patients = sorted({patient for record in records for patient in record["patients"]})
    slides = {name: digest for record in records for name, digest in record["slides"].items()}
    training = {
        "settings": records[0].get("settings", {}),
        "fingerprint": hashlib.sha256("".join(record["fingerprint"] for record in records).encode()).hexdigest(),
        "epochs": max(record["epochs"] for record in records),
        "n_slides": len(slides),
        "n_patients": len(patients),
        "patients": patients,
        "slides": dict(sorted(slides.items())),
        "sites": sorted({site for record in records for site in record["sites"]}),
    }
    return Model(
        heads=tuple(head for one in models for head in one.heads),
        task=first.task,
        tasks=tuple(task for one in models for task in one.tasks),
        unit=first.unit,
        covariates=first.covariates,
        recipe=first.recipe,
        training=training,
        licences=tuple(dict.fromkeys(licence for one in models for licence in one.licences)),
    )


def write_model(folder: Path, model: Model) -> None:
    """Writes `model.safetensors` and, where there is one, `reference.safetensors`, then `model.json` with the digests of both.

    Raises:
        DiskFullError: no space; a model that was there before is then either whole or refused by `read_model`.
    """
    tensors = {
        f"{place}.{name}": value.contiguous()
        for place, head in enumerate(model.heads)
        for name, value in head.state_dict().items()
    }
    weights = save(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    write_atomically(folder / "model.safetensors", weights)
    of_reference = write_reference(folder, model.reference) if model.reference is not None else None
    described = _description(model) | {"weights_sha256": digest, "reference_sha256": of_reference}
    write_json(folder / "model.json", described | {"frozen_sha256": _seal(described)})


def read_model(folder: Path) -> Model:
    """Reads a model directory that may come from anywhere: nothing in it is run, and sizes are checked before allocation.

    Raises:
        ModelError: missing, damaged, of another format version, or its two files do not belong together; the key is named.
    """
    described = read_description(folder)
    path = folder / "model.json"
    task, *tasks = (_task(path, one["targets"]) for one in (described, *described["heads"]))
    if any(_columns(one) != _columns(task) for one in tasks):
        raise damaged(path, "key 'heads' has other targets than key 'targets'")
    covariates = _covariates(path, described)
    reference = read_reference(folder, described["reference_sha256"])
    if reference is not None and reference.embeddings.shape[1] != described["dim"]:
        raise damaged(path, "key 'reference_sha256' is of embeddings of another width")
    sizes = (described["dim"], task.n_outputs, covariates.width if covariates else 0)
    return Model(
        heads=read_heads(folder, described, sizes),
        task=task,
        tasks=tuple(tasks),
        unit=described["unit"],
        covariates=covariates,
        recipe=described["recipe"],
        training=described["training"],
        figures=described["figures"],
        frozen=_frozen(path, task, described["frozen"]),
        reference=reference,
        card=Card.of_facts(described["card"]),
        licences=tuple(map(Licence.of_facts, described["licences"])),
    )


def same(first: Model, second: Model) -> bool:
    """Whether two models say the same of themselves; weights are not looked at, for they follow from the rest."""
    return _description(first) == _description(second) and _rows(first.reference) == _rows(second.reference)


def model_sha256(folder: Path) -> str:
    """Hex digest of model.json, which holds those of the other files: it names this model and no other."""
    return sha256_file(folder / "model.json")


def read_description(folder: Path) -> dict[str, Any]:
    """What `model.json` says, checked like `read_model` does, without the weights.

    Raises:
        ModelError: missing, damaged, or of another format version; the key is named.
    """
    path = folder / "model.json"
    if not path.is_file():
        message = f"{folder} is not a model directory, it has no model.json; pass --model a folder that train, crossval or run wrote"
        raise ModelError(message)
    try:
        described = read_document(path, FORMAT, FORMAT_VERSION, {"format_version": int}, REMEDY)
        if described["format_version"] < FORMAT_VERSION:
            raise damaged(path, f"is of format_version {described['format_version']}, which this pathfm does not read")
        described = read_document(path, FORMAT, FORMAT_VERSION, _SHAPE, REMEDY)
    except InputError as error:
        raise ModelError(str(error)) from error
    _require_sense(path, described)
    return described | {"licences": [one.facts() for one in _licences(path, described)]}


def _description(model: Model) -> dict[str, Any]:
    members = zip(model.heads, model.tasks, strict=True)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pathfm_version": __version__,
        "heads": [{"name": head.name, "kwargs": head.kwargs(), "targets": task.facts()} for head, task in members],
        "targets": model.task.facts(),
        "unit": model.unit,
        "covariates": model.covariates.facts() if model.covariates else None,
        "dim": model.heads[0].dim,
        "recipe": model.recipe,
        "recipe_sha256": recipe_sha256(model.recipe),
        "licences": [one.facts() for one in model.licences],
        "training": model.training,
        "figures": model.figures,
        "frozen": {name: one.facts() for name, one in model.frozen.items()} if model.frozen else None,
        "card": model.card.facts(),
    }


def _rows(reference: Reference | None) -> tuple[Any, ...] | None:
    if reference is None:
        return None
    arrays = (reference.embeddings, reference.mean_rgb, reference.mpp)
    texts = (reference.slide_ids, reference.patient_ids, reference.thumbnail_hashes)
    return *texts, *(array.tobytes() for array in arrays)


def _seal(described: dict[str, Any]) -> str | None:
    """What tells that nobody moved what is frozen, nor what it refers to: which class a score is of, and of which bags."""
    if not described["frozen"]:
        return None
    of = {key: described[key] for key in ("targets", "unit", "covariates", "dim")}
    of["heads"] = [{key: head[key] for key in ("name", "kwargs", "targets")} for head in described["heads"]]
    return frozen_sha256(described["frozen"], of, described["weights_sha256"])


def _require_sense(path: Path, described: dict[str, Any]) -> None:
    if not 1 <= len(described["heads"]) <= MOST_HEADS:
        raise damaged(path, f"key 'heads' is not a list of 1 to {MOST_HEADS}")
    if described["dim"] < 1:
        raise damaged(path, "key 'dim' is not a width")
    try:
        digest = recipe_sha256(described["recipe"])
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"key 'recipe' cannot be hashed ({first_line(error)})") from error
    try:
        Card.of_facts(described["card"])
    except ValueError as error:
        raise damaged(path, f"key 'card' cannot be read: {first_line(error)}") from error
    if described["recipe_sha256"] != digest:
        raise damaged(path, "key 'recipe_sha256' does not match its recipe")
    if described["frozen_sha256"] != _seal(described):
        raise damaged(
            path,
            "key 'frozen' is not what was frozen with these weights, targets, unit and covariates: an operating point"
            " cannot be moved",
        )


def _licences(path: Path, described: dict[str, Any]) -> tuple[Licence, ...]:
    try:
        return licences_of(described["licences"]) or unknown_licences(described["recipe"])
    except ValueError as error:
        raise damaged(path, f"key 'licences' cannot be read ({first_line(error)})") from error


def _task(path: Path, facts: list[dict[str, Any]]) -> Task:
    try:
        return Task.of_facts(facts)
    except (ValueError, InputError) as error:
        raise damaged(path, f"key 'targets' cannot be read: {first_line(error)}") from error


def _frozen(path: Path, task: Task, facts: dict[str, Any] | None) -> dict[str, Frozen] | None:
    targets = {target.name: target for target in task.targets}
    if facts is None:
        return None
    if not set(facts) <= set(targets):
        raise damaged(path, "key 'frozen' names a target that the model has not")
    try:
        return {name: Frozen.of_facts(one, targets[name]) for name, one in facts.items()}
    except ValueError as error:
        raise damaged(path, f"key 'frozen' cannot be read: {first_line(error)}") from error


def _columns(task: Task) -> list[tuple[str, ...]]:
    """What has to be the same for scores to be averaged; how a target was fitted may differ."""
    return [(target.name, target.kind, *target.names) for target in task.targets]


def _covariates(path: Path, described: dict[str, Any]) -> Covariates | None:
    try:
        return None if described["covariates"] is None else Covariates.of_facts(described["covariates"])
    except ValueError as error:
        raise damaged(path, first_line(error)) from error
