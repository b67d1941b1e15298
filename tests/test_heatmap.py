from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import MPP, RECIPE, SIZE_PX0, TILE_PX0, Study, make_study, write_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import files_below

from pathfm.choices import final_choices
from pathfm.cohort import read_cohort
from pathfm.covariates import Covariate, Covariates
from pathfm.embeddings import read_embeddings
from pathfm.errors import (
    CohortError,
    EmbeddingsStaleError,
    InputError,
    ModelError,
    SlidesFailedError,
    UnknownNameError,
)
from pathfm.figures import png_bytes
from pathfm.files import write_text
from pathfm.heads import build_head, pack
from pathfm.heatmap import heatmap
from pathfm.isolation import isolated
from pathfm.model import Model, read_model, write_model
from pathfm.overlay import attention_geojson, draw_gallery, draw_heatmap, paint_tiles, relative, scale_bar_um, times
from pathfm.pictures import View
from pathfm.scoring import score_bag
from pathfm.slide import open_slide
from pathfm.stage import write_stage
from pathfm.targets import Classes, Task

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.heads import Bags
    from pathfm.patients import Unit

IDS = ["a", "b", "c$x$", "d", "e", "f", "g", "h", "unlabelled"]
DRAWN = ["a", "b", "c$x$", "unlabelled"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), IDS)


@pytest.fixture(scope="module")
def drawn(study: Study) -> pd.DataFrame:
    slides = [study.only(*DRAWN)]
    return heatmap(study.crossval, slides, [study.embeddings], study.root / "heatmaps", final_model=study.model)


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Study:
    """A study to damage."""
    shutil.copytree(study.root, tmp_path / "copy")
    root = tmp_path / "copy"
    return Study(root, root / "cohort.csv", root / "embeddings", root / "crossval", root / "model")


def test_every_slide_gets_an_overlay_a_gallery_and_geojson_that_open(study: Study, drawn: pd.DataFrame) -> None:
    folder = study.root / "heatmaps"
    assert drawn["slide_id"].tolist() == DRAWN
    assert (drawn["why"] == "").all()
    for slide_id in DRAWN:
        for name in (f"{slide_id}.png", f"{slide_id}-tiles.png"):
            with Image.open(folder / name) as image:
                assert min(image.size) > 200
        assert json.loads((folder / f"{slide_id}.geojson").read_text())["type"] == "FeatureCollection"


def test_labelled_slides_are_drawn_by_the_model_of_their_own_fold(study: Study, drawn: pd.DataFrame) -> None:
    folds = pd.read_csv(study.crossval / "folds.csv", dtype=str).set_index("slide_id")["fold"]
    shares = {}
    for slide_id in ("a", "b"):
        model = read_model(study.crossval / "folds" / folds[slide_id])
        assert slide_id not in model.training["slides"]
        shares[slide_id] = score_bag(model, [read_embeddings(study.file(slide_id))]).attention()
        features = json.loads((study.root / "heatmaps" / f"{slide_id}.geojson").read_text())["features"]
        written = [feature["properties"]["measurements"]["attention share"] for feature in features]
        assert written == pytest.approx(shares[slide_id], rel=1e-4)
    assert drawn.set_index("slide_id")["origin"].to_dict() == {
        slide_id: "final model" if slide_id == "unlabelled" else "out of fold" for slide_id in DRAWN
    }


def test_drawing_again_changes_nothing_and_a_lost_picture_comes_back(copy: Study) -> None:
    out, slides = copy.root / "pictures", [copy.only("a", "b")]
    first = heatmap(copy.crossval, slides, [copy.embeddings], out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "a.png").unlink()
    again = heatmap(copy.crossval, slides, [copy.embeddings], out)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert first.equals(again)
    assert {name for name in before if before[name] != after[name]} == {"a.png", "a-tiles.png"}


