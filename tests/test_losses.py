"""What a bag of each kind of target costs, against sums written out from the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pathfm.targets import Classes, Cox, Hazards, MultiLabel, Ordinal, Regression, Task


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def followed(seed: int, n: int, missing: float = 0.0) -> tuple[Any, Any]:
    """Logits float64 (n, 4) and survival with ties and censoring, (n, 2); NaN for a share of the rows."""
    generator = np.random.default_rng(seed)
    truth = np.stack([generator.integers(1, 6, n), generator.integers(0, 2, n)], axis=1).astype(np.float32)
    truth[generator.random(n) < missing] = np.nan
    return torch.from_numpy(generator.normal(size=(n, 4))), torch.from_numpy(truth)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), missing=st.sampled_from([0.0, 0.3]))
def test_cox_losses_have_the_negative_log_partial_likelihood_per_event_as_their_mean(
    seed: int, n: int, missing: float
) -> None:
    logits, truth = followed(seed, n, missing)
    risk, rows = logits[:, 0].tolist(), truth.tolist()
    total, events = 0.0, 0
    for i, (time, event) in enumerate(rows):
        if event == 1:
            at_risk = [j for j, (other, _) in enumerate(rows) if other >= time]
            total -= risk[i] - math.log(sum(math.exp(risk[j]) for j in at_risk))
            events += 1
    losses = Cox("t/e").losses(logits[:, :1], truth)
    assert float(losses.mean()) == pytest.approx(total / max(events, 1), abs=1e-9)
    assert all(float(loss) == 0 for loss, (_, event) in zip(losses, rows, strict=True) if event != 1)


def test_cox_partial_likelihood_of_two_is_that_of_the_textbook() -> None:
    # the first dies while both are alive, the second when nobody else is: exp(1) / (exp(1) + exp(0)) * 1
    losses = Cox("t/e").losses(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    assert float(losses.sum()) == pytest.approx(math.log(1 + math.exp(-1)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), missing=st.sampled_from([0.0, 0.3]))
def test_hazards_losses_are_the_negative_log_likelihood_of_each_span(seed: int, n: int, missing: float) -> None:
    logits, truth = followed(seed, n, missing)
    cuts = (1.5, 3.0, 4.5)
    losses = Hazards("t/e", cuts).losses(logits, truth)
    for loss, row, (time, event) in zip(losses.tolist(), logits.tolist(), truth.tolist(), strict=True):
        if math.isnan(time):
            assert loss == 0
            continue
        own = sum(time >= cut for cut in cuts)
        passed = math.prod(1 - sigmoid(one) for one in row[:own])
        likelihood = passed * (sigmoid(row[own]) if event == 1 else 1 - sigmoid(row[own]))
        assert loss == pytest.approx(-math.log(likelihood))


def test_likelihoods_of_all_spans_of_an_event_and_of_outliving_them_sum_to_one() -> None:
    logits = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    truth = torch.tensor([[1.0, 1], [2.0, 1], [3.0, 1], [4.0, 1], [4.0, 0]])
    losses = Hazards("t/e", (1.5, 2.5, 3.5)).losses(logits, truth)
    assert float(torch.exp(-losses).sum()) == pytest.approx(1)


def test_spans_are_cut_at_the_quantiles_of_the_event_times_of_the_training_rows() -> None:
    times = np.arange(1.0, 101.0, dtype=np.float32)
    truth = np.stack([times, (times <= 40).astype(np.float32)], axis=1)
    fitted = Hazards("t/e").fitted(np.concatenate([truth, np.full((3, 2), np.nan, np.float32)]))
    assert fitted.cuts == pytest.approx(np.quantile(np.arange(1, 41), [0.25, 0.5, 0.75]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), n_classes=st.integers(2, 5))
def test_corn_losses_are_the_papers_up_to_the_number_of_thresholds(seed: int, n: int, n_classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(n, n_classes - 1)))
    ranks = generator.integers(0, n_classes, n)
    total, asked = 0.0, 0
    for k in range(n_classes - 1):
        subset = [i for i in range(n) if ranks[i] >= k]  # those above rank k - 1: all of them at first
        asked += len(subset)
        for i in subset:
            f = float(logits[i, k])
            total -= math.log(sigmoid(f)) if ranks[i] > k else math.log(sigmoid(f)) - f
    target = Ordinal("grade", tuple(str(k) for k in range(n_classes)))
    losses = target.losses(logits, torch.from_numpy(ranks[:, None].astype(np.float32)))
    assert float(losses.sum()) / asked == pytest.approx(total / asked)


def test_an_ordinal_loss_is_the_negative_logarithm_of_the_probability_of_the_class() -> None:
    target = Ordinal("grade", ("1", "2", "3", "4"))
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = target.scores(logits)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(4))
    losses = target.losses(logits, torch.arange(4.0)[:, None])
    assert losses.numpy() == pytest.approx(-np.log(np.diagonal(probabilities)))


def test_probabilities_of_being_above_never_rise_with_the_class() -> None:
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    scores = Ordinal("grade", tuple("12345")).scores(logits)
    assert (scores >= 0).all()


def test_losses_of_classes_labels_and_numbers_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    codes = torch.tensor([0, 1, 2, 2, 1, 0])
    several = torch.randint(0, 2, (6, 3), generator=generator).float()
    numbers = torch.randn(6, 1, generator=generator) * 9 + 4
    of_classes = Classes("a", ("x", "y", "z")).losses(logits, codes[:, None].float())
    expected = functional.cross_entropy(logits, codes)
    assert of_classes.mean().item() == pytest.approx(expected.item())
    of_labels = MultiLabel("a", ("x", "y", "z")).losses(logits, several)
    expected = functional.binary_cross_entropy_with_logits(logits, several)
    assert of_labels.mean().item() == pytest.approx(expected.item())
    of_numbers = Regression("a", 4.0, 9.0).losses(logits[:, :1], numbers)
    expected = functional.smooth_l1_loss(logits[:, :1], (numbers - 4) / 9)
    assert of_numbers.mean().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("target", [Classes("a", ("x", "y", "z")), Ordinal("a", ("1", "2", "3"))])
def test_balance_makes_the_classes_weigh_alike_and_leaves_the_mean(target: Classes) -> None:
    truth = np.array([[0]] * 6 + [[1]] * 3 + [[2]] + [[np.nan]] * 4, dtype=np.float32)
    weights = target.balance(truth)
    assert weights is not None
    counts = torch.tensor([6.0, 3, 1])
    assert len(set((weights * counts).tolist())) == 1
    assert float((weights * counts).sum()) == pytest.approx(10)
    logits, rows = torch.zeros(14, target.n_outputs), torch.from_numpy(truth)
    plain, balanced = (target.losses(logits, rows, some) for some in (None, weights))
    assert balanced[:6].numpy() == pytest.approx((plain[:6] * weights[0]).numpy())


def test_balance_makes_having_and_not_having_a_label_weigh_alike() -> None:
    target = MultiLabel("a", ("x", "y"))
    truth = np.array([[1, 1], [0, 1], [0, 1], [0, 0], [np.nan, np.nan]], dtype=np.float32)
    weights = target.balance(truth)
    assert weights is not None
    assert weights.numpy() == pytest.approx(np.array([[4 / 6, 2], [2, 4 / 6]]))
    losses = target.losses(torch.zeros(5, 2), torch.from_numpy(truth), weights)
    assert float(losses.sum()) == pytest.approx(4 * math.log(2))
    assert losses[-1] == 0


def test_a_label_weighs_the_same_whether_or_not_the_bag_has_the_others() -> None:
    task = Task((Classes("a", ("x", "y")), Regression("b")))
    logits = torch.tensor([[1.0, 0.0, 2.0]])
    both, first, second, none = (
        float(task.criterion(torch.tensor([row])).losses(logits))
        for row in ([1.0, 0.5], [1.0, math.nan], [math.nan, 0.5], [math.nan, math.nan])
    )
    assert both == pytest.approx(first + second)
    assert none == 0
    assert first == pytest.approx(float(task.targets[0].losses(logits[:, :2], torch.tensor([[1.0]]))) / 2)


def test_only_a_lone_target_of_classes_tells_a_head_the_classes_of_the_bags() -> None:
    truth = torch.tensor([[1.0], [math.nan]])
    found = Task((Classes("a", ("x", "y")),)).criterion(truth).classes
    assert found is not None
    assert found.tolist() == [1, -1]
    assert Task((Ordinal("a", ("1", "2")),)).criterion(truth).classes is None
    assert Task((Classes("a", ("x", "y")), Regression("b"))).criterion(truth.repeat(1, 2)).classes is None


def test_losses_of_half_precision_are_summed_in_float32() -> None:
    task = Task((Cox("t/e"), Ordinal("a", ("1", "2", "3"))))
    logits, truth = torch.randn(64, 3).bfloat16(), torch.tensor([[1.0, 1.0, 2.0]]).repeat(64, 1)
    found = task.criterion(truth).losses(logits)
    assert found.dtype == torch.float32
    assert found.tolist() == task.criterion(truth).losses(logits.float()).tolist()
