from __future__ import annotations

import io
import json
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pathfm.appraisal import Asked, appraise, require_asked
from pathfm.claims import Claims
from pathfm.cohortfigures import cohort_figures
from pathfm.conformal import ConformalSets
from pathfm.errors import InputError
from pathfm.freezing import SHAPE, _with_folds, cross_fitted, freeze, operating_block
from pathfm.frozen import Frozen, apply_frozen, frozen_sha256, patient_table
from pathfm.operating import choose, parse_rule
from pathfm.proportions import proportion
from pathfm.tables import misfit
from pathfm.targets import Classes, Cox, MultiLabel, Ordinal, Regression, Target

TWO, THREE = Classes("dx", ("benign", "cancer")), Classes("type", ("none", "lung", "breast"))
GRADES, FINDINGS = Ordinal("grade", ("1", "2", "3")), MultiLabel("findings", ("a", "b"))
RULE = "specificity>=0.9"
EVERYTHING = Claims(calibration="temperature", coverage=0.9, prevalence=0.02)


def scored_table(
    target: Target = TWO, patients: int = 60, signal: float = 1.5, seed: int = 0, slides: int = 2
) -> pd.DataFrame:
    """An out-of-fold predictions table of five folds, each patient with some slides."""
    generator = np.random.default_rng(seed)
    k, n = len(target.names), patients * slides
    place = np.arange(n) // slides
    if isinstance(target, MultiLabel):
        truth = (generator.random((patients, k)) < 0.4)[place].astype(np.float32)
        scores = expit(generator.normal(size=(n, k)) + signal * (2 * truth - 1))
    else:
        truth = generator.permutation(np.arange(patients) % k)[place][:, None].astype(np.float32)
        scores = softmax(generator.normal(size=(n, k)) + signal * np.eye(k)[truth[:, 0].astype(int)], axis=1)
    table = pd.DataFrame({"slide_id": [f"s{at:03}" for at in range(n)], "patient_id": [f"p{at:03}" for at in place]})
    table = table.assign(fold=place % 5, label=target.texts(truth), predicted=target.predicted(scores))
    table = table.assign(**{name: scores[:, at] for at, name in enumerate(target.names)}, n_tiles=10, reason="")
    return table.astype({"fold": "Int64"})


def frozen_of(
    table: pd.DataFrame, target: Target = TWO, rule: str | None = RULE, claims: Claims = EVERYTHING
) -> Frozen:
    return freeze(table, target, "slide", rule, claims, "the out-of-fold predictions of 5 folds")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    fold=st.integers(0, 4),
    rule=st.sampled_from([RULE, "sensitivity>=0.9", "cost:10/1", "youden"]),
    calibration=st.sampled_from(["none", "temperature", "isotonic"]),
)
def test_nothing_of_a_fold_moves_what_its_rows_are_decided_by(
    seed: int, fold: int, rule: str, calibration: Any
) -> None:
    claims = Claims(calibration=calibration, coverage=0.9)
    table, generator = scored_table(), np.random.default_rng(seed)
    inside = np.flatnonzero(table["fold"] == fold)
    moved = table.copy()
    moved.loc[inside, "label"] = generator.choice(list(TWO.classes), len(inside))
    score = generator.random(len(inside))
    moved.loc[inside, "prob_cancer"], moved.loc[inside, "prob_benign"] = score, 1 - score
    (_, before), (after, frozen) = (cross_fitted(one, TWO, "slide", rule, claims) for one in (table, moved))
    assert frozen[fold] == before[fold]
    assert frozen[(fold + 1) % 5] != before[(fold + 1) % 5]  # the others do look at it
    alone = apply_frozen(before[fold], moved.iloc[inside[:1]], TWO, "slide")
    assert after.iloc[inside[:1]].equals(alone)  # and a row's decision follows from its own score


