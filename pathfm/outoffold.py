"""Folds of a cohort, the trainings that they ask for, and predictions by models that have not seen the patient."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pathfm.fit import Rows
from pathfm.folds import Split, assign_folds, strata_of
from pathfm.scoring import score_tables
from pathfm.splits import stopping_rows
from pathfm.together import Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.labelled import LabelledSlides
    from pathfm.model import Model
    from pathfm.settings import TrainSettings
    from pathfm.targets import Target, Task


class Folding(NamedTuple):
    """How a cohort is cut into folds.

    Attributes:
        folds: how many.
        split: what folds do not share.
        repeats: how often it is cut anew; repeat r is that of `seed + r`.
    """

    folds: int
    split: Split = "patient"
    repeats: int = 1

    def __str__(self) -> str:
        """The protocol in words."""
        by = "by patient" if self.split == "patient" else "by site, no site in two folds"
        times = f", repeated {self.repeats} times" if self.repeats > 1 else ""
        return f"{self.folds}-fold cross-validation {by}{times}"


def fold_column(
    slides: LabelledSlides, folding: Folding, seed: int, among: pd.Series[bool] | None = None, option: str = "--folds"
) -> pd.Series[int]:
    """The fold of each row of the table, Int64; missing for a bag that cannot be scored and whose patient has no other.

    Args:
        slides: the cohort; folds are balanced over the strata of its first target.
        folding: how it is cut.
        seed: of the cut.
        among: the rows to be cut, such as the training side of an outer fold; the others are in no fold.
        option: what the user calls the number of folds.
    """
    usable = slides.table["reason"] == ""
    chosen = (usable if among is None else usable & among).to_numpy(dtype=bool)
    rows = slides.table[chosen].set_index("slide_id")
    target, truth = slides.task.targets[0], slides.task.truths(slides.truth[chosen])[0]
    rows = rows.assign(stratum=strata_of(target, truth, list(rows["patient_id"])))
    rows = rows.explode("sites").rename(columns={"sites": "site"})  # a patient's bag keeps all of its sites together
    assigned = assign_folds(rows, folding.folds, seed, target.groups, folding.split, option)
    of_patient = dict(zip(rows["patient_id"], assigned, strict=True))
    return slides.table["patient_id"].map(of_patient).astype("Int64")


def fold_job(
    slides: LabelledSlides, fold_of: pd.Series[int], fold: int, settings: TrainSettings, folder: Path, what: str
) -> Job:
    """The training of a fold: on the patients of the others, of whom some are set aside to decide when to stop.

    Args:
        slides: the cohort.
        fold_of: of each row, as `fold_column` has it; a row without fold is not learned from.
        fold: which.
        settings: how.
        folder: fold k is trained in its folder k.
        what: what a fold is in the user's words.
    """
    learn = (fold_of != fold).fillna(value=False).astype(bool)
    stop = stopping_rows(slides, learn, settings)
    rows = Rows(slides.rows(learn & ~stop), slides.rows(stop))
    return Job(rows, settings, folder / str(fold), f"{what} {fold + 1} of {int(fold_of.max()) + 1}")


def fold_facts(slides: LabelledSlides, fold_of: pd.Series[int], models: Sequence[Model]) -> list[dict[str, Any]]:
    """What metrics.json says of the folds and their models."""
    usable = slides.table["reason"] == ""
    return [
        {
            "fold": fold,
            "n_train_patients": model.training["n_patients"] - model.training["n_stop_patients"],
            "n_stop_patients": model.training["n_stop_patients"],
            "n_scored_patients": int(
                slides.table["patient_id"][usable & (fold_of == fold).fillna(value=False)].nunique()
            ),
            "epochs": model.training["epochs"],
            "stopped_early": model.training["stopped_early"],
        }
        for fold, model in enumerate(models)
    ]


def fold_warnings(
    slides: LabelledSlides, cuts: Sequence[pd.Series[int]], folding: Folding, models: Sequence[Model]
) -> list[str]:
    """What to say of the folds: which had nobody to stop on, and which hold no patient of a class.

    Args:
        slides: the cohort.
        cuts: the fold of each row, of every repeat.
        folding: how it was cut.
        models: of the folds, repeat after repeat.
    """
    said = []
    fixed = [str(at % folding.folds) for at, model in enumerate(models) if not model.training["n_stop_patients"]]
    if fixed:
        named = ", ".join(dict.fromkeys(fixed))
        said.append(f"no patients to spare for early stopping in fold {named}: all epochs were run")
    target, truth = slides.task.targets[0], slides.task.truths(slides.truth)[0]
    strata = target.strata(truth)
    for (repeat, fold_of), (code, name) in product(enumerate(cuts), enumerate(target.groups)):
        held = set(fold_of[(slides.table["reason"] == "") & (strata == code)].dropna())
        lacking = [str(fold) for fold in range(folding.folds) if fold not in held]
        if lacking and held:
            where = f"repeat {repeat + 1}, fold" if repeat else "fold"
            said.append(f"{where} {', '.join(lacking)} holds no patient of class {name}")
    return said


def out_of_fold(slides: LabelledSlides, fold_of: pd.Series[int], models: Sequence[Model]) -> dict[str, pd.DataFrame]:
    """Of each target the predictions of each fold by its model, in the order of the cohort.

    A bag that stands in no fold, for nothing of its patient can be scored, has a row without score.

    Args:
        slides: the cohort.
        fold_of: of each row, as `fold_column` has it.
        models: of each fold that which has not seen it.
    """
    parts = [
        score_tables(model, slides.table.assign(fold=fold)[(fold_of == fold).fillna(value=False).astype(bool)], "fold")
        for fold, model in enumerate(models)
    ]
    unplaced = slides.table[fold_of.isna() & (slides.table["reason"] != "")].assign(fold=None)
    if len(unplaced):
        parts.append(score_tables(models[0], unplaced, "fold"))
    return {target.name: _in_order(slides, [part[target.name] for part in parts]) for target in slides.task.targets}


def mean_embeddings(slides: LabelledSlides) -> dict[str, NDArray[np.float64]]:
    """Of each bag that can be learned from the mean of its embeddings, float64 (dim,), by slide_id."""
    bags = slides.bags()
    return {name: bags.moments(row).mean.cpu().numpy() for row, name in enumerate(slides.usable["slide_id"])}


def mean_of_repeats(task: Task, repeats: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Of each target the mean of its scores over the repeats; the folds are those of the first."""
    return {target.name: _mean(target, [tables[target.name] for tables in repeats]) for target in task.targets}


