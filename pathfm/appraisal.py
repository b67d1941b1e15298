"""What is shown beside the figures of a predictions table: calibration, the operating point, screening, sets, subgroups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pathfm.calibrationblock import calibration_block
from pathfm.claims import Claims
from pathfm.cohortfigures import is_scored, patient_rows, scored_patients
from pathfm.conformal import conformal_block
from pathfm.decisions import ANY, decision_columns, negative_first, outcomes_of, require_screening, screening_of
from pathfm.errors import InputError
from pathfm.freezing import operating_block
from pathfm.frozen import Frozen, patient_table
from pathfm.operating import parse_rule
from pathfm.progress import logger
from pathfm.recalibration import has_probabilities, require_probabilities
from pathfm.screening import screening_block
from pathfm.subgroups import subgroups_block
from pathfm.targets import Classes, MultiLabel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.labelled import LabelledSlides
    from pathfm.patients import Unit
    from pathfm.targets import Target


@dataclass(frozen=True)
class Asked:
    """What a command is to choose, to freeze and to show beside the figures.

    Attributes:
        rule: the operating point as `operating.parse_rule` reads it; None for none.
        claims: the rest.
        columns: as `subgroups.subgroup_columns` has them.
    """

    rule: str | None = None
    claims: Claims = field(default_factory=Claims)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def freezes(self) -> bool:
        """Whether anything is to be chosen."""
        return bool(self.rule or self.claims.coverage) or self.claims.calibration != "none"


def require_asked(targets: Sequence[Target], asked: Asked) -> list[Target]:
    """The targets of which something can be frozen; several are learned together, and some may be numbers.

    Raises:
        InputError: something is to be frozen, and there is no target that it can be of; a screening without classes; or a
            prevalence where several things are asked, of which it can be of one only.
        UnknownNameError: no such negative class, or rare type.
    """
    require_screening(targets, asked.claims)
    _require_one_condition(targets, asked.claims)
    if asked.rule is not None:
        parse_rule(asked.rule)
    if not asked.freezes:
        return []
    able = [one for one in targets if has_probabilities(one)]
    if not able:
        require_probabilities(targets[0], "an operating point, a calibration or a set of classes")
    of_classes = [one for one in able if isinstance(one, Classes)]
    if asked.claims.coverage is not None and not of_classes:
        message = f"--claims.coverage is of classes, and {targets[0].name} is a target of the kind {targets[0].kind}; leave it out"
        raise InputError(message)
    return able


def asked_of(slides: LabelledSlides, claims: Claims) -> LabelledSlides:
    """The cohort with the negative class of a screening first, so that a patient with any other is no negative."""
    task, truth = negative_first(slides.task, slides.truth, claims.negative)
    return replace(slides, task=task, truth=truth)


def appraise(
    predictions: pd.DataFrame,
    target: Target,
    unit: Unit,
    asked: Asked,
    frozen: Frozen | Mapping[int, Frozen] | None = None,
) -> dict[str, Any]:
    """The blocks of metrics.json that follow from a predictions table, those of which something is known.

    Args:
        predictions: rows that the model had not seen, with what `apply_frozen` or `cross_fitted` added.
        target: what was asked.
        unit: what a row is.
        asked: what to show; of a model with what was frozen its rule and calibration do not count.
        frozen: what the table was made with; of cross-validation that of each fold; None for nothing.
    """
    if not len(predictions) or not is_scored(predictions, target).any():
        return {}
    first = frozen if frozen is None or isinstance(frozen, Frozen) else next(iter(frozen.values()))
    screening = first.screening if first is not None else screening_of(target, asked.claims)
    rows = patient_rows(predictions, target) if frozen is None else patient_table(predictions, target, frozen)
    patients = scored_patients(rows, target)
    outcomes = outcomes_of(target, screening, patients)
    prevalence, found = asked.claims.prevalence, dict[str, Any](prevalence=asked.claims.prevalence)
    largest = screening is not None and isinstance(target, MultiLabel)  # of the labels: no probability of having any
    if outcomes and not largest:
        method = first.calibration.kind if first is not None and first.calibration is not None else "none"
        found["calibration"] = calibration_block(outcomes, patients, method)
    if frozen is not None and first is not None:
        if first.rule is not None:
            found["operating_points"] = operating_block(predictions, target, unit, frozen, prevalence)
        if first.conformal is not None and isinstance(target, Classes):
            fitted = [one.conformal for one in _each(frozen) if one.conformal is not None]
            scored = rows[is_scored(rows, target)]  # who has no score was neither held nor left to others
            found["conformal"] = conformal_block(scored, target, first.conformal.coverage, fitted)
    if screening is not None:
        found["screening"] = screening_block(rows, target, screening, prevalence, _threshold(frozen))
    if asked.columns:
        found["subgroups"] = subgroups_block(rows, target, asked.columns, screening)
    return found


def say_frozen(frozen: Mapping[str, Frozen]) -> None:
    """Logs what was chosen of each target and what has to be said of the choice."""
    for name, one in frozen.items():
        for outcome, levels in one.thresholds.items():
            at = ", ".join(f"{level} {threshold:.4g}" for level, threshold in levels.items())
            logger.info("%s: %s is frozen for %s: %s (%s)", name, one.rule, outcome, at, one.chosen_on)
        for note in one.notes:
            logger.warning("%s: %s", name, note)


def _require_one_condition(targets: Sequence[Target], claims: Claims) -> None:
    """Refuses one prevalence for several conditions."""
    names = [name for target in targets for name in decision_columns(target, screening_of(target, claims))]
    if claims.prevalence is not None and len(names) > 1:
        message = (
            f"--claims.prevalence {claims.prevalence:g} is of one condition, and {len(names)} are asked"
            f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); pass --claims.negative, the class that says"
            " that there is none, to ask the classes of one target as one, or leave the prevalence out"
        )
        raise InputError(message)


def _each(frozen: Frozen | Mapping[int, Frozen]) -> Sequence[Frozen]:
    return [frozen] if isinstance(frozen, Frozen) else list(frozen.values())


def _threshold(frozen: Frozen | Mapping[int, Frozen] | None) -> float | None:
    """What patients of a screening are decided by; None where nothing is, and where each fold has its own."""
    return frozen.thresholds.get(ANY, {}).get("patient") if isinstance(frozen, Frozen) else None