def test_nobody_moves_a_frozen_threshold() -> None:
    frozen, other = frozen_of(scored_table()), scored_table(seed=1, signal=-3.0)
    before, digest = deepcopy(frozen.facts()), frozen_sha256(frozen.facts(), {}, "0" * 64)
    with pytest.raises(FrozenInstanceError):
        frozen.thresholds = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        frozen.thresholds["cancer"]["patient"] = 0.0  # type: ignore[index]
    frozen.facts()["thresholds"]["cancer"]["patient"] = 0.0
    frozen.facts()["promise"]["cancer"].clear()
    table = apply_frozen(frozen, other, TWO, "slide")
    block = operating_block(table, TWO, "slide", frozen)
    assert frozen.facts() == before
    assert frozen_sha256(frozen.facts(), {}, "0" * 64) == digest
    assert block["outcomes"]["cancer"]["slide"]["threshold"] == frozen.thresholds["cancer"]["slide"]
    assert block["outcomes"]["cancer"]["patient"]["sensitivity"]["value"] < 0.3  # it stays where it is, however bad


def test_labels_and_other_rows_have_no_part_in_a_decision() -> None:
    frozen, table = frozen_of(scored_table()), scored_table(seed=1)
    whole = apply_frozen(frozen, table, TWO, "slide")
    without = apply_frozen(frozen, table.assign(label=""), TWO, "slide")
    one_by_one = pd.concat([apply_frozen(frozen, table.iloc[[at]], TWO, "slide") for at in range(len(table))])
    assert whole.drop(columns="label").equals(without.drop(columns="label"))
    assert whole.equals(one_by_one)


@pytest.mark.parametrize(
    "target", [TWO, THREE, GRADES, FINDINGS], ids=lambda target: f"{target.kind}{len(target.names)}"
)
@pytest.mark.parametrize("calibration", ["none", "temperature", "isotonic"])
def test_all_kinds_with_outcomes_are_frozen_and_come_back_from_json(target: Target, calibration: Any) -> None:
    claims = Claims(calibration=calibration, coverage=0.8 if isinstance(target, Classes) else None)
    table = scored_table(target, 90)
    frozen = frozen_of(table, target, claims=claims)
    assert Frozen.of_facts(json.loads(json.dumps(frozen.facts(), allow_nan=False)), target) == frozen
    assert set(frozen.thresholds) == set(frozen.promise) == set(target.outcomes(target.of_texts([]), np.zeros((0, 3))))
    applied = apply_frozen(frozen, table, target, "slide")
    block = operating_block(applied, target, "slide", frozen)
    assert misfit(json.loads(json.dumps(block, allow_nan=False)), SHAPE) == ""
    columns = [name for name in applied if name.startswith("decision")]
    assert columns == (
        ["decision"] if len(frozen.thresholds) == 1 else [f"decision_{name}" for name in frozen.thresholds]
    )
    assert set(np.unique(applied[columns])) == {"positive", "negative"}


@pytest.mark.parametrize("target", [THREE, FINDINGS], ids=lambda target: target.kind)
def test_a_screening_is_decided_as_one_question(target: Target) -> None:
    claims = Claims(negative="none", rare=[target.names[-1].removeprefix("prob_")])
    table = scored_table(target, 90)
    frozen = frozen_of(table, target, claims=claims)
    assert list(frozen.thresholds) == ["any"]
    assert Frozen.of_facts(frozen.facts(), target) == frozen
    applied = apply_frozen(frozen, table, target, "slide")
    score = 1 - table["prob_none"] if target is THREE else table[target.names].max(axis=1)
    assert ((applied["decision"] == "positive") == (score >= frozen.thresholds["any"]["slide"])).all()


def test_thresholds_are_of_the_calibrated_scores_of_slides_and_of_their_means() -> None:
    table = scored_table(slides=3)
    frozen = frozen_of(table)
    applied = apply_frozen(frozen, table, TWO, "slide")
    assert frozen.calibration is not None
    calibrated = frozen.calibration.apply(TWO, table[TWO.names].to_numpy())
    assert applied[TWO.names].to_numpy() == pytest.approx(calibrated)
    patients = patient_table(applied, TWO, frozen)
    means = applied.groupby("patient_id")["prob_cancer"].mean()
    assert list(patients["patient_id"]) == list(means.index)
    assert patients["prob_cancer"].to_numpy() == pytest.approx(means.to_numpy())
    for rows, score, level in ((applied, calibrated[:, 1], "slide"), (patients, means, "patient")):
        positive = np.array(rows["label"] == "cancer")
        expected = choose(parse_rule(RULE), positive, np.asarray(score)).threshold
        assert frozen.thresholds["cancer"][level] == pytest.approx(expected, rel=1e-12)
        assert list(rows["decision"] == "positive") == list(np.asarray(score) >= frozen.thresholds["cancer"][level])


