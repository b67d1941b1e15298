from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pathfm.cohortfigures import scored_slides
from pathfm.controls import controls
from pathfm.files import canonical_json
from pathfm.permuted import _permuted, permuted_labels
from pathfm.targets import Classes, Cox, MultiLabel, Ordinal, Regression

TARGET = Classes("cancer", ("0", "1"))


def cohort(
    seed: int = 0, n: int = 60, model: float = 2.0, colour: float = 0.0, site: float = 0.0
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, str]]:
    """Predictions, colours and sites of n patients; `model`, `colour` and `site` say how much each knows of the label."""
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1], n // 2)
    score = 1 / (1 + np.exp(-(generator.normal(size=n) + model * (labels - 0.5))))
    predictions = pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(n)],
            "patient_id": [f"p{i}" for i in range(n)],
            "fold": np.arange(n) // 2 % 3,
            "label": labels.astype(str),
            "prob_0": 1 - score,
            "prob_1": score,
        }
    )
    rgb = 180 + 10 * generator.normal(size=(n, 3)) + 20 * colour * labels[:, None]
    at_a = generator.random(n) < 0.5 + site * (labels - 0.5)
    ids = predictions["slide_id"]
    return predictions, dict(zip(ids, rgb, strict=True)), dict(zip(ids, np.where(at_a, "A", "B"), strict=True))


def test_model_that_knows_more_than_colour_and_site_is_not_called_confounded() -> None:
    result = controls(*cohort(model=4.0), TARGET)
    assert result["confounded"]["verdict"] == "not seen"
    assert result["confounded"]["controls"] == []
    assert 0.3 < result["controls"]["mean_colour"]["auroc"]["value"] < 0.7
    assert result["controls"]["site"]["difference"]["low"] > 0


def test_cohort_confounded_by_site_says_so_and_names_the_site() -> None:
    result = controls(*cohort(model=4.0, site=0.9), TARGET)
    assert result["confounded"]["verdict"] == "confounded, or not excluded"
    assert result["confounded"]["controls"] == ["site"]
    assert "the site alone" in result["confounded"]["sentence"]
    assert "mean colour" not in result["confounded"]["sentence"]


def test_cohort_confounded_by_colour_says_so_and_names_the_colour() -> None:
    result = controls(*cohort(model=4.0, colour=2.0), TARGET)
    assert result["confounded"]["controls"] == ["mean_colour"]
    assert "the mean colour of the tissue alone" in result["confounded"]["sentence"]


def test_model_that_is_not_better_than_a_weak_control_is_not_excluded() -> None:
    result = controls(*cohort(model=0.0), TARGET)
    block = result["controls"]["mean_colour"]
    assert block["auroc"]["value"] < 0.7
    assert block["confounded"]
    assert "not shown to be better" in block["why"]


def test_difference_is_the_models_auroc_minus_the_controls() -> None:
    predictions, rgb, site = cohort(seed=3)
    from sklearn.metrics import roc_auc_score

    block = controls(predictions, rgb, site, TARGET)["controls"]["site"]
    model = roc_auc_score(predictions["label"].astype(int), predictions["prob_1"])
    assert block["difference"]["value"] == pytest.approx(model - block["auroc"]["value"])
    assert block["difference"]["low"] <= block["difference"]["value"] <= block["difference"]["high"]


def test_control_is_scored_on_folds_it_has_not_seen() -> None:
    # colours are random; a control that saw the scored slides would fit some of them, one that did not stays near chance
    values = []
    for seed in range(8):
        result = controls(*cohort(seed, n=24), TARGET)
        values.append(result["controls"]["mean_colour"]["auroc"]["value"])
    assert 0.3 < np.mean(values) < 0.58


def test_controls_that_cannot_be_computed_say_why() -> None:
    predictions, rgb, site = cohort()
    first = predictions["slide_id"][0]
    without = controls(predictions, {k: v for k, v in rgb.items() if k != first}, {}, TARGET)["controls"]
    assert not without["mean_colour"]["available"]
    assert "1 of 60 slides" in without["mean_colour"]["why"]
    assert "states no site" in without["site"]["why"]
    one = controls(predictions, rgb | {first: np.full(3, np.nan)}, dict.fromkeys(site, "A"), TARGET)
    assert "one site" in one["controls"]["site"]["why"]
    assert one["confounded"]["verdict"] == "not tested"


