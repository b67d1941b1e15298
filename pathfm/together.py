"""Several fits on rows of the same bags, in one pass over the bags where that is faster."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from pathfm.bags import Bag, collate
from pathfm.checkpoints import find_checkpoint
from pathfm.datamodule import Rows, SlideDataModule, batch_size
from pathfm.epochs import Best, EpochBar
from pathfm.files import canonical_json, sha256_text
from pathfm.fit import Fit, fingerprint, first_that_counts, fit, fitted, say_cost_of_drawing
from pathfm.heads import require_head
from pathfm.jointmodule import JointModule, Member, StackedHead
from pathfm.keeping import keep_bags
from pathfm.loggers import training_loggers
from pathfm.progress import logger
from pathfm.trainer import new_trainer, torch_device, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pathfm.bags import BagDataset
    from pathfm.milmodule import MILModule
    from pathfm.settings import TrainSettings
    from pathfm.targets import Task


_FEWEST, _SHORT, _SMALL = 4, 160, 250_000  # on a CPU: fits, instances of a bag, weights of a head
_MOST_OF_LONG = 10  # fits of longer bags: the hidden instances of all are in memory at once
_TRIED = 300  # instances; heads take other ways for short bags than for long ones


class Job(NamedTuple):
    """One fit, as the arguments of `fit`."""

    rows: Rows
    settings: TrainSettings
    folder: Path
    what: str
    epochs: int | None = None


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
    for group in _groups(bags, jobs, task, head):
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


def _groups(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> list[list[int]]:
    """The places of jobs that are fitted together; those that are fitted alone by themselves.

    Together go jobs of the same steps, as the folds of all repeats are, whose task, fitted on their rows, is the same.
    """
    groups: dict[str, list[int]] = {}
    for at, job in enumerate(jobs):
        facts = task.fitted(bags.truth[list(job.rows.learn)].numpy()).facts()
        groups.setdefault(canonical_json([asdict(_steps(job.settings)), facts]), []).append(at)
    ways = {str(_steps(job.settings)) for job in jobs}
    if len(groups) > len(ways) and jobs[0].settings.together == "always":
        logger.warning(
            "--training.together always: the training rows of each fold decide its targets, so they go apart"
        )
    parts = []
    for group in groups.values():
        joined = len(group) > 1 and _go_together(bags, [jobs[at] for at in group], task, head)
        together = len(group) if _instances(bags, jobs[group[0]]) <= _SHORT else _MOST_OF_LONG
        most = together if joined else 1
        parts += [group[first : first + most] for first in range(0, len(group), most)]
    return parts


def _instances(bags: BagDataset, job: Job) -> float:
    """What a step reads of a bag, in the mean."""
    learn = job.rows.learn
    return min(sum(map(bags.length, learn)) / len(learn), job.settings.bag_size or math.inf)


def _steps(settings: TrainSettings) -> TrainSettings:
    """Settings without the seed of the first weights, which decides nothing about the steps."""
    return replace(settings, seed=0, order_seed=settings.seed_of_steps)


def _go_together(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> bool:
    """Whether jobs of the same settings can be fitted together, and whether that is faster."""
    settings = jobs[0].settings
    if settings.together == "never":
        return False
    hindrance = _hindrance(jobs, task, settings)
    if hindrance:
        if settings.together == "always":
            logger.warning("--training.together always: %s, so folds are trained one after the other", hindrance)
        return False
    device = torch_device(settings)
    with undisturbed(settings.seed, device):
        data = SlideDataModule(bags, jobs[0].rows, task, settings)
        modules = [data.module(head, standardise=False) for _ in range(2)]
        return (settings.together == "always" or _pays(bags, jobs, modules[0], device)) and _can_be_stacked(
            bags, jobs[0], modules
        )


def _hindrance(jobs: Sequence[Job], task: Task, settings: TrainSettings) -> str:
    """Why fits that share their steps would not be those of `fit`; "" where they are."""
    if any(batch_size(task, settings, len(job.rows.learn)) > 1 for job in jobs):
        return "a step takes several bags, which are others in each fold"
    if settings.balanced_sampling:
        return "the classes of each fold are drawn by its own odds"
    if settings.devices > 1:
        return f"they share {settings.devices} devices"
    return "the gradients of each fold are scaled for 16 bit by themselves" if settings.precision == 16 else ""


def _pays(bags: BagDataset, jobs: Sequence[Job], module: MILModule, device: torch.device) -> bool:
    """Whether one pass is expected to be the faster way: always on an accelerator, on a CPU for short bags and small heads.

    What several fits share is the reading of a bag and what a step costs before any product; what stacking adds is a copy
    of all weights and of their gradients. An accelerator waits for its next call during most of a step, so fewer calls
    are what counts. On a CPU, time apart over time together with gated attention: bags of 10 x 166 and 110,000 weights
    1.3 to 1.6 for 5 fits and 2 for 10, and 1.0 for 3, 0.8 for 2; 150 x 166 1.2 and 10 x 512 (200,000 weights) 1.2 for 5.
    Large heads lose, 10 x 1,024 with 800,000 weights 0.8; long bags gain nothing, 2,000 x 1,024 1.0.
    """
    if device.type != "cpu":
        return True
    weights = sum(parameter.numel() for parameter in module.head.parameters())
    return len(jobs) >= _FEWEST and _instances(bags, jobs[0]) <= _SHORT and weights <= _SMALL


def _can_be_stacked(bags: BagDataset, job: Job, modules: Sequence[MILModule]) -> bool:
    """Whether `torch.func.vmap` understands a head, which one of a user's own may branch on its numbers; tried on a bag."""
    row = job.rows.learn[0]
    few = Bag(bags.features(row)[:_TRIED].cpu(), *bags[row][1:])
    try:
        StackedHead(modules[0].head).losses(modules, collate([few]))
    except RuntimeError as error:
        why = str(error).partition(". ")[0]
        name = modules[0].head.name
        logger.info("the head %s cannot be stacked (%s); folds are trained one after the other", name, why)
        return False
    return True


def _union(rows: Iterable[Sequence[int]]) -> list[int]:
    return sorted({row for some in rows for row in some})
