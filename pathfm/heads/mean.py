"""Mean pooling: what a head without attention reaches."""

from __future__ import annotations

import torch
from torch import nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling


class MeanPooling(Pooling):
    """The mean of the bag's features, then one hidden layer.

    A bag of 0 instances has the mean of the training instances.
    """

    paper = "the embedding-level mean of Wang et al. (2018), Revisiting multiple instance neural networks"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c); no attention."""
        parts = torch.split_with_sizes(bags.features, bags.lengths.tolist())
        means = torch.stack([part.mean(dim=0) if len(part) else self.hidden.mean for part in parts])  # (b, dim)
        return HeadOutput(self.classifier(self.dropout(torch.relu(self.hidden(means)))), None)
