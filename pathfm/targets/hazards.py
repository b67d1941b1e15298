"""Survival by the hazard in each of a few spans of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from pathfm.targets.facts import finite_numbers
from pathfm.targets.numbers import cuts_of
from pathfm.targets.survival import Survival
from pathfm.targets.target import known

if TYPE_CHECKING:
    from pathfm.targets.target import Scores, Truth

_SPANS = 4


@dataclass(frozen=True)
class Hazards(Survival):
    """Survival in discrete time: the sigmoid of a logit is the hazard of a span, the chance of the event for who reaches it.

    Gensheimer, Narasimhan, A scalable discrete-time survival model for neural networks, PeerJ 7:e6257 (2019); the likelihood
    as in Zadeh, Schmid, Bias in cross-entropy-based training of deep survival networks, IEEE TPAMI 43:3126 (2020), in
    which who was followed into a span counts as having passed it. It needs no other bags to compare with.

    Attributes:
        cuts: the times at which the second, third and fourth span begin, rising; the quantiles of the event times of the
            training rows, and none before it is fitted.
    """

    cuts: tuple[float, ...] = ()

    kind: ClassVar[str] = "hazards"

    @property
    def n_outputs(self) -> int:
        """One a span."""
        return _SPANS

    def fitted(self, truth: Truth) -> Self:
        """The spans hold as many events of the training rows each."""
        return replace(self, cuts=tuple(float(cut) for cut in cuts_of(truth[truth[:, 1] == 1, 0], _SPANS)))

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of having passed the spans before, and of the event in its own, or of passing it."""
        labelled = known(truth)
        time, event = (torch.where(labelled, column.nan_to_num(), 0.0) for column in truth.T)
        own = torch.zeros_like(time, dtype=torch.int64)
        for cut in self.cuts:  # a tensor of them would be copied at every step, for which an accelerator waits
            own = own + (time >= cut)
        own = own[:, None]
        spans = torch.arange(_SPANS, device=truth.device)
        passed = (spans < own) | ((spans == own) & (event == 0)[:, None])
        struck = (spans == own) & (event == 1)[:, None]
        likelihood = torch.where(passed, functional.logsigmoid(-logits), 0.0)
        likelihood = likelihood + torch.where(struck, functional.logsigmoid(logits), 0.0)
        return torch.where(labelled, -likelihood.sum(dim=1), 0.0)

    def scores(self, logits: Tensor) -> Scores:
        """Minus the sum over the spans of the chance to pass them, from -4 to 0."""
        passed = torch.cumprod(torch.sigmoid(-logits.double()), dim=1)
        return -passed.sum(dim=1, keepdim=True).numpy()

    def facts(self) -> dict[str, Any]:
        """The spans."""
        return {"cuts": list(self.cuts)}

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """Finite times, rising, one fewer than spans; or none."""
        cuts = finite_numbers(facts.get("cuts"), "cuts")
        if len(cuts) not in (0, _SPANS - 1) or list(cuts) != sorted(cuts) or min(cuts, default=1) <= 0:
            message = f"key 'cuts' is not a list of {_SPANS - 1} times above 0 that rise"
            raise ValueError(message)
        return cls(name, cuts)