def test_unscored_slides_take_no_part() -> None:
    predictions, rgb, site = cohort()
    extra = predictions.iloc[:1].assign(slide_id="empty", prob_0=np.nan, prob_1=np.nan)
    assert controls(pd.concat([predictions, extra]), rgb, site, TARGET) == controls(predictions, rgb, site, TARGET)


def test_fold_that_holds_the_whole_of_a_class_makes_the_control_unavailable() -> None:
    predictions, rgb, site = cohort()
    predictions["fold"] = predictions["label"].astype(int)
    block = controls(predictions, rgb, site, TARGET)["controls"]["site"]
    assert not block["available"]
    assert "no slide left" in block["why"]


def test_site_seen_only_in_the_scored_fold_is_no_error() -> None:
    predictions, rgb, site = cohort()
    assert controls(predictions, rgb, site | {"s0": "elsewhere"}, TARGET)["controls"]["site"]["available"]


def test_three_classes_work_and_the_blocks_are_plain_json() -> None:
    predictions, rgb, site = cohort(n=60)
    predictions["label"] = [str(i // 2 % 3) for i in range(60)]
    predictions["fold"] = np.arange(60) // 6 % 3
    predictions["prob_2"] = 0.5
    result = controls(predictions, rgb, site, Classes("cancer", ("0", "1", "2")))
    assert canonical_json(result)
    assert result["controls"]["site"]["available"]


def test_an_ordinal_target_is_judged_by_its_kappa_without_the_bound_for_an_auroc() -> None:
    target = Ordinal("grade", ("0", "1", "2"))
    predictions, rgb, site = cohort()
    grades = np.arange(60) // 2 % 3
    predictions = predictions.assign(label=grades.astype(str), fold=np.arange(60) // 6 % 3)
    sure = np.eye(3)[grades] * 0.8 + 0.1
    predictions[target.names] = sure / sure.sum(axis=1, keepdims=True)
    coloured = {slide: 25.0 * grade + rgb[slide] for slide, grade in zip(predictions["slide_id"], grades, strict=True)}
    block = controls(predictions, coloured, site, target)["controls"]["mean_colour"]
    assert 0.7 < block["quadratic_kappa"]["value"] < 1
    assert not block["confounded"]
    assert "quadratic kappa" in block["why"]


def numbered(seed: int) -> tuple[pd.DataFrame, dict[str, Any], dict[str, str], np.ndarray]:
    predictions, rgb, site = cohort(seed)
    truth = np.random.default_rng(seed + 100).normal(10, 3, 60)
    return predictions.assign(label=[f"{value:.3f}" for value in truth]), rgb, site, truth


def test_a_number_that_colour_tells_as_well_as_the_model_is_confounded_and_one_that_it_does_not_is_not() -> None:
    target = Regression("ki67")
    predictions, rgb, site, truth = numbered(0)
    predictions["value"] = truth + np.random.default_rng(1).normal(0, 1, 60)
    assert controls(predictions, rgb, site, target)["confounded"]["verdict"] == "not seen"
    stained = {
        slide: np.full(3, value) + rgb[slide] / 100 for slide, value in zip(predictions["slide_id"], truth, strict=True)
    }
    result = controls(predictions, stained, site, target)
    assert result["confounded"]["controls"] == ["mean_colour"]
    assert result["controls"]["mean_colour"]["pearson_r"]["value"] > 0.95


def test_each_of_several_labels_has_a_control_of_its_own_in_the_mean_of_their_aurocs() -> None:
    target = MultiLabel("findings", ("a", "b"))
    predictions, rgb, site = cohort(model=4.0, n=80)
    has_a, has_b = np.tile([0, 1], 40), np.arange(80) // 4 % 2
    texts = [
        ";".join(name for name, has in (("a", a), ("b", b)) if has) or "none" for a, b in zip(has_a, has_b, strict=True)
    ]
    predictions = predictions.assign(label=texts, prob_a=0.2 + 0.6 * has_a, prob_b=0.2 + 0.6 * has_b)
    predictions["fold"] = np.arange(80) // 8 % 3
    coloured = {slide: rgb[slide] + 40 * has for slide, has in zip(predictions["slide_id"], has_b, strict=True)}
    plain, of_b = (controls(predictions, some, site, target)["controls"]["mean_colour"] for some in (rgb, coloured))
    assert plain["auroc"]["value"] < 0.65
    assert not plain["confounded"]
    assert 0.65 < of_b["auroc"]["value"] < 0.85  # 1 for b, chance for a


def test_survival_has_no_control_and_says_so() -> None:
    predictions, rgb, site = cohort()
    predictions = predictions.assign(label=[f"{i + 1}{'+' * (i % 2)}" for i in range(60)], risk=0.0)
    result = controls(predictions, rgb, site, Cox("months/dead"))
    assert result["confounded"]["verdict"] == "not tested"
    assert "no control for a target of the kind cox" in result["controls"]["site"]["why"]


def test_sites_that_are_kept_apart_by_the_folds_cannot_be_a_control() -> None:
    predictions, rgb, _ = cohort()
    kept = {slide: f"site {fold}" for slide, fold in zip(predictions["slide_id"], predictions["fold"], strict=True)}
    block = controls(predictions, rgb, kept, TARGET)["controls"]["site"]
    assert not block["available"]
    assert "no site is in two folds" in block["why"]
    unknown = kept | dict.fromkeys(list(kept)[:20], "")  # what is not known is no site that two folds share
    assert not controls(predictions, rgb, unknown, TARGET)["controls"]["site"]["available"]
    shared = kept | {"s0": "site 1"}
    assert controls(predictions, rgb, shared, TARGET)["controls"]["site"]["available"]


def means_of(predictions: pd.DataFrame, shift: Any = 0.0, seed: int = 0) -> dict[str, Any]:
    """Mean embeddings of 24 numbers, of which five follow the label and one what else is given."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(len(predictions), 24))
    rows[:, :5] += 2 * predictions["label"].astype(int).to_numpy()[:, None]
    rows[:, 5] += shift
    return dict(zip(predictions["slide_id"], rows, strict=True))


def test_labels_dealt_out_at_random_are_learned_no_better_than_by_chance() -> None:
    values = []
    for seed in range(4):
        predictions, rgb, site = cohort(seed, model=4.0)
        result = controls(predictions, rgb, site, TARGET, means_of(predictions, seed=seed + 1000), seed + 2000)
        block = result["controls"]["permuted_labels"]
        assert block["auroc"]["low"] < block["auroc"]["value"] < block["auroc"]["high"]
        assert block["difference"]["value"] > 0.3
        assert result["confounded"]["verdict"] == ("confounded, or not excluded" if block["confounded"] else "not seen")
        values.append(block["auroc"]["value"])
        assert canonical_json(result)
    assert 0.46 < np.mean(values) < 0.54


@pytest.mark.long
def test_permuted_labels_raise_a_false_alarm_in_about_one_cohort_of_forty() -> None:
    alarms, values = 0, []
    for seed in range(100):
        predictions = cohort(seed, n=48)[0]
        means = np.stack(list(means_of(predictions, seed=seed + 1000).values()))  # no two streams may be the same
        found = permuted_labels([predictions], means, TARGET, TARGET.metrics["auroc"], seed + 2000)
        assert not isinstance(found, str)
        values.append(found["value"])
        alarms += found["low"] > 0.5
    print(f"{alarms} of 100 cohorts above chance, mean AUROC {np.mean(values):.4f}")
    assert alarms <= 8  # of 2.5 expected; more than that in 1 of 1,000 runs
    assert abs(np.mean(values) - 0.5) < 0.01


def test_permuted_labels_that_can_be_learned_speak_against_the_model_and_are_named() -> None:
    predictions, rgb, site = cohort(n=80, model=4.0)
    rare = np.random.default_rng(5).random(80) < 0.2
    # two folds are of one hospital and rich in cancer, two of another and poor in it: who knows the hospital has the label
    here = np.where(rare, 1 - predictions["label"].astype(int), predictions["label"].astype(int))
    predictions["fold"] = 2 * here + np.arange(80) // 2 % 2
    result = controls(predictions, rgb, site, TARGET, means_of(predictions, 8.0 * here))
    assert result["confounded"]["verdict"] == "confounded, or not excluded"
    assert "permuted_labels" in result["confounded"]["controls"]
    assert "something besides the label leads across the folds" in result["controls"]["permuted_labels"]["why"]


def test_permuted_labels_alone_clear_no_model_of_colour_or_site() -> None:
    predictions, _, _ = cohort(model=4.0)
    result = controls(predictions, {}, {}, TARGET, means_of(predictions), seed=1)
    assert result["controls"]["permuted_labels"]["available"]
    assert not result["controls"]["permuted_labels"]["confounded"]
    assert result["confounded"]["verdict"] == "not tested"


def test_permuted_labels_without_all_embeddings_say_why_they_are_not_there() -> None:
    predictions, rgb, site = cohort()
    assert "60 of 60" in controls(predictions, rgb, site, TARGET)["controls"]["permuted_labels"]["why"]
    some = means_of(predictions.iloc[1:])
    assert "1 of 60" in controls(predictions, rgb, site, TARGET, some)["controls"]["permuted_labels"]["why"]


def test_all_slides_of_a_patient_get_the_label_of_one_other_of_their_fold() -> None:
    # were they dealt out slide by slide, the many slides of a patient would hardly ever be of one label
    predictions = cohort(n=40)[0]
    many = pd.concat([predictions.assign(slide_id=predictions["slide_id"] + f"-{k}") for k in range(4)])
    slides = scored_slides(many, TARGET)
    folds = many["fold"].to_numpy()
    drawn = _permuted(slides, folds, TARGET, np.random.default_rng(0))
    table = pd.DataFrame(
        {"patient": slides.patients, "fold": folds, "was": slides.truth[:, 0], "is": drawn.truth[:, 0]}
    )
    assert (table.groupby("patient")["is"].nunique() == 1).all()
    assert (table.groupby("fold")["was"].sum() == table.groupby("fold")["is"].sum()).all()
    assert (table["was"] != table["is"]).any()


def test_numbers_labels_and_grades_have_the_control_too_and_survival_has_not() -> None:
    predictions, rgb, site, truth = numbered(0)
    regression = controls(
        predictions.assign(value=truth),
        rgb,
        site,
        Regression("ki67"),
        dict.fromkeys(predictions["slide_id"], np.ones(3)),
    )
    assert not regression["controls"]["permuted_labels"][
        "available"
    ]  # of embeddings that are all alike nothing follows
    grades = np.arange(60) // 2 % 3
    plain = cohort()[0].assign(fold=np.arange(60) // 6 % 3)
    sure = pd.DataFrame(np.eye(3)[grades] * 0.8 + 0.1, columns=["prob_0", "prob_1", "prob_2"])
    graded = plain.assign(label=grades.astype(str), **{name: sure[name] / sure.sum(axis=1) for name in sure})
    block = controls(graded, {}, {}, Ordinal("grade", ("0", "1", "2")), means_of(graded))["controls"]["permuted_labels"]
    assert abs(block["quadratic_kappa"]["value"]) < 0.1
    survival = plain.assign(label=[f"{i + 1}" for i in range(60)], risk=0.0)
    dead = controls(survival, {}, {}, Cox("months/dead"), means_of(plain))["controls"]["permuted_labels"]
    assert "no control for a target of the kind cox" in dead["why"]


def test_controls_of_repeats_are_means_over_them_as_the_figures_are() -> None:
    first, rgb, site = cohort(seed=1)
    second = cohort(seed=2)[0].assign(fold=np.arange(60) // 4 % 3)
    apart = [controls(part, rgb, site, TARGET)["controls"]["mean_colour"] for part in (first, second)]
    rows = pd.concat([first.assign(repeat=0), second.iloc[::-1].assign(repeat=1)])
    both = controls(rows, rgb, site, TARGET)["controls"]["mean_colour"]
    for figure in ("auroc", "difference"):
        values = [block[figure]["value"] for block in apart]
        assert values[0] != values[1]
        assert both[figure]["value"] == pytest.approx(np.mean(values))
    assert controls(first.assign(repeat=0), rgb, site, TARGET)["controls"]["mean_colour"] == apart[0]
