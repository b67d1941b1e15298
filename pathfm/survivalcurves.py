"""Survival of groups: Kaplan's and Meier's curve with its band, and the log-rank test."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import CensoredData, chi2, ecdf

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.metrics import Floats, Integers


@dataclass(frozen=True)
class SurvivalCurve:
    """Steps of a survival curve, float64 (t,) each: it is `survival` from `time` on, and 1 before the first.

    Attributes:
        time: the distinct times of rows, rising.
        survival: share that is still free of the event after each time.
        low: of its pointwise 95 % interval, NaN where none can be told.
        high: likewise.
        at_risk: rows followed up to each time.
    """

    time: Floats
    survival: Floats
    low: Floats
    high: Floats
    at_risk: Floats


def kaplan_meier(time: Floats, event: NDArray[np.bool_]) -> SurvivalCurve | None:
    """The product-limit estimate of survival with its pointwise 95 % band; None without rows.

    Kaplan, Meier, Journal of the American Statistical Association 53:457 (1958); Greenwood's variance, with limits on the
    scale of log(-log), which keeps them between 0 and 1, as `scipy.stats.ecdf` computes them.

    Args:
        time: float64 (n,), above 0.
        event: bool (n,); False where somebody was followed so far without it.
    """
    if not len(time):
        return None
    survival = ecdf(CensoredData.right_censored(np.asarray(time, dtype=np.float64), ~event)).sf
    with warnings.catch_warnings():  # a survival of 1 or 0 has no interval on that scale
        warnings.simplefilter("ignore", RuntimeWarning)
        band = survival.confidence_interval(method="log-log")
    times = survival.quantiles
    at_risk = (np.asarray(time)[:, None] >= times).sum(axis=0).astype(np.float64)
    return SurvivalCurve(times, survival.probabilities, band.low.probabilities, band.high.probabilities, at_risk)


def log_rank(time: Floats, event: NDArray[np.bool_], group: Integers) -> float | None:
    """The p value of two or more groups having one survival; None where there is one group, or nobody had the event.

    Mantel, Cancer Chemotherapy Reports 50:163 (1966); Peto, Peto, Journal of the Royal Statistical Society A 135:185 (1972):
    at each time of an event the events of each group less those expected of its share at risk, against their
    hypergeometric covariance; chi-squared with one degree of freedom fewer than groups.

    Args:
        time: float64 (n,), above 0.
        event: bool (n,).
        group: int64 (n,).
    """
    member = (group[:, None] == np.unique(group)).astype(np.float64)
    times = np.unique(time[event])
    if member.shape[1] < 2 or not len(times):
        return None
    at_risk = (time >= times[:, None]).astype(np.float64) @ member
    events = ((time == times[:, None]) & event).astype(np.float64) @ member
    n, d = at_risk.sum(axis=1), events.sum(axis=1)
    share = at_risk / n[:, None]
    spread = d * (n - d) / np.maximum(n - 1, 1)
    surplus = (events - d[:, None] * share).sum(axis=0)
    covariance = np.diag(spread @ share) - (spread[:, None] * share).T @ share
    statistic = surplus @ np.linalg.pinv(covariance) @ surplus
    freedom = np.linalg.matrix_rank(covariance)
    return float(chi2.sf(statistic, freedom)) if freedom else None
