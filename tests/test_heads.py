"""What every row of HEADS keeps; a new row is tested here without a word."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pathfm.errors import InputError, UnknownNameError
from pathfm.heads import HEADS, Bags, Criterion, Head, build_head, moments, pack
from pathfm.heads.layers import Dropout, FirstLinear, pooled_moments
from pathfm.heads.listing import heads_table
from pathfm.heads.options import own_options

DIM, OUTPUTS = 5, 3
SMALL = {"hidden": 16, "attention": 8}
# torch runs this kernel once a head under vmap, and says that it does
no_rule = pytest.mark.filterwarnings("ignore:There is a performance drop")
# what each choice of words is, beside its default
WORDS = {"distill": ("maxmins", "maxs"), "rank_by": ("probability",)}
CASES = [
    *((name, {}) for name in HEADS),
    *((name, {o: w}) for name in HEADS for o in own_options(HEADS[name]) if o in WORDS for w in WORDS[o]),
]
every_head = pytest.mark.parametrize("name", sorted(HEADS))
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=["-".join([name, *options.values()]) for name, options in CASES]
)
some_lengths = st.lists(st.integers(0, 20), min_size=1, max_size=5)
few = settings(deadline=None, max_examples=6)


def _head(name: str, n_covariates: int = 0, seed: int = 0, dropout: float = 0.25, **options: Any) -> Head:
    torch.manual_seed(seed)
    head = build_head(name, DIM, OUTPUTS, n_covariates, dropout=dropout, **SMALL, **options)
    covariates = torch.randn(9, n_covariates) * 2 + 5 if n_covariates else None
    head.standardise([moments(torch.randn(50, DIM) * 3 + 1)], covariates)
    return head.eval()


def _bags(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, DIM, generator=generator) for n in lengths]


def _criterion(classes: list[int]) -> Criterion:
    """Cross-entropy, 0 for a bag of class -1, as of a target of classes."""
    codes = torch.tensor(classes)

    def losses(logits: Tensor) -> Tensor:
        return torch.where(codes >= 0, functional.cross_entropy(logits, codes.clamp(min=0), reduction="none"), 0.0)

    return Criterion(losses, codes)


# -- packing, order and attention ------------------------------------------------------------------------------------


def _same_together_as_alone(head: Head, bags: list[Tensor]) -> None:
    together = head(pack(bags))
    alone = [head(pack([bag])) for bag in bags]
    assert together.logits.shape == (len(bags), OUTPUTS)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), rtol=1e-5, atol=1e-5)
    if together.attention is not None:
        apart = torch.cat([one.attention for one in alone])
        torch.testing.assert_close(together.attention, apart, rtol=1e-5, atol=1e-5)


def _order_matters_as_declared(head: Head, bag: Tensor, seed: int) -> None:
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    straight, shuffled = head(pack([bag])), head(pack([bag[order]]))
    if not HEADS[head.name].permutation_invariant:
        return
    torch.testing.assert_close(straight.logits, shuffled.logits, rtol=1e-5, atol=1e-5)
    if straight.attention is not None:
        torch.testing.assert_close(straight.attention[order], shuffled.attention, rtol=1e-5, atol=1e-5)


def _attention_is_as_declared(head: Head, lengths: list[int], seed: int) -> None:
    attention = head(pack(_bags(lengths, seed))).attention
    columns = {"none": 0, "one": 1, "each output": OUTPUTS}[HEADS[head.name].attention]
    if columns == 0:
        assert attention is None
        return
    assert attention.shape == (sum(lengths), columns)
    assert (attention >= 0).all()
    for n, part in zip(lengths, attention.split(lengths), strict=True):
        wanted = torch.full((columns,), float(n > 0))
        torch.testing.assert_close(part.sum(dim=0), wanted, rtol=0, atol=1e-5)


@every_case
@given(lengths=some_lengths, seed=st.integers(0, 1000))
@few
def test_bags_packed_together_get_the_logits_they_get_alone(
    name: str, options: dict[str, Any], lengths: list[int], seed: int
) -> None:
    _same_together_as_alone(_head(name, **options), _bags(lengths, seed))


@every_head
def test_long_bags_packed_with_short_ones_get_the_logits_they_get_alone(name: str) -> None:
    _same_together_as_alone(_head(name), _bags([300, 1, 0, 700]))


@every_case
@given(n=st.integers(2, 40), seed=st.integers(0, 1000))
@few
def test_the_order_of_tiles_changes_no_logit_and_moves_attention_with_them(
    name: str, options: dict[str, Any], n: int, seed: int
) -> None:
    _order_matters_as_declared(_head(name, **options), *_bags([n], seed), seed)


@every_case
def test_a_head_that_says_that_the_order_matters_sees_it(name: str, options: dict[str, Any]) -> None:
    head, (bag,) = _head(name, **options), _bags([30])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    straight, shuffled = head(pack([bag])).logits, head(pack([bag[order]])).logits
    assert torch.allclose(straight, shuffled, rtol=1e-5, atol=1e-5) == HEADS[name].permutation_invariant


@every_case
@given(lengths=some_lengths, seed=st.integers(0, 1000))
@few
def test_attention_has_the_columns_declared_and_sums_to_one_over_every_bag_with_tiles(
    name: str, options: dict[str, Any], lengths: list[int], seed: int
) -> None:
    _attention_is_as_declared(_head(name, **options), lengths, seed)


@every_case
def test_what_one_bag_holds_reaches_no_other_bag(name: str, options: dict[str, Any]) -> None:
    head, (first, second) = _head(name, **options), _bags([4, 6])
    second.requires_grad_()
    head(pack([first, second])).logits[0].sum().backward()
    assert second.grad is None or (second.grad == 0).all()


# -- bags of any length ----------------------------------------------------------------------------------------------


def _losses_and_gradients_are_finite(head: Head, lengths: list[int]) -> None:
    head.train().zero_grad()
    criterion = _criterion([number % (OUTPUTS + 1) - 1 for number in range(len(lengths))])
    losses = head.losses(pack(_bags(lengths)), criterion)
    assert losses.shape == (len(lengths),)
    assert losses[0] == 0  # it has no label
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_case
@pytest.mark.parametrize("lengths", [[0], [0, 0], [1, 1], [2, 3, 0, 1, 4, 17, 15, 16]], ids=str)
def test_losses_and_gradients_of_short_bags_are_finite(name: str, options: dict[str, Any], lengths: list[int]) -> None:
    head = _head(name, **options)
    _losses_and_gradients_are_finite(head, lengths)
    output = head.eval()(pack(_bags(lengths)))
    assert torch.isfinite(output.logits).all()


LESS = {"transformer": {"heads": 1}, "transmil": {"heads": 2}}  # the same memory, for less time
LONG = {"transformer"}  # time in proportion to the square of the tiles; memory is not


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in sorted(HEADS)]
)
def test_a_bag_of_100000_tiles_has_finite_losses_and_gradients(name: str) -> None:
    _losses_and_gradients_are_finite(_head(name, **LESS.get(name, {})), [3, 100_000])
    print(f"{name}: a bag of 100,000 tiles")


class _Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@every_case
def test_a_bag_twice_as_long_takes_tensors_twice_as_large(name: str, options: dict[str, Any]) -> None:
    head, largest = _head(name, **options).train(), []
    for n in (1500, 3000):
        with _Largest() as seen:
            head.losses(pack(_bags([n])), _criterion([1])).sum().backward()
        largest.append(seen.elements)
    assert largest[0] >= 1500 * DIM
    assert largest[1] <= 2.1 * largest[0]


# -- training --------------------------------------------------------------------------------------------------------


@every_case
def test_two_evaluations_give_the_same_bits(name: str, options: dict[str, Any]) -> None:
    head, bags = _head(name, **options), pack(_bags([9, 30]))
    assert torch.equal(head(bags).logits, head(bags).logits)


@every_case
def test_training_draws_from_the_global_generator_alone(name: str, options: dict[str, Any]) -> None:
    head, bags, criterion = _head(name, **options).train(), pack(_bags([9, 30])), _criterion([0, 1])
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(head.losses(bags, criterion))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@every_head
def test_heads_hold_no_batch_norm_and_carry_nothing_on(name: str) -> None:
    head = _head(name).train()
    before = {key: value.clone() for key, value in head.named_buffers()}
    head.losses(pack(_bags([4, 5])), _criterion([0, 1])).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in head.named_buffers())
    assert {key.rpartition(".")[2] for key in before} == {"mean", "std"}
    assert not any("BatchNorm" in type(part).__name__ for part in head.modules())
    assert not any(isinstance(part, nn.Dropout) for part in head.modules())


@every_head
def test_raw_embeddings_enter_through_standardised_layers_only(name: str) -> None:
    head, (bag,) = _head(name), _bags([12])
    shifted = _head(name)
    shifted.load_state_dict(head.state_dict())
    for layer in head.pooling.modules():
        if isinstance(layer, FirstLinear):
            mean, std = layer.mean, layer.std
    shifted.standardise([moments(torch.stack([mean + std, mean - std]) * 100 + 7)])
    straight, moved = head(pack([bag])).logits, shifted(pack([bag * 100 + 7])).logits
    torch.testing.assert_close(straight, moved, rtol=1e-3, atol=1e-4)


@every_head
def test_half_precision_changes_losses_a_little_and_keeps_gradients_finite(name: str) -> None:
    head, bags, criterion = _head(name, dropout=0.0), pack(_bags([0, 1, 7, 600])), _criterion([0, 1, 2, 1])
    whole = head.losses(bags, criterion)
    with torch.autocast("cpu", torch.bfloat16):
        half = head.losses(bags, criterion)
    torch.testing.assert_close(half.float(), whole, rtol=0.05, atol=0.05)
    half.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in head.parameters() if one.grad is not None)


@pytest.mark.parametrize("name", ["gated-abmil", "mean"])
def test_half_precision_rounds_features_by_their_deviation_and_not_by_their_size(name: str) -> None:
    bags = [bag + 20 * torch.randn(DIM, generator=torch.Generator().manual_seed(9)) for bag in _bags([60] * 20)]
    head = _head(name)
    head.standardise([moments(bag) for bag in bags])
    whole = head(pack(bags)).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = head(pack(bags)).logits.float()
    error = (half - whole).abs().mean()
    assert 0 < error < 0.05 * whole.std(dim=0).mean()


class _Losses(nn.Module):
    """`Head.losses` as a module's forward, which is what `functional_call` calls."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, bags: Bags, criterion: Criterion) -> Tensor:
        return self.head.losses(bags, criterion)