@pytest.mark.parametrize("calibration", ["none", "temperature"])
@pytest.mark.parametrize("folds", [True, False])
def test_patients_with_slides_of_no_label_are_decided_by_the_scores_that_were_chosen_on(
    calibration: Any, folds: bool
) -> None:
    table = scored_table(slides=3)
    table["label"] = table["label"].where(np.arange(len(table)) % 3 == 0, "")  # as where another target has the label
    table = table if folds else table.drop(columns="fold")
    frozen = frozen_of(table, claims=Claims(calibration=calibration, coverage=0.9))
    patients = patient_table(apply_frozen(frozen, table, TWO, "slide"), TWO, frozen)
    positive, score = np.array(patients["label"] == "cancer"), patients[TWO.names].to_numpy()
    assert frozen.thresholds["cancer"]["patient"] == choose(parse_rule(RULE), positive, score[:, 1]).threshold
    assert frozen.conformal == ConformalSets.fit(TWO, positive[:, None].astype(np.float32), score, 0.9)
    cut = _with_folds(table, TWO)
    assert cut is not None
    decided, of_folds = cross_fitted(cut, TWO, "slide", RULE, Claims(calibration=calibration))
    rows = patient_table(decided, TWO, of_folds)
    others = rows[rows["fold"] != 0]
    if calibration == "none":
        expected = choose(parse_rule(RULE), np.array(others["label"] == "cancer"), np.array(others["prob_cancer"]))
        assert of_folds[0].thresholds["cancer"]["patient"] == expected.threshold
    hits = int(((rows["decision"] == "positive") & (rows["label"] == "cancer")).sum())
    assert frozen.promise["cancer"]["patient"]["sensitivity"] == proportion(hits, 30)
    auroc = cohort_figures(decided, TWO)["patient"]["auroc"]["value"]
    assert auroc == pytest.approx(roc_auc_score(rows["label"] == "cancer", rows["prob_cancer"]))


def test_who_has_no_score_is_neither_held_by_a_set_nor_left_to_others() -> None:
    table = scored_table()
    table.loc[:9, TWO.names] = np.nan  # 5 of the 60 patients
    frozen = frozen_of(scored_table())
    block = appraise(apply_frozen(frozen, table, TWO, "slide"), TWO, "slide", Asked(), frozen)["conformal"]
    assert (block["overall"]["n"], block["abstained"]["n"]) == (55, 55)
    whole = appraise(apply_frozen(frozen, table.iloc[10:], TWO, "slide"), TWO, "slide", Asked(), frozen)["conformal"]
    assert block == whole


def test_the_largest_of_several_labels_is_no_probability_whose_calibration_could_be_shown() -> None:
    table, claims = scored_table(FINDINGS, 90), Claims(negative="none")
    assert "calibration" not in appraise(table, FINDINGS, "slide", Asked(claims=claims))
    assert set(appraise(table, FINDINGS, "slide", Asked())["calibration"]["outcomes"]) == {"a", "b"}
    of_classes = appraise(scored_table(THREE, 90), THREE, "slide", Asked(claims=claims))
    assert set(of_classes["calibration"]["outcomes"]) == {"any"}


@pytest.mark.parametrize("targets", [(THREE,), (GRADES,), (FINDINGS,), (TWO, replace(TWO, name="other"))])
def test_one_prevalence_is_of_one_condition(targets: tuple[Target, ...]) -> None:
    with pytest.raises(InputError, match=r"pass --claims\.negative"):
        require_asked(targets, Asked(claims=Claims(prevalence=0.02)))
    assert require_asked((TWO, Regression("ki67")), Asked(RULE, EVERYTHING)) == [TWO]
    assert require_asked((THREE,), Asked(RULE, Claims(prevalence=0.02, negative="none"))) == [THREE]


