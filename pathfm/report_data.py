"""What a report says, gathered from the files that the other commands wrote; the words and the look are in report.html.j2."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.cohort import read_cohort
from pathfm.embeddings import find_embeddings, read_embeddings
from pathfm.errors import InputError
from pathfm.files import read_json
from pathfm.heatmap import HEATMAPS_CSV

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings

REASONS = {
    "no_label": "no label in the cohort",
    "no_tissue": "no tissue was found on it",
    "no_embeddings": "it has no embeddings, see the failures",
}
_CREDIT_COLUMNS = ("credit", "source")
_MAX_ROWS = 500


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows apart from its pictures.

    Attributes:
        metrics: metrics.json of the cross-validation.
        predictions: predictions.csv; ids and labels as text, probabilities as numbers.
        cohort: counts, and rows for the tables by class, site and scale.
        slides: one row a slide, the first 500.
        n_rows_hidden: slides that the table leaves out.
        heatmaps: rows of heatmaps.csv, wrong ones first; `folder` is where their pictures lie.
        heatmap_folder: that folder, None where no heatmaps were given.
        unusable: left-out and failed slides with their reasons.
        recipe: of the embeddings.
        versions: of the libraries at the time of extraction.
        model: model.json of the final model, or None.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame
    cohort: dict[str, Any]
    slides: list[dict[str, Any]]
    n_rows_hidden: int
    heatmaps: list[dict[str, Any]]
    heatmap_folder: Path | None
    unusable: list[dict[str, str]]
    recipe: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any] | None


def gather(
    crossval: Path, embeddings: Path, cohort: Path, heatmaps: Path | None, failures: Path | None, model: Path | None
) -> ReportData:
    """Reads what a report needs; embeddings files are trusted here, they were proven before a model learned from them.

    Raises:
        InputError: a file that the report cannot do without is missing.
        EmbeddingsError: an embeddings folder or file that cannot be used.
        CohortError: a cohort table that cannot be used.
    """
    metrics = read_json(_require(crossval / "metrics.json", "--crossval a folder that pathfm crossval wrote"))
    predictions = read_predictions(_require(crossval / "predictions.csv", "--crossval a folder that crossval wrote"))
    table = read_cohort(cohort)
    files = {slide_id: read_embeddings(path, "shape") for slide_id, path in find_embeddings(embeddings).items()}
    mine = {slide_id: one for slide_id, one in files.items() if slide_id in set(table.table["slide_id"])}
    some = next(iter(mine.values()), None)
    rows = _slide_rows(table, predictions, mine, metrics)
    failed = failures or _first_file(embeddings / "failures.csv", embeddings.parent / "failures.csv")
    return ReportData(
        metrics=metrics,
        predictions=predictions,
        cohort=_cohort_facts(table, mine, metrics),
        slides=rows[:_MAX_ROWS],
        n_rows_hidden=max(0, len(rows) - _MAX_ROWS),
        heatmaps=_heatmap_rows(heatmaps) if heatmaps else [],
        heatmap_folder=heatmaps,
        unusable=_unusable(metrics, failed),
        recipe=some.recipe if some else {},
        versions=some.versions if some else {},
        model=read_json(_require(model / "model.json", "--model a model directory")) if model else None,
    )


def read_predictions(path: Path) -> pd.DataFrame:
    """A predictions table: ids, labels and folds as text ("" where empty), probabilities as numbers (NaN where empty)."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in table.columns:
        if column.startswith("prob_"):
            table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def _require(path: Path, remedy: str) -> Path:
    if not path.is_file():
        message = f"{path} does not exist; pass {remedy}"
        raise InputError(message)
    return path


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _cohort_facts(cohort: Cohort, files: Mapping[str, Embeddings], metrics: Mapping[str, Any]) -> dict[str, Any]:
    table = cohort.table.assign(label=cohort.labels(metrics["label"]).to_numpy())
    tiles = np.array([len(one.coords) for one in files.values()] or [0])
    return {
        "name": cohort.source.name,
        "n_slides": len(table),
        "n_patients": table["patient_id"].nunique(),
        "n_sites": table.loc[table["site"] != "", "site"].nunique(),
        "classes": _by_class(table, metrics["classes"]),
        "sites": _by_site(table, metrics["classes"]),
        "scales": _by_scale(files.values()),
        "n_tiles": int(tiles.sum()),
        "tiles": {"least": int(tiles.min()), "median": float(np.median(tiles)), "most": int(tiles.max())},
        "n_failed_tiles": sum(len(one.failed) for one in files.values()),
        "credits": _credits(table),
    }


