"""Training steps on an accelerator that is not there, run as a script by test_elsewhere.py.

torch's fake tensors have a device, a shape and a type, and no numbers. So a step on them raises where it would mix devices,
and where it would read a number back, for which an accelerator has to finish all that it was given before.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from pathfm.bags import BagDataset, Batch, collate
from pathfm.datamodule import Rows, SlideDataModule
from pathfm.heads import HEADS, HeadOutput
from pathfm.heads.mean import MeanPooling
from pathfm.settings import TrainSettings
from pathfm.stacked import StackedHead
from pathfm.targets import Classes, Cox, Hazards, MultiLabel, Ordinal, Regression, Task

if TYPE_CHECKING:
    from pathfm.heads import Bags
    from pathfm.milmodule import MILModule
    from pathfm.targets import Target

NAME = "elsewhere"
GRADE = Ordinal("grade", ("1", "2", "3"))
TASKS = {
    "classes": Task((Classes("type", ("a", "b", "c")),)),
    "multilabel": Task((MultiLabel("findings", ("x", "y")),)),
    "cox": Task((Cox("months/died"),)),
    "several": Task((Classes("cancer", ("0", "1")), GRADE, Regression("size"), Hazards("months/died"))),
}
LENGTHS = (300, 30, 20, 5, 7, 9)  # the first, of one bag, has more than the landmarks of a head


def main() -> None:
    """Prints how many heads and kinds of target were trained; the first that an accelerator could not train raises."""
    _register()
    asked = [*product(HEADS, ["classes"], (1, 3)), *product(["gated-abmil"], TASKS, [3]), ("gated-abmil", "several", 1)]
    for head, task, bags in asked:
        _train(head, TASKS[task], bags)
    for name, mistake in (("left", LeftBehind), ("reads", ReadsBack), ("round", RoundTrip)):
        HEADS[name] = mistake
        try:
            _train(name, TASKS["classes"], 1)
        except (RuntimeError, DataDependentOutputException) as error:
            print(f"{name}: {error}")
    print(f"{len(asked)} trained")


class LeftBehind(MeanPooling):
    """Makes a tensor without saying where."""

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits, with a number added that is on the CPU."""
        logits, *rest = super().forward(bags)
        return HeadOutput(logits + torch.ones(logits.shape[1]), *rest)


class ReadsBack(MeanPooling):
    """Branches on a number."""

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits that depend on their sum."""
        logits, *rest = super().forward(bags)
        return HeadOutput(-logits if logits.sum() > 0 else logits, *rest)


class RoundTrip(MeanPooling):
    """Takes numbers to the CPU and back."""

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits that were elsewhere."""
        logits, *rest = super().forward(bags)
        return HeadOutput(logits.cpu().to(logits.device), *rest)


class OneWay(TorchDispatchMode):
    """Has nothing come back from the accelerator."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls, unless it copies to the CPU."""
        found = call(*args, **(kwargs or {}))
        given = [one for one in args if isinstance(one, Tensor)]
        if isinstance(found, Tensor) and found.device.type == "cpu" and any(one.device.type == NAME for one in given):
            message = f"{call} copies to the CPU"
            raise RuntimeError(message)
        return found


def _train(head: str, task: Task, bags: int) -> None:
    """A step of so many bags in half precision, or of one bag, alone and together with another head, in full."""
    mode = FakeTensorMode()
    modules, batch = _members(head, task, bags, mode)
    with mode, OneWay(), torch.autocast(NAME, torch.bfloat16, enabled=bags > 1):
        _step(modules[0], batch)
        if bags == 1:
            _step_together(modules, batch)


def _step(module: MILModule, batch: Batch) -> None:
    head, criterion = module.head.train(), module.task.criterion(batch.truth, module.balance)
    loss = head.losses(batch.bags, criterion).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    logits = head.eval()(batch.bags).logits
    found = [loss, logits, criterion.losses(logits.float()), *(one.grad for one in head.parameters())]
    assert {one.device.type for one in found if one is not None} == {NAME}


def _step_together(modules: list[MILModule], batch: Batch) -> None:
    stacked, active = StackedHead(modules), range(len(modules))
    found = [stacked.learn(active, batch), stacked.logits(active, batch.bags)]
    assert {one.device.type for one in found} == {NAME}


def _members(head: str, task: Task, n: int, mode: FakeTensorMode) -> tuple[list[MILModule], Batch]:
    """Two modules and a batch of so many bags, all of which are elsewhere but the lengths and rows of the batch."""
    truth = np.concatenate([_truth(target) for target in task.targets], axis=1)
    bags = BagDataset([torch.randn(length, 16) for length in LENGTHS], truth, np.ones((len(LENGTHS), 2), np.float32))
    data = SlideDataModule(bags, Rows(range(len(bags)), []), task, TrainSettings(hidden=16, attention=8, device="cpu"))
    modules = [data.module(head) for _ in range(2)]
    for part in (part for module in modules for part in module.modules()):
        for name, one in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(_there(one.detach(), mode)))
        for name, one in part.named_buffers(recurse=False):
            setattr(part, name, _there(one, mode))
    batch = collate([bags[row] for row in range(n)])
    assert batch.bags.covariates is not None
    packed = batch.bags._replace(
        features=_there(batch.bags.features, mode), covariates=_there(batch.bags.covariates, mode), lengths=_Lengths(n)
    )
    return modules, batch._replace(bags=packed, truth=_there(batch.truth, mode))


def _truth(target: Target) -> np.ndarray:
    rows = np.arange(len(LENGTHS), dtype=np.float32)[:, None]
    if isinstance(target, (Cox, Hazards)):
        return np.concatenate([rows + 1, rows % 2], axis=1)
    return rows % 2 if isinstance(target, Regression) else np.tile(rows % 2, target.width)


def _there(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    fake = mode.from_tensor(tensor)
    with mode:
        return fake.to(NAME)


class _Lengths(Tensor):
    """The lengths of the first bags, which are on the CPU and have numbers, under a mode in which no tensor has any."""

    @staticmethod
    def __new__(cls: type[_Lengths], n: int) -> _Lengths:
        return Tensor._make_subclass(cls, torch.tensor(LENGTHS[:n]))

    def tolist(self) -> list[int]:
        """As numbers."""
        return list(LENGTHS[: len(self)])


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _register() -> None:
    """Makes torch know the accelerator; autocast has no casts there, tests of a CPU have them."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    _register.library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    _register.library.fallback(torch.library.fallthrough_kernel)


if __name__ == "__main__":
    main()
