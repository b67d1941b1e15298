"""The command on real files: tile images, slides with annotations, cohorts; all generated, with a truth that is known."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyramids import write_pyramid

from pathfm import probes
from pathfm.backbones import BACKBONES, LoadedBackbone, load_backbone, register_backbone
from pathfm.cli import main
from pathfm.cohort import read_cohort
from pathfm.errors import (
    BackboneError,
    CohortError,
    InputError,
    LeakageError,
    SlidesFailedError,
    TileSpecMismatchError,
    UnknownNameError,
    WeightsMissingError,
)
from pathfm.imagelist import find_tile_images
from pathfm.isolation import Limits
from pathfm.outlines import annotations_from_geojson
from pathfm.probe import probe
from pathfm.probetasks import LABEL, SITE
from pathfm.slidesample import Sampling, SlideSample
from pathfm.sources import find_slides
from pathfm.tileimages import image_units, survey_tile_images
from pathfm.tiles import TileSpec
from pathfm.tilesamples import sample_slides
from pathfm.tissue import TissueSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TILE_PX = 64
PATIENTS, TILES = 12, 3
FAST: dict[str, Any] = {"device": "cpu", "workers": 1, "folds": 3}
COLOURS = {"gland": (92, 62, 140), "stroma": (214, 130, 178)}


def tile(label: str, site: str, seed: int) -> NDArray[np.uint8]:
    """Noise in the colour of the label; the scanners of the north are darker."""
    rng = np.random.default_rng(seed)
    pixels = np.array(COLOURS[label]) + rng.integers(-25, 25, (TILE_PX, TILE_PX, 1)) - 40 * (site == "north")
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _few_strengths() -> Iterator[None]:
    """Two C to choose from are as good here, and quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "STRENGTHS", (1e-3, 1e-1))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of twelve patients, in one folder a label, and a table beside that says whose they are."""
    folder, rows = tmp_path_factory.mktemp("images"), []
    for number in range(PATIENTS * TILES):
        patient = number // TILES
        label, site = sorted(COLOURS)[patient % 2], "north" if patient // 2 % 2 else "south"
        path = folder / "set" / label / f"t{number}.{'png' if number % 2 else 'tif'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile(label, site, number)).save(path)
        rows.append({"path": f"set/{label}/{path.name}", "label": label, "patient_id": f"p{patient}", "site": site})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    import timm
    import torch

    folder = tmp_path_factory.mktemp("weights") / "small-vit"
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), folder, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.fixture
def strict() -> Iterator[str]:
    """A row that says what tile it was made for."""
    register_backbone(replace(BACKBONES["colour"], name="strict", size_px=128, mpp=0.5))
    yield "strict"
    del BACKBONES["strict"]


@pytest.fixture(scope="module")
def both(images: Path, vit: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A run of two backbones."""
    out = tmp_path_factory.mktemp("both")
    return out, probe(out, f"colour, {vit}", images=images / "table.csv", **FAST)


