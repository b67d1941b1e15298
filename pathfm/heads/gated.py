"""The body of attention-based MIL: the hidden instances of bags, their attention, and each bag's attended sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.products import in_half
from pathfm.heads.rowblocks import Weights, attend_by_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.heads.packed import Bags

_LONG = 256  # instances of a bag on average from which on row blocks pay, with many hidden units and with few


class Attended(NamedTuple):
    """What the body makes of packed bags.

    Attributes:
        pooled: float32 (b, k, hidden), the attention-weighted sum of a bag's hidden instances, for each of k branches.
        attention: float32 (sum_n, k), each column sums to 1 over a non-empty bag.
        hidden: float32 (sum_n, hidden), the instances after the first layer, ReLU and dropout.
        scores: float32 (sum_n, k), the attention before its softmax.
    """

    pooled: Tensor
    attention: Tensor
    hidden: Tensor
    scores: Tensor


class AttentionBody(nn.Module):
    """An instance x becomes h = relu(Wx), its score is w'(tanh(Vh) * sigmoid(Uh)), and a bag the attended sum of h.

    Source: Ilse, Tomczak and Welling (2018), equations 7 and 9; without a gate equation 8, w'tanh(Vh). Several branches
    share V and U and have a w each, as the multi-branch attention of Lu et al. (2021), CLAM.
    """

    def __init__(self, dim: int, shape: HeadShape, branches: int = 1, *, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        # V and U in one product: the largest cost of the head on a CPU
        self.gates = nn.Linear(shape.hidden, (2 if gated else 1) * shape.attention)
        self.score = nn.Linear(shape.attention, branches)

    def forward(self, bags: Bags) -> Attended:
        """Hidden instances, scores, attention and attended sums of packed bags."""
        lengths = bags.lengths.tolist()
        if _blocks_pay(bags.features, lengths):
            return self._by_blocks(bags.features, lengths)
        hidden = self.dropout(torch.relu(self.hidden(bags.features)))
        scores = self.scores(hidden)
        pooled, attention = attend(hidden, scores, lengths)
        return Attended(pooled, attention, hidden, scores)

    def scores(self, hidden: Tensor) -> Tensor:
        """The attention before its softmax: float32 (n, hidden) to (n, k)."""
        gates = self.gates(hidden)
        if not self.gated:
            return self.score(torch.tanh(gates))  # type: ignore[no-any-return]
        v, u = gates.chunk(2, dim=1)
        return self.score(torch.tanh(v) * torch.sigmoid(u))  # type: ignore[no-any-return]

    def _by_blocks(self, features: Tensor, lengths: Sequence[int]) -> Attended:
        first = self.hidden.folded()
        weights = Weights(*first, self.gates.weight, self.gates.bias, self.score.weight, self.score.bias)
        parts = []
        for bag in torch.split_with_sizes(features, lengths):
            keep = self.dropout.keep(torch.Size((len(bag), len(first[1]))), bag.device) if self.dropout.drops else None
            parts.append(attend_by_blocks(bag, weights, keep, self.dropout.scale))
        pooled, *rest = zip(*parts, strict=True)
        return Attended(torch.stack(pooled), *(one[0] if len(one) == 1 else torch.cat(one) for one in rest))


def attend(hidden: Tensor, scores: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pools packed bags by their scores.

    Args:
        hidden: float32 (sum_n, h).
        scores: float32 (sum_n, k), before the softmax over a bag.
        lengths: instances of each bag.

    Returns:
        The attended sums, float32 (b, k, h), zeros for a bag of 0 instances, and the attention, float32 (sum_n, k).
    """
    attention = [torch.softmax(part, dim=0) for part in torch.split_with_sizes(scores, lengths)]
    # a product per bag: no padding, nothing of (sum_n, h) is allocated again, and the order of the sum is fixed
    parts = zip(attention, torch.split_with_sizes(hidden, lengths), strict=True)
    return torch.stack([weights.T @ part for weights, part in parts]), torch.cat(attention)


def gain_over_mean(attended: Attended, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """What each branch adds to each logit by looking where it does, instead of at all instances alike.

    Args:
        attended: of packed bags.
        weight: float32 (k, h), by which the logit of each branch reads its sum.
        lengths: instances of each bag.

    Returns:
        Differences of logits, float32 (b, k, k); a branch moves its own alone, and in a bag of 0 instances none.
    """
    parts = torch.split_with_sizes(attended.hidden, lengths)
    means = torch.stack([part.sum(dim=0) / max(len(part), 1) for part in parts])
    return torch.diag_embed(((attended.pooled - means[:, None]) * weight).sum(dim=2))


def _blocks_pay(features: Tensor, lengths: Sequence[int]) -> bool:
    """Whether `rowblocks` is the faster way: for long bags on a CPU, unless they are computed in half precision."""
    return features.device.type == "cpu" and not in_half(features) and len(features) >= _LONG * len(lengths)
