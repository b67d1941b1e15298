from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings

from pathfm.cohort import read_cohort
from pathfm.crossval import CrossValidation, crossval
from pathfm.embeddings import write_embeddings
from pathfm.errors import InputError, UnknownNameError
from pathfm.handon import hand_on, refit
from pathfm.heads import build_head
from pathfm.labelled import labelled_slides
from pathfm.licences import Licence
from pathfm.model import Model, read_model
from pathfm.outoffold import Folding, fold_column, fold_job, fold_warnings, out_of_fold
from pathfm.predict import predict
from pathfm.scoring import score_tables
from pathfm.settings import TrainSettings
from pathfm.targets import Classes, Task
from pathfm.train import fit_models

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.labelled import LabelledSlides

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=4, hidden=16, attention=8, lr=1e-2, device="cpu")


def _crossval(
    cohort: EmbeddingsCohort, folds: int = 3, training: TrainSettings = QUICK, out: str = "cv", **more: Any
) -> CrossValidation:
    place = cohort.table.parent / out
    return crossval(
        cohort.table, [cohort.embeddings], more.pop("label", "cancer"), place, folds, training=training, **more
    )


def _fit_fold(slides: LabelledSlides, fold_of: pd.Series[int], folder: Path) -> tuple[Model, pd.DataFrame]:
    """The model of fold 1, and its scores of it."""
    (model,) = fit_models(slides, [fold_job(slides, fold_of, 1, QUICK, folder, "fold")], "gated-abmil")
    return model, score_tables(model, slides.table.assign(fold=1)[(fold_of == 1).astype(bool)], "fold")["cancer"]


def _logs(out: Path) -> dict[str, int]:
    return {path.parent.name: len(list(path.iterdir())) for path in sorted(out.glob("folds/*/logs"))}


def test_every_slide_is_scored_by_the_model_that_has_not_seen_its_patient(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=12, slides=2))
    folds = pd.read_csv(result.folder / "folds.csv", dtype=str)
    assert list(folds.columns) == ["slide_id", "patient_id", "label", "fold"]
    assert len(folds) == 24
    for fold, rows in folds.groupby("fold"):
        seen = read_model(result.folder / "folds" / str(fold)).training
        assert not set(rows["patient_id"]) & set(seen["patients"])
        assert not set(rows["slide_id"]) & set(seen["slides"])
        assert len(seen["patients"]) == 8
    table = pd.read_csv(result.folder / "predictions.csv", dtype=str)
    assert table[["slide_id", "fold"]].equals(folds[["slide_id", "fold"]])


def test_neither_labels_nor_embeddings_of_the_scored_fold_reach_its_model(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    slides = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    fold_of = fold_column(slides, Folding(3), 0)
    root = cohort.table.parent
    before, scores = _fit_fold(slides, fold_of, root / "before")
    frame = cohort.frame()
    scored = (fold_of == 1).to_numpy(dtype=bool)
    frame.loc[scored, "cancer"] = frame.loc[scored, "cancer"].map({"0": "1", "1": "0"})
    cohort.rewrite(frame)
    flipped = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    _, after = _fit_fold(flipped, fold_of, root / "after")
    assert after["prob_1"].tolist() == scores["prob_1"].tolist()
    assert after["label"].tolist() != scores["label"].tolist()
    for slide in frame["slide_id"][scored]:
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 1, n=50, seed=7))
    moved = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    third, _ = _fit_fold(moved, fold_of, root / "third")
    for name, value in before.heads[0].state_dict().items():
        assert torch.equal(third.heads[0].state_dict()[name], value)


def test_a_lesion_that_can_be_learned_is_found_and_one_that_is_not_there_is_not(embeddings_cohort: Make) -> None:
    settings = TrainSettings(**{**vars(QUICK), "epochs": 12})
    real = embeddings_cohort(patients=24, name="real")
    assert _crossval(real, training=settings, out="a").metrics["cancer"]["patient"]["auroc"]["value"] > 0.9
    shuffled = embeddings_cohort(patients=24, name="shuffled")
    frame = shuffled.frame()
    shuffled.rewrite(frame.assign(cancer=frame["cancer"].sample(frac=1, random_state=2).to_numpy()))
    auroc = _crossval(shuffled, training=settings, out="b").metrics["cancer"]["patient"]["auroc"]
    assert auroc["low"] < 0.5


