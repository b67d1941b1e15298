"""Curves with their uncertainty: ROC with a band over patients, calibration with intervals a bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

from pathfm.metrics import resamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.metrics import Scored

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]


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


def reliability(positive: Booleans, probability: Floats, bins: int = 10) -> list[ReliabilityBin]:
    """Calibration in bins of equal mass, each with the Wilson interval of its observed share.

    Fewer bins where there are fewer than 5 rows for each; equal probabilities may fall into neighbouring bins.
    """
    order = np.argsort(probability, kind="stable")
    groups = np.array_split(order, max(1, min(bins, len(order) // 5))) if len(order) else []
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
    grid = np.linspace(0.0, 1.0, 101)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) < 0, True])
    draws = [
        _tpr_at(grid, positive[order], weights[order], ends)
        for chunk in resamples(scored, seed)
        for weights in chunk
        if (weights @ positive > 0) and (weights @ ~positive > 0)
    ]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return RocBand(grid, _tpr_at(grid, positive[order], np.ones(len(order)), ends), low, high)


def _reliability_bin(positive: Booleans, probability: Floats) -> ReliabilityBin:
    wilson = binomtest(int(positive.sum()), len(positive)).proportion_ci(method="wilson")
    return ReliabilityBin(
        float(probability.mean()), float(positive.mean()), float(wilson.low), float(wilson.high), len(positive)
    )


def _tpr_at(grid: Floats, positive: Booleans, weights: Floats, ends: Integers) -> Floats:
    """True positive rate at each false positive rate of the grid; rows are sorted by falling score, ties end at `ends`."""
    tpr = np.r_[0.0, np.cumsum(weights * positive)[ends]]
    fpr = np.r_[0.0, np.cumsum(weights * ~positive)[ends]]
    return np.asarray(np.interp(grid, fpr / fpr[-1], tpr / tpr[-1]))
