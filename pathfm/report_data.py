"""What a report says, gathered from the files that the other commands wrote; the words and the look are in templates/."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.cohortfigures import is_scored
from pathfm.embeddings import recipe_differences, require_recipe
from pathfm.errors import InputError, ModelError
from pathfm.failures import COLUMNS as FAILURE_COLUMNS
from pathfm.heatmap import HEATMAPS_CSV
from pathfm.joined import facts_of, find_caches, read_parts, slides_of
from pathfm.licences import Licence
from pathfm.model import model_sha256, read_description
from pathfm.patients import n_slides_of, slides_of_bag
from pathfm.proven import name_some
from pathfm.report_cohort import cohort_facts, credits_of, truth_of
from pathfm.results import find_results, read_metrics, read_predictions, target_of
from pathfm.scoring import require_slide
from pathfm.stage import StageStamp, read_stage
from pathfm.tables import read_table
from pathfm.targets import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings
    from pathfm.patients import Unit
    from pathfm.targets import Target

    _Models = tuple[dict[str, Any] | None, dict[str, Any] | None]

REASONS = {
    "no_label": "no label in the cohort",
    "no_tissue": "no tissue was found on it",
    "no_embeddings": "it has no embeddings, see the failures",
    "no_split": "the cohort's column split does not place it",
}
_HELD_OUT = ("test", "external")
_REMEDY = "pass --crossval a folder that pathfm crossval wrote, or run it again"
_HEATMAP_COLUMNS = ("slide_id", "target", "overlay", "gallery", "origin", "predicted", "label", "top_attention", "why")
_MAX_ROWS = 500
_OF_MODEL = ("protocol", "n_patients", "patient")
_UNKNOWN_STAGE = StageStamp("development", ("no model was handed to this report (--model)",), "", "")


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows apart from its pictures.

    Attributes:
        target: what was predicted.
        metrics: metrics.json of the cross-validation.
        predictions: predictions.csv; ids and labels as text, scores as numbers.
        n_repeats: of the cross-validation, over which the figures are means.
        cohort: counts, and rows for the tables by group, site and scale.
        slides: one row a slide, the first 500.
        n_rows_hidden: slides that the table leaves out.
        heatmaps: rows of heatmaps.csv, wrong ones first; `folder` is where their pictures lie.
        heatmap_folder: that folder, None where no heatmaps were given.
        unusable: left-out and failed slides with their reasons.
        recipe: of the embeddings.
        versions: of the libraries at the time of extraction.
        model: model.json of the final model, or None.
        stage: what it may be used for; a model that is not at hand is in development.
        licences: of the backbones, each as a model or an embeddings file says it.
    """

    target: Target
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    n_repeats: int
    cohort: dict[str, Any]
    slides: list[dict[str, Any]]
    n_rows_hidden: int
    heatmaps: list[dict[str, Any]]
    heatmap_folder: Path | None
    unusable: list[dict[str, str]]
    recipe: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any] | None
    stage: StageStamp
    licences: tuple[Licence, ...]


def gather(
    crossval: Path,
    embeddings: Sequence[Path],
    cohort: Cohort,
    heatmaps: Path | None,
    failures: Path | None,
    model: Path | None,
    credit: str | None = None,
    target: str | None = None,
) -> ReportData:
    """Reads what a report needs; embeddings files are trusted here, they were proven before a model learned from them.

    Of the cohort it takes ids, site and label, and the column `credit`; what else is known of the patients stays there.

    Raises:
        InputError: a file is missing, broken, of another format, or holds no held-out slides; several targets and none
            named, or heatmaps of another one; scores of another cohort, or figures of another model.
        UnknownNameError: no such target, or no such column.
        EmbeddingsError: an embeddings folder or file that cannot be used, or of another recipe than the scores.
        ModelError: a model directory that cannot be used, or of another recipe than the scores.
    """
    results = find_results(crossval, target, _REMEDY)
    metrics = read_metrics(results / "metrics.json", _REMEDY)
    asked = target_of(metrics)
    predictions = _held_out(results, read_predictions(results / "predictions.csv", asked, _REMEDY))
    _require_together(results, metrics, predictions, asked)
    _require_scored(results, cohort, predictions, metrics["unit"])
    final = read_description(model) if model else None
    if model and final:
        _require_of_model(results, metrics, asked, model, final)
    scored_by = _first_file(crossval / "folds" / "0" / "model.json", crossval / "model.json")
    scorer = read_description(scored_by.parent) if scored_by else None
    read = next((one["recipe"] for one in (scorer, final) if one), None)
    mine = _embeddings(embeddings, set(cohort.table["slide_id"]), read)
    recipe = _require_same_recipe(crossval, model, (scorer, final), mine)
    truth = truth_of(cohort, asked)
    labels = dict(zip(cohort.table["slide_id"], asked.texts(truth), strict=True))
    opened = {name: one for name, (_, one) in mine.items()}
    rows = _slide_rows(cohort, predictions, metrics["unit"], opened, labels, asked)
    failed = _failures(embeddings, failures)
    return ReportData(
        target=asked,
        metrics=metrics,
        predictions=predictions,
        n_repeats=_n_repeats(results),
        cohort=cohort_facts(cohort, [one for _, one in mine.values()], asked, truth)
        | {"credits": credits_of(cohort, credit)},
        slides=rows[:_MAX_ROWS],
        n_rows_hidden=max(0, len(rows) - _MAX_ROWS),
        heatmaps=_heatmap_rows(heatmaps, asked) if heatmaps else [],
        heatmap_folder=heatmaps,
        unusable=_unusable(metrics, failed),
        recipe=recipe,
        versions=next((one.versions for _, one in mine.values()), {}),
        model=final,
        stage=read_stage(model) if model else _UNKNOWN_STAGE,
        licences=_licences((final, scorer), [one for _, one in mine.values()]),
    )


