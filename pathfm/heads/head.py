"""A head as it is trained, written and read: a row of `HEADS`, its sizes, and the covariates that join it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pathfm.errors import UnknownNameError
from pathfm.heads.layers import FirstLinear, HeadShape, Moments, moments, pooled_moments
from pathfm.heads.options import own_options, require_options
from pathfm.heads.packed import Bags, Criterion, HeadOutput
from pathfm.heads.table import HEADS

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHARED = frozenset(field.name for field in fields(HeadShape))


class Head(nn.Module):
    """A row of `HEADS`: packed bags of raw embeddings in, logits and attention out.

    Covariates (age, sex, site of biopsy; encoded) add a linear term to the logits, whatever the row: what they say
    beside the picture can be read off its weights.

    Attributes:
        name: its row in `HEADS`.
        dim: width of the embeddings.
        n_outputs: number of logits.
        n_covariates: numbers of the encoded covariates, 0 without.
        shape: the sizes that heads share.
        options: all keywords of its own class, those that were not given as well.
    """

    def __init__(
        self, name: str, dim: int, n_outputs: int, shape: HeadShape, n_covariates: int = 0, **options: Any
    ) -> None:
        super().__init__()
        require_head(name)
        self.name, self.dim, self.n_outputs, self.shape = name, dim, n_outputs, shape
        self.n_covariates, self.options = n_covariates, own_options(HEADS[name]) | options
        self.pooling = HEADS[name](dim, n_outputs, shape, **options)
        if n_covariates:
            self.covariates = FirstLinear(n_covariates, n_outputs)
            nn.init.zeros_(self.covariates.linear.weight)
            nn.init.zeros_(self.covariates.linear.bias)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1 or c) or None, rows in the order of the bags."""
        output = cast("HeadOutput", self.pooling(bags))
        return HeadOutput(output.logits + self._term(bags), output.attention, output.gain)

    def losses(self, bags: Bags, criterion: Criterion) -> Tensor:
        """What training minimises the mean of, float32 (b,)."""
        term = self._term(bags)
        return self.pooling.losses(bags, replace(criterion, losses=lambda logits: criterion.losses(logits + term)))

    def standardise(self, bags: Iterable[Moments], covariates: Tensor | None = None) -> None:
        """Fits the standardisation of the embeddings to the moments of the training bags, and that of their covariates.

        Args:
            bags: the moments of the training bags.
            covariates: float32 (n, m) of these bags; NaN where a number is not known.
        """
        if self.n_covariates and covariates is not None:
            columns = [moments(column[~column.isnan()][:, None]) for column in covariates.T]
            known = [pooled_moments([column]) or (torch.zeros(1), torch.ones(1)) for column in columns]
            self.covariates.standardise(*(torch.cat(parts) for parts in zip(*known, strict=True)))
        found = pooled_moments(bags)
        for layer in self.pooling.modules():
            if found is not None and isinstance(layer, FirstLinear):
                layer.standardise(*found)

    def kwargs(self) -> dict[str, Any]:
        """The keywords that `build_head` makes the same sizes from; JSON types."""
        return asdict(self.shape) | self.options

    def _term(self, bags: Bags) -> Tensor | float:
        if not self.n_covariates or bags.covariates is None:
            return 0.0
        # a number that is not known is taken for the mean, and so adds nothing
        known = torch.where(bags.covariates.isnan(), self.covariates.mean, bags.covariates)
        return cast("Tensor", self.covariates(known))


def require_head(name: str) -> None:
    """Refuses a name that is not in `HEADS`.

    Raises:
        UnknownNameError: near names are listed.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS, "pass --head one of them")


def build_head(name: str, dim: int, n_outputs: int, n_covariates: int = 0, **kwargs: Any) -> Head:
    """A fresh head with torch's own initialisation, drawn from torch's global generator.

    Args:
        name: a row of `HEADS`.
        dim: width of the embeddings.
        n_outputs: number of logits.
        n_covariates: numbers of the encoded covariates.
        **kwargs: fields of `HeadShape` and keywords of the head's class; those not given have their defaults.

    Raises:
        UnknownNameError: no such head, or no such keyword; near names are listed.
        InputError: a value that the head cannot be made of.
    """
    require_head(name)
    require_options(name, HEADS[name], kwargs)
    shape = HeadShape(**{key: value for key, value in kwargs.items() if key in _SHARED})
    own = {key: value for key, value in kwargs.items() if key not in _SHARED}
    return Head(name, dim, n_outputs, shape, n_covariates, **own)
