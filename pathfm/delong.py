"""AUROC with DeLong's interval, and the difference of two models on the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
from scipy.stats import norm, rankdata

from pathfm.metrics import UNKNOWN, Figure

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats

_Z = float(norm.ppf(0.975))
_ROUNDING = 1e-12  # a spread below it is none


class Paired(TypedDict):
    """The first minus the second with its 95 % interval, and the two-sided p value of no difference; None where unknown."""

    difference: Figure
    p: float | None


def delong(positive: Booleans, score: Floats) -> Figure:
    """AUROC with its 95 % interval by DeLong's variance, made on the logit scale so that it stays between 0 and 1.

    DeLong, DeLong, Clarke-Pearson, Biometrics 44:837 (1988), by midranks as in Sun, Xu, IEEE Signal Processing Letters
    21:1389 (2014), equations 5 to 9. Where that variance says nothing, since the two sides do not overlap, one is a lone
    row, or no row differs from the others of its side, the interval is that of `_by_counts`.

    Args:
        positive: bool (n,), which rows are; independent ones, such as patients.
        score: float64 (n,); or (repeats, n), of which the mean AUROC is meant, rows being the same in all.
    """
    if positive.all() or not positive.any():
        return UNKNOWN
    area, hits, misses = _components(positive, score)
    spread = float(np.sqrt(_variance(hits) + _variance(misses)))
    if not (0 < area < 1 and spread > _ROUNDING):
        return _by_counts(area, len(hits), len(misses))
    low, high = _expit(np.log(area / (1 - area)) + np.array([-_Z, _Z]) * spread / (area * (1 - area)))
    return Figure(value=area, low=float(low), high=float(high))


def delong_difference(positive: Booleans, first: Floats, second: Floats) -> Paired:
    """The AUROC of the first minus that of the second on the same rows, by DeLong's covariance, with its p value.

    Unknown where that covariance says nothing, as of two that both are perfect; of two that rank alike it is 0 for certain.

    Args:
        positive: bool (n,), which rows are; independent ones, such as patients.
        first: as `delong` takes scores.
        second: of the same rows; the number of repeats may differ.
    """
    if positive.all() or not positive.any():
        return Paired(difference=UNKNOWN, p=None)
    if np.array_equal(*(rankdata(np.atleast_2d(score), axis=1) for score in (first, second))):
        return Paired(difference=Figure(value=0.0, low=0.0, high=0.0), p=1.0)
    (area, hits, misses), (other, *rest) = _components(positive, first), _components(positive, second)
    spread = float(np.sqrt(_variance(hits - rest[0]) + _variance(misses - rest[1])))
    difference = area - other
    if not spread > _ROUNDING:  # none, or NaN of a lone row
        return Paired(difference=UNKNOWN, p=None)
    figure = Figure(value=difference, low=difference - _Z * spread, high=difference + _Z * spread)
    return Paired(difference=figure, p=float(2 * norm.sf(abs(difference) / spread)))


def _components(positive: Booleans, score: Floats) -> tuple[float, Floats, Floats]:
    """The AUROC, of each positive the share of negatives below it, and of each negative that of positives above it."""
    rows = np.atleast_2d(score)
    n_hits, n_misses = int(positive.sum()), int((~positive).sum())
    all_ranks = rankdata(rows, axis=1)
    above = (all_ranks[:, positive] - rankdata(rows[:, positive], axis=1)) / n_misses
    below = 1 - (all_ranks[:, ~positive] - rankdata(rows[:, ~positive], axis=1)) / n_hits
    return float(above.mean()), above.mean(axis=0), below.mean(axis=0)


def _variance(component: Floats) -> float:
    """Of the mean of a component; one row alone has no spread to tell it by."""
    return float(component.var(ddof=1)) / len(component) if len(component) > 1 else np.nan


def _by_counts(area: float, n_hits: int, n_misses: int) -> Figure:
    """The interval that the numbers of rows give: all values from which it is no more than 1.96 of their deviations away.

    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2, Statistics in
    Medicine 25:559 (2006), method 5: Hanley's and McNeil's variance with both numbers of rows replaced by their mean.
    """
    many = (n_hits + n_misses) / 2 - 1
    areas = np.linspace(0, 1, 100_001)
    variance = areas * (1 - areas) * (1 + many * (1 - areas) / (2 - areas) + many * areas / (1 + areas))
    inside = areas[np.square(areas - area) <= _Z**2 * variance / (n_hits * n_misses)]
    return Figure(value=area, low=float(inside.min()), high=float(inside.max()))


def _expit(value: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-value)))