def _by_class(table: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Slides and patients of each class, then of the unlabelled."""
    rows = []
    for name in [*classes, ""]:
        part = table[table["label"] == name]
        if name or len(part):
            rows.append({"name": name, "slides": len(part), "patients": part["patient_id"].nunique()})
    return rows


def _by_site(table: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Slides of each site by class; a site with one class alone is what a confounder looks like."""
    names = sorted(set(table["site"]), key=lambda name: (name == "", name))
    counts = [[int(((table["site"] == site) & (table["label"] == name)).sum()) for name in classes] for site in names]
    rows = [
        {"name": site, "counts": row, "one_class": sum(n > 0 for n in row) == 1}
        for site, row in zip(names, counts, strict=True)
    ]
    return rows if any(names) else []


def _by_scale(files: Iterable[Embeddings]) -> list[dict[str, Any]]:
    table = pd.DataFrame([{"source": one.mpp_source, "mpp": one.mpp} for one in files], columns=["source", "mpp"])
    groups = table.groupby("source")["mpp"]
    return [
        {"source": str(source), "slides": len(mpp), "least": float(mpp.min()), "most": float(mpp.max())}
        for source, mpp in groups
    ]


def _credits(table: pd.DataFrame) -> list[str]:
    """Whom the cohort asks to credit: the values of its column credit, else source."""
    for column in _CREDIT_COLUMNS:
        if column in table.columns:
            return sorted(set(table[column]) - {""})
    return []


def _slide_rows(
    cohort: Cohort, predictions: pd.DataFrame, files: Mapping[str, Embeddings], metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
    scored = {str(row["slide_id"]): row for row in predictions.to_dict("records")}
    labels = cohort.labels(metrics["label"])
    rows = []
    for slide in cohort.table.to_dict("records"):
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
                "right": labels[slide_id] == predicted if predicted and labels[slide_id] else None,
                "fold": score.get("fold", ""),
                "n_tiles": len(file.coords) if file else None,
                "mpp": file.mpp if file else None,
                "reason": REASONS.get(str(score.get("reason", "")), str(score.get("reason", ""))),
            }
        )
    return rows


def _heatmap_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of heatmaps.csv with their verdict, wrong ones first, then those without a label, as drawn otherwise."""
    path = _require(folder / HEATMAPS_CSV, "--heatmaps a folder that pathfm heatmap wrote")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    order = {"wrong": 0, "": 1, "right": 2}
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    for row in rows:
        row["mark"] = "" if not row["label"] else "right" if row["label"] == row["predicted"] else "wrong"
    return sorted(rows, key=lambda row: order[row["mark"]])


def _unusable(metrics: Mapping[str, Any], failures: Path | None) -> list[dict[str, str]]:
    """Failed slides with the line that says what now, then the others that took no part. Folders are not shown: they name people."""
    rows = []
    if failures is not None and failures.is_file():
        with failures.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = Path(row["path"]).name
                told = row["message"].replace(row["path"], name)
                rows.append({"slide_id": row["slide_id"], "kind": "failed", "reason": row["reason"], "message": told})
    failed = {row["slide_id"] for row in rows}
    for left in metrics.get("left_out", []):
        if left["slide_id"] not in failed:
            message = REASONS.get(left["reason"], "")
            rows.append(
                {"slide_id": left["slide_id"], "kind": "left out", "reason": left["reason"], "message": message}
            )
    return rows
