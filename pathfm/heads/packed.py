"""What goes into a head and what comes out: bags packed end to end, logits, attention, and what a bag's logits cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Bags(NamedTuple):
    """Bags packed end to end, without padding.

    Attributes:
        features: float32 (sum_n, dim), the instances of the first bag, then of the second.
        lengths: int64 (b,), instances of each bag; 0 is a bag too.
        covariates: float32 (b, m), what the cohort table knows of each bag, encoded; None for a head that takes none.
    """

    features: Tensor
    lengths: Tensor
    covariates: Tensor | None = None


class HeadOutput(NamedTuple):
    """What a head says.

    Attributes:
        logits: float32 (b, c), one column an output; the targets say how they are read.
        attention: float32 (sum_n, a), a = 1 or c, each column sums to 1 over a non-empty bag; None for a head without
            attention.
        gain: float32 (b, a, c), what each branch of attention adds to each logit by looking where it does, instead of at
            all instances alike; in evaluation, of heads with a branch an output, else None.
    """

    logits: Tensor
    attention: Tensor | None
    gain: Tensor | None = None


@dataclass(frozen=True)
class Criterion:
    """What the bags of one batch are, as a head needs it in training.

    Attributes:
        losses: from logits float32 (b, c), in the order of the bags, to the loss of each bag, float32 (b,); their mean is
            the loss of the batch. A head may call it several times, such as once for each group of pseudo-bags.
        classes: int64 (b,), the class of each bag, -1 where it has none; None where what is learned is not one target of
            classes whose logits are the columns.
    """

    losses: Callable[[Tensor], Tensor]
    classes: Tensor | None = None


def pack(bags: Sequence[Tensor], covariates: Tensor | None = None) -> Bags:
    """Packs float32 (n_i, dim) bags of any lengths, in the order given.

    Raises:
        ValueError: no bags.
    """
    if not bags:
        message = "pack needs at least one bag; a bag of 0 instances is one"
        raise ValueError(message)
    lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int64)
    return Bags(bags[0] if len(bags) == 1 else torch.cat(list(bags)), lengths, covariates)
