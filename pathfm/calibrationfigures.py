"""How far probabilities can be taken at their word: Brier score and its parts, calibration error, slope and intercept.

The Brier score, the slope and the intercept are a `metrics.BinaryMetric`: they take which rows are positive, bool (n,),
their probabilities, float64 (n,), and resampling weights, float64 (b, n), and give one number a resample, float64 (b,).
All of them hang on how many rows are positive, so what is drawn anew is not stratified by it (`metrics.unstratified`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from pathfm.metrics import UNKNOWN, Figure, ratio, resamples

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats, Integers, Scored

BINS = 10
_LEAST_IN_BIN = 5
_CERTAIN = 1e-6  # what a probability of 0 or 1 counts as where a logarithm is taken of it
_STEPS, _CLOSE, _FAR = 50, 1e-8, 50.0


class Murphy(NamedTuple):
    """Parts of a Brier score, which is reliability - resolution + uncertainty; None without rows."""

    reliability: float | None
    resolution: float | None
    uncertainty: float | None


def brier(positive: Booleans, probability: Floats, weights: Floats) -> Floats:
    """Mean squared distance of the probability from what was so (Brier, Monthly Weather Review 78:1, 1950)."""
    return ratio(weights @ np.square(probability - positive), weights.sum(axis=1))


def murphy(positive: Booleans, probability: Floats) -> Murphy:
    """How much of the Brier score is miscalibration, what the ranking gains, and what the share of positives leaves open.

    Murphy, Journal of Applied Meteorology 12:595 (1973), over groups of rows that are said to be alike. Where every row has
    a probability of its own, bins would decide the parts and break their sum, so the groups are those that isotonic
    regression pools (Dimitriadis, Gneiting, Jordan, PNAS 118:e2016191118, 2021, which sums exactly and needs no choice).
    """
    if not len(positive):
        return Murphy(None, None, None)
    values, group, n = np.unique(probability, return_inverse=True, return_counts=True)
    share = np.bincount(group, weights=positive.astype(np.float64), minlength=len(values)) / n
    recalibrated = isotonic_regression(share, weights=n).x[group]
    base = float(positive.mean())
    at_best = float(np.square(recalibrated - positive).mean())
    uncertainty = base * (1 - base)
    return Murphy(float(np.square(probability - positive).mean()) - at_best, uncertainty - at_best, uncertainty)


def calibration_error(rows: Scored, seed: int = 0) -> Figure:
    """Expected calibration error in 10 bins of equal mass: the mean distance of what is said from what was so in a bin.

    Naeini, Cooper, Hauskrecht, AAAI 2015; of equal mass as in Nguyen, O'Connor, EMNLP 2015. Equal probabilities share a bin;
    fewer bins where there are fewer than 5 rows for each. In a sample it is above 0 however good the probabilities are, and
    more so in a resample of it, so percentiles would never reach down to 0. The lower limit is the value less what luck
    alone adds in 97.5 % of the resamples, which by the triangle inequality is no less than it added here; the upper limit
    is the percentile. Together they cover 95 % or more.

    Args:
        rows: truth 0 or 1, (n, 1), and probabilities, (n, 1).
        seed: of the resampling.
    """
    if not len(rows.truth):
        return UNKNOWN
    said, truth = rows.scores[:, 0], rows.truth[:, 0] > 0
    bins = mass_bins(said)
    surplus = np.eye(int(bins.max()) + 1)[bins] * (said - truth)[:, None]
    gap = surplus.mean(axis=0)
    drawn = np.concatenate([w @ surplus / w.sum(axis=1, keepdims=True) for w in resamples(rows, seed)])
    value, luck = float(np.abs(gap).sum()), np.quantile(np.abs(drawn - gap).sum(axis=1), 0.975)
    high = np.quantile(np.abs(drawn).sum(axis=1), 0.975)
    return Figure(value=value, low=max(value - float(luck), 0.0), high=max(float(high), value))


def mass_bins(probability: Floats, bins: int = BINS) -> Integers:
    """The bin of each row, int64 (n,) from 0: by the middle of its ranks, so that equal ones go together."""
    n = len(probability)
    wanted = max(1, min(bins, n // _LEAST_IN_BIN))
    values, group, counts = np.unique(probability, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return np.asarray((middle[group] * wanted / n).astype(np.int64)) if len(values) else np.zeros(0, dtype=np.int64)


def calibration_slope(positive: Booleans, probability: Floats, weights: Floats) -> Floats:
    """Slope of a logistic regression of what was so on the logit of the probability; 1 is right, below 1 too extreme.

    Cox, Biometrika 45:562 (1958); as in Van Calster et al., BMC Medicine 17:230 (2019). NaN where the two sides do not
    overlap and the slope has no end.
    """
    return _logistic(positive, probability, weights, free_slope=True)[:, 1]


def calibration_intercept(positive: Booleans, probability: Floats, weights: Floats) -> Floats:
    """Calibration in the large: the intercept of that regression with the slope fixed at 1; above 0 says too little.

    Van Calster et al., BMC Medicine 17:230 (2019). NaN where one side has no row.
    """
    return _logistic(positive, probability, weights, free_slope=False)[:, 0]


def _logistic(positive: Booleans, probability: Floats, weights: Floats, *, free_slope: bool) -> Floats:
    """Intercept and slope, float64 (b, 2), by Newton's method on the likelihood of each resample; NaN where it runs off."""
    x = logit(np.clip(probability, _CERTAIN, 1 - _CERTAIN))
    y = positive.astype(np.float64)
    found = np.tile([0.0, 1.0], (len(weights), 1))
    running = np.flatnonzero((weights @ y > 0) & (weights @ (1 - y) > 0))
    settled = np.zeros(len(weights), dtype=bool)
    for _ in range(_STEPS):
        if not len(running):
            break
        step = _newton_step(x, y, weights[running], found[running], free_slope=free_slope)
        found[running] += step
        far = ~(np.abs(found[running]) < _FAR).all(axis=1)
        close = (np.abs(step) < _CLOSE).all(axis=1) & ~far
        settled[running[close]] = True
        running = running[~close & ~far]
    return np.where(settled[:, None], found, np.nan)


def _newton_step(x: Floats, y: Floats, weights: Floats, found: Floats, *, free_slope: bool) -> Floats:
    said = expit(found[:, :1] + found[:, 1:] * x)
    surplus, bend = weights * (y - said), weights * said * (1 - said)
    a, c = surplus.sum(axis=1), bend.sum(axis=1)
    if not free_slope:
        return np.stack([_bounded(ratio(a, c)), np.zeros(len(a))], axis=1)
    b, d, e = surplus @ x, bend @ x, bend @ np.square(x)
    determinant = c * e - np.square(d)
    return np.stack([_bounded(ratio(e * a - d * b, determinant)), _bounded(ratio(c * b - d * a, determinant))], axis=1)


def _bounded(step: Floats) -> Floats:
    """A step that cannot leap over the place, which a first guess far from it would make it do."""
    return np.clip(step, -2.0, 2.0)
