"""Scaled dot-product attention that several heads at once can have in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import _C, Tensor
from torch.autograd import Function
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def dot_product_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v, by kernels that allocate no (n, m), also under one `torch.func.vmap`.

    Args:
        queries: float (1, heads, n, d).
        keys: float (1, heads, m, d).
        values: float (1, heads, m, d).

    Returns:
        Float (1, heads, n, d).
    """
    if any(_C._functorch.is_batchedtensor(one) for one in (queries, keys, values)):
        return _Stacked.apply(queries, keys, values)  # type: ignore[no-any-return]
    return functional.scaled_dot_product_attention(queries, keys, values)


class _Stacked(Function):
    """Gives torch the rule that its `vmap` lacks: without it, it calls the kernel for one member after the other."""

    @staticmethod
    def forward(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        message = "called without a vmap, where the gradient is torch's own"
        raise NotImplementedError(message)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *given: Tensor) -> tuple[Tensor, int]:
        """The members take the place of the batch, which is 1."""
        parts = [
            one.expand(info.batch_size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip(given, in_dims, strict=True)
        ]
        if any(one.ndim != 5 or one.shape[1] != 1 for one in parts):
            message = "dot_product_attention takes a batch of 1 under vmap, whose members take its place"
            raise RuntimeError(message)
        parts = [one.squeeze(1) for one in parts]
        return dot_product_attention(*parts).unsqueeze(1), 0
