"""The probes: kNN and a linear one answer a task from frozen embeddings, out of fold; and what the label alone answers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pathfm.probescores import Predicted, balanced_accuracy
from pathfm.probetasks import patients_by_class, stratified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pathfm.probetasks import Integers, Split, Task

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
    found_by = balanced_accuracy(confusions, np.ones((1, n_classes), bool))
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
