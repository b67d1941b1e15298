"""A latent head: a few learned queries look at all instances."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.options import require_divisible
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling
from pathfm.heads.tokens import Block


class Perceiver(Pooling):
    """Learned latents look at the instances, then at each other; the logits are read off their mean.

    Time and memory grow with latents times instances. The attention is where the latents look at the instances, the mean
    over latents and heads. A bag of 0 instances is what the latents are without having seen anything.
    """

    paper = (
        "Jaegle et al. (2021), Perceiver: general perception with iterative attention, with one look at the instances; as "
        "pooling it is the multi-head attention with seeds of Lee et al. (2019), Set transformer"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "one"

    def __init__(
        self,
        dim: int,
        n_outputs: int,
        shape: HeadShape,
        *,
        latents: int = 16,
        layers: int = 1,
        heads: int = 8,
        expansion: int = 2,
    ) -> None:
        """The sizes of a head, and those of its latents and layers.

        Args:
            dim: width of the embeddings.
            n_outputs: number of logits.
            shape: the sizes that heads share.
            latents: learned queries.
            layers: blocks in which the latents look at each other.
            heads: heads of attention, which share `hidden` alike.
            expansion: width of a block's perceptron as a multiple of `hidden`.
        """
        super().__init__()
        require_divisible(shape.hidden, heads)
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.instances = nn.LayerNorm(shape.hidden)
        self.latents = nn.Parameter(torch.randn(latents, shape.hidden))
        self.looking = Block(shape.hidden, heads, shape.dropout, expansion)
        self.blocks = nn.ModuleList(Block(shape.hidden, heads, shape.dropout, expansion) for _ in range(layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1)."""
        hidden = self.instances(self.dropout(torch.relu(self.hidden(bags.features))))
        found = [self._of_bag(part) for part in torch.split_with_sizes(hidden, bags.lengths.tolist())]
        latents, attention = zip(*found, strict=True)
        return HeadOutput(self.classifier(self.norm(torch.stack(latents))), torch.cat(attention))

    def _of_bag(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The mean latent (h,) of one bag (n, h), and the attention (n, 1)."""
        latents, looks = self.looking.look(self.latents, hidden)
        for block in self.blocks:
            latents = block(latents)
        return latents.mean(dim=0), looks.exp().mean(dim=(0, 1))[:, None]
