"""Instances as the tokens of a transformer: attention with several heads, in memory in proportion to their number."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from pathfm.heads.attention import dot_product_attention
from pathfm.heads.layers import Dropout


class Block(nn.Module):
    """A transformer block, normalised before each step: multi-head attention, then a perceptron, each added to its input.

    Source: Vaswani et al. (2017), Attention is all you need; Xiong et al. (2020), On layer normalization in the
    transformer architecture, for the place of the normalisation.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden)
        self.keys_values = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, expansion * hidden),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(expansion * hidden, hidden),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, h) that look at each other, (n, h)."""
        normal = self.norm(tokens)
        keys, values = self._keys_values(normal)
        found = dot_product_attention(split_heads(self.query(normal), self.heads), keys, values)
        return self._added(tokens, found)

    def look(self, tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Few tokens (m, h) that look at a context (n, h), normalised already, and where they look.

        Returns:
            The tokens, (m, h), and the logarithm of their attention, (heads, m, n): each row is a log-softmax.
        """
        keys, values = self._keys_values(context)
        queries = split_heads(self.query(self.norm(tokens)), self.heads)
        attention = torch.log_softmax(queries @ keys.mT / math.sqrt(queries.shape[-1]), dim=-1)
        return self._added(tokens, attention.exp() @ values), attention.squeeze(0)

    def _keys_values(self, normal: Tensor) -> tuple[Tensor, ...]:
        return tuple(split_heads(part, self.heads) for part in self.keys_values(normal).chunk(2, dim=1))

    def _added(self, tokens: Tensor, found: Tensor) -> Tensor:
        tokens = tokens + self.out(join_heads(found))
        return cast("Tensor", tokens + self.perceptron(tokens))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(n, h) to (1, heads, n, h / heads), the layout for which attention has kernels that allocate no (n, n)."""
    return tokens.reshape(len(tokens), heads, tokens.shape[1] // heads).transpose(0, 1).unsqueeze(0)


def join_heads(tokens: Tensor) -> Tensor:
    """The reverse of `split_heads`."""
    return tokens.squeeze(0).transpose(0, 1).flatten(1)
