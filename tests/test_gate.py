from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort

from pathfm.atpoint import at_point
from pathfm.calibrationblock import calibration_block
from pathfm.cli import main
from pathfm.cohortfigures import by_patient, scored_slides
from pathfm.controls import controls
from pathfm.criteria import CRITERIA, read_criteria
from pathfm.decisions import outcomes_of
from pathfm.errors import InputError, StageRefusedError, UnknownNameError
from pathfm.evaluate import PROTOCOL, evaluate
from pathfm.gate import gate
from pathfm.heads import build_head
from pathfm.model import Model, model_sha256, write_model
from pathfm.proportions import proportion
from pathfm.results import metrics_document, write_results
from pathfm.stage import read_stage
from pathfm.subgroups import subgroups_block
from pathfm.targets import Classes, Task

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = Classes("cancer", ("0", "1"))
EXAMPLE = Path(__file__).parent.parent / "configs" / "gate.yaml"
LEAKS = ["patient", "slide digest", "near-duplicate"]


def predictions(n: int = 400, seed: int = 0, share: float = 1.0) -> pd.DataFrame:
    """Of one slide a patient, calibrated probabilities of good rank; less good where but a share of what is known counts."""
    rng = np.random.default_rng(seed)
    logit = 8 * rng.standard_normal(n)
    p = 1 / (1 + np.exp(-logit))
    label = (rng.random(n) < p).astype(int)
    p = 1 / (1 + np.exp(-logit * share - (1 - share) * 8 * rng.standard_normal(n)))
    ids = [f"p{index:03d}" for index in range(n)]
    table = pd.DataFrame({"slide_id": ids, "patient_id": ids, "fold": np.arange(n) % 5, "label": label.astype(str)})
    return table.assign(prob_0=1 - p, prob_1=p, n_tiles=9, reason="")


@functools.cache
def told(n: int, seed: int, share: float) -> str:
    """A metrics document of `predictions` that meets all of configs/gate.yaml, as JSON, since its figures take a second."""
    table = predictions(n, seed, share)
    patients = by_patient(scored_slides(table, TARGET), TARGET)
    outcomes = outcomes_of(TARGET, None, patients)
    site = {name: "north" if index % 2 else "south" for index, name in enumerate(table["slide_id"])}
    point = at_point(outcomes[0].positive, outcomes[0].score >= 0.5, 0.5)
    fitted = {name: {"available": True, "why": "x"} | chance() for name in ("mean_colour", "site", "permuted_labels")}
    found = metrics_document(
        table,
        target=TARGET,
        unit="slide",
        protocol="5 folds by patient",
        left_out=[],
        controls={
            "controls": fitted,
            "confounded": {"verdict": "not seen", "controls": [], "sentence": "Not seen."},
        },
        blocks={
            "calibration": calibration_block(outcomes, patients, "none"),
            "operating_points": {
                "rule": "youden",
                "outcomes": {outcomes[0].name: {"patient": point, "slide": None}},
                "notes": [],
            },
            "subgroups": subgroups_block(table, TARGET, {"site": site}),
            "leakage": {"checked": LEAKS, "not_checked": []},
        },
    )
    return json.dumps(found)


def document(n: int = 400, seed: int = 0, share: float = 1.0, **blocks: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(n, seed, share))
    return found | blocks


def chance() -> dict[str, Any]:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {"auroc": figure, "difference": figure, "confounded": False}