def all_repeats(task: Task, repeats: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Of each target the rows of all repeats below each other, with the column repeat."""
    return {
        target.name: pd.concat([tables[target.name].assign(repeat=r) for r, tables in enumerate(repeats)])
        for target in task.targets
    }


def repeat_settings(settings: TrainSettings, repeat: int) -> TrainSettings:
    """Those of a repeat: folds and first weights are drawn anew; steps go as in the first, so that all can share a pass."""
    return (
        replace(settings, seed=(settings.seed + repeat) % 2**32, order_seed=settings.seed_of_steps)
        if repeat
        else settings
    )


def _in_order(slides: LabelledSlides, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    joined = pd.concat([table.astype({"fold": "Int64"}) for table in tables if len(table)]).set_index("slide_id")
    placed = slides.table["slide_id"][slides.table["slide_id"].isin(joined.index)]
    return joined.loc[placed].reset_index()


def _mean(target: Target, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if len(tables) == 1:
        return tables[0]
    scores = np.mean([table[target.names].to_numpy(dtype=np.float64) for table in tables], axis=0)
    mean = tables[0].copy()
    mean[target.names] = scores
    scored = np.isfinite(scores).all(axis=1)
    mean.loc[scored, "predicted"] = target.predicted(scores[scored])
    return mean