def test_the_metrics_say_how_they_were_got(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=14))
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert {"cancer": metrics} == result.metrics
    assert metrics["protocol"] == "3-fold cross-validation by patient"
    assert metrics["target"] == {"name": "cancer", "kind": "classes", "classes": ["0", "1"]}
    assert (metrics["n_slides"], metrics["n_patients"]) == (14, 14)
    assert set(metrics["controls"]) == {"mean_colour", "site", "permuted_labels"}
    assert metrics["confounded"]["verdict"] in ("confounded, or not excluded", "not seen")
    for fold in metrics["folds"]:
        assert fold["n_train_patients"] + fold["n_stop_patients"] + fold["n_scored_patients"] == 14
        assert fold["n_stop_patients"] == 2
    text = str(result)
    assert "by patient: auroc" in text
    assert metrics["confounded"]["sentence"] in text


def test_run_again_nothing_is_trained_and_the_same_is_said(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    first = _crossval(cohort)
    files = {name: (first.folder / name).read_bytes() for name in ("predictions.csv", "metrics.json", "folds.csv")}
    logs = _logs(first.folder)
    _crossval(cohort)
    assert _logs(first.folder) == logs
    assert {name: (first.folder / name).read_bytes() for name in files} == files


def test_changed_embeddings_train_again_where_they_were_learned_from_and_nowhere_else(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    first = _crossval(cohort)
    fold = str(first.predictions["cancer"].set_index("slide_id")["fold"]["p03-0"])
    times = {path.parent.name: path.stat().st_mtime_ns for path in first.folder.glob("folds/*/model.json")}
    write_embeddings(cohort.file("p03-0"), planted_embeddings("p03-0", 1, seed=5))
    _crossval(cohort)
    changed = {
        path.parent.name
        for path in first.folder.glob("folds/*/model.json")
        if path.stat().st_mtime_ns != times[path.parent.name]
    }
    assert changed == {"0", "1", "2"} - {fold}


def test_fewer_folds_leave_no_old_fold_behind(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    result = _crossval(cohort, folds=4)
    assert set(_logs(result.folder)) == {"0", "1", "2", "3"}
    _crossval(cohort, folds=2)
    assert set(_logs(result.folder)) == {"0", "1"}


def test_slides_that_cannot_be_scored_stand_in_the_table_without_a_score(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12, slides=2)
    write_embeddings(cohort.file("p02-0"), planted_embeddings("p02-0", 0, n=0))
    for slide in ("p05-0", "p05-1"):
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 1, n=0))
    result = _crossval(cohort)
    table = pd.read_csv(result.folder / "predictions.csv", dtype=str, keep_default_na=False).set_index("slide_id")
    assert list(table.index) == list(cohort.frame()["slide_id"])
    assert table.loc["p02-0", "fold"] == table.loc["p02-1", "fold"] != ""
    assert table.loc["p05-0", "fold"] == ""
    assert set(table.loc[["p02-0", "p05-0", "p05-1"], "reason"]) == {"no_tissue"}
    assert set(table.loc[["p02-0", "p05-0", "p05-1"], "prob_1"]) == {""}
    assert result.metrics["cancer"]["n_slides"] == 21
    assert len(result.metrics["cancer"]["left_out"]) == 3


def test_too_few_patients_for_early_stopping_is_said_in_the_warnings(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=6), folds=3)
    assert any("early stopping in fold 0, 1, 2" in warning for warning in result.metrics["cancer"]["warnings"])
    assert result.epochs == QUICK.epochs


