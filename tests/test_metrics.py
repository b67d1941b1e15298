from __future__ import annotations

import tracemalloc
import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from pathfm.cohortfigures import (
    by_patient,
    cohort_figures,
    is_scored,
    paired_difference,
    scored_patients,
    scored_slides,
)
from pathfm.metrics import (
    Figure,
    Metric,
    Scored,
    acceleration,
    auroc,
    average_precision,
    balanced_accuracy,
    difference,
    f1,
    figures,
)
from pathfm.targets import Classes, Cox, MultiLabel, Ordinal, Regression, Target

TARGET = Classes("cancer", ("0", "1"))


def once(metric: Metric, truth: Any, scores: Any) -> float:
    column = np.asarray(truth, dtype=np.float32)
    column = column[:, None] if column.ndim == 1 else column
    return float(metric(column, np.asarray(scores, dtype=np.float64), np.ones((1, len(column))))[0])


def alone(labels: Any, scores: Any) -> Scored:
    """Rows of one patient each."""
    n = len(labels)
    return Scored(labels[:, None].astype(np.float32), scores, np.arange(n), labels, ("",) * n)


def auroc_figure(scored: Scored) -> Figure:
    return figures([scored], {"auroc": auroc})["auroc"]


def table(labels: Any, probabilities: Any, patients: Any = None) -> pd.DataFrame:
    n = len(labels)
    frame = pd.DataFrame({"slide_id": [f"s{i}" for i in range(n)], "label": [str(v) for v in labels]})
    frame["patient_id"] = [f"p{i}" for i in range(n)] if patients is None else list(patients)
    for i, name in enumerate("01"):
        frame[f"prob_{name}"] = np.asarray(probabilities)[:, i]
    return frame


def random_scores(seed: int, n: int, n_classes: int, rounded: bool = False) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), generator.integers(n_classes, size=n - n_classes)])
    raw = generator.random((n, n_classes)) + 0.5 * np.eye(n_classes)[labels]
    raw = np.ceil(raw * 3) if rounded else raw
    return labels, raw / raw.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(6, 60), n_classes=st.integers(2, 4), rounded=st.booleans())
