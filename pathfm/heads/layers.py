"""Layers that heads share: where raw embeddings enter, and dropout that costs a CPU little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathfm.heads.products import in_half, linear

if TYPE_CHECKING:
    from collections.abc import Iterable

# A feature that varies less than this over all training instances says nothing, and must not be blown up.
_LEAST_STD = 1e-6
_LEVELS = 256  # a random byte decides over an element


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The sizes that heads share; one that has no use for a field leaves it."""

    hidden: int = 512
    """Width of the layer after the embedding."""
    attention: int = 256
    """Width of the attention branches."""
    dropout: float = 0.25
    """Share of the hidden layer dropped in training, in steps of 1/256."""


class Moments(NamedTuple):
    """Number, mean and summed squared deviation of the instances of a bag, float64 (dim,)."""

    n: int
    mean: Tensor
    spread: Tensor


class FirstLinear(nn.Module):
    """The linear layer through which raw embeddings enter a head: they are standardised by the way.

    Its weights are those of a layer on features of mean 0 and deviation 1. Mean and deviation, of the training instances,
    are folded into them in each forward, which spares a pass over all instances: W((x - m) / s) + b = (W/s)x + b - W(m/s).
    Under autocast, whose rounding of x is by its size, the instances are standardised before they are rounded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (out, dim) and bias (out,) for raw features in full precision."""
        weight = self.linear.weight / self.std
        return weight, self.linear.bias - weight @ self.mean

    def forward(self, features: Tensor) -> Tensor:
        """The layer of the standardised features: (n, dim) to (n, out)."""
        if in_half(features):
            small = (features - self.mean).div_(self.std)
            return functional.linear(small, self.linear.weight, self.linear.bias)
        return linear(features, *self.folded())

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Takes mean and deviation, float (dim,); a feature that hardly varies keeps deviation 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > _LEAST_STD, std, torch.ones_like(std)))


class Dropout(nn.Module):
    """Dropout whose mask is drawn a byte an element, a fraction of the time of a Bernoulli draw on a CPU.

    The probability is rounded to 1/256, and the scale is that of the rounded one. Draws from torch's global generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * _LEVELS), _LEVELS - 1)

    def forward(self, x: Tensor) -> Tensor:
        """The input with a share of its elements set to 0 and the others scaled, in training; itself otherwise."""
        if not self.drops:
            return x
        return x * self.keep(x.shape, x.device).to(x.dtype).mul_(self.scale)

    @property
    def drops(self) -> bool:
        """Whether it does anything now."""
        return self.training and self.dropped > 0

    @property
    def scale(self) -> float:
        """What the elements that stay are multiplied with."""
        return _LEVELS / (_LEVELS - self.dropped)

    def keep(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Draws which elements stay, bool; under `torch.func.vmap` with randomness "different" for each member anew."""
        n = shape.numel()
        words = torch.randint(-(2**63), 2**63 - 1, (-(-n // 8),), device=device)
        return words.view(torch.uint8)[:n].view(shape) >= self.dropped


def moments(bag: Tensor) -> Moments:
    """The moments of a float (n, dim) bag; those of one without instances are zeros."""
    if not len(bag):
        nothing = torch.zeros(bag.shape[1], dtype=torch.float64)
        return Moments(0, nothing, nothing)
    variance, mean = torch.var_mean(bag.double(), dim=0, correction=0)
    return Moments(len(bag), mean.cpu(), (variance * len(bag)).cpu())


def pooled_moments(bags: Iterable[Moments]) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation over the instances of several bags, each instance counting once; None without instances.

    Source: the parallel update of Chan, Golub and LeVeque (1983), in float64.
    """
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for bag in bags:
        if bag.n == 0:
            continue
        total, shift = count + bag.n, bag.mean - mean
        spread = spread + bag.spread + shift**2 * (count * bag.n / total)
        mean = mean + shift * (bag.n / total)
        count = total
    return (mean, (spread / count).sqrt()) if count else None
