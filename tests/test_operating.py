from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import confusion_matrix, roc_curve

from pathfm.atpoint import SHAPE, at_point
from pathfm.errors import InputError
from pathfm.metrics import Scored
from pathfm.operating import choose, parse_rule
from pathfm.tables import misfit

scored_rows = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(positive for positive, _ in rows) < len(rows)
)


def arrays(rows: Any) -> tuple[Any, Any]:
    return np.array([positive for positive, _ in rows]), np.array([score for _, score in rows]) / 8


def shares(positive: Any, score: Any, threshold: float) -> tuple[float, float]:
    called = score >= threshold
    return float(called[positive].mean()), float((~called[~positive]).mean())


def every_cut(positive: Any, score: Any) -> list[tuple[float, float]]:
    return [shares(positive, score, threshold) for threshold in [*np.unique(score), 2.0]]


@pytest.mark.parametrize("text", ["specificity>=0.95", "sensitivity>=0.9", "cost:10/1", "cost:1/2.5", "youden"])
def test_a_rule_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_rule(text)) == text
    assert parse_rule(f"  {text.upper()} ") == parse_rule(text)


_NUMBERS = st.from_regex(r"[0-9]{0,20}\.?[0-9]{1,20}", fullmatch=True).filter(lambda text: float(text) > 0)


@given(kind=st.sampled_from(["specificity", "sensitivity", "cost"]), first=_NUMBERS, second=_NUMBERS)
@example(kind="cost", first="1000000", second="1")
@example(kind="cost", first="1234567", second="0.00001")
@example(kind="specificity", first="1", second="0.99999999999")
def test_any_rule_that_can_be_read_is_written_so_that_it_is_read_the_same(kind: str, first: str, second: str) -> None:
    share = second if float(second) <= 1 else f".{second.replace('.', '').lstrip('0')[:20]}"
    rule = parse_rule(f"cost:{first}/{second}" if kind == "cost" else f"{kind}>={share}")
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    ["", "specificity", "specificity>0.9", "specificity>=95%", "specificity>=95", "sensitivity>=0", "sensitivity>=nan",
     "cost:0/1", "cost:10", "cost:-1/2", "f1", "specificity>=0.9;sensitivity>=0.9", "specificity>=" + "9" * 10_000],
)  # fmt: skip
def test_another_text_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InputError, match=r"is no rule; write specificity>=0\.95, .*youden"):
        parse_rule(text)


