"""The table of a probe: every backbone asked every question in both ways, with figures, differences and caveats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.metrics import FEW_PATIENTS, UNKNOWN
from pathfm.probetasks import LABEL, Task, label_task, new_sites_task, patients_by_class, site_task
from pathfm.probing import PROBES, Predicted, Probe, difference, figures, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMNS = (
    "backbone",
    "probe",
    "target",
    "balanced_accuracy",
    "low",
    "high",
    "chance",
    "macro_f1",
    "f1_low",
    "f1_high",
)
_COUNTS = ("n_classes", "n_tiles", "n_patients", "folds", "note")
_DIFFERENCES = ("backbone", "minus", "probe", "target", "value", "low", "high")


@dataclass(frozen=True, eq=False)
class Judged:
    """What came of it.

    Attributes:
        tiles: those that every backbone has an embedding of, with the column fold, of the label.
        results: one row a backbone, probe and target.
        differences: balanced accuracy of one backbone minus that of another, paired; one row a pair, probe and target.
        chosen: what each probe chose for each split: the number of neighbours, or C.
        classes: the possible answers, by target.
        notes: what somebody who reads the figures should know.
    """

    tiles: pd.DataFrame
    results: pd.DataFrame
    differences: pd.DataFrame
    chosen: list[dict[str, Any]]
    classes: dict[str, list[str]]
    notes: list[str]


def judge(
    tiles: pd.DataFrame,
    features: dict[str, NDArray[np.float16]],
    folds: int,
    neighbours: int,
    seed: int,
) -> Judged:
    """Asks every backbone every question, over the same tiles, splits and resamples of patients.

    Args:
        tiles: one row a tile: label, site, patient.
        features: float (n, dim) by backbone, NaN for a tile that could not be read.
        folds: parts that are scored in turn.
        neighbours: of the kNN.
        seed: of the splits and the resamples.

    Raises:
        InputError: as of `tasks_of`.
    """
    whole = np.all([np.isfinite(one).all(axis=1) for one in features.values()], axis=0)
    tiles = tiles[whole].reset_index(drop=True)
    rows, differences, chosen, notes = [], [], [], []
    classes: dict[str, list[str]] = {}
    for task in tasks_of(tiles, folds, seed):
        notes += _notes_of(task)
        classes[task.name] = list(task.classes)
        for kind in PROBES:
            answers = {}
            for name, embeddings in features.items() if task.splits else ():
                answers[name] = predict(task, embeddings[whole], kind, neighbours, seed)
                where = {"backbone": name, "probe": kind, "target": task.name}
                chosen.append(where | {"chosen": list(answers[name].chosen)})
                notes += _notes_on(where, answers[name], task)
            rows += [_row(name, kind, task, answers.get(name), seed) for name in features]
            differences += _differences(answers, kind, task, seed)
        if task.name == LABEL:
            tiles = tiles.assign(fold=_fold_of(task, len(tiles)))
    results = pd.DataFrame(rows, columns=[*_COLUMNS, *_COUNTS])
    order = {name: number for number, name in enumerate(features)}
    results = results.sort_values("backbone", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return Judged(tiles, results, pd.DataFrame(differences, columns=_DIFFERENCES), chosen, classes, notes)


def tasks_of(tiles: pd.DataFrame, folds: int, seed: int) -> list[Task]:
    """The questions: which label, which site, and which label on new sites.

    Raises:
        InputError: labels that cannot be told apart, such as one with fewer patients than folds.
    """
    return [label_task(tiles, folds, seed), site_task(tiles, folds, seed), new_sites_task(tiles)]


def _row(name: str, kind: Probe, task: Task, predicted: Predicted | None, seed: int) -> dict[str, Any]:
    found = figures(task, predicted, seed) if predicted else {"balanced_accuracy": UNKNOWN, "macro_f1": UNKNOWN}
    accuracy, f1 = found["balanced_accuracy"], found["macro_f1"]
    scored = np.concatenate([test for _, test in task.splits]) if task.splits else task.rows[:0]
    return {
        "backbone": name,
        "probe": kind,
        "target": task.name,
        "balanced_accuracy": _rounded(accuracy["value"]),
        "low": _rounded(accuracy["low"]),
        "high": _rounded(accuracy["high"]),
        "chance": _rounded(task.chance) if predicted else np.nan,
        "macro_f1": _rounded(f1["value"]),
        "f1_low": _rounded(f1["low"]),
        "f1_high": _rounded(f1["high"]),
        "n_classes": len(task.classes),
        "n_tiles": len(scored),
        "n_patients": len(np.unique(task.patients[scored])),
        "folds": len(task.splits),
        "note": task.why_not,
    }


def _differences(answers: dict[str, Predicted], kind: Probe, task: Task, seed: int) -> list[dict[str, Any]]:
    rows = []
    for first, second in combinations(answers, 2):
        figure = difference(task, answers[first], answers[second], seed)
        values = {name: _rounded(figure[name]) for name in ("value", "low", "high")}
        rows.append({"backbone": first, "minus": second, "probe": kind, "target": task.name, **values})
    return rows


def _notes_of(task: Task) -> list[str]:
    if task.why_not:
        return [f"{task.name}: {task.why_not}"]
    counts = patients_by_class(task.truth, task.patients, len(task.classes))
    few = [f"{name} ({count})" for name, count in zip(task.classes, counts, strict=True) if count < FEW_PATIENTS]
    if not few:
        return []
    return [
        f"{task.name}: fewer than {FEW_PATIENTS} patients of {', '.join(few)}: the intervals are rough and too narrow"
    ]


def _notes_on(where: dict[str, Any], predicted: Predicted, task: Task) -> list[str]:
    name = f"{where['backbone']}, {where['probe']}, {where['target']}"
    scored = predicted.answers >= 0
    notes = []
    if (predicted.answers[scored] == task.truth[scored]).all():
        notes.append(f"{name}: every tile is right, so the interval has no width; the true value may well be lower")
    if predicted.unsettled:
        notes.append(f"{name}: {predicted.unsettled} regressions stopped before they had settled")
    return notes


def _fold_of(task: Task, n_tiles: int) -> NDArray[np.int64]:
    folds = np.full(n_tiles, -1, np.int64)
    for number, (_, test) in enumerate(task.splits):
        folds[task.rows[test]] = number
    return folds


def _rounded(value: float | None) -> float:
    return float("nan") if value is None else round(value, 4)
