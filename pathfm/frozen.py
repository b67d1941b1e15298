"""What was chosen for a model on predictions for patients that it had not seen, and how it is applied to others."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd

from pathfm.atpoint import SHAPE as _AT_POINT
from pathfm.cohortfigures import patient_rows, rescored
from pathfm.conformal import ConformalSets
from pathfm.decisions import NEGATIVE, POSITIVE, Screening, asked, decision_columns, decision_scores, with_origins
from pathfm.errors import InputError
from pathfm.files import canonical_json, sha256_text
from pathfm.operating import parse_rule
from pathfm.recalibration import Calibration
from pathfm.tables import first_line, misfit
from pathfm.targets import Classes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pathfm.metrics import Booleans, Floats
    from pathfm.targets import Scores, Target

Level = Literal["slide", "patient"]
"""What a threshold is for: a slide, or a patient by the mean of the slides' scores."""
SET = "set"
"""The column of the possible classes of a patient."""
_LONGEST, _MOST_NOTES = 1000, 1000
_HIGHEST = 1 + 1e-6  # of a threshold: just above every probability calls nobody positive
_SHAPE = {
    "screening": (dict, None),
    "calibration": (dict, None),
    "rule": (str, None),
    "thresholds": {"*": {"slide?": float, "patient?": float}},
    "promise": {"*": {"patient": (_AT_POINT, None), "slide": (_AT_POINT, None)}},
    "conformal": (dict, None),
    "chosen_on": str,
    "n_patients": int,
    "notes": [str],
}


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What goes with a model and is never chosen again: nothing that is predicted or evaluated with it can move it.

    Attributes:
        screening: how the types of a target are asked as one; None where each is asked by itself.
        calibration: what makes probabilities of the scores of a bag; None for nothing.
        rule: the operating point as the user stated it; None for none.
        thresholds: by outcome and level; a calibrated score at or above one is positive. An outcome of which nobody had
            it, or everybody, has none.
        promise: by outcome and level what was seen at such thresholds by patients that they were not chosen on
            (`atpoint.AtPoint`, each fold with a threshold of its own, so that its key threshold is None).
        conformal: the sets of possible classes of patients; None for none.
        chosen_on: whose predictions, in words.
        n_patients: how many patients these are of.
        notes: what has to be said of the choice.
    """

    screening: Screening | None = None
    calibration: Calibration | None = None
    rule: str | None = None
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    promise: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    conformal: ConformalSets | None = None
    chosen_on: str
    n_patients: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Keeps copies that nobody can write to."""
        levels = {name: MappingProxyType(dict(values)) for name, values in self.thresholds.items()}
        object.__setattr__(self, "thresholds", MappingProxyType(levels))
        object.__setattr__(self, "promise", MappingProxyType(deepcopy(dict(self.promise))))

    def facts(self) -> dict[str, Any]:
        """As JSON; `of_facts` reads it."""
        return {
            "screening": self.screening.facts() if self.screening else None,
            "calibration": self.calibration.facts() if self.calibration else None,
            "rule": self.rule,
            "thresholds": {name: dict(levels) for name, levels in self.thresholds.items()},
            "promise": deepcopy(dict(self.promise)),
            "conformal": self.conformal.facts() if self.conformal else None,
            "chosen_on": self.chosen_on,
            "n_patients": self.n_patients,
            "notes": list(self.notes),
        }

    @classmethod
    def of_facts(cls, facts: object, target: Target) -> Self:
        """What these facts say, which may come from anywhere.

        Args:
            facts: as `facts` made them, or anything else.
            target: what they are of.

        Raises:
            ValueError: what does not fit the target or makes no sense; the key is named.
        """
        what = misfit(facts, _SHAPE)
        if what or not isinstance(facts, dict):
            raise ValueError(what or "is no object")
        texts = [facts["rule"] or "", facts["chosen_on"], *facts["notes"]]
        if set(facts) != set(_SHAPE) or max(map(len, texts)) > _LONGEST or len(facts["notes"]) > _MOST_NOTES:
            message = "key 'frozen' holds more than is ever frozen"
            raise ValueError(message)
        screening = None if facts["screening"] is None else Screening.of_facts(facts["screening"], target)
        _require_sense(facts, asked(target, screening))
        return cls(
            screening=screening,
            calibration=None if facts["calibration"] is None else Calibration.of_facts(facts["calibration"], target),
            rule=facts["rule"],
            thresholds=facts["thresholds"],
            promise=facts["promise"],
            conformal=None if facts["conformal"] is None else _conformal(facts["conformal"], target),
            chosen_on=facts["chosen_on"],
            n_patients=facts["n_patients"],
            notes=tuple(facts["notes"]),
        )


def frozen_sha256(frozen: Mapping[str, Any] | None, of: Mapping[str, Any], weights_sha256: str) -> str:
    """The digest that binds what is frozen to what it was frozen with, 64 hex digits.

    It notices damage and careless edits of either file. It is no signature: whoever edits on purpose can write it anew.

    Args:
        frozen: the key `frozen` of model.json: by the name of the target its `Frozen.facts`.
        of: what the scores mean that thresholds are of, as JSON: classes in their order, units, what heads read.
        weights_sha256: of model.safetensors.
    """
    return sha256_text(canonical_json({"frozen": frozen, "of": of, "weights": weights_sha256}))


