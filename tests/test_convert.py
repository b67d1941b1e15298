from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted_embeddings
from drawn import MPP, SETTINGS, SIZE_PX0, TILE_PX0, Study, make_study
from pyramids import write_pyramid
from test_layouts import COORDS, DIM, FEATURES, TRIDENT, say, write_h5

from pathfm.backbones import BACKBONES
from pathfm.cli import main
from pathfm.convert import export_embeddings, import_embeddings
from pathfm.crossval import crossval
from pathfm.embeddings import find_embeddings, read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsStaleError, InputError, SlidesFailedError
from pathfm.heatmap import heatmap
from pathfm.imported import licence_of
from pathfm.licences import Licence
from pathfm.predict import predict
from pathfm.proven import failed_slides
from pathfm.report import report
from pathfm.train import train
from pathfm.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import EmbeddingsCohort

    Make = Callable[..., EmbeddingsCohort]

TILES = {"tile_px": 256, "tile_mpp": 0.5, "mpp": 0.25}


def trident(folder: Path, *slide_ids: str, features: Any = FEATURES, **said: Any) -> Path:
    """A TRIDENT folder of slides whose tiles touch: 256 level-0 pixels wide, unless something else is said."""
    for name in slide_ids:
        path = write_h5(folder / f"{name}.h5", features=features, coords=COORDS[: len(features)])
        say(path, "coords", TRIDENT | {"patch_size_level0": 256.0, "name": name} | said)
    return folder


def plain(path: Path, features: Any = FEATURES, coords: Any = COORDS) -> Path:
    return write_h5(path, feats=features, coords=coords)


def failure(out: Path, **asked: Any) -> str:
    """The one line in failures.csv of an import of one file that must fail."""
    with pytest.raises(SlidesFailedError):
        import_embeddings(out=out, **asked)
    table = pd.read_csv(out / "failures.csv")
    assert len(table) == 1
    return str(table["message"][0])


def test_imported_file_is_ours_and_says_what_nobody_proved(tmp_path: Path) -> None:
    folder = trident(tmp_path / "features_uni_v1", "s1", features=np.tile(FEATURES, 128))
    result = import_embeddings(folder, tmp_path / "out", mpp=0.5, tile_mpp=0.5)
    (path,) = find_embeddings(tmp_path / "out").values()
    one = read_embeddings(path)
    assert result.done == ("s1",)
    assert np.array_equal(one.features, np.tile(FEATURES, 128).astype(np.float16))
    assert np.array_equal(one.coords, COORDS)
    assert (one.mpp, one.mpp_source, one.slide_size_px0, one.tile_extent_px0) == (0.5, "imported", (4096, 2048), 256.0)
    assert one.slide_digest == ""
    assert np.isnan(one.mean_rgb).all()
    assert one.recipe["imported"]["tool"] == "trident"
    assert {"backbone weights", "mpp", "slide identity", "tile size", "transform"} <= set(
        one.recipe["imported"]["unverified"]
    )
    assert one.recipe["tiles"] == {"size_px": 256, "mpp": 0.5, "stride_px": 256}
    assert one.recipe["backbone"] == {"name": "uni", "dim": 1024}
    assert one.licences == (BACKBONES["uni"].terms,)
    assert "1 file" in verify(tmp_path / "out")


def test_one_row_chunks_become_contiguous_and_keep_their_order(tmp_path: Path) -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    source = plain(tmp_path / "s1.h5", FEATURES[order], COORDS[order])
    with h5py.File(source) as file:
        assert file["feats"].chunks == (1, DIM)
    import_embeddings(source, tmp_path / "out", "plain", "mine", tile_px=256, tile_mpp=0.5, mpp=0.5)
    (path,) = find_embeddings(tmp_path / "out").values()
    with h5py.File(path) as file:
        assert file["features"].chunks is None
        assert np.array_equal(file["coords"], COORDS[order])


def test_second_import_leaves_the_same_alone_and_follows_a_change(tmp_path: Path) -> None:
    folder = trident(tmp_path / "in", "s1", "s2")
    asked: dict[str, Any] = {"backbone": "mine", "mpp": 0.5, "tile_mpp": 0.5}
    assert import_embeddings(folder, tmp_path / "out", **asked).done == ("s1", "s2")
    before = {path: path.stat().st_mtime_ns for path in find_embeddings(tmp_path / "out").values()}
    assert import_embeddings(folder, tmp_path / "out", **asked).skipped == ("s1", "s2")
    assert before == {path: path.stat().st_mtime_ns for path in find_embeddings(tmp_path / "out").values()}
    trident(folder, "s2", features=FEATURES + 1)
    assert import_embeddings(folder, tmp_path / "out", **asked).done == ("s2",)