def test_several_conditions_have_no_predictive_values_at_one_prevalence_and_a_note_says_so() -> None:
    table = scored_table(THREE, 90)
    plain, stated = (frozen_of(table, THREE, "cost:10/1", Claims(prevalence=share)) for share in (None, 0.001))
    assert plain.thresholds == stated.thresholds
    applied = apply_frozen(plain, table, THREE, "slide")
    block = operating_block(applied, THREE, "slide", plain, 0.02)
    assert {level["at_prevalence"] for one in block["outcomes"].values() for level in one.values()} == {None}
    assert sum("a prevalence is of one condition" in note for note in block["notes"]) == 1
    assert not any("prevalence" in note for note in operating_block(applied, THREE, "slide", plain)["notes"])


def test_a_table_of_patients_says_of_them_what_a_model_of_patients_would() -> None:
    table = scored_table(patients=4)
    table.loc[1, "label"], table.loc[0, "label"] = "cancer", "benign"
    table.loc[[2, 4, 5], TWO.names] = np.nan
    table.loc[[2, 4, 5], "reason"] = "no_tissue"
    table.loc[[6, 7], "patient_id"] = ""
    patients = patient_table(table, TWO, frozen_of(scored_table()))
    assert list(patients["slide_id"]) == ["s000;s001", "s002;s003", "s004;s005", "s006", "s007"]
    assert patients["label"][0] == "cancer"
    assert patients["prob_cancer"][1] == table["prob_cancer"][3]
    assert list(patients["reason"]) == ["", "", "no_tissue", "", ""]
    assert list(patients["n_tiles"]) == [20, 20, 20, 10, 10]
    assert (patients["predicted"][2], patients["decision"][2], patients["set"][2]) == ("", "", "")
    assert patients["decision"][[0, 1, 3, 4]].isin(["positive", "negative"]).all()
    assert "set" not in apply_frozen(frozen_of(scored_table()), table, TWO, "slide")


def test_decisions_across_folds_read_back_from_a_file_are_those_that_were_written() -> None:
    table, folds = cross_fitted(scored_table(), TWO, "slide", RULE, EVERYTHING)
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype={"fold": str}, keep_default_na=False)
    assert operating_block(read, TWO, "slide", folds) == operating_block(table, TWO, "slide", folds)


def test_a_row_of_no_fold_has_no_decision_and_rows_keep_their_order() -> None:
    table = scored_table().sample(frac=1, random_state=0)
    gap = table.iloc[[7]].assign(slide_id="x", patient_id="px", fold=pd.NA, reason="no_tissue", prob_cancer=np.nan)
    whole = pd.concat([table.iloc[:9], gap, table.iloc[9:]], ignore_index=True)
    applied, folds = cross_fitted(whole, TWO, "slide", RULE, EVERYTHING)
    assert list(applied["slide_id"]) == list(whole["slide_id"])
    assert applied["decision"][9] == ""
    assert len(patient_table(applied, TWO, folds)) == 61
    assert operating_block(applied, TWO, "slide", folds)["outcomes"]["cancer"]["slide"]["sensitivity"]["n"] == 60


@pytest.mark.parametrize("calibration", ["temperature", "isotonic"])
@pytest.mark.parametrize("target", [THREE, GRADES, FINDINGS], ids=lambda target: target.kind)
def test_tables_without_any_score_or_row_pass_through(target: Target, calibration: Any) -> None:
    coverage = 0.8 if isinstance(target, Classes) else None
    frozen = frozen_of(scored_table(target, 90), target, claims=Claims(calibration=calibration, coverage=coverage))
    table = scored_table(target, 90).iloc[:3]
    for rows in (table.iloc[:0], table.assign(**dict.fromkeys(target.names, np.nan), reason="no_tissue")):
        applied = apply_frozen(frozen, rows, target, "slide")
        patients = patient_table(applied, target, frozen)
        assert [len(applied), len(patients)] == [len(rows), rows["patient_id"].nunique()]
        assert (applied.filter(like="decision") == "").all(axis=None)
        assert (patients.filter(like="decision") == "").all(axis=None)
        assert operating_block(applied, target, "slide", frozen)["outcomes"] == {}


