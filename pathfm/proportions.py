"""Shares of a count with their intervals, what may be claimed of them, and predictive values where a disease is rarer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from scipy.stats import binomtest

from pathfm.metrics import SHAPE as FIGURE_SHAPE
from pathfm.metrics import UNKNOWN, Figure, acceleration, figure_of, ratio, resamples

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats, Scored

_NUMBER = (float, None)
SHAPE = {"k": int, "n": int} | dict.fromkeys(("value", "low", "high", "exact_low", "exact_high"), _NUMBER)
"""A `Proportion` in the grammar of `tables.misfit`."""
PREDICTIVE_SHAPE = {"prevalence": float, "ppv": FIGURE_SHAPE, "npv": FIGURE_SHAPE}
"""What `predictive_values` gives, in the same grammar."""

_CLAIMED = 0.99  # a share from which on somebody will round it up to certainty
_BOUND = 0.999


class Proportion(TypedDict):
    """k of n; Wilson's 95 % interval in low and high, that of Clopper and Pearson in exact_*; None where n is 0.

    Of rows that hang together, such as slides of a patient, low and high come from resamples of patients and there is no
    exact interval.
    """

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None
    exact_low: float | None
    exact_high: float | None


class PredictiveValues(TypedDict):
    """How often the two answers are right where a share `prevalence` of the patients has it."""

    prevalence: float
    ppv: Figure
    npv: Figure


def proportion(k: int, n: int, confidence: float = 0.95) -> Proportion:
    """The share of independent rows, such as patients, of which something is so.

    Intervals: Wilson, Journal of the American Statistical Association 22:209 (1927), which covers what it says on the
    average over shares; Clopper, Pearson, Biometrika 26:404 (1934), which never covers less and mostly more.

    Args:
        k: rows of which it is so, from 0 to n.
        n: rows; 0 gives an unknown share.
        confidence: of both intervals.
    """
    if n == 0:
        return Proportion(k=0, n=0, value=None, low=None, high=None, exact_low=None, exact_high=None)
    test = binomtest(int(k), int(n))
    wilson, exact = (test.proportion_ci(confidence, method) for method in ("wilson", "exact"))
    return Proportion(
        k=int(k),
        n=int(n),
        value=k / n,
        low=float(wilson.low),
        high=float(wilson.high),
        exact_low=float(exact.low),
        exact_high=float(exact.high),
    )


def clustered_proportion(hit: Booleans, asked: Booleans, scored: Scored, seed: int = 0) -> Proportion:
    """The share of hits among the rows that are asked, where rows of a patient hang together.

    The interval is that of resamples of patients. Where all rows are alike no resample differs, and it is Wilson's as if
    each patient were one row.

    Args:
        hit: bool (n,), of which rows it is so.
        asked: bool (n,), the rows that count.
        scored: the rows that these are of.
        seed: of the resampling.
    """
    k, n = int((hit & asked).sum()), int(asked.sum())
    if n == 0:
        return proportion(0, 0)
    if k in (0, n):
        n_patients = len(np.unique(scored.patients[asked]))
        wilson = proportion(n_patients if k else 0, n_patients)
        low, high = wilson["low"], wilson["high"]
    else:

        def share(weights: Floats) -> Floats:
            return ratio(weights @ (hit & asked).astype(np.float64), weights @ asked.astype(np.float64))

        draws = np.concatenate([share(weights) for weights in resamples(scored, seed)])
        figure = figure_of(k / n, draws, acceleration(scored, share))
        low, high = figure["low"], figure["high"]
    return Proportion(k=k, n=n, value=k / n, low=low, high=high, exact_low=None, exact_high=None)


def negatives_needed(bound: float, confidence: float = 0.95) -> int:
    """The fewest rows without a single miss whose exact two-sided interval has this lower bound: 3,688 for 0.999.

    Of n without a miss Clopper's and Pearson's lower limit is (alpha / 2) ** (1 / n).
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(bound))