@every_case
def test_a_head_stays_on_the_device_of_its_tiles_and_asks_no_tensor_what_it_holds(
    name: str, options: dict[str, Any]
) -> None:
    head = _head(name, n_covariates=2, **options).train().to("meta")  # refuses both
    features, *rest = pack(_bags([0, 1, 7, 200]), torch.randn(4, 2))  # above 256 transmil asks for autocast, not there
    codes = torch.tensor([0, 1, 2, 1], device="meta")
    bags = Bags(features.to("meta"), rest[0], rest[1].to("meta"))
    losses = head.losses(
        bags, Criterion(lambda logits: functional.cross_entropy(logits, codes, reduction="none"), codes)
    )
    losses.sum().backward()
    assert (losses.device.type, losses.shape) == ("meta", (4,))
    output = head.eval()(bags)
    assert output.attention is None or output.attention.device.type == "meta"


def _same_stacked_as_apart(name: str, **options: Any) -> None:
    modules = [_Losses(_head(name, n_covariates=2, seed=seed, **options)).train() for seed in range(3)]
    bags = pack(_bags([0, 1, 7, 300, 3]), torch.randn(5, 2))
    criterion = _criterion([0, 1, 2, 1, -1])
    parameters, buffers = stack_module_state(modules)

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(modules[0], (parameters, buffers), (bags, criterion))

    torch.manual_seed(5)
    together = torch.vmap(one, randomness="same")(parameters, buffers)
    together.sum().backward()
    for number, module in enumerate(modules):
        torch.manual_seed(5)
        apart = module(bags, criterion)
        apart.sum().backward()
        torch.testing.assert_close(together[number], apart, rtol=1e-4, atol=1e-5)
        for key, parameter in module.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(parameters[key].grad[number], wanted, rtol=1e-3, atol=1e-4)