def test_point_estimates_equal_those_of_scikit_learn_also_with_ties(
    seed: int, n: int, n_classes: int, rounded: bool
) -> None:
    labels, probabilities = random_scores(seed, n, n_classes, rounded)
    predicted = probabilities.argmax(axis=1)
    if n_classes == 2:
        expected_auroc = roc_auc_score(labels, probabilities[:, 1])
        expected_f1 = f1_score(labels, predicted, zero_division=0)
        expected = average_precision_score(labels, probabilities[:, 1])
        assert once(average_precision, labels, probabilities) == pytest.approx(expected)
    else:
        expected_auroc = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(n_classes)])
        expected_f1 = f1_score(labels, predicted, average="macro", labels=list(range(n_classes)), zero_division=0)
    assert once(auroc, labels, probabilities) == pytest.approx(expected_auroc)
    assert once(f1, labels, probabilities) == pytest.approx(expected_f1)
    assert once(balanced_accuracy, labels, probabilities) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_multiclass_ranking_figures_are_scikit_learns_macro_one_vs_rest() -> None:
    labels, probabilities = random_scores(3, 80, 3)
    each = [average_precision_score(labels == k, probabilities[:, k]) for k in range(3)]
    assert once(average_precision, labels, probabilities) == pytest.approx(np.mean(each))
    assert once(auroc, labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_equal_seeds_give_equal_intervals_and_other_seeds_do_not() -> None:
    labels, probabilities = random_scores(1, 60, 2)
    first, again, other = (cohort_figures(table(labels, probabilities), TARGET, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["patient"]["auroc"]["low"] != other["patient"]["auroc"]["low"]


def test_intervals_enclose_the_value_and_shrink_with_patients() -> None:
    widths = []
    for n in (40, 400):
        labels, probabilities = random_scores(5, n, 2)
        block = cohort_figures(table(labels, probabilities), TARGET)["slide"]
        for figure in (block["auroc"], block["balanced_accuracy"], block["f1"]):
            assert figure["low"] <= figure["value"] <= figure["high"]
        widths.append(figure["high"] - figure["low"])
    assert widths[1] < widths[0] / 2


def test_bootstrap_interval_covers_the_true_auroc_about_as_often_as_it_says() -> None:
    # two normals one standard deviation apart: the true AUROC is Phi(1 / sqrt 2)
    true, covered, trials = 0.7602, 0, 100
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    for _ in range(trials):
        score = generator.normal(size=60) + labels
        probability = 1 / (1 + np.exp(-score))
        scored = alone(labels, np.stack([1 - probability, probability], 1))
        figure = auroc_figure(scored)
        covered += figure["low"] <= true <= figure["high"]
    assert 0.87 <= covered / trials <= 1.0


def test_resampling_patients_gives_wider_intervals_than_pretending_slides_are_independent() -> None:
    labels, probabilities = random_scores(2, 40, 2)
    ten_times = table(np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0), np.repeat(np.arange(40), 10))
    pretending = table(np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0))
    honest, naive = (cohort_figures(t, TARGET)["slide"]["auroc"] for t in (ten_times, pretending))
    once_each = cohort_figures(table(labels, probabilities, np.arange(40)), TARGET)["slide"]["auroc"]
    assert honest == pytest.approx(once_each)
    assert honest["high"] - honest["low"] > 2 * (naive["high"] - naive["low"])


def test_patient_probability_is_the_mean_over_its_slides() -> None:
    frame = table([1, 1, 0], [[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]], ["a", "a", "b"])
    patients = by_patient(scored_slides(frame, TARGET), TARGET)
    assert patients.names == ("a", "b")
    assert patients.scores[:, 1] == pytest.approx([0.4, 0.1])
    assert cohort_figures(frame, TARGET)["patient"]["n"] == 2


def test_a_patients_score_is_of_all_its_scored_slides_and_its_label_of_all_its_labelled_ones() -> None:
    labels, _ = random_scores(4, 20, 2)
    generator = np.random.default_rng(0)
    score = np.clip(0.2 * labels + 0.8 * generator.random((2, 20)), 0.01, 0.99)
    frame = table(np.r_[labels, [""] * 20], np.c_[1 - score.ravel(), score.ravel()], [*range(20), *range(20)])
    document = cohort_figures(frame, TARGET)
    assert document["slide"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, score[0]))
    assert document["patient"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, score.mean(axis=0)))
    assert not np.isclose(document["patient"]["auroc"]["value"], document["slide"]["auroc"]["value"])
    unread = table([0, 1], [[0.9, 0.1], [np.nan, np.nan]], ["a", "a"])
    patients = scored_patients(unread, TARGET)
    assert (patients.truth[0, 0], patients.scores[0, 1]) == (1, 0.1)
    both = pd.concat([frame, unread.assign(slide_id=["x", "y"])])
    assert any("a as 1" in line for line in cohort_figures(both, TARGET)["warnings"])
    worse = frame.assign(prob_1=np.where(frame["label"] == "", 1 - frame["prob_1"], frame["prob_1"]))
    expected = document["patient"]["auroc"]["value"] - cohort_figures(worse, TARGET)["patient"]["auroc"]["value"]
    assert paired_difference(frame, worse, TARGET)["value"] == pytest.approx(expected)


def test_patient_with_slides_of_different_classes_counts_as_the_highest_and_is_named() -> None:
    frame = table([0, 1, 0], [[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]], ["a", "a", "b"])
    figures = cohort_figures(frame, TARGET)
    assert figures["patient"]["n_by_class"] == {"0": 1, "1": 1}
    assert any("a as 1" in line for line in figures["warnings"])


