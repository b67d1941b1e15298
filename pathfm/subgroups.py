"""The figures again for parts of the patients, by site, scanner or any column of the cohort, and which fares worst."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.cohort import sort_classes
from pathfm.cohortfigures import scored_patients
from pathfm.decisions import (
    ANY,
    POSITIVE,
    decision_columns,
    decision_scores,
    is_of_type,
    outcomes_of,
    patient_decisions,
)
from pathfm.metrics import FEW_PATIENTS, RESAMPLES, UNKNOWN, Scored, binary_auroc, figures
from pathfm.metrics import SHAPE as FIGURE_SHAPE
from pathfm.patients import BETWEEN
from pathfm.proportions import SHAPE as PROPORTION_SHAPE
from pathfm.proportions import proportion
from pathfm.tables import known_text
from pathfm.targets.numbers import cuts_of, number_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.cohort import Cohort
    from pathfm.decisions import Screening
    from pathfm.metrics import Booleans, Floats, Metric
    from pathfm.targets import Target, Truth

_ROW = {
    "value": str,
    "n": int,
    "n_by_class": {"*": int},
    "figure": FIGURE_SHAPE,
    "sensitivity": (PROPORTION_SHAPE, None),
    "specificity": (PROPORTION_SHAPE, None),
}
SHAPE = {
    "figure": str,
    "columns": {"*": {"rows": [_ROW], "worst": (str, None), "p": (float, None), "note": str}},
}
"""A `subgroups_block` in the grammar of `tables.misfit`."""

NOT_STATED = "not stated"
"""The group of the patients of whom a column says nothing."""
ALWAYS = ("site", "scanner")
"""Columns that are looked at without being named, where the cohort has them."""

_FEW_ON_A_SIDE = 5
_MOST_NUMBERS = 6  # different numbers that are groups by themselves; more of them are cut into bands
_BANDS = 3
_MOST_GROUPS = 50
_MAX_WEIGHTS = 4_000_000  # of permutations held at a time: 32 MB
_MOST_DRAWN, _FEWEST_DRAWS = 400_000_000, 200  # of large cohorts of many groups fewer permutations are drawn: a minute


def subgroups_block(
    predictions: pd.DataFrame,
    target: Target,
    columns: Mapping[str, Mapping[str, str]],
    screening: Screening | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The block "subgroups" of metrics.json: of each column the groups with their figures, by patient, and the worst.

    The figure is the main one of the target, of a screening the AUROC of any. A patient whose slides say several values
    counts in each of these groups, with the scores and the decision that the patient has. Columns of more than 6 different
    numbers are cut into thirds. A group of fewer than 10 patients, or of fewer than 5 with or without what is asked,
    is shown with its number alone and is never the worst. How much the worst is worth is said by `p`: how often the worst
    of as many groups would be as low if the patients of each class fell into them by chance.

    Args:
        predictions: one row a patient, as `frozen.patient_table` has them, whose decisions give sensitivity and specificity
            where one question is asked; without decisions slides will do.
        target: what was asked.
        columns: by name the cells by slide_id, such as `subgroup_columns` has them; "" where not known.
        screening: how several types are asked as one.
        seed: of the resampling.
    """
    patients = scored_patients(predictions, target)
    name, metric = _figure(target, screening)
    decided = patient_decisions(predictions, decision_columns(target, screening))
    flags = next(iter(decided.values())) if len(decided) == 1 else {}
    asked = _Asked(target, screening, patients, metric, flags, seed)
    blocks = {column: _block(asked, _values(predictions, cells, patients)) for column, cells in columns.items()}
    return {"figure": name, "columns": blocks}


def subgroup_columns(
    cohort: Cohort, names: Sequence[str], option: str = "claims.subgroups"
) -> dict[str, dict[str, str]]:
    """Of `ALWAYS`, where the cohort has them, and of the named columns the cells by slide_id, "" where not known.

    Raises:
        UnknownNameError: no such column.
    """
    found = {}
    for name in dict.fromkeys([*(one for one in ALWAYS if one in cohort.stated), *names]):
        if name == "site" and name in cohort.stated:  # one of pathfm's own, which `Cohort.cells` does not give
            found[name] = dict(zip(cohort.table["slide_id"], known_text(cohort.table["site"]), strict=True))
        else:
            found[name] = {str(slide): cell for slide, cell in cohort.cells([name], option)[name].items()}
    return {name: cells for name, cells in found.items() if any(cells.values()) or name not in ALWAYS}