def test_interrupted_run_remembers_what_is_drawn(copy: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    out, slides = copy.root / "pictures", [copy.only("a", "b")]
    first = heatmap(copy.crossval, slides, [copy.embeddings], out)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathfm.heatmap.read_joined", interrupted)
        with pytest.raises(KeyboardInterrupt):
            heatmap(copy.crossval, slides, [copy.embeddings], out)
    monkeypatch.setattr("pathfm.heatmap.isolated", interrupted)  # nothing is drawn again
    assert heatmap(copy.crossval, slides, [copy.embeddings], out).equals(first)


def test_a_run_that_is_interrupted_while_others_are_drawn_remembers_those_before(
    copy: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, slides, ids = copy.root / "pictures", [copy.only(*DRAWN[:3])], DRAWN[:3]
    written, begun = [], []

    def interrupted(path: Path, text: str) -> None:
        if path.suffix == ".geojson" and len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        write_text(path, text)

    def noted(path: Path, *rest: Any) -> Any:
        begun.append(path)
        return isolated(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("pathfm.heatmap.write_text", interrupted)
        patch.setattr("pathfm.heatmap.isolated", noted)
        with pytest.raises(KeyboardInterrupt):
            heatmap(copy.crossval, slides, [copy.embeddings], out)
        assert len(begun) == 3  # the others were under way
        assert pd.read_csv(out / "heatmaps.csv")["slide_id"].tolist() == ids[:1]
    begun.clear()
    monkeypatch.setattr("pathfm.heatmap.isolated", noted)
    table = heatmap(copy.crossval, slides, [copy.embeddings], out)
    assert (table["slide_id"].tolist(), len(begun)) == (ids, 2)
    clean = heatmap(copy.crossval, slides, [copy.embeddings], copy.root / "clean")
    assert table.equals(clean)
    assert files_below(out) == files_below(copy.root / "clean")


def test_slide_outside_the_cross_validation_needs_a_final_model(study: Study, tmp_path: Path) -> None:
    slides = [study.only("a", "unlabelled")]
    table = heatmap(study.crossval, slides, [study.embeddings], tmp_path).set_index("slide_id")
    assert "--final-model" in table.loc["unlabelled", "why"]
    assert not (tmp_path / "unlabelled.png").exists()
    assert (tmp_path / "a.png").exists()


def test_model_that_was_trained_on_a_slide_says_so(study: Study, tmp_path: Path) -> None:
    table = heatmap(study.model, [study.root / "slides"], [study.embeddings], tmp_path)
    assert set(table["why"]) == {"it has no embeddings file"}  # slides named 0.png, 1.png are not those of the cohort
    slides = [study.only("a", "unlabelled")]
    table = heatmap(study.model, slides, [study.embeddings], tmp_path).set_index("slide_id")
    assert table.loc["a", "origin"] == "seen in training"
    assert table.loc["unlabelled", "origin"] == "final model"


def test_head_without_attention_is_listed_and_not_drawn(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", IDS[:5], head="mean")
    table = heatmap(study.model, [study.cohort], [study.embeddings], tmp_path / "out")
    assert set(table["why"]) == {"the head 'mean' has no attention"}
    assert list((tmp_path / "out").glob("*.png")) == []


def write_made(folder: Path, label: str, classes: int, *heads: str, unit: Unit = "slide", **more: Any) -> Model:
    """A model directory of heads that nobody trained: where they look is arbitrary, and known."""
    torch.manual_seed(0)
    task = Task(tuple(Classes(name, tuple(map(str, range(classes)))) for name in label.split(",")))
    width = more["covariates"].width if "covariates" in more else 0
    built = tuple(build_head(head, 6, task.n_outputs, width, hidden=16, attention=8) for head in heads)
    training = {"fingerprint": "", "epochs": 1, "patients": [], "slides": {}, "sites": []}
    model = Model(heads=built, task=task, unit=unit, recipe=RECIPE, training=training, **more)
    write_model(folder, model)
    return read_model(folder)


def shares(folder: Path, slide_id: str) -> list[float]:
    features = json.loads((folder / f"{slide_id}.geojson").read_text())["features"]
    return [feature["properties"]["measurements"]["attention share"] for feature in features]


def bag_of(study: Study, *slide_ids: str) -> Bags:
    features = [np.asarray(read_embeddings(study.file(name)).features, dtype=np.float32) for name in slide_ids]
    return pack([torch.from_numpy(np.concatenate(features))])


def test_branches_of_attention_are_shown_as_they_weigh_in_the_decision(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_made(tmp_path / "model", "cancer,grade", 3, "clam-mb")
    score = score_bag(model, [read_embeddings(study.file("b"))])
    titles = []
    monkeypatch.setattr("pathfm.heatmap.View.of", lambda *given, of=View.of: titles.append(given[3]) or of(*given))
    for which, target in enumerate(("cancer", "grade")):
        out = tmp_path / target
        table = heatmap(tmp_path / "model", [study.only("b")], [study.embeddings], out, target=target)
        assert table["predicted"].tolist() == [str(score.scores[which].argmax())]
        assert shares(out, "b") == pytest.approx(score.attention(which).tolist(), rel=1e-4)
    assert all(
        title.endswith("24 tiles, branches of attention by their weight; stage: development") for title in titles
    )
    write_stage(tmp_path / "model", "silent", "c" * 64, [], [])
    again = heatmap(tmp_path / "model", [study.only("b")], [study.embeddings], out, target="grade")
    assert again["stage"].tolist() == ["silent"]
    assert titles[-1].endswith("stage: silent")  # drawn again, for its title says another one
    with pytest.raises(InputError, match="pass --target cancer or grade"):
        heatmap(tmp_path / "model", [study.only("b")], [study.embeddings], tmp_path / "out")
    with pytest.raises(UnknownNameError, match="near: grade"):
        heatmap(tmp_path / "model", [study.only("b")], [study.embeddings], tmp_path / "out", target="grades")


def test_an_ensemble_is_shown_by_the_mean_attention_of_its_members(study: Study, tmp_path: Path) -> None:
    model = write_made(tmp_path / "model", "cancer", 2, "gated-abmil", "gated-abmil")
    heatmap(tmp_path / "model", [study.only("b")], [study.embeddings], tmp_path / "out")
    with torch.inference_mode():
        each = [head(bag_of(study, "b")).attention for head in model.heads]
    assert all(one is not None for one in each)
    assert not torch.allclose(each[0], each[1])  # type: ignore[arg-type]
    mean = torch.stack(each)[:, :, 0].mean(dim=0)  # type: ignore[arg-type]
    assert shares(tmp_path / "out", "b") == pytest.approx(mean.tolist(), rel=1e-4)


def test_a_patient_is_shown_slide_by_slide_with_the_attention_of_its_bag(copy: Study, tmp_path: Path) -> None:
    model = write_made(tmp_path / "model", "cancer", 2, "gated-abmil", unit="patient")
    cohort = copy.only("a", "b")
    table = pd.read_csv(cohort, dtype=str, keep_default_na=False)
    table.assign(patient_id="p").to_csv(cohort, index=False)
    drawn = heatmap(tmp_path / "model", [cohort], [copy.embeddings], tmp_path / "out").set_index("slide_id")
    with torch.inference_mode():
        attention = model.heads[0](bag_of(copy, "a", "b")).attention
    assert attention is not None
    assert [*shares(tmp_path / "out", "a"), *shares(tmp_path / "out", "b")] == pytest.approx(
        attention[:, 0].tolist(), rel=1e-4
    )
    highest = float(attention[:24].max()) * 48  # of the average tile of both slides
    assert drawn.loc["a", "top_attention"] == pytest.approx(highest, abs=1e-3)


def test_a_slide_whose_patient_lacks_others_of_its_bag_is_listed(copy: Study, tmp_path: Path) -> None:
    write_made(tmp_path / "folds" / "0", "cancer", 2, "gated-abmil", unit="patient")
    (tmp_path / "folds.csv").write_text("slide_id,patient_id,label,fold\na;b,p,1,0\n")
    heatmap(tmp_path, [copy.only("a", "b")], [copy.embeddings], tmp_path / "out")
    assert sum(shares(tmp_path / "out", "a") + shares(tmp_path / "out", "b")) == pytest.approx(1, rel=1e-3)
    copy.file("b").unlink()
    table = heatmap(tmp_path, [copy.only("a", "b")], [copy.embeddings], tmp_path / "out").set_index("slide_id")
    assert "slides of a patient as one bag, and b has no embeddings file" in table.loc["a", "why"]
    assert table.loc["b", "why"] == "it has no embeddings file"


def test_what_a_model_reads_beside_the_slide_comes_from_the_cohort(copy: Study, tmp_path: Path) -> None:
    covariates = Covariates((Covariate("age"),))
    model = write_made(tmp_path / "model", "cancer", 2, "gated-abmil", covariates=covariates)
    with torch.no_grad():
        model.heads[0].covariates.linear.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    write_model(tmp_path / "model", model)
    cohort = copy.only("a", "b")
    table = pd.read_csv(cohort, dtype=str, keep_default_na=False)
    table.assign(age=["9", "-9"]).to_csv(cohort, index=False)
    drawn = heatmap(tmp_path / "model", [cohort], [copy.embeddings], tmp_path / "out")
    assert drawn["predicted"].tolist() == ["1", "0"]
    table.to_csv(cohort, index=False)
    with pytest.raises(CohortError, match="lacks the column age"):
        heatmap(tmp_path / "model", [cohort], [copy.embeddings], tmp_path / "out")


def test_what_stands_beside_a_slide_is_read_as_predict_reads_it(copy: Study, tmp_path: Path) -> None:
    """The first of two tables that name a slide counts, slides of a patient agree, and a table has to be there."""
    covariates = Covariates((Covariate("age"),))
    write_made(tmp_path / "model", "cancer", 2, "gated-abmil", unit="patient", covariates=covariates)
    table = pd.DataFrame({"slide_id": ["b", "a", "h"], "patient_id": ["p", "p", "p"], "age": ["", "40", "40"]})
    for name, age in (("one", "40"), ("two", "60")):
        table.assign(age=["", age, age]).to_csv(tmp_path / f"{name}.csv", index=False)
    cohorts = [read_cohort(tmp_path / f"{name}.csv") for name in ("one", "two")]
    copy.file("h").unlink()
    chosen = final_choices(tmp_path / "model", None, cohorts, ["h", "b", "a"], [copy.embeddings])
    assert [chosen[name].bag for name in "abh"] == [("a", "b"), ("a", "b"), ("h",)]
    assert [chosen[name].covariates.tolist() for name in "ab"] == [[40], [40]]
    with pytest.raises(InputError, match="pass --slides a CSV with the columns slide_id, patient_id, age"):
        final_choices(tmp_path / "model", None, [], ["a"], [copy.embeddings])
    table.assign(age=["30", "40", "40"]).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(CohortError, match="slides of patient p hold 30 and 40"):
        final_choices(tmp_path / "model", None, [read_cohort(tmp_path / "one.csv")], ["a", "b"], [copy.embeddings])


def test_a_slide_that_changed_under_its_name_is_not_drawn(copy: Study) -> None:
    write_picture(copy.root / "slides" / "0.png", 99)
    with pytest.raises(EmbeddingsStaleError, match="has changed since"):
        heatmap(copy.crossval, [copy.only("a", "b")], [copy.embeddings], copy.root / "out")


def test_unreadable_slide_ends_the_run_with_an_error_after_the_others_are_drawn(copy: Study) -> None:
    (copy.root / "slides" / "0.png").write_bytes(b"nothing")
    with pytest.raises(SlidesFailedError, match="1 of 2"):
        heatmap(copy.crossval, [copy.only("a", "b")], [copy.embeddings], copy.root / "out")
    table = pd.read_csv(copy.root / "out" / "heatmaps.csv", keep_default_na=False).set_index("slide_id")
    assert "0.png" in table.loc["a", "why"]
    assert str(copy.root) not in table.loc["a", "why"]  # folders name people
    assert (copy.root / "out" / "b.png").exists()


def test_fold_model_that_has_seen_the_patient_is_refused(copy: Study) -> None:
    path = copy.crossval / "folds.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["fold"] = table["fold"].map({"0": "1", "1": "0", "": ""})
    table.to_csv(path, index=False)
    with pytest.raises(ModelError, match="was trained on patient"):
        heatmap(copy.crossval, [copy.cohort], [copy.embeddings], copy.root / "out")


def test_slide_of_another_size_than_the_embeddings_is_refused(copy: Study) -> None:
    Image.new("RGB", (500, 300), "white").save(copy.root / "slides" / "0.png")
    with pytest.raises(EmbeddingsStaleError, match="384 x 256"):
        heatmap(copy.crossval, [copy.cohort], [copy.embeddings], copy.root / "out")


def test_embeddings_file_that_was_renamed_to_another_slide_is_refused(copy: Study) -> None:
    shutil.copy(copy.file("b"), copy.file("a"))
    with pytest.raises(EmbeddingsStaleError, match=r"a\.h5 holds slide b, not a"):
        heatmap(copy.crossval, [copy.only("a", "b")], [copy.embeddings], copy.root / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"slide_id,fold\na,0\n", "lacks the column patient_id"),
        (b"slide_id,patient_id,fold\na,p0,../0\n", "than numbers in the column fold"),
        (b"slide_id,patient_id,fold\na,p0\n", "has 2 cells in row 2"),
        (b"\xff\xfe", "cannot be read as a table"),
    ],
)
def test_folds_that_cannot_be_used_are_a_model_error_of_one_line(copy: Study, content: bytes, message: str) -> None:
    (copy.crossval / "folds.csv").write_bytes(content)
    with pytest.raises(ModelError, match=rf"folds\.csv.*{message}.*pathfm crossval again") as caught:
        heatmap(copy.crossval, [copy.cohort], [copy.embeddings], copy.root / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "columns", "number", "bytes"])
def test_old_list_that_cannot_be_used_counts_as_nothing_drawn(copy: Study, damage: str) -> None:
    out, slides = copy.root / "out", [copy.only("a")]
    first = heatmap(copy.crossval, slides, [copy.embeddings], out)
    path = out / "heatmaps.csv"
    whole = path.read_text()
    row = whole.splitlines()[1]
    content = {
        "empty": b"",
        "columns": b"slide_id,why\na,\n",
        "number": whole.replace(row, row.replace(",24,", ",many,")).encode(),
        "bytes": b"\xff\xfe\x00",
    }[damage]
    assert content != whole.encode()
    path.write_bytes(content)
    (out / "a.png").write_bytes(b"old")
    assert heatmap(copy.crossval, slides, [copy.embeddings], out).equals(first)
    assert (out / "a.png").read_bytes() != b"old"
    assert path.read_text() == whole


def test_gallery_of_no_tiles_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--top-tiles"):
        heatmap(study.model, [study.cohort], [study.embeddings], tmp_path, top_tiles=0)


def test_uniform_attention_looks_uniform(tmp_path: Path) -> None:
    Image.new("RGB", SIZE_PX0, (200, 180, 200)).save(tmp_path / "x.png")
    coords = np.array([[x, y] for y in range(0, 256, TILE_PX0) for x in range(0, 384, TILE_PX0)], dtype=np.int32)
    uniform = np.full(len(coords), 1 / len(coords))
    colours = {tuple(f["properties"]["color"]) for f in attention_geojson(coords, TILE_PX0, uniform)["features"]}
    assert len(colours) == 1
    with open_slide(tmp_path / "x.png", MPP) as slide:
        drawing = draw_heatmap(slide, coords, float(TILE_PX0), uniform, "uniform")
    coloured = np.asarray(drawing.axes[1].images[0].get_array())
    assert len(np.unique(coloured.reshape(-1, 3), axis=0)) == 1
    # a hair off uniform stays a hair off in colour, it is not stretched to the whole range
    nearly = uniform * np.linspace(0.99, 1.01, len(coords))
    levels = np.array([f["properties"]["color"] for f in attention_geojson(coords, TILE_PX0, nearly)["features"]])
    assert np.ptp(levels, axis=0).max() <= 4


def test_geojson_tiles_are_closed_squares_in_level_0_pixels_with_ranked_measurements() -> None:
    coords = np.array([[0, 0], [10, 20], [30, 0]], dtype=np.int32)
    features = attention_geojson(coords, 10.5, np.array([0.2, 0.5, 0.3]))["features"]
    ring = features[1]["geometry"]["coordinates"][0]
    assert ring == [[10, 20], [20.5, 20], [20.5, 30.5], [10, 30.5], [10, 20]]
    measured = [feature["properties"]["measurements"] for feature in features]
    assert [m["attention rank"] for m in measured] == [3, 1, 2]
    assert [m["attention"] for m in measured] == pytest.approx([0.6, 1.5, 0.9])
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}
    assert attention_geojson(coords[:0], 10.5, np.zeros(0))["features"] == []


@given(st.integers(1, 6), st.integers(1, 5), st.floats(2.0, 9.7), st.integers(0, 1000))
def test_tiles_of_a_grid_are_painted_without_gap_or_overlap(columns: int, rows: int, extent: float, seed: int) -> None:
    corners = np.array([[x * extent, y * extent] for y in range(rows) for x in range(columns)])
    values = np.random.default_rng(seed).random(len(corners))
    shape = (round(rows * extent) + 3, round(columns * extent) + 2)
    painted = paint_tiles(shape, corners, extent, values)
    inside = np.zeros(shape, bool)
    inside[: np.rint(rows * extent).astype(int), : np.rint(columns * extent).astype(int)] = True
    assert (np.isfinite(painted) == inside).all()
    for (x, y), value in zip(corners + extent / 2, values, strict=True):
        assert painted[int(y), int(x)] == pytest.approx(value)


def test_overlapping_tiles_are_painted_with_their_mean() -> None:
    painted = paint_tiles((4, 6), np.array([[0, 0], [2, 0]]), 4.0, np.array([1.0, 3.0]))
    assert painted[0].tolist() == pytest.approx([1, 1, 2, 2, 3, 3])


@given(st.floats(50, 5e5))
def test_scale_bar_is_a_round_length_that_fits(width_um: float) -> None:
    length = scale_bar_um(width_um)
    assert 0.08 * width_um <= length <= 0.2 * width_um * (1 + 1e-6)
    assert f"{length:e}"[0] in "125"


def test_relative_attention_says_multiples_of_the_average() -> None:
    assert relative(np.array([0.25, 0.75])).tolist() == [0.5, 1.5]
    assert [times(v) for v in (0.0321, 1.26, 12.4)] == ["0.03×", "1.3×", "12×"]


def test_gallery_holds_any_number_of_tiles() -> None:
    tile = np.zeros((16, 16, 3), np.uint8)
    for n in (1, 4, 5):
        drawing = draw_gallery([tile] * n, [1.0] * n, 0.5, "a$b$ tiles")
        assert len(drawing.axes) == n
        assert png_bytes(drawing, 50)[:4] == b"\x89PNG"
