"""Several fits on rows of the same bags, in one pass over the bags where that is faster."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from pathfm.checkpoints import find_checkpoint
from pathfm.datamodule import Rows, SlideDataModule
from pathfm.epochs import Best, EpochBar
from pathfm.files import canonical_json, sha256_text
from pathfm.fit import Fit, fingerprint, first_that_counts, fit, fitted, say_cost_of_drawing
from pathfm.grouping import Job, group_jobs
from pathfm.heads import require_head
from pathfm.jointmodule import JointModule, Member
from pathfm.keeping import keep_bags
from pathfm.loggers import training_loggers
from pathfm.trainer import new_trainer, torch_device, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pathfm.bags import BagDataset
    from pathfm.targets import Task

__all__ = ["Job", "fit_all"]


def fit_all(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> list[Fit]:
    """Fits each job, and several together where they can be and that is faster; the results are those of `fit`.

    Together they come to the same weights but for the order in which floating-point numbers are added. They are taken up
    again together after an interruption, bit-identical, from the checkpoint in the folder of the first of them.

    Args:
        bags: the dataset.
        jobs: what to fit; the folders differ.
        task: what for.
        head: a row of `heads.HEADS`.

    Returns:
        The fits, in the order of the jobs.

    Raises:
        UnknownNameError: no such head.
        InputError: the machine cannot do what the settings ask.
        ModelError: a training diverged.
    """
    require_head(head)
    found: dict[int, Fit] = {}
    for group in group_jobs(bags, jobs, task, head):
        some = [jobs[at] for at in group]
        if len(some) > 1:
            fits = _fit_together(bags, some, task, head)
        else:
            fits = [fit(bags, job.rows, task, head, *job[1:3], epochs=job.epochs, what=job.what) for job in some]
        found |= dict(zip(group, fits, strict=True))
    return [found[at] for at in range(len(jobs))]


def _fit_together(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> list[Fit]:
    settings, what = jobs[0].settings, f"{jobs[0].what} and {len(jobs) - 1} more"
    device = torch_device(settings)
    keep_bags(bags, device, settings)
    each = [fingerprint(bags, job.rows, task, head, job.settings, job.epochs) for job in jobs]
    checkpoints = jobs[0].folder / "checkpoints"
    with undisturbed(settings.seed, device), ExitStack() as stack:
        checkpoint = find_checkpoint(checkpoints, sha256_text(canonical_json(each)))
        members, data = [], []
        for job in jobs:
            torch.default_generator.manual_seed(job.settings.seed)  # each draws the weights that it would draw alone
            data.append(SlideDataModule(bags, job.rows, task, job.settings))
            module = data[-1].module(head, standardise=checkpoint is None)
            best = Best(settings.patience, first_that_counts(settings, job.epochs)) if len(job.rows.stop) else None
            loggers = stack.enter_context(training_loggers(settings, job.folder, job.what))
            members.append(Member(module, job.rows, job.epochs or settings.epochs, best, loggers))
        joint = JointModule(members)
        rows = Rows(_union(job.rows.learn for job in jobs), _union(job.rows.stop for job in jobs))
        trainer = new_trainer(settings, checkpoints, max(one.epochs for one in members), [], [EpochBar(what)])
        whole = SlideDataModule(bags, rows, task, settings)
        trainer.fit(joint, datamodule=whole, ckpt_path=checkpoint, weights_only=True)
        fits = [fitted(one.module, one.best, ran, one.epochs) for one, ran in zip(members, joint.ran, strict=True)]
        for job, one, found in zip(jobs, data, fits, strict=True):
            say_cost_of_drawing(one, found.head, job.what)
    return fits


def _union(rows: Iterable[Sequence[int]]) -> list[int]:
    return sorted({row for some in rows for row in some})
