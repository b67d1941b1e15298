from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from pathfm.heads import Bags, HeadShape, gated, pack, products, rowblocks
from pathfm.heads.abmil import Attention, GatedAttention, MultiBranchGatedAttention
from pathfm.heads.layers import Dropout
from pathfm.heads.rowblocks import AttendedBag, Weights, attend_by_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.heads.pooling import Pooling

DIM, HIDDEN, WIDTH = 6, 8, 5
NEVER = 10**9

gated_or_not = pytest.mark.parametrize("with_gate", [True, False])
each_class = pytest.mark.parametrize("kind", [Attention, GatedAttention, MultiBranchGatedAttention])


def _weights(with_gate: bool, branches: int = 2) -> Weights:
    gates = WIDTH * (2 if with_gate else 1)
    shapes = [(HIDDEN, DIM), (HIDDEN,), (gates, HIDDEN), (gates,), (branches, WIDTH), (branches,)]
    return Weights(*(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes))


def _written_out(features: Tensor, weights: Weights, keep: Tensor | None, scale: float) -> AttendedBag:
    """Ilse et al. (2018), equations 7 to 9, for autograd."""
    hidden = torch.relu(features @ weights.first.T + weights.first_bias)
    hidden = hidden if keep is None else hidden * keep * scale
    gates = hidden @ weights.gates.T + weights.gates_bias
    gate = torch.sigmoid(gates[:, WIDTH:]) if len(weights.gates) == 2 * WIDTH else 1
    scores = (torch.tanh(gates[:, :WIDTH]) * gate) @ weights.score.T + weights.score_bias
    attention = torch.softmax(scores, dim=0)
    return AttendedBag(attention.T @ hidden, attention, hidden, scores)