def test_a_model_that_learned_nothing_is_promised_nothing() -> None:
    found: dict[str, list[float]] = {"promise": [], "by its own rows": []}
    for seed in range(30):
        table = scored_table(signal=0.0, seed=seed, slides=1)
        frozen = freeze(table, TWO, "patient", "youden", Claims(), "folds")
        own = operating_block(apply_frozen(frozen, table, TWO, "patient"), TWO, "patient", frozen)["outcomes"]
        for name, block in (("promise", frozen.promise), ("by its own rows", own)):
            point = block["cancer"]["patient"]
            found[name].append(point["sensitivity"]["value"] + point["specificity"]["value"] - 1)
    assert abs(np.mean(found["promise"])) < 3 * 0.13 / np.sqrt(30)  # three standard errors of one with 30 and 30
    assert np.mean(found["by its own rows"]) > 0.1


def test_the_promise_is_what_cross_fitting_came_to_and_says_whose_numbers_it_rests_on() -> None:
    table = scored_table()
    frozen = frozen_of(table)
    decided, folds = cross_fitted(table, TWO, "slide", RULE, EVERYTHING)
    block = operating_block(decided, TWO, "slide", folds, 0.02)
    assert frozen.promise == block["outcomes"]
    point = block["outcomes"]["cancer"]["patient"]
    patients = patient_table(decided, TWO, folds)
    hits = int(((patients["decision"] == "positive") & (patients["label"] == "cancer")).sum())
    assert point["sensitivity"] == proportion(hits, 30)
    assert (point["threshold"], point["tp"] + point["fn"], point["tn"] + point["fp"]) == (None, 30, 30)
    assert point["at_prevalence"]["prevalence"] == 0.02
    assert frozen.n_patients == 60
    assert any("the fewer patients" in note for note in block["notes"])


def test_predictions_of_one_model_are_cut_into_folds_of_patients_for_the_promise() -> None:
    table = scored_table().drop(columns="fold").assign(split="stop")
    frozen = frozen_of(table)
    assert frozen.promise["cancer"]["patient"]["sensitivity"]["n"] == 30
    assert frozen.thresholds == frozen_of(scored_table()).thresholds
    one_of_each = table.drop_duplicates("label")
    few = freeze(one_of_each, TWO, "slide", RULE, Claims(), "2 patients")
    assert few.promise == {}
    assert "there is no promise" in few.notes[-1]


def test_patients_as_bags_have_no_thresholds_of_slides() -> None:
    table = scored_table(slides=1)
    frozen = freeze(table, TWO, "patient", RULE, EVERYTHING, "folds")
    assert list(frozen.thresholds["cancer"]) == ["patient"]
    applied = apply_frozen(frozen, table, TWO, "patient")
    assert set(applied["set"]) <= {"", "benign", "cancer", "benign|cancer"}
    block = operating_block(applied, TWO, "patient", frozen)
    assert block["outcomes"]["cancer"]["slide"] is None
    assert patient_table(applied, TWO, frozen).equals(applied)


def test_a_fold_whose_others_have_nobody_with_it_decides_nothing_and_says_so() -> None:
    table = scored_table(THREE, 60, seed=3)
    moved = table["label"].where((table["label"] != "breast") | (table["fold"] == 2), "lung")
    decided, folds = cross_fitted(table.assign(label=moved), THREE, "slide", RULE, Claims())
    assert set(decided["decision_breast"][decided["fold"] == 2]) == {""}
    assert set(decided["decision_breast"][decided["fold"] == 1]) == {"positive", "negative"}
    block = operating_block(decided, THREE, "slide", folds)
    assert block["outcomes"]["breast"]["patient"]["sensitivity"]["n"] == 0
    assert block["outcomes"]["breast"]["patient"]["sensitivity"]["value"] is None
    assert any(
        note.startswith("in 1 of 5 folds") and "breast, by patient: no threshold" in note for note in block["notes"]
    )


