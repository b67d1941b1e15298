"""Backbones judged: every one is asked every question by every probe, in one table with figures by patient and caveats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.metrics import RESAMPLES, UNKNOWN, Figure
from pathfm.probes import PROBES, predict, told_by_label
from pathfm.probescores import Figures, difference, figures
from pathfm.probetasks import SITE, tasks_of
from pathfm.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.probes import Probe
    from pathfm.probescores import Predicted
    from pathfm.probetasks import Integers, Task

_WHERE = ("target", "probe", "backbone")
_FIGURES = ["balanced_accuracy", "low", "high", "chance", "by_label", "macro_f1", "f1_low", "f1_high"]
_COLUMNS = ["backbone", "probe", "target", *_FIGURES, "n_classes", "n_tiles", "n_patients", "folds", "note"]
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
        scored_sites: the sites on which the label was scored by what was learned at others.
        notes: what somebody who reads the figures should know.
    """

    tiles: pd.DataFrame
    results: pd.DataFrame
    differences: pd.DataFrame
    chosen: list[dict[str, Any]]
    classes: dict[str, list[str]]
    scored_sites: list[str]
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
    tasks = tasks_of(tiles, folds, seed)
    answers = {
        (task.name, kind, name): predict(task, features[name][whole], kind, neighbours, seed)
        for task, kind, name in progress([*product(tasks, PROBES, features)], "judge", "probe")
        if task.splits
    }
    rows, differences, notes = [], [], []
    for task in tasks:
        by_label, caveats = _by_label(task, tiles["label"], seed)
        notes += [f"{task.name}: {note}" for note in (*task.notes, task.why_not, *caveats) if note]
        for kind in PROBES:
            asked = {name: answers.get((task.name, kind, name)) for name in features}
            for name, predicted in asked.items():
                row, caveats = _row(task, predicted, seed)
                rows.append({"backbone": name, "probe": kind, "target": task.name, "by_label": by_label} | row)
                notes += [f"{name}, {kind}, {task.name}: {note}" for note in caveats]
            differences += _differences(task, kind, {name: one for name, one in asked.items() if one}, seed)
    order = list(features)
    results = pd.DataFrame(rows, columns=_COLUMNS).sort_values(
        "backbone", key=lambda names: names.map(order.index), kind="stable", ignore_index=True
    )
    return Judged(
        tiles.assign(fold=_fold_of(tasks[0], len(tiles))),
        results,
        pd.DataFrame(differences, columns=_DIFFERENCES),
        [dict(zip(_WHERE, key, strict=True)) | {"chosen": list(one.chosen)} for key, one in answers.items()],
        {task.name: list(task.classes) for task in tasks},
        [site for task in tasks for site in task.scored],
        notes,
    )


def _row(task: Task, predicted: Predicted | None, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The columns of a probe, and the caveats of its figures."""
    found = figures(task, predicted, seed) if predicted else Figures(UNKNOWN, UNKNOWN, 0)
    tested = np.concatenate([task.rows[:0], *(test for _, test in task.splits)])
    row = {
        **_rounded(found.balanced_accuracy, "balanced_accuracy", "low", "high"),
        "chance": round(task.chance, 4) if predicted else np.nan,
        **_rounded(found.macro_f1, "macro_f1", "f1_low", "f1_high"),
        "n_classes": len(task.classes),
        "n_tiles": len(tested),
        "n_patients": len(np.unique(task.patients[tested])),
        "folds": len(task.splits),
        "note": task.why_not,
    }
    if predicted is None:
        return row, []
    right = (predicted.answers[tested] == task.truth[tested]).all()
    splits = len(task.splits)
    caveats = {
        "every tile is right, so the interval has no width; the true value may well be lower": right,
        f"{found.dropped} of {RESAMPLES} resamples lack a class and are left out of the intervals": found.dropped,
        f"{predicted.unsettled} regressions stopped before they had settled": predicted.unsettled,
        f"C is at the edge of its grid in {predicted.at_edge} of {splits} splits; one beyond may be better": predicted.at_edge,
    }
    return row, [what for what, holds in caveats.items() if holds]


def _rounded(figure: Figure, *columns: str) -> dict[str, float]:
    values = (figure["value"], figure["low"], figure["high"])
    return {name: np.nan if value is None else round(value, 4) for name, value in zip(columns, values, strict=True)}


def _by_label(task: Task, labels: pd.Series[str], seed: int) -> tuple[float, list[str]]:
    """How well the label alone tells the site, NaN of any other question; and a caveat where it does."""
    if task.name != SITE or not task.splits:
        return np.nan, []
    codes, _ = pd.factorize(labels.iloc[task.rows], sort=True)
    value = _rounded(figures(task, told_by_label(task, codes), seed).balanced_accuracy, "value", "low", "high")["value"]
    if not value > round(task.chance, 4):
        return value, []
    return value, [
        f"labels lean to sites: the label alone tells the site at {value:.2f} (chance {task.chance:.2f}), so"
        " a figure up to that may be the label's and not the site's"
    ]


def _differences(task: Task, kind: Probe, answers: dict[str, Predicted], seed: int) -> list[dict[str, Any]]:
    return [
        {"backbone": first, "minus": second, "probe": kind, "target": task.name}
        | _rounded(difference(task, answers[first], answers[second], seed), "value", "low", "high")
        for first, second in combinations(answers, 2)
    ]


def _fold_of(task: Task, n_tiles: int) -> Integers:
    folds = np.full(n_tiles, -1, np.int64)
    for number, (_, test) in enumerate(task.splits):
        folds[task.rows[test]] = number
    return folds
