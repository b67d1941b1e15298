"""The command on real files: tile images, slides with annotations, cohorts; all generated, with a truth that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyramids import write_pyramid

from pathfm.backbones import BACKBONES, LoadedBackbone, load_backbone, register_backbone
from pathfm.cli import main
from pathfm.errors import (
    BackboneError,
    InputError,
    LeakageError,
    SlidesFailedError,
    TileSpecMismatchError,
    WeightsMissingError,
)
from pathfm.isolation import Limits
from pathfm.probe import probe
from pathfm.probetasks import LABEL, SITE
from pathfm.sources import find_slides
from pathfm.tileimages import find_tile_images
from pathfm.tiles import TileSpec
from pathfm.tilesamples import Sampling, SlideSample, sample_slides
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
    pd.testing.assert_frame_equal(pd.read_csv(out / "probe.csv", keep_default_na=False), results, check_dtype=False)
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
    probe(tmp_path, f"colour, {vit}", images=images / "shuffled.csv", **FAST, seed=1)
    assert (tmp_path / "tiles.csv").read_bytes() != (both[0] / "tiles.csv").read_bytes()


def test_a_second_run_embeds_only_what_is_new(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []
    embed = LoadedBackbone.embed

    def counted(backbone: LoadedBackbone, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        embedded.append(len(tiles))
        return embed(backbone, tiles)

    monkeypatch.setattr(LoadedBackbone, "embed", counted)
    first = probe(tmp_path, images=images / "set", **FAST)
    assert sum(embedded) == PATIENTS * TILES
    again = probe(tmp_path, images=images / "set", **FAST)
    assert sum(embedded) == PATIENTS * TILES
    pd.testing.assert_frame_equal(first, again)
    (kept,) = (tmp_path / "features").rglob("*.npy")
    whole = kept.read_bytes()
    assert np.load(kept).shape == (PATIENTS * TILES, BACKBONES["colour"].dim or 60)
    for spoilt in (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], whole[:-1]):
        kept.write_bytes(spoilt)
        pd.testing.assert_frame_equal(probe(tmp_path, images=images / "set", **FAST), first)
        assert kept.read_bytes() == whole
    assert sum(embedded) == 3 * PATIENTS * TILES


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
    found = find_tile_images(tmp_path)
    assert found["patient_id"].nunique() == PATIENTS
    assert find_tile_images(images / "set")["patient_id"].unique().tolist() == [""]
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
    with pytest.raises(LeakageError, match="are the same file under the patients"):
        probe(tmp_path, images=images / "copies.csv", **FAST)


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
    sample = SlideSample(None, "", 0.25, ("a", "b"), centres, 2, 0)  # type: ignore[arg-type]
    wide, narrow = sample.tiles(TileSpec(size_px=100, mpp=0.5)), sample.tiles(TileSpec(size_px=10, mpp=1.0))
    assert (wide.extent_px0, narrow.extent_px0) == (200, 40)
    assert wide.coords.tolist() == [[0, 0], [201, -23]]
    for one in (wide, narrow):
        assert np.abs(one.coords + one.extent_px0 / 2 - centres).max() < 1


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
    assert [name for name, data in found.items() if b"zq" in data] == []


def test_embeddings_are_those_of_the_backbone(images: Path, vit: str, both: tuple[Path, pd.DataFrame]) -> None:
    tiles = pd.read_csv(both[0] / "tiles.csv")["tile"]
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in tiles])
    (kept,) = (both[0] / "features").glob("local-dir*/*.npy")
    expected = load_backbone(vit, "cpu").embed(pixels)
    assert np.allclose(np.load(kept), expected, atol=2e-3)