@dataclass(frozen=True, eq=False)
class _Asked:
    """Labelled patients and what is computed of parts of them.

    Attributes:
        target: what was asked.
        screening: how several types are asked as one; None where they are not.
        patients: by patient.
        metric: the figure.
        flags: what is decided of each patient by name, as `patient_decisions` has it; {} where nothing is.
        seed: of the resampling.
    """

    target: Target
    screening: Screening | None
    patients: Scored
    metric: Metric
    flags: Mapping[str, str]
    seed: int


def _figure(target: Target, screening: Screening | None) -> tuple[str, Metric]:
    if screening is None:
        return next(iter(target.metrics.items()))
    return f"auroc_{ANY}", partial(_auroc_any, target, screening)


def _auroc_any(target: Target, screening: Screening, truth: Truth, scores: Floats, weights: Floats) -> Floats:
    """The AUROC of any type; with the first two given, a `Metric`."""
    everyone = np.arange(len(truth), dtype=np.int64)
    rows = Scored(truth, scores, everyone, np.zeros_like(everyone), ())
    positive = np.asarray(is_of_type(target, screening, rows).any(axis=1))
    return binary_auroc(positive, decision_scores(target, screening, scores)[ANY], weights)


def _values(predictions: pd.DataFrame, cells: Mapping[str, str], patients: Scored) -> list[set[str]]:
    """What the slides of each patient say; `NOT_STATED` where none says anything."""
    found: dict[str, set[str]] = {name: set() for name in patients.names}
    for bag, patient in zip(predictions["slide_id"].astype(str), predictions["patient_id"].astype(str), strict=True):
        if patient in found:
            slides = [bag] if bag in cells else bag.split(BETWEEN)
            found[patient] |= {cells.get(one, "").strip() for one in slides} - {""}
    return [found[name] or {NOT_STATED} for name in patients.names]


def _block(asked: _Asked, values: Sequence[set[str]]) -> dict[str, Any]:
    """The groups of one column.

    Args:
        asked: of what.
        values: of each patient what the column says.
    """
    values, names = _banded(values)
    there = [name for name in names if any(name in one for one in values)]
    shown = sorted(there, key=lambda name: -sum(name in one for one in values))[:_MOST_GROUPS]
    groups = {name: np.array([name in one for one in values], dtype=bool) for name in there if name in shown}
    rows = [_row(asked, name, members) for name, members in groups.items()]
    judged = {row["value"]: groups[row["value"]] for row in rows if row["figure"]["value"] is not None}
    worst = min((row for row in rows if row["value"] in judged), key=lambda row: row["figure"]["value"], default=None)
    if worst is None or len(judged) < 2:
        return {"rows": rows, "worst": None, "p": None, "note": _nothing(len(there), len(judged))}
    p = _p_of_worst(asked, np.array(list(judged.values())), worst["figure"]["value"])
    note = _note(worst["value"], len(there), len(judged), p)
    return {"rows": rows, "worst": worst["value"], "p": p, "note": note}


def _banded(values: Sequence[set[str]]) -> tuple[Sequence[set[str]], list[str]]:
    """The values and their names in order; many different numbers as bands of about as many patients each."""
    known = sort_classes(set().union(*values) - {NOT_STATED})
    last = [NOT_STATED] if any(NOT_STATED in one for one in values) else []
    numbers = np.array([number_of(text) for text in known])
    if len(known) <= _MOST_NUMBERS or np.isnan(numbers).any():
        return values, [*known, *last]
    held = np.array([number_of(text) for one in values for text in one - {NOT_STATED}], dtype=np.float32)
    places = np.searchsorted(numbers, cuts_of(held, _BANDS)).clip(max=len(known) - 1)
    edges = [known[place] for place in dict.fromkeys(places) if place > 0]
    edges = edges or [known[1]]  # most say the lowest, such as 0
    names = [f"below {edges[0]}", *(f"{low} to below {high}" for low, high in pairwise(edges)), f"{edges[-1]} or more"]
    bands = np.searchsorted([number_of(edge) for edge in edges], numbers, side="right")
    band = {text: names[place] for text, place in zip(known, bands, strict=True)}
    return [{band.get(text, text) for text in one} for one in values], [*names, *last]


