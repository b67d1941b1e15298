"""Several cancers asked as one: whether there is any, how each type and the rare ones fare, and which it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.atpoint import SHAPE as POINT_SHAPE
from pathfm.atpoint import at_point
from pathfm.cohortfigures import scored_patients
from pathfm.decisions import (
    ANY,
    POSITIVE,
    decision_columns,
    decision_scores,
    is_of_type,
    origins,
    patient_decisions,
    types_of,
)
from pathfm.delong import delong
from pathfm.metrics import FEW_PATIENTS, UNKNOWN, binary_auroc, figures
from pathfm.metrics import SHAPE as FIGURE_SHAPE
from pathfm.proportions import SHAPE as PROPORTION_SHAPE
from pathfm.proportions import proportion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.decisions import Screening
    from pathfm.metrics import Booleans, Figure, Floats, Metric, Scored
    from pathfm.proportions import Proportion
    from pathfm.targets import Target, Truth

_SHARE = (PROPORTION_SHAPE, None)
_ANY_OF = {"n": int, "auroc": FIGURE_SHAPE, "auroc_delong": FIGURE_SHAPE, "at_point": (POINT_SHAPE, None)}
_TYPE = {
    "name": str,
    "stratum": ("common", "rare"),
    "n": int,
    "few": bool,
    "auroc": FIGURE_SHAPE,
    "sensitivity": _SHARE,
}
SHAPE = {
    "negative": str,
    "n_negative": int,
    "any": _ANY_OF,
    "types": [_TYPE],
    "strata": {"common": (_ANY_OF, None), "rare": (_ANY_OF, None)},
    "origin": {
        "top1": _SHARE,
        "top1_of_all": _SHARE,
        "top1_without_point": PROPORTION_SHAPE,
        "confusion": {"*": {"*": int}},
    },
    "notes": [str],
}
"""A `screening_block` in the grammar of `tables.misfit`."""

_LEAST = 2  # patients of whose scores a spread can be told


def screening_block(
    predictions: pd.DataFrame,
    target: Target,
    screening: Screening,
    prevalence: float | None = None,
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The block "screening" of metrics.json, by patient, with 95 % intervals.

    Each type and each stratum stands against all negatives, by the score of any. What is said at the operating point is
    None where nothing was decided. Of the origin, `top1` is the share of the flagged patients with a cancer whose most
    probable type is theirs, `top1_of_all` the share of all patients with a cancer who are both flagged and of that type,
    and `top1_without_point` the share whose most probable type is theirs, flagged or not. In the confusion who is not
    flagged stands under the negative class, and who has several labels under each of them.

    Args:
        predictions: one row a patient, as `frozen.patient_table` has them; without decisions slides will do.
        target: classes or labels.
        screening: how they are asked as one.
        prevalence: share of patients with any of the types where predictive values are wanted for.
        threshold: what the decisions of patients were made at; None where each fold has its own.
        seed: of the resampling.
    """
    patients = scored_patients(predictions, target)
    flagged = _flagged(predictions, target, screening, patients)
    asked = _Asked(target, screening, patients, is_of_type(target, screening, patients), flagged, seed)
    types, rare = types_of(target, screening), np.isin(types_of(target, screening), screening.rare)
    everyone = np.ones(len(types), dtype=bool)
    sides = {"any": everyone, "common": ~rare, "rare": rare} if rare.any() else {"any": everyone}
    areas = _aurocs(asked, {**sides, **{f"type {name}": np.array(types) == name for name in types}})
    blocks = {
        name: _any_of(asked, chosen, areas[name], threshold, prevalence)
        for name, chosen in sides.items()
        if chosen.any()
    }
    rows = [_type(asked, index, areas[f"type {name}"]) for index, name in enumerate(types)]
    return {
        "negative": screening.negative,
        "n_negative": int((~asked.positive).sum()),
        "any": blocks["any"],
        "types": rows,
        "strata": {name: blocks.get(name) for name in ("common", "rare")},
        "origin": _origin(asked),
        "notes": _notes(asked, rows),
    }


@dataclass(frozen=True, eq=False)
class _Asked:
    """Labelled patients and what is so of them.

    Attributes:
        target: what was asked.
        screening: how.
        patients: by patient.
        of_type: bool (n, types), as `is_of_type` has it.
        flagged: bool (n,), who was called positive; None where nothing was decided.
        seed: of the resampling.
    """

    target: Target
    screening: Screening
    patients: Scored
    of_type: Booleans
    flagged: Booleans | None
    seed: int

    @property
    def positive(self) -> Booleans:
        """Who has any of the types, bool (n,)."""
        return np.asarray(self.of_type.any(axis=1))

    @property
    def types(self) -> list[str]:
        """The types in order."""
        return types_of(self.target, self.screening)


def _flagged(predictions: pd.DataFrame, target: Target, screening: Screening, patients: Scored) -> Booleans | None:
    said = patient_decisions(predictions, decision_columns(target, screening)).get(ANY)
    if said is None or any(name not in said for name in patients.names):
        return None
    return np.array([said[name] == POSITIVE for name in patients.names], dtype=bool)


def _aurocs(asked: _Asked, sides: Mapping[str, Booleans]) -> dict[str, Figure]:
    """Of each choice of types, bool (types,), the AUROC of its patients against the negatives, all in the same resamples.

    Unknown where there are not two patients on either side, from whom no spread could be told.
    """
    positives = {name: np.asarray(asked.of_type[:, chosen].any(axis=1)) for name, chosen in sides.items()}
    negative = ~asked.positive
    enough = {name: positive for name, positive in positives.items() if min(positive.sum(), negative.sum()) >= _LEAST}
    metrics: dict[str, Metric] = {
        name: partial(_auroc, asked, positive, positive | negative) for name, positive in enough.items()
    }
    found = figures([asked.patients], metrics, asked.seed) if metrics else {}
    return {name: found.get(name, UNKNOWN) for name in sides}