def test_few_patients_are_said_with_their_numbers() -> None:
    frozen = frozen_of(scored_table(patients=14), claims=Claims())
    assert any("chosen on 7 with it and 7 without it" in note for note in frozen.notes)
    assert any("cannot be expected of others with 7 without it" in note for note in frozen.notes)
    assert frozen_of(scored_table(), claims=Claims()).notes == ()


def test_a_perfect_specificity_is_printed_with_what_it_takes_to_claim_it() -> None:
    table, folds = cross_fitted(scored_table(signal=9.0), TWO, "slide", "specificity>=0.999", Claims())
    block = operating_block(table, TWO, "slide", folds)
    specificity = block["outcomes"]["cancer"]["patient"]["specificity"]
    assert specificity["value"] == 1
    assert specificity["exact_low"] < 0.9
    assert any("3,688 negatives without a false positive" in note for note in block["notes"])


def test_a_cost_is_weighed_by_the_stated_prevalence() -> None:
    table = scored_table(patients=200)
    common, rare = (
        frozen_of(table, rule="cost:10/1", claims=Claims(prevalence=share)).thresholds["cancer"]["patient"]
        for share in (0.5, 0.005)
    )
    assert common < rare


@pytest.mark.parametrize("target", [Regression("ki67"), Cox("os_months/os_event")], ids=lambda target: target.kind)
@pytest.mark.parametrize(
    ("rule", "claims"), [(RULE, Claims()), (None, Claims(calibration="isotonic")), (None, Claims(coverage=0.9))]
)
def test_a_number_or_a_time_has_nothing_to_freeze(target: Target, rule: str | None, claims: Claims) -> None:
    with pytest.raises(InputError, match=f"of the kind {target.kind}"):
        freeze(scored_table(), target, "slide", rule, claims, "folds")


def test_nothing_is_frozen_where_nothing_can_be_chosen() -> None:
    table = scored_table()
    for rows, said in (
        (table.assign(label="benign"), "nobody with it among the 60"),
        (table.assign(label=""), "no patient to choose on has a label and a score"),
        (table.iloc[:0], "no patient to choose on has a label and a score"),
    ):
        with pytest.raises(InputError, match=said):
            frozen_of(rows, claims=Claims())
    with pytest.raises(InputError, match="one fold only"):
        cross_fitted(table.assign(fold=1), TWO, "slide", RULE, Claims())


def test_calibration_alone_needs_no_rule_and_decides_nothing() -> None:
    frozen = frozen_of(scored_table(), rule=None)
    assert (frozen.rule, frozen.thresholds, frozen.promise) == (None, {}, {})
    applied = apply_frozen(frozen, scored_table(), TWO, "slide")
    assert "decision" not in applied
    assert operating_block(applied, TWO, "slide", frozen)["outcomes"] == {}
    assert Frozen.of_facts(frozen.facts(), TWO) == frozen


def test_the_digest_is_of_every_value_of_the_targets_and_of_the_weights_but_not_of_the_order_of_keys() -> None:
    facts, of = frozen_of(scored_table()).facts(), {"targets": [{"classes": ["benign", "cancer"]}]}
    digests = {
        frozen_sha256({"dx": facts}, of, "a" * 64),
        frozen_sha256({"dx": facts}, of, "b" * 64),
        frozen_sha256(None, of, "a" * 64),
        frozen_sha256({"dx": facts}, {"targets": [{"classes": ["cancer", "benign"]}]}, "a" * 64),
    }
    moved = deepcopy(facts)
    moved["thresholds"]["cancer"]["patient"] = np.nextafter(facts["thresholds"]["cancer"]["patient"], 1)
    digests.add(frozen_sha256({"dx": moved}, of, "a" * 64))
    assert len(digests) == 5
    backwards = json.loads(json.dumps(dict(reversed(facts.items()))))
    assert frozen_sha256({"dx": backwards}, of, "a" * 64) == frozen_sha256({"dx": facts}, of, "a" * 64)


