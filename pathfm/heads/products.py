"""Matrix products on a CPU, by the library whose kernels fit it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPUINFO = Path("/proc/cpuinfo")
_FEW = 4  # rows or columns, below which packing the weights for oneDNN costs more than the product
_MANY = 256  # rows from which on the product outweighs what a function of our own costs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x weight' + bias, as `functional.linear`: float (n, k) by (m, k), and a bias (m,) or none."""
    in_full = x.device.type == "cpu" and x.dtype == torch.float32 and not in_half(x)
    if in_full and len(x) >= _MANY and onednn_is_faster():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def in_half(x: Tensor) -> bool:
    """Whether products with a tensor are computed in half precision, by autocast on its device."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def rows_times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` without a gradient, on a CPU."""
    if x.dtype == torch.float32 and min(x.shape) >= _FEW and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def columns_times(a: Tensor, b: Tensor) -> Tensor:
    """The product a'b of float (n, m) and (n, k), without a gradient, on a CPU."""
    return rows_times(a.T, b.T)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN: on a processor with AVX-512 that is not Intel's.

    torch multiplies by MKL, which takes its AVX-512 kernels on Intel's processors only; on another's oneDNN, which is in
    torch too, takes less than half of the time. torch has no public way to it but for layers in a layout of its own.
    """
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # nowhere where torch is built without oneDNN
    if not there or torch.backends.cpu.get_cpu_capability() != "AVX512" or not _CPUINFO.is_file():
        return False
    return "GenuineIntel" not in _CPUINFO.read_text(encoding="utf-8")


class _Linear(Function):
    """`rows_times` with a gradient, which is made of itself and so has one too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return rows_times(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight), needs = grads, ctx.saved_tensors, ctx.needs_input_grad
        return (
            _Linear.apply(grad, weight.T, None) if needs[0] else None,
            _Linear.apply(grad.T, x.T, None) if needs[1] else None,
            grad.sum(dim=0) if needs[2] else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Tensor | None) -> tuple[Tensor, int]:
        """One call a member: stacking the products of many rows gains nothing on a CPU."""
        given = list(zip(args, in_dims, strict=True))
        members = [
            _Linear.apply(*(x if x is None or dim is None else x.select(dim, i) for x, dim in given))
            for i in range(info.batch_size)
        ]
        return torch.stack(members), 0
