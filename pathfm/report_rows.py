"""Rows of the report's tables: the slides with their scores, the heatmaps, and what could not be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.errors import InputError
from pathfm.failures import COLUMNS as FAILURE_COLUMNS
from pathfm.heatmaprows import HEATMAPS_CSV
from pathfm.patients import slides_of_bag
from pathfm.proven import name_some
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings
    from pathfm.patients import Unit
    from pathfm.targets import Target

REASONS = {
    "no_label": "no label in the cohort",
    "no_tissue": "no tissue was found on it",
    "no_embeddings": "it has no embeddings, see the failures",
    "no_split": "the cohort's column split does not place it",
}
_HEATMAP_COLUMNS = ("slide_id", "target", "overlay", "gallery", "origin", "predicted", "label", "top_attention", "why")


def slide_rows(
    cohort: Cohort,
    predictions: pd.DataFrame,
    unit: Unit,
    files: Mapping[str, Embeddings],
    labels: Mapping[str, str],
    target: Target,
) -> list[dict[str, Any]]:
    """A row a slide; where a bag is a patient, each of its slides has the patient's score.

    Args:
        cohort: the slides; of scores that have a split those alone that were scored.
        predictions: the scores, a row a bag.
        unit: what a bag is.
        files: by slide what its embeddings file says.
        labels: by slide the label, as text.
        target: what was predicted.
    """
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


def heatmap_rows(folder: Path, target: Target) -> list[dict[str, Any]]:
    """Rows of heatmaps.csv with their verdict, wrong ones first, then those without a label, as drawn otherwise.

    Raises:
        InputError: heatmaps.csv is missing, broken or of another target.
    """
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


def unusable_rows(metrics: Mapping[str, Any], embeddings: Sequence[Path], given: Path | None) -> list[dict[str, str]]:
    """Failed slides with the line that says what now, then the others that took no part. Folders are not shown: they name people.

    Args:
        metrics: its metrics document.
        embeddings: folders beside which failures are looked for.
        given: failures.csv, which is then read alone; None where none was given.

    Raises:
        InputError: a list of failures is missing or broken.
    """
    failures, rows = _failures(embeddings, given), []
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


def _mark(label: str, predicted: str, target: Target) -> str:
    """Whether it is the class that it should be; "" where that is not known, and of numbers and risks."""
    if not label or not predicted or not target.gives_probabilities:
        return ""
    return "right" if label == predicted else "wrong"


def _failures(embeddings: Sequence[Path], given: Path | None) -> pd.DataFrame | None:
    """The failures that were given, else those that lie beside any of the embeddings, else None; each row once."""
    beside = [
        next((path for path in (folder / "failures.csv", folder.parent / "failures.csv") if path.is_file()), None)
        for folder in embeddings
    ]
    paths = [given] if given else list({path.resolve(): path for path in beside if path is not None}.values())
    remedy = "pass --failures the failures.csv that pathfm extract wrote, or run it again"
    tables = [read_table(path, FAILURE_COLUMNS, remedy)[list(FAILURE_COLUMNS)] for path in paths]
    return pd.concat(tables, ignore_index=True).drop_duplicates() if tables else None
