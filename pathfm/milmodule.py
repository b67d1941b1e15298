"""A head as Lightning trains it: its loss, optimiser and schedule, for `fit` and for a `Trainer` of the user's own."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from pathfm.bags import Batch
from pathfm.epochs import seed_step
from pathfm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pathfm.heads import Bags, Head, HeadOutput
    from pathfm.settings import Schedule, TrainSettings
    from pathfm.targets import Balance, Task

_RISING = 0.3  # share of the steps in which the one-cycle schedule rises
_START, _END = 1 / 25, 1 / 250_000  # where it starts and ends, of the highest rate


class MILModule(LightningModule):
    """A head, what it is trained for, and how, for `lightning.Trainer` and a `DataLoader` of bags with `collate`.

    A step minimises the mean of the head's losses over the bags of the batch. Logs `train_loss`, `stop_loss` and `lr` each
    epoch; the stopping loss is that of the task over all stopping bags at once, which a Cox model needs.

    torch is seeded before every step from the seed, the epoch and the first bag of the batch, so that a fold sees the same
    dropout alone as in company, and a resumed training the same as one that went through.

    The rate falls over the epochs of the settings, however many the trainer runs: give it `max_epochs=settings.epochs`.

    Attributes:
        head: what is trained.
        task: what for, fitted on the training rows.
        settings: how; batches, bags and devices are the business of the data module and the trainer.
    """

    def __init__(self, head: Head, task: Task, settings: TrainSettings, balance: Balance = ()) -> None:
        """Takes what to train.

        Args:
            head: standardised by `Head.standardise`.
            task: fitted by `Task.fitted`.
            settings: how.
            balance: what `Task.balance` gave for the training rows; () weighs all bags alike.
        """
        super().__init__()
        self.head, self.task, self.settings = head, task, settings
        self.averaged = averaged(head, settings.ema) if settings.ema else None
        self.n_balances = len(balance)
        for index, weights in enumerate(balance):
            self.register_buffer(f"balance_{index}", weights)
        self._losses: list[Tensor] = []
        self._stopping: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def scored(self) -> Head:
        """The head whose weights are scored and kept: the running mean where there is one."""
        return self.head if self.averaged is None else cast("Head", self.averaged.module)

    @property
    def balance(self) -> Balance:
        """The weights of the classes of each target, as the stopping loss takes them."""
        return tuple(getattr(self, f"balance_{index}") for index in range(self.n_balances))

    @property
    def learning_balance(self) -> Balance:
        """Those of the training loss: none of the first target where drawing balances its classes."""
        return (None, *self.balance[1:]) if self.balance and self.settings.balanced_sampling else self.balance

    def forward(self, bags: Bags) -> HeadOutput:
        """What the head whose weights are kept says of packed bags."""
        return cast("HeadOutput", self.scored(bags))

    def predict_step(self, batch: Batch, batch_index: int) -> HeadOutput:
        """What `forward` says, for `Trainer.predict` over a `DataLoader` of bags with `collate`."""
        return self(batch.bags)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The mean loss of the bags, a scalar."""
        first = int(batch.rows[0])
        seed_step(self.settings.seed_of_steps, self.current_epoch, first, self.device, self._times[first])
        self._times[first] += 1
        loss = self.head.losses(batch.bags, self.task.criterion(batch.truth, self.learning_balance)).mean()
        self._losses.append(loss.detach() * len(batch.rows))
        self._seen += len(batch.rows)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the weights, then of their running mean."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.head)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips to the length of the settings, unless the trainer has its own."""
        self.clip_gradients(optimizer, gradient_clip_val or self.settings.clip, gradient_clip_algorithm or "norm")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """The logits of stopping bags."""
        self._stopping.append((self.scored(batch.bags).logits.float(), batch.truth, batch.rows))

    def on_validation_epoch_end(self) -> None:
        """Logs the loss of all stopping bags."""
        logits, truth, rows = (torch.cat(parts) for parts in zip(*self._stopping, strict=True))
        self._stopping.clear()
        if self.trainer.world_size > 1:
            logits, truth, rows = (cast("Tensor", self.all_gather(x)).flatten(0, 1) for x in (logits, truth, rows))
            first = first_of_each(rows.tolist())  # a process short of bags was given some twice
            logits, truth = logits[first], truth[first]
        loss = self.task.criterion(truth, self.balance).losses(logits).mean()
        self.log("stop_loss", loss)

    def on_train_epoch_start(self) -> None:
        """Logs the learning rate that the epoch starts with."""
        self._losses, self._seen, self._times = [], 0, Counter[int]()
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self) -> None:
        """Logs the loss of the epoch, once: a log a step would cost a small bag as much as its step."""
        self.log("train_loss", torch.stack(self._losses).sum() / self._seen, sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> Any:
        """AdamW, and its rate by the schedule over all epochs of the settings, per epoch or, one-cycle, per step.

        Raises:
            InputError: the schedule is one-cycle, and the trainer does not know its epochs.
        """
        settings = self.settings
        optimizer = adamw(self.head.parameters(), settings)
        total = settings.epochs
        if settings.schedule == "one-cycle":
            epochs, steps = self.trainer.max_epochs or 0, self.trainer.estimated_stepping_batches
            if epochs < 1 or math.isinf(steps):
                message = "the one-cycle schedule counts steps; give the Trainer max_epochs=settings.epochs"
                raise InputError(message)
            total *= math.ceil(steps / epochs)
        schedule = LambdaLR(optimizer, lambda done: rate(settings.schedule, done / total))
        interval = "step" if settings.schedule == "one-cycle" else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves what is computed with; lengths and rows stay on the CPU, where reading them waits for no accelerator."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        bags, covariates = batch.bags, batch.bags.covariates
        bags = bags._replace(
            features=bags.features.to(device, non_blocking=True),
            covariates=None if covariates is None else covariates.to(device, non_blocking=True),
        )
        return Batch(bags, batch.truth.to(device, non_blocking=True), batch.rows)


def adamw(parameters: Iterable[Tensor] | list[dict[str, Any]], settings: TrainSettings) -> torch.optim.AdamW:
    """The optimiser of a training: Loshchilov and Hutter (2019), with torch's own betas.

    Fused, it is torch's in one pass over the weights, equal to 1e-7 and on a CPU 3 to 9 times faster; but Lightning
    cannot clip its gradients in float16.
    """
    fused = settings.precision != 16
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def averaged(head: Head, ema: float) -> AveragedModel:
    """The running mean of a head's weights, of which `ema` stays at each step."""
    return AveragedModel(head, multi_avg_fn=partial(_blend, ema)).requires_grad_(requires_grad=False)


def rate(schedule: Schedule, done: float) -> float:
    """The learning rate as a share of the highest.

    Cosine: Loshchilov and Hutter (2017), SGDR, equation 5 without restarts. One-cycle: Smith and Topin (2018), from 1/25
    to 1 and down to 1/250,000, each along half a cosine.

    Args:
        schedule: of the settings.
        done: share of the training that is over.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return _half_cosine(1.0, 0.0, done)
    if done < _RISING:
        return _half_cosine(_START, 1.0, done / _RISING)
    return _half_cosine(1.0, _END, (done - _RISING) / (1 - _RISING))


def first_of_each(rows: list[int]) -> list[int]:
    """Where each number stands first."""
    return sorted({row: place for place, row in reversed(list(enumerate(rows)))}.values())


def _blend(ema: float, mean: list[Tensor], now: list[Tensor], step: Tensor | int) -> None:
    # as torch's own, which cannot be handed to another process
    for old, new in zip(mean, now, strict=True):
        old.lerp_(new, 1 - ema)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
