"""Survival by a relative risk, without saying when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pathfm.targets.survival import Survival
from pathfm.targets.target import known

if TYPE_CHECKING:
    from pathfm.targets.target import Scores, Truth


@dataclass(frozen=True)
class Cox(Survival):
    """Survival by proportional hazards: the logit is the logarithm of the risk relative to that of others.

    The partial likelihood of Cox, Regression models and life-tables, Journal of the Royal Statistical Society B 34:187
    (1972), among the bags of a batch, as a network is trained with it since Katzman et al., DeepSurv, BMC Medical Research
    Methodology 18:24 (2018). Events of equal times as in Breslow, Covariance analysis of censored survival data, Biometrics
    30:89 (1974): each is compared with all who were at risk then.
    """

    kind: ClassVar[str] = "cox"
    compares: ClassVar[bool] = True

    @property
    def n_outputs(self) -> int:
        """The logarithm of the relative risk."""
        return 1

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """Shares of the negative logarithm of the partial likelihood over the number of events, which is their mean.

        A bag with the event has log(sum over those at risk of exp(logit)) - logit, times bags over events of the batch;
        any other 0. A batch without an event, or with one bag, has nothing to compare and costs nothing.
        """
        labelled = known(truth)
        time, event = truth[:, 0], labelled & (truth[:, 1] > 0)
        at_risk = labelled & (time >= time[:, None])  # row: of whose event, column: who; NaN is no time
        # a row without anybody would have a gradient of NaN, though its loss is not used
        at_risk = at_risk | torch.eye(len(truth), dtype=torch.bool, device=truth.device)
        against = torch.where(at_risk, logits[:, 0], -torch.inf).logsumexp(dim=1)
        share = len(truth) / event.sum().clamp(min=1).to(logits)
        return torch.where(event, (against - logits[:, 0]) * share, 0.0)

    def can_judge(self, truth: Truth) -> bool:
        """With an event whose time another row has reached as well; else there is nothing to compare."""
        times, events = truth[~np.isnan(truth).any(axis=1)].T
        return any(int((times >= time).sum()) > 1 for time in times[events > 0])

    def scores(self, logits: Tensor) -> Scores:
        """The logarithm of the relative risk."""
        return logits.double().numpy()

    def facts(self) -> dict[str, Any]:
        """None: the risk is relative."""
        return {}

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """None are needed."""
        return cls(name)
