from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings
from pyramids import write_pyramid

from pathfm.cli import main
from pathfm.embeddings import find_embeddings, read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsStaleError, InputError, ModelError, SlidesFailedError
from pathfm.extract import extract
from pathfm.heads import build_head
from pathfm.model import Model, ensemble, write_model
from pathfm.predict import predict, score_bag
from pathfm.targets import Classes, Task
from pathfm.tiles import TileSpec
from pathfm.train import TrainSettings, train

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]
MPP = 0.5


def _write_model(folder: Path, recipe: dict[str, object], dim: int, **more: Any) -> Model:
    torch.manual_seed(0)
    model = Model(
        heads=(build_head("gated-abmil", dim, 2, hidden=16, attention=8).eval(),),
        task=Task((Classes("cancer", ("benign", "tumour")),)),
        recipe=recipe,
        training={"fingerprint": "", "epochs": 1, "patients": more.pop("patients", []), "slides": {}, "sites": []},
        **more,
    )
    write_model(folder, model)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    _write_model(tmp_path / "model", RECIPE, 8)
    return tmp_path / "model"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides of eosin on glass."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(236, 244, (1024, 1024, 3), dtype=np.uint8)
        pixels[256:900, 256:900] = np.array([205, 110, 170]) + rng.integers(-20, 20, (644, 644, 1))
        write_pyramid(folder / f"{name}.tiff", pixels, MPP, levels=(8,))
    return folder


def test_every_embeddings_file_gets_a_row_with_the_score_of_its_slide(
    embeddings_cohort: Make, model: Path, tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=3)
    write_embeddings(cohort.file("empty"), planted_embeddings("empty", 0, n=0))
    table = predict(model, tmp_path / "out", embeddings=[cohort.embeddings])["cancer"].set_index("slide_id")
    assert list(table.index) == ["empty", "p00-0", "p01-0", "p02-0"]
    assert table.loc["empty", "reason"] == "no_tissue"
    scores = table.loc["p01-0", ["prob_benign", "prob_tumour"]].to_numpy(dtype=float)
    expected = score_bag(_write_model(tmp_path / "same", RECIPE, 8), [read_embeddings(cohort.file("p01-0"))])
    assert scores.tolist() == list(expected.scores[0])
    assert table.loc["p01-0", "predicted"] == ["benign", "tumour"][scores.argmax()]
    written = pd.read_csv(tmp_path / "out/predictions.csv", index_col="slide_id")
    assert written["prob_tumour"].tolist()[1:] == table["prob_tumour"].tolist()[1:]