@no_rule
@every_case
def test_stacked_heads_over_shared_bags_have_the_losses_and_gradients_they_have_apart(
    name: str, options: dict[str, Any]
) -> None:
    _same_stacked_as_apart(name, **options)


@every_case
def test_every_head_learns_which_bags_hold_a_marked_tile(name: str, options: dict[str, Any]) -> None:
    bags = _bags([6] * 8)
    for bag in bags[::2]:
        bag[2] += 4
    packed, criterion = pack(bags), _criterion([1, 0] * 4)
    head = _head(name, dropout=0.0, **options).train()
    head.standardise([moments(bag) for bag in bags])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        head.losses(packed, criterion).mean().backward()
        optimiser.step()
    assert head.eval()(packed).logits.argmax(dim=1).tolist() == [1, 0] * 4


# -- options, covariates, and the table ------------------------------------------------------------------------------


@every_case
def test_the_keywords_of_a_head_build_it_again(name: str, options: dict[str, Any]) -> None:
    head = _head(name, n_covariates=2, **options)
    kwargs = json.loads(json.dumps(head.kwargs()))
    assert set(own_options(HEADS[name])) | set(SMALL) | {"dropout"} == set(kwargs)
    again = build_head(name, DIM, OUTPUTS, 2, **kwargs).eval()
    again.load_state_dict(head.state_dict())
    bags = pack(_bags([5, 0, 8]), torch.randn(3, 2))
    assert torch.equal(head(bags).logits, again(bags).logits)
    assert again.kwargs() == head.kwargs()


