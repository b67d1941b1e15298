"""Heads as one, against each by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pathfm.bags import BagDataset, Batch, collate
from pathfm.datamodule import Rows, SlideDataModule
from pathfm.heads import HEADS
from pathfm.settings import TrainSettings
from pathfm.stacked import StackedHead
from pathfm.targets import Classes, Ordinal, Task

if TYPE_CHECKING:
    from torch import Tensor

    from pathfm.milmodule import MILModule

TASK = Task((Classes("cancer", ("0", "1", "2")), Ordinal("grade", ("1", "2"))))
LENGTHS = (1, 7, 300, 0)  # of which heads on a CPU take the third by blocks
TRUTH = np.array([[0, 0], [1, 1], [2, np.nan], [0, 1]], np.float32)
LEARNED = ([0, 1, 2], [1, 2, 3], [0, 1, 2, 2, 3])  # so that each module has moments and balances of its own
SLIM = {"transmil": {"landmarks": 16}}


def _members(head: str) -> tuple[list[MILModule], list[Batch]]:
    """Modules whose running means are elsewhere than their heads, and batches of one bag."""
    covariates = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    bags = BagDataset([torch.randn(n, 6) + n / 5 for n in LENGTHS], TRUTH, covariates)
    how = TrainSettings(hidden=16, attention=8, ema=0.9, device="cpu", head_options=SLIM.get(head, {}))
    modules = [SlideDataModule(bags, Rows(rows, []), TASK, how).module(head) for rows in LEARNED]
    for module in modules:
        for parameter in module.scored.parameters():
            parameter.add_(torch.rand_like(parameter) / 2)
    return modules, [collate([bag]) for bag in bags]


def _alone(module: MILModule, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    torch.manual_seed(5)
    module.head.zero_grad()
    loss = module.head.losses(batch.bags, module.task.criterion(batch.truth, module.balance)).mean()
    loss.backward()
    gradients = [one.grad for one in module.head.parameters()]
    module.head.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("head", HEADS)
def test_losses_gradients_and_logits_are_those_of_each_by_itself(head: str, half: bool) -> None:
    modules, batches = _members(head)
    stacked = StackedHead(modules)
    near = {"rtol": 0.05, "atol": 0.1} if half else {"rtol": 1e-3, "atol": 1e-5}
    for batch, active in [(batch, active) for active in ([0, 2], [1], [2, 1]) for batch in batches]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            apart = [_alone(modules[at], batch) for at in active]
            torch.manual_seed(5)
            losses, logits = stacked.learn(active, batch), stacked.logits(active, batch.bags)
            for at, loss, found, (wanted, gradients) in zip(active, losses, logits, apart, strict=True):
                torch.testing.assert_close(loss, wanted, **near, check_dtype=False)
                _require_near([one.grad for one in modules[at].head.parameters()], gradients, 0.3 if half else 1e-3)
                scored = modules[at].scored.eval()(batch.bags).logits
                torch.testing.assert_close(found, scored, **near, check_dtype=False)
                modules[at].head.zero_grad()
        assert all(one.grad is None for module in modules for one in module.head.parameters())


def _require_near(found: list[Tensor | None], wanted: list[Tensor | None], share: float) -> None:
    """Gradients that are there, contiguous, and apart by no more than a share of the longest of them."""
    assert [one is None for one in found] == [one is None for one in wanted]
    longest = max([float(one.norm()) for one in wanted if one is not None], default=0.0)
    for one, other in zip(found, wanted, strict=True):
        if one is not None and other is not None:
            assert one.is_contiguous()
            assert float((one - other).norm()) <= share * longest + 1e-6


def test_more_groups_of_members_than_are_kept_change_nothing() -> None:
    modules, batches = _members("mean")
    stacked = StackedHead(modules * 8)
    first = stacked.logits([0, 1], batches[1].bags)
    for at in range(24):
        for other in range(at):
            stacked.logits([at, other], batches[1].bags)
    assert len(stacked._constant) <= 32
    assert torch.equal(stacked.logits([0, 1], batches[1].bags), first)
