from __future__ import annotations

import csv
import errno
import json
import logging
import os
import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyramids import spoil_tile, write_jpeg_pyramid, write_pyramid

from pathfm.backbones import load_backbone
from pathfm.embeddings import embeddings_folder_name, find_embeddings, read_embeddings, write_rows
from pathfm.errors import (
    BackboneError,
    DiskFullError,
    EmbeddingsStaleError,
    InputError,
    SlideError,
    SlidesFailedError,
    SlideUnreadableError,
    TileSpecMismatchError,
)
from pathfm.extract import extract, extract_like, extract_slide, extract_slides, plan_extraction
from pathfm.files import write_json
from pathfm.reading import identify, survey
from pathfm.recipe import recipe_for, settings_of
from pathfm.slide import open_slide
from pathfm.sources import find_slides
from pathfm.stale import set_aside_if_withdrawn
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.extract import ExtractResult
    from pathfm.reading import Survey
    from pathfm.slidefiles import DigestKind
    from pathfm.sources import SlideSource

MPP = 0.5
SPEC = TileSpec(size_px=64, mpp=1.0)


@pytest.fixture(autouse=True)
def _log_everything() -> Iterator[None]:
    logger = logging.getLogger("pathfm")
    level = logger.level
    logger.setLevel(logging.INFO)  # not by setting the attribute: loggers remember what they let through
    yield
    logger.setLevel(level)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        write_slide(tmp_path / "slides" / f"{name}.tiff", seed)
    return tmp_path / "slides"


