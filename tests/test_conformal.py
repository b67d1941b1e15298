from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm.conformal import SHAPE, ConformalSets, conformal_block, members
from pathfm.tables import misfit
from pathfm.targets import Classes

TARGET = Classes("type", ("benign", "common", "rare"))
SHARES = (0.6, 0.3, 0.1)


def _drawn(rng: np.random.Generator, n: int, strength: float = 1.5) -> tuple[Any, Any]:
    """Truth and probabilities of rows that hang together, of classes of unlike size."""
    truth = rng.choice(3, size=n, p=SHARES)
    logits = rng.normal(size=(n, 3)) + strength * np.eye(3)[truth] + np.log(SHARES)
    odds = np.exp(logits)
    return truth[:, None].astype(np.float32), odds / odds.sum(axis=1, keepdims=True)


def _binary(scores: list[float], coverage: float) -> ConformalSets:
    """Sets of two classes, of the first of which there are rows with these probabilities."""
    p = np.array([[one, 1 - one] for one in scores])
    return ConformalSets.fit(Classes("x", ("a", "b")), np.zeros((len(p), 1), np.float32), p, coverage)


def test_the_quantile_is_the_rank_of_the_paper() -> None:
    # n = 9 at 0.8: the 8th smallest of 0.1, 0.2, ... 0.9
    assert _binary([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0.8).quantiles[0] == pytest.approx(0.8)
    # n = 19 at 0.95: (19 + 1) 0.95 is 19, the largest, although floats make it a little more
    assert _binary([k / 20 for k in range(1, 20)], 0.95).quantiles[0] == pytest.approx(0.95)
    assert _binary([0.5] * 18, 0.95).quantiles == (math.inf, math.inf)


def test_a_class_with_too_few_patients_is_in_every_set_and_the_block_says_so() -> None:
    truth, p = _drawn(np.random.default_rng(0), 60)
    truth[truth == 2] = 0
    sets = ConformalSets.fit(TARGET, truth, p, 0.9)
    assert sets.uncalibrated == ["rare"]
    assert sets.sets(p)[:, 2].all()
    table = pd.DataFrame({"label": TARGET.texts(truth), "set": sets.texts(p)})
    notes = conformal_block(table, TARGET, 0.9, [sets])["notes"]
    assert any("fewer than 9 patients of class rare" in note for note in notes)


def _coverage(draws: int, coverage: float) -> tuple[list[float], list[float]]:
    """Of each class the mean over calibration draws of the share of new patients whose set holds it, and its deviation."""
    rng = np.random.default_rng(0)
    held = np.empty((draws, 3))
    for draw in range(draws):
        sets = ConformalSets.fit(TARGET, *_drawn(rng, 300), coverage)
        truth, p = _drawn(rng, 3000)
        is_in = sets.sets(p)[np.arange(len(p)), truth[:, 0].astype(int)]
        held[draw] = [is_in[truth[:, 0] == index].mean() for index in range(3)]
    return list(held.mean(axis=0)), list(held.std(axis=0) / math.sqrt(draws))


def _require_coverage(draws: int, coverage: float) -> None:
    """Within simulation error at least the promise, and no more than 1 / (n + 1) above it; n varies around its mean."""
    for share, mean, error in zip(SHARES, *_coverage(draws, coverage), strict=True):
        assert coverage - 3 * error <= mean <= coverage + 1.2 / (300 * share + 1) + 3 * error
        print(f"class of {share:.0%}: sets at {coverage} hold it in {mean:.4f} (error {error:.4f}), {draws} draws")


def test_each_class_is_in_its_sets_as_often_as_promised_the_rare_one_too() -> None:
    _require_coverage(60, 0.9)


@pytest.mark.long
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_each_class_is_in_its_sets_as_often_as_promised_over_1000_calibration_draws(coverage: float) -> None:
    _require_coverage(1000, coverage)


def test_one_quantile_for_all_classes_would_have_failed_the_rare_one() -> None:
    rng = np.random.default_rng(0)
    truth, p = _drawn(rng, 3000)
    true = np.take_along_axis(p, truth.astype(int), axis=1)[:, 0]
    pooled = np.quantile(1 - true, 0.9)
    rare = truth[:, 0] == 2
    assert (1 - true <= pooled)[rare].mean() < 0.8
    sets = ConformalSets.fit(TARGET, truth, p, 0.9)
    assert sets.sets(p)[rare, 2].mean() >= 0.9


@given(st.lists(st.text(st.sampled_from("a|\\;, 1"), min_size=1), min_size=2, max_size=4, unique=True), st.data())
def test_a_cell_of_the_column_set_reads_back_whatever_the_classes_are_called(names: list[str], data: Any) -> None:
    target = Classes("x", tuple(names))
    sets = ConformalSets(0.9, target.classes, (0.5,) * len(names), (9,) * len(names))
    p = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.9]), min_size=len(names), max_size=len(names))))[None]
    assert members(sets.texts(p)[0]) == [name for name, one in zip(names, p[0], strict=True) if one > 0.5]


