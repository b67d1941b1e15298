"""What a probe predicts from embeddings, and on which side of which split each tile stands: never a patient on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from pathfm.cohort import sort_classes
from pathfm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Split = tuple[Integers, Integers]

LABEL, SITE, NEW_SITES = "label", "site", "label on new sites"
_LEAST = 2  # patients of a class, and sites


@dataclass(frozen=True, eq=False)
class Task:
    """A question to the embeddings; the same for all backbones.

    Attributes:
        name: "label", "site", or "label on new sites".
        rows: int64 (n,), the tiles that it is about, as rows of the table of tiles.
        classes: the possible answers, in order.
        truth: int64 (n,), the right one of each of these tiles.
        patients: int64 (n,), whose tile it is: 0 to p - 1.
        splits: (train, test), each int64 into `rows`; every tile is in one test at most, every class in each train.
        why_not: why it cannot be asked, then there are no splits; "" where it can.
    """

    name: str
    rows: Integers
    classes: tuple[str, ...]
    truth: Integers
    patients: Integers
    splits: tuple[Split, ...]
    why_not: str = ""

    @property
    def chance(self) -> float:
        """The balanced accuracy of whoever guesses."""
        return 1 / max(1, len(self.classes))


def label_task(tiles: pd.DataFrame, folds: int, seed: int) -> Task:
    """Which label a tile has: `StratifiedGroupKFold` by patient.

    Args:
        tiles: one row a tile: label, patient (never empty), in an order that does not depend on the order of files.
        folds: parts that are scored in turn.
        seed: of the shuffle.

    Raises:
        InputError: one class only, or a class with fewer patients than folds; it is named.
    """
    if folds < _LEAST:
        message = f"--folds is {folds}; give 2 or more"
        raise InputError(message)
    task = _task(LABEL, tiles, tiles["label"])
    _require_patients(task, folds)
    splits = stratified(task.truth, task.patients, folds, seed)
    for number, (train, _) in enumerate(splits):
        missing = set(range(len(task.classes))) - set(task.truth[train].tolist())
        if missing:
            message = (
                f"all patients of class {task.classes[min(missing)]!r} are in fold {number}, so there is nothing left to"
                " learn it from; pass another --seed, or fewer --folds"
            )
            raise InputError(message)
    return _with(task, splits)


def site_task(tiles: pd.DataFrame, folds: int, seed: int) -> Task:
    """Which site a tile comes from, split as labels are; in fewer folds where the smallest site has fewer patients.

    Tiles without a site, and sites of a single patient, are left out: such a site cannot be told from its patient.

    Args:
        tiles: one row a tile: site ("" unknown) and patient.
        folds: most parts that are scored in turn.
        seed: of the shuffle.
    """
    known = tiles[tiles["site"] != ""]
    patients = known.groupby("site")["patient"].nunique()
    task = _task(SITE, tiles, tiles["site"].where(tiles["site"].isin(patients.index[patients >= _LEAST]), ""))
    if known.empty:
        return _without(task, "no site is stated")
    if len(task.classes) < _LEAST:
        counts = ", ".join(f"{site} {count}" for site, count in patients.items())
        return _without(task, f"needs two sites of two patients each; patients by site: {counts}")
    splits = stratified(task.truth, task.patients, min(folds, int(_counted(task).min())), seed)
    if any(len(np.unique(task.truth[train])) < len(task.classes) for train, _ in splits):
        return _without(task, "all patients of a site fell into one fold; another --seed may part them")
    return _with(task, splits)


def new_sites_task(tiles: pd.DataFrame) -> Task:
    """Which label a tile of a site has that nobody learned from: each site is scored in turn, if it has two labels.

    Who has tiles at the scored site is not learned from at other sites either.

    Args:
        tiles: one row a tile: label, site ("" unknown) and patient.
    """
    task = _task(NEW_SITES, tiles, tiles["label"].where(tiles["site"] != "", ""))
    sites = tiles["site"].to_numpy()[task.rows]
    mixed = [site for site in np.unique(sites) if len(np.unique(task.truth[sites == site])) >= _LEAST]
    if len(mixed) < _LEAST:
        return _without(task, "labels go with sites: needs two sites that have two labels each")
    splits = []
    for site in mixed:
        test = np.flatnonzero(sites == site)
        train = np.flatnonzero((sites != site) & ~np.isin(task.patients, task.patients[test]))
        if len(np.unique(task.truth[train])) == len(task.classes):
            splits.append((train, test))
    scored = np.concatenate([task.truth[test] for _, test in splits]) if splits else task.truth[:0]
    if len(splits) < _LEAST or len(np.unique(scored)) < len(task.classes):
        return _without(task, "labels go with sites: without a site, the others lack a label to learn")
    return _with(task, tuple(splits))


def stratified(truth: Integers, patients: Integers, folds: int, seed: int) -> tuple[Split, ...]:
    """(train, test) of each fold: all tiles of a patient on one side, classes spread as evenly as that allows."""
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return tuple((train, test) for train, test in splitter.split(truth, truth, patients) if len(test))


def patients_by_class(truth: Integers, patients: Integers, n_classes: int) -> Integers:
    """How many patients have tiles of each class, int64 (n_classes,)."""
    pairs = np.unique(np.stack([truth, patients]), axis=1)
    return np.bincount(pairs[0], minlength=n_classes)


def _task(name: str, tiles: pd.DataFrame, answers: pd.Series[str]) -> Task:
    """The question about those tiles whose answer is known, not split yet."""
    rows = np.flatnonzero((answers != "").to_numpy())
    known = answers.iloc[rows]
    classes = tuple(sort_classes(set(known)))
    truth = known.map({value: code for code, value in enumerate(classes)}).to_numpy().astype(np.int64)
    patients, _ = pd.factorize(tiles["patient"].iloc[rows], sort=True)
    return Task(name, rows, classes, truth, patients.astype(np.int64), ())


def _with(task: Task, splits: tuple[Split, ...]) -> Task:
    return Task(task.name, task.rows, task.classes, task.truth, task.patients, splits)


def _without(task: Task, why_not: str) -> Task:
    return Task(task.name, task.rows, task.classes, task.truth, task.patients, (), why_not)


def _counted(task: Task) -> Integers:
    return patients_by_class(task.truth, task.patients, len(task.classes))


def _require_patients(task: Task, folds: int) -> None:
    if len(task.classes) < _LEAST:
        message = (
            f"all tiles have one label ({', '.join(task.classes) or 'none at all'}); a probe tells two or more apart,"
            " see --label and --classes"
        )
        raise InputError(message)
    counts = _counted(task)
    fewest = int(counts.min())
    if fewest < folds:
        name = task.classes[int(counts.argmin())]
        several = [one for one, count in zip(task.classes, counts, strict=True) if count >= _LEAST]
        fewer = f"use --folds {fewest}, or" if fewest >= _LEAST else "two is the least:"
        message = (
            f"class {name!r} has tiles of {fewest} patient{'s' * (fewest != 1)}, fewer than --folds {folds}; {fewer} leave it out with"
            f" --classes (of two patients or more: {', '.join(several) or 'none'})"
        )
        raise InputError(message)
