from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import yaml
from conftest import EmbeddingsCohort

import pathfm.tune
from pathfm.cli import command_parser
from pathfm.cohort import read_cohort
from pathfm.crossval import crossval
from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.labelled import labelled_slides
from pathfm.options import read_options
from pathfm.outoffold import Folding, fold_column
from pathfm.settings import TrainSettings
from pathfm.space import SPACE, Candidate, Space
from pathfm.trials import Tried, best_of, search
from pathfm.tune import Tuned, tune

if TYPE_CHECKING:
    from pathfm.model import Model

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=2, hidden=8, attention=4, lr=1e-2, device="cpu")
SMALL = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "head": ["mean", "gated-abmil"]}
GIVEN = Candidate("mean", QUICK)


def _tune(cohort: EmbeddingsCohort, out: str = "tuned", **more: Any) -> Tuned:
    how = {"space": SMALL, "trials": 2, "inner_folds": 2, "folds": 2, "head": "mean", "training": QUICK} | more
    return tune(cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / out, **how)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """What each fit of a tuning was called, and the patients that it saw."""
    seen: list[tuple[str, set[str]]] = []
    fit_models = pathfm.tune.fit_models

    def recording(slides: Any, jobs: Any, head: str) -> list[Model]:
        usable = slides.usable["patient_id"].to_numpy()
        seen.extend((job.what, set(usable[[*job.rows.learn, *job.rows.stop]])) for job in jobs)
        return fit_models(slides, jobs, head)

    monkeypatch.setattr(pathfm.tune, "fit_models", recording)
    return seen


def _left_by_others(out: Path) -> list[Path]:
    """What crossval of several repeats, and a tuning of more folds, would have left in a folder."""
    models = ("folds/5", "repeats/1/0", "ensemble")
    left = [out / "repeats.csv", out / "searches" / "fold-5" / "search.json", *(out / m / "model.json" for m in models)]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return left


def test_no_search_sees_a_patient_of_its_fold_and_figures_are_of_the_whole_procedure(
    embeddings_cohort: Make, fitted: list[tuple[str, set[str]]]
) -> None:
    cohort = embeddings_cohort(patients=12)
    left = _left_by_others(cohort.table.parent / "tuned")
    result = _tune(cohort)
    assert not any(path.exists() for path in left)
    table = result.predictions["cancer"]
    assert table["prob_1"].notna().all()
    for fold in (0, 1):
        held_out = set(table["patient_id"][table["fold"] == fold])
        searches = [patients for what, patients in fitted if what.startswith(f"fold {fold + 1} of 2")]
        assert len(held_out) == 6
        assert len(searches) == 2 * 2 + 1  # trials by inner folds, and the model that is scored
        assert not any(held_out & patients for patients in searches)
    assert sum(what.startswith("all patients") for what, _ in fitted) == 4
    assert len(fitted) == 14
    _check_figures(result)
    _check_best(result)


def _check_figures(result: Tuned) -> None:
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["protocol"] == (
        "2-fold cross-validation by patient, settings picked for each fold out of 2 on 2 inner folds of its training patients"
    )
    trials = pd.read_csv(result.folder / "tune.csv")
    assert trials["search"].tolist() == ["fold-0"] * 2 + ["fold-1"] * 2 + ["all"] * 2
    assert trials.groupby("search")["picked"].sum().tolist() == [1, 1, 1]
    picked = trials[trials["picked"]].set_index("search")
    assert picked["value"].to_dict() == trials.groupby("search")["value"].max().to_dict()
    assert trials["lr"][trials["trial"] == 0].tolist() == [QUICK.lr] * 3
    assert set(trials["head"][trials["trial"] == 0]) == {"mean"}
    for fold in (0, 1):
        described = json.loads((result.folder / "folds" / str(fold) / "model.json").read_text())
        assert described["training"]["settings"]["lr"] == picked.loc[f"fold-{fold}", "lr"]
        assert described["heads"][0]["name"] == picked.loc[f"fold-{fold}", "head"]
    assert not list(result.folder.glob("searches/*/running"))


def _check_best(result: Tuned) -> None:
    for command, words in (("crossval", ["--embeddings", "e"]), ("run", [])):
        parser, _ = command_parser(command)
        config = ["--config", str(result.folder / "best.yaml"), "--cohort", "c", "--out", "o", *words]
        ready = parser.instantiate(read_options(parser, command, config))
        assert (ready.head, ready.training) == (result.best.head, result.best.settings)
        assert (ready.label, ready.folds) == ("cancer", 2)


