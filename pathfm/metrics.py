"""Figures with their intervals: what a model's scores are worth, by slide and by patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]

RESAMPLES = 2000
FEW_PATIENTS = 10
_MAX_WEIGHTS = 4_000_000  # resampling weights held at a time: 32 MB


class Figure(TypedDict):
    """A value with its 95 % interval; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


UNKNOWN = Figure(value=None, low=None, high=None)


@dataclass(frozen=True)
class Scored:
    """Scored and labelled rows (slides, or patients), and whom they belong to.

    Attributes:
        labels: int64 (n,), index into the classes.
        probabilities: float64 (n, c), one column a class.
        patients: int64 (n,), which patient a row belongs to, index into `strata`.
        strata: int64 (p,), the class of each patient: what the resampling is stratified by.
        names: the patients' ids, p of them.
    """

    labels: Integers
    probabilities: Floats
    patients: Integers
    strata: Integers
    names: tuple[str, ...]


def cohort_figures(predictions: pd.DataFrame, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The blocks "slide", "patient", "interval" and "warnings" of metrics.json.

    AUROC is of the last class where there are two, else the mean over one-vs-rest. Balanced accuracy and F1 (of the last
    of two classes, else the macro mean) are at the most probable class, for two classes at 0.5. A patient's probability is the
    mean over its slides. Rows without a label or a probability are left out. A figure that cannot be computed is null
    and a warning says why.

    Args:
        predictions: a predictions table: columns patient_id, label and prob_<class> for each class.
        classes: the classes in order, the positive one of two last.
        seed: of the resampling.
    """
    slides = scored_slides(predictions, classes)
    patients = by_patient(slides)
    return {
        "slide": _block(slides, classes, seed),
        "patient": _block(patients, classes, seed),
        "interval": f"95 % bootstrap by patient, stratified by class, {RESAMPLES} resamples, seed {seed}",
        "warnings": _warnings(slides, patients, classes),
    }


def scored_slides(predictions: pd.DataFrame, classes: Sequence[str]) -> Scored:
    """The rows of a predictions table that have a known label and every probability, in the table's order."""
    rows = predictions[is_scored(predictions, classes)]
    labels = label_codes(rows["label"], classes)
    codes, names = pd.factorize(rows["patient_id"].astype(str), sort=True)
    strata = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(strata, codes, labels)
    return Scored(labels, _probabilities(rows, classes), codes.astype(np.int64), strata, tuple(names))


def is_scored(predictions: pd.DataFrame, classes: Sequence[str]) -> Booleans:
    """Which rows have a label out of the classes and every probability, bool (n,)."""
    finite = np.isfinite(_probabilities(predictions, classes)).all(axis=1)
    return np.asarray(finite & (label_codes(predictions["label"], classes) >= 0), dtype=bool)


def label_codes(labels: pd.Series[Any], classes: Sequence[str]) -> Integers:
    """Labels as indices into the classes, int64 (n,); -1 for an empty or unknown one. 1, 1.0 and "1" are one class."""
    text = labels.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    codes = text.map({name: code for code, name in enumerate(classes)}).fillna(-1)
    return np.asarray(codes, dtype=np.int64)


def by_patient(slides: Scored) -> Scored:
    """One row a patient: the mean of its slides' probabilities; its label is the highest of its slides' classes."""
    count = np.bincount(slides.patients, minlength=len(slides.strata))
    sums = np.zeros((len(slides.strata), slides.probabilities.shape[1]))
    np.add.at(sums, slides.patients, slides.probabilities)
    everyone = np.arange(len(slides.strata), dtype=np.int64)
    return Scored(slides.strata, sums / count[:, None], everyone, slides.strata, slides.names)


def auroc(labels: Integers, probabilities: Floats) -> float:
    """Area under the ROC curve, ties counted half; of the last of two classes, else the mean over one-vs-rest.

    Args:
        labels: int (n,), index into the classes.
        probabilities: float (n, c).

    Returns:
        NaN where a class has no row.
    """
    return float(_aurocs(labels, probabilities, np.ones((1, len(labels))))[0])


def balanced_accuracy(labels: Integers, probabilities: Floats) -> float:
    """Mean recall over the classes at the most probable class; NaN where a class has no row."""
    return float(_balanced_accuracies(labels, probabilities, np.ones((1, len(labels))))[0])


def f1(labels: Integers, probabilities: Floats) -> float:
    """F1 of the last of two classes, else the mean over the classes, at the most probable class; NaN where one has no row."""
    return float(_f1s(labels, probabilities, np.ones((1, len(labels))))[0])


def auroc_figure(scored: Scored, seed: int = 0) -> Figure:
    """AUROC with its 95 % interval by patient."""
    return _figures(scored, seed)["auroc"]


def paired_auroc_difference(first: Scored, second: Scored, seed: int = 0) -> Figure:
    """AUROC of the first minus that of the second over the same rows, with the interval of the same resamples."""
    value = auroc(first.labels, first.probabilities) - auroc(second.labels, second.probabilities)
    draws = [
        _aurocs(first.labels, first.probabilities, weights) - _aurocs(second.labels, second.probabilities, weights)
        for weights in resamples(first, seed)
    ]
    return figure_of(value, np.concatenate(draws))


def resamples(scored: Scored, seed: int) -> Iterator[Floats]:
    """Chunks (b, n) of how often each row stands in each of the resamples of patients within their classes.

    The stream of random numbers depends on the patients and the seed alone, so resamples pair across sets of scores and
    across slides and patients.
    """
    generator = np.random.default_rng(seed)
    rows = int(np.clip(_MAX_WEIGHTS // max(len(scored.labels), 1), 1, RESAMPLES))
    for start in range(0, RESAMPLES, rows):
        uniform = generator.random((min(rows, RESAMPLES - start), len(scored.strata)))
        yield _patient_counts(uniform, scored.strata)[:, scored.patients]


def figure_of(value: float, draws: Floats) -> Figure:
    """A value with the 2.5 and 97.5 percentiles of its resamples, float64 (b,); those that are not finite do not count."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return UNKNOWN
    low, high = np.percentile(draws, [2.5, 97.5])
    return Figure(value=float(value), low=float(low), high=float(high))


def ratio(a: Floats, b: Floats) -> Floats:
    """Divides a by b, float64; NaN where b is 0."""
    return np.asarray(np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0))


def _block(scored: Scored, classes: Sequence[str], seed: int) -> dict[str, Any]:
    counts = np.bincount(scored.labels, minlength=len(classes))
    n_by_class = {name: int(count) for name, count in zip(classes, counts, strict=True)}
    figures = _figures(scored, seed) if counts.all() and len(classes) > 1 else dict.fromkeys(_METRICS, UNKNOWN)
    return {**figures, "n": len(scored.labels), "n_by_class": n_by_class}


def _figures(scored: Scored, seed: int) -> dict[str, Figure]:
    everyone = np.ones((1, len(scored.labels)))
    draws: dict[str, list[Floats]] = {name: [] for name in _METRICS}
    for weights in resamples(scored, seed):
        for name, metric in _METRICS.items():
            draws[name].append(metric(scored.labels, scored.probabilities, weights))
    return {
        name: figure_of(float(metric(scored.labels, scored.probabilities, everyone)[0]), np.concatenate(draws[name]))
        for name, metric in _METRICS.items()
    }


def _patient_counts(uniform: Floats, strata: Integers) -> Floats:
    counts = np.zeros(uniform.shape)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        picks = (uniform[:, members] * len(members)).astype(np.int64)
        picks += np.arange(len(uniform))[:, None] * len(members)
        counts[:, members] = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
    return counts


def _aurocs(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    n_classes = probabilities.shape[1]
    ranked = [n_classes - 1] if n_classes == 2 else range(n_classes)
    each = [_binary_aurocs(labels == index, probabilities[:, index], weights) for index in ranked]
    return np.asarray(np.mean(each, axis=0), dtype=np.float64)


def _binary_aurocs(positive: Booleans, score: Floats, weights: Floats) -> Floats:
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


def _confusion(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    """Confusion matrices (b, true, predicted); equal probabilities go to the first class."""
    n_classes = probabilities.shape[1]
    cells = np.eye(n_classes * n_classes)[labels * n_classes + probabilities.argmax(axis=1)]
    return np.asarray(weights @ cells).reshape(-1, n_classes, n_classes)


def _balanced_accuracies(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    confusion = _confusion(labels, probabilities, weights)
    recall = ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2))
    return np.asarray(recall.mean(axis=1), dtype=np.float64)


def _f1s(labels: Integers, probabilities: Floats, weights: Floats) -> Floats:
    confusion = _confusion(labels, probabilities, weights)
    true = confusion.sum(axis=2)
    each = ratio(2 * np.diagonal(confusion, axis1=1, axis2=2), true + confusion.sum(axis=1))
    each[true == 0] = np.nan
    return np.asarray(each[:, 1] if each.shape[1] == 2 else each.mean(axis=1), dtype=np.float64)


_METRICS = {"auroc": _aurocs, "balanced_accuracy": _balanced_accuracies, "f1": _f1s}


def _probabilities(rows: pd.DataFrame, classes: Sequence[str]) -> Floats:
    columns = [pd.to_numeric(rows[f"prob_{name}"], errors="coerce") for name in classes]
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _warnings(slides: Scored, patients: Scored, classes: Sequence[str]) -> list[str]:
    counts = np.bincount(patients.labels, minlength=len(classes))
    return [*_mixed(slides, classes), *_thin(counts, classes), *_perfect(patients, counts)]


def _mixed(slides: Scored, classes: Sequence[str]) -> list[str]:
    mixed = np.unique(slides.patients[slides.labels != slides.strata[slides.patients]])
    if not len(mixed):
        return []
    names = ", ".join(f"{slides.names[i]} as {classes[slides.strata[i]]}" for i in mixed[:5])
    more = f" and {len(mixed) - 5} more" if len(mixed) > 5 else ""
    return [f"patients with slides of different classes count as the highest of them: {names}{more}"]


def _thin(counts: Integers, classes: Sequence[str]) -> list[str]:
    """Classes with nobody or few in them. Percentile intervals are too narrow in small samples."""
    nobody = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if 0 < count < FEW_PATIENTS]
    lines = [f"figures cannot be computed: no scored patient of class {', '.join(nobody)}"] if nobody else []
    if few:
        lines.append(
            f"fewer than {FEW_PATIENTS} patients in class {', '.join(few)}: the intervals are rough and too narrow"
        )
    return lines


def _perfect(patients: Scored, counts: Integers) -> list[str]:
    if not counts.all() or auroc(patients.labels, patients.probabilities) < 1.0:
        return []
    return [
        "every patient is ranked right, so resampling gives an AUROC interval without width; "
        f"with {int(counts.min())} patients in the smallest class the true value may well be lower"
    ]
