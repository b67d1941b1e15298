"""TransMIL: Shao et al. (2021)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathfm.heads.attention import dot_product_attention
from pathfm.heads.layers import Dropout, FirstLinear, HeadShape
from pathfm.heads.options import require_divisible
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling
from pathfm.heads.tokens import join_heads, split_heads


class TransMIL(Pooling):
    """A transformer over the instances as a square picture, with a class token.

    The instances, in their order, fill a square, whose last places are taken by the first instances again; the logits are
    read off a class token after Nystrom attention, a positional encoding by depthwise convolutions over the square, and
    Nystrom attention again. The order of the instances matters. A bag of 0 instances is the class token alone.
    """

    paper = (
        "Shao et al. (2021), TransMIL: transformer based correlated multiple instance learning for whole slide image "
        "classification; attention of Xiong et al. (2021), Nystromformer"
    )
    permutation_invariant = False

    def __init__(
        self,
        dim: int,
        n_outputs: int,
        shape: HeadShape,
        *,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
    ) -> None:
        """The sizes of a head, and those of its attention.

        Args:
            dim: width of the embeddings.
            n_outputs: number of logits.
            shape: the sizes that heads share.
            heads: heads of attention, which share `hidden` alike.
            landmarks: the most means of neighbouring tokens that stand for all of them.
            iterations: steps towards the inverse of the landmarks' attention.
        """
        super().__init__()
        require_divisible(shape.hidden, heads)
        self.hidden = FirstLinear(dim, shape.hidden)
        self.dropout = Dropout(shape.dropout)
        self.token = nn.Parameter(torch.randn(1, shape.hidden))
        self.first = NystromAttention(shape.hidden, heads, landmarks, iterations)
        self.position = PositionalEncoding(shape.hidden)
        self.second = NystromAttention(shape.hidden, heads, landmarks, iterations)
        self.norm = nn.LayerNorm(shape.hidden)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c); no attention."""
        hidden = self.dropout(torch.relu(self.hidden(bags.features)))
        tokens = [self._of_bag(part) for part in torch.split_with_sizes(hidden, bags.lengths.tolist())]
        return HeadOutput(self.classifier(self.norm(torch.cat(tokens))), None)

    def _of_bag(self, hidden: Tensor) -> Tensor:
        """The class token (1, h) of one bag (n, h)."""
        side = math.isqrt(max(len(hidden) - 1, 0)) + 1 if len(hidden) else 0
        tokens = torch.cat([self.token, hidden, hidden[: side**2 - len(hidden)]])
        tokens = self.first(tokens)
        tokens = torch.cat([tokens[:1], self.position(tokens[1:], side)])
        return cast("Tensor", self.second(tokens)[:1])


class PositionalEncoding(nn.Module):
    """The pyramid positional encoding of Shao et al. (2021): depthwise convolutions of 7, 5 and 3, added to the tokens.

    All three are linear in the same tokens, so they are one convolution by the sum of their kernels.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Tokens (side * side, h), row by row, with their places told, the same shape."""
        if side == 0:
            return tokens
        picture = tokens.T.reshape(1, -1, side, side)
        kernels = cast("list[nn.Conv2d]", list(self.kernels))
        weight = torch.stack([functional.pad(one.weight, [3 - cast("int", one.padding[0])] * 4) for one in kernels])
        bias = torch.stack([cast("Tensor", one.bias) for one in kernels])
        # of one type, which under vmap autocast does not see to
        weight, bias = weight.sum(dim=0).to(picture), bias.sum(dim=0).to(picture)
        added = functional.conv2d(picture, weight, bias, padding=3, groups=tokens.shape[1])
        return (picture + added).squeeze(0).flatten(1).T


class NystromAttention(nn.Module):
    """Self-attention by landmarks, with a convolution over the values, added to its input, which is normalised first.

    Source: Xiong et al. (2021), Nystromformer. With no more tokens than landmarks each
    is its own landmark, the approximation is exact, and softmax attention is computed as it stands.
    """

    def __init__(self, hidden: int, heads: int, landmarks: int, iterations: int, reach: int = 16) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations, self.reach = heads, landmarks, iterations, reach
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, 3 * hidden, bias=False)
        self.residual = nn.Conv1d(heads, heads, 2 * reach + 1, padding=reach, groups=heads, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, h) to (n, h)."""
        parts = self.project(self.norm(tokens)).chunk(3, dim=1)
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        found = nystrom(queries, keys, values, self.landmarks, self.iterations)
        # the same kernel for all numbers of a head, along the tokens
        kernel = self.residual.weight.to(values)
        along = functional.conv1d(values.squeeze(0).permute(2, 0, 1), kernel, padding=self.reach, groups=self.heads)
        found = found + along.permute(1, 2, 0)
        return cast("Tensor", tokens + self.out(join_heads(found)))


def nystrom(queries: Tensor, keys: Tensor, values: Tensor, landmarks: int, iterations: int) -> Tensor:
    """Attention by landmarks, in memory in proportion to the tokens.

    softmax(q k~') (softmax(q~ k~')^+ (softmax(q~ k') v)): from the right, so that no product is larger than the tokens.

    Args:
        queries: float (1, heads, n, d).
        keys: float (1, heads, n, d).
        values: float (1, heads, n, d).
        landmarks: the most means q~ and k~ of neighbouring tokens.
        iterations: steps of `pseudo_inverse`.

    Returns:
        Float (1, heads, n, d).
    """
    attention, n = dot_product_attention, queries.shape[2]
    if n <= landmarks:
        return attention(queries, keys, values)
    length = -(-n // landmarks)
    near_queries, near_keys = segment_means(queries, length), segment_means(keys, length)
    among = torch.softmax(near_queries @ near_keys.mT / math.sqrt(queries.shape[-1]), dim=-1)
    return attention(queries, near_keys, pseudo_inverse(among, iterations) @ attention(near_queries, keys, values))


def segment_means(tokens: Tensor, length: int) -> Tensor:
    """Means of each `length` neighbouring tokens (1, heads, n, d), the last of what is left, (1, heads, m, d)."""
    whole = tokens.shape[2] // length * length
    heads, d = tokens.shape[1], tokens.shape[3]
    means = tokens[:, :, :whole].reshape(1, heads, -1, length, d).mean(dim=3)
    if whole == tokens.shape[2]:
        return means
    return torch.cat([means, tokens[:, :, whole:].mean(dim=2, keepdim=True)], dim=2)


def pseudo_inverse(matrices: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse of softmax matrices (..., m, m), by iteration.

    Source: Razavi et al. (2014), as Xiong et al. (2021) use it: Z <- Z (13 I - AZ (15 I - AZ (7 I - AZ))) / 4, from the
    transpose over the largest sum of a row times that of a column, each matrix by its own. In float32 or more.
    """
    # half precision would not get near the inverse, whatever the training runs in, and whatever it made the matrices of
    with torch.autocast(matrices.device.type, enabled=False):
        matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
        eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        rows, columns = matrices.sum(dim=-1).amax(dim=-1), matrices.sum(dim=-2).amax(dim=-1)
        inverse = matrices.mT / (rows * columns)[..., None, None]
        for _ in range(iterations):
            product = matrices @ inverse
            inverse = inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product))) / 4
    return inverse