def external(model: Path, test_set: str = "11111111", share: float = 1.0, **blocks: Any) -> dict[str, Any]:
    shift = {
        "available": True,
        "why": None,
        "n_reference": {"slides": 400, "patients": 400},
        "n": {"slides": 400, "patients": 400},
        "flagged": proportion(20, 400),
        "flag_rate": 0.05,
        "false_alarm_rate": 0.05,
        **dict.fromkeys(("embedding", "colour", "mpp")),
        "alarm": False,
        "sentence": "The cohort is like the reference.",
        "notes": [],
    }
    ledger = {"looks": 1, "models": 1, "test_set": test_set, "first": "2026-01-01", "file": "cohort.ledger.csv"}
    more = {"shift": shift, "ledger": ledger, "model_sha256": model_sha256(model)}
    return document(seed=1, share=share, protocol=PROTOCOL, **(more | blocks))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with model/ and external/, both as good as configs/gate.yaml wants them."""
    write_made(tmp_path / "model", document())
    write_external(tmp_path)
    return tmp_path


def write_made(model: Path, figures: dict[str, Any] | None) -> None:
    torch.manual_seed(0)
    head = build_head("mean", 8, 2, hidden=4)
    training = {"fingerprint": "", "epochs": 1, "patients": [], "slides": {}, "sites": []}
    made = Model(heads=(head,), task=Task((TARGET,)), recipe=RECIPE, training=training)
    write_model(model, replace(made, figures=figures and {"cancer": figures}))


def write_external(folder: Path, name: str = "external", **changes: Any) -> Path:
    write_results(folder / name, {"cancer": (predictions(), external(folder / "model", **changes))})
    return folder / name


def write_criteria(folder: Path, text: str) -> Path:
    path = folder / "criteria.yaml"
    path.write_text(text)
    return path


def test_a_model_that_meets_all_is_stamped_as_high_as_its_evidence_goes(folder: Path) -> None:
    alone = gate(folder / "model", EXAMPLE)
    assert alone.stage == read_stage(folder / "model").stage == "silent"
    assert "evaluations_at_least FAILED: at least 1, found 0; pass --evaluation" in str(alone)
    both = gate(folder / "model", EXAMPLE, [folder / "external"])
    stamp = read_stage(folder / "model")
    assert both.stage == stamp.stage == "assisted"
    assert all(one.met for one in both.checks), str(both)
    assert stamp.criteria_sha256 == read_criteria(EXAMPLE).sha256
    assert stamp.reasons[-1] == "not checked, for the criteria leave it out: coverage_at_least, abstained_at_most"


def test_no_more_than_the_stage_that_is_asked_for_is_given(folder: Path) -> None:
    assert gate(folder / "model", EXAMPLE, [folder / "external"], "silent").stage == "silent"
    assert gate(folder / "model", EXAMPLE, [folder / "external"], "development").stage == "development"
    assert read_stage(folder / "model").reasons[0] == "it was stamped so, by --stage development"


def test_a_refused_stage_is_exit_code_2_with_a_line_a_criterion_and_lowers_an_older_stamp(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "gate",
        "--model",
        str(folder / "model"),
        "--criteria",
        str(EXAMPLE),
        "--stage",
        "assisted",
        "--evaluation",
    ]
    assert main([*words, str(folder / "external")]) == 0
    assert capsys.readouterr().out.strip().endswith(": assisted")
    write_external(folder, calibration=None, ledger={**external(folder / "model")["ledger"], "looks": 9})
    assert main([*words, str(folder / "external")]) == 2
    said = capsys.readouterr().err
    assert "looks_at_most FAILED: at most 3, found 9" in said
    assert "assisted, external: slope_within FAILED: cannot be checked: the target has no probabilities" in said
    assert "silent, cross-validation: controls ok:" in said
    last = "pathfm: stage assisted is refused, the model is stamped silent; not met: {}"
    assert said.splitlines()[-1] == last.format("slope_within, calibration_error_at_most, looks_at_most")
    assert read_stage(folder / "model").stage == "silent"


def test_a_confounded_model_is_refused_and_the_control_is_named(folder: Path) -> None:
    table = predictions(120)
    tint = {row.slide_id: np.array([200.0, 150.0, 180.0]) + 40 * int(row.label) for row in table.itertuples()}
    found = controls(table, tint, {}, TARGET)
    found["controls"]["permuted_labels"] = {"available": True, "why": "x"} | chance()
    write_made(folder / "model", document(120, **found))
    with pytest.raises(StageRefusedError) as caught:
        gate(folder / "model", EXAMPLE)
    (line,) = [one for one in caught.value.failed if "controls" in one]
    assert "mean colour speaks against the model: the mean colour of the tissue alone reaches" in line
    assert "cannot be checked: site was not tested, the cohort states no site" in line
    assert str(caught.value).endswith("controls (mean colour, site)")
    assert read_stage(folder / "model").stage == "development"
    assert any("mean colour speaks against" in reason for reason in read_stage(folder / "model").reasons)


def test_a_model_without_figures_reaches_nothing(folder: Path) -> None:
    write_made(folder / "model", None)
    with pytest.raises(StageRefusedError, match=r"not met: patients_at_least, .*, controls, ") as caught:
        gate(folder / "model", EXAMPLE)
    assert all("the model carries no figures of a cross-validation" in line for line in caught.value.failed)


def test_a_stamp_lapses_with_the_model_it_was_given_to(folder: Path) -> None:
    gate(folder / "model", EXAMPLE)
    write_made(folder / "model", document(warnings=["another"]))
    assert "the model has changed" in read_stage(folder / "model").reasons[0]


def test_an_evaluation_of_another_model_or_of_none_is_refused(folder: Path) -> None:
    write_external(folder, "other", model_sha256="0" * 64)
    with pytest.raises(InputError, match="figures of another model than --model"):
        gate(folder / "model", EXAMPLE, [folder / "other"])
    write_results(folder / "own", {"cancer": (predictions(), document())})
    with pytest.raises(InputError, match="not of an external evaluation"):
        gate(folder / "model", EXAMPLE, [folder / "own"])
    with pytest.raises(InputError, match="does not exist"):
        gate(folder / "model", EXAMPLE, [folder / "nothing"])


def test_one_test_set_does_not_count_twice_and_every_evaluation_has_to_do(folder: Path) -> None:
    again = write_external(folder, "again")
    with pytest.raises(InputError, match="names one test set twice"):
        gate(folder / "model", EXAMPLE, [folder / "external", again])
    write_external(folder, "worse", test_set="22222222", share=0.3)
    found = gate(folder / "model", EXAMPLE, [folder / "external", folder / "worse"])
    assert found.stage == "silent"
    failed = [str(one) for one in found.checks if not one.met]
    assert failed
    assert all("external evaluation 2" in one for one in failed)


def test_an_evaluation_that_pathfm_wrote_is_of_the_model_it_was_made_with(
    folder: Path, embeddings_cohort: Callable[..., EmbeddingsCohort]
) -> None:
    cohort = embeddings_cohort(patients=12)
    evaluate(folder / "model", cohort.table, [cohort.embeddings], folder / "evaluated")
    found = gate(folder / "model", EXAMPLE, [folder / "evaluated"])
    assert found.stage == "silent"
    lines = {one.criterion: one.line for one in found.checks if one.evidence == "external"}
    assert lines["patients_at_least"] == "at least 200, found 12"
    assert lines["looks_at_most"] == "at most 3, found 1 by 1 models, up to and including that evaluation"
    assert "no frozen operating point" in lines["sensitivity_at_least"]


UNKNOWN = {"value": None, "low": None, "high": None}
CHANGES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("patients_at_least", 500, {}, "at least 500, found 400"),
    ("patients_each_class_at_least", 300, {}, "at least 300, found "),
    ("patients_each_class_at_least", 1, {"patient": None}, "cannot be checked"),
    ("figure_at_least", {"auroc": 0.999}, {}, "auroc at least 0.999, found 0"),
    ("figure_at_least", {"c_index": 0.1}, {}, "cannot be checked: the target has no figure c_index"),
    ("sensitivity_at_least", 0.99, {}, "1 at least 0.99, found "),
    (
        "specificity_at_least",
        0.5,
        {"operating_points": None},
        "cannot be checked: the model has no frozen operating point",
    ),
    ("slope_within", (1.5, 2.0), {}, "1 within 1.5 to 2, found "),
    ("calibration_error_at_most", 0.001, {}, "1 at most 0.001, found "),
    ("calibration_error_at_most", 1.0, {"calibration": None}, "cannot be checked"),
    ("worst_group_at_least", {"site": 0.999}, {}, ", the worst of 2 at least 0.999, found "),
    ("worst_group_at_least", {"scanner": 0.1}, {}, "cannot be checked: no figures by scanner"),
    ("controls", ("site",), {"controls": {}}, "cannot be checked: site was not tested"),
    ("leakage_checked", ("site",), {}, "cannot be checked: site (not looked for)"),
    (
        "leakage_checked",
        ("near-duplicate",),
        {"leakage": {"checked": LEAKS, "not_checked": [{"what": "near-duplicate", "why": "3 have no thumbnail"}]}},
        "near-duplicate (3 have no thumbnail)",
    ),
    ("leakage_checked", ("patient",), {"leakage": None}, "cannot be checked"),
    (
        "failed_at_most",
        0.004,
        {"left_out": [{"slide_id": "a", "reason": "no_embeddings"}] * 2},
        "found 2 of 402, 0.005",
    ),
    ("coverage_at_least", 0.5, {}, "cannot be checked: the model has no conformal sets"),
    (
        "coverage_at_least",
        0.9,
        {"conformal": {"classes": {"0": proportion(90, 100)}}},
        "0 at least 0.9, found 90 of 100",
    ),
    ("abstained_at_most", 0.1, {"conformal": {"abstained": proportion(10, 100)}}, "at most 0.1, found 10 of 100"),
    ("no_shift", True, {"shift": {"alarm": True, "sentence": "Alarm: the stain differs."}}, "the stain differs"),
    (
        "no_shift",
        True,
        {"shift": {"alarm": None, "sentence": "12 slides are too few."}},
        "cannot be checked: 12 slides",
    ),
    ("looks_at_most", 1, {"ledger": {"looks": 2, "models": 1}}, "at most 1, found 2"),
    ("looks_at_most", 1, {"ledger": None}, "cannot be checked"),
]


@pytest.mark.parametrize(("name", "bound", "changes", "line"), CHANGES)
def test_what_is_not_enough_or_not_known_is_not_met(name: str, bound: Any, changes: dict[str, Any], line: str) -> None:
    found = CRITERIA[name].check(document() | changes, bound)
    assert not found.met
    assert line in found.line


def test_every_criterion_can_be_missed() -> None:
    assert {name for name, *_ in CHANGES} == set(CRITERIA)


@pytest.mark.parametrize(
    ("name", "bound", "changes"),
    [
        ("coverage_at_least", 0.82, {"conformal": {"classes": {"0": proportion(90, 100)}}}),
        ("abstained_at_most", 0.2, {"conformal": {"abstained": proportion(10, 100)}}),
        ("failed_at_most", 0.0, {"left_out": [{"slide_id": "a", "reason": "no_label"}]}),
        ("controls", ("site",), {"controls": {}, "leakage": {"checked": ["site"], "not_checked": []}}),
    ],
)
def test_what_is_enough_is_met(name: str, bound: Any, changes: dict[str, Any]) -> None:
    assert CRITERIA[name].check(document() | changes, bound).met


def test_a_bound_is_held_against_the_worse_end_of_the_interval() -> None:
    found = document()
    low = min(found["patient"][name]["low"] for name in ("auroc", "auroc_delong"))
    value = found["patient"]["auroc"]["value"]
    assert low < value
    assert CRITERIA["figure_at_least"].check(found, {"auroc": low}).met
    assert not CRITERIA["figure_at_least"].check(found, {"auroc": value}).met


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("silent:\n", "has no keys under silent"),
        ("silent: {cross_validation: {}}", "declares no criterion for the stage 'silent'"),
        ("assisted: {external: {looks_at_most: 3}}", "declares no stage 'silent'"),
        ("slient: {}", "unknown stage 'slient'; near: silent"),
        ("silent: {crossval: {}}", "unknown evidence 'crossval'; near: cross_validation"),
        ("silent: {cross_validation: {patient_at_least: 3}}", "near: patients_at_least"),
        ("silent: {cross_validation: {no_shift: true}}", "which only external can answer"),
        ("silent: {external: {controls: [site]}}", "which only cross_validation can answer"),
        ("silent: {cross_validation: {controls: [colour]}}", "unknown control 'colour'; near: mean_colour"),
        ("silent: {cross_validation: {leakage_checked: []}}", "must be a list of some of patient"),
        ("silent: {cross_validation: {leakage_checked: patient}}", "must be a list of some of patient"),
        ("silent: {cross_validation: {patients_at_least: 0}}", "must be a whole number of 1 or more"),
        ("silent: {cross_validation: {patients_at_least: true}}", "must be a whole number of 1 or more"),
        ("silent: {cross_validation: {failed_at_most: 5}}", "must be a share from 0 to 1"),
        ("silent: {cross_validation: {failed_at_most: .nan}}", "must be a share from 0 to 1"),
        ("silent: {cross_validation: {slope_within: [2, 1]}}", "must be two numbers, the lower first"),
        ("silent: {cross_validation: {figure_at_least: 0.8}}", "must be names with a number each"),
        ("silent: {cross_validation: {figure_at_least: {auroc: 70}}}", "must be at most 1 for auroc"),
        ("silent: {external: {figure_at_least: {auroc_any: 1.1}}}", "must be at most 1 for auroc_any"),
        ("silent: {external: {worst_group_at_least: {site: 70}}}", "must be at most 1 for site"),
        ("silent: {external: {no_shift: false}}", "must be true; leave the line out"),
        ("silent: {external: {evaluations_at_least: -1}}", "must be a whole number of 1 or more"),
        (
            "silent: {cross_validation: {patients_at_least: 5, patients_at_least: 3}}",
            "the key patients_at_least stands twice",
        ),
        ("a: &a {x: 1}\nb: *a", "an alias"),
        ("silent: {<<: {cross_validation: {patients_at_least: 3}}}", "a key is no plain word"),
        ("silent: {", "cannot be read"),
        ("silent: !!python/object/apply:os.system [ls]", "cannot be read"),
        ("? [1]\n: 2", "a key is no plain word"),
        ("[" * 5000, "cannot be read"),
        ('x: !!int ""', "a value is not of the type that it states"),
        ("x: !!bool maybe", "a value is not of the type that it states"),
        ("x: !!timestamp today", "a value is not of the type that it states"),
        ("x: !!float high", "a value is not of the type that it states"),
        ("x: 2001-13-01", "a value is not of the type that it states"),
        ("silent: {cross_validation: {patients_at_least: 0x" + "f" * 5000 + "}}", "a number has more than 100 digits"),
        ("#" * 200_001, "larger than 200,000 bytes"),
    ],
)
def test_a_criteria_file_with_anything_that_is_not_understood_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write_criteria(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_criteria(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_figure_that_is_misspelt_is_no_figure_that_is_missed(folder: Path) -> None:
    path = write_criteria(folder, "silent: {cross_validation: {figure_at_least: {auroq: 0.7}}}")
    with pytest.raises(UnknownNameError, match="unknown figure 'auroq'; near: auroc"):
        gate(folder / "model", path)
    assert not (folder / "model" / "stage.json").exists()


def test_a_stage_that_the_file_does_not_declare_cannot_be_reached(folder: Path) -> None:
    path = write_criteria(folder, "silent: {cross_validation: {patients_at_least: 3}}")
    with pytest.raises(InputError, match="declares no criteria for the stage assisted"):
        gate(folder / "model", path, stage="assisted")
    assert gate(folder / "model", path, [folder / "external"]).stage == "silent"
    stamp = json.loads((folder / "model" / "stage.json").read_text())
    assert stamp["evaluations"][0]["n_patients"] == 400
    assert len(stamp["not_checked"]) == len(CRITERIA) - 1


def test_figures_that_are_none_are_refused_with_their_key(folder: Path) -> None:
    broken = document()
    broken["patient"]["auroc"] = {"value": "high"}
    write_made(folder / "model", broken)
    with pytest.raises(InputError, match=r"figures\.cancer .*patient\.auroc"):
        gate(folder / "model", EXAMPLE)


def test_a_perfect_figure_without_width_is_held_by_its_other_interval_or_not_at_all() -> None:
    found, least = document(), {"auroc": 0.8}
    found["patient"]["auroc"] = {"value": 1.0, "low": 1.0, "high": 1.0}
    found["patient"]["auroc_delong"] = {"value": 1.0, "low": 0.6, "high": 1.0}
    assert not CRITERIA["figure_at_least"].check(found, least).met
    del found["patient"]["auroc_delong"]
    assert "has no width" in CRITERIA["figure_at_least"].check(found, least).line


def screened(found: dict[str, Any]) -> dict[str, Any]:
    """With a screening whose DeLong interval of any begins at 0.72, the bootstrap's at 0.8, and no rare patients."""
    any_of = {
        "n": 40,
        "auroc": {"value": 0.9, "low": 0.8, "high": 0.95},
        "auroc_delong": {"value": 0.9, "low": 0.72, "high": 0.97},
        "at_point": None,
    }
    some = proportion(30, 40)
    return found | {
        "screening": {
            "negative": "0",
            "n_negative": 60,
            "any": any_of,
            "types": [],
            "strata": {"common": any_of, "rare": None},
            "origin": {"top1": None, "top1_of_all": None, "top1_without_point": some, "confusion": {}},
            "notes": [],
        }
    }