def _n_repeats(folder: Path) -> int:
    path = folder / "repeats.csv"
    return int(read_table(path, ("repeat",), _REMEDY)["repeat"].nunique()) if path.is_file() else 1


def _held_out(folder: Path, predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of slides that their model had not seen; those of `train` also hold what it learned from."""
    if "split" not in predictions:
        return predictions
    rows = predictions[predictions["split"].isin(_HELD_OUT)]
    if rows.empty:
        message = (
            f"{folder / 'predictions.csv'} has no held-out rows (split test or external), and scores of slides that a model"
            " has seen say nothing; run pathfm crossval, or pathfm evaluate, and pass --crossval its folder"
        )
        raise InputError(message)
    return rows.reset_index(drop=True)


def _require_together(folder: Path, metrics: Mapping[str, Any], predictions: pd.DataFrame, target: Target) -> None:
    """Refuses figures and scores of different runs, as after one of the two files was replaced."""
    rows = predictions[is_scored(predictions, target)]
    counts = target.counts(target.of_texts(list(rows["label"])))
    unit = metrics["unit"]
    if (metrics[unit] and (metrics[unit]["n"], metrics[unit]["n_by_class"]) != (len(rows), counts)) or metrics[
        "n_slides"
    ] != n_slides_of(list(rows["slide_id"]), unit):
        message = (
            f"{folder}: metrics.json and predictions.csv do not belong together ({metrics['n_slides']} scored slides there,"
            f" {n_slides_of(list(rows['slide_id']), unit)} here); run the command that wrote them again"
        )
        raise InputError(message)


def _require_scored(folder: Path, cohort: Cohort, predictions: pd.DataFrame, unit: Unit) -> None:
    """Refuses a cohort that lacks most of the slides that were scored: the report would tell of two."""
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


def _require_of_model(
    folder: Path, metrics: Mapping[str, Any], target: Target, model: Path, final: Mapping[str, Any]
) -> None:
    """Refuses figures beside which a model would stand that never had them.

    Of an evaluation the digest tells. Those of a cross-validation belong to models of the folds, and the final model to
    them where it predicts the same and states no other figures; of those only what nobody adds to later is compared.
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


def _embeddings(
    folders: Sequence[Path], wanted: set[str], like: dict[str, Any] | None
) -> dict[str, tuple[Path, Embeddings]]:
    """Of each slide its file, the first of several, and what they say; without features."""
    mine = {}
    for name, its in slides_of(find_caches(folders, like)).items():
        if its and name in wanted:
            facts = facts_of(read_parts(its, "shape"))
            require_slide(its[0], facts, name)
            # a map holds a file descriptor, of which a process has few
            mine[name] = its[0], replace(facts, coords=np.array(facts.coords), failed=np.array(facts.failed))
    return mine


def _require_same_recipe(
    crossval: Path, model: Path | None, models: _Models, files: Mapping[str, tuple[Path, Embeddings]]
) -> dict[str, Any]:
    """The one recipe of the scores, the embeddings and the final model; {} where there are no embeddings."""
    scorer, final = models
    wanted = next((one["recipe"] for one in (scorer, final) if one), None)
    for path, one in files.values():
        wanted = one.recipe if wanted is None else wanted
        require_recipe(path, one.recipe, wanted)
    differing = recipe_differences(final["recipe"], wanted) if final and wanted is not None else []
    if differing:
        message = (
            f"{model} was trained on another recipe than {crossval}: {differing[0]}; pass --model the one of this study"
        )
        raise ModelError(message)
    return wanted or {}


def _licences(models: _Models, files: Iterable[Embeddings]) -> tuple[Licence, ...]:
    """Each once, those of the models first; two that differ over one backbone are both shown."""
    of_models = [Licence.of_facts(one) for model in models if model for one in model["licences"]]
    return tuple(dict.fromkeys(of_models + [one for file in files for one in file.licences]))


def _failures(embeddings: Sequence[Path], given: Path | None) -> pd.DataFrame | None:
    """The failures that were given, else those that lie beside any of the embeddings, else None; each row once."""
    beside = [_first_file(folder / "failures.csv", folder.parent / "failures.csv") for folder in embeddings]
    paths = [given] if given else list({path.resolve(): path for path in beside if path is not None}.values())
    remedy = "pass --failures the failures.csv that pathfm extract wrote, or run it again"
    tables = [read_table(path, FAILURE_COLUMNS, remedy)[list(FAILURE_COLUMNS)] for path in paths]
    return pd.concat(tables, ignore_index=True).drop_duplicates() if tables else None


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _slide_rows(
    cohort: Cohort,
    predictions: pd.DataFrame,
    unit: Unit,
    files: Mapping[str, Embeddings],
    labels: Mapping[str, str],
    target: Target,
) -> list[dict[str, Any]]:
    """A row a slide; where a bag is a patient, each of its slides has the patient's score."""
    scores = predictions.to_dict("records")
    scored = {name: row for row in scores for name in slides_of_bag(str(row["slide_id"]), unit)}
    rows = []
    listed = cohort.table
    if "split" in predictions:  # what a model learned from is no result
        listed = listed[listed["slide_id"].isin(scored)]
    for slide in listed.to_dict("records"):
        slide_id = str(slide["slide_id"])
        score, file = scored.get(slide_id, {}), files.get(slide_id)
        predicted = str(score.get("predicted", ""))
        probability = score.get(f"prob_{predicted}", np.nan)
        rows.append(
            {
                "slide_id": slide_id,
                "patient_id": slide["patient_id"],
                "site": slide["site"],
                "label": labels[slide_id],
                "predicted": predicted,
                "probability": float(probability) if np.isfinite(probability) else None,
                "mark": _mark(str(score.get("label", "")), predicted, target),
                "fold": score.get("fold", ""),
                "n_tiles": len(file.coords) if file else None,
                "mpp": file.mpp if file else None,
                "reason": REASONS.get(str(score.get("reason", "")), str(score.get("reason", ""))),
            }
        )
    return rows


def _mark(label: str, predicted: str, target: Target) -> str:
    """Whether it is the class that it should be; "" where that is not known, and of numbers and risks."""
    if not label or not predicted or not any(name.startswith("prob_") for name in target.names):
        return ""
    return "right" if label == predicted else "wrong"


def _heatmap_rows(folder: Path, target: Target) -> list[dict[str, Any]]:
    """Rows of heatmaps.csv with their verdict, wrong ones first, then those without a label, as drawn otherwise."""
    remedy = "pass --heatmaps a folder that pathfm heatmap wrote, or run it again"
    path = folder / HEATMAPS_CSV
    table = read_table(path, _HEATMAP_COLUMNS, remedy)
    others = set(table["target"]) - {"", target.name}
    if others:
        message = f"{path} shows {name_some(others)}, and the report is on {target.name}; pass --heatmaps those of {target.name}"
        raise InputError(message)
    order = {"wrong": 0, "": 1, "right": 2}
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    for row in rows:
        row["mark"] = _mark(row["label"], row["predicted"], target)
        row["order"] = order[row["mark"]]
    return sorted(rows, key=lambda row: int(row["order"]))


def _unusable(metrics: Mapping[str, Any], failures: pd.DataFrame | None) -> list[dict[str, str]]:
    """Failed slides with the line that says what now, then the others that took no part. Folders are not shown: they name people."""
    rows = []
    for row in [] if failures is None else failures.to_dict("records"):
        told = row["message"].replace(row["path"], Path(row["path"]).name) if row["path"] else row["message"]
        kind = "left out" if row["reason"] == "no tissue" else "failed"
        rows.append({"slide_id": row["slide_id"], "kind": kind, "reason": row["reason"], "message": told})
    failed = {row["slide_id"] for row in rows}
    for left in metrics["left_out"]:
        if left["slide_id"] not in failed:
            message = REASONS.get(left["reason"], "")
            rows.append(
                {"slide_id": left["slide_id"], "kind": "left out", "reason": left["reason"], "message": message}
            )
    return rows
