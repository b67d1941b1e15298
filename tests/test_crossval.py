from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from conftest import EmbeddingsCohort, planted_embeddings

from pathfm.cohort import read_cohort
from pathfm.crossval import CrossValidation, crossval, fit_fold, fold_column, refit
from pathfm.embeddings import write_embeddings
from pathfm.errors import InputError, UnknownNameError
from pathfm.labelled import labelled_slides
from pathfm.model import read_model
from pathfm.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=4, hidden=16, attention=8, lr=1e-2, device="cpu")


def _crossval(
    cohort: EmbeddingsCohort, folds: int = 3, training: TrainSettings = QUICK, out: str = "cv"
) -> CrossValidation:
    return crossval(cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / out, folds, training=training)


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
    fold_of = fold_column(slides, 3, 0)
    root = cohort.table.parent
    before = fit_fold(slides, fold_of, 1, "gated-abmil", QUICK, root / "before")
    frame = cohort.frame()
    scored = (fold_of == 1).to_numpy(dtype=bool)
    frame.loc[scored, "cancer"] = frame.loc[scored, "cancer"].map({"0": "1", "1": "0"})
    cohort.rewrite(frame)
    flipped = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    after = fit_fold(flipped, fold_of, 1, "gated-abmil", QUICK, root / "after")
    assert after.predictions["prob_1"].tolist() == before.predictions["prob_1"].tolist()
    assert after.predictions["label"].tolist() != before.predictions["label"].tolist()
    for slide in frame["slide_id"][scored]:
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 1, n=50, seed=7))
    moved = labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer")
    third = fit_fold(moved, fold_of, 1, "gated-abmil", QUICK, root / "third")
    for name, value in before.model.head.state_dict().items():
        assert torch.equal(third.model.head.state_dict()[name], value)


def test_a_lesion_that_can_be_learned_is_found_and_one_that_is_not_there_is_not(embeddings_cohort: Make) -> None:
    settings = TrainSettings(**{**vars(QUICK), "epochs": 12})
    real = embeddings_cohort(patients=24, name="real")
    assert _crossval(real, training=settings, out="a").metrics["patient"]["auroc"]["value"] > 0.9
    shuffled = embeddings_cohort(patients=24, name="shuffled")
    frame = shuffled.frame()
    shuffled.rewrite(frame.assign(cancer=frame["cancer"].sample(frac=1, random_state=2).to_numpy()))
    auroc = _crossval(shuffled, training=settings, out="b").metrics["patient"]["auroc"]
    assert auroc["low"] < 0.5


def test_the_metrics_say_how_they_were_got(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=14))
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["protocol"] == "3-fold cross-validation by patient"
    assert metrics["classes"] == ["0", "1"]
    assert (metrics["n_slides"], metrics["n_patients"]) == (14, 14)
    assert set(metrics["controls"]) == {"mean_colour", "site"}
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
    fold = str(first.predictions.set_index("slide_id")["fold"]["p03-0"])
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
    assert result.metrics["n_slides"] == 21
    assert len(result.metrics["left_out"]) == 3


def test_too_few_patients_for_early_stopping_is_said_in_the_warnings(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=6), folds=3)
    assert any("early stopping in fold 0, 1, 2" in warning for warning in result.metrics["warnings"])
    assert result.epochs == QUICK.epochs


def test_a_split_column_is_not_used_and_that_is_said(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12)
    cohort.rewrite(cohort.frame().assign(split=["train", "test"] * 6))
    assert any("split" in warning for warning in _crossval(cohort).metrics["warnings"])


def test_more_folds_than_patients_and_unknown_heads_are_errors(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=6)
    with pytest.raises(InputError, match="use --folds 3"):
        _crossval(cohort, folds=5)
    with pytest.raises(UnknownNameError, match="gated-abmil"):
        crossval(
            cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / "x", 3, head="abmil", training=QUICK
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
