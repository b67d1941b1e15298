"""Several fits as one Lightning module: their heads stacked, so that a bag is read once and goes through all of them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from pathfm.epochs import Best, seed_step
from pathfm.milmodule import MILModule, adamw, rate
from pathfm.stacked import StackedHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.loggers import Logger

    from pathfm.bags import Batch
    from pathfm.datamodule import Rows


class Member(NamedTuple):
    """One of the fits.

    Attributes:
        module: its head and task.
        rows: which bags it learns from and stops on.
        epochs: how many it is asked for.
        best: its best epoch so far; None without bags to stop on.
        loggers: where its losses go.
    """

    module: MILModule
    rows: Rows
    epochs: int
    best: Best | None
    loggers: list[Logger]


class JointModule(LightningModule):
    """Fits that differ in their rows and seeds only, each as `MILModule` would train it alone, one bag a step.

    A step is of all members that learn from its bag (`StackedHead`). Gradients, clipping, optimiser state, running mean and
    best epoch are each member's own; one that has stopped takes no further part.

    Attributes:
        ran: of each member the epochs it ran, once it has ended; 0 before.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.members = tuple(members)
        self.modules_of = nn.ModuleList(member.module for member in members)
        self.settings = members[0].module.settings
        self.ran = [0] * len(members)
        self._learn = [frozenset(member.rows.learn) for member in members]
        self._stop = [frozenset(member.rows.stop) for member in members]
        self._losses: list[tuple[list[int], Tensor]] = []
        self._logits: dict[int, dict[int, Tensor]] = {}
        self._truth: dict[int, Tensor] = {}
        self._metrics: dict[int, dict[str, float]] = {}

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """One step of every member that learns from the bag."""
        row = int(batch.rows[0])
        active = [at for at, learn in enumerate(self._learn) if row in learn and not self.ran[at]]
        if not active:
            return
        seed_step(self.settings.seed_of_steps, self.current_epoch, row, self.device)
        optimizer = cast("Any", self.optimizers())
        optimizer.zero_grad()  # who does not learn from this bag has no gradient, and is not stepped
        self._losses.append((active, self._stacked.learn(active, batch)))
        groups = optimizer.param_groups
        for at in active:
            self._prepare_step(at, groups[at % len(groups)])
        optimizer.step()
        for at in active:
            module = self.members[at].module
            if module.averaged is not None:
                module.averaged.update_parameters(module.head)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """The logits that a stopping bag has of every member that stops on it."""
        row = int(batch.rows[0])
        active = [at for at, stop in enumerate(self._stop) if row in stop and not self.ran[at]]
        if not active:
            return
        logits = self._stacked.logits(active, batch.bags)
        self._truth[row] = batch.truth
        for at, one in zip(active, logits.float().unbind(), strict=True):
            self._logits.setdefault(at, {})[row] = one

    def on_validation_epoch_end(self) -> None:
        """Compares the epoch of each member with its best."""
        for at, found in self._logits.items():
            member, rows = self.members[at], self.members[at].rows.stop
            truth = torch.cat([self._truth[row] for row in rows])
            criterion = member.module.task.criterion(truth, member.module.balance)
            loss = float(criterion.losses(torch.cat([found[row] for row in rows])).mean())
            cast("Best", member.best).compare(loss, self.current_epoch + 1, member.module.scored)
            self._metrics.setdefault(at, {})["stop_loss"] = loss
        self._logits, self._truth = {}, {}

    def on_train_start(self) -> None:
        """Stacks the heads, which are on their device now. A training that had ended before it was interrupted does not go on."""
        self._stacked = StackedHead([member.module for member in self.members])
        self.trainer.should_stop = all(self.ran)

    def on_train_epoch_start(self) -> None:
        """Sets the learning rates that are those of the epoch."""
        self._losses, self._metrics = [], {}
        self._steps = [self.current_epoch * len(learn) for learn in self._learn]

    def on_train_epoch_end(self) -> None:
        """Logs the epoch of each member, and ends those for which it was the last."""
        epochs = self.current_epoch + 1
        losses: dict[int, list[Tensor]] = {}
        for active, found in self._losses:
            for at, one in zip(active, found.unbind(), strict=True):
                losses.setdefault(at, []).append(one)
        for at, member in enumerate(self.members):
            if self.ran[at]:
                continue
            lr = self._lr(self.current_epoch * len(self._learn[at]), len(self._learn[at]))
            metrics = {"epoch": self.current_epoch, "lr": lr, "train_loss": float(torch.stack(losses[at]).mean())}
            for logger in member.loggers:
                logger.log_metrics(metrics | self._metrics.get(at, {}), self._steps[at] - 1)
                logger.save()
            if epochs >= member.epochs or (member.best is not None and member.best.exhausted(epochs)):
                self.ran[at] = epochs
        self.trainer.should_stop = all(self.ran)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW, in one call for all members where they share the rate of an epoch: one-cycle counts the steps of each."""
        each = [list(member.module.head.parameters()) for member in self.members]
        groups = each if self.settings.schedule == "one-cycle" else [list(chain.from_iterable(each))]
        return adamw([{"params": group} for group in groups], self.settings)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how far each member is."""
        bests = [member.best.state_dict() if member.best else {} for member in self.members]
        checkpoint["members"] = {"ran": list(self.ran), "bests": bests}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes how far each member is."""
        self.ran = list(checkpoint["members"]["ran"])
        for member, state in zip(self.members, checkpoint["members"]["bests"], strict=True):
            if member.best is not None:
                member.best.load_state_dict(state)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As `MILModule` does."""
        return self.members[0].module.transfer_batch_to_device(batch, device, dataloader_idx)

    def _prepare_step(self, at: int, group: dict[str, Any]) -> None:
        group["lr"] = self._lr(self._steps[at], len(self._learn[at]))
        self._steps[at] += 1
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.members[at].module.head.parameters(), self.settings.clip)

    def _lr(self, steps: int, an_epoch: int) -> float:
        """The rate after so many steps; it is that of `MILModule.configure_optimizers`."""
        settings = self.settings
        epochs = steps / an_epoch if settings.schedule == "one-cycle" else steps // an_epoch
        return settings.lr * rate(settings.schedule, epochs / settings.epochs)