def claim_note(specificity: Proportion) -> str | None:
    """What the number of negatives allows to say of a specificity that looks like certainty; None where none is needed.

    That is below 99 %, where nobody claims it, and where the lower limit itself reaches 99.9 %.
    """
    value, n = specificity["value"], specificity["n"]
    low = specificity["low"] if specificity["exact_low"] is None else specificity["exact_low"]
    if value is None or low is None or value < _CLAIMED or low >= _BOUND:
        return None
    misses = n - specificity["k"]
    return (
        f"{misses or 'none'} of {n:,} negatives {'were' if misses > 1 else 'was'} called positive, which shows a specificity"
        f" of at least {_percent(low)} (95 % interval); a lower bound of 99.9 % takes {negatives_needed(_BOUND):,} negatives"
        f" without a false positive, one of 99 % takes {negatives_needed(_CLAIMED):,}"
    )


def predictive_values(sensitivity: Proportion, specificity: Proportion, prevalence: float) -> PredictiveValues:
    """Predictive values where a share of the patients has it that need not be that of the cohort.

    By Bayes they follow from the prevalence and a likelihood ratio of two independent shares. Its interval joins those
    of the two on the scale of logarithms (Zou, Donner, Construction of confidence limits about effect measures, Statistics
    in Medicine 27:1693, 2008), so that it takes whatever made them: Wilson's for patients, resamples for slides.

    Args:
        sensitivity: share of the positives that are called positive.
        specificity: share of the negatives that are called negative.
        prevalence: share of patients who have it, between 0 and 1.
    """
    hit, miss = _limits(sensitivity), _limits(specificity)
    ppv = npv = UNKNOWN
    if hit is not None and miss is not None:
        odds = prevalence / (1 - prevalence)
        ppv = _right(_ratio_limits(hit, _rest(miss)), odds)
        npv = _right(_ratio_limits(miss, _rest(hit)), 1 / odds)
    return PredictiveValues(prevalence=prevalence, ppv=ppv, npv=npv)


_Limits = tuple[float, float, float]


def _limits(share: Proportion) -> _Limits | None:
    """Value, low and high."""
    if share["value"] is None or share["low"] is None or share["high"] is None:
        return None
    return share["value"], share["low"], share["high"]


def _rest(limits: _Limits) -> _Limits:
    value, low, high = limits
    return 1 - value, 1 - high, 1 - low


def _ratio_limits(above: _Limits, below: _Limits) -> _Limits | None:
    """The ratio of two independent shares with its limits, infinite where the lower one is 0; None where both are."""
    (a, a_low, a_high), (b, b_low, b_high) = above, below
    if a <= 0 and b <= 0:
        return None
    return _quotient(a, b), _ratio_limit(a, a_low, b, b_high), 1 / _or_tiny(_ratio_limit(b, b_low, a, a_high))


def _ratio_limit(a: float, a_low: float, b: float, b_high: float) -> float:
    """The lower limit of a / b: their distances from their own limits in logarithms, squared and added."""
    if a <= 0 or a_low <= 0:
        return 0.0
    if b <= 0:  # the limit of the formula: b itself cancels, and the distance of a vanishes beside that of b
        return a / b_high
    return math.exp(math.log(a / b) - math.hypot(math.log(a / a_low), math.log(b_high / b)))


def _right(likelihood: _Limits | None, odds: float) -> Figure:
    """The share of an answer that is right, from a likelihood ratio and the odds before the test."""
    if likelihood is None:
        return UNKNOWN
    value, low, high = (1 / (1 + 1 / _or_tiny(odds * one)) for one in likelihood)
    return Figure(value=value, low=low, high=high)


def _quotient(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


def _or_tiny(value: float) -> float:
    return max(value, 1e-300)


def _percent(share: float) -> str:
    """Rounded down, since a bound that is rounded up is none."""
    return f"{math.floor(share * 1000) / 10:g} %"
