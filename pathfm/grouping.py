"""Which of several fits share a pass over the bags: those whose steps are the same, where that is faster and memory allows."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pathfm.bags import Bag, collate
from pathfm.datamodule import Rows, SlideDataModule, batch_size
from pathfm.files import canonical_json
from pathfm.keeping import total_bytes
from pathfm.progress import logger
from pathfm.stacked import StackedHead
from pathfm.trainer import torch_device, undisturbed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.bags import BagDataset, Batch
    from pathfm.milmodule import MILModule
    from pathfm.settings import TrainSettings
    from pathfm.targets import Task

# On a CPU: fits, weights of a head, and products of a pass over a bag.
_FEWEST, _SMALL, _FEW_PRODUCTS = 4, 250_000, 200e6
_TRIED = 1024  # instances; more than the landmarks of a head, from where on memory grows with them
# Of the memory, for what the graph of a step keeps; the step takes half as much again, and bags may take half of what is
# free. Not of what is free: the same training on the same machine is to be cut alike, also when it is taken up again.
_SHARE = 1 / 8


class Job(NamedTuple):
    """One fit, as the arguments of `fit`."""

    rows: Rows
    settings: TrainSettings
    folder: Path
    what: str
    epochs: int | None = None


def group_jobs(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> list[list[int]]:
    """The places of jobs that are fitted together; those that are fitted alone by themselves.

    Together go jobs of the same steps, as the folds of all repeats are, whose task, fitted on their rows, is the same.

    Raises:
        InputError: the machine cannot do what the settings ask.
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
        most = _most_together(bags, [jobs[at] for at in group], task, head) if len(group) > 1 else 1
        parts += [part.tolist() for part in np.array_split(group, -(-len(group) // most))]
    return parts


def _steps(settings: TrainSettings) -> TrainSettings:
    """Settings without the seed of the first weights, which decides nothing about the steps."""
    return replace(settings, seed=0, order_seed=settings.seed_of_steps)


def _most_together(bags: BagDataset, jobs: Sequence[Job], task: Task, head: str) -> int:
    """How many jobs of the same settings share a pass; 1 where they cannot, or where it would not be faster."""
    settings = jobs[0].settings
    if settings.together == "never":
        return 1
    hindrance = _hindrance(jobs, task, settings)
    if hindrance:
        if settings.together == "always":
            logger.warning("--training.together always: %s, so folds are trained one after the other", hindrance)
        return 1
    device = torch_device(settings)
    with undisturbed(settings.seed, device):
        data = SlideDataModule(bags, jobs[0].rows, task, settings)
        modules = [data.module(head, standardise=False).to(device) for _ in range(2)]
        if settings.together == "auto" and not _pays(bags, jobs, modules[0], device):
            return 1
        kept = _kept_bytes(bags, jobs, modules, device)
    if kept is None:
        return 1
    most = max(1, int(_SHARE * total_bytes(device) / kept))
    if most < len(jobs):
        logger.info("memory is enough for %d of %d folds at once, so they are trained in turns", most, len(jobs))
    return most


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
    """Whether one pass is expected to be the faster way: always on an accelerator, on a CPU for small heads unless bags are long.

    What several fits share is the reading of a bag and what a step costs before any product; what stacking adds is a copy
    of all weights and of their gradients. An accelerator waits for its next call during most of a step, so fewer calls
    are what counts. On a CPU the products stay what they are, so the longer a bag the less is gained, and heads of many
    weights lose; `python benchmarks/train.py --tables sizes` prints how much.
    """
    if device.type != "cpu":
        return True
    weights = sum(parameter.numel() for parameter in module.head.parameters())
    if len(jobs) < _FEWEST or weights > _SMALL:
        return False
    learn = jobs[0].rows.learn
    mean = min(sum(map(bags.length, learn)) / len(learn), jobs[0].settings.bag_size or math.inf)
    if weights * mean > _FEW_PRODUCTS:
        return False
    usual = min(learn, key=lambda row: abs(bags.length(row) - mean))
    batch = _few(bags, usual, min(bags.length(usual), math.ceil(mean)))
    # counts those of tokens with each other, which weights do not tell, and none that oneDNN does, which weights tell
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.head(batch.bags)
    products: float = counter.get_total_flops() / 2  # each a multiplication and an addition
    return products <= _FEW_PRODUCTS


def _kept_bytes(
    bags: BagDataset, jobs: Sequence[Job], modules: Sequence[MILModule], device: torch.device
) -> float | None:
    """What a step on the longest bag keeps for one member, of which bags to stop on are taken whole; None: no stacking.

    Tried on some of its instances: what a head keeps grows with them in a line, which two trials tell.
    """
    size = jobs[0].settings.bag_size or math.inf
    lengths = {row: min(bags.length(row), size) for job in jobs for row in job.rows.learn}
    lengths |= {row: bags.length(row) for job in jobs for row in job.rows.stop}
    longest = max(lengths, key=lambda row: lengths[row])
    length = int(lengths[longest])
    first = _kept_in_trial(bags, longest, min(length, _TRIED), modules, device)
    if first is None or first == math.inf or length <= _TRIED:
        return first
    more = min(length, 2 * _TRIED)
    second = _kept_in_trial(bags, longest, more, modules, device)
    return None if second is None else first + (second - first) * (length - _TRIED) / (more - _TRIED)


def _kept_in_trial(
    bags: BagDataset, row: int, length: int, modules: Sequence[MILModule], device: torch.device
) -> float | None:
    """What the graph of a joint step on the first instances of a bag keeps for each member, in bytes; at least one.

    None where the head cannot be stacked, as one of a user's own that branches on its numbers: the log says why. Infinite
    where memory is not enough for two.
    """
    batch = modules[0].transfer_batch_to_device(_few(bags, row, length), device, 0)
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    half = modules[0].settings.precision == "bf16"
    try:
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=half),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        ):
            StackedHead(modules).learn(range(len(modules)), batch)
    except torch.OutOfMemoryError:
        return math.inf
    except RuntimeError as error:
        why = str(error).partition(". ")[0]
        name = modules[0].head.name
        logger.info("the head %s cannot be stacked (%s); folds are trained one after the other", name, why)
        return None
    return max(sum(one.untyped_storage().nbytes() for one in kept.values()) / len(modules), 1.0)


def _few(bags: BagDataset, row: int, length: int) -> Batch:
    """The first instances of a bag."""
    covariates = None if bags.covariates is None else bags.covariates[row]
    return collate([Bag(bags.some(row, np.arange(length)), bags.truth[row], covariates, row)])