def _row(asked: _Asked, name: str, members: Booleans) -> dict[str, Any]:
    group = _part(asked.patients, members)
    outcomes = outcomes_of(asked.target, asked.screening, group)
    few = any(min(one.positive.sum(), (~one.positive).sum()) < _FEW_ON_A_SIDE for one in outcomes)
    row = {
        "value": name,
        "n": len(group.truth),
        "n_by_class": asked.target.counts(group.truth),
        "figure": UNKNOWN,
        "sensitivity": None,
        "specificity": None,
    }
    if few or len(group.truth) < FEW_PATIENTS:
        return row
    row["figure"] = figures([group], {"figure": asked.metric}, asked.seed)["figure"]
    if len(outcomes) == 1 and all(one in asked.flags for one in group.names):
        positive = outcomes[0].positive
        flagged = np.array([asked.flags[one] == POSITIVE for one in group.names], dtype=bool)
        row["sensitivity"] = proportion(int((flagged & positive).sum()), int(positive.sum()))
        row["specificity"] = proportion(int((~flagged & ~positive).sum()), int((~positive).sum()))
    return row


def _part(patients: Scored, members: Booleans) -> Scored:
    names = tuple(name for name, there in zip(patients.names, members, strict=True) if there)
    everyone = np.arange(len(names), dtype=np.int64)
    return Scored(patients.truth[members], patients.scores[members], everyone, patients.strata[members], names)


def _p_of_worst(asked: _Asked, groups: Booleans, worst: float) -> float:
    """How often the lowest figure of groups that patients fall into by chance is as low.

    Patients change places with those of whom the same is so. A permutation test with the minimum as its statistic, so that
    the number of groups and their sizes are allowed for; one is added to both counts (Phipson, Smyth, Statistical
    Applications in Genetics and Molecular Biology 9:39, 2010).

    Args:
        asked: of what.
        groups: bool (g, n), who is in which of the groups that are judged.
        worst: the lowest figure that was seen.
    """
    patients, generator = asked.patients, np.random.default_rng(asked.seed)
    answers = [one.positive for one in outcomes_of(asked.target, asked.screening, patients)]
    alike = np.unique(np.array([np.zeros(len(patients.names)), *answers]), axis=1, return_inverse=True)[1].ravel()
    strata = [np.flatnonzero(alike == code) for code in np.unique(alike)]
    total = int(np.clip(_MOST_DRAWN // groups.size, _FEWEST_DRAWS, RESAMPLES))
    as_low, chunk = 0, int(np.clip(_MAX_WEIGHTS // groups.size, 1, total))
    for start in range(0, total, chunk):
        size = min(chunk, total - start)
        places = np.tile(np.arange(groups.shape[1]), (size, 1))
        for members in strata:
            places[:, members] = generator.permuted(places[:, members], axis=1)
        drawn = groups[:, places].astype(np.float64)  # (g, b, n)
        each = [asked.metric(patients.truth, patients.scores, weights) for weights in drawn]
        as_low += int((np.fmin.reduce(each) <= worst + 1e-12).sum())
    return (as_low + 1) / (total + 1)


def _nothing(n_groups: int, n_judged: int) -> str:
    if n_groups < 2:
        return "all patients are of one group, so there is nothing to compare"
    return (
        f"{n_judged or 'none'} of {n_groups} groups can be judged, so none is called the worst: it takes {FEW_PATIENTS}"
        f" patients, and {_FEW_ON_A_SIDE} with and without what is asked"
    )


def _note(name: str, n_groups: int, n_judged: int, p: float) -> str:
    """What to make of it that some group, of this name, is the worst: some group always is."""
    left_out = f" ({n_groups - n_judged} more too small to judge)" if n_groups > n_judged else ""
    how = (
        f"{max(p, 0.001):.1%} of such groupings only"
        if p < 0.05
        else f"{p:.0%} of such groupings: no sign of a difference"
    )
    return f"{name} is the worst of {n_judged} groups{left_out}; by chance alone the worst of them is as low in {how}"
