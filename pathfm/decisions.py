"""What is decided of a row: the yes/no questions that a target's scores answer, and the one question of a screening."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from pathfm.errors import InputError, UnknownNameError
from pathfm.targets.classes import Classes
from pathfm.targets.multilabel import NONE, MultiLabel
from pathfm.targets.ordinal import Ordinal
from pathfm.targets.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.claims import Claims
    from pathfm.metrics import Booleans, Floats, Integers, Scored
    from pathfm.targets import Scores, Target, Truth

ANY = "any"
"""The outcome of a screening: whether there is any of its types."""
POSITIVE, NEGATIVE = "positive", "negative"
"""What a decision column says of a row; "" where the row has no score."""


class Outcome(NamedTuple):
    """A yes/no question asked of rows.

    Attributes:
        name: the class, label or threshold that it asks for, or `ANY`.
        positive: of each row whether it is so, bool (n,).
        score: of each row, float64 (n,), the higher the more likely.
    """

    name: str
    positive: Booleans
    score: Floats


@dataclass(frozen=True)
class Screening:
    """How several types are asked as one: whether there is any of them, and which.

    Attributes:
        negative: the class that says that there is none; of labels the word none.
        rare: those of the types that have figures of their own as rare ones.
    """

    negative: str
    rare: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON; `of_facts` reads it."""
        return {"negative": self.negative, "rare": list(self.rare)}

    @classmethod
    def of_facts(cls, facts: object, target: Target) -> Self:
        """The screening of these facts, which may come from anywhere.

        Raises:
            ValueError: what does not fit the target; the key is named.
        """
        negative = facts.get("negative") if isinstance(facts, dict) else None
        rare = facts.get("rare") if isinstance(facts, dict) else None
        if not isinstance(negative, str) or negative not in _negatives(target):
            message = "key 'negative' is none of the classes that a screening could be against"
            raise ValueError(message)
        types = _types(target, negative)
        if not isinstance(rare, list) or len(rare) > len(types) or any(one not in types for one in rare):
            message = "key 'rare' is not a list of the types that are screened for"
            raise ValueError(message)
        return cls(negative, tuple(rare))


def outcomes_of(target: Target, screening: Screening | None, scored: Scored) -> list[Outcome]:
    """The yes/no questions of labelled rows, in order: those of `Target.outcomes`, or `ANY` alone of a screening.

    Args:
        target: what was asked.
        screening: how its types are asked as one; None to ask each by itself.
        scored: slides or patients, their truth and scores as the target has them.
    """
    if screening is None:
        return [Outcome(name, *pair) for name, pair in target.outcomes(scored.truth, scored.scores).items()]
    positive = np.asarray(is_of_type(target, screening, scored).any(axis=1))
    return [Outcome(ANY, positive, decision_scores(target, screening, scored.scores)[ANY])]


def decision_scores(target: Target, screening: Screening | None, scores: Scores) -> dict[str, Floats]:
    """By the name of each question the scores of rows that need no label, float64 (n,); NaN where the row has none.

    Args:
        target: what was asked.
        screening: `ANY` of classes has 1 - P(negative), added up from the types for the sake of small ones; of labels the
            largest of them, which is no probability of having any.
        scores: float64 (n, k), as the target has them.
    """
    if screening is None:
        unknown = np.full((len(scores), target.width), np.nan, dtype=np.float32)
        return {name: score for name, (_, score) in target.outcomes(unknown, scores).items()}
    of_types = scores[:, _places(target, screening)]
    return {ANY: of_types.max(axis=1) if isinstance(target, MultiLabel) else np.minimum(of_types.sum(axis=1), 1.0)}


def asked(target: Target, screening: Screening | None) -> list[str]:
    """The names of the questions, in their order; none of a number or a time."""
    return list(decision_scores(target, screening, np.zeros((0, len(target.names)))))


def decision_columns(target: Target, screening: Screening | None) -> dict[str, str]:
    """By the name of each question the column of a predictions table that holds its decisions."""
    names = asked(target, screening)
    return {name: "decision" if len(names) == 1 else f"decision_{name}" for name in names}


