"""The block "calibration" of metrics.json: whether the probabilities of patients can be taken at their word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.calibrationfigures import brier, calibration_error, calibration_intercept, calibration_slope, murphy
from pathfm.metrics import SHAPE as FIGURE_SHAPE
from pathfm.metrics import Scored, figures, of_one, unstratified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.decisions import Outcome
    from pathfm.metrics import Metric

_NUMBER = (float, None)
SHAPE = {
    "method": str,
    "outcomes": {
        "*": dict.fromkeys(("n", "n_positive"), int)
        | dict.fromkeys(("brier", "ece", "slope", "intercept"), FIGURE_SHAPE)
        | dict.fromkeys(("reliability", "resolution", "uncertainty"), _NUMBER)
    },
}
"""The block in the grammar of `tables.misfit`."""

_FIGURES: dict[str, Metric] = {
    "brier": of_one(brier),
    "slope": of_one(calibration_slope),
    "intercept": of_one(calibration_intercept),
}


def calibration_block(
    outcomes: Sequence[Outcome], patients: Scored, method: str = "none", seed: int = 0
) -> dict[str, Any]:
    """Of each outcome the figures of its probabilities by patient, each with its interval over resamples of patients.

    Give it no outcome whose score is no probability of it, such as the largest of several labels. One with scores outside
    of 0 to 1 is left out.

    Args:
        outcomes: of the patients, as `decisions.outcomes_of` gives them.
        patients: one row a patient, as `cohortfigures.by_patient` gives them.
        method: how the probabilities were calibrated: none, temperature or isotonic.
        seed: of the resampling.
    """
    probable = [one for one in outcomes if ((one.score >= 0) & (one.score <= 1)).all()]
    return {"method": method, "outcomes": {one.name: _outcome(one, patients, seed) for one in probable}}


def _outcome(outcome: Outcome, patients: Scored, seed: int) -> dict[str, Any]:
    truth = outcome.positive[:, None].astype(np.float32)
    rows = unstratified(Scored(truth, outcome.score[:, None], patients.patients, patients.strata, patients.names))
    counts = {"n": len(truth), "n_positive": int(outcome.positive.sum())}
    parts = murphy(outcome.positive, outcome.score)._asdict()
    return counts | figures([rows], _FIGURES, seed) | parts | {"ece": calibration_error(rows, seed)}
