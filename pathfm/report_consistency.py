"""Refuses files of several studies, which one report would tell of as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm.cohortfigures import is_scored
from pathfm.embeddings import recipe_differences, require_recipe
from pathfm.errors import InputError, ModelError
from pathfm.model import model_sha256
from pathfm.patients import n_slides_of, slides_of_bag
from pathfm.targets import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pandas as pd

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings
    from pathfm.patients import Unit
    from pathfm.targets import Target

_OF_MODEL = ("protocol", "n_patients", "patient")


def require_together(folder: Path, metrics: Mapping[str, Any], predictions: pd.DataFrame, target: Target) -> None:
    """Refuses figures and scores of different runs, as after one of the two files was replaced.

    Raises:
        InputError: the counts of metrics.json are not those of predictions.csv.
    """
    rows = predictions[is_scored(predictions, target)]
    counts = target.counts(target.of_texts(list(rows["label"])))
    block, n_slides = metrics[metrics["unit"]], n_slides_of(list(rows["slide_id"]), metrics["unit"])
    differing = block and (block["n"], block["n_by_class"]) != (len(rows), counts)
    if differing or metrics["n_slides"] != n_slides:
        message = (
            f"{folder}: metrics.json and predictions.csv do not belong together ({metrics['n_slides']} scored slides there,"
            f" {n_slides} here); run the command that wrote them again"
        )
        raise InputError(message)


def require_scored(folder: Path, cohort: Cohort, predictions: pd.DataFrame, unit: Unit) -> None:
    """Refuses a cohort that lacks most of the slides that were scored: the report would tell of two.

    Raises:
        InputError: more than half of them are not in the table.
    """
    scored = [name for bag in predictions["slide_id"] for name in slides_of_bag(str(bag), unit)]
    listed = set(cohort.table["slide_id"])
    absent = [name for name in scored if name not in listed]
    if 2 * len(absent) > len(scored):
        message = (
            f"{folder / 'predictions.csv'} scores {absent[0]}, which the cohort table does not list ({len(absent)} of"
            f" {len(scored)} scored slides are not in it); pass --cohort the table that was scored, and --pseudonymise"
            " where that run had it"
        )
        raise InputError(message)


def require_of_model(
    folder: Path, metrics: Mapping[str, Any], target: Target, model: Path, final: Mapping[str, Any]
) -> None:
    """Refuses figures beside which a model would stand that never had them.

    Of an evaluation the digest tells. Those of a cross-validation belong to models of the folds, and the final model to
    them where it predicts the same and states no other figures; of those only what nobody adds to later is compared.

    Raises:
        InputError: it is another model, predicts something else, or states other figures.
    """
    if metrics["model_sha256"]:
        if metrics["model_sha256"] != model_sha256(model):
            message = (
                f"{folder / 'metrics.json'} holds figures of another model than --model {model}; pass --model the one that"
                " was evaluated, or run pathfm evaluate with this one"
            )
            raise InputError(message)
        return
    remedy = "pass --model the one of this study, or leave it out"
    mine = Task.of_facts(final["targets"]).targets
    if not any((one.name, one.kind, list(one.names)) == (target.name, target.kind, list(target.names)) for one in mine):
        message = (
            f"{model} does not predict {target.name} as {folder / 'metrics.json'} has it ({target.kind}:"
            f" {', '.join(target.names)}); {remedy}"
        )
        raise InputError(message)
    stated = (final["figures"] or {}).get(target.name)
    differing = [key for key in _OF_MODEL if stated and stated.get(key) != metrics[key]]
    if differing:
        message = f"{model} states other figures than {folder / 'metrics.json'} ({', '.join(differing)}); {remedy}"
        raise InputError(message)


def require_same_recipe(
    crossval: Path,
    model: Path | None,
    final: Mapping[str, Any] | None,
    wanted: dict[str, Any] | None,
    files: Iterable[tuple[Path, Embeddings]],
) -> dict[str, Any]:
    """The one recipe of the scores, the embeddings and the final model; {} where there are no embeddings.

    Args:
        crossval: what wrote the scores.
        model: the directory of the final model.
        final: its model.json.
        wanted: the recipe that a model at hand states, None where none is at hand: it is then that of the first file.
        files: the embeddings files and what they say.

    Raises:
        EmbeddingsError: a file is of another recipe.
        ModelError: the final model is.
    """
    for path, one in files:
        wanted = one.recipe if wanted is None else wanted
        require_recipe(path, one.recipe, wanted)
    differing = recipe_differences(final["recipe"], wanted) if final and wanted is not None else []
    if differing:
        message = (
            f"{model} was trained on another recipe than {crossval}: {differing[0]}; pass --model the one of this study"
        )
        raise ModelError(message)
    return wanted or {}