def _gradients(bag: AttendedBag, outputs: Sequence[int], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss in which some of the outputs have a part; zeros where it does not depend on an input."""
    generator = torch.Generator().manual_seed(0)
    parts = [(bag[i] * torch.randn(bag[i].shape, dtype=bag[i].dtype, generator=generator)).sum() for i in outputs]
    return torch.autograd.grad(torch.stack(parts).sum(), inputs, materialize_grads=True)


@gated_or_not
@pytest.mark.parametrize("outputs", [[0], [1], [2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize(("n", "dropout"), [(0, True), (1, False), (20, True), (20, False)])
def test_row_blocks_have_the_outputs_and_gradients_of_the_formula_written_out(
    with_gate: bool, outputs: list[int], n: int, dropout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowblocks, "_NUMBERS", 130)  # blocks of 7 or 10 rows
    torch.manual_seed(0)
    weights, features = _weights(with_gate), torch.randn(n, DIM, dtype=torch.float64, requires_grad=True)
    keep = torch.rand(n, HIDDEN) > 0.25 if dropout else None
    ours, plain = (way(features, weights, keep, 4 / 3) for way in (attend_by_blocks, _written_out))
    torch.testing.assert_close(ours, plain)
    inputs = [features, *weights]
    torch.testing.assert_close(_gradients(ours, outputs, inputs), _gradients(plain, outputs, inputs))


@gated_or_not
def test_the_gradients_of_row_blocks_are_those_of_finite_differences(
    with_gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowblocks, "_NUMBERS", 130)  # blocks of 7 or 10 rows
    torch.manual_seed(0)
    features, keep = torch.randn(16, DIM, dtype=torch.float64, requires_grad=True), torch.rand(16, HIDDEN) > 0.25
    assert torch.autograd.gradcheck(
        lambda x, *w: tuple(attend_by_blocks(x, Weights(*w), keep, 4 / 3)), (features, *_weights(with_gate))
    )


def _pooling(kind: type[Pooling], seed: int = 0, dropout: float = 0.25) -> Pooling:
    torch.manual_seed(seed)
    return kind(DIM, 3, HeadShape(hidden=32, attention=16, dropout=dropout))


def _step(pooling: Pooling, bags: Bags) -> list[Tensor]:
    """Logits, attention and gradients of one step of training, from a given state of the generator."""
    torch.manual_seed(1)
    pooling.zero_grad()
    output = pooling(bags)
    nn.functional.cross_entropy(output.logits, torch.arange(len(output.logits)) % 3).backward()
    return [output.logits, output.attention, *(parameter.grad for parameter in pooling.parameters())]


@each_class
@pytest.mark.parametrize("lengths", [[1300], [700, 0, 600]])
def test_training_by_row_blocks_is_training_without_at_the_same_masks(
    kind: type[Pooling], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pooling, bags = _pooling(kind), pack([torch.randn(n, DIM) for n in lengths])
    ways = []
    for long in (0, NEVER):
        monkeypatch.setattr(gated, "_LONG", long)
        ways.append(_step(pooling, bags))
    torch.testing.assert_close(*ways, rtol=1e-4, atol=1e-5)


def test_row_blocks_are_for_long_bags_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    real = attend_by_blocks
    monkeypatch.setattr(gated, "attend_by_blocks", lambda x, *rest: lengths.append(len(x)) or real(x, *rest))
    pooling, long, short = _pooling(GatedAttention), torch.randn(900, DIM), torch.randn(9, DIM)
    pooling(pack([long, long]))
    pooling(pack([short] * 100))
    with torch.autocast("cpu", torch.bfloat16):
        half = pooling(pack([long])).logits
    assert (lengths, half.dtype) == ([900, 900], torch.bfloat16)


@each_class
@pytest.mark.parametrize("long", [0, NEVER])
def test_stacked_heads_under_vmap_have_the_gradients_they_have_apart(
    kind: type[Pooling], long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "_LONG", long)
    poolings, bags = [_pooling(kind, seed, dropout=0) for seed in range(3)], pack([torch.randn(600, DIM)])
    apart = [_step(pooling, bags)[2:] for pooling in poolings]
    parameters, buffers = stack_module_state(poolings)

    def loss(own: dict[str, Tensor], its_buffers: dict[str, Tensor]) -> Tensor:
        logits = functional_call(poolings[0], (own, its_buffers), (bags,)).logits
        return nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.int64))

    inside = vmap(grad(loss))({key: value.detach() for key, value in parameters.items()}, buffers)
    vmap(loss)(parameters, buffers).sum().backward()
    for together in (inside, {key: value.grad for key, value in parameters.items()}):
        for member, gradients in enumerate(apart):
            torch.testing.assert_close([one[member] for one in together.values()], gradients, rtol=1e-4, atol=1e-6)


def test_each_member_of_a_vmap_draws_a_dropout_of_its_own() -> None:
    dropout = Dropout(0.25).train()
    drawn = vmap(dropout, randomness="different")(torch.ones(4, 100, 20))
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 4
    assert (drawn == 0).float().mean(dim=(1, 2)).tolist() == pytest.approx([0.25] * 4, abs=0.05)
    assert drawn.max().item() == pytest.approx(4 / 3)


def test_a_second_derivative_is_refused() -> None:
    features, weights = torch.randn(5, DIM, dtype=torch.float64), _weights(with_gate=True)
    pooled = attend_by_blocks(features, weights, None, 1.0).pooled
    (first,) = torch.autograd.grad(pooled.square().sum(), weights.first, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first.sum(), weights.first)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("n", [0, 1, 3, 300])
def test_products_are_right_by_either_library(onednn: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    x, weight, bias, d = torch.randn(n, 40), torch.randn(30, 40), torch.randn(30), torch.randn(n, 30)
    for ours, exact in (
        (products.rows_times(x, weight, bias), x.double() @ weight.double().T + bias),
        (products.rows_times(d, weight.T), d.double() @ weight.double()),
        (products.columns_times(d, x), d.double().T @ x.double()),
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("onednn", [True, False])
def test_the_gradient_of_a_product_is_right_by_either_library_and_so_is_that_of_many_at_once(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    x, weights, biases = torch.randn(300, 40), torch.randn(3, 30, 40), torch.randn(3, 30)
    exact = torch.stack(
        [(x.double() @ w.double().T + b).cos() @ w.double() for w, b in zip(weights, biases, strict=True)]
    )

    def to_x(weight: Tensor, bias: Tensor) -> Tensor:
        return grad(lambda given: products.linear(given, weight, bias).sin().sum())(x)

    apart = torch.stack([to_x(weight, bias) for weight, bias in zip(weights, biases, strict=True)])
    for ours in (apart, vmap(to_x)(weights, biases)):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)

    def to_weights(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return grad(lambda *given: products.linear(x, *given).sum(), argnums=(0, 1))(weight, bias)

    to_weight, to_bias = vmap(to_weights)(weights, biases)
    torch.testing.assert_close(to_weight, x.sum(dim=0).expand(3, 30, 40), rtol=1e-4, atol=1e-3)
    assert (to_bias == 300).all()


@pytest.mark.parametrize(
    ("vendor", "capability", "onednn"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_onednn_multiplies_where_the_other_library_leaves_avx512_unused(
    vendor: str, capability: str, onednn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(products, "_CPUINFO", cpuinfo)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert products.onednn_is_faster.__wrapped__() == (onednn and there)
