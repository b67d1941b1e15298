"""Figures with their intervals: the bootstrap over patients, and the figures of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Metric = Callable[[NDArray[np.float32], Floats, Floats], Floats]
"""A figure of labelled rows in each of b resamples, float64 (b,), NaN where it cannot be computed.

Its arguments are the truth, float32 (n, width), the scores, float64 (n, k), and the weights, float64 (b, n): how often
each row stands in each resample.
"""
BinaryMetric = Callable[[Booleans, Floats, Floats], Floats]
"""From which rows are positive, (n,), their scores, (n,), and weights, (b, n), to the figure in each resample, (b,)."""

RESAMPLES = 2000
FEW_PATIENTS = 10
_LEFT_OUT = 400  # patients, or groups of them, that are left out in turn
_ROUNDING = 1e-12
_LEAST_BEND = 0.1  # keeps a wild skew from turning an interval round
_MAX_WEIGHTS = 4_000_000  # resampling weights held at a time: 32 MB


class Figure(TypedDict):
    """A value with its 95 % interval; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


UNKNOWN = Figure(value=None, low=None, high=None)
SHAPE = dict.fromkeys(("value", "low", "high"), (float, None))
"""A `Figure` in the grammar of `tables.misfit`."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scored and labelled rows (slides, or patients), and whom they belong to.

    Attributes:
        truth: float32 (n, width), as the kind of target has it, without NaN.
        scores: float64 (n, k), as the kind of target has them, without NaN.
        patients: int64 (n,), which patient a row belongs to, index into `strata`.
        strata: int64 (p,), what the resampling of the patients is stratified by, such as their class.
        names: the patients' ids, p of them.
    """

    truth: NDArray[np.float32]
    scores: Floats
    patients: Integers
    strata: Integers
    names: tuple[str, ...]


def unstratified(scored: Scored) -> Scored:
    """The same rows, of whose patients any may be drawn: for figures that hang on how many of a class there are."""
    return replace(scored, strata=np.zeros_like(scored.strata))


def figures(repeats: Sequence[Scored], metrics: Mapping[str, Metric], seed: int = 0) -> dict[str, Figure]:
    """Figures with their 95 % intervals by patient, by the names of the metrics.

    Args:
        repeats: the same rows with the scores of each repeat of a cross-validation; one where nothing is repeated. Values
            are means over the repeats, and so is each resample, which draws the same patients in all of them.
        metrics: what to compute.
        seed: of the resampling.
    """
    draws: dict[str, list[Floats]] = {name: [] for name in metrics}
    for weights in resamples(repeats[0], seed):
        for name, metric in metrics.items():
            draws[name].append(_mean(repeats, metric, weights))
    return {
        name: figure_of(
            _value(repeats, metric),
            np.concatenate(draws[name]),
            acceleration(repeats[0], partial(_mean, repeats, metric)),
        )
        for name, metric in metrics.items()
    }


def difference(first: Sequence[Scored], second: Sequence[Scored], metric: Metric, seed: int = 0) -> Figure:
    """A figure of the first minus that of the second over the same rows, with the interval of the same resamples.

    Args:
        first: as `figures` takes it.
        second: the same rows in the same order; the number of repeats may differ.
        metric: what to compute.
        seed: of the resampling.
    """

    def both(weights: Floats) -> Floats:
        return _mean(first, metric, weights) - _mean(second, metric, weights)

    draws = np.concatenate([both(weights) for weights in resamples(first[0], seed)])
    return figure_of(_value(first, metric) - _value(second, metric), draws, acceleration(first[0], both))