def test_everything_missing_is_asked_for_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = plain(tmp_path / "s1.h5")
    assert main(["import", "--features", str(source), "--out", str(tmp_path / "out"), "--layout", "plain"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pathfm:")]
    for flag in ("--backbone", "--tile_px", "--tile_mpp", "--mpp", "--cohort", "--slides"):
        assert flag in line
    with pytest.raises(InputError, match=r"--tile_mpp 0\.504"):  # by the 256 level-0 pixels of 0.504
        import_embeddings(trident(tmp_path / "in", "s2"), tmp_path / "out", backbone="mine", mpp=0.504)


@pytest.mark.parametrize(
    ("said", "asked", "message"),
    [
        ({"patch_size": 256}, {"tile_px": 224}, r"says tile size 256, but --tile_px says 224"),
        ({"overlap": 0}, {"stride_px": 128}, r"says stride 256, but --stride_px says 128"),
        ({}, {"mpp": 0.25}, r"tiles of 0.25 microns per pixel by their width, but 0.5 is stated"),
        ({"level0_width": 300}, {}, r"2 of 6 tiles outside of the slide"),
    ],
)
def test_what_file_and_user_say_must_agree(tmp_path: Path, said: Any, asked: Any, message: str) -> None:
    folder = trident(tmp_path / "in", "s1", **said)
    assert message in failure(
        tmp_path / "out", features=folder, **{"backbone": "mine", "mpp": 0.5, "tile_mpp": 0.5, **asked}
    )


def test_backbone_of_the_file_and_of_the_user_are_the_same_weights(tmp_path: Path) -> None:
    folder = trident(tmp_path / "features_virchow2", "s1", features=np.tile(FEATURES, 160))
    asked: dict[str, Any] = {"features": folder, "mpp": 0.5, "tile_mpp": 0.5}
    assert "virchow2, but --backbone says uni" in failure(tmp_path / "a", backbone="uni", **asked)
    message = failure(tmp_path / "b", **asked)
    assert "1280 numbers a tile, virchow2 (cls+mean) gives 2560" in message
    assert "virchow2-cls" in message
    (folder,) = import_embeddings(out=tmp_path / "c", backbone="virchow2-cls", **asked).folders
    assert folder.name.startswith("virchow2-cls-")
    assert licence_of("virchow2-cls") == replace(BACKBONES["virchow2"].terms, backbone="virchow2-cls")
    assert licence_of("virchow2-cls").licence != "unknown"


def test_terms_are_said_once_at_import_and_at_export_and_permissive_ones_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.tile(FEATURES, 128)
    for name, features, said in (("uni", wide, 2), ("gigapath-mine", FEATURES, 2), ("resnet50", wide, 0)):
        folder = trident(tmp_path / name, "s1", "s2", features=features)
        import_embeddings(folder, tmp_path / "in" / name, backbone=name, mpp=0.5, tile_mpp=0.5)
        export_embeddings(tmp_path / "in" / name, tmp_path / "out" / name, "clam")
        lines = [line for line in caplog.messages if "inherits" in line]
        assert len(lines) == said
        assert all(name in line and BACKBONES[name.removesuffix("-mine")].licence in line for line in lines)
        caplog.clear()


def test_a_licence_that_was_corrected_is_taken_by_another_import_and_makes_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"backbone": "mine", "mpp": 0.5, "tile_mpp": 0.5}
    before = import_embeddings(trident(tmp_path / "in", "s1"), tmp_path / "out", **asked)
    row = replace(BACKBONES["uni"], name="mine", licence="MIT", derivatives="", source="local-dir:/mine")
    monkeypatch.setitem(BACKBONES, "mine", replace(row, dim=None))
    after = import_embeddings(tmp_path / "in", tmp_path / "out", **asked)
    assert (after.folders, after.done) == (before.folders, ("s1",))
    (path,) = find_embeddings(tmp_path / "out").values()
    assert read_embeddings(path).licences == (Licence("mine", "MIT"),)


def test_wrong_tile_size_shows_in_the_grid(tmp_path: Path) -> None:
    source = plain(tmp_path / "s1.h5")
    asked: dict[str, Any] = {"features": source, "layout": "plain", "backbone": "mine", "mpp": 0.5, "tile_mpp": 0.5}
    assert "tiles every 256 level-0 pixels" in failure(tmp_path / "out", tile_px=224, **asked)
    import_embeddings(out=tmp_path / "out", tile_px=224, stride_px=256, **asked)
    (path,) = find_embeddings(tmp_path / "out").values()
    assert read_embeddings(path).recipe["tiles"] == {"size_px": 224, "mpp": 0.5, "stride_px": 256}


def test_tiles_that_lie_two_widths_apart_contradict_a_scale_of_touching_tiles(tmp_path: Path) -> None:
    coords = COORDS * 4
    message = failure(
        tmp_path / "out", features=plain(tmp_path / "s.h5", coords=coords), layout="plain", backbone="x", **TILES
    )
    assert "but by what is stated they are" in message


def test_a_file_that_lacks_what_the_others_say_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    folder = trident(tmp_path / "features", "a", "b", "c")
    with h5py.File(folder / "b.h5", "a") as file:
        del file["coords"].attrs["patch_size"]
    with pytest.raises(SlidesFailedError, match="1 of 3"):
        import_embeddings(folder, tmp_path / "out", backbone="x", tile_mpp=0.25, mpp=0.25)
    assert set(find_embeddings(tmp_path / "out")) == {"a", "c"}


def test_files_that_cannot_be_used_are_listed_and_the_others_go_on(tmp_path: Path) -> None:
    folder = trident(tmp_path / "in", "s1", "s2", "s3", "s4", "s5")
    (folder / "s2.h5").write_bytes(b"no HDF5")
    write_h5(folder / "s3.h5", features=FEATURES, coords=COORDS[:3])
    write_h5(folder / "s4.h5", features=FEATURES, coords=COORDS * 0)
    say(folder / "s3.h5", "coords", TRIDENT | {"name": "s3", "patch_size_level0": 256.0})
    say(folder / "s4.h5", "coords", TRIDENT | {"name": "s4", "patch_size_level0": 256.0})
    with pytest.raises(SlidesFailedError, match="3 of 5"):
        import_embeddings(folder, tmp_path / "out", backbone="mine", mpp=0.5, tile_mpp=0.5)
    table = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("slide_id")
    assert list(table["reason"]) == ["features"] * 3
    assert "6 embeddings and 3 coordinates" in table["message"]["s3"]
    assert "one place for all" in table["message"]["s4"]
    assert set(find_embeddings(tmp_path / "out")) == {"s1", "s5"}
    assert failed_slides(tmp_path / "out") == {"s2", "s3", "s4"}


def test_tiles_in_the_same_place_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coords = np.concatenate([COORDS[:4], COORDS[:2]])
    source = plain(tmp_path / "s1.h5", coords=coords)
    import_embeddings(source, tmp_path / "out", "plain", "mine", tile_px=256, tile_mpp=0.5, mpp=0.5)
    assert "2 of 6 tiles have the place of another one" in caplog.text


def test_slides_without_tiles_are_as_wide_as_the_others(tmp_path: Path) -> None:
    folder = trident(tmp_path / "in", "s2")
    path = write_h5(folder / "s1.h5", features=np.empty(0, np.float32), coords=np.empty((0, 2), np.int64))
    say(path, "coords", TRIDENT | {"patch_size_level0": 256.0})
    import_embeddings(folder, tmp_path / "out", backbone="mine", mpp=0.5, tile_mpp=0.5)
    assert read_embeddings(find_embeddings(tmp_path / "out")["s1"]).features.shape == (0, DIM)


def test_mpp_comes_from_the_cohort_slide_by_slide(tmp_path: Path) -> None:
    folder = trident(tmp_path / "in", "s1", "s2", "s3")
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("slide_id,patient_id,mpp\ns1,a,0.5\ns2,b,0.53\ns3,c,\n")
    with pytest.raises(SlidesFailedError, match="1 of 3"):
        import_embeddings(folder, tmp_path / "out", backbone="mine", tile_mpp=0.5, cohort=cohort)
    table = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert table[["slide_id", "reason"]].to_numpy().tolist() == [["s3", "no mpp"]]
    found = {name: read_embeddings(path) for name, path in find_embeddings(tmp_path / "out").items()}
    assert {name: (one.mpp, one.mpp_source) for name, one in found.items()} == {
        "s1": (0.5, "cohort"),
        "s2": (0.53, "cohort"),
    }
    assert found["s1"].recipe == found["s2"].recipe


def test_mpp_size_and_digest_come_from_the_slides_themselves(tmp_path: Path) -> None:
    um = {"unit": "um", "tile_size_um": 128.0, "tile_size_px": 256, "extractor": "mine"}
    write_h5(tmp_path / "in" / "s1.h5", um, feats=FEATURES, coords=(COORDS * 0.5).astype(np.float32))
    (tmp_path / "slides").mkdir()
    write_pyramid(tmp_path / "slides" / "s1.tif", np.full((1024, 1600, 3), 200, np.uint8), mpp=0.25)
    import_embeddings(tmp_path / "in", tmp_path / "out", slides=[tmp_path / "slides"])
    one = read_embeddings(find_embeddings(tmp_path / "out")["s1"])
    assert (one.mpp_source, one.slide_size_px0, one.tile_extent_px0) == (
        "metadata",
        (1600, 1024),
        pytest.approx(512, rel=1e-3),
    )
    assert one.mpp == pytest.approx(0.25, rel=1e-3)
    assert np.abs(one.coords - COORDS * 2).max() <= 1
    assert one.slide_digest.startswith("sha256:")


def test_centres_of_slideflow_become_corners(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(FEATURES), tmp_path / "s1.pt")
    np.savez(tmp_path / "s1.index", (COORDS + 256 / 2).astype(int))
    (tmp_path / "bags_config.json").write_text('{"extractor": {"class": "x.Mine"}, "tile_px": 256, "tile_um": 128}')
    import_embeddings(tmp_path, tmp_path / "out", mpp=0.5)
    one = read_embeddings(find_embeddings(tmp_path / "out")["s1"])
    assert np.array_equal(one.coords, COORDS)
    assert one.recipe["backbone"]["name"] == "Mine"


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp"])
def test_what_is_exported_is_what_the_tool_reads_and_comes_back(
    embeddings_cohort: Make, tmp_path: Path, layout: Any
) -> None:
    cohort = embeddings_cohort(patients=3)
    export_embeddings(cohort.embeddings, tmp_path / "theirs", layout)
    export_embeddings(cohort.embeddings, tmp_path / "theirs", layout)  # the same again is no harm
    asked: dict[str, Any] = {"trident": {}, "stamp": {}, "clam": {"backbone": "planted", "tile_px": 256}}[layout]
    scale = {"mpp": 0.5} if layout == "stamp" else {"mpp": 0.5, "tile_mpp": 0.5}
    import_embeddings(tmp_path / "theirs", tmp_path / "back", **asked, **scale)
    ours, back = find_embeddings(cohort.embeddings), find_embeddings(tmp_path / "back")
    assert list(ours) == list(back)
    for name in ours:
        one, other = read_embeddings(ours[name]), read_embeddings(back[name])
        assert np.array_equal(one.features, other.features)
        assert np.abs(one.coords - other.coords).max() <= (1 if layout == "stamp" else 0)
        assert one.tile_extent_px0 == other.tile_extent_px0
        assert other.recipe["backbone"]["name"] == "planted"


def test_exported_files_have_the_names_and_types_that_the_tools_expect(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=2)
    for layout in ("trident", "clam", "stamp"):
        export_embeddings(cohort.embeddings, tmp_path / layout, layout)  # type: ignore[arg-type]
    with h5py.File(tmp_path / "trident" / "20x_256px_0px_overlap" / "features_planted" / "p00-0.h5") as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int64)
        assert file["coords"].attrs["patch_size_level0"] == 256
        assert file["coords"].attrs["target_magnification"] == 20
    with h5py.File(tmp_path / "clam" / "h5_files" / "p00-0.h5") as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        tensor = torch.load(tmp_path / "clam" / "pt_files" / "p00-0.pt", weights_only=True)
        assert np.array_equal(tensor.numpy(), file["features"])
        assert tensor.dtype == torch.float32
    with h5py.File(tmp_path / "stamp" / "planted" / "p00-0.h5") as file:
        assert (file["feats"].dtype, file["coords"].dtype) == (np.float16, np.float32)
        assert dict(file.attrs) == {
            "extractor": "planted",
            "unit": "um",
            "tile_size_um": 128.0,
            "tile_size_px": 256,
            "feat_type": "tile",
        }
        assert np.array_equal(file["coords"][1], [128.0, 0.0])