@every_head
def test_covariates_add_a_linear_term_to_the_logits_and_to_the_losses(name: str) -> None:
    head, bags = _head(name, n_covariates=2), _bags([5, 0, 8])
    nn.init.normal_(head.covariates.linear.weight)
    covariates = torch.tensor([[5.0, 4.0], [float("nan"), 4.0], [7.0, float("nan")]])
    mean, std, weight = head.covariates.mean, head.covariates.std, head.covariates.linear.weight
    term = torch.stack([((row - mean) / std).nan_to_num() @ weight.T for row in covariates])
    without, within = head(pack(bags)), head(pack(bags, covariates))
    torch.testing.assert_close(within.logits, without.logits + term, rtol=1e-4, atol=1e-5)
    seen: list[Tensor] = []
    head.losses(pack(bags), Criterion(lambda logits: seen.append(logits) or logits.sum(dim=1)))
    head.losses(pack(bags, covariates), Criterion(lambda logits: seen.append(logits) or logits.sum(dim=1)))
    half = len(seen) // 2
    for first, second in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(second, first + term, rtol=1e-4, atol=1e-5)


def test_a_head_that_knows_no_class_trains_by_the_loss_of_the_bag_alone() -> None:
    for name in ("clam-sb", "clam-mb"):
        head, bags = _head(name), pack(_bags([40, 3]))
        criterion = Criterion(lambda logits: logits.square().sum(dim=1))
        torch.testing.assert_close(head.losses(bags, criterion), head(bags).logits.square().sum(dim=1))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("transmil", {"hidden": 20, "heads": 8}, "hidden 20 cannot be split into 8 heads"),
        ("transformer", {"hidden": 16, "heads": 3}, "pass a multiple of 3"),
        ("perceiver", {"latents": 0}, "latents, an option of the head perceiver, is 0, and has to be 1 or more"),
        ("clam-sb", {"instances": "eight"}, "is 'eight', and has to be a whole number, as 8"),
        ("clam-mb", {"exclusive": 1}, "has to be true or false"),
        ("clam-mb", {"bag_weight": 1.5}, "bag_weight is 1.5, and has to be from 0 to 1"),
        ("clam-sb", {"bag_weight": float("nan")}, "has to be from 0 to 1"),
        ("dtfd", {"distill": "max-min-s"}, "unknown distillation of the head dtfd 'max-min-s'; near: maxmins"),
        ("mean", {"hidden": True}, "hidden, an option of the head mean, is True, and has to be a whole number"),
        ("mean", {"dropout": 2}, "dropout is 2"),
        ("mean", {"landmarks": 2}, "unknown option of the head mean 'landmarks'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        build_head(name, DIM, OUTPUTS, **options)


def test_an_unknown_head_lists_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown head 'gated-abmill'.*gated-abmil"):
        build_head("gated-abmill", DIM, 2)


def test_the_table_of_heads_has_a_row_for_each_with_its_paper_and_its_parameters() -> None:
    state = torch.get_rng_state()
    table = heads_table()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(table["name"]) == list(HEADS)
    assert table["paper"].str.len().gt(20).all()
    assert table["paper"].str.contains(r"\(\d{4}\)").all()
    row = table.set_index("name").loc["clam-sb"]
    assert row["options"] == "bag_weight=0.7 instances=8 exclusive=true"
    built = build_head("clam-sb", 1024, 2)
    assert row["parameters"] == sum(parameter.numel() for parameter in built.parameters())


def test_the_page_on_heads_names_every_head_and_every_option_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "heads.md").read_text()
    heads, rest = page.split("## Options")
    assert re.findall(r"^\| `([\w-]+)` \|", heads, re.MULTILINE) == list(HEADS)
    rows = re.findall(r"^\| ([\w, -]+) \| `(\w+)` \| ([^|]+) \|", rest, re.MULTILINE)
    told = {}
    for names, option, defaults in rows:
        listed = names.split(", ")
        values = defaults.split(", ") if ", " in defaults else [defaults] * len(listed)
        told |= {(name, option): value for name, value in zip(listed, values, strict=True)}
    own = {(name, option): value for name in HEADS for option, value in own_options(HEADS[name]).items()}
    assert told == {key: value if isinstance(value, str) else json.dumps(value) for key, value in own.items()}


