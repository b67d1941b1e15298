"""kNN and a linear probe on frozen embeddings: predictions out of fold, and figures with intervals by patient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pathfm.metrics import UNKNOWN, Figure, Scored, resamples
from pathfm.probetasks import patients_by_class, stratified

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pathfm.probetasks import Integers, Split, Task

    Floats = NDArray[np.float64]

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


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a probe answers, out of fold.

    Attributes:
        answers: int64 (n,), a class for each of the task's tiles; -1 for those in no test.
        chosen: for each split, the number of neighbours or C.
        unsettled: how many regressions stopped at their last iteration.
    """

    answers: Integers
    chosen: tuple[float, ...]
    unsettled: int


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
    unsettled = 0
    for train, test in task.splits:
        choice: float
        if probe == "knn":
            answers[test], choice = _by_neighbours(embeddings, task.truth, (train, test), neighbours)
        else:
            answers[test], choice, stopped = _by_regression(embeddings, task, (train, test), seed)
            unsettled += stopped
        chosen.append(choice)
    return Predicted(answers, tuple(chosen), unsettled)


def figures(task: Task, predicted: Predicted, seed: int = 0) -> dict[str, Figure]:
    """Balanced accuracy and macro F1 over the pooled tiles, with 95 % intervals over resamples of patients.

    Patients are drawn with all of their tiles, within the highest class that each has.
    """
    whole, drawn = _confusions(task, [predicted], seed)
    metrics: dict[str, Callable[[Floats], Floats]] = {"balanced_accuracy": _balanced_accuracy, "macro_f1": _macro_f1}
    return {name: _figure(metric(whole[0])[0], metric(drawn[0])) for name, metric in metrics.items()}


def difference(task: Task, first: Predicted, second: Predicted, seed: int = 0) -> Figure:
    """Balanced accuracy of the first minus that of the second, over the same tiles, splits and resamples of patients."""
    whole, drawn = _confusions(task, [first, second], seed)
    value = _balanced_accuracy(whole[0])[0] - _balanced_accuracy(whole[1])[0]
    return _figure(value, _balanced_accuracy(drawn[0]) - _balanced_accuracy(drawn[1]))


def _by_neighbours(embeddings: NDArray[Any], truth: Integers, split: Split, neighbours: int) -> tuple[Integers, int]:
    train, test = split
    k = min(neighbours, int(np.bincount(truth[train]).min()))
    model = KNeighborsClassifier(k, weights=_votes, metric="cosine", algorithm="brute")
    return model.fit(embeddings[train], truth[train]).predict(embeddings[test]), k


def _votes(distances: NDArray[Any]) -> NDArray[Any]:
    """A vote a neighbour; relative to the nearest of each row, so that none overflows."""
    nearest = distances.min(axis=1, keepdims=True)
    return np.asarray(np.exp((nearest - distances) / TEMPERATURE))


def _by_regression(embeddings: NDArray[Any], task: Task, split: Split, seed: int) -> tuple[Integers, float, int]:
    train, _ = split
    inner = _inner_splits(task.truth[train], task.patients[train], len(task.classes), seed)
    strength, stopped = _USUAL_C, 0
    if inner:
        strength, stopped = _best_strength(embeddings[train], task.truth[train], inner)
    answers, last = _regressed(embeddings, task.truth, split, [strength])
    return answers[0], strength, stopped + last


def _inner_splits(truth: Integers, patients: Integers, n_classes: int, seed: int) -> list[Split]:
    """Splits by patient of the training tiles; none where a class would have nobody left."""
    folds = min(_INNER_FOLDS, int(patients_by_class(truth, patients, n_classes).min()))
    if folds < 2:
        return []
    splits = stratified(truth, patients, folds, seed)
    return [split for split in splits if len(np.unique(truth[split[0]])) == n_classes]


def _best_strength(embeddings: NDArray[Any], truth: Integers, inner: Sequence[Split]) -> tuple[float, int]:
    """The C with the highest balanced accuracy over the inner splits; of equal ones the smallest."""
    scored = np.concatenate([test for _, test in inner])
    found = [_regressed(embeddings, truth, split, STRENGTHS) for split in inner]
    answers = np.concatenate([part for part, _ in found], axis=1)
    n_classes = int(truth.max()) + 1
    cells = truth[scored] * n_classes + answers
    confusions = np.stack([np.bincount(row, minlength=n_classes**2) for row in cells]).reshape(-1, n_classes, n_classes)
    best = int(np.nanargmax(_balanced_accuracy(confusions.astype(np.float64))))
    return STRENGTHS[best], sum(stopped for _, stopped in found)


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


def _confusions(task: Task, predictions: Sequence[Predicted], seed: int) -> tuple[list[Floats], list[Floats]]:
    """Confusion matrices (b, true, predicted) of each prediction: of all patients (b = 1), and of the resamples.

    Only tiles that every prediction has an answer for count. The resamples depend on the patients and the seed alone.
    """
    scored = np.all([one.answers >= 0 for one in predictions], axis=0)
    truth, n_classes = task.truth[scored], len(task.classes)
    codes, patients = np.unique(task.patients[scored], return_inverse=True)
    strata = np.zeros(len(codes), np.int64)
    np.maximum.at(strata, patients, truth)
    each = []
    for one in predictions:
        cells = np.zeros((len(codes), n_classes**2))
        np.add.at(cells, (patients, truth * n_classes + one.answers[scored]), 1)
        each.append(cells)
    everyone = Scored(strata, np.zeros((len(codes), 1)), np.arange(len(codes)), strata, ())
    draws: list[list[Floats]] = [[] for _ in predictions]
    for counts in resamples(everyone, seed):
        for cells, drawn in zip(each, draws, strict=True):
            drawn.append((counts @ cells).reshape(-1, n_classes, n_classes))
    return [cells.sum(axis=0).reshape(1, n_classes, n_classes) for cells in each], [np.concatenate(d) for d in draws]


def _balanced_accuracy(confusions: Floats) -> Floats:
    """Mean recall over the classes, float64 (b,); NaN where a class has no tile."""
    return np.asarray(_ratio(_hits(confusions), confusions.sum(axis=2)).mean(axis=1))


def _macro_f1(confusions: Floats) -> Floats:
    """Mean F1 over the classes, float64 (b,); NaN where a class has no tile."""
    true = confusions.sum(axis=2)
    each = _ratio(2 * _hits(confusions), true + confusions.sum(axis=1))
    each[true == 0] = np.nan
    return np.asarray(each.mean(axis=1))


def _hits(confusions: Floats) -> Floats:
    return np.diagonal(confusions, axis1=1, axis2=2)


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0))


def _figure(value: float, draws: Floats) -> Figure:
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return UNKNOWN
    low, high = np.percentile(draws, [2.5, 97.5])
    return Figure(value=float(value), low=float(low), high=float(high))
