"""Which rows of a cohort one training learns from, stops on and leaves for its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pathfm.folds import carve_stopping, strata_of
from pathfm.progress import logger

if TYPE_CHECKING:
    from pathfm.labelled import LabelledSlides
    from pathfm.settings import TrainSettings


def split_of(slides: LabelledSlides, settings: TrainSettings) -> pd.Series[str]:
    """Of each row "train", "val", "test", or "" where a cohort with a split does not say.

    It is the column split; without one all rows are to learn from. Where none are to stop on, some of these are.
    """
    split = slides.table["split"]
    if not (split != "").any():
        split = pd.Series("train", index=split.index)
    if not ((split == "val") & (slides.table["reason"] == "")).any():
        split = split.mask(stopping_rows(slides, split == "train", settings), "val")
    return split


def learn_and_stop(slides: LabelledSlides, split: pd.Series[str]) -> tuple[list[int], list[int]]:
    """The bags of the rows "train", and of the rows "val" where their loss can say when to stop, else none."""
    stop = split == "val"
    if (stop & (slides.table["reason"] == "")).any() and not _can_judge(slides, stop):
        logger.warning("the rows with split val have nothing to compare; training runs all its epochs")
        stop &= False
    return slides.rows(split == "train"), slides.rows(stop)


def stopping_rows(slides: LabelledSlides, learn: pd.Series[bool], settings: TrainSettings) -> pd.Series[bool]:
    """Which of the rows to learn from to set aside for early stopping, by patient; none where they cannot be spared.

    They are balanced over the first target, those of several who have no label of it apart.
    """
    chosen = (learn & (slides.table["reason"] == "")).to_numpy(dtype=bool)
    patients = slides.table[chosen].set_index("slide_id")["patient_id"]
    first = slides.task.truths(slides.truth[chosen])[0]
    strata = pd.Series(strata_of(slides.task.targets[0], first, list(patients)), index=patients.index)
    carved = carve_stopping(patients, strata, settings.stop_share, settings.seed)
    stop = learn & slides.table["patient_id"].isin(carved)
    if carved and not _can_judge(slides, stop):
        logger.info("the patients to spare for early stopping have nothing to compare; training runs all its epochs")
        return stop & False
    return stop


def _can_judge(slides: LabelledSlides, rows: pd.Series[bool]) -> bool:
    usable = (rows & (slides.table["reason"] == "")).to_numpy(dtype=bool)
    return slides.task.can_judge(slides.truth[usable])
