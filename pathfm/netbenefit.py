"""Decision curves: what acting on a model is worth, beside treating everybody and nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathfm.metrics import ratio, resamples, unstratified

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats, Scored

THRESHOLDS: Floats = np.arange(1, 100) / 100
"""Probabilities at which somebody might act, float64 (99,)."""


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold, float64 (t,) each, with its pointwise 95 % bootstrap band; treating nobody is 0.

    The unit is true positives a patient: a net benefit of 0.05 is worth as much as 5 found among 100 patients with no false
    alarm.
    """

    thresholds: Floats
    model: Floats
    low: Floats
    high: Floats
    treat_all: Floats


def net_benefit(
    positive: Booleans,
    probability: Floats,
    scored: Scored,
    thresholds: Floats = THRESHOLDS,
    prevalence: float | None = None,
    seed: int = 0,
) -> DecisionCurve | None:
    """Net benefit of acting from each threshold on, with its band over resamples of patients; None where a side lacks.

    Vickers, Elkin, Decision curve analysis, Medical Decision Making 26:565 (2006): true positives less false positives, which
    weigh as much as the odds of the threshold, over all patients.

    Args:
        positive: bool (n,), which rows are.
        probability: float64 (n,).
        scored: the rows that these are of.
        thresholds: float64 (t,), between 0 and 1.
        prevalence: share of positives where the model is to be used; that of the rows where None.
        seed: of the resampling.
    """
    if positive.all() or not positive.any():
        return None
    acted = probability[:, None] >= thresholds
    odds = thresholds / (1 - thresholds)

    def worth(weights: Floats) -> Floats:
        yes, no = weights * positive, weights * ~positive
        share = (
            yes.sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True) if prevalence is None else prevalence
        )
        found = ratio(yes @ acted, yes.sum(axis=1, keepdims=True).repeat(len(thresholds), axis=1))
        alarms = ratio(no @ acted, no.sum(axis=1, keepdims=True).repeat(len(thresholds), axis=1))
        return np.asarray(share * found - (1 - share) * odds * alarms)

    drawn = unstratified(scored) if prevalence is None else scored  # what is taken as known is not drawn
    draws = np.concatenate([worth(weights) for weights in resamples(drawn, seed)])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    share = float(positive.mean()) if prevalence is None else prevalence
    return DecisionCurve(thresholds, worth(np.ones((1, len(positive))))[0], low, high, share - (1 - share) * odds)
