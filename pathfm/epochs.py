"""What happens at every epoch of a fit: the order of the slides, progress, and which weights are the best so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed, nn
from torch.utils.data import Dataset, DistributedSampler

from pathfm.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pathfm.bags import SampledBags


class Best:
    """The weights of the epoch with the lowest stopping loss, and whether it is time to stop.

    Epochs before `first` do not count. A stopping set of a few patients would often pick the very first epoch, an
    untrained head, because attention takes some epochs to find anything and the loss rises meanwhile.
    """

    def __init__(self, patience: int, first: int = 1) -> None:
        self.patience, self.first = patience, first
        self.loss, self.epochs = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def compare(self, loss: float, epochs: int, head: nn.Module) -> None:
        """Keeps the weights of a head after so many epochs where its loss is the lowest."""
        if loss < self.loss and epochs >= self.first:
            self.loss, self.epochs = loss, epochs
            self.weights = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}

    def exhausted(self, epochs: int) -> bool:
        """Whether `patience` epochs have passed without a lower loss."""
        return bool(self.weights) and epochs - self.epochs >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Goes into a checkpoint."""
        return {"loss": self.loss, "epochs": self.epochs, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Comes from a checkpoint."""
        self.loss, self.epochs, self.weights = state_dict["loss"], state_dict["epochs"], state_dict["weights"]


class BestEpoch(Callback):
    """Keeps the weights of the best epoch by the logged `stop_loss`, and stops the training when that is long ago.

    Lightning's own pair for this writes a second file at every improvement; here the best weights travel in the one
    checkpoint that the fit goes on from.
    """

    def __init__(self, best: Best) -> None:
        self.best = best

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that had stopped before it was interrupted does not go on."""
        trainer.should_stop = self.best.exhausted(trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the epoch that has just ended."""
        epochs = trainer.current_epoch + 1
        self.best.compare(float(trainer.callback_metrics["stop_loss"]), epochs, cast("nn.Module", pl_module.scored))
        if self.best.exhausted(epochs):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Goes into the checkpoint."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Comes from the checkpoint."""
        self.best.load_state_dict(state_dict)


class EpochBar(Callback):
    """Shows the progress of a fit."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.ticks: Iterator[int] = iter(())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the bar at the epoch that the fit starts or goes on at."""
        if trainer.is_global_zero:
            self.ticks = progress(range(trainer.current_epoch, trainer.max_epochs or 0), self.what, "epoch")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch further."""
        next(self.ticks, None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the bar."""
        if not trainer.should_stop:
            next(self.ticks, None)
        self.ticks = iter(())


class EpochOrder(DistributedSampler[int]):
    """The slides of an epoch, in an order that depends on the seed and the epoch alone; each process gets its share.

    It is the order of all bags of the dataset without those that are not learned from, so that the folds of one seed
    see the bags that they share in one order, alone as in company.
    """

    def __init__(
        self,
        rows: Sequence[int],
        n: int,
        seed: int,
        odds: NDArray[np.float64] | None = None,
        drawn: SampledBags | None = None,
    ) -> None:
        """Takes what to learn from.

        Args:
            rows: their places in the dataset.
            n: number of bags in the dataset.
            seed: of the order.
            odds: float64 (len(rows),), with which the rows are drawn, with replacement; None takes each once.
            drawn: the bags of which instances are drawn, to be told the epoch.
        """
        together = distributed.is_available() and distributed.is_initialized()
        size, rank = (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)
        super().__init__(cast("Dataset[Any]", list(rows)), num_replicas=size, rank=rank, shuffle=False, seed=seed)
        self.n, self.odds, self.drawn = n, odds, drawn
        self.rows = np.asarray(rows, dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        super().set_epoch(epoch)
        if self.drawn is not None:
            self.drawn.begin(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.resize(self._whole(), self.total_size)  # the first again until every process has as many
        return iter(order[self.rank :: self.num_replicas].tolist())

    def _whole(self) -> NDArray[np.int64]:
        drawn = np.random.default_rng([self.seed, self.epoch])
        if self.odds is not None:
            return drawn.choice(self.rows, len(self.rows), p=self.odds)
        order = drawn.permutation(self.n)
        return order[np.isin(order, self.rows)]


def seed_step(seed: int, epoch: int, row: int, device: torch.device, times: int = 0) -> None:
    """Seeds torch for a step from the seed, the epoch and the first bag, so that its dropout depends on nothing else.

    A bag that is drawn with replacement may have been first so many `times` in the epoch before.
    Only the generators that the step draws from: `torch.manual_seed` goes through those of all kinds of devices, which
    takes longer than the step of a small bag.
    """
    number = int(np.random.SeedSequence([seed, epoch, row, times]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
