"""A plain transformer with a class token."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.options import require_divisible
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling
from pathfm.heads.tokens import Block


class Transformer(Pooling):
    """Self-attention among all instances and a class token, off which the logits are read.

    Instances have no positions, so their order does not matter. The attention is where the class token looks in the last
    layer, the mean over the heads, over the instances alone. In that layer nothing but the class token is read, so nothing
    else is computed. Time grows with the square of the instances, memory in proportion. A bag of 0 instances is the class
    token alone.
    """

    paper = (
        "Vaswani et al. (2017), Attention is all you need, with the class token of Dosovitskiy et al. (2021), An image is "
        "worth 16x16 words; over tiles as in Wagner et al. (2023), Transformer-based biomarker prediction from colorectal "
        "cancer histology"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "one"

    def __init__(
        self, dim: int, n_outputs: int, shape: HeadShape, *, layers: int = 2, heads: int = 8, expansion: int = 4
    ) -> None:
        """The sizes of a head, and those of its layers.

        Args:
            dim: width of the embeddings.
            n_outputs: number of logits.
            shape: the sizes that heads share.
            layers: transformer blocks.
            heads: heads of attention, which share `hidden` alike.
            expansion: width of a block's perceptron as a multiple of `hidden`.
        """
        super().__init__()
        require_divisible(shape.hidden, heads)
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.token = nn.Parameter(torch.randn(1, shape.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(shape.hidden, heads, shape.dropout, expansion) for _ in range(layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1)."""
        hidden = self.dropout(torch.relu(self.hidden(bags.features)))
        found = [self._of_bag(part) for part in torch.split_with_sizes(hidden, bags.lengths.tolist())]
        tokens, attention = zip(*found, strict=True)
        return HeadOutput(self.classifier(self.norm(torch.cat(tokens))), torch.cat(attention))

    def _of_bag(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The class token (1, h) of one bag (n, h), and its attention (n, 1)."""
        tokens = torch.cat([self.token, hidden])
        *earlier, last = cast("list[Block]", list(self.blocks))
        for block in earlier:
            tokens = block(tokens)
        token, looks = last.look(tokens[:1], last.norm(tokens))
        # over the instances alone, and without a quotient that a class token that looks at itself makes 0 / 0
        return token, torch.softmax(looks[:, 0, 1:].logsumexp(dim=0), dim=0)[:, None]