def _auroc(asked: _Asked, positive: Booleans, among: Booleans, truth: Truth, scores: Floats, weights: Floats) -> Floats:
    """The AUROC of `ANY` among some of the patients; with the first three given, a `Metric`."""
    score = decision_scores(asked.target, asked.screening, scores[among])[ANY]
    return binary_auroc(positive[among], score, weights[:, among])


def _any_of(
    asked: _Asked, chosen: Booleans, auroc: Figure, threshold: float | None, prevalence: float | None
) -> dict[str, Any]:
    """The figures of the patients of some types, bool (types,), against all negatives."""
    has = np.asarray(asked.of_type[:, chosen].any(axis=1))
    among = has | ~asked.positive
    point = None if asked.flagged is None else at_point(has[among], asked.flagged[among], threshold, prevalence)
    if point is not None and not chosen.all():  # a false alarm, and so how many are right, is of no stratum
        point["ppv"] = point["npv"] = proportion(0, 0)
        point["at_prevalence"] = None
    return {
        "n": int(has.sum()),
        "auroc": auroc,
        "auroc_delong": _delong(asked, has, auroc),
        "at_point": point,
    }


def _delong(asked: _Asked, has: Booleans, auroc: Figure) -> Figure:
    """The AUROC of some patients, bool (n,), against all negatives with DeLong's interval; unknown where `auroc` is."""
    among = has | ~asked.positive
    score = decision_scores(asked.target, asked.screening, asked.patients.scores[among])[ANY]
    return UNKNOWN if auroc["value"] is None else delong(has[among], score)


def _type(asked: _Asked, index: int, auroc: Figure) -> dict[str, Any]:
    name, has = asked.types[index], asked.of_type[:, index]
    n = int(has.sum())
    return {
        "name": name,
        "stratum": "rare" if name in asked.screening.rare else "common",
        "n": n,
        "few": n < FEW_PATIENTS,
        "auroc": auroc,
        "auroc_delong": _delong(asked, has, auroc),
        "sensitivity": None if asked.flagged is None else proportion(int((has & asked.flagged).sum()), n),
    }


def _origin(asked: _Asked) -> dict[str, Any]:
    best = origins(asked.target, asked.screening, asked.patients.scores)
    right = np.array([asked.of_type[row, asked.types.index(name)] for row, name in enumerate(best)], dtype=bool)
    positive, flagged = asked.positive, asked.flagged
    return {
        "top1": None if flagged is None else _share(right, positive & flagged),
        "top1_of_all": None if flagged is None else _share(right & flagged, positive),
        "top1_without_point": _share(right, positive),
        "confusion": {} if flagged is None else _confusion(asked, best, flagged),
    }


def _share(hit: Booleans, among: Booleans) -> Proportion:
    return proportion(int((hit & among).sum()), int(among.sum()))


def _confusion(asked: _Asked, best: Sequence[str], flagged: Booleans) -> dict[str, dict[str, int]]:
    """By what a patient has, and by what it was called, how many there are."""
    names, negative = asked.types, asked.screening.negative
    called = [name if flag else negative for name, flag in zip(best, flagged, strict=True)]
    has = {negative: ~asked.positive, **{name: asked.of_type[:, index] for index, name in enumerate(names)}}
    counts = {
        name: Counter(one for one, there in zip(called, rows, strict=True) if there) for name, rows in has.items()
    }
    return {name: {one: counts[name][one] for one in has} for name in has}


def _notes(asked: _Asked, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    nobody = [row["name"] for row in rows if row["n"] == 0]
    few = [f"{row['name']} ({row['n']})" for row in rows if row["few"] and row["n"]]
    perfect = [row["name"] for row in rows if row["auroc"]["value"] == 1]
    if asked.flagged is None:
        lines.append("no operating point was chosen, so nothing is said of sensitivity; pass --operating-point")
    if nobody:
        lines.append(f"no patient of {', '.join(nobody)}: nothing is known of how these would fare")
    if few:
        lines.append(
            f"fewer than {FEW_PATIENTS} patients of {', '.join(few)}: the intervals of their AUROC are too narrow, those of the"
            " sensitivity hold"
        )
    if perfect:
        lines.append(
            f"no negative is ranked above a patient of {', '.join(perfect)}; more patients may well change that"
        )
    if not asked.screening.rare:
        lines.append("no type was named rare, so common and rare ones are not told apart; pass --claims.rare")
    elif all(row["stratum"] == "rare" for row in rows):
        lines.append("every type was named rare, so there is nothing to hold them against")
    return [*lines, *_commonest(rows)]


def _commonest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an origin is to be held against: who always names the most frequent type is often right."""
    n, total = max(row["n"] for row in rows), sum(row["n"] for row in rows)
    if len(rows) < 2 or not total:
        return []
    most = [row["name"] for row in rows if row["n"] == n]
    which, it = f"most are of {most[0]}", "it"
    if len(most) > 1:
        it = "one of them"
        which = (
            f"none is more frequent than {', '.join(most)}"
            if len(most) < len(rows)
            else "no type is more frequent than another"
        )
    return [f"{which}: who names {it} always is right in {n} of {total} ({100 * n / total:.0f} %); compare the origin"]