def apply_frozen(frozen: Frozen, table: pd.DataFrame, target: Target, level: Level) -> pd.DataFrame:
    """A predictions table with calibrated scores in place of the model's, and what was decided of each row.

    The column `predicted` is that of the calibrated scores. Each outcome that is asked under an operating point has a
    column of `decisions.decision_columns` with positive, negative, or "" where the row has no score or the outcome no
    threshold; sets are of patients, in the column `set`. Only the row's own scores decide, never its label or another row.

    Args:
        frozen: of this target; it stays as it is.
        table: a predictions table with the scores of the model; never one that this function has made.
        target: what was asked.
        level: what a row is.
    """
    scores = _scores(table, target)
    if frozen.calibration is not None:
        known = _is_known(scores)
        scores[known] = frozen.calibration.apply(target, scores[known])
    return _decided(frozen, rescored(table, target, scores), target, level)


def patient_table(table: pd.DataFrame, target: Target, frozen: Frozen | Mapping[int, Frozen]) -> pd.DataFrame:
    """One row a patient of a table that `apply_frozen` or `freezing.cross_fitted` made, with its decisions as a patient.

    The rows are those of `cohortfigures.patient_rows`, with the means of the slides' calibrated scores, which is what
    everything was chosen on. The decisions are by the thresholds of patients, `set` holds the possible classes.

    Args:
        table: rows of slides, or of patients, which come back one for one.
        target: what was asked.
        frozen: what it was made with; of cross-validation that of each fold.
    """
    whole = patient_rows(table, target)
    if isinstance(frozen, Frozen):
        return _decided(frozen, whole, target, "patient")
    return by_fold(frozen, whole, lambda one, part: _decided(one, part, target, "patient"))


def by_fold(
    frozen: Mapping[int, Frozen], table: pd.DataFrame, apply: Callable[[Frozen, pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """A table of which the rows of each fold went through a function with what is frozen for that fold, in its order.

    Rows of no fold, of whom nobody could be scored, go with the first.
    """
    folds = fold_numbers(table).fillna(min(frozen))
    places = [np.flatnonzero(folds == fold) for fold in frozen]
    parts = [apply(one, table.iloc[at]) for one, at in zip(frozen.values(), places, strict=True) if len(at)]
    if not parts:
        return apply(next(iter(frozen.values())), table)
    order = np.argsort(np.concatenate([at for at in places if len(at)]))
    return pd.concat(parts, ignore_index=True).iloc[order].set_axis(table.index)


def fold_numbers(table: pd.DataFrame) -> pd.Series[float]:
    """The column fold as numbers, also of a table that was read back as text; NaN for none."""
    return pd.to_numeric(table["fold"], errors="coerce").astype(float)


def _decided(frozen: Frozen, table: pd.DataFrame, target: Target, level: Level) -> pd.DataFrame:
    """With the columns of decisions, and of patients with their sets, of a table of calibrated scores."""
    scores = _scores(table, target)
    known = _is_known(scores)
    columns: dict[str, Any] = {}
    if frozen.rule is not None:
        score_of = decision_scores(target, frozen.screening, scores)
        for name, column in decision_columns(target, frozen.screening).items():
            threshold = frozen.thresholds.get(name, {}).get(level)
            columns[column] = _calls(score_of[name], known, threshold)
    if frozen.conformal is not None and level == "patient":
        sets = np.full(len(table), "", dtype=object)
        sets[known] = frozen.conformal.texts(scores[known])
        columns[SET] = sets
    decided = table.assign(**columns)
    return decided if frozen.screening is None else with_origins(decided, target, frozen.screening)


def _calls(score: Floats, known: Booleans, threshold: float | None) -> NDArray[np.object_]:
    calls = np.full(len(score), "", dtype=object)
    if threshold is not None:
        calls[known] = np.where(score[known] >= threshold, POSITIVE, NEGATIVE)
    return calls


def _scores(table: pd.DataFrame, target: Target) -> Scores:
    return np.array(table[target.names], dtype=np.float64).reshape(-1, len(target.names))


def _is_known(scores: Scores) -> Booleans:
    return np.asarray(np.isfinite(scores).all(axis=1), dtype=bool)


def _conformal(facts: object, target: Target) -> ConformalSets:
    if not isinstance(target, Classes):
        message = f"key 'conformal' is of classes, and the target of the kind {target.kind}"
        raise ValueError(message)
    return ConformalSets.of_facts(target, facts)


def _require_sense(facts: dict[str, Any], outcomes: Sequence[str]) -> None:
    """Refuses outcomes that nobody asks, thresholds that are none, and a rule that no user could have stated.

    Raises:
        ValueError: the key is named.
    """
    for key in ("thresholds", "promise"):
        unknown = sorted(set(facts[key]) - set(outcomes))
        if unknown:
            message = f"key '{key}.{unknown[0][:80]}' is no outcome of the target"
            raise ValueError(message)
    values = [value for levels in facts["thresholds"].values() for value in levels.values()]
    odd = any(set(levels) - {"slide", "patient"} for levels in facts["thresholds"].values())
    if odd or not all(0 <= value <= _HIGHEST for value in values) or (values and facts["rule"] is None):
        message = "key 'thresholds' holds something else than thresholds of slides and patients by a rule"
        raise ValueError(message)
    if facts["n_patients"] < 0:
        message = "key 'n_patients' is no number of patients"
        raise ValueError(message)
    if facts["rule"] is not None:
        try:
            parse_rule(facts["rule"])
        except InputError as error:
            message = f"key 'rule' is no rule ({first_line(error)})"
            raise ValueError(message) from error
