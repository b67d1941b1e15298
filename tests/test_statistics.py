"""Each statistic against an independent reference: statsmodels, scikit-learn, SciPy, published values, or brute force."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import CensoredData, logrank, norm
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve, roc_auc_score
from statsmodels.duration.survfunc import SurvfuncRight, survdiff
from statsmodels.stats.proportion import proportion_confint

from pathfm.calibrationblock import SHAPE as CALIBRATION_SHAPE
from pathfm.calibrationblock import calibration_block
from pathfm.calibrationfigures import (
    brier,
    calibration_error,
    calibration_intercept,
    calibration_slope,
    mass_bins,
    murphy,
)
from pathfm.cohortfigures import cohort_figures, paired_delong
from pathfm.curves import precision_recall_band
from pathfm.delong import delong, delong_difference
from pathfm.metrics import UNKNOWN, Scored
from pathfm.netbenefit import net_benefit
from pathfm.proportions import (
    PREDICTIVE_SHAPE,
    SHAPE,
    claim_note,
    clustered_proportion,
    negatives_needed,
    predictive_values,
    proportion,
)
from pathfm.survivalcurves import kaplan_meier, log_rank
from pathfm.tables import misfit
from pathfm.targets import Classes, MultiLabel


class Question(NamedTuple):
    name: str
    positive: Any
    score: Any


def example(seed: int, n: int, *, ties: bool = False) -> tuple[Any, Any]:
    """Which rows are positive, and probabilities that know something of it."""
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.4
    positive[:2] = [True, False]
    probability = expit(generator.normal(size=n) + 1.5 * positive - 1)
    return positive, np.round(probability, 1).clip(0.1, 0.9) if ties else probability


def alone(positive: Any, score: Any) -> Scored:
    n = len(score)
    return Scored(positive[:, None].astype(np.float32), score[:, None], np.arange(n), positive.astype(int), ("",) * n)


def once(metric: Any, positive: Any, probability: Any) -> float:
    return float(metric(positive, probability, np.ones((1, len(positive))))[0])


@pytest.mark.parametrize(
    ("k", "n", "wilson", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_intervals_of_a_share_are_those_that_newcombe_published(k: int, n: int, wilson: Any, exact: Any) -> None:
    found = proportion(k, n)  # Statistics in Medicine 17:857 (1998), table I
    assert (found["low"], found["high"]) == pytest.approx(wilson, abs=5.1e-5)
    assert (found["exact_low"], found["exact_high"]) == pytest.approx(exact, abs=5.1e-5)
    assert found["value"] == k / n


def test_intervals_of_a_share_are_those_of_statsmodels_also_at_the_ends() -> None:
    for n in (1, 7, 60):
        for k in range(n + 1):
            found = proportion(k, n)
            expected = proportion_confint(k, n, method="wilson")
            assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-12)
            low, high = proportion_confint(k, n, method="beta")
            assert found["exact_low"] == pytest.approx(0.0 if k == 0 else low)
            assert found["exact_high"] == pytest.approx(1.0 if k == n else high)
            assert misfit(dict(found), SHAPE) == ""
    assert proportion(0, 0)["value"] is None
    assert misfit(dict(proportion(0, 0)), SHAPE) == ""


def test_a_lower_bound_of_999_takes_3688_negatives_and_no_fewer() -> None:
    for bound, needed in ((0.999, 3688), (0.99, 368)):
        assert negatives_needed(bound) == needed
        assert proportion(needed, needed)["exact_low"] >= bound > proportion(needed - 1, needed - 1)["exact_low"]


def test_a_specificity_that_looks_certain_has_a_note_until_the_numbers_bear_it() -> None:
    note = claim_note(proportion(500, 500))
    assert note is not None
    assert "none of 500 negatives was" in note
    assert "99.2 %" in note  # the exact limit is 0.99265
    assert "3,688" in note
    assert "2 of 3,000 negatives were" in (claim_note(proportion(2998, 3000)) or "")
    assert claim_note(proportion(3688, 3688)) is None
    assert claim_note(proportion(95, 100)) is None
    assert claim_note(proportion(0, 0)) is None


def test_the_share_of_slides_is_resampled_by_patient() -> None:
    generator = np.random.default_rng(0)
    hit = np.repeat(generator.random(50) < 0.8, 6)
    patients = np.repeat(np.arange(50), 6)
    scored = Scored(hit[:, None].astype(np.float32), np.zeros((300, 1)), patients, np.zeros(50, int), ("",) * 50)
    asked = np.ones(300, bool)
    found, naive, of_patients = (
        clustered_proportion(hit, asked, scored),
        proportion(hit.sum(), 300),
        proportion(hit.sum() // 6, 50),
    )
    width = [one["high"] - one["low"] for one in (found, naive, of_patients)]
    assert width[0] == pytest.approx(width[2], rel=0.15)  # six slides that are alike are one
    assert width[0] > 2 * width[1]
    assert (found["exact_low"], found["exact_high"]) == (None, None)
    certain = clustered_proportion(asked, asked, scored)
    assert (certain["low"], certain["high"]) == (proportion(50, 50)["low"], 1.0)
    assert clustered_proportion(hit, ~asked, scored) == proportion(0, 0)


@pytest.mark.parametrize(("hits", "correct"), [(45, 190), (50, 190), (45, 200), (50, 200), (1, 199)])
def test_predictive_values_are_those_of_bayes_within_limits_that_stay_shares(hits: int, correct: int) -> None:
    sensitivity, specificity = proportion(hits, 50), proportion(correct, 200)
    found = predictive_values(sensitivity, specificity, 0.02)
    a, b = hits / 50 * 0.02, (1 - correct / 200) * 0.98
    assert found["ppv"]["value"] == pytest.approx(a / (a + b))
    c, d = correct / 200 * 0.98, (1 - hits / 50) * 0.02
    assert found["npv"]["value"] == pytest.approx(c / (c + d))
    for name in ("ppv", "npv"):
        assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= 1
        assert found[name]["low"] < found[name]["high"]
    assert misfit(dict(found), PREDICTIVE_SHAPE) == ""


def test_predictive_values_that_nothing_is_known_of_are_unknown() -> None:
    nothing = predictive_values(proportion(0, 0), proportion(9, 10), 0.1)
    assert nothing["ppv"] == nothing["npv"] == UNKNOWN
    never = predictive_values(proportion(0, 10), proportion(10, 10), 0.1)  # nobody was called positive
    assert never["ppv"] == UNKNOWN
    assert never["npv"]["value"] == pytest.approx(0.9)


def brute_components(positive: Any, score: Any) -> tuple[Any, Any]:
    kernel = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    return kernel.mean(axis=1), kernel.mean(axis=0)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_definition_of_its_paper(ties: bool) -> None:
    for seed in range(5):
        positive, first = example(seed, 60, ties=ties)
        second = np.round(first + np.random.default_rng(seed).normal(0, 0.2, 60), 1 if ties else 9)
        parts = [brute_components(positive, score) for score in (first, second)]
        covariance = sum(np.cov([one[side] for one in parts]) / len(parts[0][side]) for side in (0, 1))
        areas = [roc_auc_score(positive, score) for score in (first, second)]
        found = delong(positive, first)
        assert found["value"] == pytest.approx(areas[0])
        half = norm.ppf(0.975) * np.sqrt(covariance[0, 0]) / (areas[0] * (1 - areas[0]))
        assert logit([found["low"], found["high"]]) == pytest.approx(logit(areas[0]) + np.array([-half, half]))
        both = delong_difference(positive, first, second)
        spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert both["difference"]["value"] == pytest.approx(areas[0] - areas[1])
        assert both["difference"]["high"] - both["difference"]["low"] == pytest.approx(2 * norm.ppf(0.975) * spread)
        assert both["p"] == pytest.approx(2 * norm.sf(abs(areas[0] - areas[1]) / spread))


def test_delong_of_repeats_is_of_their_mean_and_of_equal_models_no_difference() -> None:
    positive, first = example(0, 80)
    second = first + np.random.default_rng(1).normal(0, 0.3, 80)
    both = np.stack([first, second])
    assert delong(positive, both)["value"] == pytest.approx(np.mean([roc_auc_score(positive, s) for s in both]))
    assert delong(positive, np.stack([first] * 3)) == pytest.approx(delong(positive, first))
    same = delong_difference(positive, first, first)
    assert same == {"difference": {"value": 0.0, "low": 0.0, "high": 0.0}, "p": 1.0}
    halved = delong_difference(positive, first, second)["difference"]["value"] / 2
    assert delong_difference(positive, first, both)["difference"]["value"] == pytest.approx(halved)


def test_sides_that_do_not_overlap_have_an_interval_with_a_width_and_a_lone_side_has_none() -> None:
    positive = np.arange(40) < 15
    perfect, inverted = delong(positive, positive * 1.0), delong(positive, ~positive * 1.0)
    assert perfect["value"] == perfect["high"] == 1.0
    assert 0.8 < perfect["low"] < 0.97
    assert inverted["high"] == pytest.approx(1 - perfect["low"])
    larger = delong(np.repeat(positive, 10), np.repeat(positive, 10) * 1.0)
    assert larger["low"] > perfect["low"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one_side in (np.ones(5, bool), np.zeros(5, bool), np.zeros(0, bool)):
            assert delong(one_side, np.linspace(0, 1, len(one_side))) == UNKNOWN
            assert delong_difference(one_side, np.zeros(len(one_side)), np.zeros(len(one_side)))["p"] is None
        lone = delong(np.arange(5) == 2, np.array([0.1, 0.4, 0.3, 0.2, 0.0]))  # one positive has no spread
        assert lone["value"] == 0.75
        assert lone["high"] - lone["low"] > 0.6
        with_one = delong_difference(np.arange(5) == 2, np.arange(5.0), np.arange(5.0)[::-1])
        assert with_one["p"] is None


@pytest.mark.parametrize("repeats", [1, 3])
def test_scores_without_spread_have_an_interval_with_a_width_and_differences_that_are_not_known(repeats: int) -> None:
    positive = np.arange(45) < 5
    constant, thirds = np.full((repeats, 45), 0.5), np.where(positive, 0.5, np.repeat([0.2, 0.5, 0.8], 15))
    found = delong(positive, constant)
    assert found["value"] == 0.5
    assert found["low"] < 0.3
    assert found["high"] > 0.7
    perfect = positive * 1.0
    other = perfect - np.linspace(0, 0.1, 45)  # in another order, but as perfect
    for first, second in ((perfect, constant), (constant, ~positive * 1.0), (perfect, other)):
        assert delong_difference(positive, first, second) == {"difference": UNKNOWN, "p": None}
    for score in (perfect, constant, thirds):
        alike = delong_difference(positive, score, 2 * score - 1)
        assert alike == {"difference": {"value": 0.0, "low": 0.0, "high": 0.0}, "p": 1.0}


@pytest.mark.parametrize("ties", [False, True])
def test_brier_is_scikit_learns_and_its_parts_sum_to_it(ties: bool) -> None:
    positive, probability = example(2, 90, ties=ties)
    parts = murphy(positive, probability)
    assert once(brier, positive, probability) == pytest.approx(brier_score_loss(positive, probability))
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(
        brier_score_loss(positive, probability)
    )
    assert parts.uncertainty == pytest.approx(positive.mean() * (1 - positive.mean()))
    assert min(parts) >= 0
    assert murphy(positive[:0], probability[:0]) == (None, None, None)


def test_parts_of_the_brier_score_are_murphys_where_the_shares_rise_with_the_probability() -> None:
    probability = np.repeat([0.1, 0.3, 0.8], [20, 10, 30])
    positive = np.concatenate([np.arange(20) < 4, np.arange(10) < 5, np.arange(30) < 21])
    n, said, share, base = np.array([20, 10, 30]), np.array([0.1, 0.3, 0.8]), np.array([0.2, 0.5, 0.7]), 30 / 60
    parts = murphy(positive, probability)
    assert parts.reliability == pytest.approx((n * (said - share) ** 2).sum() / 60)
    assert parts.resolution == pytest.approx((n * (share - base) ** 2).sum() / 60)
    assert parts.uncertainty == pytest.approx(0.25)


def test_calibration_error_is_that_of_bins_of_equal_mass_and_equal_probabilities_share_one() -> None:
    positive, probability = example(3, 100)
    value = calibration_error(alone(positive, probability))["value"]
    order = np.argsort(probability).reshape(10, 10)
    gaps = [abs(probability[rows].mean() - positive[rows].mean()) for rows in order]
    assert value == pytest.approx(np.mean(gaps))
    tied, rounded = example(3, 100, ties=True)
    bins = mass_bins(rounded)
    assert all(len(set(bins[rounded == value])) == 1 for value in rounded)
    shuffled = np.random.default_rng(0).permutation(100)
    again = calibration_error(alone(tied[shuffled], rounded[shuffled]))
    assert again["value"] == pytest.approx(calibration_error(alone(tied, rounded))["value"])
    assert calibration_error(alone(tied[:0], rounded[:0])) == UNKNOWN
    assert mass_bins(np.full(50, 0.5)).max() + 1 <= 10
    assert mass_bins(np.linspace(0, 1, 12)).max() + 1 == 2


def test_calibration_slope_and_intercept_are_those_of_statsmodels() -> None:
    for seed in range(4):
        positive, probability = example(seed, 120)
        x = logit(probability)
        free = sm.GLM(positive.astype(float), sm.add_constant(x), family=sm.families.Binomial()).fit()
        fixed = sm.GLM(positive.astype(float), np.ones((120, 1)), family=sm.families.Binomial(), offset=x).fit()
        assert once(calibration_slope, positive, probability) == pytest.approx(free.params[1], rel=1e-6)
        assert once(calibration_intercept, positive, probability) == pytest.approx(fixed.params[0], abs=1e-6)


def test_probabilities_that_separate_have_no_slope_and_certain_ones_are_no_numpy_warning() -> None:
    positive = np.arange(20) < 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(once(calibration_slope, positive, np.where(positive, 0.9, 0.2)))
        assert np.isnan(once(calibration_slope, positive, np.full(20, 0.4)))
        assert np.isnan(once(calibration_intercept, np.ones(5, bool), np.full(5, 0.4)))
        assert np.isfinite(once(calibration_intercept, positive, np.where(positive, 1.0, 0.0)))
        empty = np.zeros(0)
        for metric in (brier, calibration_slope, calibration_intercept):
            assert np.isnan(metric(empty > 0, empty, np.ones((3, 0)))).all()


def test_figures_of_calibration_count_a_row_as_often_as_it_weighs() -> None:
    positive, probability = example(5, 40)
    weights = np.random.default_rng(0).integers(0, 4, (6, 40))
    for metric in (brier, calibration_slope, calibration_intercept):
        found = metric(positive, probability, weights.astype(float))
        repeated = [once(metric, positive.repeat(w), probability.repeat(w)) for w in weights]
        assert found == pytest.approx(repeated)


def test_the_block_of_calibration_has_every_figure_with_its_interval_and_leaves_out_what_is_no_probability() -> None:
    positive, probability = example(6, 150)
    questions = [Question("tumour", positive, probability), Question("sum", positive, probability * 2)]
    block = calibration_block(questions, alone(positive, probability), "temperature")
    assert misfit(block, CALIBRATION_SHAPE) == ""
    assert list(block["outcomes"]) == ["tumour"]
    found = block["outcomes"]["tumour"]
    assert (found["n"], found["n_positive"]) == (150, int(positive.sum()))
    for name in ("brier", "ece", "slope", "intercept"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    for nobody in (positive[:0], np.zeros(30, bool)):
        one = [Question("tumour", nobody, probability[: len(nobody)])]
        empty = calibration_block(one, alone(nobody, probability[: len(nobody)]))
        assert misfit(empty, CALIBRATION_SHAPE) == ""
        assert empty["outcomes"]["tumour"]["slope"] == UNKNOWN


def test_net_benefit_is_its_definition_and_at_a_prevalence_that_of_reweighted_rows() -> None:
    positive, probability = example(7, 100)
    curve = net_benefit(positive, probability, alone(positive, probability))
    assert curve is not None
    for at in (0.1, 0.35, 0.6):
        index = int(np.flatnonzero(np.isclose(curve.thresholds, at))[0])
        acted, odds = probability >= curve.thresholds[index], at / (1 - at)
        assert curve.model[index] == pytest.approx(((acted & positive).sum() - odds * (acted & ~positive).sum()) / 100)
        assert curve.treat_all[index] == pytest.approx(positive.mean() - odds * (~positive).mean())
    assert np.mean((curve.low <= curve.model) & (curve.model <= curve.high)) > 0.95
    rare = net_benefit(positive, probability, alone(positive, probability), np.array([0.2]), prevalence=0.05)
    assert rare is not None
    acted = probability >= 0.2
    expected = 0.05 * acted[positive].mean() - 0.95 * 0.25 * acted[~positive].mean()
    assert rare.model == pytest.approx([expected])
    assert net_benefit(np.ones(9, bool), np.linspace(0, 1, 9), alone(np.ones(9, bool), np.linspace(0, 1, 9))) is None


# Freireich et al., Blood 21:699 (1963), the remissions of Cox's paper of 1972: weeks, 0 where censored
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_survival_of_freireichs_patients_is_what_textbooks_and_r_give() -> None:
    curve = kaplan_meier(np.array(TREATED, float), np.array(RELAPSED, bool))
    assert curve is not None
    at = dict(zip(curve.time, curve.survival, strict=True))
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert [at[week] for week in published] == pytest.approx(list(published.values()), abs=5.1e-4)
    assert curve.at_risk[:4].tolist() == [21, 17, 16, 15]
    time = np.array(TREATED + PLACEBO, float)
    event = np.array(RELAPSED + [1] * 21, bool)
    group = np.repeat([0, 1], 21)
    p = log_rank(time, event, group)
    assert norm.isf(p / 2) ** 2 == pytest.approx(16.793, abs=5e-4)  # R survival: survdiff, chisq = 16.8


def test_survival_and_its_band_are_those_of_statsmodels_and_log_rank_that_of_scipy_and_statsmodels() -> None:
    generator = np.random.default_rng(4)
    time, event = np.ceil(generator.exponential(8, 90)), generator.random(90) < 0.6
    group = generator.integers(3, size=90)
    curve, other = kaplan_meier(time, event), SurvfuncRight(time, event.astype(int))
    assert curve is not None
    steps = np.isin(curve.time, other.surv_times)
    assert curve.survival[steps] == pytest.approx(other.surv_prob)
    inside = (other.surv_prob > 0) & (other.surv_prob < 1)
    left = other.surv_prob[inside]
    greenwood = other.surv_prob_se[inside] / np.abs(left * np.log(left))
    low = left ** np.exp(norm.ppf(0.975) * greenwood)
    assert curve.low[steps][inside] == pytest.approx(low)
    two = group < 2
    sides = [CensoredData.right_censored(time[group == k], ~event[group == k]) for k in (0, 1)]
    assert log_rank(time[two], event[two], group[two]) == pytest.approx(logrank(*sides).pvalue)
    assert log_rank(time, event, group) == pytest.approx(survdiff(time, event.astype(int), group)[1])
    assert log_rank(time, event, np.zeros(90, int)) is None
    assert log_rank(time, np.zeros(90, bool), group) is None
    assert kaplan_meier(time[:0], event[:0]) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kaplan_meier(time[:3], np.zeros(3, bool)) is not None


@pytest.mark.parametrize("ties", [False, True])
def test_precision_recall_band_follows_scikit_learns_steps_and_encloses_them(ties: bool) -> None:
    positive, score = example(8, 120, ties=ties)
    band = precision_recall_band(positive, score, alone(positive, score))
    assert band is not None
    precision, recall, _ = precision_recall_curve(positive, score)
    expected = [precision[recall >= max(at, 1e-9) - 1e-12][-1] for at in band.recall]
    assert band.precision == pytest.approx(expected)
    assert band.prevalence == positive.mean()
    assert np.mean((band.low <= band.precision) & (band.precision <= band.high)) > 0.95
    assert np.mean(band.precision) == pytest.approx(average_precision_score(positive, score), abs=0.02)
    assert precision_recall_band(np.zeros(9, bool), score[:9], alone(np.zeros(9, bool), score[:9])) is None


def test_delongs_interval_stands_beside_the_bootstraps_where_there_is_one_question() -> None:
    positive, score = example(9, 80)
    rows = pd.DataFrame({"slide_id": [f"s{i}" for i in range(80)], "patient_id": [f"p{i}" for i in range(80)]})
    two = rows.assign(label=positive.astype(int).astype(str), prob_0=1 - score, prob_1=score)
    block = cohort_figures(two, Classes("a", ("0", "1")))["patient"]
    assert block["auroc_delong"] == pytest.approx(delong(positive, score))
    assert block["auroc_delong"]["low"] == pytest.approx(block["auroc"]["low"], abs=0.03)
    assert block["average_precision"]["value"] == pytest.approx(average_precision_score(positive, score))
    one = rows.assign(label=np.where(positive, "x", "none"), prob_x=score)
    assert "auroc_delong" in cohort_figures(one, MultiLabel("a", ("x",)))["patient"]
    three = rows.assign(label=[str(i % 3) for i in range(80)], prob_0=score, prob_1=1 - score, prob_2=0.0)
    assert "auroc_delong" not in cohort_figures(three, Classes("a", tuple("012")))["patient"]


def test_two_predictions_of_one_question_are_compared_by_delong_over_the_patients_that_both_score() -> None:
    positive, score = example(10, 60)
    other = np.clip(score + np.random.default_rng(0).normal(0, 0.2, 60), 0, 1)
    rows = pd.DataFrame({"slide_id": [f"s{i:02}" for i in range(60)], "patient_id": [f"p{i:02}" for i in range(60)]})
    rows = rows.assign(label=positive.astype(int).astype(str))
    first, second = (rows.assign(prob_0=1 - one, prob_1=one) for one in (score, other))
    target = Classes("a", ("0", "1"))
    found = paired_delong(first, second.sample(frac=1, random_state=0).iloc[5:], target)
    kept = second.sample(frac=1, random_state=0).iloc[5:].index.sort_values()
    expected = delong_difference(positive[kept], score[kept], other[kept])
    assert found is not None
    assert found["p"] == pytest.approx(expected["p"])
    assert found["difference"] == pytest.approx(expected["difference"])
    three = Classes("a", ("0", "1", "2"))
    assert paired_delong(first.assign(prob_2=0.0), second.assign(prob_2=0.0), three) is None
