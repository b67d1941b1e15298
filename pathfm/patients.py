"""Bags of patients: which slides form one, and what the table says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from pathfm.errors import CohortError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

Unit = Literal["slide", "patient"]
"""What a bag is of: one slide, or all slides of a patient."""

NO_LABEL, NO_TISSUE, NO_EMBEDDINGS = "no_label", "no_tissue", "no_embeddings"
BETWEEN = ";"
"""Stands between the slide_ids of a bag."""
_BEST_FIRST = ("", NO_TISSUE, NO_EMBEDDINGS)


def bags_of(slides: pd.DataFrame, unit: Unit) -> list[list[int]]:
    """Of each bag the places of its slides, sorted by slide_id; a patient stands where its first slide does.

    Some heads read the slides of a bag in order, so that it may not depend on that of a table.

    A slide without tissue, or without embeddings, is in the bag of its patient only where no other slide is better.

    Args:
        slides: columns slide_id, patient_id and reason; a slide whose patient is not known ("") is a bag of its own.
        unit: what a bag is of.

    Raises:
        CohortError: a slide_id that cannot stand in a list of them.
    """
    if unit == "slide":
        return [[place] for place in range(len(slides))]
    odd = [name for name in slides["slide_id"] if BETWEEN in name]
    if odd:
        message = (
            f"slide {odd[0]!r} has a {BETWEEN!r} in its name, which stands between the slides of a patient; rename it"
        )
        raise CohortError(message)
    groups: dict[tuple[str, int], list[int]] = {}
    for place, patient in enumerate(slides["patient_id"]):
        groups.setdefault((patient, -1 if patient else place), []).append(place)
    names, reasons = list(slides["slide_id"]), list(slides["reason"])
    return [_best(sorted(places, key=names.__getitem__), reasons) for places in groups.values()]


def require_unit(unit: str) -> None:
    """Refuses what is no unit, as a function may be given where a command line asks.

    Raises:
        UnknownNameError: the two are listed.
    """
    if unit not in get_args(Unit):
        raise UnknownNameError("unit", str(unit), get_args(Unit))


def slides_of_bag(slide_id: str, unit: Unit) -> tuple[str, ...]:
    """The slides of a row of a table of bags: the one, whatever its name, or those of the patient."""
    return tuple(slide_id.split(BETWEEN)) if unit == "patient" else (slide_id,)


def n_slides_of(slide_ids: Sequence[str], unit: Unit) -> int:
    """How many slides the bags of such ids hold."""
    return sum(len(slides_of_bag(name, unit)) for name in slide_ids)


def require_agreement(source: Path, cells: pd.DataFrame, patients: pd.Series[str]) -> None:
    """Refuses slides of one patient that say different things of it, for their bag can have one label only.

    Args:
        source: the table, for the message.
        cells: text, index slide_id; "" is not known, and agrees with everything.
        patients: the patient of each slide, index slide_id.

    Raises:
        CohortError: the patient, the column and what it holds.
    """
    for column in cells:
        known = cells[column][cells[column] != ""]
        of = patients[known.index]
        differing = known.groupby(of.to_numpy()).nunique()
        if (differing > 1).any():
            patient = differing.index[differing > 1][0]
            said = sorted(set(known[(of == patient).to_numpy()]))
            message = (
                f"{source}: the slides of patient {patient} hold {' and '.join(said[:3])} in the column {column!r}; a patient"
                " is one bag and has one value: make them agree, empty the others, or use --unit slide"
            )
            raise CohortError(message)


def _best(places: list[int], reasons: Sequence[str]) -> list[int]:
    best = min((reasons[place] for place in places), key=_BEST_FIRST.index)
    return [place for place in places if reasons[place] == best]
