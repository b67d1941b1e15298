"""Clustering-constrained attention: Lu et al. (2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathfm.heads.gated import AttentionBody, gain_over_mean
from pathfm.heads.options import require_share
from pathfm.heads.packed import Bags, Criterion, HeadOutput
from pathfm.heads.pooling import Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.heads.layers import HeadShape


class ClamSB(Pooling):
    """Gated attention that also learns to tell the instances it looks at from those it does not: one branch.

    Beside the loss of the bag, each class has a classifier of instances, and the most and the least attended ones of a
    bag are its examples (`InstanceLoss`). The loss is bag_weight times that of the bag and the rest that of the instances.
    Where what is learned is not one target of classes there is no class whose evidence they could be, and the head trains
    by the loss of the bag alone, which makes it gated attention.
    """

    paper = (
        "Lu et al. (2021), Data-efficient and weakly supervised computational pathology on whole-slide images: "
        "CLAM with one branch"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "one"

    def __init__(
        self,
        dim: int,
        n_outputs: int,
        shape: HeadShape,
        *,
        bag_weight: float = 0.7,
        instances: int = 8,
        exclusive: bool = True,
    ) -> None:
        """The sizes of a head, and the weights and sizes of its losses.

        Args:
            dim: width of the embeddings.
            n_outputs: number of logits.
            shape: the sizes that heads share.
            bag_weight: share of the bag's loss, from 0 to 1.
            instances: how many of the most, and of the least attended instances are examples.
            exclusive: the classes exclude each other: what is most attended for the others is an example against them.
        """
        super().__init__()
        require_share("bag_weight", bag_weight)
        self.bag_weight = bag_weight
        self.body = AttentionBody(dim, shape, n_outputs if self.attention == "each output" else 1)
        self.classifier = nn.Linear(shape.hidden, n_outputs)
        self.instances = InstanceLoss(shape.hidden, n_outputs, instances, exclusive=exclusive)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1)."""
        attended = self.body(bags)
        return HeadOutput(self._logits(attended.pooled), attended.attention)

    def losses(self, bags: Bags, criterion: Criterion) -> Tensor:
        """The weighted sum of the loss of the bag and that of its instances, float32 (b,)."""
        attended = self.body(bags)
        losses = criterion.losses(self._logits(attended.pooled))
        if criterion.classes is None:
            return losses
        lengths: Sequence[int] = bags.lengths.tolist()
        instances: Tensor = self.instances(attended.hidden, attended.scores, lengths, criterion.classes)
        return self.bag_weight * losses + (1 - self.bag_weight) * instances

    def _logits(self, pooled: Tensor) -> Tensor:
        """Of pooled (b, 1 or c, h): row c of the classifier reads its own branch, or the only one."""
        logits: Tensor = (pooled * self.classifier.weight).sum(dim=2) + self.classifier.bias
        return logits


class ClamMB(ClamSB):
    """Gated attention with a branch an output, each of which has its own examples of instances."""

    paper = (
        "Lu et al. (2021), Data-efficient and weakly supervised computational pathology on whole-slide images: "
        "CLAM with a branch a class"
    )
    attention = "each output"

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c), attention (sum_n, c), and in evaluation the gain (b, c, c)."""
        attended = self.body(bags)
        logits = self._logits(attended.pooled)
        if self.training:
            return HeadOutput(logits, attended.attention)
        gain = gain_over_mean(attended, self.classifier.weight, bags.lengths.tolist())
        return HeadOutput(logits, attended.attention, gain)


class InstanceLoss(nn.Module):
    """The instance-level clustering of Lu et al. (2021): a classifier of instances for each class.

    Of the bag's own class the `n` most attended instances are examples for it and the `n` least attended ones against it;
    of every other class, where classes exclude each other, the `n` most attended are examples against it, and the loss
    is the mean over the classes. Their loss is the smooth top-1 SVM of Berrada, Zisserman and Kumar (2018) with margin
    and temperature 1. A bag of fewer than 2n instances gives half of them to either side, so that none is an example of
    both; one of 0 or 1 has nothing to set apart. The gradient reaches the instances, and not the choice of them.
    """

    def __init__(self, hidden: int, n_classes: int, n: int, *, exclusive: bool) -> None:
        super().__init__()
        self.n_classes, self.n, self.exclusive = n_classes, n, exclusive
        self.classifiers = nn.Linear(hidden, 2 * n_classes)  # of class c: rows 2c against it, 2c + 1 for it

    def forward(self, hidden: Tensor, scores: Tensor, lengths: Sequence[int], classes: Tensor) -> Tensor:
        """The loss of the instances of each bag.

        Args:
            hidden: float (sum_n, h).
            scores: float (sum_n, 1 or c), what the attention is the softmax of.
            lengths: instances of each bag.
            classes: int64 (b,), -1 for a bag without one, whose loss is 0.

        Returns:
            Losses, float (b,).
        """
        parts = zip(torch.split_with_sizes(hidden, lengths), torch.split_with_sizes(scores, lengths), strict=True)
        by_class = torch.stack([self._of_bag(*part) for part in parts])  # (b, 2, c)
        own = classes[:, None] == torch.arange(self.n_classes, device=classes.device)
        within, against = by_class[:, 0], by_class[:, 1] if self.exclusive else torch.zeros_like(by_class[:, 1])
        total = torch.where(own, within, against).sum(dim=1) / (self.n_classes if self.exclusive else 1)
        return torch.where(classes >= 0, total, 0.0)

    def _of_bag(self, hidden: Tensor, scores: Tensor) -> Tensor:
        """The loss of one bag if each class were its own, and if it were not, (2, c)."""
        half, most = min(self.n, len(hidden) // 2), min(self.n, len(hidden))
        if half == 0:
            return hidden.new_zeros(2, self.n_classes)
        scores = scores.detach().expand(-1, self.n_classes)
        top = self._logits(hidden, scores.topk(most, dim=0).indices)  # (most, c, 2)
        bottom = self._logits(hidden, scores.topk(half, dim=0, largest=False).indices)
        within = (smooth_svm(top[:half], 1) + smooth_svm(bottom, 0)).mean(dim=0) / 2
        return torch.stack([within, smooth_svm(top, 0).mean(dim=0)])

    def _logits(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """What the classifier of each class says of instances (k, c) that were chosen for it, (k, c, 2)."""
        chosen = hidden.index_select(0, indices.flatten()).reshape(*indices.shape, -1)  # (k, c, h)
        weight = self.classifiers.weight.reshape(self.n_classes, 2, -1)
        return torch.einsum("kch,coh->kco", chosen, weight) + self.classifiers.bias.reshape(self.n_classes, 2)


def smooth_svm(logits: Tensor, label: int) -> Tensor:
    """The smooth top-1 SVM loss with margin and temperature 1: log sum_j exp(x_j + [j != y]) - x_y.

    Source: Berrada, Zisserman and Kumar (2018), Smooth loss functions for deep top-k classification, at k = 1.

    Args:
        logits: float (..., 2).
        label: that of all of them, 0 or 1.

    Returns:
        Losses, float (...).
    """
    return functional.softplus(logits[..., 1 - label] + 1 - logits[..., label])
