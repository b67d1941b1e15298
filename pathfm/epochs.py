"""What happens at every epoch of a fit: the order of the slides, the seed of the dropout, progress, and the best weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Sampler

from pathfm.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class BestEpoch(Callback):
    """Keeps the weights of the epoch with the lowest `stop_loss` and stops after `patience` epochs without a lower one.

    Epochs before `first` do not count. A stopping set of a few patients would often pick the very first epoch, an
    untrained head, because attention takes some epochs to find anything and the loss rises meanwhile.

    Lightning's own pair for this writes a second file at every improvement; here the best weights travel in the one
    checkpoint that the fit goes on from.
    """

    def __init__(self, patience: int, first: int = 1) -> None:
        self.patience, self.first = patience, first
        self.loss, self.epochs = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that had stopped before it was interrupted does not go on."""
        trainer.should_stop = self._exhausted(trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the epoch that has just ended."""
        loss, epochs = float(trainer.callback_metrics["stop_loss"]), trainer.current_epoch + 1
        if loss < self.loss and epochs >= self.first:
            self.loss, self.epochs = loss, epochs
            head = pl_module.get_submodule("head")
            self.weights = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        elif self._exhausted(epochs):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Goes into the checkpoint."""
        return {"loss": self.loss, "epochs": self.epochs, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Comes from the checkpoint."""
        self.loss, self.epochs, self.weights = state_dict["loss"], state_dict["epochs"], state_dict["weights"]

    def _exhausted(self, epochs: int) -> bool:
        return bool(self.weights) and epochs - self.epochs >= self.patience


class EveryEpoch(Callback):
    """Shows progress, and makes the dropout of an epoch depend on the seed and the epoch alone, so that resume is exact."""

    def __init__(self, seed: int, what: str) -> None:
        self.seed, self.what = seed, what
        self.ticks: Iterator[int] = iter(())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the bar at the epoch that the fit starts or goes on at."""
        self.ticks = progress(range(trainer.current_epoch, trainer.max_epochs or 0), self.what, "epoch")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds the epoch."""
        next(self.ticks, None)
        torch.manual_seed(int(np.random.SeedSequence([self.seed, trainer.current_epoch]).generate_state(1)[0]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the bar."""
        if not trainer.should_stop:
            next(self.ticks, None)
        self.ticks = iter(())


class EpochOrder(Sampler[int]):
    """Every slide once, in an order that depends on the seed and the epoch alone."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist())

    def __len__(self) -> int:
        return self.n