def test_a_slide_that_the_model_has_learned_from_is_marked(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=8)
    train(cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", training=TrainSettings(epochs=1, hidden=8))
    write_embeddings(cohort.file("fresh"), planted_embeddings("fresh", 0))
    table = predict(tmp_path / "model", tmp_path / "out", embeddings=[cohort.embeddings])["cancer"]
    splits = table.set_index("slide_id")["split"]
    assert splits["fresh"] == "new"
    assert set(splits.drop("fresh")) == {"seen"}


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_another_slide_of_a_patient_of_the_training_is_marked_also_for_an_ensemble(
    embeddings_cohort: Make, tmp_path: Path, unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = embeddings_cohort(patients=3, slides=2)
    members = [_write_model(tmp_path / one, RECIPE, 8, unit=unit, patients=[one]) for one in ("p00", "p02")]
    write_model(tmp_path / "both", ensemble(members))
    for name, seen in (("p00", {"p00"}), ("both", {"p00", "p02"})):
        found = predict(tmp_path / name, tmp_path / "out", embeddings=[cohort.embeddings], cohort=cohort.table)[
            "cancer"
        ]
        assert set(found["patient_id"][found["split"] == "seen"]) == seen
        assert set(found["patient_id"][found["split"] == "new"]) == {"p00", "p01", "p02"} - seen
    assert f"{4 if unit == 'slide' else 2} of {len(found)} {unit}s are known to the model" in caplog.text


def test_a_patient_is_unlike_seen_or_unscored_as_any_of_the_slides_is(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=24)
    words = (cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", "mean")
    quick = TrainSettings(epochs=1, hidden=4, device="cpu", stop_share=0.5)
    train(*words, training=quick, operating_point="youden")
    other = embeddings_cohort(patients=5, slides=2, name="other", prefix="q")
    far = read_embeddings(other.file("q01-1"))
    write_embeddings(other.file("q01-1"), replace(far, features=far.features + np.float16(50), mpp=4.0))
    again = replace(read_embeddings(cohort.file("p02-0")), slide_id="q02-1")
    write_embeddings(other.file("q02-1"), again)
    write_embeddings(other.file("q03-1"), planted_embeddings("q03-1", 1, n=0))
    other.rewrite(other.frame().iloc[:8])  # nobody says whose the slides of q04 are
    predict(tmp_path / "model", tmp_path / "out", embeddings=[other.embeddings], cohort=other.table)
    slides = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False).set_index("slide_id")
    assert slides.loc["q01-0", "flagged"] == "no"
    assert slides.loc["q02-0", "split"] == "new"
    patients = pd.read_csv(tmp_path / "out/patients.csv", keep_default_na=False).set_index("slide_id")
    assert list(patients.index) == ["q00-0;q00-1", "q01-0;q01-1", "q02-0;q02-1", "q03-0;q03-1"]
    assert list(patients["split"]) == ["new", "new", "seen", "new"]
    assert list(patients["n_unscored"]) == [0, 0, 0, 1]
    unlike = patients.loc["q01-0;q01-1"]
    assert unlike["flagged"] == "yes"
    assert unlike["why"] == slides.loc["q01-1", "why"] != ""
    assert float(unlike["ood"]) == float(slides.loc["q01-1", "ood"])


def test_without_a_table_no_slide_is_taken_for_a_patient(
    embeddings_cohort: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = embeddings_cohort(patients=24)
    quick = TrainSettings(epochs=1, hidden=4, device="cpu", stop_share=0.5)
    model = tmp_path / "model"
    train(cohort.table, [cohort.embeddings], "cancer", model, "mean", training=quick, operating_point="youden")
    other = embeddings_cohort(patients=2, slides=2, name="other", prefix="q")
    predict(model, tmp_path / "out", embeddings=[other.embeddings])
    assert not (tmp_path / "out/patients.csv").exists()
    assert "pass --cohort" in caplog.text


def test_embeddings_of_another_recipe_name_the_key(embeddings_cohort: Make, model: Path, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=2, recipe=RECIPE | {"tiles": RECIPE["tiles"] | {"mpp": 1.0}})
    with pytest.raises(EmbeddingsStaleError, match=r"tiles\.mpp is 1\.0, wanted 0\.5"):
        predict(model, tmp_path / "out", embeddings=[cohort.embeddings])


def test_from_raw_slides_it_extracts_with_the_models_own_recipe_first(slides: Path, tmp_path: Path) -> None:
    result = extract([slides], tmp_path / "cache", tiles=TileSpec(size_px=64, mpp=1.0, min_tissue=0.4), device="cpu")
    first = read_embeddings(result.folders[0] / "a.h5")
    _write_model(tmp_path / "model", first.recipe, first.features.shape[1])
    from_files = predict(tmp_path / "model", tmp_path / "one", embeddings=[tmp_path / "cache"])["cancer"]
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("slide_id,patient_id,path\na,anna,slides/a.tiff\nb,bert,slides/b.tiff\n")
    from_slides = predict(tmp_path / "model", tmp_path / "two", slides=[cohort], device="cpu")["cancer"]
    assert from_slides["prob_tumour"].tolist() == from_files["prob_tumour"].tolist()
    assert from_slides["patient_id"].tolist() == ["anna", "bert"]
    made = find_embeddings(tmp_path / "two/embeddings")
    assert [made[name].read_bytes() for name in "ab"] == [
        (result.folders[0] / f"{name}.h5").read_bytes() for name in "ab"
    ]


def test_a_slide_that_fails_stands_in_the_table_and_the_others_are_scored(slides: Path, tmp_path: Path) -> None:
    result = extract([slides], tmp_path / "cache", tiles=TileSpec(size_px=64, mpp=1.0), device="cpu")
    first = read_embeddings(result.folders[0] / "a.h5")
    _write_model(tmp_path / "model", first.recipe, first.features.shape[1])
    whole = (slides / "b.tiff").read_bytes()
    (slides / "b.tiff").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlidesFailedError, match="1 of 2 slides failed"):
        predict(tmp_path / "model", tmp_path / "out", slides=[slides], device="cpu")
    table = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False).set_index("slide_id")
    assert table.loc["b", "reason"] == "no_embeddings"
    assert table.loc["b", "prob_tumour"] == ""
    assert table.loc["a", "reason"] == ""


def test_it_wants_slides_or_embeddings_and_not_both(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either --slides or --embeddings"):
        predict(model, tmp_path / "out")
    with pytest.raises(InputError, match="either --slides or --embeddings"):
        predict(model, tmp_path / "out", slides=[tmp_path], embeddings=[tmp_path])


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--model"):
        predict(tmp_path, tmp_path / "out", embeddings=[tmp_path])


def test_the_command_prints_the_table_and_those_of_several_targets_by_name(
    embeddings_cohort: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = embeddings_cohort(patients=2)
    _write_model(tmp_path / "one", RECIPE, 8)
    targets = (Classes("er", ("neg", "pos")), Classes("her2", ("low", "high")))
    head = build_head("mean", 8, 4, hidden=8).eval()
    training = {"fingerprint": "", "epochs": 1, "patients": [], "slides": {}, "sites": []}
    write_model(tmp_path / "two", Model(heads=(head,), task=Task(targets), recipe=RECIPE, training=training))
    lines = {}
    for name in ("one", "two"):
        words = ["predict", "--model", str(tmp_path / name), "--embeddings", str(cohort.embeddings)]
        assert main([*words, "--out", str(tmp_path / f"{name}-out")]) == 0
        lines[name] = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines["one"]] == ["slide_id", "p00-0", "p01-0"]
    assert [line[0] for line in lines["two"]] == [
        "er:",
        "slide_id",
        "p00-0",
        "p01-0",
        "her2:",
        "slide_id",
        "p00-0",
        "p01-0",
    ]
    assert lines["two"][5][4:7] == ["predicted", "prob_low", "prob_high"]