def test_the_block_counts_what_was_held_what_abstained_and_how_much_of_the_rest_is_right() -> None:
    target = Classes("cancer", ("0", "1"))
    sets = ["0", "0", "0|1", "1", "", "1", "0", "0|1", "0"]
    table = pd.DataFrame({"label": ["0", "0", "0", "0", "1", "1", "1", "1", ""], "set": sets})
    block = conformal_block(table, target, 0.9)
    assert misfit(json.loads(json.dumps(block)), SHAPE) == ""
    assert [(block["classes"][name]["k"], block["classes"][name]["n"]) for name in "01"] == [(3, 4), (2, 4)]
    assert (block["overall"]["k"], block["overall"]["n"]) == (5, 8)
    assert (block["abstained"]["k"], block["abstained"]["n"]) == (3, 8)
    assert (block["empty"], block["several"]) == (1, 2)
    assert (block["right_of_rest"]["k"], block["right_of_rest"]["n"]) == (3, 5)
    assert block["notes"] == []


def test_a_promise_that_the_patients_speak_against_is_named() -> None:
    target = Classes("cancer", ("0", "1"))
    table = pd.DataFrame({"label": ["0"] * 40 + ["1"] * 40, "set": ["0"] * 60 + ["1"] * 20})
    (note,) = conformal_block(table, target, 0.9)["notes"]
    assert note.startswith("the sets hold class 1 in 20 of its 40 patients")


def test_a_block_of_no_patients_is_all_unknown() -> None:
    table = pd.DataFrame({"label": pd.Series(dtype=str), "set": pd.Series(dtype=str)})
    block = conformal_block(table, TARGET, 0.9)
    assert misfit(block, SHAPE) == ""
    assert block["abstained"]["value"] is None


def test_sets_survive_json() -> None:
    truth, p = _drawn(np.random.default_rng(1), 40)
    truth[truth == 1] = np.nan
    sets = ConformalSets.fit(TARGET, truth, p, 0.8)
    assert ConformalSets.of_facts(TARGET, json.loads(json.dumps(sets.facts(), allow_nan=False))) == sets
    assert sets.counts[1] == 0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"coverage": 1}, "coverage"),
        ({"coverage": "0.9"}, "coverage"),
        ({"coverage": True}, "coverage"),
        ({"quantiles": [0.1, 0.2]}, "quantiles"),
        ({"quantiles": [0.1, 0.2, 1.5]}, "quantiles"),
        ({"quantiles": [0.1, 0.2, math.nan]}, "quantiles"),
        ({"counts": [1, 2, -1]}, "counts"),
        ({"counts": None}, "counts"),
    ],
)
def test_facts_that_make_no_sense_are_refused_and_the_key_is_named(changes: dict[str, Any], key: str) -> None:
    facts = {"coverage": 0.9, "quantiles": [0.1, None, 1], "counts": [9, 0, 20]}
    ConformalSets.of_facts(TARGET, facts)
    with pytest.raises(ValueError, match=f"key 'conformal.{key}'"):
        ConformalSets.of_facts(TARGET, facts | changes)


def test_patients_whose_decision_contradicts_their_one_class_are_counted_abstentions_are_not() -> None:
    target = Classes("type", ("none", "breast", "lung"))
    rows = [
        ("none", "none", "negative"),
        ("none", "none", "positive"),
        ("breast", "breast", "negative"),
        ("lung", "breast", "positive"),
        ("lung", "none|lung", "negative"),
        ("lung", "", "positive"),
        ("lung", "lung", ""),
        ("", "none", "positive"),
    ]
    table = pd.DataFrame(rows, columns=["label", "set", "decision"])
    (note,) = conformal_block(table, target, 0.9)["notes"]
    assert note.startswith("in 2 of 4 patients whose set is one class the decision says otherwise")
    assert conformal_block(table[["label", "set"]], target, 0.9)["notes"] == []
