"""The figures of parts of the patients: which parts there are, what they are worth, and which is the worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pathfm.cohort import read_cohort
from pathfm.decisions import Screening
from pathfm.errors import UnknownNameError
from pathfm.subgroups import NOT_STATED, SHAPE, subgroup_columns, subgroups_block
from pathfm.tables import misfit
from pathfm.targets import Classes, Cox, MultiLabel, Regression, Target

if TYPE_CHECKING:
    from pathlib import Path

YES_NO = Classes("cancer", ("no", "yes"))


def patients(n: int = 200, seed: int = 0, strength: float = 1.5) -> pd.DataFrame:
    """Patients with and without, scores that tell them apart to a degree, and decisions at a half."""
    rng = np.random.default_rng(seed)
    yes = np.arange(n) % 2 == 1
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + strength * (yes - 0.5))))
    names = [f"p{i}" for i in range(n)]
    return pd.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "label": np.where(yes, "yes", "no"),
            "prob_no": 1 - score,
            "prob_yes": score,
            "decision": np.where(score >= 0.5, "positive", "negative"),
        }
    )


def column(table: pd.DataFrame, values: list[str], target: Target = YES_NO) -> dict[str, Any]:
    """The block of one column."""
    found = subgroups_block(table, target, {"x": dict(zip(table["slide_id"], values, strict=True))})
    assert misfit(found, SHAPE) == ""
    assert found["figure"] == next(iter(target.metrics))
    block: dict[str, Any] = found["columns"]["x"]
    return block


def test_each_group_has_its_own_figures() -> None:
    table = patients()
    values = [["a", "b"][i // 2 % 2] for i in range(200)]
    block = column(table, values)
    for row in block["rows"]:
        part = table[np.array(values) == row["value"]]
        yes, called = part["label"] == "yes", part["decision"] == "positive"
        assert (row["n"], row["n_by_class"]) == (100, {"no": 50, "yes": 50})
        assert row["figure"]["value"] == pytest.approx(roc_auc_score(yes, part["prob_yes"]))
        assert row["figure"]["low"] < row["figure"]["value"] < row["figure"]["high"]
        assert (row["sensitivity"]["k"], row["sensitivity"]["n"]) == ((yes & called).sum(), 50)
        assert (row["specificity"]["k"], row["specificity"]["n"]) == ((~yes & ~called).sum(), 50)
        assert row["specificity"]["exact_low"] < row["specificity"]["value"]
    lowest = min(block["rows"], key=lambda row: row["figure"]["value"])
    assert block["worst"] == lowest["value"]


def test_a_group_of_which_the_model_knows_nothing_is_found_to_be_the_worst() -> None:
    table = pd.concat([patients(240), patients(80, seed=1, strength=0.0)], ignore_index=True)
    table["slide_id"] = table["patient_id"] = [f"p{i}" for i in range(320)]
    values = [f"site {i // 2 % 3}" for i in range(240)] + ["elsewhere"] * 80
    block = column(table, values)
    assert block["worst"] == "elsewhere"
    assert block["p"] < 0.01
    assert block["note"].startswith("elsewhere is the worst of 4 groups; by chance alone")
    assert block["note"].endswith("of such groupings only")


def test_groups_by_chance_have_a_worst_one_as_often_as_they_should() -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found.append(column(patients(80, seed), list(rng.choice(list("abc"), 80)))["p"])
    assert 0.3 < np.mean(found) < 0.7  # uniform has 0.5, its mean over 40 a standard error of 0.046
    assert np.mean(np.array(found) < 0.1) < 0.25


def test_groups_too_small_to_judge_have_their_number_alone_and_are_never_the_worst() -> None:
    table = patients(60)
    wrong = table["slide_id"].isin([f"p{i}" for i in range(8)])
    table.loc[wrong, ["prob_no", "prob_yes"]] = table.loc[wrong, ["prob_yes", "prob_no"]].to_numpy()
    values = ["tiny"] * 8 + ["one-sided" if i % 2 and i < 40 else "a" if i < 40 else "b" for i in range(8, 60)]
    values[8] = "one-sided"
    block = column(table, values)
    rows = {row["value"]: row for row in block["rows"]}
    assert (rows["tiny"]["n"], rows["one-sided"]["n"]) == (8, 17)
    for name in ("tiny", "one-sided", "a"):  # a has none of the positives
        assert rows[name]["figure"]["value"] is rows[name]["sensitivity"] is rows[name]["specificity"] is None
    assert rows["b"]["figure"]["value"] is not None
    assert (block["worst"], block["p"]) == (None, None)
    assert "1 of 4 groups can be judged" in block["note"]


def test_a_column_of_one_value_has_nothing_to_compare() -> None:
    block = column(patients(20), ["a"] * 20)
    assert (len(block["rows"]), block["worst"]) == (1, None)
    assert "nothing to compare" in block["note"]


def test_many_numbers_are_cut_into_thirds_with_stated_edges() -> None:
    values = [str(20 + i // 2) for i in range(120)]  # 20 to 79, two of each
    values[0] = ""
    block = column(patients(120), values)
    assert [(row["value"], row["n"]) for row in block["rows"]] == [
        ("below 40", 39),
        ("40 to below 60", 40),
        ("60 or more", 40),
        (NOT_STATED, 1),
    ]


def test_few_numbers_are_groups_in_their_order() -> None:
    block = column(patients(120), [["9", "10", "2.5"][i // 2 % 3] for i in range(120)])
    assert [row["value"] for row in block["rows"]] == ["2.5", "9", "10"]


def test_numbers_of_which_most_are_alike_are_cut_above_these() -> None:
    values = ["0"] * 100 + [str(i) for i in range(1, 21)]
    block = column(patients(120), values)
    assert [(row["value"], row["n"]) for row in block["rows"]] == [("below 1", 100), ("1 or more", 20)]


def test_missing_values_are_a_group_of_their_own_that_may_be_the_worst() -> None:
    table = pd.concat([patients(100), patients(40, seed=1, strength=-1.0)], ignore_index=True)
    table["slide_id"] = table["patient_id"] = [f"p{i}" for i in range(140)]
    cells = {f"p{i}": "f" for i in range(100)}  # the others are not even named
    block = subgroups_block(table, YES_NO, {"sex": cells})["columns"]["sex"]
    assert [(row["value"], row["n"]) for row in block["rows"]] == [("f", 100), (NOT_STATED, 40)]
    assert block["worst"] == NOT_STATED


def test_a_patient_with_slides_of_two_values_counts_in_both() -> None:
    table = patients(40).assign(slide_id=[f"s{i};t{i}" for i in range(40)])
    cells = {f"s{i}": "a" for i in range(40)} | {f"t{i}": "b" if i < 20 else "a" for i in range(40)}
    rows = subgroups_block(table, YES_NO, {"scanner": cells})["columns"]["scanner"]["rows"]
    assert [(row["value"], row["n"]) for row in rows] == [("a", 40), ("b", 20)]


def test_a_screening_is_judged_by_the_question_of_any() -> None:
    target = Classes("cancer", ("none", "a", "b", "c"))
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), size=90)
    labels = ["none" if i % 2 else "abc"[i % 3] for i in range(90)]
    table = pd.DataFrame(scores, columns=target.names).assign(label=labels, decision="positive")
    table["slide_id"] = table["patient_id"] = [f"p{i}" for i in range(90)]
    cells = {f"p{i}": "x" if i < 45 else "y" for i in range(90)}
    found = subgroups_block(table, target, {"site": cells}, Screening("none"))
    assert misfit(found, SHAPE) == ""
    assert found["figure"] == "auroc_any"
    rows = found["columns"]["site"]["rows"]
    for row, part in zip(rows, (table[:45], table[45:]), strict=True):
        assert row["figure"]["value"] == pytest.approx(roc_auc_score(part["label"] != "none", 1 - part["prob_none"]))
        assert row["sensitivity"]["value"] == 1 - row["specificity"]["value"] == 1
    found = subgroups_block(table, target, {"site": cells})
    assert found["figure"] == "auroc"
    assert {row["sensitivity"] for row in found["columns"]["site"]["rows"]} == {None}  # four questions, not one


@pytest.mark.parametrize("kind", ["regression", "cox", "multilabel"])
def test_every_kind_of_target_has_subgroups(kind: str) -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=60)
    names = [f"p{i}" for i in range(60)]
    table = pd.DataFrame({"slide_id": names, "patient_id": names, "fold": np.arange(60) % 3})
    target: Target
    if kind == "regression":
        target = Regression("x")
        table = table.assign(label=[f"{one:.4f}" for one in value], value=value + rng.normal(size=60))
    elif kind == "cox":
        target = Cox("t/e")
        table = table.assign(label=[f"{10 + one:.3f}" for one in value], risk=rng.normal(size=60) - value)
    else:
        target = MultiLabel("x", ("a", "b"))
        labels = [["none", "a", "b", "a;b"][i % 4] for i in range(60)]
        table = table.assign(label=labels, prob_a=rng.random(60), prob_b=rng.random(60))
    block = column(table, ["x" if i < 30 else "y" for i in range(60)], target)
    assert block["worst"] in ("x", "y")
    assert 0 < block["p"] <= 1


def test_of_very_many_values_the_largest_groups_are_shown() -> None:
    values = ["big"] * 40 + [f"v{i}" for i in range(80)]
    block = column(patients(120), values)
    assert len(block["rows"]) == 50
    assert block["rows"][0]["value"] == "big"
    assert "of 81 groups" in block["note"]


def test_site_and_scanner_are_looked_at_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(
        "slide_id,patient_id,site,scanner,age\na,p,north,x,61.0\nb,q,,y,NA\nc,r,south,,47\n"
    )
    cohort = read_cohort(tmp_path / "cohort.csv")
    assert subgroup_columns(cohort, ["age", "site"]) == {
        "site": {"a": "north", "b": "", "c": "south"},
        "scanner": {"a": "x", "b": "y", "c": ""},
        "age": {"a": "61", "b": "", "c": "47"},
    }
    with pytest.raises(UnknownNameError, match=r"--claims\.subgroups"):
        subgroup_columns(cohort, ["agee"])


def test_a_cohort_that_says_nothing_of_them_has_neither_site_nor_scanner(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id,site\na,p,\nb,q,NA\n")
    assert subgroup_columns(read_cohort(tmp_path / "cohort.csv"), []) == {}
