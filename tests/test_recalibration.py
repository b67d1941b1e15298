from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from pathfm.errors import InputError
from pathfm.metrics import auroc
from pathfm.recalibration import FEW_FOR_CURVES, HIGHEST, LOWEST, Calibration
from pathfm.targets import Classes, Cox, MultiLabel, Ordinal, Regression, Target

TWO, THREE = Classes("dx", ("benign", "cancer")), Classes("type", ("none", "lung", "breast"))
GRADES, FINDINGS = Ordinal("grade", ("1", "2", "3")), MultiLabel("findings", ("a", "b", "c"))
TARGETS: list[Target] = [TWO, THREE, GRADES, FINDINGS]


def overconfident(target: Target, n: int, temperature: float, seed: int = 0) -> tuple[Any, Any, Any]:
    """Truths drawn from known probabilities, these, and the scores of logits times the temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, len(target.names))) * 1.5
    if isinstance(target, MultiLabel):
        true = expit(logits)
        return (generator.random(true.shape) < true).astype(np.float32), true, expit(temperature * logits)
    true = softmax(logits, axis=1)
    codes = (true.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1)
    return codes[:, None].astype(np.float32), true, softmax(temperature * logits, axis=1)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.kind}{len(target.names)}")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_is_found_again_and_gives_back_the_probabilities(target: Target, temperature: float) -> None:
    truth, true, scores = overconfident(target, 6000, temperature)
    found = Calibration.fitted("temperature", target, truth, scores)
    assert found.temperatures == pytest.approx([temperature] * len(found.temperatures), rel=0.1)
    assert found.apply(target, scores) == pytest.approx(true, abs=0.03)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.kind}{len(target.names)}")
def test_a_curve_brings_scores_nearer_to_the_probabilities(target: Target) -> None:
    truth, true, scores = overconfident(target, 6000, 3.0)
    calibrated = Calibration.fitted("isotonic", target, truth, scores).apply(target, scores)
    assert np.abs(calibrated - true).mean() < 0.6 * np.abs(scores - true).mean()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.kind}{len(target.names)}")
def test_calibrated_scores_are_probabilities_as_the_target_has_them(target: Target, kind: Any) -> None:
    truth, _, scores = overconfident(target, 60, 4.0)
    extreme = np.eye(scores.shape[1])[: scores.shape[1]]
    found = Calibration.fitted(kind, target, truth, scores).apply(target, np.concatenate([scores, extreme]))
    assert (found >= 0).all()
    assert (found <= 1).all()
    if isinstance(target, Classes):
        assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))


def test_a_temperature_leaves_the_order_of_two_classes_and_a_curve_turns_none_around() -> None:
    truth, _, scores = overconfident(TWO, 300, 2.0)
    ones = np.ones((1, 300))
    by_temperature, by_curve = (
        Calibration.fitted(kind, TWO, truth, scores).apply(TWO, scores) for kind in ("temperature", "isotonic")
    )
    assert auroc(truth, by_temperature, ones) == auroc(truth, scores, ones)
    order = np.argsort(scores[:, 1])
    assert (np.diff(by_curve[order, 1]) >= 0).all()


def test_a_curve_of_two_classes_is_that_of_scikit_learn_but_for_its_ends() -> None:
    truth, _, scores = overconfident(TWO, 200, 2.0)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores[:, 1], truth[:, 0]).predict(scores[:, 1])
    found = Calibration.fitted("isotonic", TWO, truth, scores).apply(TWO, scores)[:, 1]
    assert found == pytest.approx(np.clip(expected, 1 / 202, 1 - 1 / 202))


def test_grades_stay_in_their_order_under_curves() -> None:
    truth, _, scores = overconfident(GRADES, 200, 3.0)
    found = Calibration.fitted("isotonic", GRADES, truth, scores).apply(GRADES, scores)
    above = found[:, ::-1].cumsum(axis=1)[:, ::-1]
    assert (np.diff(above, axis=1) <= 1e-12).all()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_scores_that_tell_all_apart_do_not_become_certainties(kind: Any) -> None:
    truth = np.repeat([0, 1], 10)[:, None].astype(np.float32)
    p = np.repeat([0.2, 0.8], 10)
    found = Calibration.fitted(kind, TWO, truth, np.c_[1 - p, p]).apply(TWO, np.c_[1 - p, p])
    wanted = (11 / 12, 11 / 12) if kind == "temperature" else (21 / 22, 21 / 22)
    assert (found[-1, 1], found[0, 0]) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_a_weight_of_two_is_the_row_twice(kind: Any) -> None:
    truth, _, scores = overconfident(THREE, 80, 2.0)
    twice = np.repeat(np.arange(80), 1 + np.arange(80) % 2)
    weighted = Calibration.fitted(kind, THREE, truth, scores, 1.0 + np.arange(80) % 2)
    repeated = Calibration.fitted(kind, THREE, truth[twice], scores[twice])
    assert weighted.apply(THREE, scores) == pytest.approx(repeated.apply(THREE, scores), abs=1e-5)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_a_row_without_a_score_keeps_none_and_leaves_the_others_alone(kind: Any) -> None:
    truth, _, scores = overconfident(FINDINGS, 50, 2.0)
    found = Calibration.fitted(kind, FINDINGS, truth, scores)
    with_gap = found.apply(FINDINGS, np.concatenate([scores, np.full((1, 3), np.nan)]))
    assert np.isnan(with_gap[-1]).all()
    assert with_gap[:-1] == pytest.approx(found.apply(FINDINGS, scores))


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("target", [Regression("ki67", 0.0, 1.0), Cox("os_months/os_event")], ids=lambda t: t.kind)
def test_a_number_or_a_time_is_refused_by_its_kind(target: Target, kind: Any) -> None:
    with pytest.raises(InputError, match=f"{target.name} is of the kind {target.kind}"):
        Calibration.fitted(kind, target, np.zeros((4, target.width), np.float32), np.zeros((4, 1)))


def notes_of(kind: Any, truth: Any, scores: Any, n_patients: int = 60) -> list[str]:
    made = Calibration.fitted(kind, TWO, truth, scores)
    return made.notes(TWO, truth, made.apply(TWO, scores), n_patients)


def test_few_patients_for_a_curve_and_a_temperature_at_its_end_are_said() -> None:
    truth, _, scores = overconfident(TWO, 60, 2.0)
    assert "60 patients" in notes_of("isotonic", truth, scores)[0]
    assert notes_of("isotonic", truth, scores, FEW_FOR_CURVES) == []
    assert notes_of("temperature", truth, scores) == []
    useless = expit(logit(scores[::-1]) * 5)
    assert Calibration.fitted("temperature", TWO, truth, useless).temperatures == pytest.approx([HIGHEST], rel=1e-3)
    assert "an end of what is looked for" in notes_of("temperature", truth, useless)[0]


def test_a_temperature_that_leaves_the_share_far_off_is_said_as_after_balanced_training() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=400) * 1.5 - 2.5
    truth = (generator.random(400) < expit(logits))[:, None].astype(np.float32)
    balanced = expit(logits + 2.5)  # what a loss that weighs both classes alike learns
    (note,) = notes_of("temperature", truth, np.c_[1 - balanced, balanced], 400)
    assert "which isotonic can mend" in note
    assert notes_of("isotonic", truth, np.c_[1 - balanced, balanced], 400) == []
    curve = Calibration.fitted("isotonic", TWO, truth, np.c_[1 - balanced, balanced])
    assert curve.apply(TWO, np.c_[1 - balanced, balanced])[:, 1].mean() == pytest.approx(truth.mean(), abs=0.01)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.kind}{len(target.names)}")
def test_facts_come_back_as_they_were(target: Target, kind: Any) -> None:
    truth, _, scores = overconfident(target, 80, 2.0)
    made = Calibration.fitted(kind, target, truth, scores)
    assert Calibration.of_facts(json.loads(json.dumps(made.facts())), target) == made


LINE = {"x": [0.1, 0.9], "y": [0.2, 0.7]}


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        (None, "kind"),
        ([], "kind"),
        ({"kind": "platt"}, "kind"),
        ({"kind": ["temperature"]}, "kind"),
        ({"kind": "temperature"}, "temperatures"),
        ({"kind": "temperature", "temperatures": []}, "temperatures"),
        ({"kind": "temperature", "temperatures": [1.0, 1.0]}, "temperatures"),
        ({"kind": "temperature", "temperatures": [0]}, "temperatures"),
        ({"kind": "temperature", "temperatures": [-1.0]}, "temperatures"),
        ({"kind": "temperature", "temperatures": [float("nan")]}, "temperatures"),
        ({"kind": "temperature", "temperatures": [10**400]}, "temperatures"),
        ({"kind": "temperature", "temperatures": [LOWEST / 2]}, "temperatures"),
        ({"kind": "temperature", "temperatures": "1"}, "temperatures"),
        ({"kind": "isotonic", "curves": []}, "curves"),
        ({"kind": "isotonic", "curves": [LINE, LINE]}, "curves"),
        ({"kind": "isotonic", "curves": [None]}, "x"),
        ({"kind": "isotonic", "curves": [{"x": [0.1], "y": []}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [], "y": []}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.9, 0.1], "y": [0.2, 0.7]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.1], "y": [0.2, 0.7]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [0.7, 0.2]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [0.2, 1.7]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [0.0, 0.0]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [0.0, 0.7]}]}, "curves"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [0.2, None]}]}, "y"),
        ({"kind": "isotonic", "curves": [{"x": [0.1, 0.9], "y": [False, True]}]}, "y"),
        ({"kind": "isotonic", "curves": [{"x": [i / 1e6 for i in range(100_001)], "y": [0.5] * 100_001}]}, "curves"),
    ],
)
def test_facts_from_anywhere_are_refused_by_their_key(facts: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"key '{key}'"):
        Calibration.of_facts(facts, TWO)


def test_facts_of_another_kind_of_target_are_refused() -> None:
    with pytest.raises(ValueError, match="of the kind regression"):
        Calibration.of_facts({"kind": "temperature", "temperatures": [1.0]}, Regression("ki67", 0.0, 1.0))
