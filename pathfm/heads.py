"""Heads: from the embeddings of a slide to the logits of its classes, and to where the head looked.

A head sees packed bags, has no BatchNorm and carries nothing from one bag to the next, so a bag gets the same logits
alone as in company. To add one: write a class like `MeanPooling` and name it in `HEADS`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from pathfm.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# A feature that varies less than this over all training instances says nothing, and must not be blown up.
_LEAST_STD = 1e-6


class Bags(NamedTuple):
    """Slides packed end to end, without padding.

    Attributes:
        features: float32 (sum_n, dim), the instances of the first bag, then of the second.
        lengths: int64 (b,), instances of each bag; 0 is a bag too.
    """

    features: Tensor
    lengths: Tensor


class HeadOutput(NamedTuple):
    """What a head says.

    Attributes:
        logits: float32 (b, c); softmax over the last axis gives the probabilities, for two classes as for more.
        attention: float32 (sum_n, a), each column sums to 1 over a non-empty bag; None for a head without attention.
    """

    logits: Tensor
    attention: Tensor | None


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The sizes of a head; one that has no use for a field leaves it."""

    hidden: int = 512
    """Width of the layer after the embedding."""
    attention: int = 256
    """Width of the attention branches."""
    dropout: float = 0.25
    """Share of the hidden layer dropped in training."""


def pack(bags: Sequence[Tensor]) -> Bags:
    """Packs float32 (n_i, dim) bags of any lengths, in the order given.

    Raises:
        ValueError: no bags.
    """
    if not bags:
        message = "pack needs at least one bag; a bag of 0 instances is one"
        raise ValueError(message)
    return Bags(torch.cat(list(bags)), torch.tensor([len(bag) for bag in bags], dtype=torch.int64))


class Standardiser(nn.Module):
    """Shifts and scales every feature to mean 0 and deviation 1 over the instances it was fitted on; they travel with the head."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features, (n, dim) like the input."""
        return (features - self.mean) / self.std

    def fit(self, bags: Iterable[Tensor]) -> None:
        """Takes mean and deviation from float (n_i, dim) bags, one in memory at a time, every instance counting once.

        A constant feature keeps deviation 1. Bags without instances change nothing.
        Source: the parallel update of Chan, Golub and LeVeque (1983), in float64.
        """
        count, mean, spread = 0, self.mean.double() * 0, self.std.double() * 0
        for bag in bags:
            if len(bag) == 0:
                continue
            variance, centre = torch.var_mean(bag.double(), dim=0, correction=0)
            shift, total = centre - mean, count + len(bag)
            mean = mean + shift * (len(bag) / total)
            spread = spread + variance * len(bag) + shift**2 * (count * len(bag) / total)
            count = total
        if count:
            std = (spread / count).sqrt()
            self.mean.copy_(mean)
            self.std.copy_(torch.where(std > _LEAST_STD, std, torch.ones_like(std)))


class GatedAttention(nn.Module):
    """Attention-based MIL with gating: Ilse, Tomczak and Welling (2018), equations 7 and 9.

    An instance x becomes h = relu(Wx); its attention is softmax over the bag of w'(tanh(Vh) * sigmoid(Uh)); the bag is
    the attention-weighted sum of h. A bag of 0 instances is the zero vector, so its logits are the classifier's bias.
    """

    def __init__(self, dim: int, n_classes: int, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, shape.hidden)
        self.dropout = nn.Dropout(shape.dropout)
        # V and U in one product: the largest cost of the head on a CPU
        self.gates = nn.Linear(shape.hidden, 2 * shape.attention)
        self.score = nn.Linear(shape.attention, 1)
        self.classifier = nn.Linear(shape.hidden, n_classes)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1)."""
        hidden = self.dropout(torch.relu(self.hidden(bags.features)))  # (sum_n, h)
        v, u = self.gates(hidden).chunk(2, dim=1)
        scores = self.score(torch.tanh(v) * torch.sigmoid(u))  # (sum_n, 1)
        lengths = bags.lengths.tolist()
        attention = [torch.softmax(part, dim=0) for part in torch.split_with_sizes(scores, lengths)]
        # a product per bag: no padding, nothing of (sum_n, h) is allocated again, and the order of the sum is fixed
        pooled = [
            weights.T @ part for weights, part in zip(attention, torch.split_with_sizes(hidden, lengths), strict=True)
        ]
        return HeadOutput(self.classifier(torch.cat(pooled)), torch.cat(attention))


class MeanPooling(nn.Module):
    """The mean of the bag's features, then one hidden layer: what a head without attention reaches.

    A bag of 0 instances is the zero vector, the mean of the training instances once standardised.
    """

    def __init__(self, dim: int, n_classes: int, shape: HeadShape) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, shape.hidden)
        self.dropout = nn.Dropout(shape.dropout)
        self.classifier = nn.Linear(shape.hidden, n_classes)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c); no attention."""
        parts = torch.split_with_sizes(bags.features, bags.lengths.tolist())
        means = torch.stack([part.sum(dim=0) / max(len(part), 1) for part in parts])  # (b, dim)
        return HeadOutput(self.classifier(self.dropout(torch.relu(self.hidden(means)))), None)


HEADS: dict[str, Callable[[int, int, HeadShape], nn.Module]] = {
    "gated-abmil": GatedAttention,
    "mean": MeanPooling,
}


class Head(nn.Module):
    """A row of `HEADS` behind a standardiser: packed bags of raw embeddings in, logits and attention out.

    Attributes:
        name: its row in `HEADS`.
        dim: width of the embeddings.
        n_classes: number of logits.
        shape: its sizes.
    """

    def __init__(self, name: str, dim: int, n_classes: int, shape: HeadShape) -> None:
        super().__init__()
        require_head(name)
        self.name, self.dim, self.n_classes, self.shape = name, dim, n_classes, shape
        self.standardiser = Standardiser(dim)
        self.pooling = HEADS[name](dim, n_classes, shape)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, a) or None, rows in the order of the bags."""
        return cast("HeadOutput", self.pooling(Bags(self.standardiser(bags.features), bags.lengths)))

    def kwargs(self) -> dict[str, int | float]:
        """The keywords that `build_head` makes the same sizes from; JSON types."""
        return asdict(self.shape)


def require_head(name: str) -> None:
    """Refuses a name that is not in `HEADS`.

    Raises:
        UnknownNameError: near names are listed.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS, "pass --head one of them")


def build_head(name: str, dim: int, n_classes: int, **kwargs: float) -> Head:
    """A fresh head with torch's own initialisation, drawn from torch's global generator.

    Args:
        name: a row of `HEADS`.
        dim: width of the embeddings.
        n_classes: number of logits.
        **kwargs: fields of `HeadShape`; those not given have its defaults.

    Raises:
        UnknownNameError: no such head; near names are listed.
    """
    return Head(name, dim, n_classes, HeadShape(**kwargs))  # type: ignore[arg-type]
