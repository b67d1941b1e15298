"""Splits by patient: folds for cross-validation, and the patients that decide when training stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from pathfm.errors import InputError
from pathfm.progress import logger
from pathfm.sitefolds import deal_sites

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pathfm.targets import Target, Truth

Split = Literal["patient", "site"]
"""What no two folds share: a patient, or a site and so a patient too."""
_LEFT_AFTER_CARVING = 2


def assign_folds(
    rows: pd.DataFrame,
    folds: int,
    seed: int,
    classes: Sequence[str] = (),
    split: Split = "patient",
    option: str = "--folds",
) -> pd.Series[int]:
    """The fold of each row, 0 to folds - 1, indexed like the rows.

    All rows of a patient share a fold. By patient, patients are dealt out stratum by stratum (a patient's stratum is the
    highest of its rows'), shuffled by the seed, so that folds differ by at most one patient, in each stratum and in all.
    By site, whole sites are dealt out as `sitefolds.deal_sites` does, the strata as even as they allow. The result does
    not depend on the order of the rows.

    Args:
        rows: one a slide, or of a bag one for each of its sites, indexed by its id; columns patient_id, stratum (as
            `Target.strata` has it: -1 without a label, which is a stratum of its own) and, where folds are by site, site.
        folds: at least 2.
        seed: of the shuffle.
        classes: names of the strata, each of which every fold then has to hold; () for cuts of a number.
        split: what folds do not share.
        option: what the user calls the number of folds.

    Raises:
        InputError: more folds than can be, and the largest usable number; one class only; a row without site.
    """
    table = rows[["patient_id", "stratum", *(["site"] if split == "site" else [])]].sort_index()
    _require_classes(table, classes)
    if folds < 2:
        message = f"{option} {folds} leaves nothing to score; use 2 or more"
        raise InputError(message)
    if split == "site":
        dealt = deal_sites(table, folds, seed, classes, option)
    else:
        _require_patients(table, folds, classes, option)
        dealt = {patient: place % folds for place, patient in enumerate(_shuffled(table, seed))}
    return rows["patient_id"].map(dealt).astype(int).rename("fold")


def strata_of(target: Target, truth: Truth, patients: Sequence[str]) -> NDArray[np.int64]:
    """What folds are balanced over, of each row, int64 (n,); -1 without a label.

    Cuts of a number are those of its distribution over the patients, however many rows each has.

    Args:
        target: what is asked; of several the first.
        truth: float32 (n, width) of its rows.
        patients: patient_id of each row.
    """
    if target.groups or not len(truth):
        return target.strata(truth)
    codes, names = pd.factorize(np.asarray(patients, dtype=object))
    of_patients = np.stack([target.of_patient(truth[codes == code]) for code in range(len(names))])
    strata: NDArray[np.int64] = target.strata(of_patients)[codes]
    return strata


def carve_stopping(
    patients: Mapping[str, str] | pd.Series[str],
    strata: Mapping[str, int] | pd.Series[int],
    share: float,
    seed: int,
) -> set[str]:
    """The patients among the training patients whose loss decides when to stop; empty where they cannot be spared.

    About `share` of each stratum, at least one patient. Empty where a stratum would have no patient to stop on, or would
    keep fewer than two to learn from: training then runs its fixed number of epochs, and the log says so. Patients
    without a label are shared out like a stratum, which may be left without any.

    Args:
        patients: patient_id by slide_id, training slides only.
        strata: as `Target.strata` has it, by slide_id.
        share: of the patients; 0 carves nobody.
        seed: of the shuffle.
    """
    ids = sorted(strata.keys())
    columns = {"patient_id": [patients[one] for one in ids], "stratum": [int(strata[one]) for one in ids]}
    table = pd.DataFrame(columns, index=ids)
    if share <= 0:
        return set()
    order = pd.Series(_shuffled(table, seed), dtype=object)
    by_stratum = order.groupby(order.map(table.groupby("patient_id")["stratum"].max()))
    carved = {patient for _, group in by_stratum for patient in group.iloc[: max(1, round(share * len(group)))]}
    labelled = table[table["stratum"] >= 0]
    inside = labelled["patient_id"].isin(carved)
    given = labelled[inside].groupby("stratum")["patient_id"].nunique()
    left = labelled[~inside].groupby("stratum")["patient_id"].nunique()
    n_strata = labelled["stratum"].nunique()
    if not n_strata or len(given) < n_strata or len(left) < n_strata or left.min() < _LEFT_AFTER_CARVING:
        logger.info("too few patients of a class to spare some for early stopping; training runs all its epochs")
        return set()
    return carved


def _shuffled(table: pd.DataFrame, seed: int) -> list[str]:
    """Patients stratum by stratum, shuffled within.

    Those with slides of several strata stand where their lowest borders the others, so that for two classes the
    patients of either are neighbours, and dealing them in turn leaves no fold without.
    """
    generator = np.random.default_rng(seed)
    labelled = table.assign(lowest=table["stratum"].where(table["stratum"] >= 0))
    strata = labelled.groupby("patient_id").agg(highest=("stratum", "max"), lowest=("lowest", "min"))
    luck = pd.Series(generator.permutation(len(strata)), index=strata.index)
    return list(strata.assign(luck=luck).sort_values(["highest", "lowest", "luck"]).index)


def _require_classes(table: pd.DataFrame, classes: Sequence[str]) -> None:
    found = sorted(set(table["stratum"]) - {-1})
    if classes and len(found) < 2:
        names = ", ".join(classes[index] for index in found)
        message = f"all labelled slides with tissue are of one class ({names}); a model needs two, see --label"
        raise InputError(message)


def _require_patients(table: pd.DataFrame, folds: int, classes: Sequence[str], option: str) -> None:
    labelled = table[table["stratum"] >= 0]
    if not classes:
        patients = labelled["patient_id"].nunique()
        if folds > patients:
            message = f"{option} {folds} is more than there are labelled patients ({patients}); use {option} {patients}"
            raise InputError(message)
        return
    counts = labelled.groupby("stratum")["patient_id"].nunique()
    smallest = int(counts.min())
    if folds > smallest:
        name = classes[counts.index[int(counts.to_numpy().argmin())]]
        remedy = f"use {option} {smallest}" if smallest > 1 else "cross-validation needs two patients of each class"
        message = f"{option} {folds} is more than class {name!r} has patients ({smallest}); {remedy}"
        raise InputError(message)