def test_a_screening_is_held_by_its_own_aurocs_at_the_end_that_is_worse() -> None:
    found, check = screened(document()), CRITERIA["figure_at_least"].check
    for name in ("auroc_any", "auroc_common"):
        assert check(found, {name: 0.7}).met
        assert not check(found, {name: 0.75}).met
    assert check(found, {"auroc_rare": 0.1}) == ("cannot be checked: auroc rare is not computable", False)
    own = found | {"figures": ["auroc_any"], "patient": {"auroc_any": {"value": 0.9, "low": 0.79, "high": 1.0}}}
    assert check(own, {"auroc_any": 0.79}).met, "of a label that is called any"
    assert "has no figure auroc_any" in check(document(), {"auroc_any": 0.1}).line


def test_the_gate_asks_a_screening_and_refuses_its_figures_where_there_is_none(folder: Path) -> None:
    path = write_criteria(
        folder,
        "silent: {cross_validation: {figure_at_least: {auroc_any: 0.7}}}\n"
        "assisted: {external: {figure_at_least: {auroc: 0.5, auroc_any: 0.7}}}",
    )
    with pytest.raises(UnknownNameError, match=r"unknown figure 'auroc_any'.*--claims.negative"):
        gate(folder / "model", path)
    write_made(folder / "model", screened(document()))
    assert gate(folder / "model", path).stage == "silent"
    write_external(folder)
    with pytest.raises(UnknownNameError, match=r"correct external\.figure_at_least"):
        gate(folder / "model", path, [folder / "external"])


def test_an_error_may_have_a_bound_above_1(tmp_path: Path) -> None:
    path = write_criteria(tmp_path, "silent: {cross_validation: {figure_at_least: {mean_absolute_error: 3}}}")
    assert read_criteria(path).stages["silent"]["cross_validation"] == {"figure_at_least": {"mean_absolute_error": 3.0}}
