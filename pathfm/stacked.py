"""Heads of one kind and size as one: a bag goes through all of them in the calls that one of them takes."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pathfm.bags import Batch
    from pathfm.heads import Bags, Criterion, Head
    from pathfm.milmodule import MILModule


# Groups of members whose constants are kept: five folds meet in about ten, those of repeats in as many as there are bags.
_MOST_KEPT = 32


class StackedHead:
    """Calls the heads of several modules at once, their parameters stacked, through `torch.func.vmap`.

    What a step costs beside its products is paid once for all of them, on an accelerator most of all the calls. They share
    the draws of the dropout, since each would make the same ones alone. Buffers and balances, which no step changes, are
    stacked once for each group of members that meet often.
    """

    def __init__(self, modules: Sequence[MILModule]) -> None:
        """Takes modules that differ in their weights only, on the device that they are trained on."""
        first = modules[0]
        self._modules = tuple(modules)
        self._call = _Losses(copy.deepcopy(first.head))
        self._weighed = [at for at, balance in enumerate(first.balance) if balance is not None]
        self._names = [name for name, _ in chain(first.head.named_parameters("head"), first.head.named_buffers("head"))]
        self._trained = [place for place, one in enumerate(first.head.parameters()) if one.requires_grad]
        self._tied = len(list(first.head.named_parameters(remove_duplicate=False))) > len(list(first.head.parameters()))
        self._learning = [list(module.head.parameters()) for module in modules]
        self._scored = [list(module.scored.parameters()) for module in modules]
        self._buffers = [list(module.head.buffers()) for module in modules]
        self._balances = [[cast("Tensor", module.balance[at]) for at in self._weighed] for module in modules]
        self._constant: dict[tuple[int, ...], list[Tensor]] = {}

    def learn(self, active: Sequence[int], batch: Batch) -> Tensor:
        """The mean loss of a batch of each active member, float32 (active,); its gradient goes to the member's parameters."""
        task, balance = self._modules[0].task, list(self._modules[0].balance)
        n_names = len(self._names)

        def of_one(*given: Tensor) -> Tensor:
            for at, weights in zip(self._weighed, given[n_names:], strict=True):
                balance[at] = weights
            return self._of_one(given[:n_names], batch.bags, task.criterion(batch.truth, tuple(balance))).mean()

        self._switch(training=True)
        stacks = _stack(self._learning[at] for at in active)
        leaves = [stacks[place].requires_grad_() for place in self._trained]
        # flat, for vmap takes a while to unfold what is nested
        losses = vmap(of_one, randomness="same")(*stacks, *self._constants(active))
        # of the stacks, not through them: the graph ends at one leaf a parameter, not at one for each member
        gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        for place, gradient in zip(self._trained, gradients, strict=True):
            if gradient is not None:  # as alone: what a bag of one instance has no use for is not stepped
                for at, own in zip(active, _of_members(gradient), strict=True):
                    self._learning[at][place].grad = own
        return losses.detach()

    def logits(self, active: Sequence[int], bags: Bags) -> Tensor:
        """The logits of the scored head of each active member, float32 (active, b, c)."""

        def of_one(*given: Tensor) -> Tensor:
            return self._of_one(given[: len(self._names)], bags, None)

        self._switch(training=False)
        return vmap(of_one)(*_stack(self._scored[at] for at in active), *self._constants(active))

    def _of_one(self, weights: Sequence[Tensor], bags: Bags, criterion: Criterion | None) -> Tensor:
        named = dict(zip(self._names, weights, strict=True))
        return cast("Tensor", functional_call(self._call, named, (bags, criterion), tie_weights=self._tied))

    def _constants(self, active: Sequence[int]) -> list[Tensor]:
        """Buffers and balances of members, stacked."""
        key = tuple(active)
        if key not in self._constant:
            if len(self._constant) >= _MOST_KEPT:
                self._constant.clear()
            self._constant[key] = _stack([*self._buffers[at], *self._balances[at]] for at in active)
        return self._constant[key]

    def _switch(self, *, training: bool) -> None:
        if self._call.training != training:
            self._call.train(training)


class _Losses(nn.Module):
    """A head whose call gives its losses, or its logits where there is no criterion: a functional call knows `forward` only."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, bags: Bags, criterion: Criterion | None) -> Tensor:
        """Losses (b,) or logits (b, c)."""
        return self.head(bags).logits if criterion is None else self.head.losses(bags, criterion)


@torch.no_grad()
def _stack(members: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Of each parameter those of all members."""
    return [torch.stack(parts) for parts in zip(*members, strict=True)]


def _of_members(gradient: Tensor) -> Sequence[Tensor]:
    """The parts of a stacked gradient, which may lie transposed, in the layout of their parameters."""
    if gradient.device.type == "cpu":  # one by one torch turns matrices over in a quarter of the time of all at once
        return [one.contiguous() for one in gradient.unbind()]
    return gradient.contiguous().unbind()
