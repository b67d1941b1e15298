"""The interface of a head's body: from the instances of bags to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from pathfm.heads.packed import Bags, Criterion, HeadOutput


class Pooling(nn.Module, ABC):
    """A way from instances to logits; its subclasses are the rows of `HEADS`.

    A subclass is made as `cls(dim, n_outputs, shape, **options)`, its options being keywords with defaults. Raw embeddings
    enter it through `FirstLinear` only, dropout is `layers.Dropout`, and there is no BatchNorm and nothing that is
    carried from one bag to the next, so that a bag gets the same logits alone as in company. A bag of 0 instances has
    finite logits, and a long one takes memory in proportion to its length.
    """

    paper: ClassVar[str]
    """Whom the architecture is from."""
    attention: ClassVar[Literal["none", "one", "each output"]] = "none"
    """Columns of attention: none, one, or one for each output."""
    permutation_invariant: ClassVar[bool] = True
    """Whether the order of the instances changes nothing."""

    @abstractmethod
    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, n_outputs), and attention (sum_n, 1 or n_outputs) or None."""

    def losses(self, bags: Bags, criterion: Criterion) -> Tensor:
        """What training minimises the mean of, float32 (b,); a head with a loss of its own besides overrides this."""
        return criterion.losses(self(bags).logits)
