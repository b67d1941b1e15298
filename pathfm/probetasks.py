"""What a probe predicts from embeddings, and on which side of which split each tile stands: never a patient on both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from pathfm.cohort import sort_classes
from pathfm.errors import InputError
from pathfm.metrics import FEW_PATIENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Split = tuple[Integers, Integers]

LABEL, SITE, NEW_SITES = "label", "site", "label on new sites"
_LEAST = 2  # patients of a class, and sites
_NO_SITE = "no site is stated"


@dataclass(frozen=True, eq=False)
class Task:
    """A question to the embeddings; the same for all backbones.

    Attributes:
        name: "label", "site", or "label on new sites".
        rows: int64 (n,), the tiles that it is about, as rows of the table of tiles.
        classes: the possible answers, in order.
        truth: int64 (n,), the right one of each of these tiles.
        patients: int64 (n,), whose tile it is: 0 to p - 1.
        groups: int64 (n,), within which a tile is scored: its site where sites are new, else 0. What is learned at other
            sites is learned from other shares of the classes, so recalls of several sites do not go into one sum.
        splits: (train, test), each int64 into `rows`; every tile is in one test at most, every class in each train.
        scored: the names of the groups that are scored; () where there is one.
        why_not: why it cannot be asked, then there are no splits; "" where it can.
        notes: what was left out, and what else somebody who reads the figures should know.
    """

    name: str
    rows: Integers
    classes: tuple[str, ...]
    truth: Integers
    patients: Integers
    groups: Integers
    splits: tuple[Split, ...] = ()
    scored: tuple[str, ...] = ()
    why_not: str = ""
    notes: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The highest balanced accuracy of whoever guesses: one over the classes of a group, the mean over the groups."""
        if not self.splits:
            return 1 / max(1, len(self.classes))
        tested = np.concatenate([test for _, test in self.splits])
        pairs = np.unique(np.stack([self.groups[tested], self.truth[tested]]), axis=1)
        _, counts = np.unique(pairs[0], return_counts=True)
        return float((1 / counts).mean())


def tasks_of(tiles: pd.DataFrame, folds: int, seed: int) -> list[Task]:
    """The questions: which label, which site, and which label on new sites.

    Raises:
        InputError: labels that cannot be told apart, such as one with fewer patients than folds.
    """
    return [label_task(tiles, folds, seed), site_task(tiles, folds, seed), new_sites_task(tiles)]


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
    return _asked(task, splits)


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
    alone = [str(site) for site in patients.index[patients < _LEAST]]
    task = _task(SITE, tiles, tiles["site"].where(~tiles["site"].isin(alone), ""))
    if known.empty:
        return replace(task, why_not=_NO_SITE)
    notes = _left_out("tiles have no site and are left out", len(tiles) - len(known))
    notes += _left_out("sites of one patient, who cannot be told from the site, are left out", len(alone), alone)
    task = replace(task, notes=notes)
    if len(task.classes) < _LEAST:
        counts = ", ".join(f"{site} {count}" for site, count in patients.items())
        return replace(task, why_not=f"needs two sites of two patients each; patients by site: {counts}")
    splits = stratified(task.truth, task.patients, min(folds, int(_counted(task).min())), seed)
    if any(len(np.unique(task.truth[train])) < len(task.classes) for train, _ in splits):
        return replace(task, why_not="all patients of a site fell into one fold; another --seed may part them")
    return _asked(task, splits)


def new_sites_task(tiles: pd.DataFrame) -> Task:
    """Which label a tile of a site has that nobody learned from: each site is scored in turn, if it has two labels.

    Who has tiles at the scored site is not learned from at other sites either.

    Args:
        tiles: one row a tile: label, site ("" unknown) and patient.
    """
    task = _task(NEW_SITES, tiles, tiles["label"].where(tiles["site"] != "", ""))
    codes, names = pd.factorize(tiles["site"].iloc[task.rows], sort=True)
    task = replace(task, groups=codes.astype(np.int64))
    if not len(names):
        return replace(task, why_not=_NO_SITE)
    mixed = [code for code in range(len(names)) if len(np.unique(task.truth[codes == code])) >= _LEAST]
    if len(mixed) < _LEAST:
        return replace(task, why_not="labels go with sites: needs two sites that have two labels each")
    splits = {}
    for code in mixed:
        test = np.flatnonzero(codes == code)
        train = np.flatnonzero((codes != code) & ~np.isin(task.patients, task.patients[test]))
        if len(np.unique(task.truth[train])) == len(task.classes):
            splits[code] = (train, test)
    scored = np.concatenate([task.truth[test] for _, test in splits.values()]) if splits else task.truth[:0]
    if len(splits) < _LEAST or len(np.unique(scored)) < len(task.classes):
        return replace(task, why_not="labels go with sites: without a site, the others lack a label to learn")
    others = [str(name) for code, name in enumerate(names) if code not in splits]
    notes = _left_out(
        "sites have one label, or the others lack one without them, and are not scored", len(others), others
    )
    task = _asked(replace(task, notes=notes), tuple(splits.values()))
    return replace(task, scored=tuple(str(names[code]) for code in splits))


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
    return Task(name, rows, classes, truth, patients.astype(np.int64), np.zeros(len(rows), np.int64))


def _asked(task: Task, splits: tuple[Split, ...]) -> Task:
    """The task with its splits, and a note where classes have few patients."""
    counts = _counted(task)
    few = [f"{name} ({count})" for name, count in zip(task.classes, counts, strict=True) if count < FEW_PATIENTS]
    thin = f"fewer than {FEW_PATIENTS} patients of {', '.join(few)}: the intervals are rough and too narrow"
    return replace(task, splits=splits, notes=(*task.notes, thin) if few else task.notes)


def _left_out(what: str, count: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    named = f": {', '.join(names[:5])}" + (" and more" if len(names) > 5 else "") if len(names) else ""
    return (f"{count} {what}{named}",) if count else ()


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
