"""The bags of a training as Lightning takes them: what to learn from, what to stop on, and the module that fits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset

from pathfm.bags import Bag, BagDataset, SampledBags, collate
from pathfm.cohort import read_cohort
from pathfm.epochs import EpochOrder
from pathfm.errors import InputError
from pathfm.heads import build_head
from pathfm.keeping import keep_bags
from pathfm.labelled import labelled_slides
from pathfm.milmodule import MILModule
from pathfm.settings import TrainSettings
from pathfm.splits import learn_and_stop, split_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch.utils.data import Dataset, Sampler

    from pathfm.targets import Balance, Task

_FEWEST, _MOST = 2, 32  # bags a step of a target that compares them
_STEPS = 4  # an epoch, where there are bags for so many


class Rows(NamedTuple):
    """Bags of a dataset by their places: those to learn from, and those whose loss says when to stop (may be none)."""

    learn: Sequence[int]
    stop: Sequence[int]


class SlideDataModule(LightningDataModule):
    """The bags to learn from, in the order of each epoch, and those to stop on, for any `Trainer`.

    Attributes:
        bags: all bags.
        rows: which of them to learn from and to stop on.
        task: what for, fitted on the bags to learn from.
        settings: how.
    """

    def __init__(self, bags: BagDataset, rows: Rows, task: Task, settings: TrainSettings) -> None:
        super().__init__()
        self.bags, self.rows, self.settings = bags, rows, settings
        self.task = task.fitted(self._truth)

    @classmethod
    def read(
        cls,
        cohort: Path,
        embeddings: list[Path],
        label: str,
        settings: TrainSettings = TrainSettings(),
        *,
        unit: Literal["slide", "patient"] = "slide",
        covariates: Sequence[str] = (),
    ) -> SlideDataModule:
        """The bags that `pathfm train` learns from and stops on, by the cohort's column split or by patients set aside.

        Args:
            cohort: the cohort table, CSV.
            embeddings: as of `pathfm train`.
            label: the targets, COLUMN or COLUMN:KIND with commas between.
            settings: how.
            unit: what a bag is of.
            covariates: columns that join the head.

        Raises:
            InputError: a table or a label that cannot be used.
            EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        """
        slides = labelled_slides(read_cohort(cohort), embeddings, label, unit=unit, covariates=covariates)
        split = split_of(slides, settings)
        rows = Rows(*learn_and_stop(slides, split))
        slides.task.require(slides.bags().truth[rows.learn].numpy())
        return cls(slides.bags(), rows, slides.task, settings)

    def module(self, head: str, *, standardise: bool = True) -> MILModule:
        """A fresh head for these bags, its weights drawn from torch's global generator.

        Args:
            head: a row of `heads.HEADS`.
            standardise: fit the standardisation to the bags to learn from, which reads them all.

        Raises:
            UnknownNameError: no such head, or no such option of it.
        """
        bags, learn, settings = self.bags, self.rows.learn, self.settings
        covariates = None if bags.covariates is None else bags.covariates[list(learn)]
        width = 0 if covariates is None else covariates.shape[1]
        built = build_head(head, bags.dim, self.task.n_outputs, width, **settings.head_kwargs())
        if standardise:
            built.standardise((bags.moments(row) for row in learn), covariates)
        return MILModule(built, self.task, settings, self.balance)

    def setup(self, stage: str) -> None:
        """Has the bags stay where the settings say, of which the device is the trainer's."""
        if self.trainer is not None:
            keep_bags(self.bags, self.trainer.strategy.root_device, self.settings)

    @property
    def balance(self) -> Balance:
        """The weights of the classes, where the settings want them."""
        return self.task.balance(self._truth) if self.settings.class_weights else ()

    def train_dataloader(self) -> DataLoader[Any]:
        """The bags to learn from, in an order that depends on seed and epoch alone."""
        settings = self.settings
        odds = balanced_odds(self.task, self._truth) if settings.balanced_sampling else None
        drawn = SampledBags(self.bags, settings.bag_size, settings.seed_of_steps) if settings.bag_size else None
        order = EpochOrder(self.rows.learn, len(self.bags), settings.seed_of_steps, odds, drawn)
        return _loader(drawn or self.bags, batch_size(self.task, settings, len(self.rows.learn)), order)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The whole bags to stop on, one a step; none where there are none."""
        return _loader(Subset(self.bags, list(self.rows.stop)), 1) if len(self.rows.stop) else []

    @property
    def _truth(self) -> NDArray[np.float32]:
        return self.bags.truth[list(self.rows.learn)].numpy()


def batch_size(task: Task, settings: TrainSettings, n_learn: int) -> int:
    """Bags a step, of so many to learn from: those of the settings, or what the task needs.

    Raises:
        InputError: one, where a target compares those of a step.
    """
    compared = any(target.compares for target in task.targets)
    if compared and settings.batch_size == 1:
        message = (
            "--training.batch_size is 1, and a Cox model learns by comparing the bags of a step;"
            f" leave it out, or pass {_FEWEST} or more"
        )
        raise InputError(message)
    if settings.batch_size is not None:
        return settings.batch_size
    return min(_MOST, max(_FEWEST, n_learn // _STEPS)) if compared else 1


def balanced_odds(task: Task, truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """The odds float64 (n,) with which the strata of the first target come equally often; those without a label as they do."""
    strata = task.targets[0].strata(task.truths(truth)[0])
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    labelled = strata >= 0
    n_strata = len(set(strata[labelled].tolist()))
    odds = np.where(labelled, labelled.sum() / (max(n_strata, 1) * counts[which]), 1.0)
    normed: NDArray[np.float64] = odds / odds.sum()
    return normed


def _loader(bags: Dataset[Bag], size: int, order: Sampler[int] | None = None) -> DataLoader[Any]:
    # The main process reads: a memory map is faster than handing tensors from worker to worker. A loader draws a number
    # whenever it is started, and a resumed fit starts it at another moment: so it draws from a generator of its own.
    return DataLoader(bags, batch_size=size, sampler=order, collate_fn=collate, generator=torch.Generator())
