from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathfm.errors import UnknownNameError
from pathfm.heads import HEADS, Bags, Head, Standardiser, build_head, pack

DIM = 5


def _head(name: str, n_classes: int = 3) -> Head:
    torch.manual_seed(0)
    head = build_head(name, DIM, n_classes, hidden=16, attention=8, dropout=0.25)
    head.standardiser.fit([torch.randn(50, DIM) * 3 + 1])
    return head.eval()


def _bags(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, DIM, generator=generator) for n in lengths]


every_head = pytest.mark.parametrize("name", sorted(HEADS))
some_lengths = st.lists(st.integers(0, 20), min_size=1, max_size=6)


@every_head
@given(lengths=some_lengths, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_bags_packed_together_get_the_logits_they_get_alone(name: str, lengths: list[int], seed: int) -> None:
    head, bags = _head(name), _bags(lengths, seed)
    together = head(pack(bags))
    alone = [head(pack([bag])) for bag in bags]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), rtol=1e-5, atol=1e-6)
    if together.attention is not None:
        apart = torch.cat([one.attention for one in alone])
        torch.testing.assert_close(together.attention, apart, rtol=1e-5, atol=1e-6)


@every_head
@given(n=st.integers(2, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_order_of_tiles_changes_no_logit_and_moves_attention_with_them(name: str, n: int, seed: int) -> None:
    head, (bag,) = _head(name), _bags([n], seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    straight, shuffled = head(pack([bag])), head(pack([bag[order]]))
    torch.testing.assert_close(straight.logits, shuffled.logits, rtol=1e-5, atol=1e-6)
    if straight.attention is not None:
        torch.testing.assert_close(straight.attention[order], shuffled.attention, rtol=1e-5, atol=1e-6)


@given(lengths=some_lengths, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_attention_sums_to_one_over_every_bag_that_has_tiles(lengths: list[int], seed: int) -> None:
    attention = _head("gated-abmil")(pack(_bags(lengths, seed))).attention
    assert attention.shape == (sum(lengths), 1)
    for n, part in zip(lengths, attention.split(lengths), strict=True):
        assert part.sum().item() == pytest.approx(1 if n else 0, abs=1e-5)
        assert (part >= 0).all()


@every_head
@pytest.mark.parametrize("n", [0, 1, 100_000])
def test_bags_of_no_tile_one_tile_and_very_many_have_finite_logits_and_gradients(name: str, n: int) -> None:
    head = _head(name).train()
    logits = head(pack([torch.randn(n, DIM), torch.zeros(0, DIM)])).logits
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_head
def test_what_one_bag_holds_reaches_no_other_bag(name: str) -> None:
    head, (first, second) = _head(name), _bags([4, 6], 0)
    second.requires_grad_()
    head(pack([first, second])).logits[0].sum().backward()
    assert second.grad is None or (second.grad == 0).all()


def test_gated_attention_is_equation_9_of_ilse_2018_written_out() -> None:
    head, (bag,) = _head("gated-abmil"), _bags([7], 3)
    pooling, x = head.pooling, head.standardiser(bag)
    h = torch.relu(pooling.hidden(x))
    v, u = pooling.gates.weight.chunk(2)
    bias_v, bias_u = pooling.gates.bias.chunk(2)
    scores = [pooling.score(torch.tanh(v @ row + bias_v) * torch.sigmoid(u @ row + bias_u)).item() for row in h]
    weights = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
    pooled = sum(weight * row for weight, row in zip(weights, h, strict=True))
    output = head(pack([bag]))
    torch.testing.assert_close(output.attention[:, 0], weights)
    torch.testing.assert_close(output.logits[0], pooling.classifier(pooled))


def test_mean_pooling_says_that_it_has_no_attention() -> None:
    assert _head("mean")(pack(_bags([3], 0))).attention is None


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8), scale=st.floats(0.01, 1e3), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=50)
def test_the_streamed_mean_and_deviation_are_those_of_all_tiles_at_once(
    lengths: list[int], scale: float, seed: int
) -> None:
    bags = [bag * scale + 7 for bag in _bags(lengths, seed)]
    standardiser = Standardiser(DIM)
    standardiser.fit(bags)
    if sum(lengths) > 1:
        tiles = torch.cat(bags).double()
        torch.testing.assert_close(standardiser.mean, tiles.mean(0).float())
        torch.testing.assert_close(standardiser.std, tiles.std(0, correction=0).float(), rtol=1e-4, atol=1e-6)


def test_a_feature_that_never_varies_is_not_blown_up() -> None:
    standardiser = Standardiser(2)
    standardiser.fit([torch.tensor([[1.0, 5.0], [3.0, 5.0]])])
    assert standardiser.std[1] == 1
    assert (standardiser(torch.tensor([[1.0, 5.0]]))[0, 1]) == 0


def test_heads_hold_no_batch_norm_and_change_no_buffer_in_training() -> None:
    for name in HEADS:
        head = _head(name).train()
        before = {key: value.clone() for key, value in head.named_buffers()}
        head(pack(_bags([4, 5], 1)))
        assert all(torch.equal(value, before[key]) for key, value in head.named_buffers())
        assert set(before) == {"standardiser.mean", "standardiser.std"}


def test_an_unknown_head_lists_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown head 'gated-abmill'.*gated-abmil"):
        build_head("gated-abmill", DIM, 2)


def test_packing_keeps_order_and_lengths_and_refuses_nothing_at_all() -> None:
    bags = _bags([2, 0, 3], 0)
    packed = pack(bags)
    assert isinstance(packed, Bags)
    ends = [0, *itertools.accumulate(packed.lengths.tolist())]
    for bag, (start, end) in zip(bags, itertools.pairwise(ends), strict=True):
        assert torch.equal(packed.features[start:end], bag)
    with pytest.raises(ValueError, match="at least one bag"):
        pack([])
