"""All slides of a patient as one bag: which slides it holds, what is said of it, and that nothing of it leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import EmbeddingsCohort, planted_embeddings

from pathfm.cohort import read_cohort
from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import CohortError, InputError, LeakageError, UnknownNameError
from pathfm.evaluate import evaluate
from pathfm.failures import Failure, write_failures
from pathfm.heads import pack
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.model import read_model
from pathfm.outoffold import Folding, fold_column
from pathfm.predict import predict
from pathfm.results import find_results, read_metrics, read_predictions, target_of
from pathfm.settings import TrainSettings
from pathfm.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., EmbeddingsCohort]

SETTINGS = TrainSettings(epochs=6, hidden=16, attention=8, lr=1e-2, device="cpu", stop_share=0, loggers=["csv"])


def _join(cohort: EmbeddingsCohort, label: str = "cancer") -> LabelledSlides:
    return labelled_slides(read_cohort(cohort.table), [cohort.embeddings], label, unit="patient")


def test_a_patients_bag_is_its_slides_one_below_the_other(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4, slides=2)
    cohort.rewrite(cohort.frame().iloc[[0, 2, 1, 3, 4, 5, 6, 7]])
    slides = _join(cohort)
    assert list(slides.table["slide_id"]) == ["p00-0;p00-1", "p01-0;p01-1", "p02-0;p02-1", "p03-0;p03-1"]
    assert list(slides.table["patient_id"]) == ["p00", "p01", "p02", "p03"]
    assert list(slides.table["n_tiles"]) == [60] * 4
    assert slides.table["slide_digests"][1] == tuple(planted_embeddings(f"p01-{i}", 1).slide_digest for i in range(2))
    parts = [read_embeddings(cohort.file(f"p01-{i}")) for i in range(2)]
    expected = np.concatenate([part.features for part in parts]).astype(np.float32)
    bag = slides.bags()[1]
    np.testing.assert_array_equal(bag.features, expected)
    assert bag.truth.tolist() == [1.0]
    np.testing.assert_allclose(slides.mean_rgb["p01-0;p01-1"], np.mean([one.mean_rgb for one in parts], axis=0), 1e-6)


def test_slides_that_cannot_be_used_are_left_out_of_their_patient_with_their_reasons(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=5, slides=3)
    write_embeddings(cohort.file("p00-1"), planted_embeddings("p00-1", 0, n=0))
    cohort.file("p01-0").unlink()
    for slide in ("p02-0", "p02-1", "p02-2"):
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 0, n=0))
    for slide in ("p03-0", "p03-1", "p03-2"):
        cohort.file(slide).unlink()
    failed = [Failure(slide, "", "truncated", "") for slide in ("p01-0", "p03-0", "p03-1", "p03-2")]
    write_failures(cohort.embeddings / "failures.csv", failed)
    frame = cohort.frame()
    frame.loc[frame["slide_id"] == "p04-2", "cancer"] = ""
    cohort.rewrite(frame)
    slides = _join(cohort)
    by_patient = slides.table.set_index("patient_id")
    assert dict(by_patient["slide_id"]) == {
        "p00": "p00-0;p00-2", "p01": "p01-1;p01-2", "p02": "p02-0;p02-1;p02-2", "p03": "p03-0;p03-1;p03-2",
        "p04": "p04-0;p04-1;p04-2",
    }  # fmt: skip
    assert list(by_patient["reason"]) == ["", "", "no_tissue", "no_embeddings", ""]
    assert dict(slides.left_out) == {
        "p00-1": "no_tissue", "p01-0": "no_embeddings",
        **dict.fromkeys(("p02-0", "p02-1", "p02-2"), "no_tissue"),
        **dict.fromkeys(("p03-0", "p03-1", "p03-2"), "no_embeddings"),
    }  # fmt: skip
    assert [len(slides.bags().features(i)) for i in range(len(slides.bags()))] == [60, 60, 90]
    assert slides.rows(slides.table["patient_id"].isin(["p01", "p03", "p04"])) == [1, 2]


def test_a_label_at_one_slide_is_that_of_the_patient_and_a_patient_without_any_is_left_out(
    embeddings_cohort: Make,
) -> None:
    cohort = embeddings_cohort(patients=4, slides=2)
    frame = cohort.frame()
    frame["age"] = ["50", "", "60", "", "70", "", "80", ""]
    frame.loc[[0, 2, 3, 5], "cancer"] = ""
    cohort.rewrite(frame)
    slides = labelled_slides(
        read_cohort(cohort.table), [cohort.embeddings], "cancer", unit="patient", covariates=["age"]
    )
    assert slides.table["slide_id"].tolist() == ["p00-0;p00-1", "p02-0;p02-1", "p03-0;p03-1"]
    assert slides.table["label"].tolist() == ["0", "0", "1"]
    assert slides.truth[:, 0].tolist() == [0, 0, 1]
    assert slides.covariate_values is not None
    assert slides.covariate_values[:, 0].tolist() == [50, 70, 80]
    assert dict(slides.left_out) == {"p01-0": "no_label", "p01-1": "no_label"}


def test_folds_by_site_keep_every_site_of_a_patients_slides_together(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=12, slides=2)
    frame = cohort.frame()
    patient, slide = frame["slide_id"].str[1:3].astype(int), frame["slide_id"].str[-1].astype(int)
    # every other patient has a second slide at the site of the next
    cohort.rewrite(frame.assign(site=[f"s{p + (s and p % 2 == 0):02d}" for p, s in zip(patient, slide, strict=True)]))
    slides = _join(cohort)
    assert (slides.sites["p00-0;p00-1"], slides.sites["p01-0;p01-1"]) == ("s00;s01", "s01")
    for seed in range(3):
        fold_of = dict(zip(slides.table["patient_id"], fold_column(slides, Folding(3, "site"), seed), strict=True))
        folds = cohort.frame()["patient_id"].map(fold_of)
        assert folds.groupby(cohort.frame()["site"]).nunique().max() == 1
        assert set(folds) == {0, 1, 2}
    cohort.rewrite(cohort.frame().assign(site=lambda table: table["site"].mask(table["slide_id"] == "p07-1", "")))
    with pytest.raises(InputError, match="column site filled; it is empty for p07-0;p07-1; fill it"):
        fold_column(_join(cohort), Folding(3, "site"), 0)


def test_slides_of_a_patient_that_say_different_things_are_refused_by_its_name(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4, slides=2)
    frame = cohort.frame()
    frame["age"] = ["50", "", "60", "60", "70", "71", "40", "40"]
    cohort.rewrite(frame)
    with pytest.raises(CohortError, match="patient p02 hold 70 and 71 in the column 'age'"):
        labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer", unit="patient", covariates=["age"])
    frame.loc[5, "age"] = ""
    cohort.rewrite(frame)
    slides = labelled_slides(
        read_cohort(cohort.table), [cohort.embeddings], "cancer", unit="patient", covariates=["age"]
    )
    assert slides.covariate_values is not None
    assert slides.covariate_values[:, 0].tolist() == [50, 60, 70, 40]
    frame.loc[3, "cancer"] = "0"
    cohort.rewrite(frame)
    with pytest.raises(CohortError, match=r"patient p01 hold 0 and 1 in the column 'cancer'.*--unit slide"):
        _join(cohort)


def test_a_name_with_what_stands_between_names_is_refused(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4)
    frame = cohort.frame()
    frame.loc[0, "slide_id"] = "a;b"
    cohort.rewrite(frame)
    write_embeddings(cohort.file("a;b"), planted_embeddings("a;b", 0))
    assert labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer").table["slide_id"][0] == "a;b"
    with pytest.raises(CohortError, match="'a;b' has a ';' in its name"):
        _join(cohort)


def test_a_unit_nobody_knows_is_refused(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=2)
    unit: Any = "tile"
    with pytest.raises(UnknownNameError, match=r"unknown unit 'tile'; .*patient"):
        labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer", unit=unit)


def test_a_model_of_patients_scores_what_it_is_given_as_patients(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=16, slides=2)
    cohort.rewrite(cohort.frame().assign(split=["train"] * 20 + ["test"] * 12))
    model = tmp_path / "model"
    trained = train(cohort.table, [cohort.embeddings], "cancer", model, unit="patient", training=SETTINGS)
    metrics, table = trained.metrics["cancer"], trained.predictions["cancer"].set_index("patient_id")
    assert (metrics["unit"], metrics["slide"], metrics["patient"]["n"]) == ("patient", None, 6)
    assert (metrics["n_slides"], metrics["n_patients"]) == (12, 6)
    assert metrics["patient"]["auroc"]["value"] is not None
    assert (trained.model.training["n_slides"], trained.model.training["n_patients"]) == (20, 10)
    assert set(trained.model.training["slides"]) == {f"p{i:02d}-{j}" for i in range(10) for j in range(2)}
    read = read_model(model)
    assert read.unit == "patient"
    packed = pack([torch.from_numpy(np.concatenate([_features(cohort, f"p11-{i}") for i in range(2)]))])
    with torch.inference_mode():
        (expected,) = read.task.scores(read.heads[0](packed).logits)
    assert table.loc["p11", ["prob_0", "prob_1"]].tolist() == expected[0].tolist()

    found = predict(model, tmp_path / "new", embeddings=[cohort.embeddings], cohort=cohort.table)["cancer"]
    assert found["prob_1"].tolist() == table["prob_1"].tolist()
    assert found["slide_id"].tolist() == table["slide_id"].tolist()
    assert found["split"].tolist() == ["seen"] * 10 + ["new"] * 6
    with pytest.raises(InputError, match="reads the patient_id of each slide; pass --cohort"):
        predict(model, tmp_path / "new", embeddings=[cohort.embeddings])


def test_a_scan_within_a_bag_of_the_training_is_refused_in_another_bag(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=8, slides=2)
    train(
        cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", unit="patient",
        training=replace(SETTINGS, epochs=1),
    )  # fmt: skip
    other = embeddings_cohort(patients=12, slides=2, name="other", prefix="q")
    done = evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "out")
    assert done.metrics["cancer"]["patient"]["n"] == 12
    copied = replace(planted_embeddings("q02-1", 0), slide_digest=planted_embeddings("p07-1", 0).slide_digest)
    write_embeddings(other.file("q02-1"), copied)
    with pytest.raises(LeakageError, match="share slides q02-1"):
        evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "out")


def test_slides_whose_patient_no_table_names_are_bags_of_their_own(
    embeddings_cohort: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = embeddings_cohort(patients=8, slides=2)
    model = tmp_path / "model"
    train(cohort.table, [cohort.embeddings], "cancer", model, unit="patient", training=replace(SETTINGS, epochs=1))
    for name in ("x", "y"):
        write_embeddings(cohort.file(name), planted_embeddings(name, 0))
    found = predict(model, tmp_path / "new", embeddings=[cohort.embeddings], cohort=cohort.table)["cancer"]
    assert found["slide_id"].tolist()[-2:] == ["x", "y"]
    assert len(found) == 10
    assert "no table names 2 slides, such as x" in caplog.text


def test_several_targets_are_learned_at_once_with_labels_missing_here_and_there(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=24)
    frame = cohort.frame()
    frame["er"] = frame["cancer"].map({"0": "neg", "1": "pos"})
    frame["size"] = [f"{10 + 5 * int(label) + i % 3}" for i, label in enumerate(frame["cancer"])]
    frame.loc[frame.index % 3 == 0, "er"] = ""
    frame.loc[frame.index % 4 == 1, "size"] = ""
    frame.loc[[9, 21], ["er", "size"]] = ""  # nothing at all
    cohort.rewrite(frame.assign(split=["train"] * 14 + ["test"] * 10))
    label, model = "er,size:regression", tmp_path / "model"
    trained = train(cohort.table, [cohort.embeddings], label, model, training=replace(SETTINGS, epochs=15))
    known = (frame["er"] != "") | (frame["size"] != "")
    for name, columns in (("er", ["prob_neg", "prob_pos"]), ("size", ["value"])):
        place = find_results(model, name, "")
        assert place == model / name
        metrics = read_metrics(place / "metrics.json", "")
        assert metrics == json.loads(json.dumps(trained.metrics[name]))
        table = read_predictions(place / "predictions.csv", target_of(metrics), "").set_index("slide_id")
        assert table["label"].to_dict() == frame[known].set_index("slide_id")[name].to_dict()
        assert table[columns].notna().all(axis=None)
        assert metrics["slide"]["n"] == int((frame[name][14:] != "").sum())
    assert [one["reason"] for one in trained.metrics["er"]["left_out"]] == ["no_label", "no_label"]
    assert trained.metrics["er"]["slide"]["auroc"]["value"] > 0.8
    with pytest.raises(InputError, match="several targets; pass --target one of er, size"):
        find_results(model, None, "")

    other = embeddings_cohort(patients=12, name="other", prefix="q")
    their = other.frame().rename(columns={"cancer": "receptor"}).assign(size="12")
    their["receptor"] = their["receptor"].map({"0": "neg", "1": "pos"})
    other.rewrite(their)
    done = evaluate(model, other.table, [other.embeddings], tmp_path / "out", label="receptor,size")
    assert done.metrics["er"]["slide"]["n"] == 12
    assert pd.read_csv(tmp_path / "out/er/predictions.csv")["label"].tolist() == their["receptor"].tolist()
    assert str(done).count("external evaluation") == 2
    with pytest.raises(InputError, match="names 1 columns, the model has 2 targets: er,size"):
        evaluate(model, other.table, [other.embeddings], tmp_path / "out", label="receptor")
    other.rewrite(their.assign(size="large"))
    with pytest.raises(CohortError, match="size is 'large'"):
        evaluate(model, other.table, [other.embeddings], tmp_path / "out", label="receptor,size")
    new = predict(model, tmp_path / "new", embeddings=[other.embeddings])
    assert {name: set(table["label"]) for name, table in new.items()} == {"er": {""}, "size": {""}}
    assert (tmp_path / "new/size/predictions.csv").is_file()
    assert not (tmp_path / "new/predictions.csv").exists()


def _features(cohort: EmbeddingsCohort, slide_id: str) -> np.ndarray:
    return np.asarray(read_embeddings(cohort.file(slide_id)).features, dtype=np.float32)