def resamples(scored: Scored, seed: int) -> Iterator[Floats]:
    """Chunks (b, n) of how often each row stands in each of the resamples of patients within their strata.

    The stream of random numbers depends on the patients and the seed alone, so resamples pair across sets of scores and
    across slides and patients.
    """
    generator = np.random.default_rng(seed)
    rows = int(np.clip(_MAX_WEIGHTS // max(len(scored.truth), 1), 1, RESAMPLES))
    for start in range(0, RESAMPLES, rows):
        uniform = generator.random((min(rows, RESAMPLES - start), len(scored.strata)))
        yield _patient_counts(uniform, scored.strata)[:, scored.patients]


def figure_of(value: float, draws: Floats, skew: float = 0.0) -> Figure:
    """A value with the 95 % interval of its resamples, corrected for their bias and their skew.

    BCa: Efron, Better bootstrap confidence intervals, Journal of the American Statistical Association 82:171 (1987),
    equation 3.8. Plain percentiles of an AUROC near 1 miss it three times as often as they say on one side
    (docs/statistics.md has the counts); these do not, and like them they stay within what the figure can be.

    Where no resample differs (an AUROC of 1, a model with one score for everybody) the interval has no width. That is no
    certainty: the resamples then tell nothing of other patients, and who shows the figure has to say so.

    Args:
        value: of all rows.
        draws: of the resamples, float64 (b,); those that are not finite do not count.
        skew: what `acceleration` gives; 0 corrects for the bias alone.
    """
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return UNKNOWN
    equal = np.abs(draws - value) <= _ROUNDING * max(abs(value), 1.0)
    below = np.mean((draws < value) & ~equal) + np.mean(equal) / 2
    bias = norm.ppf(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    tails = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(draws, norm.cdf(bias + tails / np.maximum(1 - skew * tails, _LEAST_BEND)))
    return Figure(value=float(value), low=float(low), high=float(high))


def acceleration(scored: Scored, figure: Callable[[Floats], Floats]) -> float:
    """How fast the deviation of a figure changes with its value, from leaving out each patient in turn.

    Efron, Tibshirani, An introduction to the bootstrap (1993), equation 14.15, for strata as in section 14 of Davison,
    Hinkley, Bootstrap methods and their application (1997): those who stay stand for all of their stratum. Of more than 400
    patients as many groups are left out instead.

    Args:
        scored: the rows.
        figure: from weights (b, n) to the figure, (b,).
    """
    blocks = _blocks(scored.strata)
    rows = int(np.clip(_MAX_WEIGHTS // max(len(scored.truth), 1), 1, _LEFT_OUT))
    influence: list[float] = []
    for members, parts in blocks:
        found = [figure(_without(scored, members, parts[at : at + rows])) for at in range(0, len(parts), rows)]
        values = np.concatenate(found)
        stay = 1 - np.array([len(part) for part in parts]) / len(members)
        influence += list(stay * (values.mean() - values))
    pulls = np.array(influence)
    spread = np.square(pulls).sum() ** 1.5
    return float((pulls**3).sum() / (6 * spread)) if np.isfinite(spread) and spread > _ROUNDING**3 else 0.0


def ratio(a: Floats, b: Floats) -> Floats:
    """Divides a by b, float64; NaN where b is 0."""
    return np.asarray(np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0))


def auroc(truth: NDArray[np.float32], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve, ties counted half; of the last of two classes, else the mean over one-vs-rest.

    A `Metric` of classes: truth is the index of the class, (n, 1), and scores have a column a class. NaN where a class has
    no row.
    """
    return _over_classes(binary_auroc, truth, scores, weights)


def average_precision(truth: NDArray[np.float32], scores: Floats, weights: Floats) -> Floats:
    """Area under the precision-recall curve by steps; of the last of two classes, else the mean over one-vs-rest.

    A `Metric` as `auroc` is.
    """
    return _over_classes(binary_average_precision, truth, scores, weights)


def balanced_accuracy(truth: NDArray[np.float32], scores: Floats, weights: Floats) -> Floats:
    """Mean recall over the classes at the most probable class; NaN where a class has no row. A `Metric` as `auroc` is."""
    return mean_recall(confusion(truth[:, 0], scores.argmax(axis=1), scores.shape[1], weights))


def f1(truth: NDArray[np.float32], scores: Floats, weights: Floats) -> Floats:
    """F1 of the last of two classes, else the mean over the classes, at the most probable class; a `Metric` as `auroc` is."""
    matrix = confusion(truth[:, 0], scores.argmax(axis=1), scores.shape[1], weights)
    true = matrix.sum(axis=2)
    each = ratio(2 * np.diagonal(matrix, axis1=1, axis2=2), true + matrix.sum(axis=1))
    found = each[:, 1] if each.shape[1] == 2 else each.mean(axis=1)
    return np.asarray(np.where((true == 0).any(axis=1), np.nan, found), dtype=np.float64)


def binary_auroc(positive: Booleans, score: Floats, weights: Floats) -> Floats:
    """Weighted Mann-Whitney statistic of each row of weights (b, n): the share of pairs in order, ties half."""
    if not len(score):
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    weights, positive = weights[:, order], positive[order]
    ups = np.add.reduceat(weights * positive, starts, axis=1)
    downs = np.add.reduceat(weights * ~positive, starts, axis=1)
    in_order = (ups * (np.cumsum(downs, axis=1) - downs / 2)).sum(axis=1)
    return ratio(in_order, ups.sum(axis=1) * downs.sum(axis=1))


def binary_average_precision(positive: Booleans, score: Floats, weights: Floats) -> Floats:
    """The mean of the precision over steps of recall, float64 (b,), of which equal scores make one; weights (b, n)."""
    if not len(score):
        return np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) < 0, True])
    weights, positive = weights[:, order], positive[order]
    hits = np.cumsum(weights * positive, axis=1)[:, ends]
    asked = np.cumsum(weights, axis=1)[:, ends]
    precision = np.nan_to_num(ratio(hits, asked))
    gains = np.diff(hits, axis=1, prepend=0)
    return ratio((gains * precision).sum(axis=1), hits[:, -1])


def of_one(metric: BinaryMetric) -> Metric:
    """A figure of one yes/no question as a `Metric` of rows whose truth is 0 or 1, (n, 1), and that have one score."""
    return lambda truth, scores, weights: metric(truth[:, 0] > 0, scores[:, 0], weights)


def confusion(true: NDArray[np.float32], predicted: Integers, n_classes: int, weights: Floats) -> Floats:
    """Confusion matrices, float64 (b, true, predicted), of indices of classes (n,)."""
    cells = np.eye(n_classes * n_classes)[true.astype(np.int64) * n_classes + predicted]
    return np.asarray(weights @ cells).reshape(-1, n_classes, n_classes)


def mean_recall(matrix: Floats) -> Floats:
    """Mean recall over the classes, float64 (b,), of confusion matrices; NaN where a class has no row."""
    recall = ratio(np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2))
    return np.asarray(recall.mean(axis=1), dtype=np.float64)


def _over_classes(metric: BinaryMetric, truth: NDArray[np.float32], scores: Floats, weights: Floats) -> Floats:
    n_classes = scores.shape[1]
    asked = [n_classes - 1] if n_classes == 2 else range(n_classes)
    each = [metric(truth[:, 0] == index, scores[:, index], weights) for index in asked]
    return np.asarray(np.mean(each, axis=0), dtype=np.float64)


def _value(repeats: Sequence[Scored], metric: Metric) -> float:
    return float(_mean(repeats, metric, np.ones((1, len(repeats[0].truth))))[0])


def _mean(repeats: Sequence[Scored], metric: Metric, weights: Floats) -> Floats:
    each = [metric(scored.truth, scored.scores, weights) for scored in repeats]
    return np.asarray(np.mean(each, axis=0), dtype=np.float64)


def _blocks(strata: Integers) -> list[tuple[Integers, list[Integers]]]:
    """Of each stratum of two or more its patients, and the groups of them that are left out in turn."""
    found = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        groups = min(len(members), max(2, _LEFT_OUT * len(members) // len(strata)))
        if len(members) > 1:
            found.append((members, [members[at::groups] for at in range(groups)]))
    return found


def _without(scored: Scored, members: Integers, parts: Sequence[Integers]) -> Floats:
    """Weights of the rows, float64 (b, n), without each group of patients in turn, for whom the rest of a stratum stands."""
    counts = np.ones((len(parts), len(scored.strata)))
    for row, part in zip(counts, parts, strict=True):
        row[members] = len(members) / (len(members) - len(part))
        row[part] = 0
    return np.asarray(counts[:, scored.patients])


def _patient_counts(uniform: Floats, strata: Integers) -> Floats:
    counts = np.zeros(uniform.shape)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        picks = (uniform[:, members] * len(members)).astype(np.int64)
        picks += np.arange(len(uniform))[:, None] * len(members)
        counts[:, members] = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
    return counts