def write_slide(
    path: Path, seed: int = 0, size: int = 1024, tissue: tuple[int, int] = (256, 900), levels: tuple[int, ...] = (8,)
) -> Path:
    """A square of noisy eosin on glass, with a level of 4 mpp that the overview is read from."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(236, 244, (size, size, 3), dtype=np.uint8)
    start, stop = tissue
    eosin = np.array([205, 110, 170])
    pixels[start:stop, start:stop] = eosin + rng.integers(-20, 20, (stop - start, stop - start, 1))
    path.parent.mkdir(exist_ok=True)
    return write_pyramid(path, pixels, MPP, levels=levels)


def run(slides: Path, out: Path, **more: Any) -> ExtractResult:
    return extract([slides], out, **{"tiles": SPEC, "device": "cpu", "batch_size": 8, "workers": 2} | more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def failures(out: Path) -> list[dict[str, str]]:
    with (out / "failures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log_of(out: Path) -> str:
    return (out / "pathfm-extract.log").read_text()


def test_every_row_is_the_embedding_of_the_tile_at_its_coords(slides: Path, tmp_path: Path) -> None:
    result = run(slides, tmp_path / "out")
    backbone = load_backbone("colour", "cpu")
    for slide_id in ("a", "b", "c"):
        found = read_embeddings(result.folders[0] / f"{slide_id}.h5")
        with open_slide(slides / f"{slide_id}.tiff") as slide:
            tiles = np.stack([slide.read_tile(x, y, 64, 1.0) for x, y in found.coords.tolist()])
        assert len(tiles) > 16
        assert np.allclose(found.features, backbone.embed(tiles), atol=1e-2)
        assert np.allclose(found.mean_rgb, tiles.mean(axis=(0, 1, 2)), atol=1e-3)
        assert (found.mpp, found.mpp_source, found.tile_extent_px0) == (
            pytest.approx(MPP),
            "metadata",
            pytest.approx(128),
        )
    assert (result.done, result.skipped, result.failed) == (("a", "b", "c"), (), ())
    assert failures(tmp_path / "out") == []


def test_the_file_opens_as_one_of_trident_does(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    with h5py.File(folder / "a.h5") as file:
        assert file["features"][:].shape == (len(file["coords"]), load_backbone("colour", "cpu").row.dim)
        assert {"patch_size": 64, "patch_size_level0": 128, "level0_magnification": 20, "overlap": 0}.items() <= dict(
            file["coords"].attrs
        ).items()
        assert file["features"].attrs["encoder"] == "colour"


def test_a_second_run_proves_the_files_and_leaves_them_alone(slides: Path, tmp_path: Path) -> None:
    first = run(slides, tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in sorted(first.folders[0].iterdir())]
    second = run(slides, tmp_path / "out")
    assert (second.done, second.skipped) == ((), ("a", "b", "c"))
    assert [path.stat().st_mtime_ns for path in sorted(second.folders[0].iterdir())] == times
    assert "a: skipped" in log_of(tmp_path / "out")


def test_a_damaged_file_is_made_again_with_the_same_bytes(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    before = files_of(folder)
    with h5py.File(folder / "b.h5") as file:
        offset = file["features"].id.get_offset()
    damaged = bytearray(before["b.h5"])
    damaged[offset + 100] ^= 1
    (folder / "b.h5").write_bytes(damaged)
    (folder / "c.h5").write_bytes(before["c.h5"][:1000])
    assert run(slides, tmp_path / "out").done == ("b", "c")
    assert files_of(folder) == before
    assert "b: made again, for its file is damaged" in log_of(tmp_path / "out")


def test_the_same_slides_give_the_same_bytes_whatever_the_threads_and_the_place(slides: Path, tmp_path: Path) -> None:
    first = run(slides, tmp_path / "first")
    moved = slides.rename(tmp_path / "moved")
    second = run(moved, tmp_path / "second", workers=4)
    assert first.folders[0].name == second.folders[0].name
    assert files_of(first.folders[0]) == files_of(second.folders[0])


@pytest.mark.parametrize("kind", ["sha256", "quick"])
def test_a_slide_that_changed_is_embedded_again(slides: Path, tmp_path: Path, kind: DigestKind) -> None:
    folder = run(slides, tmp_path / "out", digest=kind).folders[0]
    before = files_of(folder)
    assert read_embeddings(folder / "b.h5").slide_digest.startswith(f"{kind}:")
    write_slide(slides / "b.tiff", seed=9)
    assert run(slides, tmp_path / "out", digest=kind).done == ("b",)
    assert files_of(folder)["b.h5"] != before["b.h5"]
    assert "b: made again, for slide_digest is" in log_of(tmp_path / "out")


def test_another_kind_of_digest_makes_no_file_again(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "out", digest="quick")
    assert run(slides, tmp_path / "out", digest="sha256").skipped == ("a", "b", "c")


def test_the_embeddings_of_a_slide_that_was_damaged_since_are_put_out_of_reach(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    data = (slides / "b.tiff").read_bytes()
    (slides / "b.tiff").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out")
    assert sorted(find_embeddings(folder)) == ["a", "c"]
    assert (folder / "b.h5.stale").exists()


def test_the_embeddings_of_a_scale_that_is_withdrawn_are_put_out_of_reach(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    Image.fromarray(np.full((256, 256, 3), (205, 110, 170), np.uint8)).save(slides / "a.png")  # states no mpp
    folder = run(slides, tmp_path / "out", mpp_override=MPP).folders[0]
    assert (folder / "a.h5").exists()
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["a.h5.stale"]
    assert failures(tmp_path / "out")[0]["reason"] == "no mpp"


def test_the_embeddings_of_an_outline_that_is_withdrawn_are_put_out_of_reach(slides: Path, tmp_path: Path) -> None:
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    write_outline(outlines / "a.geojson", 256, 768)
    folder = run(slides, tmp_path / "out", outlines=outlines).folders[0]
    (outlines / "a.geojson").write_text("no outline")
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", outlines=outlines)
    assert sorted(find_embeddings(folder)) == ["b", "c"]
    assert (folder / "a.h5.stale").exists()


def test_the_embeddings_of_a_slide_with_too_many_unreadable_tiles_are_put_out_of_reach(
    slides: Path, tmp_path: Path
) -> None:
    source, work = find_slides([slides])[0], plan_extraction("colour", SPEC, device="cpu")
    path = run(slides, tmp_path / "out").folders[0] / "a.h5"
    set_aside_if_withdrawn(source, work.reading, path, SlideError(source.path, "corrupt tile", ""))
    assert sorted(find_embeddings(path.parent)) == ["b", "c"]


def test_a_slide_that_the_system_refuses_fails_alone_and_keeps_its_embeddings(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = run(slides, out).folders[0]

    def refusing(source: SlideSource, how: Any) -> dict[str, Any]:
        if source.slide_id == "b":
            raise SlideUnreadableError(source.path, "permission", "may not be read")
        return identify(source, how)

    monkeypatch.setattr("pathfm.stale.identify", refusing)  # a test that runs as root is refused nothing
    with pytest.raises(SlidesFailedError):
        run(slides, out)
    assert [(row["slide_id"], row["reason"]) for row in failures(out)] == [("b", "permission")]
    assert sorted(find_embeddings(folder)) == ["a", "b", "c"]


def test_another_scale_of_the_same_slide_is_embedded_again(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "out")
    folder = run(slides, tmp_path / "out", mpp_override=0.55).folders[0]
    found = read_embeddings(folder / "a.h5")
    assert (found.mpp, found.mpp_source) == (0.55, "override")
    assert "mpp is 0.5, wanted 0.55; mpp_source is metadata, wanted override" in log_of(tmp_path / "out")


def test_another_recipe_goes_to_a_folder_of_its_own(slides: Path, tmp_path: Path) -> None:
    folders = {
        run(slides, tmp_path / "out", **more).folders[0]
        for more in ({}, {"tiles": TileSpec(64, 1.0, min_tissue=0.9)}, {"tissue": TissueSpec(min_chroma=0.03)})
    }
    assert len(folders) == 3


def test_a_file_of_another_recipe_is_not_taken_for_done(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    other = run(slides, tmp_path / "out", tiles=TileSpec(64, 1.0, stride_px=32)).folders[0]
    (other / "a.h5").replace(folder / "a.h5")
    assert run(slides, tmp_path / "out").done == ("a",)
    assert "a: made again, for tiles.stride_px is 32, wanted 64" in log_of(tmp_path / "out")


def test_slides_that_cannot_be_used_are_listed_and_the_others_are_done(slides: Path, tmp_path: Path) -> None:
    (slides / "b.tiff").write_bytes(b"no slide at all")
    (slides / "empty.svs").touch()
    out = tmp_path / "out"
    with pytest.raises(SlidesFailedError) as caught:
        run(slides, out)
    assert (caught.value.failed, caught.value.total) == (2, 4)
    assert [(row["slide_id"], row["reason"]) for row in failures(out)] == [
        ("b", "unsupported"),
        ("empty", "empty file"),
    ]
    assert set(find_embeddings(out)) == {"a", "c"}
    write_slide(slides / "b.tiff")
    (slides / "empty.svs").unlink()
    assert run(slides, out).done == ("b",)
    assert failures(out) == []


def test_a_slide_too_coarse_for_the_tiles_says_so(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", tiles=TileSpec(64, 0.25))
    assert {row["reason"] for row in failures(tmp_path / "out")} == {"upsampling"}
    allowed = run(slides, tmp_path / "out", tiles=TileSpec(64, 0.25, allow_upsampling=True))
    assert allowed.done == ("a", "b", "c")


def test_upsampled_embeddings_do_not_stand_in_where_upsampling_is_not_allowed(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out", tiles=TileSpec(64, 0.25, allow_upsampling=True)).folders[0]
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", tiles=TileSpec(64, 0.25))
    assert [row["reason"] for row in failures(tmp_path / "out")] == ["upsampling"] * 3
    assert list(folder.glob("*.h5")) == []


def test_a_slide_without_tissue_is_a_result(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "a.tiff", tissue=(0, 0))
    found = read_embeddings(run(slides, tmp_path / "out").folders[0] / "a.h5")
    assert found.features.shape == (0, load_backbone("colour", "cpu").row.dim)
    assert np.isnan(found.mean_rgb).all()
    assert "a: done, no tissue" in log_of(tmp_path / "out")
    assert [(row["slide_id"], row["reason"]) for row in failures(tmp_path / "out")] == [("a", "no tissue")]
    assert run(slides, tmp_path / "out").skipped == ("a", "b", "c")


def test_unreadable_tiles_are_recorded_and_shift_no_batch(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write_slide(slides / "a.tiff", tissue=(0, 1024))
    whole = read_embeddings(run(slides, tmp_path / "whole", tiles=TileSpec(32, MPP)).folders[0] / "a.h5")
    spoil_tile(slides / "a.tiff", 37)
    result = run(slides, tmp_path / "spoilt", tiles=TileSpec(32, MPP))
    found = read_embeddings(result.folders[0] / "a.h5")
    assert len(whole.failed) == 0
    assert len(found.failed) == 4
    lost = {tuple(xy) for xy in found.failed.tolist()}
    kept = [tuple(xy) not in lost for xy in whole.coords.tolist()]
    assert np.array_equal(found.coords, whole.coords[kept])
    assert np.array_equal(found.features, whole.features[kept])
    assert "a: done, 1020 tiles (4 unreadable)" in log_of(tmp_path / "spoilt")


def test_a_bad_tile_of_a_slide_of_one_level_is_recorded_and_costs_no_other(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slides" / "a.tiff", tissue=(0, 1024), levels=())
    whole = read_embeddings(run(path, tmp_path / "whole", tiles=TileSpec(32, MPP)).folders[0] / "a.h5")
    spoil_tile(path, 37)
    found = read_embeddings(run(path, tmp_path / "spoilt", tiles=TileSpec(32, MPP)).folders[0] / "a.h5")
    assert len(found.failed) == 4
    assert len(found.coords) == len(whole.coords) - 4


def test_a_slide_with_too_many_unreadable_tiles_is_refused(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    write_slide(slides / "a.tiff", tissue=(0, 1024))
    for index in (37, 40):
        spoil_tile(slides / "a.tiff", index)
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", tiles=TileSpec(32, MPP))
    (row,) = failures(tmp_path / "out")
    assert row["reason"] == "corrupt tile"
    assert "at least 6 of 1024 tiles" in row["message"]
    assert list((tmp_path / "out").rglob("*.h5")) == []
    lenient = run(slides, tmp_path / "out", tiles=TileSpec(32, MPP), max_failed_share=0.01)
    assert len(read_embeddings(lenient.folders[0] / "a.h5").failed) == 8
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", tiles=TileSpec(32, MPP))
    assert [path.name for path in lenient.folders[0].glob("*.h5*")] == ["a.h5.stale"]
    with pytest.raises(InputError, match="--max_failed_share is 2"):
        run(slides, tmp_path / "out", max_failed_share=2)


def test_an_interrupted_run_keeps_what_was_finished_and_goes_on_from_there(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of(run(slides, tmp_path / "whole").folders[0])
    written: list[str] = []

    def interrupted(path: Path, *rest: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write_rows(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("pathfm.underway.write_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(slides, tmp_path / "out")
    folder = next((tmp_path / "out").glob("colour-*"))
    assert list(files_of(folder)) == ["a.h5"]
    (folder / ".b.h5.4711.tmp").write_bytes(whole["b.h5"][:500])  # what a kill leaves behind
    assert set(find_embeddings(tmp_path / "out")) == {"a"}
    assert run(slides, tmp_path / "out").done == ("b", "c")
    assert files_of(folder) == whole


def test_a_full_disk_stops_the_run_with_one_error(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathfm.files.os.fsync", full)
    with pytest.raises(DiskFullError, match=r"no space left to write .*failures\.csv"):
        run(slides, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.h5*")] == []


def test_hand_made_outlines_take_the_place_of_found_tissue(slides: Path, tmp_path: Path) -> None:
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    write_outline(outlines / "a.geojson", 256, 768)
    result = run(slides, tmp_path / "out", outlines=outlines)
    a, b = (read_embeddings(result.folders[0] / f"{name}.h5") for name in "ab")
    assert a.coords.tolist() == [[x, y] for y in range(256, 768, 128) for x in range(256, 768, 128)]
    assert len(b.coords) > 16
    assert run(slides, tmp_path / "out", outlines=outlines).skipped == ("a", "b", "c")
    write_outline(outlines / "a.geojson", 256, 640)
    assert run(slides, tmp_path / "out", outlines=outlines).done == ("a",)
    assert "a: made again, for tissue_sha256 is" in log_of(tmp_path / "out")
    with pytest.raises(InputError, match="--outlines a folder"):
        run(slides, tmp_path / "out", outlines=tmp_path / "nowhere")


def write_outline(path: Path, low: int, high: int) -> None:
    ring = [[low, low], [high, low], [high, high], [low, high], [low, low]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    write_json(
        path, {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry, "properties": {}}]}
    )


def test_a_model_from_a_folder_is_recorded_with_weights_and_licence(slides: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tiny(tmp_path / "tiny")
    result = run(slides, tmp_path / "out", backbone=f"local-dir:{tmp_path / 'tiny'}", tiles=TileSpec(mpp=1.0))
    found = read_embeddings(result.folders[0] / "a.h5")
    assert result.folders[0].name.startswith("local-dir--tiny-")
    assert found.features.shape[1] == 64
    assert found.recipe["tiles"] == {"size_px": 160, "mpp": 1.0, "stride_px": 160, "min_tissue": 0.5}
    assert found.licences[0].licence == "apache-2.0"
    assert found.versions["timm"] == timm.__version__
    save_tiny(tmp_path / "tiny")
    again = run(slides, tmp_path / "out", backbone=f"local-dir:{tmp_path / 'tiny'}", tiles=TileSpec(mpp=1.0))
    assert again.folders[0] != result.folders[0]


def save_tiny(folder: Path) -> None:
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), folder, safe_serialization=True)


def test_tiles_that_the_backbone_was_not_made_for_are_refused_before_anything_is_loaded(
    slides: Path, tmp_path: Path
) -> None:
    with pytest.raises(TileSpecMismatchError, match=r"--tiles\.allow_mismatch true"):
        run(slides, tmp_path / "out", backbone="uni", tiles=TileSpec(224, 0.5))
    with pytest.raises(InputError, match="--batch_size is 0"):
        run(slides, tmp_path / "out", batch_size=0)


def test_slides_can_be_embedded_as_a_recipe_says(slides: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tiny(tmp_path / "tiny")
    more = {"backbone": f"local-dir:{tmp_path / 'tiny'}", "tissue": TissueSpec(min_chroma=0.03), "batch_size": 32}
    first = run(slides, tmp_path / "out", **more)
    recipe = read_embeddings(first.folders[0] / "a.h5").recipe
    assert str(tmp_path) not in json.dumps(recipe)
    with pytest.raises(InputError, match="pass --backbone local-dir:/folder"):
        extract_like(recipe, [slides], tmp_path / "like", device="cpu")
    like = extract_like(recipe, [slides], tmp_path / "like", device="cpu", backbone=more["backbone"])
    assert like.folders[0].name == first.folders[0].name
    assert files_of(like.folders[0]) == files_of(first.folders[0])
    save_tiny(tmp_path / "tiny")
    with pytest.raises(EmbeddingsStaleError, match=r"backbone\.weights_sha256 is"):
        extract_like(recipe, [slides], tmp_path / "like", device="cpu", backbone=more["backbone"])


def test_one_slide_is_a_function_of_picklable_arguments(slides: Path, tmp_path: Path) -> None:
    work = plan_extraction("colour", SPEC, device="cpu", batch_size=8, workers=1)
    source = find_slides([slides])[0]
    extract_slide(*pickle.loads(pickle.dumps((source, work, tmp_path / "one"))))
    result = extract_slides([source], work, tmp_path / "out")
    assert files_of(work.folders(tmp_path / "one")[0]) == files_of(result.folders[0])


def test_a_worker_with_another_backbone_than_the_recipes_is_refused(slides: Path, tmp_path: Path) -> None:
    work = plan_extraction("colour", SPEC, device="cpu")
    recipe = work.parts[0].recipe
    recipe["backbone"] = recipe["backbone"] | {"version": "0"}
    with pytest.raises(BackboneError, match=r"backbone\.version is 1, wanted 0"):
        extract_slide(find_slides([slides])[0], work, tmp_path / "out")


@given(
    size_px=st.integers(8, 512),
    mpp=st.sampled_from([1, 1.0, 0.25]),
    min_tissue=st.sampled_from([0, 0.5, 1]),
    tissue_mpp=st.sampled_from([8, 8.0, 4.0]),
    outlines=st.booleans(),
)
def test_a_recipe_is_json_and_leads_back_to_its_settings(
    size_px: int, mpp: float, min_tissue: float, tissue_mpp: float, outlines: bool
) -> None:
    identity = {"name": "colour", "source": "python:x:Y", "precision": "float32"}
    tiles = TileSpec(size_px, mpp, min_tissue=min_tissue).resolved(224, 0.5)
    recipe = recipe_for(identity, tiles, TissueSpec(mpp=tissue_mpp), outlines=outlines)
    settings = settings_of(json.loads(json.dumps(recipe)))
    again = recipe_for(identity, settings.tiles, settings.tissue, outlines=settings.outlines)
    assert embeddings_folder_name(again) == embeddings_folder_name(recipe)
    assert (settings.backbone, settings.precision) == ("colour", "float32")


@pytest.mark.parametrize(
    "odd",
    [
        {"backbone": None},
        {"backbone": {"name": "colour"}},
        {"backbone": {"name": 5, "precision": "float32"}},
        {"backbone": {"name": "colour", "precision": "float99"}},
        {"backbone": {"name": "colour", "precision": ["float32"]}},
        {"tiles": 5},
        {"tiles": {"size_px": "64"}},
        {"tiles": {"size_px": 64, "shell": "x"}},
        {"tiles": {"mpp": 10**400}},
        {"tissue": None},
        {"tissue": {"method": "chroma", "black": "70"}},
        {"tissue": {}},
    ],
    ids=repr,
)
def test_a_recipe_that_was_tampered_with_is_refused_in_one_line(odd: dict[str, Any], tmp_path: Path) -> None:
    recipe = plan_extraction("colour", SPEC, device="cpu").parts[0].recipe
    with pytest.raises(InputError) as caught:
        extract_like(recipe | odd, [tmp_path], tmp_path / "out", device="cpu")
    assert "none that pathfm wrote" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="KeyError"):
        settings_of({})


@pytest.mark.parametrize(("tile", "subsampling"), [(240, None), (256, "420")])
@pytest.mark.parametrize("mpp", [0.5, 1.0, 0.7])  # as scanned, the mean of 2 x 2 pixels, resampled
def test_the_fast_and_the_plain_way_to_read_give_the_same_embeddings(
    tmp_path: Path, tile: int, subsampling: str | None, mpp: float
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(236, 244, (1100, 1100, 3), dtype=np.uint8)
    pixels[200:900, 200:900] = np.array([205, 110, 170]) + rng.integers(-20, 20, (700, 700, 1))
    write_jpeg_pyramid(tmp_path / "slides" / "a.svs", pixels, (4,), tile, subsampling)
    how: dict[str, Any] = {"tiles": TileSpec(64, mpp), "batch_size": 7}
    fast = run(tmp_path / "slides", tmp_path / "fast", reader="auto", **how)
    plain = run(tmp_path / "slides", tmp_path / "plain", reader="openslide", **how)
    assert fast.folders[0].name == plain.folders[0].name  # it is the same recipe
    one, other = (read_embeddings(result.folders[0] / "a.h5") for result in (fast, plain))
    assert (one.versions["reader"], other.versions["reader"]) == ("direct", "openslide")
    assert "read by direct" in log_of(tmp_path / "fast")
    assert len(one.coords) > 20
    assert np.array_equal(one.coords, other.coords)
    assert np.array_equal(one.features, other.features)
    assert (one.tissue_sha256, one.mean_rgb.tolist()) == (other.tissue_sha256, other.mean_rgb.tolist())


def test_a_slide_that_is_changed_while_it_is_read_gives_no_file(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(source: SlideSource, how: Any) -> Survey:
        seen = survey(source, how)
        if source.slide_id == "b":
            write_slide(slides / "b.tiff", seed=9)
        return seen

    with monkeypatch.context() as patch:
        patch.setattr("pathfm.embed.survey", meanwhile)
        with pytest.raises(SlidesFailedError):
            run(slides, tmp_path / "out")
    assert [(row["slide_id"], row["reason"]) for row in failures(tmp_path / "out")] == [("b", "changed")]
    result = run(slides, tmp_path / "out")
    assert result.done == ("b",)
    assert files_of(result.folders[0]) == files_of(run(slides, tmp_path / "clean").folders[0])


def test_embeddings_that_a_wrong_flag_set_aside_come_back(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    before = files_of(folder)
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out", mpp_override=0.25)  # twice off what they state
    assert files_of(folder) == {}
    assert run(slides, tmp_path / "out").skipped == ("a", "b", "c")
    assert files_of(folder) == before


def test_what_lies_in_the_way_of_one_slide_costs_that_slide(slides: Path, tmp_path: Path) -> None:
    folder = run(slides, tmp_path / "out").folders[0]
    (folder / "b.h5").unlink()
    (folder / "b.part").mkdir()
    with pytest.raises(SlidesFailedError):
        run(slides, tmp_path / "out")
    assert [(row["slide_id"], row["reason"]) for row in failures(tmp_path / "out")] == [("b", "embeddings")]
