"""Dual-stream MIL: Li, Li and Eliceiri (2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.packed import Bags, Criterion, HeadOutput
from pathfm.heads.pooling import Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence


class DSMIL(Pooling):
    """Two streams: the most suspicious instance of each output, and attention by likeness to it.

    An instance x becomes h = relu(Wx). The first stream has logits of each instance, of which an output takes the largest,
    that of its critical instance m. The second attends, for each output, by the softmax over the bag of
    q(h)'q(h_m) / sqrt(length of q), with q two layers, ReLU and tanh; one layer reads the attended sums of all outputs.
    The logits are the mean of the two streams; in training each has half of the loss. A bag of 0 instances is the zero
    vector in both.
    """

    paper = (
        "Li, Li and Eliceiri (2021), Dual-stream multiple instance learning network for whole slide image classification "
        "with self-supervised contrastive learning: the dual-stream aggregator"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "each output"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.instances = nn.Linear(shape.hidden, n_outputs)
        self.query = nn.Sequential(
            nn.Linear(shape.hidden, shape.attention), nn.ReLU(), nn.Linear(shape.attention, shape.attention), nn.Tanh()
        )
        self.classifier = nn.Linear(n_outputs * shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c), the mean of the streams, attention (sum_n, c), and in evaluation the gain (b, c, c)."""
        streams = self._streams(bags)
        gain = None if self.training else self._gain(streams, bags.lengths.tolist())
        return HeadOutput((streams.critical + streams.attended) / 2, streams.attention, gain)

    def losses(self, bags: Bags, criterion: Criterion) -> Tensor:
        """Half the loss of either stream, float32 (b,)."""
        streams = self._streams(bags)
        return (criterion.losses(streams.critical) + criterion.losses(streams.attended)) / 2

    def _streams(self, bags: Bags) -> _Streams:
        hidden = self.dropout(torch.relu(self.hidden(bags.features)))
        lengths: Sequence[int] = bags.lengths.tolist()
        parts = zip(*(torch.split_with_sizes(one, lengths) for one in self._of_instances(hidden)), strict=True)
        critical, pooled, attention = zip(*(self._of_bag(*part) for part in parts), strict=True)
        sums = torch.stack(pooled)
        return _Streams(torch.stack(critical), self.classifier(sums.flatten(1)), torch.cat(attention), sums, hidden)

    def _gain(self, streams: _Streams, lengths: Sequence[int]) -> Tensor:
        """What the critical instance of each output and the likeness to it add to each logit over plain means, (b, c, c)."""
        parts = torch.split_with_sizes(streams.hidden, lengths)
        means = torch.stack([part.sum(dim=0) / max(len(part), 1) for part in parts])
        weight = self.classifier.weight.reshape(-1, *streams.pooled.shape[1:])  # (logit, branch, h)
        attended = torch.einsum("bkh,jkh->bkj", streams.pooled - means[:, None], weight)
        return (attended + torch.diag_embed(streams.critical - self.instances(means))) / 2

    def _of_instances(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hidden, self.instances(hidden), self.query(hidden)

    def _of_bag(self, hidden: Tensor, logits: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The largest logits (c,), the attended sums (c, h) and the attention (n, c) of one bag."""
        if not len(hidden):
            return self.instances.bias, hidden.new_zeros(logits.shape[1], hidden.shape[1]), logits
        largest, where = logits.max(dim=0)
        scores = queries @ queries.index_select(0, where).T / math.sqrt(queries.shape[1])
        attention = torch.softmax(scores, dim=0)
        return largest, attention.T @ hidden, attention


class _Streams(NamedTuple):
    critical: Tensor  # logits (b, c)
    attended: Tensor  # logits (b, c)
    attention: Tensor  # (sum_n, c)
    pooled: Tensor  # (b, c, h)
    hidden: Tensor  # (sum_n, h)
