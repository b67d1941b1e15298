from __future__ import annotations

import re
from typing import Any

import pytest
from claimed import at_point, calibration, figure, of_two_classes, screening, shift

from pathfm.frequencies import frequencies
from pathfm.phrases import figure_name, named_figures
from pathfm.plainly import plain_summary
from pathfm.stage import StageStamp
from pathfm.targets import KINDS
from pathfm.words import percent, percent_interval, share

DEVELOPMENT = StageStamp("development", ("no release gate has let it pass",), "", "")
TESTED = {"available": True, "confounded": False, "why": "the site alone reaches 0.5"}


def target_of_kind(kind: str = "classes", name: str = "cancer") -> Any:
    facts = {"classes": ["0", "1"], "labels": ["x"], "mean": 0.0, "std": 1.0, "cuts": []}
    return KINDS[kind].of_facts(name, facts)


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "figures": ["auroc"],
        "unit": "slide",
        "protocol": "5-fold cross-validation by patient",
        "n_slides": 288,
        "n_patients": 250,
        "left_out": [],
        "patient": {"auroc": figure(0.93, 0.88, 0.97), "n": 250, "n_by_class": {"0": 200, "1": 50}},
        "controls": {"site": TESTED},
        "confounded": {"verdict": "not seen", "controls": []},
        "folds": [{"fold": 0}],
        "warnings": [],
        **of_two_classes(),
        **changes,
    }


def summed_up(**changes: Any) -> Any:
    return plain_summary(target_of_kind(), metrics(**changes), DEVELOPMENT)


def test_every_claim_has_its_interval() -> None:
    types = {"screening": screening(["lung", "colon"], "none"), "prevalence": 0.01}
    for lines in (summed_up().can, summed_up(**types).can):
        assert len(lines) >= 5
        assert [line for line in lines if not re.search(r"95 % interval|95 % intervals", line)] == []
        assert [line for line in lines if not re.search(r"\d.* \(.*[\d.]+ to [\d.]+", line)] == []


def test_without_figures_nothing_is_claimed() -> None:
    blocks = dict.fromkeys(of_two_classes())
    unknown = dict.fromkeys(("value", "low", "high"))
    none = {"auroc": unknown, "n": 3, "n_by_class": {"0": 3, "1": 0}}
    for patient in (None, none):
        plain = summed_up(patient=patient, **blocks)
        assert plain.can == []
        assert "could not be computed" in plain.cannot[0]


def test_figure_whose_interval_holds_chance_is_no_claim() -> None:
    chance = {"auroc": figure(0.6, 0.5, 0.7), "n": 250, "n_by_class": {"0": 200, "1": 50}}
    plain = summed_up(patient=chance)
    assert "not shown to be better than guessing" in plain.cannot[0]
    assert "0.6" not in "".join(plain.can)
    assert not any("100 pairs" in line for line in plain.can)


@pytest.mark.parametrize(
    ("value", "told"), [(0.9249, "92"), (0.926, "93"), (0.9999, "99"), (1.0, "100"), (0.001, "1"), (0.0, "0")]
)
def test_pairs_of_a_hundred_are_rounded_like_the_table_and_never_to_certainty(value: float, told: str) -> None:
    chance = {"auroc": figure(value, 0.0, 1.0), "n": 250, "n_by_class": {"0": 200, "1": 50}}
    assert f"in about {told} (95 % interval 0 to 100)" in summed_up(patient=chance).cannot[0]


def test_common_and_rare_cancers_are_told_apart_and_those_that_may_be_chance_are_not_claimed() -> None:
    block = screening(["lung", "colon"], "none")
    block["strata"]["rare"] = block["strata"]["rare"] | {"n": 9, "auroc": figure(0.7, 0.5, 0.9)}
    plain = summed_up(screening=block)
    (common,) = [line for line in plain.can if "common cancers" in line]
    assert "common cancers (50 patients) and one without cancer" in common
    assert "in about 95 (95 % interval 91 to 98). At the operating point it flags 46 of 50 of them" in common
    assert not any("rare cancers" in line for line in plain.can)
    assert any("not shown to be better than guessing on rare cancers" in line for line in plain.cannot)
    block["strata"] = {"common": block["strata"]["common"] | {"auroc": dict.fromkeys(("value", "low", "high"))}}
    assert any("How it does on common cancers (50 patients)" in line for line in summed_up(screening=block).cannot)


