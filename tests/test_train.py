from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import EmbeddingsCohort, planted_embeddings

from pathfm.embeddings import write_embeddings
from pathfm.errors import InputError
from pathfm.evaluate import evaluate
from pathfm.ledger import ledger_of
from pathfm.model import read_model
from pathfm.train import Trained, TrainSettings, train

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=6, hidden=16, attention=8, lr=1e-2, device="cpu")


def _train(cohort: EmbeddingsCohort, out: str = "model", training: TrainSettings = QUICK) -> Trained:
    return train(cohort.table, [cohort.embeddings], "cancer", cohort.table.parent / out, training=training)


def _with_split(cohort: EmbeddingsCohort, split: list[str]) -> EmbeddingsCohort:
    cohort.rewrite(cohort.frame().assign(split=split))
    return cohort


def test_without_a_split_there_are_no_figures_for_nobody_was_held_out(embeddings_cohort: Make) -> None:
    trained = _train(embeddings_cohort(patients=14))
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert metrics["slide"] is None
    assert metrics["patient"] is None
    assert any("crossval" in warning for warning in metrics["warnings"])
    assert "auroc" not in str(trained)
    table = pd.read_csv(trained.folder / "predictions.csv", dtype=str)
    assert set(table["split"]) == {"train", "val"}
    assert read_model(trained.folder).figures is None


def test_with_a_split_the_figures_are_those_of_the_test_rows_alone(embeddings_cohort: Make) -> None:
    split = ["train"] * 8 + ["val"] * 4 + ["test"] * 4 + [""] * 2
    cohort = _with_split(embeddings_cohort(patients=18), split)
    write_embeddings(cohort.file("p17-0"), planted_embeddings("p17-0", 1, n=0))
    trained = _train(cohort)
    metrics = trained.metrics["cancer"]
    assert metrics["n_slides"] == 4
    assert metrics["slide"]["n"] == 4
    left_out = {one["slide_id"]: one["reason"] for one in metrics["left_out"]}
    assert left_out == {"p16-0": "no_split", "p17-0": "no_tissue"}
    assert len(metrics["left_out"]) == 2
    training = trained.model.training
    assert training["patients"] == [f"p{i:02d}" for i in range(12)]
    assert training["n_stop_patients"] == 4
    assert trained.predictions["cancer"]["split"].value_counts().to_dict() == {"train": 8, "val": 4, "test": 4}


def test_each_look_at_the_test_rows_is_counted_and_makes_no_other_model(embeddings_cohort: Make) -> None:
    cohort = _with_split(embeddings_cohort(patients=16), ["train"] * 10 + ["test"] * 6)
    first = _train(cohort)
    before = (first.folder / "model.json").read_bytes()
    looks = [one.metrics["cancer"]["ledger"] for one in (first, _train(cohort))]
    assert [(one["looks"], one["models"], one["file"]) for one in looks] == [
        (1, 1, "cohort.ledger.csv"),
        (2, 1, "cohort.ledger.csv"),
    ]
    assert (first.folder / "model.json").read_bytes() == before
    ledger, tested = ledger_of(cohort.table), set(first.predictions["cancer"]["slide_id"][10:])
    assert "looked at once" in str(first)
    assert all(name not in ledger.read_text() for name in tested)
    other = _train(cohort, training=replace(QUICK, seed=1)).metrics["cancer"]["ledger"]
    assert (other["looks"], other["models"]) == (3, 2)
    cohort.rewrite(cohort.frame().drop(columns="split"))
    ledger.unlink()
    assert _train(cohort, "all").metrics["cancer"]["ledger"] is None
    assert not ledger.exists()


def test_evaluate_knows_the_test_rows_of_a_training_again(embeddings_cohort: Make) -> None:
    cohort = _with_split(embeddings_cohort(patients=16), ["train"] * 10 + ["test"] * 6)
    _train(cohort)
    sole = cohort.table.with_name("sole.csv")
    cohort.frame().iloc[10:].to_csv(sole, index=False)
    model, ledger = cohort.table.parent / "model", ledger_of(cohort.table)
    looked = evaluate(model, sole, [cohort.embeddings], sole.parent / "out", ledger=ledger).metrics["cancer"]["ledger"]
    assert looked["looks"] == 2


