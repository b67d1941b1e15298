"""What a report says of the cohort: how many of what, where they come from, and at which scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings
    from pathfm.targets import Target, Truth


def truth_of(cohort: Cohort, target: Target) -> Truth:
    """What the table says of each slide, as the target reads it, float32 (n, width); NaN for what it does not know."""
    read, truth = type(target).read(target.name, cohort.cells(target.columns))
    return target.of_texts(read.texts(truth))


def cohort_facts(cohort: Cohort, files: Sequence[Embeddings], target: Target, truth: Truth) -> dict[str, Any]:
    """Counts, and rows for the tables by group, site and scale.

    Args:
        cohort: the table.
        files: what the embeddings files of its slides say.
        target: what is predicted.
        truth: of each slide of the cohort, as `truth_of` has it.
    """
    table = cohort.table
    tiles = np.array([len(one.coords) for one in files] or [0])
    return {
        "name": cohort.source.name,
        "n_slides": len(table),
        "n_patients": table["patient_id"].nunique(),
        "n_sites": table.loc[table["site"] != "", "site"].nunique(),
        "groups": _by_group(table, target, truth),
        "range": _range(target, truth),
        "site_groups": list(target.counts(truth)) or ["labelled"],
        "sites": _by_site(table, target, truth),
        "scales": _by_scale(files),
        "n_tiles": int(tiles.sum()),
        "tiles": {"least": int(tiles.min()), "median": float(np.median(tiles)), "most": int(tiles.max())},
        "n_failed_tiles": sum(len(one.failed) for one in files),
    }


def credits_of(cohort: Cohort, column: str | None) -> list[str]:
    """The values of a column that is asked for by its name: in another table the same name may hold something private."""
    if column is None:
        return []
    if column not in cohort.stated:
        remedy = f"{cohort.source} has these columns; pass --credit one of them"
        raise UnknownNameError("credit column", column, cohort.stated, remedy)
    return sorted(set(cohort.table[column]) - {""})


def _by_group(table: pd.DataFrame, target: Target, truth: Truth) -> list[dict[str, Any]]:
    """Slides and patients of each group, of all that are labelled where groups are not all of them, and of the unlabelled."""
    labelled: NDArray[np.bool_] = np.asarray(~np.isnan(truth).any(axis=1))
    of_slides, of_patients = target.counts(truth), target.counts(_patients(table, target, truth))
    rows = [{"name": name, "slides": n, "patients": of_patients[name]} for name, n in of_slides.items()]
    parts = {"no label": ~labelled} if target.groups else {"labelled": labelled, "no label": ~labelled}
    for name, part in parts.items():
        patients = {patient for patient, of in zip(table["patient_id"], part, strict=True) if of}
        if patients:
            rows.append({"name": name, "slides": int(part.sum()), "patients": len(patients)})
    return rows


def _patients(table: pd.DataFrame, target: Target, truth: Truth) -> Truth:
    """A row a patient."""
    places = table.reset_index(drop=True).groupby("patient_id").indices.values()
    return np.stack([target.of_patient(truth[rows]) for rows in places])


def _range(target: Target, truth: Truth) -> dict[str, float] | None:
    """Least, median and most of a number; None of anything else."""
    known = truth[~np.isnan(truth).any(axis=1), 0]
    if target.kind != "regression" or not len(known):
        return None
    return {"least": float(known.min()), "median": float(np.median(known)), "most": float(known.max())}


def _by_site(table: pd.DataFrame, target: Target, truth: Truth) -> list[dict[str, Any]]:
    """Slides of each site by group; a site with one group alone is what a confounder looks like."""
    names = sorted(set(table["site"]), key=lambda name: (name == "", name))
    rows = []
    for name in names:
        here = truth[(table["site"] == name).to_numpy()]
        counts = list(target.counts(here).values()) or [int((~np.isnan(here).any(axis=1)).sum())]
        one_class = len(target.groups) > 1 and sum(n > 0 for n in counts) == 1
        rows.append({"name": name, "counts": counts, "one_class": one_class})
    return rows if any(names) else []


def _by_scale(files: Iterable[Embeddings]) -> list[dict[str, Any]]:
    table = pd.DataFrame([{"source": one.mpp_source, "mpp": one.mpp} for one in files], columns=["source", "mpp"])
    groups = table.groupby("source")["mpp"]
    return [
        {"source": str(source), "slides": len(mpp), "least": float(mpp.min()), "most": float(mpp.max())}
        for source, mpp in groups
    ]