def test_the_example_of_how_to_add_a_head_is_a_head_like_any_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "adding-a-head.md").read_text()
    known = set(HEADS)
    try:
        (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        exec(code, {"__name__": "example"})
        (name,) = set(HEADS) - known
        head = _head(name)
        _same_together_as_alone(head, _bags([4, 0, 9]))
        _order_matters_as_declared(head, *_bags([7]), 3)
        _attention_is_as_declared(head, [4, 0, 9], 3)
        _losses_and_gradients_are_finite(head, [0, 1, 400])
        _same_stacked_as_apart(name)
        assert name in set(heads_table()["name"])
    finally:
        for added in set(HEADS) - known:
            del HEADS[added]


# -- layers and packing ----------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8), scale=st.floats(0.01, 1e3), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=30)
def test_the_streamed_mean_and_deviation_are_those_of_all_tiles_at_once(
    lengths: list[int], scale: float, seed: int
) -> None:
    bags = [bag * scale + 7 for bag in _bags(lengths, seed)]
    found = pooled_moments(map(moments, bags))
    if not sum(lengths):
        assert found is None
        return
    tiles = torch.cat(bags).double()
    torch.testing.assert_close(found[0], tiles.mean(0))
    torch.testing.assert_close(found[1], tiles.std(0, correction=0), rtol=1e-6, atol=1e-9)


def test_a_feature_that_never_varies_is_not_blown_up() -> None:
    layer = FirstLinear(2, 3)
    layer.standardise(*pooled_moments([moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]))
    assert layer.std.tolist() == [1, 1]
    torch.testing.assert_close(layer(torch.tensor([[2.0, 5.0]]))[0], layer.linear.bias)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(p).train(), torch.ones(400, 500)
    dropped = layer(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


def test_packing_keeps_order_and_lengths_and_refuses_nothing_at_all() -> None:
    bags = _bags([2, 0, 3])
    packed = pack(bags)
    assert isinstance(packed, Bags)
    ends = [0, *itertools.accumulate(packed.lengths.tolist())]
    for bag, (start, end) in zip(bags, itertools.pairwise(ends), strict=True):
        assert torch.equal(packed.features[start:end], bag)
    with pytest.raises(ValueError, match="at least one bag"):
        pack([])