def test_neither_labels_nor_embeddings_of_test_rows_reach_the_model(embeddings_cohort: Make) -> None:
    cohort = _with_split(embeddings_cohort(patients=16), ["train"] * 10 + ["test"] * 6)
    before = _train(cohort, "before")
    frame = cohort.frame()
    frame.loc[10:, "cancer"] = frame.loc[10:, "cancer"].map({"0": "1", "1": "0"})
    cohort.rewrite(frame)
    for slide in frame["slide_id"][10:]:
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 1, seed=9))
    after = _train(cohort, "after")
    assert before.model.training["fingerprint"] == after.model.training["fingerprint"]
    (one,), (other,) = before.model.heads, after.model.heads
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_split_without_val_rows_sets_training_patients_aside(embeddings_cohort: Make) -> None:
    trained = _train(_with_split(embeddings_cohort(patients=18), ["train"] * 14 + ["test"] * 4))
    assert trained.model.training["n_stop_patients"] == 2
    assert trained.model.training["n_patients"] == 14


def test_too_few_patients_to_stop_on_train_all_epochs(embeddings_cohort: Make) -> None:
    training = _train(embeddings_cohort(patients=4)).model.training
    assert (training["epochs"], training["n_stop_patients"], training["stopped_early"]) == (6, 0, False)


def test_training_again_takes_the_model_that_is_there_unless_something_changed(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=8)
    trained = _train(cohort)
    weights = trained.folder / "model.safetensors"
    logs = trained.folder / "logs"
    bytes_before, runs = weights.read_bytes(), len(list(logs.iterdir()))
    _train(cohort)
    assert weights.read_bytes() == bytes_before
    assert len(list(logs.iterdir())) == runs
    weights.write_bytes(bytes_before[:-1])
    assert _train(cohort).model.training == trained.model.training
    assert weights.read_bytes() == bytes_before
    _train(cohort, training=TrainSettings(**{**vars(QUICK), "seed": 1}))
    assert weights.read_bytes() != bytes_before


def test_a_model_taken_as_it_is_says_the_patients_of_today(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=14)
    before = _train(cohort)
    frame = cohort.frame()
    frame["patient_id"] = "H-" + frame["patient_id"]
    cohort.rewrite(frame)
    after = read_model(_train(cohort).folder)
    assert after.training["patients"] == sorted(frame["patient_id"])
    assert after.training["fingerprint"] == before.model.training["fingerprint"]


def test_a_class_that_stands_in_the_test_rows_alone_is_refused(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12, classes=3)
    frame = cohort.frame()
    cohort.rewrite(frame.assign(split=["test" if label == "2" else "train" for label in frame["cancer"]]))
    with pytest.raises(InputError, match="no slide of cancer 2"):
        _train(cohort)


def test_an_accelerator_that_is_not_there_is_one_line(embeddings_cohort: Make) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in [name for name, is_there in there.items() if not is_there]:
        with pytest.raises(InputError, match=f"no {device} device .* --training.device auto"):
            _train(embeddings_cohort(patients=14), training=replace(QUICK, device=device))


def test_what_was_left_out_is_listed(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=8)
    write_embeddings(cohort.file("p07-0"), planted_embeddings("p07-0", 1, n=0))
    trained = _train(cohort)
    assert trained.metrics["cancer"]["left_out"] == [{"slide_id": "p07-0", "reason": "no_tissue"}]
    row = trained.predictions["cancer"].set_index("slide_id").loc["p07-0"]
    assert (row["predicted"], row["reason"]) == ("", "no_tissue")
    assert "p07" not in trained.model.training["patients"]


def test_a_training_split_of_one_class_is_an_error_that_names_it(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=8)
    _with_split(cohort, ["train" if i % 2 else "test" for i in range(8)])
    with pytest.raises(InputError, match="no slide of cancer 0"):
        _train(cohort)


def test_three_classes_are_learned_and_named(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=24, classes=3)
    settings = TrainSettings(**{**vars(QUICK), "epochs": 25})
    trained = _train(_with_split(cohort, ["train"] * 18 + ["test"] * 6), training=settings)
    assert trained.model.task.targets[0].groups == ["0", "1", "2"]
    table = trained.predictions["cancer"]
    held_out = table[table["split"] == "test"]
    assert (held_out["predicted"] == held_out["label"]).mean() >= 0.8
