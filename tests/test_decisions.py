"""What is decided of a row: the questions of every kind of target, the one question of a screening, and its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm.claims import Claims
from pathfm.cohort import read_cohort
from pathfm.cohortfigures import by_patient, scored_slides
from pathfm.decisions import (
    ANY,
    Screening,
    asked,
    decision_columns,
    decision_scores,
    negative_first,
    origins,
    outcomes_of,
    patient_decisions,
    require_screening,
    screening_of,
    types_of,
    with_origins,
)
from pathfm.errors import InputError, UnknownNameError
from pathfm.metrics import Scored
from pathfm.targets import Classes, Cox, MultiLabel, Ordinal, Regression, Target, read_task

if TYPE_CHECKING:
    from pathlib import Path

CANCER = Classes("cancer", ("breast", "none", "sarcoma"))
FINDINGS = MultiLabel("findings", ("breast", "lung"))
GRADE = Ordinal("grade", ("1", "2", "3"))
YES_NO = Classes("cancer", ("benign", "cancer"))


def _rows(target: Target, labels: list[str], scores: list[list[float]]) -> Scored:
    everyone = np.arange(len(labels), dtype=np.int64)
    truth = target.of_texts(labels)
    return Scored(truth, np.array(scores), everyone, np.zeros_like(everyone), tuple(map(str, everyone)))


@pytest.mark.parametrize(
    ("target", "questions"),
    [
        (YES_NO, ["cancer"]),
        (CANCER, ["breast", "none", "sarcoma"]),
        (GRADE, ["at least 2", "at least 3"]),
        (FINDINGS, ["breast", "lung"]),
        (Regression("score"), []),
        (Cox("months/died"), []),
    ],
)
def test_without_a_screening_the_questions_are_those_of_the_target(target: Target, questions: list[str]) -> None:
    assert asked(target, None) == questions
    columns = decision_columns(target, None)
    assert list(columns) == questions
    assert set(columns.values()) == ({"decision"} if len(questions) == 1 else {f"decision_{one}" for one in questions})


def test_a_screening_of_classes_asks_for_all_but_the_negative_one() -> None:
    screening = Screening("none", ("sarcoma",))
    rows = _rows(CANCER, ["none", "sarcoma", "breast"], [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.4, 0.0]])
    (outcome,) = outcomes_of(CANCER, screening, rows)
    assert (outcome.name, list(outcome.positive)) == (ANY, [False, True, True])
    np.testing.assert_allclose(outcome.score, 1 - rows.scores[:, 1])
    assert decision_columns(CANCER, screening) == {ANY: "decision"}
    assert origins(CANCER, screening, rows.scores) == ["sarcoma", "sarcoma", "breast"]


def test_small_probabilities_of_any_cancer_stay_apart() -> None:
    certain = np.array([[1e-20, 1.0, 2e-20], [1e-20, 1.0, 1e-20]])
    first, second = decision_scores(CANCER, Screening("none"), certain)[ANY]
    assert first > second > 0


def test_a_screening_of_labels_asks_for_any_of_them() -> None:
    rows = _rows(FINDINGS, ["none", "lung", "breast;lung"], [[0.2, 0.1], [0.3, 0.6], [0.7, 0.8]])
    (outcome,) = outcomes_of(FINDINGS, Screening("none"), rows)
    assert list(outcome.positive) == [False, True, True]
    np.testing.assert_array_equal(outcome.score, [0.2, 0.6, 0.8])
    assert types_of(FINDINGS, Screening("none")) == ["breast", "lung"]


@pytest.mark.parametrize("screening", [None, Screening("none")])
@pytest.mark.parametrize("target", [CANCER, FINDINGS])
def test_scores_need_no_label_and_a_row_without_scores_has_no_decision(
    target: Target, screening: Screening | None
) -> None:
    scores = np.full((2, len(target.names)), 0.25)
    scores[1] = np.nan
    for score in decision_scores(target, screening, scores).values():
        assert np.isfinite(score[0])
        assert np.isnan(score[1])
    assert origins(target, Screening("none"), scores) == ["breast", ""]


def test_a_screening_is_asked_of_the_target_that_has_its_negative_class() -> None:
    claims = Claims(negative="none", rare=["sarcoma", "sarcoma"])
    assert screening_of(CANCER, claims) == Screening("none", ("sarcoma",))
    for other in (YES_NO, GRADE, Regression("score"), Cox("months/died"), Classes("organ", ("a", "b", "c"))):
        assert screening_of(other, claims) is None
        require_screening([other, CANCER], claims)
    assert screening_of(CANCER, Claims()) is None


@pytest.mark.parametrize(
    ("target", "claims", "error", "words"),
    [
        (CANCER, Claims(negative="nome"), UnknownNameError, "near: none"),
        (CANCER, Claims(negative="none", rare=["sarkoma"]), UnknownNameError, "near: sarcoma"),
        (CANCER, Claims(negative="none", rare=["none"]), UnknownNameError, "--claims.rare"),
        (FINDINGS, Claims(negative="breast"), UnknownNameError, "known: none"),
        (YES_NO, Claims(negative="benign"), InputError, "no types to screen for; leave --claims.negative out$"),
        (YES_NO, Claims(negative="cancer"), InputError, "rename the classes so that it comes first"),
        (GRADE, Claims(negative="1"), InputError, "no target of more than two classes"),
    ],
)
def test_a_negative_class_that_cannot_be_screened_against_is_refused(
    target: Target, claims: Claims, error: type[InputError], words: str
) -> None:
    with pytest.raises(error, match=words):
        require_screening([target], claims)


def test_a_screening_comes_back_from_its_facts() -> None:
    screening = Screening("none", ("sarcoma",))
    assert Screening.of_facts(screening.facts(), CANCER) == screening


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("abc", max_size=3),
        lambda part: (
            st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["negative", "rare", "x"]), part, max_size=3)
        ),
    )
)
def test_facts_from_anywhere_are_refused_by_the_key(facts: Any) -> None:
    with pytest.raises(ValueError, match=r"key '(negative|rare)'"):
        Screening.of_facts(facts, CANCER)


@pytest.mark.parametrize(
    "facts",
    [
        {"negative": "none", "rare": ["none"]},
        {"negative": "none", "rare": ["lung"]},
        {"negative": "none", "rare": [["sarcoma"]]},
        {"negative": "none", "rare": ["sarcoma"] * 9},
        {"negative": "none", "rare": "sarcoma"},
        {"negative": "lung", "rare": []},
    ],
)
def test_facts_that_do_not_fit_the_target_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"key '(negative|rare)'"):
        Screening.of_facts(facts, CANCER)


def test_a_patient_with_one_slide_of_a_type_has_it_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(
        "slide_id,patient_id,cancer,other\na,p,lung,x\nb,p,none,y\nc,q,none,x\nd,r,sarcoma,y\n"
    )
    task, truth = read_task(read_cohort(tmp_path / "cohort.csv"), "other,cancer", None)
    ordered, again = negative_first(task, truth, "none")
    target = ordered.targets[1]
    assert target.groups == ["none", "lung", "sarcoma"]
    assert ordered.targets[0] == task.targets[0]
    texts = target.texts(ordered.truths(again)[1])
    assert texts == ["lung", "none", "none", "sarcoma"]
    table = pd.DataFrame({"slide_id": list("abcd"), "patient_id": list("ppqr"), "label": texts})
    patients = by_patient(scored_slides(table.assign(**dict.fromkeys(target.names, 1 / 3)), target), target)
    assert target.texts(patients.truth) == ["lung", "none", "sarcoma"]
    unordered = task.targets[1]
    patients = by_patient(scored_slides(table.assign(**dict.fromkeys(target.names, 1 / 3)), unordered), unordered)
    assert unordered.texts(patients.truth)[0] == "none"  # what is to be avoided


def test_nothing_is_ordered_anew_without_a_negative_class(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id,t,e\na,p,1.5,1\nb,q,2.5,0\nc,r,,\n")
    task, truth = read_task(read_cohort(tmp_path / "cohort.csv"), "t/e:cox", None)
    for negative in (None, "none"):
        ordered, again = negative_first(task, truth, negative)
        assert ordered == task
        np.testing.assert_array_equal(again, truth)


def test_decisions_of_patients_are_read_by_patient() -> None:
    table = pd.DataFrame({"patient_id": ["p", "q", "r"], "decision": ["positive", "negative", ""]})
    assert patient_decisions(table, {ANY: "decision"}) == {ANY: {"p": "positive", "q": "negative"}}
    assert patient_decisions(table, {"a": "decision_a", "b": "decision_b"}) == {}


def test_decisions_of_slides_are_not_taken_for_those_of_patients() -> None:
    table = pd.DataFrame({"patient_id": ["p", "p"], "decision": ["positive", "negative"]})
    with pytest.raises(ValueError, match="of slides"):
        patient_decisions(table, {ANY: "decision"})


def test_an_origin_is_said_only_of_what_was_found() -> None:
    scores = pd.DataFrame([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [np.nan] * 3], columns=CANCER.names)
    found = with_origins(scores.assign(decision=["negative", "positive", ""]), CANCER, Screening("none"))
    assert list(found["origin"]) == ["", "sarcoma", ""]
    np.testing.assert_allclose(found[ANY], [0.5, 0.9, np.nan])
    assert "origin" not in with_origins(scores, CANCER, Screening("none"))
