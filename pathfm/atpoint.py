"""What decisions at a fixed threshold come to: counts, sensitivity, specificity and predictive values with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from pathfm.proportions import PREDICTIVE_SHAPE, clustered_proportion, predictive_values, proportion
from pathfm.proportions import SHAPE as _PROPORTION

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Scored
    from pathfm.proportions import PredictiveValues, Proportion

SHAPE = {
    "threshold": (float, None),
    **dict.fromkeys(("tp", "fp", "fn", "tn"), int),
    **dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), _PROPORTION),
    "at_prevalence": (PREDICTIVE_SHAPE, None),
}
"""An `AtPoint` in the grammar of `tables.misfit`."""


class AtPoint(TypedDict):
    """Decisions against the truth; the threshold is None where each fold has its own.

    Predictive values are those at the share of positives among these rows, and in at_prevalence at a stated one.
    """

    threshold: float | None
    tp: int
    fp: int
    fn: int
    tn: int
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion
    at_prevalence: PredictiveValues | None


def at_point(
    positive: Booleans,
    called: Booleans,
    threshold: float | None = None,
    prevalence: float | None = None,
    clusters: Scored | None = None,
) -> AtPoint:
    """The figures of decisions.

    Args:
        positive: bool (n,), the truth.
        called: bool (n,), whether each row was called positive.
        threshold: that was applied, for the record.
        prevalence: share of patients with it where the model is to be used; None for none stated.
        clusters: the same rows, whose patients the intervals are by; None where each row is a patient.
    """

    def share(hit: Booleans, asked: Booleans) -> Proportion:
        if clusters is not None:
            return clustered_proportion(hit, asked, clusters)
        return proportion(int((hit & asked).sum()), int(asked.sum()))

    sensitivity, specificity = share(called, positive), share(~called, ~positive)
    return AtPoint(
        threshold=threshold,
        tp=int((called & positive).sum()),
        fp=int((called & ~positive).sum()),
        fn=int((~called & positive).sum()),
        tn=int((~called & ~positive).sum()),
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=share(positive, called),
        npv=share(~positive, ~called),
        at_prevalence=None if prevalence is None else predictive_values(sensitivity, specificity, prevalence),
    )