def test_naming_the_type_is_told_of_the_flagged_and_of_all() -> None:
    (line,) = [one for one in summed_up(screening=screening(["lung", "colon"], "none")).can if "names first" in one]
    assert (
        "40 of 46, 87 % (74 to 94 %); of all patients with cancer, missed ones too, it flags and names 40 of 50" in line
    )


def test_weakest_group_is_named_only_where_chance_seldom_makes_one_as_weak() -> None:
    for p, named in ((0.1, True), (0.11, False), (None, False)):
        block = of_two_classes()["subgroups"]
        block["columns"]["site"]["p"] = p
        assert any("weakest where site" in line for line in summed_up(subgroups=block).cannot) == named


def test_first_figure_of_a_screening_is_that_of_any_and_the_mean_is_named_as_one() -> None:
    target = KINDS["classes"].of_facts("cancer", {"classes": ["none", "lung", "colon"]})
    document = metrics(screening=screening(["lung", "colon"], "none"))
    names = [name for name, _ in named_figures(target, document)]
    assert names == ["AUROC of any cancer", "AUROC, mean over one class against the rest"]
    assert named_figures(target, document)[0][1]["value"] == 0.95
    assert figure_name(target_of_kind(), metrics(), "auroc") == "AUROC"


def test_confounding_is_the_first_thing_said_and_one_that_was_not_tested_too() -> None:
    plain = summed_up(confounded={"verdict": "confounded, or not excluded", "controls": ["mean_colour", "site"]})
    assert plain.alarm.startswith("Confounded, or not excluded: mean tissue colour and site")
    assert "not tested" in summed_up(confounded={"verdict": "not tested", "controls": []}).alarm
    assert summed_up().alarm == ""


def test_perfect_figure_says_that_its_interval_has_no_width() -> None:
    perfect = {"auroc": figure(1.0, 1.0, 1.0), "n": 24, "n_by_class": {"0": 12, "1": 12}}
    assert "100 (95 % interval 100 to 100); with so few patients" in summed_up(patient=perfect).can[0]


def test_natural_frequencies_are_told_with_ranges_and_only_where_a_prevalence_is_stated() -> None:
    line = next(line for line in summed_up().can if line.startswith("Of 1,000"))
    assert "Of 1,000 patients like these, 50 of them with cancer (a stated prevalence of 5 %)" in line
    # sensitivity 46 of 50 (Wilson 0.811 to 0.968), specificity 190 of 200 (0.910 to 0.973)
    assert "would flag 46 (40 to 49) of the 50 and miss 4 (1 to 10)" in line
    assert "of the 950 without, it would flag 48 (26 to 86) by mistake" in line
    point = {"rule": "youden", "outcomes": {"1": {"patient": at_point(46, 4, 10, 190), "slide": None}}, "notes": []}
    plain = summed_up(operating_points=point, prevalence=None)
    assert not any("patients like these" in line for line in plain.can)
    assert any("no prevalence was stated" in line for line in plain.cannot)
    assert any("no operating point was chosen" in line for line in summed_up(operating_points=None).cannot)


@pytest.mark.parametrize(
    ("prevalence", "told"), [(0.2, "Of 1,000 "), (0.001, "Of 10,000 "), (0.00002, "Of 1,000,000 ")]
)
def test_a_rare_condition_is_told_of_as_many_patients_as_have_some_of_it(prevalence: float, told: str) -> None:
    assert frequencies(at_point(46, 4, 10, 190), prevalence, "cancer").startswith(told)


def test_ends_of_a_range_are_rounded_outward_and_unknown_shares_give_none() -> None:
    assert "would flag 10 (7 to 10) of the 10 and miss 0 (0 to 3)" in frequencies(at_point(9, 0, 0, 9), 0.01, "x")
    assert frequencies(at_point(0, 0, 1, 9), 0.01, "x") == ""


def test_stage_and_numbers_of_patients_are_said() -> None:
    plain = summed_up()
    assert plain.stage.startswith("Development: for research on stored slides")
    assert "No release gate has let it pass." in plain.stage
    assert plain.rests_on[0] == "250 patients (50 with cancer, 200 without) with 288 slides."
    silent = StageStamp("silent", ("a criterion",), "0123456789abcdef", "2024-05-01T10:00:00Z")
    assert "Given on 2024-05-01 by the criteria 01234567" in plain_summary(target_of_kind(), metrics(), silent).stage