@pytest.mark.parametrize(
    ("place", "value", "key"),
    [
        (("thresholds", "cancer", "patient"), "0.5", "thresholds.cancer.patient"),
        (("thresholds", "cancer", "patient"), float("nan"), "thresholds.cancer.patient"),
        (("thresholds", "cancer", "patient"), -0.1, "thresholds"),
        (("thresholds", "cancer", "patient"), 7.0, "thresholds"),
        (("thresholds", "cancer", "tile"), 0.5, "thresholds"),
        (("thresholds", "benign"), {"patient": 0.5}, "thresholds.benign"),
        (("thresholds",), None, "thresholds"),
        (("promise", "cancer", "patient", "tp"), None, "promise.cancer.patient.tp"),
        (("promise", "cancer", "patient", "sensitivity"), 0.99, "promise.cancer.patient.sensitivity"),
        (("promise", "other"), {"patient": None, "slide": None}, "promise.other"),
        (("rule",), None, "thresholds"),
        (("rule",), "accuracy>=0.9", "rule"),
        (("calibration",), {"kind": "temperature", "temperatures": [0.0]}, "temperatures"),
        (("conformal",), {"coverage": 2}, "conformal.coverage"),
        (("conformal", "quantiles"), [0.1], "conformal.quantiles"),
        (("screening",), {"negative": "benign", "rare": []}, "negative"),
        (("n_patients",), -1, "n_patients"),
        (("n_patients",), True, "n_patients"),
        (("chosen_on",), "x" * 10_000, "frozen"),
        (("notes",), ["x"] * 10_000, "frozen"),
        (("notes",), [1], "notes.0"),
        (("more",), 1, "frozen"),
    ],
)
def test_frozen_facts_from_anywhere_are_refused_by_their_key(place: tuple[str, ...], value: Any, key: str) -> None:
    facts = json.loads(json.dumps(frozen_of(scored_table()).facts()))
    inside = facts
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    with pytest.raises(ValueError, match=f"key '{key}'"):
        Frozen.of_facts(facts, TWO)


@pytest.mark.parametrize("facts", [None, [], "frozen", {}, {"rule": 1}])
def test_what_is_no_frozen_at_all_is_refused(facts: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        Frozen.of_facts(facts, TWO)


def test_frozen_of_another_target_is_refused() -> None:
    facts = frozen_of(scored_table()).facts()
    with pytest.raises(ValueError, match="is no outcome of the target"):
        Frozen.of_facts(facts, replace(TWO, classes=("benign", "tumour")))


@pytest.mark.long
@pytest.mark.parametrize("n", [100, 400])
def test_a_promised_specificity_is_kept_in_the_mean_and_its_interval_says_about_how_well(n: int) -> None:
    runs, rule, generator = 1000, parse_rule("specificity>=0.95"), np.random.default_rng(n)
    true, promised, held = [], [], 0
    positive, fold = np.arange(n) < n // 2, np.arange(n) % 5
    for _ in range(runs):
        score = norm.cdf(generator.normal(size=n) + 1.8 * positive)
        called = np.zeros(n, bool)
        for k in range(5):
            called[fold == k] = score[fold == k] >= choose(rule, positive[fold != k], score[fold != k]).threshold
        share = proportion(int((~called & ~positive).sum()), int((~positive).sum()))
        kept = float(norm.cdf(norm.ppf(min(choose(rule, positive, score).threshold, 1 - 1e-16))))
        true.append(kept)
        promised.append(share["value"] or 0.0)
        held += (share["low"] or 0) <= kept <= (share["high"] or 0)
    print(f"n={n}: true {np.mean(true):.4f}, promised {np.mean(promised):.4f}, interval held {held} of {runs}")
    assert np.mean(true) >= 0.95 - 0.002
    assert abs(np.mean(promised) - np.mean(true)) < 0.02
    assert held >= (0.75 if n == 100 else 0.9) * runs
