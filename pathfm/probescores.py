"""Backbones judged: kNN and a linear probe on frozen embeddings, out of fold, with figures by patient and caveats."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pathfm.metrics import RESAMPLES, UNKNOWN, Figure, Scored, figure_of, ratio, resamples
from pathfm.probetasks import SITE, patients_by_class, stratified, tasks_of
from pathfm.progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pathfm.probetasks import Integers, Split, Task

    Floats = NDArray[np.float64]
    Booleans = NDArray[np.bool_]

Probe = Literal["knn", "linear"]
PROBES: tuple[Probe, ...] = get_args(Probe)

# Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021: k = 20, votes weighed by
# exp(cosine / 0.07).
TEMPERATURE = 0.07
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The C of the logistic regression is one of these, chosen on the training patients of each split alone."""
_USUAL_C = 1e-2  # where the training patients are too few to choose
_INNER_FOLDS = 3
_MAX_ITERATIONS = 2000
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
        notes += [f"{task.name}: {note}" for note in (*task.notes, *([task.why_not] if task.why_not else []))]
        by_label = np.nan
        if task.name == SITE and task.splits:
            by_label, note = _by_label(task, tiles["label"], seed)
            notes += note
        for kind in PROBES:
            asked = {name: answers.get((task.name, kind, name)) for name in features}
            for name, predicted in asked.items():
                row, row_notes = _row(task, predicted, seed)
                where = {"backbone": name, "probe": kind, "target": task.name}
                rows.append(where | row | {"by_label": by_label})
                notes += [f"{name}, {kind}, {task.name}: {note}" for note in row_notes]
            differences += _differences(task, kind, {name: one for name, one in asked.items() if one}, seed)
    order = {name: number for number, name in enumerate(features)}
    results = pd.DataFrame(rows).sort_values(
        "backbone", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )
    return Judged(
        tiles.assign(fold=_fold_of(tasks[0], len(tiles))),
        results[_COLUMNS],
        pd.DataFrame(differences, columns=_DIFFERENCES),
        [dict(zip(_WHERE, key, strict=True)) | {"chosen": list(one.chosen)} for key, one in answers.items()],
        {task.name: list(task.classes) for task in tasks},
        [site for task in tasks for site in task.scored],
        notes,
    )


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a probe answers, out of fold.

    Attributes:
        answers: int64 (n,), a class for each of the task's tiles; -1 for those in no test.
        chosen: for each split, the number of neighbours or C.
        unsettled: how many regressions stopped at their last iteration.
        at_edge: for how many splits the smallest or the largest C was better than its neighbour.
    """

    answers: Integers
    chosen: tuple[float, ...] = ()
    unsettled: int = 0
    at_edge: int = 0


def predict(task: Task, features: NDArray[Any], probe: Probe, neighbours: int = 20, seed: int = 0) -> Predicted:
    """Answers a task out of fold; every choice is made on the training side of the split.

    knn: cosine of the embeddings as they are, `neighbours` of them, or as many as the smallest class has training tiles.
    linear: standardised by the training tiles; logistic regression (L2, classes balanced).

    Args:
        task: with splits.
        features: float (m, dim), one row for each row of the table of tiles.
        probe: "knn" or "linear".
        neighbours: for knn.
        seed: of the inner splits.
    """
    embeddings = np.asarray(features[task.rows], np.float32)
    answers = np.full(len(task.rows), -1, np.int64)
    chosen: list[float] = []
    unsettled = at_edge = 0
    for train, test in task.splits:
        choice: float
        if probe == "knn":
            answers[test], choice = _by_neighbours(embeddings, task.truth, (train, test), neighbours)
        else:
            answers[test], choice, stopped, edge = _by_regression(embeddings, task, (train, test), seed)
            unsettled += stopped
            at_edge += edge
        chosen.append(choice)
    return Predicted(answers, tuple(chosen), unsettled, at_edge)


@dataclass(frozen=True, eq=False)
class Figures:
    """What the answers to a task are worth.

    Attributes:
        balanced_accuracy: mean recall over the classes.
        macro_f1: mean F1 over the classes.
        dropped: resamples without any tile of some class, which the intervals leave out.
    """

    balanced_accuracy: Figure
    macro_f1: Figure
    dropped: int


def figures(task: Task, predicted: Predicted, seed: int = 0) -> Figures:
    """Figures over the pooled tiles of a group, the mean over groups, with 95 % intervals over resamples of patients.

    Patients are drawn with all of their tiles, within the last group and highest class that each has. Of a group the
    classes that it has tiles of count.
    """
    whole, (drawn,) = _confusions(task, [predicted], seed)
    there = whole[0].sum(axis=2) > 0
    accuracies = _balanced_accuracy(drawn, there)
    return Figures(
        figure_of(_balanced_accuracy(whole, there)[0], accuracies),
        figure_of(_macro_f1(whole, there)[0], _macro_f1(drawn, there)),
        int(np.isnan(accuracies).sum()),
    )


def difference(task: Task, first: Predicted, second: Predicted, seed: int = 0) -> Figure:
    """Balanced accuracy of the first minus that of the second, over the same tiles, splits and resamples of patients."""
    whole, drawn = _confusions(task, [first, second], seed)
    there = whole[0].sum(axis=2) > 0
    values = _balanced_accuracy(whole, there)
    return figure_of(values[0] - values[1], _balanced_accuracy(drawn[0], there) - _balanced_accuracy(drawn[1], there))


def told_by_label(task: Task, labels: Integers) -> Predicted:
    """The site of a tile as its label alone tells it, out of fold: where that label is most common among its tiles.

    Args:
        task: which site.
        labels: int64 (n,), the label of each of its tiles, 0 to c - 1.
    """
    answers = np.full(len(task.rows), -1, np.int64)
    for train, test in task.splits:
        counts = np.zeros((int(labels.max()) + 1, len(task.classes)))
        np.add.at(counts, (labels[train], task.truth[train]), 1)
        answers[test] = (counts / counts.sum(axis=0)).argmax(axis=1)[labels[test]]
    return Predicted(answers)


def _by_neighbours(embeddings: NDArray[Any], truth: Integers, split: Split, neighbours: int) -> tuple[Integers, int]:
    train, test = split
    k = min(neighbours, int(np.bincount(truth[train]).min()))
    model = KNeighborsClassifier(k, weights=_votes, metric="cosine", algorithm="brute")
    return model.fit(embeddings[train], truth[train]).predict(embeddings[test]), k


def _votes(distances: NDArray[Any]) -> NDArray[Any]:
    """A vote a neighbour; relative to the nearest of each row, so that none overflows."""
    nearest = distances.min(axis=1, keepdims=True)
    return np.asarray(np.exp((nearest - distances) / TEMPERATURE))


def _by_regression(embeddings: NDArray[Any], task: Task, split: Split, seed: int) -> tuple[Integers, float, int, bool]:
    train, _ = split
    inner = _inner_splits(task.truth[train], task.patients[train], len(task.classes), seed)
    strength, stopped, edge = _USUAL_C, 0, False
    if inner:
        strength, stopped, edge = _best_strength(embeddings[train], task.truth[train], inner)
    answers, last = _regressed(embeddings, task.truth, split, [strength])
    return answers[0], strength, stopped + last, edge


def _inner_splits(truth: Integers, patients: Integers, n_classes: int, seed: int) -> list[Split]:
    """Splits by patient of the training tiles; none where one of them would leave a class with nobody to learn from."""
    folds = min(_INNER_FOLDS, int(patients_by_class(truth, patients, n_classes).min()))
    if folds < 2:
        return []
    splits = stratified(truth, patients, folds, seed)
    return list(splits) if all(len(np.unique(truth[train])) == n_classes for train, _ in splits) else []


def _best_strength(embeddings: NDArray[Any], truth: Integers, inner: Sequence[Split]) -> tuple[float, int, bool]:
    """The C with the highest balanced accuracy over the inner splits, which score every tile; of equal ones the smallest."""
    scored = np.concatenate([test for _, test in inner])
    found = [_regressed(embeddings, truth, split, STRENGTHS) for split in inner]
    answers = np.concatenate([part for part, _ in found], axis=1)
    n_classes = int(truth.max()) + 1
    cells = truth[scored] * n_classes + answers
    confusions = np.stack([np.bincount(row, minlength=n_classes**2) for row in cells]).astype(np.float64)
    confusions = confusions.reshape(-1, 1, n_classes, n_classes)
    found_by = _balanced_accuracy(confusions, np.ones((1, n_classes), bool))
    best = int(found_by.argmax())
    edge = best == len(STRENGTHS) - 1 or (best == 0 and bool(found_by[0] > found_by[1]))
    return STRENGTHS[best], sum(stopped for _, stopped in found), edge


def _regressed(
    embeddings: NDArray[Any], truth: Integers, split: Split, strengths: Sequence[float]
) -> tuple[Integers, int]:
    """Answers for the test tiles, one row a strength, and how many fits stopped at their last iteration."""
    train, _ = split
    scaler = StandardScaler().fit(embeddings[train].astype(np.float64))
    known, asked = (scaler.transform(embeddings[some].astype(np.float64)) for some in split)
    # from weak to strong: each fit starts where the one before ended
    model = LogisticRegression(class_weight="balanced", max_iter=_MAX_ITERATIONS, warm_start=True)
    answers, stopped = [], 0
    for strength in strengths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.set_params(C=strength).fit(known, truth[train])
        stopped += any(issubclass(one.category, ConvergenceWarning) for one in caught)
        answers.append(model.predict(asked))
    return np.stack(answers), stopped


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
    codes, _ = pd.factorize(labels.iloc[task.rows], sort=True)
    value = _rounded(figures(task, told_by_label(task, codes), seed).balanced_accuracy, "value", "low", "high")["value"]
    if not value > round(task.chance, 4):
        return value, []
    return value, [
        f"{task.name}: labels lean to sites: the label alone tells the site at {value:.2f} (chance {task.chance:.2f}), so"
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


def _confusions(task: Task, predictions: Sequence[Predicted], seed: int) -> tuple[Floats, list[Floats]]:
    """Confusion matrices (b, group, true, predicted): of all patients, b predictions; and of the resamples, of each.

    Only tiles that every prediction has an answer for count. The resamples depend on the patients and the seed alone.
    """
    scored = np.all([one.answers >= 0 for one in predictions], axis=0)
    truth, n_classes = task.truth[scored], len(task.classes)
    names, groups = np.unique(task.groups[scored], return_inverse=True)
    codes, patients = np.unique(task.patients[scored], return_inverse=True)
    shape = (-1, len(names), n_classes, n_classes)
    strata = np.zeros(len(codes), np.int64)
    np.maximum.at(strata, patients, groups * n_classes + truth)
    each = np.zeros((len(predictions), len(codes), len(names) * n_classes**2))
    for cells, one in zip(each, predictions, strict=True):
        np.add.at(cells, (patients, (groups * n_classes + truth) * n_classes + one.answers[scored]), 1)
    nothing = np.zeros((len(codes), 0))
    everyone = Scored(nothing.astype(np.float32), nothing, np.arange(len(codes)), strata, ())
    draws: list[list[Floats]] = [[] for _ in predictions]
    for counts in resamples(everyone, seed):
        for cells, drawn in zip(each, draws, strict=True):
            drawn.append((counts @ cells).reshape(shape))
    return each.sum(axis=1).reshape(shape), [np.concatenate(drawn) for drawn in draws]


def _balanced_accuracy(confusions: Floats, there: Booleans) -> Floats:
    """Recall, float64 (b,); see `_mean`."""
    return _mean(ratio(_hits(confusions), confusions.sum(axis=3)), there)


def _macro_f1(confusions: Floats, there: Booleans) -> Floats:
    """F1, float64 (b,); see `_mean`."""
    true = confusions.sum(axis=3)
    each = ratio(2 * _hits(confusions), true + confusions.sum(axis=2))
    each[true == 0] = np.nan
    return _mean(each, there)


def _mean(values: Floats, there: Booleans) -> Floats:
    """Mean over the classes that are there, bool (group, class), then over groups; NaN where one of them has no value."""
    return np.asarray((np.where(there, values, 0).sum(axis=2) / there.sum(axis=1)).mean(axis=1))


def _hits(confusions: Floats) -> Floats:
    return np.diagonal(confusions, axis1=2, axis2=3)
