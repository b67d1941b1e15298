"""Curves with their uncertainty: ROC and precision-recall with a band over patients, calibration with intervals a bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathfm.calibrationfigures import BINS, mass_bins
from pathfm.metrics import resamples
from pathfm.proportions import proportion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pathfm.metrics import Scored

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]


_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a calibration curve: mean predicted probability, observed share with its Wilson interval, count."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RocBand:
    """A ROC curve on a grid of false positive rates, float64 (101,) each, with its pointwise 95 % bootstrap band."""

    fpr: Floats
    tpr: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class PrecisionRecallBand:
    """Precision on a grid of recalls, float64 (101,) each, with its pointwise 95 % bootstrap band.

    Attributes:
        recall: the grid, from 0 to 1.
        precision: where at least so much is recalled; steps, whose area is the average precision.
        low: of the band.
        high: likewise.
        prevalence: share of positives, which is the precision without knowledge.
    """

    recall: Floats
    precision: Floats
    low: Floats
    high: Floats
    prevalence: float


def reliability(positive: Booleans, probability: Floats, bins: int = BINS) -> list[ReliabilityBin]:
    """Calibration in the bins of equal mass of the calibration error, each with the Wilson interval of its observed share."""
    member = mass_bins(probability, bins)
    groups = [member == one for one in np.unique(member)]
    return [_reliability_bin(positive[rows], probability[rows]) for rows in groups]


def roc_band(positive: Booleans, score: Floats, scored: Scored, seed: int = 0) -> RocBand | None:
    """ROC curve with its pointwise 95 % band over resamples of patients; None where no row or every row is positive.

    Resamples that lack one of the sides have no curve, and are left out, as `metrics.figure_of` leaves them out.

    Args:
        positive: bool (n,), which rows are.
        score: float64 (n,), as `Target.outcomes` gives both.
        scored: the rows that these are of.
        seed: of the resampling.
    """
    if positive.all() or not positive.any():
        return None
    return RocBand(_GRID, *_banded(_tpr_at, positive, score, scored, seed, (positive, ~positive)))


def precision_recall_band(
    positive: Booleans, score: Floats, scored: Scored, seed: int = 0
) -> PrecisionRecallBand | None:
    """Precision-recall curve with its pointwise 95 % band, as `roc_band` has it; None where a side has no row.

    Between two thresholds there is no straight line (Davis, Goadrich, ICML 2006), so a recall has the precision of the
    first threshold that reaches it.
    """
    if positive.all() or not positive.any():
        return None
    curve = _banded(_precision_at, positive, score, scored, seed, (positive,))
    return PrecisionRecallBand(_GRID, *curve, float(positive.mean()))


def _banded(
    at: Callable[[Floats, Booleans, Floats, Integers], Floats],
    positive: Booleans,
    score: Floats,
    scored: Scored,
    seed: int,
    sides: Sequence[Booleans],
) -> tuple[Floats, Floats, Floats]:
    """A curve on the grid, and the ends of its band over those resamples that have rows of these sides."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) < 0, True])
    draws = [
        at(_GRID, positive[order], weights[order], ends)
        for chunk in resamples(scored, seed)
        for weights in chunk
        if all(weights @ side > 0 for side in sides)
    ]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return at(_GRID, positive[order], np.ones(len(order)), ends), low, high


def _reliability_bin(positive: Booleans, probability: Floats) -> ReliabilityBin:
    share = proportion(int(positive.sum()), len(positive))
    low, high = share["low"] or 0.0, share["high"] or 0.0  # a bin has rows
    return ReliabilityBin(float(probability.mean()), float(positive.mean()), low, high, len(positive))


def _tpr_at(grid: Floats, positive: Booleans, weights: Floats, ends: Integers) -> Floats:
    """True positive rate at each false positive rate of the grid; rows are sorted by falling score, ties end at `ends`."""
    tpr = np.r_[0.0, np.cumsum(weights * positive)[ends]]
    fpr = np.r_[0.0, np.cumsum(weights * ~positive)[ends]]
    return np.asarray(np.interp(grid, fpr / fpr[-1], tpr / tpr[-1]))


def _precision_at(grid: Floats, positive: Booleans, weights: Floats, ends: Integers) -> Floats:
    """Precision at each recall of the grid; rows are sorted by falling score, ties end at `ends`."""
    hits, asked = np.cumsum(weights * positive)[ends], np.cumsum(weights)[ends]
    # a recall of 0 is that of the first threshold that finds one; rounding must not ask for more than there is
    wanted = np.maximum(grid * hits[-1] * (1 - 1e-12), np.finfo(float).tiny)
    found = np.searchsorted(hits, wanted)
    return np.asarray(hits[found] / asked[found])