def test_export_writes_nowhere_but_into_its_folder(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=2)
    forged = replace(planted_embeddings("p00-0", 0), slide_id="../../escaped")
    write_embeddings(cohort.file("p00-0"), forged)
    with pytest.raises(EmbeddingsStaleError, match="holds the embeddings of slide"):
        export_embeddings(cohort.embeddings, tmp_path / "a" / "b", "clam")
    assert list(tmp_path.rglob("escaped*")) == []
    with pytest.raises(InputError, match="holds the embeddings"):
        export_embeddings(cohort.embeddings, cohort.folder, "trident")


def test_export_overwrites_nothing_of_others(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=2)
    theirs = write_h5(tmp_path / "out" / "planted" / "p00-0.h5", feats=FEATURES)
    before = theirs.read_bytes()
    with pytest.raises(InputError, match="holds something else"):
        export_embeddings(cohort.embeddings, tmp_path / "out", "stamp")
    assert theirs.read_bytes() == before


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A drawn study whose embeddings went out to CLAM's layout and came back: no size, no digest, no colour."""
    root = tmp_path_factory.mktemp("imported")
    study = make_study(root, [f"s{i}" for i in range(8)])
    export_embeddings(study.embeddings, root / "clam", "clam")
    study.embeddings = root / "back"
    tiles = {"tile_px": 32, "tile_mpp": TILE_PX0 / 32 * MPP, "mpp": MPP}
    import_embeddings(root / "clam", study.embeddings, backbone="planted", **tiles)  # type: ignore[arg-type]
    study.crossval, study.model = root / "crossval-back", root / "model-back"
    crossval(study.cohort, [study.embeddings], "cancer", study.crossval, 2, "gated-abmil", training=SETTINGS)
    train(study.cohort, [study.embeddings], "cancer", study.model, training=SETTINGS)
    return study