def test_rows_without_label_or_score_are_left_out() -> None:
    labels, probabilities = random_scores(4, 20, 2)
    whole = table(labels, probabilities)
    extra = table([1, ""], [[np.nan, np.nan], [0.5, 0.5]], ["x", "y"]).assign(slide_id=["s20", "s21"])
    both = cohort_figures(pd.concat([whole, extra]), TARGET)
    assert both == cohort_figures(whole, TARGET)


@pytest.mark.parametrize("present", [[0, 0, 0], []])
def test_missing_class_gives_null_and_a_reason_without_a_numpy_warning(present: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = cohort_figures(table(present, np.full((len(present), 2), 0.5)), TARGET)
    assert figures["patient"]["auroc"] == {"value": None, "low": None, "high": None}
    assert figures["slide"]["f1"]["value"] is None
    assert any("no scored patient of class" in line and "1" in line for line in figures["warnings"])


def test_perfect_ranking_warns_that_its_interval_has_no_width() -> None:
    labels = np.repeat([0, 1], 12)
    probabilities = np.stack([1 - labels * 0.9, labels * 0.9], axis=1)
    figures = cohort_figures(table(labels, probabilities), TARGET)
    assert figures["patient"]["auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert any("without width" in line for line in figures["warnings"])


def test_labels_read_back_as_numbers_are_the_same_classes() -> None:
    frame = table(["0", "1", ""], np.full((3, 2), 0.5))
    for labels in (["0", "1", ""], [0.0, 1.0, np.nan], pd.array([0, 1, 2])):
        rows = frame.assign(label=labels)
        assert is_scored(rows, TARGET).tolist() == [True, True, False]
        assert scored_slides(rows, TARGET).truth[:, 0].tolist() == [0, 1]


def test_difference_of_equal_scores_is_exactly_zero_with_a_zero_interval() -> None:
    labels, probabilities = random_scores(6, 30, 3)
    scored = alone(labels, probabilities)
    assert difference([scored], [scored], auroc) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_makes_the_difference_narrower_than_the_two_intervals_together() -> None:
    labels, probabilities = random_scores(7, 60, 2)
    nearly = probabilities + np.random.default_rng(0).normal(0, 0.01, probabilities.shape)
    a = alone(labels, probabilities)
    b = alone(labels, nearly)
    both, one = difference([a], [b], auroc), auroc_figure(a)
    assert both["high"] - both["low"] < 0.5 * (one["high"] - one["low"])


def test_twenty_thousand_slides_stay_within_bounded_memory() -> None:
    labels, probabilities = random_scores(8, 20_000, 2)
    scored = alone(labels, probabilities)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathfm.metrics.RESAMPLES", 300)
        tracemalloc.start()
        auroc_figure(scored)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 400e6


def test_result_does_not_depend_on_how_resamples_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = random_scores(9, 50, 2)
    scored = alone(labels, probabilities)
    whole = auroc_figure(scored)
    monkeypatch.setattr("pathfm.metrics._MAX_WEIGHTS", 50 * 7)
    assert auroc_figure(scored) == pytest.approx(whole)


def examples(seed: int, n: int, rounded: bool) -> dict[str, tuple[Target, Any, Any]]:
    """Of each kind a target, truth and scores that know something of it, with ties where rounded."""
    generator = np.random.default_rng(seed)
    classes, probabilities = random_scores(seed, n, 4, rounded)
    several = np.concatenate([[[0, 0], [1, 1]], generator.integers(2, size=(n - 2, 2))])
    of_several = np.clip(0.3 * several + generator.random((n, 2)), 0, 1)
    numbers = generator.normal(5, 2, (n, 1))
    guesses = numbers + generator.normal(0, 2, (n, 1))
    times = generator.integers(1, 8, (n, 1)) if rounded else generator.exponential(size=(n, 1)) + 0.01
    events = np.concatenate([[[1], [0]], generator.integers(2, size=(n - 2, 1))])
    survival, risks = np.concatenate([times, events], axis=1), -times + generator.normal(0, 2, (n, 1))
    if rounded:
        of_several, numbers, guesses, risks = (
            np.round(of_several, 1),
            np.round(numbers),
            np.round(guesses),
            np.round(risks),
        )
    return {
        "classes": (Classes("a", tuple("0123")), classes[:, None], probabilities),
        "ordinal": (Ordinal("a", tuple("0123")), classes[:, None], probabilities),
        "multilabel": (MultiLabel("a", ("x", "y")), several, of_several),
        "regression": (Regression("a"), numbers, guesses),
        "cox": (Cox("t/e"), survival, risks),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 50), rounded=st.booleans())
def test_ordinal_figures_are_scikit_learns_at_the_median_class(seed: int, n: int, rounded: bool) -> None:
    target, truth, scores = examples(seed, n, rounded)["ordinal"]
    median = np.array([int(name) for name in target.predicted(scores)])
    assert (median == [next(k for k in range(4) if row[: k + 1].sum() >= 0.5 - 1e-12) for row in scores]).all()
    found = {name: once(metric, truth, scores) for name, metric in target.metrics.items()}
    # sums in another order are other floats, which ties would feel: from the highest class down, as the figure has it
    above = [roc_auc_score(truth[:, 0] > k, scores[:, :k:-1].cumsum(axis=1)[:, -1]) for k in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, median))
    assert found["mean_steps"] == pytest.approx(mean_absolute_error(truth[:, 0], median))
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(truth[:, 0], median, weights="quadratic"))
    assert found["auroc"] == pytest.approx(np.mean(above))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 50), rounded=st.booleans())
