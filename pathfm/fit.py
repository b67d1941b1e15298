"""Fitting one head on some rows of a dataset of bags, and going on where an interrupted fit was."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import torch

from pathfm.bags import SampledBags, collate
from pathfm.checkpoints import LAST, find_checkpoint, read_checkpoint
from pathfm.datamodule import Rows, SlideDataModule
from pathfm.epochs import Best, BestEpoch, EpochBar
from pathfm.errors import ModelError
from pathfm.files import canonical_json, sha256_text
from pathfm.heads import Head, require_head
from pathfm.keeping import keep_bags
from pathfm.loggers import training_loggers
from pathfm.milmodule import MILModule
from pathfm.progress import logger
from pathfm.trainer import new_trainer, torch_device, undisturbed
from pathfm.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.bags import BagDataset
    from pathfm.settings import TrainSettings
    from pathfm.targets import Task

__all__ = ["Fit", "MILModule", "Rows", "SlideDataModule", "fingerprint", "first_that_counts", "fit", "fitted"]

# What changes nothing about the weights: where a fit runs, and where its losses go.
_NOT_IN_THE_WEIGHTS = frozenset({"device", "keep", "together", "loggers"})


class Fit(NamedTuple):
    """A fitted head.

    Attributes:
        head: on the CPU, in evaluation mode, with the weights of the best epoch (the last without stopping bags).
        task: what it says, fitted on the bags it learned from.
        epochs: epochs that these weights took.
        stopped_early: whether the stopping bags ended the training before its last epoch.
    """

    head: Head
    task: Task
    epochs: int
    stopped_early: bool


def fit(
    bags: BagDataset,
    rows: Rows,
    task: Task,
    head: str,
    settings: TrainSettings,
    folder: Path,
    *,
    epochs: int | None = None,
    what: str = "train",
) -> Fit:
    """Fits a head; interrupted and called again with the same inputs, it goes on from the last epoch it finished.

    The same inputs and seed give bit-identical weights on a CPU with the same number of threads, interrupted or not.

    Args:
        bags: the dataset.
        rows: which of its bags to learn from, and which, of other patients, pick the epoch; without the latter all epochs
            are run.
        task: what for; it is fitted on the bags to learn from.
        head: a row of `heads.HEADS`.
        settings: how.
        folder: gets `checkpoints/` and `logs/`.
        epochs: stop after so many of `settings.epochs`, the learning rate falling as if it went on.
        what: the step in the user's words, for the progress bar.

    Raises:
        UnknownNameError: no such head.
        InputError: the machine cannot do what the settings ask.
        ModelError: the training diverged.
    """
    require_head(head)
    device = torch_device(settings)
    keep_bags(bags, device, settings)
    wanted = fingerprint(bags, rows, task, head, settings, epochs)
    asked = epochs or settings.epochs
    best = Best(settings.patience, first_that_counts(settings, epochs)) if len(rows.stop) else None
    with undisturbed(settings.seed, device), training_loggers(settings, folder, what) as loggers:
        checkpoint = find_checkpoint(folder / "checkpoints", wanted)
        data = SlideDataModule(bags, rows, task, settings)
        module = data.module(head, standardise=checkpoint is None)
        callbacks = [EpochBar(what), *([BestEpoch(best)] if best else [])]
        trainer = new_trainer(settings, folder / "checkpoints", asked, loggers, callbacks)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        ran = trainer.current_epoch
        if settings.devices > 1:
            ran = _take_over(folder / "checkpoints" / f"{LAST}.ckpt", module, best)
        found = fitted(module, best, ran, asked)
        say_cost_of_drawing(data, found.head, what)
    return found


def fingerprint(
    bags: BagDataset, rows: Rows, task: Task, head: str, settings: TrainSettings, epochs: int | None = None
) -> str:
    """Hex digest of all that decides the weights of a fit: bags, truth and covariates in order, settings, head, version."""
    how = {key: value for key, value in asdict(settings).items() if key not in _NOT_IN_THE_WEIGHTS}
    seen = [[(row, bags.digest(row), _facts(bags, row)) for row in some] for some in rows]
    return sha256_text(canonical_json([__version__, head, task.facts(), how, epochs, len(bags), *seen]))


def first_that_counts(settings: TrainSettings, epochs: int | None) -> int:
    """The first epoch whose weights may be kept."""
    return min(settings.min_epochs, epochs or settings.epochs)


def fitted(module: MILModule, best: Best | None, ran: int, asked: int) -> Fit:
    """What a training came to.

    Raises:
        ModelError: a weight is not finite.
    """
    head = copy.deepcopy(module.scored).cpu().requires_grad_()  # that of a running mean has no gradients
    kept = best is not None and bool(best.weights)
    if best is not None and kept:
        head.load_state_dict(best.weights)
    if not all(torch.isfinite(value).all() for value in head.state_dict().values()):
        message = "the training diverged: a weight is not finite; lower --training.lr"
        raise ModelError(message)
    return Fit(head.eval(), module.task, best.epochs if best is not None and kept else ran, ran < asked)


def say_cost_of_drawing(data: SlideDataModule, head: Head, what: str) -> None:
    """Logs what a training that drew instances saw of its bags, and what whole bags to stop on lose by it."""
    size = data.settings.bag_size
    if size is None:
        return
    seen = sum(min(data.bags.length(row), size) for row in data.rows.learn)
    share = seen / max(sum(data.bags.length(row) for row in data.rows.learn), 1)
    line = f"{what}: with --training.bag_size {size} a step sees {share:.0%} of the instances"
    if len(data.rows.stop):
        drawn = SampledBags(data.bags, size, data.settings.seed_of_steps)
        whole, part = (_loss(data, head, one) for one in (data.bags, drawn))
        line += f"; loss of the stopping slides {whole:.4f} whole, {part:.4f} drawn so"
    logger.info("%s", line.replace("%", " %"))


def _take_over(checkpoint: Path, module: MILModule, best: Best | None) -> int:
    """What processes that have ended came to: fills module and best, and gives the epochs they ran."""
    found = read_checkpoint(checkpoint)
    module.load_state_dict(found["state_dict"])
    if best is not None:
        best.load_state_dict(found["callbacks"][BestEpoch.__qualname__])
    return int(found["epoch"]) + 1


@torch.inference_mode()
def _loss(data: SlideDataModule, head: Head, bags: BagDataset | SampledBags) -> float:
    """The task's loss of a head on the CPU, of all bags to stop on."""
    batches = [collate([bags[row]]) for row in data.rows.stop]
    logits = torch.cat([head(batch.bags._replace(features=batch.bags.features.cpu())).logits for batch in batches])
    truth = torch.cat([batch.truth for batch in batches])
    return float(data.task.criterion(truth, data.balance).losses(logits).mean())


def _facts(bags: BagDataset, row: int) -> list[str]:
    """Truth and covariates of a bag as text: NaN is no JSON."""
    parts = [bags.truth[row]] if bags.covariates is None else [bags.truth[row], bags.covariates[row]]
    return [repr(part.tolist()) for part in parts]
