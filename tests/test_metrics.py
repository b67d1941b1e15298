from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from pathfm.metrics import (
    Scored,
    auroc,
    auroc_figure,
    balanced_accuracy,
    by_patient,
    cohort_figures,
    f1,
    label_codes,
    paired_auroc_difference,
    scored_slides,
)


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
    else:
        expected_auroc = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(n_classes)])
        expected_f1 = f1_score(labels, predicted, average="macro", labels=list(range(n_classes)), zero_division=0)
    assert auroc(labels, probabilities) == pytest.approx(expected_auroc)
    assert f1(labels, probabilities) == pytest.approx(expected_f1)
    assert balanced_accuracy(labels, probabilities) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_multiclass_auroc_is_scikit_learns_macro_one_vs_rest() -> None:
    labels, probabilities = random_scores(3, 80, 3)
    assert auroc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_equal_seeds_give_equal_intervals_and_other_seeds_do_not() -> None:
    labels, probabilities = random_scores(1, 60, 2)
    first, again, other = (cohort_figures(table(labels, probabilities), ["0", "1"], seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["patient"]["auroc"]["low"] != other["patient"]["auroc"]["low"]


def test_intervals_enclose_the_value_and_shrink_with_patients() -> None:
    widths = []
    for n in (40, 400):
        labels, probabilities = random_scores(5, n, 2)
        block = cohort_figures(table(labels, probabilities), ["0", "1"])["slide"]
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
        scored = Scored(labels, np.stack([1 - probability, probability], 1), np.arange(60), labels, ("",) * 60)
        figure = auroc_figure(scored)
        covered += figure["low"] <= true <= figure["high"]
    assert 0.87 <= covered / trials <= 1.0


def test_resampling_patients_gives_wider_intervals_than_pretending_slides_are_independent() -> None:
    labels, probabilities = random_scores(2, 40, 2)
    ten_times = table(np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0), np.repeat(np.arange(40), 10))
    pretending = table(np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0))
    honest, naive = (cohort_figures(t, ["0", "1"])["slide"]["auroc"] for t in (ten_times, pretending))
    alone = cohort_figures(table(labels, probabilities, np.arange(40)), ["0", "1"])["slide"]["auroc"]
    assert honest == pytest.approx(alone)
    assert honest["high"] - honest["low"] > 2 * (naive["high"] - naive["low"])


def test_patient_probability_is_the_mean_over_its_slides() -> None:
    frame = table([1, 1, 0], [[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]], ["a", "a", "b"])
    patients = by_patient(scored_slides(frame, ["0", "1"]))
    assert patients.names == ("a", "b")
    assert patients.probabilities[:, 1] == pytest.approx([0.4, 0.1])
    assert cohort_figures(frame, ["0", "1"])["patient"]["n"] == 2


def test_patient_with_slides_of_different_classes_counts_as_the_highest_and_is_named() -> None:
    frame = table([0, 1, 0], [[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]], ["a", "a", "b"])
    figures = cohort_figures(frame, ["0", "1"])
    assert figures["patient"]["n_by_class"] == {"0": 1, "1": 1}
    assert any("a as 1" in line for line in figures["warnings"])


def test_rows_without_label_or_score_are_left_out() -> None:
    labels, probabilities = random_scores(4, 20, 2)
    whole = table(labels, probabilities)
    extra = table([1, ""], [[np.nan, np.nan], [0.5, 0.5]], ["x", "y"])
    both = cohort_figures(pd.concat([whole, extra]), ["0", "1"])
    assert both == cohort_figures(whole, ["0", "1"])


@pytest.mark.parametrize("present", [[0, 0, 0], []])
def test_missing_class_gives_null_and_a_reason_without_a_numpy_warning(present: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = cohort_figures(table(present, np.full((len(present), 2), 0.5)), ["0", "1"])
    assert figures["patient"]["auroc"] == {"value": None, "low": None, "high": None}
    assert figures["slide"]["f1"]["value"] is None
    assert any("no scored patient of class" in line and "1" in line for line in figures["warnings"])


def test_perfect_ranking_warns_that_its_interval_has_no_width() -> None:
    labels = np.repeat([0, 1], 12)
    probabilities = np.stack([1 - labels * 0.9, labels * 0.9], axis=1)
    figures = cohort_figures(table(labels, probabilities), ["0", "1"])
    assert figures["patient"]["auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert any("without width" in line for line in figures["warnings"])


def test_labels_read_back_as_numbers_are_the_same_classes() -> None:
    assert label_codes(pd.Series([0, 1]), ["0", "1"]).tolist() == [0, 1]
    assert label_codes(pd.Series([0.0, 1.0, np.nan]), ["0", "1"]).tolist() == [0, 1, -1]
    assert label_codes(pd.Series(["b", "", "a"]), ["a", "b"]).tolist() == [1, -1, 0]


def test_difference_of_equal_scores_is_exactly_zero_with_a_zero_interval() -> None:
    labels, probabilities = random_scores(6, 30, 3)
    scored = Scored(labels, probabilities, np.arange(30), labels, ("",) * 30)
    assert paired_auroc_difference(scored, scored) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_makes_the_difference_narrower_than_the_two_intervals_together() -> None:
    labels, probabilities = random_scores(7, 60, 2)
    nearly = probabilities + np.random.default_rng(0).normal(0, 0.01, probabilities.shape)
    a = Scored(labels, probabilities, np.arange(60), labels, ("",) * 60)
    b = Scored(labels, nearly, np.arange(60), labels, ("",) * 60)
    difference, alone = paired_auroc_difference(a, b), auroc_figure(a)
    assert difference["high"] - difference["low"] < 0.5 * (alone["high"] - alone["low"])


def test_twenty_thousand_slides_stay_within_bounded_memory() -> None:
    labels, probabilities = random_scores(8, 20_000, 2)
    scored = Scored(labels, probabilities, np.arange(20_000), labels, ("",) * 20_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathfm.metrics.RESAMPLES", 300)
        tracemalloc.start()
        auroc_figure(scored)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 400e6


def test_result_does_not_depend_on_how_resamples_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = random_scores(9, 50, 2)
    scored = Scored(labels, probabilities, np.arange(50), labels, ("",) * 50)
    whole = auroc_figure(scored)
    monkeypatch.setattr("pathfm.metrics._MAX_WEIGHTS", 50 * 7)
    assert auroc_figure(scored) == pytest.approx(whole)