def test_multilabel_figures_are_scikit_learns_means_over_the_labels(seed: int, n: int, rounded: bool) -> None:
    target, truth, scores = examples(seed, n, rounded)["multilabel"]
    found = {name: once(metric, truth, scores) for name, metric in target.metrics.items()}
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["auroc_y"] == pytest.approx(roc_auc_score(truth[:, 1], scores[:, 1]))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, scores))
    assert found["f1"] == pytest.approx(f1_score(truth, scores >= 0.5, average="macro", zero_division=0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 50), rounded=st.booleans())
def test_figures_of_a_number_are_scipys_and_scikit_learns(seed: int, n: int, rounded: bool) -> None:
    target, truth, scores = examples(seed, n, rounded)["regression"]
    truth = truth.astype(np.float32)
    found = {name: once(metric, truth, scores) for name, metric in target.metrics.items()}
    assert found["pearson_r"] == pytest.approx(pearsonr(truth[:, 0].astype(float), scores[:, 0]).statistic)
    assert found["spearman_r"] == pytest.approx(spearmanr(truth[:, 0], scores[:, 0]).statistic)
    assert found["mean_absolute_error"] == pytest.approx(mean_absolute_error(truth, scores))
    assert found["root_mean_squared_error"] == pytest.approx(root_mean_squared_error(truth, scores))
    assert found["r2"] == pytest.approx(r2_score(truth.astype(float), scores))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 30), rounded=st.booleans(), block=st.sampled_from([1, 50, 10**6]))
def test_c_index_is_the_share_of_pairs_in_order(seed: int, n: int, rounded: bool, block: int) -> None:
    target, truth, scores = examples(seed, n, rounded)["cox"]
    time, event = truth.astype(np.float32).T
    known = in_order = 0.0
    for i in range(n):
        for j in range(n):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                known += 1
                in_order += 1.0 if scores[i, 0] > scores[j, 0] else 0.5 if scores[i, 0] == scores[j, 0] else 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathfm.targets.survival._BLOCK", block)
        found = once(target.metrics["c_index"], truth, scores)
    assert found == (pytest.approx(in_order / known) if known else pytest.approx(np.nan, nan_ok=True))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 30), rounded=st.booleans())
