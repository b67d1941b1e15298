"""Splits by patient: folds for cross-validation, and the patients that decide when training stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pathfm.errors import InputError
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LEFT_AFTER_CARVING = 2


def assign_folds(
    patients: Mapping[str, str] | pd.Series[str],
    targets: Mapping[str, int] | pd.Series[int],
    folds: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> pd.Series[int]:
    """The fold of each slide, 0 to folds - 1, indexed by slide_id like `targets`.

    All slides of a patient share a fold. Patients are dealt out class by class (a patient's class is the highest of
    its slides'), shuffled by the seed, so that folds differ by at most one patient, in each class and in all. The
    result does not depend on the order of the rows.

    Args:
        patients: patient_id by slide_id.
        targets: class index by slide_id.
        folds: at least 2.
        seed: of the shuffle.
        classes: names for the message of an error.

    Raises:
        InputError: one class only, or more folds than the smallest class has patients; the largest usable number is named.
    """
    table = _slides(patients, targets)
    _require_folds(table, folds, classes)
    dealt = {patient: place % folds for place, patient in enumerate(_shuffled(table, seed))}
    fold_of = table["patient"].map(dealt).astype(int).rename("fold")
    return fold_of.loc[list(targets.keys())]


def carve_stopping(
    patients: Mapping[str, str] | pd.Series[str],
    targets: Mapping[str, int] | pd.Series[int],
    share: float,
    seed: int,
) -> set[str]:
    """The patients among the training patients whose loss decides when to stop; empty where they cannot be spared.

    About `share` of each class, at least one patient. Empty where a class would have no patient to stop on, or would
    keep fewer than two to learn from: training then runs its fixed number of epochs, and the log says so.

    Args:
        patients: patient_id by slide_id, training slides only.
        targets: class index by slide_id.
        share: of the patients; 0 carves nobody.
        seed: of the shuffle.
    """
    table = _slides(patients, targets)
    if share <= 0:
        return set()
    order = pd.Series(_shuffled(table, seed))
    by_class = order.groupby(order.map(_class_of(table)))
    carved = {patient for _, group in by_class for patient in group.iloc[: max(1, round(share * len(group)))]}
    inside = table["patient"].isin(carved)
    given = table[inside].groupby("target")["patient"].nunique()
    left = table[~inside].groupby("target")["patient"].nunique()
    n_classes = table["target"].nunique()
    if len(given) < n_classes or len(left) < n_classes or left.min() < _LEFT_AFTER_CARVING:
        logger.info("too few patients of a class to spare some for early stopping; training runs all its epochs")
        return set()
    return carved


def _slides(patients: Mapping[str, str] | pd.Series[str], targets: Mapping[str, int] | pd.Series[int]) -> pd.DataFrame:
    """One row a slide, columns patient and target, sorted by slide_id."""
    ids = sorted(targets.keys())
    return pd.DataFrame(
        {"patient": [patients[slide] for slide in ids], "target": [int(targets[slide]) for slide in ids]}, index=ids
    )


def _class_of(table: pd.DataFrame) -> pd.Series[int]:
    return table.groupby("patient")["target"].max()


def _shuffled(table: pd.DataFrame, seed: int) -> list[str]:
    """Patients class by class, shuffled within.

    Those with slides of several classes stand where their lowest class borders the others, so that for two classes the
    patients of either are neighbours, and dealing them in turn leaves no fold without.
    """
    generator = np.random.default_rng(seed)
    classes = table.groupby("patient")["target"].agg(["max", "min"])
    luck = pd.Series(generator.permutation(len(classes)), index=classes.index)
    return list(classes.assign(luck=luck).sort_values(["max", "min", "luck"]).index)


def _require_folds(table: pd.DataFrame, folds: int, classes: Sequence[str] | None) -> None:
    counts = table.groupby("target")["patient"].nunique()
    names = [str(index) if classes is None else classes[index] for index in counts.index]
    if len(counts) < 2:
        message = (
            f"all labelled slides with tissue are of one class ({', '.join(names)}); a model needs two, see --label"
        )
        raise InputError(message)
    if folds < 2:
        message = f"--folds {folds} leaves nothing to score; use 2 or more"
        raise InputError(message)
    smallest = int(counts.min())
    if folds > smallest:
        name = names[int(counts.to_numpy().argmin())]
        remedy = f"use --folds {smallest}" if smallest > 1 else "cross-validation needs two patients of each class"
        message = f"--folds {folds} is more than class {name!r} has patients ({smallest}); {remedy}"
        raise InputError(message)
