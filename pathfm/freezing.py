"""Freezing: calibration, thresholds and sets chosen on development predictions, and what they come to on other patients."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.atpoint import SHAPE as _AT_POINT
from pathfm.atpoint import at_point
from pathfm.cohortfigures import is_scored, scored_patients, scored_slides
from pathfm.conformal import ConformalSets
from pathfm.decisions import POSITIVE, Outcome, decision_columns, outcomes_of, screening_of
from pathfm.errors import InputError
from pathfm.folds import assign_folds
from pathfm.frozen import Frozen, apply_frozen, by_fold, fold_numbers, patient_table
from pathfm.metrics import FEW_PATIENTS
from pathfm.operating import choose, parse_rule
from pathfm.proportions import claim_note
from pathfm.recalibration import Calibration, require_probabilities
from pathfm.targets import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from pathfm.atpoint import AtPoint
    from pathfm.claims import Claims
    from pathfm.decisions import Screening
    from pathfm.frozen import Level
    from pathfm.metrics import Scored
    from pathfm.operating import Rule
    from pathfm.patients import Unit
    from pathfm.targets import Target

SHAPE = {
    "rule": (str, None),
    "outcomes": {"*": {"patient": (_AT_POINT, None), "slide": (_AT_POINT, None)}},
    "notes": [str],
}
"""What `operating_block` gives, in the grammar of `tables.misfit`."""
_OWN_THRESHOLDS = (
    "each fold has a threshold of its own: the one that is frozen may do better or worse than these intervals say, the"
    " more so the fewer patients it was chosen on"
)
_OF_ONE = (
    "a prevalence is of one condition, and several are asked one by one, so nothing is said at the one that was stated;"
    " --claims.negative asks several classes as one"
)
FOLDS = 5  # that a development set which one model has scored is cut into for the promise


def freeze(
    predictions: pd.DataFrame, target: Target, unit: Unit, rule: str | None, claims: Claims, chosen_on: str
) -> Frozen:
    """Chooses everything on all rows, and promises what the same choice came to on patients that it was not made on.

    Args:
        predictions: a predictions table, one row a bag, of models that had not seen these patients; with the column fold
            the promise is by these folds, without it by folds of patients that are cut here.
        target: what was asked.
        unit: what a row is.
        rule: the operating point as the user stated it; None for none.
        claims: what else is chosen.
        chosen_on: whose predictions these are, in words.

    Raises:
        InputError: a rule that is none, a kind of target without outcomes, or rows on which nothing can be chosen.
    """
    frozen = replace(_chosen(predictions, target, unit, rule, claims), chosen_on=chosen_on)
    if rule is None:
        return frozen
    if not frozen.thresholds:
        message = f"--operating-point: {frozen.notes[0]}"
        raise InputError(message)
    folds = _with_folds(predictions, target)
    if folds is None:
        note = "too few patients to see what the thresholds come to on others: there is no promise"
        return replace(frozen, notes=(*frozen.notes, note))
    table, of_folds = cross_fitted(folds, target, unit, rule, claims)
    block = operating_block(table, target, unit, of_folds, claims.prevalence)
    return replace(frozen, promise=block["outcomes"])


def cross_fitted(
    predictions: pd.DataFrame, target: Target, unit: Unit, rule: str | None, claims: Claims
) -> tuple[pd.DataFrame, dict[int, Frozen]]:
    """Of each fold the rows under what was chosen on the other folds' rows alone, in the order given.

    So no row's label or score has a part in what is decided of it. (The other folds' scores are of models that learned
    from this fold's patients: docs/operating-points.md says what that means.)

    Args:
        predictions: an out-of-fold predictions table with the column fold; rows of no fold have no score either.
        target: what was asked.
        unit: what a row is.
        rule: the operating point; None for none.
        claims: what else is chosen.

    Returns:
        The table as `frozen.apply_frozen` makes it, and by the number of the fold what was applied to it.

    Raises:
        InputError: as `freeze`; fewer than two folds.
    """
    folds = fold_numbers(predictions)
    numbers = sorted({int(fold) for fold in folds.dropna()})
    if len(numbers) < 2:
        message = "nothing can be chosen across folds: the predictions are of one fold only"
        raise InputError(message)
    of_folds = {
        fold: _chosen(predictions[folds.notna() & (folds != fold)], target, unit, rule, claims) for fold in numbers
    }
    level: Level = unit
    table = by_fold(of_folds, predictions, lambda frozen, part: apply_frozen(frozen, part, target, level))
    return table, of_folds


def operating_block(
    table: pd.DataFrame,
    target: Target,
    unit: Unit,
    frozen: Frozen | Mapping[int, Frozen],
    prevalence: float | None = None,
) -> dict[str, Any]:
    """The block "operating_points" of metrics.json: what decisions come to, by outcome, patient and slide.

    Args:
        table: as `frozen.apply_frozen` or `cross_fitted` made it; rows without a label are left out.
        target: what was asked.
        unit: what a row is; of patients there is no level "slide".
        frozen: what it was made with; of cross-validation that of each fold.
        prevalence: share of patients with the outcome where the model is to be used; None for none stated.
    """
    ignored = [_OF_ONE] if prevalence is not None and _is_several(target, _first(frozen).screening) else []
    patients = patient_table(table, target, frozen)
    tables: list[tuple[Level, pd.DataFrame]] = [("patient", patients)]
    tables += [("slide", table)] if unit == "slide" else []
    outcomes: dict[str, dict[str, Any]] = {}
    for level, rows in tables:
        for name, point in _points(rows, target, frozen, level, None if ignored else prevalence).items():
            outcomes.setdefault(name, {"patient": None, "slide": None})[level] = point
    chosen = frozen.notes if isinstance(frozen, Frozen) else _notes_of_folds(frozen)
    if outcomes and not isinstance(frozen, Frozen):
        chosen = [*chosen, _OWN_THRESHOLDS]
    return {"rule": _first(frozen).rule, "outcomes": outcomes, "notes": [*chosen, *ignored, *_claim_notes(outcomes)]}


def _chosen(predictions: pd.DataFrame, target: Target, unit: Unit, rule: str | None, claims: Claims) -> Frozen:
    """Everything that is chosen on some rows, without a promise."""
    parsed, screening = _asked(target, rule, claims), screening_of(target, claims)
    scored = scored_slides(predictions, target) if len(predictions) else None
    if scored is None or not len(scored.truth):
        message = f"nothing can be chosen for {target.name}: no patient to choose on has a label and a score"
        raise InputError(message)
    prevalence = None if _is_several(target, screening) else claims.prevalence
    calibration, calibrated, notes = None, predictions, list[str]()
    if claims.calibration != "none":
        shares = 1 / np.bincount(scored.patients)[scored.patients]  # a patient counts once, however many slides
        calibration = Calibration.fitted(claims.calibration, target, scored.truth, scored.scores, shares)
        only = Frozen(calibration=calibration, chosen_on="", n_patients=0)
        calibrated = apply_frozen(only, predictions, target, unit)
        scored = scored_slides(calibrated, target)
        notes += calibration.notes(target, scored.truth, scored.scores, len(scored.names))
    patients = scored_patients(calibrated, target)  # as in `frozen.patient_table`: what decides is what is chosen on
    levels: list[tuple[Level, Scored]] = [("patient", patients)]
    levels += [("slide", scored)] if unit == "slide" else []
    thresholds: dict[str, dict[str, float]] = {}
    for level, rows in levels if parsed else ():
        for outcome in outcomes_of(target, screening, rows):
            threshold, said = _threshold(parsed, outcome, level, prevalence)
            notes += said
            if threshold is not None:
                thresholds.setdefault(outcome.name, {})[level] = threshold
    conformal = None
    if claims.coverage is not None:
        conformal, said = _sets(target, patients, claims.coverage)
        notes += said
    return Frozen(
        screening=screening,
        calibration=calibration,
        rule=None if parsed is None else str(parsed),
        thresholds=thresholds,
        conformal=conformal,
        chosen_on="the other folds",
        n_patients=len(patients.names),
        notes=tuple(dict.fromkeys(notes)),
    )


def _asked(target: Target, rule: str | None, claims: Claims) -> Rule | None:
    """The rule, where what is asked can be asked of such a target."""
    calibration = None if claims.calibration == "none" else claims.calibration
    options = {
        "--operating-point": rule,
        "--claims.calibration": calibration,
        "--claims.coverage": claims.coverage,
    }
    for option in [name for name, value in options.items() if value is not None]:
        require_probabilities(target, option)
    return None if rule is None else parse_rule(rule)


def _is_several(target: Target, screening: Screening | None) -> bool:
    """Whether several questions are asked; a stated prevalence is of one condition."""
    return len(decision_columns(target, screening)) > 1


def _threshold(
    rule: Rule | None, outcome: Outcome, level: Level, prevalence: float | None
) -> tuple[float | None, list[str]]:
    """The threshold of an outcome, None where any would do, and what to say of it."""
    place = f"{outcome.name}, by {level}"
    try:
        choice = choose(rule, outcome.positive, outcome.score, prevalence) if rule is not None else None
    except InputError as error:
        return None, [f"{place}: no threshold, {error}"]
    if choice is None:
        return None, []
    notes = [f"{place}: {note}" for note in choice.notes]
    n_positive, n_negative = int(outcome.positive.sum()), int((~outcome.positive).sum())
    if level == "patient" and min(n_positive, n_negative) < FEW_PATIENTS:
        notes.append(
            f"{place}: the threshold was chosen on {n_positive} with it and {n_negative} without it;"
            " other patients would have given another"
        )
    return choice.threshold, notes


def _sets(target: Target, patients: Scored, coverage: float) -> tuple[ConformalSets | None, list[str]]:
    """The sets of classes of patients, and what to say of them."""
    if not isinstance(target, Classes):
        return None, [f"{target.name} has no sets of possible classes, for several of its labels may be so at once"]
    sets = ConformalSets.fit(target, patients.truth, patients.scores, coverage)
    few = "had too few patients for a coverage of"
    return sets, [f"class {name} {few} {coverage:g}, so it is in every set" for name in sets.uncalibrated]


def _with_folds(predictions: pd.DataFrame, target: Target) -> pd.DataFrame | None:
    """The predictions with a column fold of two folds or more; None where there are too few patients to cut."""
    if "fold" in predictions and fold_numbers(predictions).nunique() > 1:
        return predictions
    rows = predictions[is_scored(predictions, target)]
    truth = scored_slides(rows, target).truth
    cut = rows.assign(stratum=target.strata(truth))
    smallest = cut.groupby("stratum")["patient_id"].nunique().min()
    folds = min(FOLDS, int(smallest))
    if folds < 2:
        return None
    fold_of = dict(zip(rows["patient_id"], assign_folds(cut, folds, 0), strict=True))
    return predictions.assign(fold=predictions["patient_id"].map(fold_of)).dropna(subset="fold")


def _points(
    table: pd.DataFrame, target: Target, frozen: Frozen | Mapping[int, Frozen], level: Level, prevalence: float | None
) -> dict[str, AtPoint]:
    """By outcome the figures of the labelled rows that a decision was made of; none without an operating point."""
    screening = _first(frozen).screening
    found = {}
    for name, column in decision_columns(target, screening).items() if _first(frozen).rule else ():
        rows = table[is_scored(table, target) & (table[column] != "")] if len(table) else table
        if not len(rows):
            continue
        scored = scored_slides(rows, target)
        positive = {one.name: one.positive for one in outcomes_of(target, screening, scored)}[name]
        called = np.asarray(rows[column] == POSITIVE, dtype=bool)
        threshold = frozen.thresholds.get(name, {}).get(level) if isinstance(frozen, Frozen) else None
        clusters = scored if level == "slide" else None
        found[name] = at_point(positive, called, threshold, prevalence, clusters)
    return found


def _first(frozen: Frozen | Mapping[int, Frozen]) -> Frozen:
    return frozen if isinstance(frozen, Frozen) else next(iter(frozen.values()))


def _claim_notes(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What may be said of the specificities of patients."""
    said = [
        (name, claim_note(levels["patient"]["specificity"])) for name, levels in outcomes.items() if levels["patient"]
    ]
    return [f"{name}, by patient: {note}" for name, note in said if note]


def _notes_of_folds(folds: Mapping[int, Frozen]) -> list[str]:
    """The notes of the folds, those that differ in their numbers alone said once."""
    alike: dict[str, list[tuple[int, str]]] = {}
    for fold, frozen in folds.items():
        for note in frozen.notes:
            alike.setdefault(_NUMBER.sub("#", note), []).append((fold, note))
    return [
        f"in {len({fold for fold, _ in notes})} of {len(folds)} folds, here that of fold {notes[0][0]}: {notes[0][1]}"
        for notes in alike.values()
    ]


_NUMBER = re.compile(r"\d[\d.,]*")