def test_a_row_with_a_weight_counts_as_if_it_stood_there_so_often(seed: int, n: int, rounded: bool) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, 4, n)
    weights[: n // 2] += 1
    for kind, (target, truth, scores) in examples(seed, n, rounded).items():
        column = truth.astype(np.float32)
        many = np.stack([weights, np.ones(n)]).astype(float)
        for name, metric in target.metrics.items():
            found = metric(column, scores, many)
            repeated = [once(metric, column.repeat(how, axis=0), scores.repeat(how, axis=0)) for how in (weights, 1)]
            if kind == "multilabel" and len(np.unique(column.repeat(weights, axis=0)[:, 0])) < 2:
                continue  # a label that is no longer there leaves the mean, a label that a resample lacks does not
            assert found == pytest.approx(repeated, nan_ok=True), name


@pytest.mark.parametrize("kind", ["classes", "ordinal", "multilabel", "regression", "cox"])
def test_figures_that_nothing_can_be_said_of_are_nan_and_not_a_number_or_a_numpy_warning(kind: str) -> None:
    target, truth, scores = examples(0, 8, rounded=False)[kind]
    one = np.zeros((3, truth.shape[1]))
    same = np.full((3, scores.shape[1]), 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (0, 3):
            found = {name: once(metric, one[:rows], same[:rows]) for name, metric in target.metrics.items()}
            # all rows of one class are a kappa of 0 where something else is said of them
            main = "auroc" if kind == "ordinal" else next(iter(found))
            assert np.isnan(found[main])
            assert rows or np.isnan(list(found.values())).all()


def cohort_table(target: Target, truth: Any, scores: Any, patients: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(truth))], "patient_id": patients})
    frame["label"] = target.texts(truth.astype(np.float32))
    frame[target.names] = scores
    return frame


@pytest.mark.parametrize("kind", ["classes", "ordinal", "multilabel", "regression", "cox"])
def test_a_table_of_any_kind_has_its_figures_by_slide_and_by_patient(kind: str) -> None:
    target, truth, scores = examples(3, 60, rounded=False)[kind]
    frame = cohort_table(target, truth, scores, [f"p{i // 2}" for i in range(60)])
    document = cohort_figures(frame, target)
    for unit, n in (("slide", 60), ("patient", 30)):
        assert list(document[unit]) == [*target.metrics, "n", "n_by_class"]
        assert document[unit]["n"] == n
        for name in target.metrics:
            figure = document[unit][name]
            assert figure["low"] <= figure["value"] <= figure["high"], name
    assert document["slide"][next(iter(target.metrics))]["value"] == pytest.approx(
        once(next(iter(target.metrics.values())), truth, scores)
    )
    assert any("different labels count as" in line for line in document["warnings"])
    assert ("stratified by class" in document["interval"]) == (kind in ("classes", "ordinal"))
    assert cohort_figures(frame.drop_duplicates("patient_id"), target, "patient")["slide"] is None