def test_model_trained_on_imported_embeddings_scores_such_ones_and_no_others(imported: Study, tmp_path: Path) -> None:
    table = predict(imported.model, tmp_path / "new", embeddings=[imported.embeddings])["cancer"]
    assert (table["predicted"] != "").all()
    with pytest.raises(EmbeddingsStaleError, match="imported"):
        predict(imported.model, tmp_path / "other", embeddings=[imported.root / "embeddings"])
    with pytest.raises(InputError, match="imported from another tool"):
        predict(imported.model, tmp_path / "raw", slides=[imported.cohort])


def test_imported_embeddings_are_drawn_and_reported_with_what_they_lack(
    imported: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = heatmap(imported.crossval, [imported.only("s0")], [imported.embeddings], tmp_path / "heat", imported.model)
    assert (tmp_path / "heat" / drawn["overlay"][0]).is_file()
    assert "do not say the slide's size" in caplog.text
    small = tmp_path / "small" / "s0.tif"
    small.parent.mkdir()
    write_pyramid(small, np.full((64, SIZE_PX0[0], 3), 200, np.uint8), mpp=MPP)
    with pytest.raises(EmbeddingsStaleError, match="tiles outside"):
        heatmap(imported.model, [small], [imported.embeddings], tmp_path / "other")
    page = tmp_path / "report.html"
    report(out=page, crossval=imported.crossval, embeddings=[imported.embeddings], cohort=imported.cohort)
    assert "no mean colour" in page.read_text()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("virchow2:cls", "virchow2"),
        ("Virchow2", "virchow2"),
        ("Virchow2-cls", "virchow2"),
        ("uni2-h@abc", "uni2-h"),
        ("conch_v15", "conch-v1.5"),
        ("pathology/mahmood_uni", "uni"),
        ("uni_v2-mine", "uni2-h"),
        ("virchow_v2", "virchow2"),
    ],
)
def test_a_licence_is_found_by_every_name_of_a_backbone(name: str, row: str) -> None:
    assert licence_of(name) == replace(BACKBONES[row].terms, backbone=name)


@pytest.mark.parametrize("name", ["virchow-v2", "virchow-2", "Virchow-V3", "gigapath-2.0", "virchowx", "hf-hub:a/uni"])
def test_a_name_that_may_be_of_a_later_version_has_no_licence_of_an_earlier_one(name: str) -> None:
    assert licence_of(name) == Licence(name)


def test_another_output_is_named_with_a_colon_and_has_its_own_width(tmp_path: Path) -> None:
    folder = trident(tmp_path / "features_virchow2", "s1", features=np.tile(FEATURES, 160))
    asked: dict[str, Any] = {"features": folder, "mpp": 0.5, "tile_mpp": 0.5}
    (made,) = import_embeddings(out=tmp_path / "out", backbone="virchow2:cls", **asked).folders
    assert made.name.startswith("virchow2--cls-")
    wide = trident(tmp_path / "features_midnight12k", "s1", features=np.tile(FEATURES, 384))
    message = failure(tmp_path / "b", features=wide, mpp=0.5, tile_mpp=0.5)
    assert "3072 numbers a tile, midnight-12k:cls (cls) gives 1536" in message
    assert "such as midnight-12k-cls" in message