def test_what_speaks_against_it_is_said() -> None:
    few = {"auroc": figure(0.9, 0.7, 1.0), "n": 12, "n_by_class": {"0": 8, "1": 4}}
    said = " ".join(summed_up(patient=few, shift=shift("the slides differ")).cannot)
    assert "Too few patients (0: 8, 1: 4)" in said
    assert "has reservations (1)" in said
    sure = {"rule": "youden", "outcomes": {"1": {"patient": at_point(40, 10, 0, 200), "slide": None}}, "notes": ["x"]}
    told = " ".join(summed_up(operating_points=sure).cannot)
    assert "3,688 negatives without a false positive" in told
    assert "reservations" not in told
    assert "weakest where site is south: AUROC 0.81 (95 % interval 0.70 to 0.91), 115 patients" in said
    assert "looked at 7 times" in said
    assert "The slides differ." in said
    assert "another hospital" in said


@pytest.mark.parametrize(
    ("slope", "said"), [(figure(0.5, 0.3, 0.8), "too extreme"), (figure(1.9, 1.2, 2.5), "too timid")]
)
def test_probabilities_that_are_off_are_not_claimed(slope: dict[str, float], said: str) -> None:
    plain = summed_up(calibration=calibration("1", slope))
    assert any(said in line for line in plain.cannot)
    assert not any("not seen to be off" in line for line in plain.can)
    assert any("no" in line and "probability" in line for line in summed_up(calibration=None).cannot)


@pytest.mark.parametrize(
    ("slope", "n"), [(figure(0.17, -4.36, 4.48), 250), (figure(1.0, 0.49, 1.5), 250), (figure(1.05, 0.8, 1.3), 49)]
)
def test_probabilities_of_too_few_patients_to_tell_are_not_claimed(slope: dict[str, float], n: int) -> None:
    block = calibration("1", slope)
    block["outcomes"]["1"]["n"] = n
    plain = summed_up(calibration=block)
    (line,) = [line for line in plain.cannot if line.startswith("Whether its probability of cancer can be taken")]
    assert f"at its word: too few patients, {n} (slope {slope['value']:.2f} (95 % interval" in line
    assert not any("probability" in line for line in plain.can)


def test_one_is_told_in_the_singular() -> None:
    left = [{"slide_id": "a", "reason": "no_label"}]
    lines = summed_up(n_slides=1, left_out=left).rests_on
    assert lines[0].endswith("with 1 slide.")
    assert lines[-1] == "1 slide of the cohort took no part."
    assert summed_up(left_out=left * 2).rests_on[-1] == "2 slides of the cohort took no part."


def test_a_risk_is_told_by_who_has_the_event_first_and_a_number_by_its_figure() -> None:
    main = {"c_index": figure(0.7, 0.6, 0.8), "n": 90, "n_by_class": {"event": 40}}
    blocks = dict.fromkeys(of_two_classes())
    plain = plain_summary(
        target_of_kind("cox", "t/e"), metrics(figures=["c_index"], patient=main, **blocks), DEVELOPMENT
    )
    assert "had the event first" in plain.can[0]
    assert "70 (95 % interval 60 to 80)" in plain.can[0]
    main = {"pearson_r": figure(0.7, 0.6, 0.8), "n": 90, "n_by_class": {}}
    number = metrics(figures=["pearson_r"], patient=main, **blocks)
    assert (
        "0.70 (95 % interval 0.60 to 0.80)" in plain_summary(target_of_kind("regression"), number, DEVELOPMENT).can[0]
    )


def test_percents_are_not_rounded_up_to_certainty() -> None:
    assert [percent(value) for value in (1.0, 0.9996, 0.99, 0.005, 0.0004, 0.0, 0.505)] == [
        *("100", "99.9", "99", "0.5", "0.1", "0", "50")
    ]
    assert percent_interval(figure(0.9996, 0.998, 1.0)) == "99.9 % (99.8 to 100 %)"
    assert percent_interval(None) == share(None) == "not available"