def test_intervals_of_numbers_and_of_survival_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = {"pearson_r": 0, "c_index": 0}
    # exponential times whose hazard is exp(risk): who has the higher risk by d is first with probability 1 / (1 + exp(-d))
    draws = np.abs(generator.normal(0, np.sqrt(2), 200_000))
    true = {"pearson_r": 0.6, "c_index": float(np.mean(1 / (1 + np.exp(-draws))))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathfm.metrics.RESAMPLES", 400)
        for _ in range(100):
            score = generator.normal(size=(60, 1))
            number = 0.6 * score + 0.8 * generator.normal(size=(60, 1))
            time = generator.exponential(np.exp(-score))
            survival = np.concatenate([time, np.ones((60, 1))], axis=1)
            for target, truth in ((Regression("a"), number), (Cox("t/e"), survival)):
                name, metric = next(iter(target.metrics.items()))
                rows = Scored(truth.astype(np.float32), score, np.arange(60), np.zeros(60, int), ("",) * 60)
                figure = figures([rows], {name: metric})[name]
                covered[name] += figure["low"] <= true[name] <= figure["high"]
    assert all(0.85 <= count / 100 <= 1.0 for count in covered.values()), covered


def test_figures_of_repeats_are_their_means_and_those_of_one_repeat_are_as_without() -> None:
    (labels, first), (_, second) = random_scores(1, 40, 2), random_scores(2, 40, 2)
    second = 0.5 * first + 0.5 * second
    one, two = table(labels, first), table(labels, second)
    both = pd.concat([one.assign(repeat=0), two.iloc[::-1].assign(repeat=1)])  # the order of the rows is no matter
    found, alone_each = cohort_figures(both, TARGET), [cohort_figures(some, TARGET) for some in (one, two)]
    values = [document["patient"]["f1"]["value"] for document in alone_each]
    assert found["patient"]["f1"]["value"] == pytest.approx(np.mean(values))
    assert values[0] != values[1]
    assert found["patient"]["n"] == 40
    assert "mean over 2 repeats" in found["interval"]
    assert cohort_figures(one.assign(repeat=0), TARGET) == alone_each[0]
    twice = cohort_figures(pd.concat([one.assign(repeat=0), one.assign(repeat=1)]), TARGET)
    for name, figure in alone_each[0]["patient"].items():
        assert twice["patient"][name] == pytest.approx(figure), name


def test_paired_difference_takes_the_rows_that_both_score_and_the_repeats_of_each() -> None:
    labels, better = random_scores(2, 50, 2)
    worse = 0.5 * better + 0.5 * random_scores(3, 50, 2)[1]
    first, second = table(labels, better), table(labels, worse)
    found = paired_difference(first, second, TARGET)
    expected = roc_auc_score(labels, better[:, 1]) - roc_auc_score(labels, worse[:, 1])
    assert found["value"] == pytest.approx(expected)
    assert found == paired_difference(first, second.sample(frac=1, random_state=0), TARGET)
    repeated = pd.concat([second.assign(repeat=0), second.assign(repeat=1)])
    assert found == pytest.approx(paired_difference(first, repeated, TARGET))
    lacking = second.assign(prob_1=second["prob_1"].where(second.index != 7))
    assert paired_difference(first, lacking, TARGET) == paired_difference(first.drop(7), second.drop(7), TARGET)


def test_survival_is_compared_within_the_folds_whose_models_have_no_risk_in_common() -> None:
    target, truth, scores = examples(5, 60, rounded=False)["cox"]
    patients = [f"p{i // 2:02d}" for i in range(60)]
    fold = np.arange(60) // 2 % 3
    alone = cohort_table(target, truth, scores, patients)
    rows = [*zip(truth[:, 0].tolist(), truth[:, 1].tolist(), scores[:, 0].tolist(), fold.tolist(), strict=True)]
    in_order = [  # brute force: of all pairs of a fold of which it is known who was first
        0.5 if risk == other_risk else float(risk > other_risk)
        for time, event, risk, k in rows
        for other_time, other_event, other_risk, other_k in rows
        if k == other_k and event and (time < other_time or (time == other_time and not other_event))
    ]
    found = cohort_figures(alone.assign(fold=fold), target)
    assert found["slide"]["c_index"]["value"] == pytest.approx(np.mean(in_order))
    assert found["slide"]["c_index"] != cohort_figures(alone, target)["slide"]["c_index"]
    moved = alone.assign(fold=[f"fold {k}" for k in fold], risk=alone["risk"] + 100 * fold)
    for unit in ("slide", "patient"):
        assert cohort_figures(moved, target)[unit]["c_index"] == pytest.approx(found[unit]["c_index"])
    repeated = pd.concat([moved.assign(repeat=0), alone.assign(fold=fold, repeat=1)])
    assert paired_difference(alone.assign(fold=fold), repeated, target) == pytest.approx(
        {"value": 0, "low": 0, "high": 0}, abs=1e-12
    )


def test_scores_that_are_all_one_have_no_correlation_and_a_warning_says_so() -> None:
    target, truth, scores = examples(3, 20, rounded=False)["regression"]
    frame = cohort_table(target, truth, np.full_like(scores, 0.1), [f"p{i}" for i in range(20)])
    document = cohort_figures(frame, target)
    assert document["patient"]["pearson_r"] == {"value": None, "low": None, "high": None}
    assert document["patient"]["mean_absolute_error"]["value"] > 0
    assert any("Pearson's r" in line and "cannot be computed" in line for line in document["warnings"])


def mean_score(truth: Any, scores: Any, weights: Any) -> Any:
    return weights @ scores[:, 0] / weights.sum(axis=1)


def difference_of_means(truth: Any, scores: Any, weights: Any) -> Any:
    sides = [weights * (truth[:, 0] == side) for side in (1, 0)]
    return sides[0] @ scores[:, 0] / sides[0].sum(axis=1) - sides[1] @ scores[:, 0] / sides[1].sum(axis=1)


def test_intervals_are_scipys_bca_of_a_skewed_mean() -> None:
    values = np.random.default_rng(0).lognormal(0, 1, 40)
    scored = Scored(np.zeros((40, 1), np.float32), values[:, None], np.arange(40), np.zeros(40, int), ("",) * 40)
    found = figures([scored], {"mean": mean_score})["mean"]
    expected = bootstrap((values,), np.mean, n_resamples=40_000, random_state=0).confidence_interval
    plain = bootstrap((values,), np.mean, n_resamples=40_000, method="percentile", random_state=0).confidence_interval
    width = expected.high - expected.low
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=0.05 * width)
    assert found["high"] - plain.high > 0.06 * width  # which percentiles are not


