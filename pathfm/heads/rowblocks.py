"""Attention over one long bag on a CPU: by blocks of rows that stay in the processor's cache, backward too.

The maths is that of `gated.AttentionBody` written out, and so are the gradients. What it spares is passes over whole bags
in memory, torch's slow tanh, the buffers of a graph, and with `products` on some processors more than half of the time of
the matrix products, which are nearly all that is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from pathfm.heads.products import columns_times, rows_times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Grads = tuple[Tensor | None, ...]

_NUMBERS = 512 * 1280  # hidden units and gates of a block, 2.6 MB: 512 rows of 512 and 2 x 384


class Weights(NamedTuple):
    """The weights of an attention body, float tensors of one dtype.

    Attributes:
        first: (h, dim), and its bias (h,).
        gates: (2a, h), the rows of tanh above those of the sigmoid, or (a, h) for tanh alone; and its bias.
        score: (k, a), and its bias (k,).
    """

    first: Tensor
    first_bias: Tensor
    gates: Tensor
    gates_bias: Tensor
    score: Tensor
    score_bias: Tensor


class AttendedBag(NamedTuple):
    """One bag: its attended sums (k, h), and of its instances attention (n, k), hidden (n, h) and scores (n, k)."""

    pooled: Tensor
    attention: Tensor
    hidden: Tensor
    scores: Tensor


def attend_by_blocks(features: Tensor, weights: Weights, keep: Tensor | None, scale: float) -> AttendedBag:
    """The hidden instances of one bag, their scores, their attention and the attended sums.

    Works under the transforms of `torch.func`; a `vmap` loops over its members. There is no second derivative.

    Args:
        features: float (n, dim).
        weights: see there.
        keep: bool (n, h), the hidden units that dropout keeps; None without dropout.
        scale: what dropout multiplies those with, above 0.
    """
    if keep is not None:
        # scale relu(Wx) = relu(scale Wx), which on the weights costs nothing
        weights = weights._replace(first=weights.first * scale, first_bias=weights.first_bias * scale)
        keep = keep.view(torch.uint8)  # a product with bytes is three times as fast as one with booleans
    *bag, _ = _Attend.apply(features, keep, *weights)
    return AttendedBag(*bag)


class _Attend(Function):
    """Gives pooled, attention, hidden, scores, and the values of the gates, which only its backward reads."""

    @staticmethod
    def forward(features: Tensor, keep: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        w, n = Weights(*weights), len(features)
        width = w.score.shape[1]
        hidden, gates = features.new_empty(n, len(w.first)), features.new_empty(n, len(w.gates))
        scores = features.new_empty(n, len(w.score))
        # tanh(v) = 2 sigmoid(2v) - 1, in a fifth of the time of tanh
        twice = torch.where(torch.arange(len(w.gates)) < width, 2, 1).to(features.dtype)
        doubled, doubled_bias = w.gates * twice[:, None], w.gates_bias * twice
        for rows in _blocks(n, hidden.shape[1] + gates.shape[1]):
            block = torch.relu_(rows_times(features[rows], w.first, w.first_bias))
            torch.mul(block, 1 if keep is None else keep[rows], out=hidden[rows])
            torch.sigmoid(rows_times(hidden[rows], doubled, doubled_bias), out=gates[rows])
            gates[rows, :width].mul_(2).sub_(1)
            torch.addmm(w.score_bias, _product(gates[rows], width), w.score.T, out=scores[rows])
        attention = torch.softmax(scores, dim=0)
        return attention.T @ hidden, attention, hidden, scores, gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, _, first, _, gates_weight, _, score, _ = inputs
        pooled, attention, hidden, _, gates = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, first, gates_weight, score, pooled, attention, hidden, gates)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        found = _Backward.apply(ctx.needs_input_grad[0], *grads[:4], *ctx.saved_tensors)
        return found[0], None, *found[1:]

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _each_member(_Attend, info.batch_size, in_dims, args)


class _Backward(Function):
    """The gradients of `_Attend`, a function of its own so that it too may meet a `vmap`."""

    @staticmethod
    def forward(to_features: bool, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        d_pooled, d_attention, d_hidden, d_scores = given[:4]
        features, first, gates_weight, score, pooled, attention, hidden, gates = cast("tuple[Tensor, ...]", given[4:])
        width = score.shape[1]
        d_first, d_first_bias = torch.zeros_like(first), first.new_zeros(len(first))
        d_gates, d_gates_bias = torch.zeros_like(gates_weight), first.new_zeros(len(gates_weight))
        d_score, d_score_bias = torch.zeros_like(score), first.new_zeros(len(score))
        d_features = torch.empty_like(features) if to_features else None
        # softmax: ds = a (da - sum a da), and the sum over the instances of a h'dz is z'dz
        centre = first.new_zeros(len(score))
        if d_pooled is not None:
            centre += (pooled * d_pooled).sum(dim=1)
        if d_attention is not None:
            centre += (attention * d_attention).sum(dim=0)
        for rows in _blocks(len(features), hidden.shape[1] + gates.shape[1]):
            h, g, a = hidden[rows], gates[rows], attention[rows]
            da = (h @ d_pooled.T if d_pooled is not None else torch.zeros_like(a)).sub_(centre)
            ds = (da if d_attention is None else da.add_(d_attention[rows])).mul_(a)
            if d_scores is not None:
                ds += d_scores[rows]
            product = _product(g, width)
            d_score.addmm_(ds.T, product)
            d_score_bias += ds.sum(dim=0)
            dg = _through_gates(ds @ score, g, product, width)
            d_gates += columns_times(dg, h)
            d_gates_bias += dg.sum(dim=0)
            dh = rows_times(dg, gates_weight.T)
            if d_pooled is not None:
                dh.addmm_(a, d_pooled)
            if d_hidden is not None:
                dh += d_hidden[rows]
            # what dropout took away is 0 in h as what ReLU took away
            torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)
            d_first += columns_times(dh, features[rows])
            d_first_bias += dh.sum(dim=0)
            if d_features is not None:
                d_features[rows] = rows_times(dh, first.T)
        return d_features, d_first, d_first_bias, d_gates, d_gates_bias, d_score, d_score_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        message = "attention by row blocks has no second derivative"
        raise NotImplementedError(message)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        return _each_member(_Backward, info.batch_size, in_dims, args)


def _blocks(n: int, width: int) -> Iterator[slice]:
    rows = max(1, _NUMBERS // width)
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _product(gates: Tensor, width: int) -> Tensor:
    """tanh(v) * sigmoid(u), or tanh(v) where that is all."""
    return gates if gates.shape[1] == width else gates[:, :width] * gates[:, width:]


def _through_gates(d_product: Tensor, gates: Tensor, product: Tensor, width: int) -> Tensor:
    """From the gradient of `_product` to that before tanh and sigmoid: d s (1 - t^2) and d t s (1 - s)."""
    if gates.shape[1] == width:
        return d_product.addcmul_(d_product * gates, gates, value=-1)
    t, s, found = gates[:, :width], gates[:, width:], torch.empty_like(gates)
    torch.addcmul(s, product, t, value=-1, out=found[:, :width]).mul_(d_product)
    torch.addcmul(product, product, s, value=-1, out=found[:, width:]).mul_(d_product)
    return found


def _each_member(
    function: type[Function], members: int, in_dims: Sequence[int | None], args: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Under `vmap`: one call a member, since stacking the products of long bags gains nothing on a CPU."""
    calls = [
        function.apply(
            *(one if dim is None else one.select(dim, member) for one, dim in zip(args, in_dims, strict=True))
        )
        for member in range(members)
    ]
    outputs = [None if parts[0] is None else torch.stack(parts) for parts in zip(*calls, strict=True)]
    return tuple(outputs), tuple(None if one is None else 0 for one in outputs)