def test_a_tuning_that_is_killed_goes_on_and_ends_like_one_that_was_not(
    embeddings_cohort: Make, fitted: list[tuple[str, set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = embeddings_cohort(patients=8)
    whole = _tune(cohort, "whole", trials=1)
    fits = len(fitted)
    write = pathfm.trials.write_json

    def killed(path: Path, value: Any) -> None:
        if path.match("fold-1/0.json"):
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(pathfm.trials, "write_json", killed)
    earlier = [cohort.table.parent / "killed" / name for name in ("best.yaml", "tune.csv", "predictions.csv")]
    earlier[0].parent.mkdir()
    for path in earlier:
        path.write_text("of other settings")
    with pytest.raises(KeyboardInterrupt):
        _tune(cohort, "killed", trials=1)
    assert not any(path.exists() for path in earlier)
    monkeypatch.setattr(pathfm.trials, "write_json", write)
    del fitted[:]
    again = _tune(cohort, "killed", trials=1)
    assert len(fitted) == fits - 2  # the search of fold 0 is not done again
    for name in ("tune.csv", "predictions.csv", "metrics.json"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    del fitted[:]
    _tune(cohort, "killed", trials=1)
    assert [what for what, _ in fitted] == ["fold 1 of 2", "fold 2 of 2"]  # taken, as they are there


def _search(folder: Path, space: Space, trials: int, value: Callable[[Candidate], float | None]) -> list[Tried]:
    return search(folder, "inputs", space, trials, 0, lambda candidate, _: value(candidate), "a search")


def test_a_search_that_is_killed_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    space = Space({"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "hidden": [64, 128]}, GIVEN)
    whole = _search(tmp_path / "whole", space, 14, lambda c: -c.settings.lr)
    calls = []

    def value(candidate: Candidate) -> float:
        calls.append(candidate)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return -candidate.settings.lr

    with pytest.raises(KeyboardInterrupt):
        _search(tmp_path / "killed", space, 14, value)
    assert _search(tmp_path / "killed", space, 14, value) == whole
    assert len(calls) == 15


def test_a_search_finds_the_settings_that_do_best(tmp_path: Path) -> None:
    space = Space({"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "hidden": [64, 128]}, GIVEN)
    tried = _search(tmp_path, space, 25, lambda c: -abs(c.settings.lr - 3e-3) + (c.settings.hidden == 128))
    best = tried[best_of(tried)].values
    assert best["hidden"] == 128
    assert 1e-3 < best["lr"] < 9e-3
    assert len({one.values["lr"] for one in tried}) == 25


def test_a_trial_that_diverges_is_listed_and_the_search_goes_on(tmp_path: Path) -> None:
    def value(candidate: Candidate) -> float | None:
        if candidate.settings.lr > 1e-3:
            message = "the training diverged"
            raise ModelError(message)
        return candidate.settings.lr

    tried = _search(tmp_path / "a", Space({"lr": {"low": 1e-4, "high": 1e-2}}, GIVEN), 8, value)
    assert {one.why for one in tried if one.value is None} == {"the training diverged"}
    assert tried[best_of(tried)].value is not None
    with pytest.raises(InputError, match="none of 2 trials came to an end; the first: the figure cannot be computed"):
        _search(tmp_path / "b", Space(SMALL, GIVEN), 2, lambda _: None)


def test_values_of_which_no_head_can_be_made_cost_their_trial(tmp_path: Path) -> None:
    given = Candidate("transformer", replace(QUICK, hidden=96))
    asked: list[Candidate] = []
    space = Space({"hidden": {"low": 96, "high": 104}}, given)  # between the bounds 8 heads share none of the widths
    tried = _search(tmp_path, space, 8, lambda candidate: asked.append(candidate) or 0.5)
    assert {one.settings.hidden for one in asked} <= {96, 104}
    whys = [one.why for one in tried if one.values["hidden"] not in (96, 104)]
    assert len(whys) > 1
    assert all("cannot be split into 8 heads" in why for why in whys)


def test_a_number_with_whole_bounds_is_drawn_as_one_unless_the_setting_or_the_option_takes_others(
    tmp_path: Path,
) -> None:
    declared = {"head_options.bag_weight": (0, 1), "head_options.instances": (1, 9), "clip": (1, 5), "hidden": (8, 80)}
    space = Space(
        {name: {"low": low, "high": high} for name, (low, high) in declared.items()}, Candidate("clam-sb", QUICK)
    )
    tried = _search(tmp_path, space, 6, lambda _: 0.5)
    whole = {name: all(isinstance(one.values[name], int) for one in tried[1:]) for name in declared}
    assert whole == {
        "head_options.bag_weight": False,
        "head_options.instances": True,
        "clip": False,
        "hidden": True,
    }


def test_a_choice_is_refused_where_it_goes_with_no_other() -> None:
    given = Candidate("transformer", QUICK)  # whose hidden layer of 8 three heads cannot share
    Space({"hidden": [96], "head_options.heads": [3, 6]}, given)
    Space({"hidden": [96, 100], "head": ["transformer", "mean"]}, given)
    for declared in ({"hidden": [96, 100]}, {"hidden": [100], "head": ["transformer", "mean"]}):
        with pytest.raises(InputError, match="hidden 100 cannot be split into 8 heads"):
            Space(declared, given)


def test_trials_of_other_inputs_are_not_taken_and_a_damaged_one_is_done_again(tmp_path: Path) -> None:
    asked = []

    def value(candidate: Candidate) -> float | None:
        asked.append(candidate)
        return 0.5

    _search(tmp_path, Space(SMALL, GIVEN), 3, value)
    _search(tmp_path, Space(SMALL, GIVEN), 3, value)
    assert len(asked) == 3
    (tmp_path / "1.json").write_text("{")
    _search(tmp_path, Space(SMALL, GIVEN), 3, value)
    assert asked[3:] == asked[1:3]
    _search(tmp_path, Space(SMALL | {"dropout": [0.1, 0.2]}, GIVEN), 3, value)
    assert len(asked) == 8
    (tmp_path / "search.json").write_text("{")
    _search(tmp_path, Space(SMALL | {"dropout": [0.1, 0.2]}, GIVEN), 3, value)
    assert asked[8:] == asked[5:8]


def test_settings_that_are_drawn_again_are_not_trained_again(tmp_path: Path) -> None:
    asked = []
    tried = _search(tmp_path, Space({"hidden": [64, 128]}, GIVEN), 9, lambda c: asked.append(c) or c.settings.hidden)
    assert len(tried) == 9
    assert len(asked) == 2
    assert all(one.value == one.values["hidden"] for one in tried)


def test_options_of_a_head_are_drawn_for_that_head_alone(tmp_path: Path) -> None:
    space = Space(
        {"head": ["mean", "clam-sb"], "head_options.instances": [4, 8], "lr": {"low": 1e-4, "high": 0.1}}, GIVEN
    )
    drawn: list[Candidate] = []
    _search(tmp_path, space, 8, lambda candidate: drawn.append(candidate) or 0.5)
    assert {head for head, _ in drawn} == {"mean", "clam-sb"}
    for head, settings in drawn:
        assert set(settings.head_options) == ({"instances"} if head == "clam-sb" else set())


def test_given_options_of_a_head_stay_with_it() -> None:
    given = Candidate("clam-sb", replace(QUICK, head_options={"instances": 4}))
    space = Space({"head": ["mean", "clam-sb"]}, given)
    assert space.candidate({"head": "clam-sb"}).settings.head_options == {"instances": 4}
    assert space.candidate({"head": "mean"}).settings.head_options == {}
    with pytest.raises(UnknownNameError, match="unknown option of the head mean 'instances'"):
        Space({"lr": [1e-3]}, Candidate("mean", given.settings))


@pytest.mark.parametrize(
    ("declared", "error", "says"),
    [
        ({}, InputError, "--space is empty"),
        ({"learning_rate": [1, 2]}, UnknownNameError, "unknown setting 'learning_rate'"),
        ({"lrr": [1, 2]}, UnknownNameError, "near: lr"),
        ({"seed": [1, 2]}, UnknownNameError, "unknown setting 'seed'"),
        ({"head": ["mean", "meen"]}, UnknownNameError, "near: mean"),
        ({"head_options.instances": [4]}, UnknownNameError, "unknown setting 'head_options.instances'"),
        ({"lr": {"low": 0.1, "high": 0.01}}, InputError, "low below high"),
        ({"lr": {"low": 0, "high": 0.01, "log": True}}, InputError, "above 0 with log: true"),
        ({"lr": {"lo": 0.1, "high": 0.2}}, InputError, "--space has lr"),
        ({"lr": []}, InputError, "--space has lr"),
        ({"lr": {"low": 0.1, "high": 2}}, InputError, "--training.lr is 2"),
        ({"dropout": [0.1, 1.5]}, InputError, "--training.dropout is 1.5"),
        ({"schedule": ["cosin"]}, InputError, "--training.schedule is 'cosin'; it must be cosine or one-cycle"),
        ({"precision": ["bf-16"]}, InputError, "--training.precision is 'bf-16'"),
        ({"precision": [32, 16]}, InputError, "precision 16 needs a cuda device"),
        ({"epochs": [1.5]}, InputError, "--training.epochs is 1.5; it must be a whole number"),
        ({"epochs": {"low": 1.5, "high": 3}}, InputError, "--training.epochs is 1.5; it must be a whole number"),
        ({"lr": ["1e-3"]}, InputError, "--training.lr is '1e-3'; it must be a number"),
        ({"class_weights": ["no"]}, InputError, "--training.class_weights is 'no'; it must be true or false"),
        ({"head": ["transformer"], "head_options.layers": [-3]}, InputError, "layers, .* is -3"),
        ({"head": ["transformer"], "head_options.layers": {"low": -3, "high": 2}}, InputError, "layers, .* is -3"),
        ({"head": ["transformer"], "hidden": {"low": 100, "high": 300}}, InputError, "hidden 100 cannot be split"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_any_training(
    declared: dict[str, Any], error: type[InputError], says: str
) -> None:
    with pytest.raises(error, match=says):
        Space(declared, GIVEN)


def test_too_many_inner_folds_are_said_by_their_own_name(embeddings_cohort: Make) -> None:
    with pytest.raises(InputError, match=r"--inner_folds 4 .* use --inner_folds 3"):
        _tune(embeddings_cohort(patients=12), inner_folds=4)
    with pytest.raises(InputError, match="--trials is 0"):
        _tune(embeddings_cohort(patients=12), trials=0)


def test_a_space_that_the_target_cannot_have_is_refused_before_any_training(
    embeddings_cohort: Make, fitted: list[tuple[str, set[str]]]
) -> None:
    cohort = embeddings_cohort(patients=12)
    cohort.rewrite(cohort.frame().assign(months=range(1, 13), died=["1", "1", "0"] * 4))
    with pytest.raises(InputError, match=r"--training\.batch_size is 1, and a Cox model"):
        tune(
            cohort.table,
            [cohort.embeddings],
            "months/died:cox",
            cohort.table.parent / "tuned",
            {"batch_size": {"low": 1, "high": 8}},
            training=QUICK,
        )
    assert not fitted


def test_inner_folds_that_a_later_search_cannot_have_are_said_before_the_first_training(
    embeddings_cohort: Make, fitted: list[tuple[str, set[str]]]
) -> None:
    cohort = embeddings_cohort(patients=12)
    cohort.rewrite(cohort.frame().assign(cancer=["1"] * 5 + ["0"] * 7))
    slides = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    of_class = fold_column(slides, Folding(2), QUICK.seed)[slides.table["label"] == "1"].tolist()
    assert (of_class.count(0), of_class.count(1)) == (2, 3)  # so the search of the second fold has 2 to learn from
    with pytest.raises(InputError, match="--inner_folds 3 is more than class '1' has patients"):
        _tune(cohort, inner_folds=3, trials=1)
    assert not fitted


def test_the_shipped_space_is_that_of_the_command() -> None:
    shipped = yaml.safe_load((Path(__file__).parent.parent / "configs" / "tune.yaml").read_text())
    assert shipped["space"] == SPACE
    Space(SPACE, Candidate("gated-abmil", TrainSettings()))


@pytest.mark.long
def test_a_tuned_model_is_no_better_than_chance_where_there_is_nothing_to_learn(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=40)
    frame = cohort.frame()
    cohort.rewrite(frame.assign(cancer=frame["cancer"].sample(frac=1, random_state=3).to_numpy()))
    tuned = _tune(cohort, trials=12, inner_folds=3, folds=4).metrics["cancer"]["patient"]["auroc"]
    searched = pd.read_csv(cohort.table.parent / "tuned" / "tune.csv")
    best = searched[searched["picked"] & (searched["search"] == "all")]["value"].item()
    config = cohort.table.parent / "tuned" / "best.yaml"
    print(
        f"nested AUROC {tuned['value']:.3f} ({tuned['low']:.3f} to {tuned['high']:.3f}), of the search itself {best:.3f}: {config}"
    )
    assert tuned["low"] < 0.5
    result = crossval(cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / "cv", 4, training=QUICK)
    assert result.metrics["cancer"]["patient"]["auroc"]["low"] < 0.5