def test_a_split_column_is_not_used_and_that_is_said(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    cohort.rewrite(cohort.frame().assign(split=["train", "test"] * 6))
    assert any("split" in warning for warning in _crossval(cohort).metrics["cancer"]["warnings"])


def test_more_folds_than_patients_and_unknown_heads_are_errors(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=6)
    with pytest.raises(InputError, match="use --folds 3"):
        _crossval(cohort, folds=5)
    with pytest.raises(UnknownNameError, match="near: abmil"):
        crossval(
            cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / "x", 3, head="abmill", training=QUICK
        )


def test_the_refit_learns_from_every_slide_for_the_epochs_of_the_folds(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    result = _crossval(cohort)
    out = cohort.table.parent / "model"
    model = refit(
        cohort.table, [cohort.embeddings], "cancer", out, result.epochs, training=QUICK, figures=result.metrics
    )
    assert len(model.training["patients"]) == 12
    assert model.training["n_stop_patients"] == 0
    assert model.training["epochs"] == result.epochs
    assert read_model(out).figures == result.metrics
    before = (out / "model.safetensors").read_bytes()
    refit(cohort.table, [cohort.embeddings], "cancer", out, result.epochs, training=QUICK)
    assert (out / "model.safetensors").read_bytes() == before
    assert read_model(out).figures is None


def test_a_model_that_says_anything_else_than_that_in_the_folder_takes_its_place(tmp_path: Path) -> None:
    training = {"fingerprint": "f", "epochs": 1, "patients": ["a"], "slides": {"a-0": ""}, "sites": []}
    heads, task = (build_head("mean", 8, 2, hidden=4).eval(),), Task((Classes("cancer", ("0", "1")),))
    model = Model(heads=heads, task=task, recipe=RECIPE, training=training)
    hand_on(model, tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    hand_on(replace(model), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    other_task = Task((Classes("tumour", ("0", "1")),))
    for change in (
        {"licences": (Licence("planted", "CC-BY-NC-ND-4.0", "non-commercial"),)},
        {"unit": "patient"},
        {"task": other_task, "tasks": (other_task,)},
        {"figures": {"cancer": {}}},
    ):
        model = replace(model, **change)
        hand_on(model, tmp_path)
        assert replace(read_model(tmp_path), heads=()) == replace(model, heads=())


def test_by_site_no_site_is_on_both_sides_and_the_protocol_says_so(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=18)
    frame = cohort.frame()
    cohort.rewrite(frame.assign(site=[f"site {int(name[1:]) // 3}" for name in frame["patient_id"]]))
    result = _crossval(cohort, split="site")
    table = result.predictions["cancer"].merge(cohort.frame()[["slide_id", "site"]])
    assert table.groupby("site")["fold"].nunique().max() == 1
    for fold, rows in table.groupby("fold"):
        seen = set(read_model(result.folder / "folds" / str(fold)).training["patients"])
        assert not seen & set(cohort.frame().set_index("site").loc[list(rows["site"].unique()), "patient_id"])
        assert sorted(rows["label"]) == ["0"] * 3 + ["1"] * 3
    assert result.metrics["cancer"]["protocol"] == "3-fold cross-validation by site, no site in two folds"
    with pytest.raises(InputError, match="use --folds 6"):
        _crossval(cohort, folds=7, split="site")


def test_repeats_are_averaged_and_each_is_the_cross_validation_of_the_next_seed(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    result = _crossval(cohort, repeats=2)
    seeds = [replace(QUICK, seed=seed, order_seed=0) for seed in (0, 1)]
    parts = [_crossval(cohort, training=one, out=f"seed-{one.seed}") for one in seeds]
    rows = pd.read_csv(result.folder / "repeats.csv", dtype={"fold": "Int64"})
    for repeat, part in enumerate(parts):
        of = rows[rows["repeat"] == repeat]
        alone = part.predictions["cancer"]["prob_1"].tolist()
        assert of["prob_1"].tolist() == pytest.approx(alone, abs=1e-5)  # six heads share a pass, three do not
        assert of["fold"].tolist() == part.predictions["cancer"]["fold"].tolist()
    mean = pd.read_csv(result.folder / "predictions.csv")
    singles = [part.predictions["cancer"]["prob_1"].to_numpy() for part in parts]
    assert mean["prob_1"].to_numpy() == pytest.approx((singles[0] + singles[1]) / 2, abs=1e-5)
    assert (mean["predicted"] == (mean["prob_1"] > 0.5)).all()
    assert mean["fold"].tolist() == parts[0].predictions["cancer"]["fold"].tolist()
    assert not parts[0].predictions["cancer"]["fold"].equals(parts[1].predictions["cancer"]["fold"])
    metrics = result.metrics["cancer"]
    values = [part.metrics["cancer"]["patient"]["auroc"]["value"] for part in parts]
    assert metrics["patient"]["auroc"]["value"] == pytest.approx(sum(values) / 2)
    assert (metrics["n_slides"], metrics["protocol"]) == (12, "3-fold cross-validation by patient, repeated 2 times")
    assert len(read_model(result.folder / "ensemble").heads) == 6
    _crossval(cohort)
    assert not list((result.folder / "repeats").glob("*"))
    assert not (result.folder / "repeats.csv").exists()


def test_a_run_anew_that_is_killed_leaves_no_figures_that_are_not_its_own(
    embeddings_cohort: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = embeddings_cohort(patients=12)
    out = _crossval(cohort, repeats=2).folder
    assert (out / "repeats.csv").exists()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathfm.train.fit_all", killed)
    with pytest.raises(KeyboardInterrupt):
        _crossval(cohort, repeats=2, training=replace(QUICK, seed=3))
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert not left & {"metrics.json", "predictions.csv", "patients.csv", "repeats.csv", "model.json"}
    monkeypatch.undo()
    again = _crossval(cohort, repeats=2)
    assert (out / "metrics.json").exists()
    assert read_model(out / "ensemble").figures == again.model.figures


def test_models_that_were_done_lose_a_checkpoint_that_a_killed_run_has_left(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    out = _crossval(cohort).folder
    (out / "folds" / "0" / "checkpoints").mkdir()
    (out / "folds" / "0" / "checkpoints" / "last.ckpt").write_bytes(b"left")
    _crossval(cohort)
    assert not list(out.rglob("*.ckpt"))


def test_a_second_target_that_a_fold_lacks_is_refused_with_the_fold_and_the_remedy(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    frame = cohort.frame()
    frame["er"] = ["pos"] + ["neg"] * 11
    cohort.rewrite(frame)
    with pytest.raises(InputError, match=r"^fold \d of 3: .*no slide of er pos.*name the rarest first in --label"):
        _crossval(cohort, label="cancer,er")


def test_the_folds_of_later_repeats_are_warned_of_as_well(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    frame = cohort.frame()
    frame["site"] = [["a", "b", "c", "d"][row % 4] for row in range(12)]
    frame["cancer"] = ["1" if site in "ab" else "0" for site in frame["site"]]
    cohort.rewrite(frame)
    slides = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    mixed = pd.Series([row // 3 % 2 for row in range(12)], dtype="Int64")
    apart = pd.Series([int(site in "ab") for site in frame["site"]], dtype="Int64")
    said = fold_warnings(slides, [mixed, apart], Folding(2, "site", 2), [])
    assert said == [
        "repeat 2, fold 1 holds no patient of class 0",
        "repeat 2, fold 0 holds no patient of class 1",
    ]


def test_the_ensemble_is_a_model_that_predict_takes_and_says_whose_figures_it_has(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    result = _crossval(embeddings_cohort(patients=12))
    new = embeddings_cohort(patients=4, name="new", prefix="n")
    found = predict(result.folder / "ensemble", tmp_path / "scored", embeddings=[new.embeddings])["cancer"]
    members = [
        predict(result.folder / "folds" / str(fold), tmp_path / str(fold), embeddings=[new.embeddings])["cancer"][
            "prob_1"
        ]
        for fold in range(3)
    ]
    assert found["prob_1"].to_numpy() == pytest.approx(sum(one.to_numpy() for one in members) / 3, abs=1e-12)
    figures = read_model(result.folder / "ensemble").figures
    assert figures is not None
    assert figures["cancer"]["patient"] == result.metrics["cancer"]["patient"]
    assert "each on the patients that it had not seen" in figures["cancer"]["warnings"][-1]


def test_patients_as_bags_are_scored_once_each(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=12, slides=2), unit="patient")
    table = result.predictions["cancer"]
    assert table["slide_id"].tolist() == [f"p{p:02d}-0;p{p:02d}-1" for p in range(12)]
    assert result.metrics["cancer"]["slide"] is None
    assert (result.metrics["cancer"]["n_slides"], result.metrics["cancer"]["patient"]["n"]) == (24, 12)


def test_several_targets_are_learned_together_and_have_a_folder_each(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    frame = cohort.frame()
    grades = ["low", "low", "high", "high"] * 3
    cohort.rewrite(frame.assign(grade=["" if k in (1, 6) else grade for k, grade in enumerate(grades)]))
    result = _crossval(cohort, label="cancer,grade")
    assert set(result.metrics) == {"cancer", "grade"}
    assert result.metrics["grade"]["n_slides"] == 10
    for name in ("cancer", "grade"):
        assert json.loads((result.folder / name / "metrics.json").read_text()) == result.metrics[name]
    assert read_model(result.folder / "ensemble").task.label == "cancer,grade"


def test_folds_over_some_rows_leave_the_others_out_of_training_and_scores(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=16)
    slides = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    among = slides.table["patient_id"] < "p12"
    fold_of = fold_column(slides, Folding(2), 0, among)
    assert fold_of.notna().tolist() == among.tolist()
    models = fit_models(slides, [fold_job(slides, fold_of, k, QUICK, tmp_path, "fold") for k in (0, 1)], "mean")
    for model in models:
        assert max(model.training["patients"]) < "p12"
    scored = out_of_fold(slides, fold_of, models)["cancer"]
    assert scored["patient_id"].tolist() == slides.table["patient_id"][among].tolist()


def test_repeats_that_cannot_be_are_one_line(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=6)
    for repeats in (0, 100):
        with pytest.raises(
            InputError, match=f"--repeats is {repeats}; it must be 1 or more, and with 3 folds at most 85"
        ):
            _crossval(cohort, repeats=repeats)