def test_acceleration_is_the_skew_of_the_patients_influences_within_their_strata() -> None:
    generator = np.random.default_rng(1)
    values, side = generator.lognormal(0, 1, 50), np.repeat([0, 1], [35, 15])
    scored = Scored(side[:, None].astype(np.float32), values[:, None], np.arange(50), side, ("",) * 50)
    pulls = np.concatenate([(values[side == k] - values[side == k].mean()) / (side == k).sum() for k in (1, 0)])
    pulls[15:] *= -1
    expected = (pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5)
    one = partial(difference_of_means, scored.truth, scored.scores)
    assert acceleration(scored, one) == pytest.approx(expected)
    # a patient of two equal slides is a row of twice its weight
    twice = Scored(scored.truth.repeat(2, 0), scored.scores.repeat(2, 0), np.arange(50).repeat(2), side, ("",) * 50)
    assert acceleration(twice, partial(difference_of_means, twice.truth, twice.scores)) == pytest.approx(expected)


def test_acceleration_of_many_patients_is_that_of_groups_of_them_and_of_none_is_0() -> None:
    values = np.random.default_rng(2).lognormal(0, 1, 3000)
    scored = Scored(
        np.zeros((3000, 1), np.float32), values[:, None], np.arange(3000), np.zeros(3000, int), ("",) * 3000
    )
    seen: list[int] = []

    def one(weights: Any) -> Any:
        seen.append(len(weights))
        return mean_score(None, scored.scores, weights)

    pulls = values - values.mean()
    assert acceleration(scored, one) == pytest.approx((pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5), rel=0.5)
    assert sum(seen) == 400
    nobody = Scored(scored.truth[:0], scored.scores[:0], np.zeros(0, int), np.zeros(0, int), ())
    assert acceleration(nobody, one) == 0
    lone = Scored(scored.truth[:1], scored.scores[:1], np.zeros(1, int), np.zeros(1, int), ("",))
    assert acceleration(lone, one) == 0
