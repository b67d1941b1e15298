"""Several cancers asked as one: a simulated cohort of six types goes from scores to decisions to figures."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pathfm.claims import Claims
from pathfm.decisions import ANY, Screening, screening_of, with_origins
from pathfm.freezing import cross_fitted, freeze
from pathfm.frozen import apply_frozen, patient_table
from pathfm.screening import SHAPE, screening_block
from pathfm.tables import misfit
from pathfm.targets import Classes, MultiLabel

PATIENTS = {"none": 120, "breast": 50, "colon": 30, "lung": 30, "prostate": 20, "sarcoma": 9, "thymoma": 4}
CANCER = Classes("cancer", tuple(PATIENTS))
CLAIMS = Claims(negative="none", rare=["sarcoma", "thymoma"], prevalence=0.01, calibration="temperature")
SCREENING = Screening("none", ("sarcoma", "thymoma"))
LEVEL = ("k", "n", "value", "low", "high", "exact_low", "exact_high")


def simulated(seed: int = 0, strength: float = 2.5) -> pd.DataFrame:
    """One or two slides of each patient with probabilities that lean to its class, and five folds."""
    rng, rows = np.random.default_rng(seed), []
    labels = [name for name, n in PATIENTS.items() for _ in range(n)]
    for patient, label in enumerate(labels):
        for slide in range(1 + patient % 2):
            logits = rng.normal(size=len(PATIENTS)) + strength * np.eye(len(PATIENTS))[list(PATIENTS).index(label)]
            logits[0] += 1.5
            scores = np.exp(logits) / np.exp(logits).sum()
            facts = {
                "slide_id": f"p{patient}-{slide}",
                "patient_id": f"p{patient}",
                "fold": patient % 5,
                "label": label,
            }
            rows.append({**facts, "n_tiles": 9, "reason": "", **dict(zip(CANCER.names, scores, strict=True))})
    table = pd.DataFrame(rows)
    return table.assign(predicted=CANCER.predicted(table[CANCER.names].to_numpy()))


@cache
def decided() -> pd.DataFrame:
    """The patients of that cohort, each decided at what was chosen on the other folds."""
    table, frozen = cross_fitted(simulated(), CANCER, "slide", "specificity>=0.9", CLAIMS)
    return patient_table(table, CANCER, frozen)


@cache
def block() -> dict[str, Any]:
    found = screening_block(decided(), CANCER, SCREENING, CLAIMS.prevalence)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert misfit(found, SHAPE) == ""
    return found


def test_any_cancer_is_measured_as_one_question() -> None:
    rows, any_of = decided(), block()["any"]
    positive, score = rows["label"] != "none", 1 - rows["prob_none"]
    assert any_of["auroc"]["value"] == pytest.approx(roc_auc_score(positive, score))
    assert any_of["auroc"]["low"] < any_of["auroc"]["value"] < any_of["auroc"]["high"]
    assert any_of["auroc_delong"]["value"] == pytest.approx(any_of["auroc"]["value"])
    assert (any_of["n"], block()["n_negative"]) == (143, 120)
    flagged = rows["decision"] == "positive"
    point = any_of["at_point"]
    assert [point[key] for key in ("tp", "fp", "fn", "tn")] == [
        int((flagged & positive).sum()),
        int((flagged & ~positive).sum()),
        int((~flagged & positive).sum()),
        int((~flagged & ~positive).sum()),
    ]
    assert point["sensitivity"]["value"] > 0.8
    assert 0.8 < point["specificity"]["value"] < 1


def test_predictive_values_are_those_of_the_stated_prevalence() -> None:
    point = block()["any"]["at_point"]
    se, sp = point["sensitivity"]["value"], point["specificity"]["value"]
    there = point["at_prevalence"]
    assert there["ppv"]["value"] == pytest.approx(0.01 * se / (0.01 * se + 0.99 * (1 - sp)))
    assert there["ppv"]["low"] < there["ppv"]["value"] < there["ppv"]["high"] < point["ppv"]["value"]


def test_each_type_stands_against_the_negatives_alone() -> None:
    rows = decided()
    assert [row["name"] for row in block()["types"]] == list(PATIENTS)[1:]
    for row in block()["types"]:
        part = rows[rows["label"].isin(["none", row["name"]])]
        expected = roc_auc_score(part["label"] == row["name"], 1 - part["prob_none"])
        assert row["auroc"]["value"] == pytest.approx(expected)
        assert row["auroc_delong"]["value"] == pytest.approx(expected)
        flagged = rows["decision"][rows["label"] == row["name"]] == "positive"
        assert (row["sensitivity"]["k"], row["sensitivity"]["n"]) == (int(flagged.sum()), PATIENTS[row["name"]])
        assert set(row["sensitivity"]) == set(LEVEL)
        assert row["few"] == (PATIENTS[row["name"]] < 10)
        assert row["stratum"] == ("rare" if row["few"] else "common")
    assert "fewer than 10 patients of sarcoma (9), thymoma (4)" in block()["notes"][0]


def test_common_and_rare_ones_are_told_apart_over_the_same_negatives() -> None:
    rows, strata = decided(), block()["strata"]
    rare = rows["label"].isin(["sarcoma", "thymoma"])
    for name, part in (("rare", rows[rare | (rows["label"] == "none")]), ("common", rows[~rare])):
        positive = part["label"] != "none"
        assert strata[name]["n"] == positive.sum()
        assert strata[name]["auroc"]["value"] == pytest.approx(roc_auc_score(positive, 1 - part["prob_none"]))
        assert strata[name]["at_point"]["specificity"] == block()["any"]["at_point"]["specificity"]
        assert strata[name]["at_point"]["ppv"]["value"] is None
    counts = [strata[name]["at_point"]["tp"] for name in ("common", "rare")]
    assert sum(counts) == block()["any"]["at_point"]["tp"]


def test_the_origin_is_counted_among_the_flagged_and_among_all() -> None:
    rows, origin = decided(), block()["origin"]
    types = list(PATIENTS)[1:]
    best = rows[[f"prob_{name}" for name in types]].idxmax(axis=1).str.removeprefix("prob_")
    cancer, flagged, right = rows["label"] != "none", rows["decision"] == "positive", best == rows["label"]
    assert (origin["top1"]["k"], origin["top1"]["n"]) == ((cancer & flagged & right).sum(), (cancer & flagged).sum())
    assert (origin["top1_of_all"]["k"], origin["top1_of_all"]["n"]) == ((cancer & flagged & right).sum(), cancer.sum())
    assert origin["top1_without_point"]["k"] == (cancer & right).sum()
    written = with_origins(rows, CANCER, SCREENING)
    called = written["origin"].replace("", "none")
    assert origin["confusion"] == {
        true: {said: int(((rows["label"] == true) & (called == said)).sum()) for said in PATIENTS} for true in PATIENTS
    }
    assert any("breast" in note and "50 of 143 (35 %)" in note for note in block()["notes"])


def test_a_frozen_point_is_carried_to_patients_of_elsewhere() -> None:
    frozen = freeze(simulated(), CANCER, "slide", "specificity>=0.9", CLAIMS, "here")
    assert frozen.screening == SCREENING == screening_of(CANCER, CLAIMS)
    there = patient_table(apply_frozen(frozen, simulated(1).drop(columns="fold"), CANCER, "slide"), CANCER, frozen)
    threshold = frozen.thresholds[ANY]["patient"]
    point = screening_block(there, CANCER, SCREENING, threshold=threshold)["any"]["at_point"]
    score = there[CANCER.names[1:]].sum(axis=1)
    assert point["threshold"] == threshold
    assert point["tp"] == int(((there["label"] != "none") & (score >= threshold)).sum())
    assert point["at_prevalence"] is None


def test_without_an_operating_point_nothing_is_said_of_sensitivity() -> None:
    found = screening_block(simulated(), CANCER, SCREENING, 0.01)
    assert misfit(found, SHAPE) == ""
    assert found["any"]["at_point"] is None
    assert {row["sensitivity"] for row in found["types"]} == {None}
    assert (found["origin"]["top1"], found["origin"]["confusion"]) == (None, {})
    assert found["origin"]["top1_without_point"]["n"] == 143
    assert found["any"]["auroc"]["value"] > 0.9
    assert "pass --operating-point" in found["notes"][0]


def test_a_type_of_one_patient_or_none_has_no_auroc() -> None:
    rows = decided()
    some = rows[(rows["label"] != "thymoma") & ~((rows["label"] == "sarcoma") & rows["label"].duplicated())]
    found = screening_block(some, CANCER, SCREENING)
    assert misfit(found, SHAPE) == ""
    by_name = {row["name"]: row for row in found["types"]}
    for name, n in (("sarcoma", 1), ("thymoma", 0)):
        assert by_name[name]["n"] == by_name[name]["sensitivity"]["n"] == n
        assert by_name[name]["auroc"]["value"] is by_name[name]["auroc_delong"]["low"] is None
    assert found["strata"]["rare"]["auroc"]["value"] is None
    assert any(note.startswith("no patient of thymoma") for note in found["notes"])


@pytest.mark.parametrize(("rare", "words"), [((), "no type was named rare"), (tuple(PATIENTS)[1:], "every type")])
def test_without_two_strata_it_is_said_why(rare: tuple[str, ...], words: str) -> None:
    found = screening_block(decided(), CANCER, Screening("none", rare))
    assert misfit(found, SHAPE) == ""
    assert found["strata"]["common"] is None
    assert (found["strata"]["rare"] is None) == (not rare)
    assert any(note.startswith(words) for note in found["notes"])


def test_scores_without_knowledge_find_neither_cancer_nor_origin() -> None:
    found = screening_block(simulated(strength=0.0), CANCER, SCREENING)
    assert found["any"]["auroc"]["low"] < 0.5 < found["any"]["auroc"]["high"]
    tables = [simulated(seed, strength=0.0) for seed in range(5)]
    origins = [screening_block(table, CANCER, SCREENING)["origin"]["top1_without_point"] for table in tables]
    right, asked = sum(one["k"] for one in origins), sum(one["n"] for one in origins)
    assert abs(right / asked - 1 / 6) < 3 * np.sqrt(5 / 36 / asked)


def test_cohorts_of_negatives_or_of_cancers_alone_have_blocks_without_figures() -> None:
    rows = decided()
    for part in (rows[rows["label"] == "none"], rows[rows["label"] != "none"]):
        found = screening_block(part, CANCER, SCREENING, 0.01)
        assert misfit(found, SHAPE) == ""
        assert found["any"]["auroc"]["value"] is None
        assert found["any"]["at_point"]["at_prevalence"]["ppv"]["value"] is None


@pytest.mark.long
def test_the_few_patients_of_a_type_leave_more_open_than_the_interval_of_its_auroc_says() -> None:
    target, screening = Classes("cancer", ("none", "common", "rare")), Screening("none", ("rare",))
    covered: dict[tuple[int, int], tuple[int, int]] = {}
    for n, n_negative, area in ((4, 150, 0.9), (8, 150, 0.95), (8, 40, 0.85)):
        held = np.zeros(2, dtype=int)
        for seed in range(300):
            rng = np.random.default_rng(seed)
            labels = ["none"] * n_negative + ["rare"] * n
            logits = rng.normal(size=len(labels)) + np.sqrt(2) * norm.ppf(area) * (np.array(labels) == "rare")
            any_of = 1 / (1 + np.exp(-logits))
            table = pd.DataFrame({"label": labels, "prob_none": 1 - any_of, "prob_common": 0.0, "prob_rare": any_of})
            table["slide_id"] = table["patient_id"] = [f"p{i}" for i in range(len(labels))]
            row = screening_block(table, target, screening, seed=seed)["types"][1]
            held += [row[key]["low"] <= area <= row[key]["high"] for key in ("auroc", "auroc_delong")]
        covered[n, n_negative] = (int(held[0]), int(held[1]))
        print(
            f"{n} of a type, {n_negative} negatives, AUROC {area}: of 300, bootstrap {held[0]}, DeLong {held[1]} cover"
        )
    assert covered[4, 150][1] < 0.93 * 300  # where this no longer fails to hold, docs/screening.md is to say so
    assert all(delong >= 0.8 * 300 for _, delong in covered.values())


def test_a_patient_with_two_labels_counts_in_both_types() -> None:
    target = MultiLabel("findings", ("breast", "lung"))
    rows = [("none", 0.1, 0.2), ("none", 0.3, 0.1), ("breast", 0.8, 0.2), ("lung", 0.7, 0.6), ("breast;lung", 0.6, 0.9)]
    table = pd.DataFrame(rows, columns=["label", *target.names])
    table["patient_id"] = table["slide_id"] = [f"p{i}" for i in range(len(rows))]
    table["decision"] = ["negative", "negative", "positive", "negative", "positive"]
    found = screening_block(table, target, Screening("none"))
    assert misfit(found, SHAPE) == ""
    assert [(row["name"], row["n"], row["sensitivity"]["k"]) for row in found["types"]] == [
        ("breast", 2, 2),
        ("lung", 2, 1),
    ]
    assert (found["any"]["n"], found["any"]["auroc"]["value"]) == (3, 1.0)
    assert (found["origin"]["top1"]["k"], found["origin"]["top1"]["n"]) == (2, 2)
    assert found["origin"]["confusion"]["breast"] == {"none": 0, "breast": 1, "lung": 1}
    assert any("no negative is ranked above" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((5, 5, 5), "no type is more frequent than another: who names one of them always is right in 5 of 15 (33 %)"),
        (
            (5, 5, 2),
            "none is more frequent than breast, colon: who names one of them always is right in 5 of 12 (42 %)",
        ),
        ((5, 4, 2), "most are of breast: who names it always is right in 5 of 11 (45 %)"),
    ],
)
def test_of_equally_frequent_types_none_is_called_the_most_frequent(counts: tuple[int, ...], words: str) -> None:
    types = ("breast", "colon", "lung")
    target = Classes("cancer", ("none", *types))
    labels = ["none"] * 4 + [name for name, n in zip(types, counts, strict=True) for _ in range(n)]
    scores = np.random.default_rng(0).dirichlet(np.ones(4), size=len(labels))
    table = pd.DataFrame({"label": labels, **dict(zip(target.names, scores.T, strict=True))})
    table["slide_id"] = table["patient_id"] = [f"p{i}" for i in range(len(labels))]
    assert screening_block(table, target, Screening("none"))["notes"][-1] == f"{words}; compare the origin"
