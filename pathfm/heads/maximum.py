"""Max pooling: a bag is as its most suspicious instance."""

from __future__ import annotations

import torch
from torch import nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling


class MaxPooling(Pooling):
    """Logits of each instance, of which a bag has the largest, each output for itself.

    An instance x becomes h = relu(Wx), then its logits. Only the instances that are largest learn from a bag. A bag of 0
    instances is the zero vector, so its logits are the classifier's bias.
    """

    paper = "the instance-level max, mi-Net, of Wang et al. (2018), Revisiting multiple instance neural networks"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c); no attention."""
        instances = self.classifier(self.dropout(torch.relu(self.hidden(bags.features))))  # (sum_n, c)
        parts = torch.split_with_sizes(instances, bags.lengths.tolist())
        return HeadOutput(
            torch.stack([part.amax(dim=0) if len(part) else self.classifier.bias for part in parts]), None
        )
