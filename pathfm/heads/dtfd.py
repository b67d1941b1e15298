"""Double-tier feature distillation: Zhang et al. (2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pathfm.heads.gated import AttentionBody
from pathfm.heads.options import require_one_of
from pathfm.heads.packed import Bags, Criterion, HeadOutput
from pathfm.heads.pooling import Pooling

if TYPE_CHECKING:
    from pathfm.heads.layers import HeadShape

_DISTILL = ("afs", "maxmins", "maxs")
_RANKS = ("activation", "probability")


class DTFD(Pooling):
    """Gated attention in pseudo-bags, then gated attention over what is distilled of each.

    The instances of a bag are dealt to pseudo-bags; each is attended and judged by itself, with the label of the bag. Of
    each pseudo-bag, features are handed on: its attended sum (afs), the instances that speak most for and most against each
    output (maxmins), or for each alone (maxs), by their activation of it in the pseudo-bag's classifier. The second tier
    attends over those of all pseudo-bags and gives the logits. The loss is that of both tiers, the first the mean over
    pseudo-bags.

    The paper, whose outputs are two classes, ranks instances by the probability of the second: `rank_by` probability.
    Outputs here may be thresholds, labels or a risk as well, over which a softmax means nothing, and a head is not told
    what its outputs are; so by default each is ranked by its own activation.

    In training the instances are dealt at random, in evaluation in turn, so the order of the instances matters a little.
    The attention of an instance is that in its pseudo-bag times that of what its pseudo-bag handed on. A bag of fewer
    instances than pseudo-bags has as many pseudo-bags as instances; one of 0 instances is the zero vector.
    """

    paper = (
        "Zhang et al. (2022), DTFD-MIL: double-tier feature distillation multiple instance learning for histopathology "
        "whole slide image classification"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "one"
    permutation_invariant = False

    def __init__(
        self,
        dim: int,
        n_outputs: int,
        shape: HeadShape,
        *,
        groups: int = 4,
        distill: str = "afs",
        rank_by: str = "activation",
    ) -> None:
        """The sizes of a head, and what is handed on.

        Args:
            dim: width of the embeddings.
            n_outputs: number of logits.
            shape: the sizes that heads share.
            groups: pseudo-bags of a bag.
            distill: afs, maxmins or maxs.
            rank_by: of maxmins and maxs, activation, or for one target of classes probability.
        """
        super().__init__()
        require_one_of("distillation of the head dtfd", distill, _DISTILL)
        require_one_of("ranks of the head dtfd", rank_by, _RANKS)
        self.groups, self.distill, self.rank_by = groups, distill, rank_by
        self.body = AttentionBody(dim, shape)
        self.tier1 = nn.Linear(shape.hidden, n_outputs)
        self.gates = nn.Linear(shape.hidden, 2 * shape.attention)
        self.score = nn.Linear(shape.attention, 1)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) of the second tier, and attention (sum_n, 1)."""
        tiers = self._tiers(bags)
        attention = torch.cat([tier.attention for tier in tiers])
        return HeadOutput(self.classifier(torch.stack([tier.pooled for tier in tiers])), attention)

    def losses(self, bags: Bags, criterion: Criterion) -> Tensor:
        """The mean over its pseudo-bags of what they cost, and what the second tier costs, float32 (b,)."""
        tiers = self._tiers(bags)
        losses = criterion.losses(self.classifier(torch.stack([tier.pooled for tier in tiers])))
        counts = [len(tier.logits) for tier in tiers]
        for group in range(max(counts)):
            # every bag has a row in each call, as the criterion wants it; one it does not have counts nothing
            logits = torch.stack([tier.logits[group % len(tier.logits)] for tier in tiers])
            # filled, not copied from a list, for which an accelerator would wait
            shares = torch.stack([losses.new_full((), (group < count) / count) for count in counts])
            losses = losses + shares * criterion.losses(logits)
        return losses

    def _tiers(self, bags: Bags) -> list[_Tiers]:
        attended = self.body(bags)
        lengths = bags.lengths.tolist()
        parts = (torch.split_with_sizes(one, lengths) for one in (attended.hidden, attended.scores))
        return [self._of_bag(*part) for part in zip(*parts, strict=True)]

    def _of_bag(self, hidden: Tensor, scores: Tensor) -> _Tiers:
        """Both tiers of one bag, from its hidden instances (n, h) and their scores (n, 1)."""
        if not len(hidden):
            nothing = hidden.new_zeros(1, hidden.shape[1])
            return _Tiers(self.tier1(nothing), nothing[0], scores)
        member = self._dealt(len(hidden), hidden.device)
        # attention within each pseudo-bag as columns with zeros elsewhere: no copy of the instances in another order
        attention = torch.softmax(scores.masked_fill(~member, -torch.inf), dim=0)  # (n, g)
        pooled = attention.T @ hidden  # (g, h)
        handed = pooled if self.distill == "afs" else self._chosen(hidden, attention, member)  # (g * k, h)
        v, u = self.gates(handed).chunk(2, dim=1)
        weights = torch.softmax(self.score(torch.tanh(v) * torch.sigmoid(u)), dim=0)  # (g * k, 1)
        by_group = weights.reshape(member.shape[1], -1).sum(dim=1, keepdim=True)  # (g, 1)
        return _Tiers(self.tier1(pooled), (weights * handed).sum(dim=0), attention @ by_group)

    def _dealt(self, n: int, device: torch.device) -> Tensor:
        """Which pseudo-bag each instance is in, bool (n, g); none is empty."""
        groups = min(self.groups, n)
        order = torch.randperm(n, device=device) if self.training else torch.arange(n, device=device)
        return (order % groups)[:, None] == torch.arange(groups, device=device)

    def _chosen(self, hidden: Tensor, attention: Tensor, member: Tensor) -> Tensor:
        """The instances that each pseudo-bag hands on, (g * k, h); the choice has no gradient."""
        activation = attention.detach().sum(dim=1, keepdim=True) * (hidden.detach() @ self.tier1.weight.detach().T)
        ranks = (_probabilities(activation) if self.rank_by == "probability" else activation)[:, None, :]  # (n, 1, r)
        best = torch.where(member[:, :, None], ranks, -torch.inf).argmax(dim=0)  # (g, r)
        if self.distill == "maxmins":
            best = torch.cat([best, torch.where(member[:, :, None], ranks, torch.inf).argmin(dim=0)], dim=1)
        return hidden.index_select(0, best.flatten())


class _Tiers(NamedTuple):
    logits: Tensor  # of the first tier, (g, c)
    pooled: Tensor  # by the second tier, (h,)
    attention: Tensor  # (n, 1)


def _probabilities(activation: Tensor) -> Tensor:
    """Logarithms of the probabilities of classes by their activations (n, c): of two that of the second, (n, 1)."""
    return activation.log_softmax(dim=1)[:, 1 if activation.shape[1] == 2 else 0 :]