@settings(max_examples=60, deadline=None)
@given(rows=scored_rows, bound=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_a_bound_is_held_with_one_to_spare_at_the_least_cost_to_the_other_side(rows: Any, bound: float) -> None:
    positive, score = arrays(rows)
    n = {"specificity": int((~positive).sum()), "sensitivity": int(positive.sum())}
    for kind, held, other in (("specificity", 1, 0), ("sensitivity", 0, 1)):
        found = shares(positive, score, choose(parse_rule(f"{kind}>={bound}"), positive, score).threshold)
        spare = [cut for cut in every_cut(positive, score) if cut[held] * n[kind] / (n[kind] + 1) >= bound - 1e-9] or [
            cut for cut in every_cut(positive, score) if cut[held] == 1
        ]
        best = max(cut[other] for cut in spare)
        assert found[other] == best
        assert found[held] == max(cut[held] for cut in spare if cut[other] == best)


@settings(max_examples=60, deadline=None)
@given(rows=scored_rows)
def test_youden_and_cost_are_the_best_of_all_cuts(rows: Any) -> None:
    positive, score = arrays(rows)
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    assert sum(shares(positive, score, choose(parse_rule("youden"), positive, score).threshold)) - 1 == pytest.approx(
        (tpr - fpr).max()
    )
    for prevalence in (None, 0.01, 0.6):
        share = positive.mean() if prevalence is None else prevalence

        def cost(cut: tuple[float, float], share: float = share) -> float:
            return float(10 * share * (1 - cut[0]) + (1 - share) * (1 - cut[1]))

        found = shares(positive, score, choose(parse_rule("cost:10/1"), positive, score, prevalence).threshold)
        assert cost(found) == pytest.approx(min(map(cost, every_cut(positive, score))))


@settings(max_examples=60, deadline=None)
@given(rows=scored_rows, rule=st.sampled_from(["specificity>=0.8", "sensitivity>=0.8", "cost:3/1", "youden"]))
def test_a_threshold_is_no_score_and_lies_in_the_middle_between_two(rows: Any, rule: str) -> None:
    positive, score = arrays(rows)
    threshold = choose(parse_rule(rule), positive, score).threshold
    assert threshold == 0 or threshold not in score
    below, above = score[score < threshold], score[score >= threshold]
    if len(below) and len(above):
        assert threshold == pytest.approx((below.max() + above.min()) / 2)


def test_a_threshold_between_neighbouring_floats_still_keeps_them_apart() -> None:
    low, high = 0.5, float(np.nextafter(0.5, 1))
    score = np.array([low] * 30 + [high] * 30)
    assert choose(parse_rule("youden"), score > low, score).threshold == high


def test_of_equal_cuts_a_specificity_takes_the_highest_and_a_sensitivity_the_lowest() -> None:
    score = np.arange(40) / 40
    positive = (
        score >= 0.5
    )  # every cut among the positives' 18 lowest, or the negatives' 18 highest, holds the other bound
    assert choose(parse_rule("specificity>=0.9"), positive, score).threshold == pytest.approx(19.5 / 40)
    mixed = positive.copy()
    mixed[[10, 30]] = mixed[[30, 10]]
    by_specificity = choose(parse_rule("specificity>=0.9"), mixed, score).threshold
    by_sensitivity = choose(parse_rule("sensitivity>=0.9"), mixed, score).threshold
    assert by_specificity == by_sensitivity == pytest.approx(19.5 / 40)
    assert choose(parse_rule("specificity>=1"), mixed, score).threshold == pytest.approx(30.5 / 40)
    assert choose(parse_rule("sensitivity>=1"), mixed, score).threshold == pytest.approx(9.5 / 40)


@pytest.mark.parametrize(
    ("rule", "threshold", "said"),
    [("specificity>=0.8", 0.75, "calling nobody positive"), ("sensitivity>=0.8", 0.0, "calling everybody positive"),
     ("youden", 0.0, "calling everybody positive")],
)  # fmt: skip
def test_scores_that_tell_nothing_apart_are_said_to_do_so(rule: str, threshold: float, said: str) -> None:
    choice = choose(parse_rule(rule), np.arange(20) % 2 == 0, np.full(20, 0.5))
    assert choice.threshold == threshold
    assert said in choice.notes[0]


def test_a_score_of_one_can_be_called_negative() -> None:
    positive, score = np.arange(20) % 2 == 0, np.ones(20)
    threshold = choose(parse_rule("specificity>=0.5"), positive, score).threshold
    assert threshold > 1
    assert threshold == pytest.approx(1)


def test_a_bound_that_so_few_cannot_hold_is_said_with_the_number_that_can() -> None:
    positive, score = np.arange(40) >= 20, np.arange(40) / 40
    choice = choose(parse_rule("specificity>=0.99"), positive, score)
    assert choice.notes == (
        "specificity>=0.99 cannot be expected of others with 20 without it, which takes 99:"
        " the threshold has all of them right",
    )
    assert choose(parse_rule("specificity>=0.95"), positive, score).notes == ()
    many = np.arange(200) >= 99
    assert choose(parse_rule("specificity>=0.99"), many, np.arange(200) / 200).notes == ()
    assert "nor with more" in choose(parse_rule("sensitivity>=1"), positive, score).notes[0]


@pytest.mark.parametrize(("one", "lacking"), [(True, "without it"), (False, "with it")])
@pytest.mark.parametrize("rule", ["specificity>=0.9", "sensitivity>=0.9", "cost:1/1", "youden"])
def test_nothing_is_chosen_where_one_side_has_nobody(rule: str, one: bool, lacking: str) -> None:
    with pytest.raises(InputError, match=f"nobody {lacking} among the 5"):
        choose(parse_rule(rule), np.full(5, one), np.arange(5) / 5)


def test_a_specificity_is_held_in_the_mean_by_those_who_were_not_there() -> None:
    generator, rule, found = np.random.default_rng(0), parse_rule("specificity>=0.95"), []
    for n in np.repeat([25, 60, 150], 300):
        positive = np.arange(n + 40) >= n
        score = norm.cdf(generator.normal(size=n + 40) + 1.8 * positive)
        found.append((n, norm.cdf(norm.ppf(choose(rule, positive, score).threshold))))
    means = {n: np.mean([value for size, value in found if size == n]) for n in (25, 60, 150)}
    assert all(0.95 - 0.004 <= mean <= 0.985 for mean in means.values()), means


def test_counts_at_a_point_are_those_of_a_confusion_matrix_and_every_share_has_its_interval() -> None:
    generator = np.random.default_rng(1)
    positive, called = generator.random(90) < 0.4, generator.random(90) < 0.5
    point = at_point(positive, called, 0.5, prevalence=0.01)
    matrix = confusion_matrix(positive, called)
    assert [[point["tn"], point["fp"]], [point["fn"], point["tp"]]] == matrix.tolist()
    assert point["ppv"]["k"] == point["tp"]
    assert point["npv"]["n"] == point["tn"] + point["fn"]
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        share: Any = point[name]  # type: ignore[literal-required]
        assert share["exact_low"] < share["low"] < share["value"] < share["high"] < share["exact_high"]
    assert point["at_prevalence"] is not None
    assert point["at_prevalence"]["ppv"]["value"] < point["ppv"]["value"]
    assert misfit(dict(point), SHAPE) == ""


def test_the_interval_of_slides_is_by_patient_and_has_no_exact_one() -> None:
    generator = np.random.default_rng(2)
    positive = np.repeat(np.arange(40) % 2 == 0, 6)
    called = np.repeat(generator.random(40) < 0.8, 6) == positive  # all slides of a patient are right, or none is
    patients = np.repeat(np.arange(40), 6)
    rows = Scored(
        positive[:, None].astype(np.float32), np.zeros((240, 2)), patients, np.arange(40) % 2 == 0, ("",) * 40
    )
    by_patient, alone = (at_point(positive, called, clusters=one)["sensitivity"] for one in (rows, None))
    assert by_patient["exact_low"] is None
    assert by_patient["value"] == alone["value"]
    assert by_patient["high"] - by_patient["low"] > 1.7 * (alone["high"] - alone["low"])  # type: ignore[operator]
