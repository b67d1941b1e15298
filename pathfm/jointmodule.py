"""Several fits as one Lightning module: their heads stacked, so that a bag is read once and goes through all of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pathfm.epochs import Best, seed_step
from pathfm.milmodule import MILModule, adamw, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.loggers import Logger

    from pathfm.bags import Batch
    from pathfm.datamodule import Rows
    from pathfm.heads import Bags, Criterion, Head
    from pathfm.targets import Balance


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

    A step takes the parameters of all members that learn from its bag, stacked, through `torch.func.vmap`; they share the
    draws of the dropout, since each would make the same ones alone. Gradients, clipping, optimiser state, running mean and
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
        # in a tuple, so that its parameters are nobody's: each call is given those of the members
        self._stacked = (StackedHead(copy.deepcopy(members[0].module.head)),)
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
        losses = self._stacked[0].losses([self.members[at].module for at in active], batch)
        self._losses.append((active, losses.detach()))
        optimizer = cast("Any", self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(losses.sum())
        for at in active:
            self._prepare_step(at, optimizer.param_groups[at])
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
        logits = self._stacked[0].logits([self.members[at].module for at in active], batch.bags)
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
        """A training that had ended before it was interrupted does not go on."""
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
        """One AdamW with a group of parameters a member: those without a gradient are not stepped."""
        return adamw([{"params": list(member.module.head.parameters())} for member in self.members], self.settings)

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
            nn.utils.clip_grad_norm_(group["params"], self.settings.clip)

    def _lr(self, steps: int, an_epoch: int) -> float:
        """The rate after so many steps; it is that of `MILModule.configure_optimizers`."""
        settings = self.settings
        epochs = steps / an_epoch if settings.schedule == "one-cycle" else steps // an_epoch
        return settings.lr * rate(settings.schedule, epochs / settings.epochs)


class StackedHead:
    """Calls one head with the parameters of several at once."""

    def __init__(self, head: Head) -> None:
        self.call = _Losses(head)

    def losses(self, modules: Sequence[MILModule], batch: Batch) -> Tensor:
        """The mean loss of a batch of each, float32 (members,)."""
        task = modules[0].task

        def of_one(weights: tuple[dict[str, Tensor], ...], balance: dict[int, Tensor]) -> Tensor:
            weighed: Balance = tuple(balance.get(index) for index in range(modules[0].n_balances))
            given = (batch.bags, task.criterion(batch.truth, weighed))
            return cast("Tensor", functional_call(self.call, weights, given, tie_weights=False)).mean()

        balances = [{i: one for i, one in enumerate(module.balance) if one is not None} for module in modules]
        self.call.train()
        heads = _stack([module.head for module in modules])
        return vmap(of_one, randomness="same")(heads, _stack_each(balances))

    def logits(self, modules: Sequence[MILModule], bags: Bags) -> Tensor:
        """The logits of the scored head of each, float32 (members, b, c)."""

        def of_one(weights: tuple[dict[str, Tensor], ...]) -> Tensor:
            return cast("Tensor", functional_call(self.call, weights, (bags, None), tie_weights=False))

        self.call.eval()
        return vmap(of_one)(_stack([module.scored for module in modules]))


class _Losses(nn.Module):
    """A head whose call gives its losses, or its logits where there is no criterion: a functional call knows `forward` only."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, bags: Bags, criterion: Criterion | None) -> Tensor:
        """Losses (b,) or logits (b, c)."""
        return self.head(bags).logits if criterion is None else self.head.losses(bags, criterion)


def _stack(heads: Sequence[Head]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of heads, stacked, by their names in `_Losses`; gradients reach each its own."""
    parameters = _stack_each([dict(head.named_parameters("head")) for head in heads])
    return parameters, _stack_each([dict(head.named_buffers("head")) for head in heads])


def _stack_each(parts: Sequence[dict[Any, Any]]) -> dict[Any, Tensor]:
    return {name: torch.stack([one[name] for one in parts]) for name in parts[0]}