def patient_decisions(patients: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By the name of each question what is decided of each patient, `POSITIVE` or `NEGATIVE`; without those undecided.

    Args:
        patients: one row a patient, as `frozen.patient_table` has them; without the columns nothing is decided.
        columns: as `decision_columns` has them.

    Raises:
        ValueError: rows of slides, whose decisions are not those of their patients.
    """
    held = {name: column for name, column in columns.items() if column in patients}
    if held and patients["patient_id"].duplicated().any():
        message = "decisions of slides were given where those of patients are needed"
        raise ValueError(message)
    found = {}
    for name, column in held.items():
        said = patients[patients[column].isin([POSITIVE, NEGATIVE])]
        found[name] = dict(zip(said["patient_id"].astype(str), said[column].astype(str), strict=True))
    return found


def with_origins(table: pd.DataFrame, target: Target, screening: Screening) -> pd.DataFrame:
    """A predictions table with the columns `any`, what is decided by, and `origin`, the most probable type.

    The origin is "" where the row is not called positive, and the column is absent where nothing was decided: to say of
    every row where its cancer would come from would be taken for having found one.

    Args:
        table: as `frozen.apply_frozen` or `frozen.patient_table` made it.
        target: what was asked.
        screening: how its types are asked as one.
    """
    scores = np.array(table[target.names], dtype=np.float64).reshape(-1, len(target.names))
    found = table.assign(**{ANY: decision_scores(target, screening, scores)[ANY]})
    decided = decision_columns(target, screening)[ANY]
    if decided not in table:
        return found
    origin = origins(target, screening, scores)
    return found.assign(
        origin=[name if said == POSITIVE else "" for name, said in zip(origin, table[decided], strict=True)]
    )


def types_of(target: Target, screening: Screening) -> list[str]:
    """The types that are screened for, in the target's order: all but the negative class."""
    return _types(target, screening.negative)


def is_of_type(target: Target, screening: Screening, scored: Scored) -> Booleans:
    """Of each labelled row and each type whether it is there, bool (n, types); of labels several may be."""
    places = _places(target, screening)
    if isinstance(target, MultiLabel):
        return np.asarray(scored.truth[:, places] > 0)
    return np.asarray(scored.truth[:, :1] == places[None, :])


def origins(target: Target, screening: Screening, scores: Scores) -> list[str]:
    """Of each row the most probable type, the first of equals; "" where the row has no score."""
    types, of_types = types_of(target, screening), scores[:, _places(target, screening)]
    known = np.isfinite(of_types).all(axis=1)
    best = np.where(known, np.nan_to_num(of_types).argmax(axis=1), -1)
    return ["" if index < 0 else types[index] for index in best]


def screening_of(target: Target, claims: Claims) -> Screening | None:
    """The screening that was asked for, if this target is the one that has the negative class.

    `require_screening` refuses a name that none of a task's targets has; here such a target is asked as ever.

    Raises:
        UnknownNameError: a rare type that the target does not have.
    """
    if claims.negative is None or claims.negative not in _negatives(target):
        return None
    types = _types(target, claims.negative)
    for name in claims.rare:
        if name not in types:
            kind, remedy = f"type of {target.name}", "pass --claims.rare those of them that are rare"
            raise UnknownNameError(kind, name, types, remedy)
    return Screening(claims.negative, tuple(dict.fromkeys(claims.rare)))


def require_screening(targets: Sequence[Target], claims: Claims) -> None:
    """Refuses a negative class that cannot be screened against.

    Raises:
        UnknownNameError: no target has it, or not the rare types; those that there are are listed.
        InputError: no target of several classes, or one of two whose positive class it is.
    """
    if claims.negative is None or any(screening_of(target, claims) is not None for target in targets):
        return
    two = [one for one in targets if _is_of_classes(one) and claims.negative in one.groups]
    if two:
        message = (
            f"{two[0].name} has the two classes {' and '.join(two[0].groups)}, of which the last is taken as positive, so"
            " there are no types to screen for; leave --claims.negative out"
            + (", and rename the classes so that it comes first" if claims.negative == two[0].groups[-1] else "")
        )
        raise InputError(message)
    known = [name for target in targets for name in _negatives(target)]
    if not known:
        message = (
            f"--claims.negative {claims.negative} asks several classes as one, but there is no target of more than two"
            " classes, nor one of labels; leave it out"
        )
        raise InputError(message)
    raise UnknownNameError("negative class", claims.negative, known, "pass --claims.negative one of them")


def negative_first(task: Task, truth: Truth, negative: str | None) -> tuple[Task, Truth]:
    """The task with the negative class of its targets of classes before the others, and the truth that goes with it.

    The label of a patient is the highest of its slides' classes, so that only thus one slide with a type says it of the
    patient, whatever the names: in order of the alphabet, none of lung and none is none.

    Args:
        task: as it was read from a cohort.
        truth: float32 (n, width) of it.
        negative: the class, such as `Claims.negative`; None changes nothing.
    """
    pairs = [
        _negative_first(target, part, negative) for target, part in zip(task.targets, task.truths(truth), strict=True)
    ]
    return Task(tuple(target for target, _ in pairs)), np.concatenate([part for _, part in pairs], axis=1)


def _negative_first(target: Target, truth: Truth, negative: str | None) -> tuple[Target, Truth]:
    if negative is None or not isinstance(target, Classes) or negative not in _negatives(target):
        return target, truth
    ordered = replace(target, classes=(negative, *_types(target, negative)))
    return ordered, ordered.of_texts(target.texts(truth))


def _is_of_classes(target: Target) -> bool:
    """Classes without an order: at least such a grade is a question, any but such a grade is none."""
    return isinstance(target, Classes) and not isinstance(target, Ordinal)


def _negatives(target: Target) -> list[str]:
    """What a screening of this target could be against."""
    if isinstance(target, MultiLabel):
        return [NONE[0]]
    return target.groups if _is_of_classes(target) and len(target.groups) > 2 else []


def _types(target: Target, negative: str) -> list[str]:
    names = list(target.labels) if isinstance(target, MultiLabel) else target.groups
    return [name for name in names if name != negative]


def _places(target: Target, screening: Screening) -> Integers:
    """Of each type its column of the scores, which is its class too, int64 (types,)."""
    names = list(target.labels) if isinstance(target, MultiLabel) else target.groups
    return np.array([names.index(name) for name in types_of(target, screening)], dtype=np.int64)