def figure(results: pd.DataFrame, target: str, kind: str = "linear", backbone: str = "colour") -> pd.Series[Any]:
    rows = results[(results["target"] == target) & (results["probe"] == kind) & (results["backbone"] == backbone)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_backbones_are_judged_by_label_and_by_site(both: tuple[Path, pd.DataFrame]) -> None:
    out, results = both
    assert figure(results, LABEL)["balanced_accuracy"] > 0.9
    # the darkness of the north
    assert figure(results, SITE, "knn", "local-dir:small-vit")["balanced_accuracy"] > 0.9
    assert figure(results, SITE)["balanced_accuracy"] > 0.6
    assert set(results["backbone"]) == {"colour", "local-dir:small-vit"}
    assert set(results["chance"]) == {0.5}
    assert (results["low"] <= results["balanced_accuracy"]).all()
    assert (results["high"] >= results["balanced_accuracy"]).all()
    assert set(results["n_tiles"]) == {PATIENTS * TILES}
    assert set(results["n_patients"]) == {PATIENTS}
    written = pd.read_csv(out / "probe.csv", keep_default_na=False, na_values={"by_label": [""]})
    pd.testing.assert_frame_equal(written, results, check_dtype=False)
    assert len(pd.read_csv(out / "differences.csv")) == 6
    with Image.open(out / "probe.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_licences_and_settings_are_in_the_result(both: tuple[Path, pd.DataFrame]) -> None:
    document = json.loads((both[0] / "probe.json").read_text())
    assert document["classes"][LABEL] == ["gland", "stroma"]
    assert [one["backbone"] for one in document["licences"]] == ["colour", "local-dir:small-vit"]
    assert [one["licence"] for one in document["licences"]] == [BACKBONES["colour"].licence, "apache-2.0"]
    assert document["settings"]["folds"] == 3
    assert document["backbones"][1]["weights_sha256"]
    assert any("mpp" in note for note in document["notes"])


def test_each_patient_is_in_one_fold(both: tuple[Path, pd.DataFrame]) -> None:
    tiles = pd.read_csv(both[0] / "tiles.csv")
    assert set(tiles["fold"]) == {0, 1, 2}
    assert (tiles.groupby("patient_id")["fold"].nunique() == 1).all()


def test_the_order_of_files_does_not_matter_and_the_same_seed_gives_the_same_bytes(
    both: tuple[Path, pd.DataFrame], images: Path, vit: str, tmp_path: Path
) -> None:
    table = pd.read_csv(images / "table.csv").sample(frac=1, random_state=3)
    table.to_csv(images / "shuffled.csv", index=False)
    probe(tmp_path, f"colour, {vit}", images=images / "shuffled.csv", **FAST)
    for name in ("probe.csv", "differences.csv", "tiles.csv", "probe.png", "probe.json"):
        assert (tmp_path / name).read_bytes() == (both[0] / name).read_bytes(), name
    probe(tmp_path, images=images / "shuffled.csv", **FAST, seed=1)
    assert (tmp_path / "tiles.csv").read_bytes() != (both[0] / "tiles.csv").read_bytes()


def test_a_second_run_embeds_only_what_is_new(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []
    embed = LoadedBackbone.embed

    def counted(backbone: LoadedBackbone, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        embedded.append(len(tiles))
        return embed(backbone, tiles)

    monkeypatch.setattr(LoadedBackbone, "embed", counted)
    shutil.copytree(images / "set", tmp_path / "set")
    given: dict[str, Any] = {"out": tmp_path / "out", "images": tmp_path / "set", **FAST}
    first = probe(**given)
    assert sum(embedded) == PATIENTS * TILES
    pd.testing.assert_frame_equal(first, probe(**given))
    assert sum(embedded) == PATIENTS * TILES
    (kept,) = (tmp_path / "out" / "features").rglob("*.npy")
    whole = kept.read_bytes()
    assert np.load(kept).shape == (PATIENTS * TILES, BACKBONES["colour"].dim or 60)
    for spoilt in (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], whole[:-1]):
        kept.write_bytes(spoilt)
        pd.testing.assert_frame_equal(probe(**given), first)
        assert kept.read_bytes() == whole
    assert sum(embedded) == 3 * PATIENTS * TILES
    # one image is another now, and one is new: these two, and no other
    Image.fromarray(tile("stroma", "south", 777)).save(tmp_path / "set" / "gland" / "t1.png")
    Image.fromarray(tile("gland", "south", 778)).save(tmp_path / "set" / "gland" / "new.png")
    changed = probe(**given)
    assert sum(embedded) == 3 * PATIENTS * TILES + 2
    pd.testing.assert_frame_equal(changed, probe(tmp_path / "fresh", images=tmp_path / "set", **FAST))


def test_other_weights_under_the_same_name_are_another_backbone(images: Path, tmp_path: Path) -> None:
    import timm
    import torch

    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", num_classes=0)
        timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True)
        probe(tmp_path / "out", f"local-dir:{tmp_path}/vit", images=images / "table.csv", **FAST)
        found.append((tmp_path / "out" / "probe.csv").read_text() + (tmp_path / "out" / "probe.json").read_text())
    assert found[0] == found[2] != found[1]
    kept = [np.load(path) for path in (tmp_path / "out" / "features").rglob("*.npy")]
    assert len(kept) == 2
    assert np.abs(kept[0] - kept[1]).max() > 0.1


def test_an_image_that_changes_while_it_is_worked_on_fails(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "set", tmp_path / "set")
    found, _ = find_tile_images(tmp_path / "set")
    usable, _ = survey_tile_images(found, Limits(), 1)
    Image.fromarray(tile("gland", "south", 777)).save(tmp_path / "set" / "gland" / "t1.png")
    (unit,) = image_units(usable, 8, Limits(), 1)
    some = list(unit.read(np.arange(len(usable))))
    (failure,) = [failure for one in some for failure in one.failures]
    assert (failure.slide_id, failure.reason) == ("gland/t1.png", "changed")
    assert sum(len(one.rows) for one in some) == len(usable) - 1


def test_one_backbone_is_in_memory_at_a_time(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []

    def watched(*arguments: Any) -> LoadedBackbone:
        assert [one for one in loaded if one() is not None] == []
        backbone = load_backbone(*arguments)
        loaded.append(weakref.ref(backbone.model))
        return backbone

    monkeypatch.setattr("pathfm.probe.load_backbone", watched)
    for name in ("one", "other"):
        register_backbone(replace(BACKBONES["colour"], name=name))
    try:
        probe(tmp_path, "one,other", images=images / "set", **FAST)
    finally:
        for name in ("one", "other"):
            del BACKBONES[name]
    assert len(loaded) == 4


def test_a_refused_run_leaves_no_figures_of_an_earlier_one(images: Path, tmp_path: Path) -> None:
    names = {"probe.csv", "differences.csv", "probe.png", "probe.json", "tiles.csv", "failures.csv"}
    probe(tmp_path, images=images / "set", **FAST)
    with pytest.raises(InputError, match="--seed"):
        probe(tmp_path, images=images / "set", **FAST, seed=-1)
    assert names <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="fewer than --folds 30"):
        probe(tmp_path, images=images / "set", **FAST | {"folds": 30})
    assert names & {path.name for path in tmp_path.iterdir()} == {"failures.csv"}


def test_patients_who_are_not_known_are_said_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--images", str(images / "set"), "--out", str(tmp_path), "--folds", "3"]
    assert main([*words, "--device", "cpu", "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert f"the patients of {PATIENTS * TILES} of {PATIENTS * TILES} tiles are not known" in said.err
    lines = said.out.splitlines()
    assert lines[0].split()[:4] == ["backbone", "probe", "target", "balanced_accuracy"]
    assert len(lines) == 1 + 6
    assert "no site is stated" in said.out
    assert {"probe.csv", "probe.png", "probe.json", "pathfm-probe.yaml"} <= {one.name for one in tmp_path.iterdir()}


def test_a_table_in_the_folder_speaks_for_it(images: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles.csv").write_bytes((images / "table.csv").read_bytes())
    found = find_tile_images(tmp_path)[0]
    assert found["patient_id"].nunique() == PATIENTS
    assert find_tile_images(images / "set")[0]["patient_id"].unique().tolist() == [""]
    with pytest.raises(InputError, match="is a column"):
        find_tile_images(images / "set", "organ")
    (tmp_path / "set" / "gland" / "deeper").mkdir(parents=True)
    with pytest.raises(InputError, match="holds the folder deeper"):
        find_tile_images(tmp_path / "set")


def test_images_that_cannot_be_read_are_listed_and_the_others_are_judged(images: Path, tmp_path: Path) -> None:
    whole = next((images / "set").rglob("*.png"))
    bad = {
        "cut.png": (whole.read_bytes()[:-200], "truncated"),
        "text.png": (b"import os", "unreadable"),
        "empty.jpg": (b"", "empty file"),
        "wide.png": (None, "unsupported"),
        "gone.png": (None, "unreadable"),
    }
    rows = [
        {"path": str(images / one["path"]), **one} | {"path": str(images / one["path"])} for one in table_of(images)
    ]
    for name, (data, _) in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        rows.append({"path": name, "label": "gland", "patient_id": "p1", "site": ""})
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(SlidesFailedError, match=f"5 of {PATIENTS * TILES + 5} tile images failed"):
        probe(tmp_path / "out", images=tmp_path / "table.csv", **FAST)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv", dtype=str)
    assert dict(zip(failures["slide_id"], failures["reason"], strict=True)) == {
        name: reason for name, (_, reason) in bad.items()
    }
    results = pd.read_csv(tmp_path / "out" / "probe.csv")
    assert set(results["n_tiles"]) == {PATIENTS * TILES}


def table_of(images: Path) -> list[dict[str, Any]]:
    return pd.read_csv(images / "table.csv", dtype=str).to_dict("records")


def test_tiles_of_another_size_or_mpp_are_refused_unless_allowed(images: Path, strict: str, tmp_path: Path) -> None:
    with pytest.raises(TileSpecMismatchError, match="36 tile images are 64 px wide: backbone strict was made for"):
        probe(tmp_path, strict, images=images / "set", **FAST)
    with pytest.raises(InputError, match=r"64 px wide, not --tiles\.size_px 128"):
        probe(tmp_path, strict, images=images / "set", tiles=TileSpec(size_px=128), **FAST)
    allowed = probe(tmp_path, strict, images=images / "set", tiles=TileSpec(mpp=1.0, allow_mismatch=True), **FAST)
    assert figure(allowed, LABEL, backbone="strict")["balanced_accuracy"] > 0.9
    BACKBONES["strict"] = replace(BACKBONES["strict"], size_px=64)
    probe(tmp_path, strict, images=images / "set", tiles=TileSpec(mpp=0.5), **FAST)
    with pytest.raises(TileSpecMismatchError, match="1 mpp"):
        probe(tmp_path, strict, images=images / "set", tiles=TileSpec(mpp=1.0), **FAST)


def test_images_of_several_sizes_are_resized_by_the_backbone_where_that_is_allowed(
    images: Path, vit: str, tmp_path: Path
) -> None:
    for path in (images / "set").rglob("*.*"):
        size = 96 if int(path.stem[1:]) % TILES == 0 else 64
        target = tmp_path / "set" / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((size, size)).save(target)
    results = probe(tmp_path / "out", vit, images=tmp_path / "set", tiles=TileSpec(allow_mismatch=True), **FAST)
    assert set(results["n_tiles"][results["target"] == LABEL]) == {PATIENTS * TILES}


def test_missing_weights_end_it_before_any_work_on_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(BackboneError) as caught:
        probe(tmp_path / "out", f"colour,local-dir:{tmp_path}/nowhere", images=images / "set", **FAST)
    assert isinstance(caught.value, WeightsMissingError)
    assert not (tmp_path / "out" / "features").exists()
    with pytest.raises(InputError, match="near: colour"):
        probe(tmp_path / "out", "colour,color", images=images / "set", **FAST)
    with pytest.raises(InputError, match="names colour twice"):
        probe(tmp_path / "out", "colour,colour", images=images / "set", **FAST)


def test_one_image_under_two_patients_is_refused(images: Path, tmp_path: Path) -> None:
    rows = table_of(images)
    (images / "copy.png").write_bytes((images / rows[0]["path"]).read_bytes())
    pd.DataFrame([*rows, rows[0] | {"path": "copy.png", "patient_id": "p9"}]).to_csv(images / "copies.csv", index=False)
    with pytest.raises(LeakageError, match="are the same pixels under the patients p9 and p0"):
        probe(tmp_path, images=images / "copies.csv", **FAST)


def judged_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, str]:
    """What comes of a table, and its notes."""
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    results = probe(tmp_path / "out", images=tmp_path / "rows.csv", **FAST)
    return results, " ".join(json.loads((tmp_path / "out" / "probe.json").read_text())["notes"])


def test_the_same_pixels_in_another_file_are_the_same_image(images: Path, tmp_path: Path) -> None:
    rows = [one | {"path": str(images / one["path"])} for one in table_of(images)]
    with Image.open(rows[0]["path"]) as first:
        first.convert("RGBA").save(tmp_path / "again.png")
    again = rows[0] | {"path": str(tmp_path / "again.png")}
    with pytest.raises(LeakageError, match="are the same pixels under the patients"):
        judged_rows(tmp_path, [*rows, again | {"patient_id": "p9"}])
    with pytest.raises(InputError, match="are the same pixels under the labels"):
        judged_rows(tmp_path, [*rows, again | {"label": "stroma"}])
    results, notes = judged_rows(tmp_path, [*rows, again])
    assert set(results["n_tiles"]) == {PATIENTS * TILES + 1}
    assert "1 tiles have the same pixels as another" in notes
    (tmp_path / "link.png").symlink_to(rows[0]["path"])
    with pytest.raises(InputError, match="are one file; name it once"):
        judged_rows(tmp_path, [*rows, rows[0] | {"path": "link.png"}])


def test_tiles_of_one_colour_may_be_of_several_patients_and_are_said(images: Path, tmp_path: Path) -> None:
    rows = [one | {"path": str(images / one["path"])} for one in table_of(images)]
    for number, label in enumerate(("gland", "stroma")):
        Image.new("RGB", (TILE_PX, TILE_PX), "white").save(tmp_path / f"{number}.png")
        rows.append(rows[0] | {"path": f"{number}.png", "label": label, "patient_id": f"p{number}"})
    results, notes = judged_rows(tmp_path, rows)
    assert set(results["n_tiles"]) == {PATIENTS * TILES + 2}
    assert "2 tiles are of one colour alone" in notes


def test_na_is_no_patient_no_site_and_no_label(images: Path, tmp_path: Path) -> None:
    rows = [one | {"path": str(images / one["path"])} for one in table_of(images)]
    rows[0] |= {"label": "NA"}
    rows[1] |= {"patient_id": "nan", "site": "null"}
    rows[-1] |= {"patient_id": "N/A"}
    results, notes = judged_rows(tmp_path, rows)
    assert "1 rows without a label are left out" in notes
    assert "the patients of 2 of 35 tiles are not known" in notes
    assert "site: 1 tiles have no site and are left out" in notes
    assert figure(results, LABEL)["n_patients"] == PATIENTS + 2
    assert set(json.loads((tmp_path / "out" / "probe.json").read_text())["classes"][SITE]) == {"north", "south"}
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id,site\na,p,NA\nb,q,here\n")
    assert read_cohort(tmp_path / "cohort.csv").table["site"].tolist() == ["", "here"]
    (tmp_path / "cohort.csv").write_text("slide_id,patient_id\na,p\nb,NaN\n")
    with pytest.raises(CohortError, match="patient_id is empty in row 3"):
        read_cohort(tmp_path / "cohort.csv")


def test_what_lies_beside_the_labels_is_said(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "set", tmp_path / "set")
    for name in ("loose.png", "gland/notes.txt"):
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set" / "none").mkdir()
    _, notes = find_tile_images(tmp_path / "set")
    assert [note.partition(" ")[0] for note in notes] == ["1", "1", "1"]
    assert "beside the folders" in notes[0]
    assert "no .png" in notes[1]
    assert notes[2].endswith("are no labels: none")


def test_an_image_with_alpha_is_one_where_nothing_shows_through(tmp_path: Path) -> None:
    pixels = np.dstack([tile("gland", "south", 0), np.full((TILE_PX, TILE_PX), 255, np.uint8)])
    (tmp_path / "set" / "gland").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "set" / "gland" / "opaque.png")
    pixels[0, 0, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "set" / "gland" / "through.png")
    usable, failures = survey_tile_images(find_tile_images(tmp_path / "set")[0], Limits(), 1)
    assert usable["tile"].tolist() == ["gland/opaque.png"]
    assert [(one.slide_id, one.reason) for one in failures] == [("gland/through.png", "unsupported")]


def test_a_typing_error_in_a_class_is_said(images: Path, cohort: Path, tmp_path: Path) -> None:
    slides: dict[str, Any] = {"slides": [cohort / "cohort.csv"], "tiles": CUT, "max_tiles": 2, **FAST}
    with pytest.raises(UnknownNameError, match="unknown label 'glande'; near: gland"):
        probe(tmp_path, images=images / "set", classes=["gland", "stroma", "glande"], **FAST)
    with pytest.raises(UnknownNameError, match="unknown label 'colom'; near: colon"):
        probe(tmp_path, label="organ", classes=["colom", "stomach"], **slides)
    with pytest.raises(UnknownNameError, match="unknown label 'strome'; near: stroma"):
        probe(tmp_path, annotations=cohort / "annotations", classes=["gland", "strome"], **slides)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "pass either --images"),
        ({"slides": [Path("x")], "images": Path("y")}, "pass either --images"),
        ({"slides": [Path("x")]}, "pass either --annotations"),
        ({"slides": [Path("x")], "label": "a", "annotations": Path("y")}, "pass either --annotations"),
        ({"slides": [Path("x")], "annotations": Path("nowhere")}, "no folder at nowhere"),
        ({"images": Path("nowhere")}, "no folder at nowhere"),
        ({"images": Path(), "annotations": Path()}, "--annotations label tiles of slides"),
        ({"images": Path("x"), "neighbours": 0}, "--neighbours is 0"),
        ({"images": Path("x"), "seed": -1}, "--seed is -1"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        probe(tmp_path, **options)


HALF = 512  # level-0 pixels


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides of six patients: gland on the left, stroma on the right, both annotated, and a strip as both."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "annotations").mkdir()
    rows = []
    for number in range(6):
        rng = np.random.default_rng(number)
        pixels = np.concatenate([np.full((HALF, HALF, 3), COLOURS[name]) for name in ("gland", "stroma")], axis=1)
        pixels = (pixels + rng.integers(-20, 20, (HALF, 2 * HALF, 1))).clip(0, 255).astype(np.uint8)
        write_pyramid(folder / f"patient-{number}.tiff", pixels, mpp=0.5, levels=(8,))
        features = [area("gland", 0, HALF), area("stroma", HALF, 2 * HALF), area("stroma", 0, 128), area("", 300, 400)]
        path = folder / "annotations" / f"patient-{number}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        organ = "colon" if number % 2 else "stomach"
        path_of = f"patient-{number}.tiff"
        rows.append({"slide_id": f"patient-{number}", "patient_id": f"name-{number}", "path": path_of, "organ": organ})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder


def area(name: str, left: int, right: int) -> dict[str, Any]:
    ring = [[left, 0], [right, 0], [right, HALF], [left, HALF], [left, 0]]
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


CUT = TileSpec(size_px=64, mpp=1.0)  # 128 level-0 pixels


def test_tiles_under_annotations_are_labelled_by_them(cohort: Path, tmp_path: Path) -> None:
    results = probe(
        tmp_path,
        slides=[cohort / "cohort.csv"],
        annotations=cohort / "annotations",
        tiles=CUT,
        max_tiles=7,
        **FAST,
    )
    assert figure(results, LABEL)["balanced_accuracy"] == 1
    tiles = pd.read_csv(tmp_path / "tiles.csv")
    x = tiles["tile"].str.extract(r"@(\d+),")[0].astype(int)
    assert ((x > HALF) == (tiles["label"] == "stroma")).all()
    assert x.min() > 128  # the strip of both is nobody's
    assert (tiles.groupby(["patient_id", "label"]).size() == 7).all()
    notes = " ".join(json.loads((tmp_path / "probe.json").read_text())["notes"])
    assert "under annotations of two classes" in notes
    assert "random sample" in notes
    assert "every tile is right" in notes


def test_the_sample_follows_the_seed_and_not_the_name_of_a_slide(cohort: Path, tmp_path: Path) -> None:
    places = []
    for number, (seed, prefix) in enumerate([(0, ""), (0, "renamed-"), (1, "")]):
        folder = tmp_path / str(number)
        (folder / "annotations").mkdir(parents=True)
        for path in cohort.glob("*.tiff"):
            drawn = f"annotations/{{}}{path.stem}.geojson"
            (folder / f"{prefix}{path.name}").symlink_to(path)
            (folder / drawn.format(prefix)).symlink_to(cohort / drawn.format(""))
        drawn_here = folder / "annotations"
        how = Sampling((CUT,), TissueSpec(), drawn_here, None, 4, seed, 1, Limits(), "auto", 8)
        tiles = sample_slides(find_slides([folder]), {}, how).tiles
        assert len(tiles) == 6 * 2 * 4
        places.append(tiles["tile"].str.partition("@")[2].tolist())
    assert places[0] == places[1] != places[2]


def test_a_column_of_the_cohort_labels_whole_slides(cohort: Path, tmp_path: Path) -> None:
    results = probe(tmp_path, slides=[cohort / "cohort.csv"], label="organ", tiles=CUT, max_tiles=6, **FAST)
    row = figure(results, LABEL)
    assert (row["n_classes"], row["n_tiles"], row["n_patients"]) == (2, 36, 6)
    assert row["low"] <= 0.5 <= row["high"]  # organs look the same here
    with pytest.raises(InputError, match="class 'colon' has tiles of 3 patients, fewer than --folds 5; use --folds 3"):
        probe(tmp_path, slides=[cohort / "cohort.csv"], label="organ", tiles=CUT, **FAST | {"folds": 5})


def test_each_backbone_gets_its_own_field_around_the_same_centres() -> None:
    centres = np.array([(100.0, 100.0), (301.5, 77.25)])
    sample = SlideSample(None, "", 0.25, ("a", "b"), centres, 2, 0, 0, ())  # type: ignore[arg-type]
    wide, narrow = sample.tiles(TileSpec(size_px=100, mpp=0.5)), sample.tiles(TileSpec(size_px=10, mpp=1.0))
    assert (wide.extent_px0, narrow.extent_px0) == (200, 40)
    assert wide.coords.tolist() == [[0, 0], [201, -23]]
    for one in (wide, narrow):
        assert np.abs(one.coords + one.extent_px0 / 2 - centres).max() < 1


def test_the_field_of_every_backbone_has_enough_of_the_label(cohort: Path, tmp_path: Path) -> None:
    """Rings: their middle is not annotated, so what is enough for a wide field is nothing for a narrow one."""
    ring = np.array([[(256, 256)]]) + np.array([[(-200, -200), (200, -200), (200, 200), (-200, 200)]])
    hole = np.array([[(256, 256)]]) + np.array([[(-40, -40), (40, -40), (40, 40), (-40, 40)]])
    shape = {"type": "Polygon", "coordinates": [ring[0].tolist(), hole[0].tolist()]}
    drawn = {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": "ring"}}}
    (tmp_path / "patient-0.geojson").write_text(json.dumps(drawn))
    (source,) = find_slides([cohort / "patient-0.tiff"])
    wide, narrow = TileSpec(size_px=192, mpp=0.5, stride_px=32), TileSpec(size_px=64, mpp=0.5)
    kept = []
    for specs in ((wide,), (wide, narrow)):
        how = Sampling(specs, TissueSpec(), tmp_path, None, 999, 0, 1, Limits(), "auto", 8)
        sampled = sample_slides([source], {}, how)
        sample = sampled.slides["patient-0"]
        with source.open() as slide:
            (mask,) = annotations_from_geojson(tmp_path / "patient-0.geojson", slide, TissueSpec()).values()
        for spec in specs:
            tiles = sample.tiles(spec)
            assert (mask.coverage(*tiles.coords.T, tiles.extent_px0, 0.5) >= 0.5).all()
        kept.append((len(sampled.tiles), any("the field of some backbone" in note for note in sampled.notes)))
    assert 0 < kept[1][0] < kept[0][0]
    assert [noted for _, noted in kept] == [False, True]


def test_annotations_that_cannot_be_meant_fail_or_are_named(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort / "annotations", tmp_path / "annotations")
    far = {"type": "FeatureCollection", "features": [area("gland", 10**6, 10**6 + 500)]}
    (tmp_path / "annotations" / "patient-0.geojson").write_text(json.dumps(far))
    (tmp_path / "annotations" / "patient-1.geojson").unlink()
    (tmp_path / "annotations" / "patient-1.geojson").symlink_to(tmp_path / "nowhere")
    (tmp_path / "annotations" / "patient-2.tiff.geojson").write_text("{}")
    with pytest.raises(SlidesFailedError, match="2 of 6 slides failed"):
        probe(
            tmp_path / "out",
            slides=[cohort / "cohort.csv"],
            annotations=tmp_path / "annotations",
            tiles=CUT,
            max_tiles=4,
            **FAST,
        )
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert failures["slide_id"].tolist() == ["patient-0", "patient-1"]
    assert failures["message"].str.contains("has no area inside the slide").tolist() == [True, False]
    notes = " ".join(json.loads((tmp_path / "out" / "probe.json").read_text())["notes"])
    assert "1 .geojson files are called like no slide and are left out: patient-2.tiff.geojson" in notes


def test_one_scan_under_two_labels_or_patients_is_refused(cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort / "cohort.csv")
    table["path"] = [str(cohort / name) for name in table["path"]]
    (tmp_path / "again.tiff").write_bytes((cohort / "patient-0.tiff").read_bytes())
    for patient, organ, error in (("name-0", "colon", InputError), ("other", "stomach", LeakageError)):
        table.loc[len(table) if error is InputError else len(table) - 1] = ["again", patient, "again.tiff", organ]
        table.to_csv(tmp_path / "cohort.csv", index=False)
        with pytest.raises(error, match="the same"):
            probe(tmp_path / "out", slides=[tmp_path / "cohort.csv"], label="organ", tiles=CUT, max_tiles=2, **FAST)


def test_slides_that_cannot_be_used_are_listed(cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort / "cohort.csv")
    (tmp_path / "broken.tiff").write_bytes((cohort / "patient-0.tiff").read_bytes()[:900])
    table["path"] = [str(cohort / name) for name in table["path"]]
    table.loc[len(table)] = ["broken", "p", str(tmp_path / "broken.tiff"), "colon"]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(SlidesFailedError, match="1 of 7 slides failed"):
        probe(tmp_path / "out", slides=[tmp_path / "cohort.csv"], label="organ", tiles=CUT, max_tiles=4, **FAST)
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["slide_id"].tolist() == ["broken"]
    assert len(pd.read_csv(tmp_path / "out" / "probe.csv")) == 6


def test_with_pseudonyms_no_name_comes_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of patients, files and folders."""
    rows = [one | {"patient_id": f"zqname{one['patient_id']}"} for one in table_of(images)]
    place = tmp_path / "zqfolder"
    (place / "zqsub").mkdir(parents=True)
    for number, row in enumerate(rows):
        row["path"] = str(Path("zqsub") / f"zqfile{number}.png")
        Image.fromarray(tile(row["label"], row["site"], number)).save(place / row["path"])
    (place / "zqsub" / "zqfile0.png").write_bytes(b"broken")
    pd.DataFrame(rows).to_csv(place / "zqtable.csv", index=False)
    monkeypatch.chdir(tmp_path)
    words = ["probe", "--images", str(place / "zqtable.csv"), "--out", "out", "--folds", "3", "--workers", "1"]
    assert main([*words, "--pseudonymise", "key"]) == 2
    said = capsys.readouterr()
    assert "1 of 36 tile images failed" in said.err
    found = {path.name: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert {"probe.csv", "failures.csv", "pathfm-probe.yaml"} <= set(found)
    found |= {"stdout": said.out.encode(), "stderr": said.err.encode()}
    assert [name for name, data in found.items() if re.search(rb"zq(name|folder|sub|file|table)", data)] == []


def test_embeddings_are_those_of_the_backbone(images: Path, vit: str, both: tuple[Path, pd.DataFrame]) -> None:
    tiles = pd.read_csv(both[0] / "tiles.csv")["tile"]
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in tiles])
    (kept,) = (both[0] / "features").glob("local-dir*/*.npy")
    expected = load_backbone(vit, "cpu").embed(pixels)
    assert np.allclose(np.load(kept), expected, atol=2e-3)
