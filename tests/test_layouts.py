from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pathfm.backbones import BACKBONES, find_backbone
from pathfm.errors import InputError, SlideError, UnknownNameError
from pathfm.layouts import LAYOUTS, ForeignSlide, find_foreign, read_foreign
from pathfm.layouts.names import OUR_NAMES, our_name

N, DIM = 6, 8
FEATURES = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
COORDS = np.array([[256 * (i % 3), 256 * (i // 3)] for i in range(N)])
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512.0,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "s1",
    "savetodir": "None",
    "level0_width": 4096,
    "level0_height": 2048,
}


def write_h5(path: Path, said: dict[str, Any] | None = None, **data: Any) -> Path:
    """Datasets by name, `group__name` for one in a group; attributes of the root, or of `coords` where in TRIDENT's set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            chunks = (1, *np.shape(values)[1:]) if np.size(values) else None
            file.create_dataset(name.replace("__", "/"), data=values, chunks=chunks)
        file.attrs.update(said or {})
    return path


def say(path: Path, of: str, said: dict[str, Any]) -> Path:
    with h5py.File(path, "a") as file:
        file[of].attrs.update(said)
    return path


def write_pt(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def refusal(path: Path, **asked: Any) -> str:
    with pytest.raises(SlideError) as caught:
        read_foreign(path, **asked)
    assert caught.value.reason == "features"
    assert str(path) in str(caught.value)
    return str(caught.value)


def holds_the_features(read: ForeignSlide) -> bool:
    return read.features.dtype == np.float16 and np.array_equal(read.features, FEATURES.astype(np.float16))


def test_trident_says_its_encoder_tile_extent_and_slide_but_no_mpp(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "features_uni_v1" / "s1.h5", features=FEATURES, coords=COORDS)
    read = read_foreign(say(path, "coords", TRIDENT))
    assert holds_the_features(read)
    assert (read.tool, read.encoder) == ("trident", "uni_v1")
    assert (read.tile_px, read.stride_px, read.extent_px0, read.size_px0) == (256, 256, 512.0, (4096, 2048))
    assert (read.mpp, read.tile_mpp) == (None, None)


def test_trident_file_of_another_slide_than_its_name_is_refused(tmp_path: Path) -> None:
    path = say(write_h5(tmp_path / "s2.h5", features=FEATURES, coords=COORDS), "coords", TRIDENT)
    assert "holds another slide than its name" in refusal(path)


def test_trident_slide_without_tiles_is_a_result(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "s1.h5", features=np.empty(0, np.float32), coords=np.empty((0, 2), np.int64))
    assert read_foreign(say(path, "coords", TRIDENT)).features.shape == (0, 0)


def test_clam_features_take_the_tile_size_from_the_coordinates_file(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "h5_files" / "s1.h5", features=FEATURES, coords=COORDS.astype(np.int32))
    assert (read_foreign(path).tool, read_foreign(path).tile_px) == ("clam", None)
    cut = say(
        write_h5(tmp_path / "patches" / "s1.h5", coords=COORDS),
        "coords",
        {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)},
    )
    read = read_foreign(path, coords=cut)
    assert holds_the_features(read)
    assert (read.tile_px, read.extent_px0) == (256, 1024.0)
    other = write_h5(tmp_path / "other" / "s1.h5", coords=COORDS + 1)
    assert "other coordinates" in refusal(path, coords=other)


def test_clam_tensor_takes_its_coordinates_from_its_neighbour(tmp_path: Path) -> None:
    path = write_pt(tmp_path / "pt_files" / "s1.pt", torch.from_numpy(FEATURES))
    assert "--coords" in refusal(path)
    write_h5(tmp_path / "h5_files" / "s1.h5", features=FEATURES, coords=COORDS.astype(np.int32))
    read = read_foreign(path)
    assert holds_the_features(read)
    assert np.array_equal(read.coords, COORDS)


def test_stamp_coordinates_are_microns_and_older_units_are_told_apart(tmp_path: Path) -> None:
    um = (COORDS * 1.0).astype(np.float32)
    new = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "mahmood-uni2", "feat_type": "tile"}
    read = read_foreign(write_h5(tmp_path / "new.h5", new, feats=FEATURES.astype(np.float16), coords=um))
    assert (read.tool, read.unit, read.encoder, read.tile_px) == ("stamp", "um", "mahmood-uni2", 224)
    assert read.tile_mpp == pytest.approx(256 / 224)
    v2 = read_foreign(write_h5(tmp_path / "v2.h5", {"unit": "um", "tile_size": 256.0}, feats=FEATURES, coords=um))
    assert (v2.unit, v2.tile_px) == ("um", None)
    assert np.array_equal(v2.coords, COORDS)
    v1 = read_foreign(write_h5(tmp_path / "v1.h5", feats=FEATURES, coords=COORDS / 256 * 224))
    assert (v1.tool, v1.unit, v1.tile_px) == ("stamp", "um", 224)
    assert np.allclose(v1.coords, COORDS)
    neither = write_h5(tmp_path / "neither.h5", {"extractor": "uni"}, feats=FEATURES, coords=COORDS * 2)
    assert "unit" in refusal(neither)


@pytest.mark.parametrize("kind", ["slide", "patient"])
def test_stamp_embedding_of_a_whole_slide_or_patient_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = write_h5(tmp_path / "s1.h5", {"feat_type": kind, "encoder": "titan"}, feats=FEATURES[:1])
    assert f"one embedding a {kind}" in refusal(path)


def test_atlaspatch_file_with_several_encoders_asks_which(tmp_path: Path) -> None:
    said = {"patch_size": 256, "patch_size_level0": 512, "overlap": 64, "level0_width": 4096, "level0_height": 2048}
    places = np.pad(COORDS, ((0, 0), (0, 3))).astype(np.int32)
    path = write_h5(tmp_path / "s1.h5", said, coords=places, features__uni_v1=FEATURES, features__h0_mini=FEATURES + 1)
    with pytest.raises(InputError, match=r"holds features of h0_mini, uni_v1; pass --backbone"):
        read_foreign(path)
    for name in ("uni", "uni_v1"):
        read = read_foreign(path, encoder=name)
        assert holds_the_features(read)
        assert (read.tool, read.encoder, read.stride_px, read.extent_px0) == ("atlaspatch", "uni_v1", 192, 512)
    assert np.array_equal(read.coords, COORDS)


@pytest.mark.parametrize(("um", "mpp"), [(302, 302 / 299), ("20x", None)])
def test_slideflow_bag_says_its_tiles_and_that_places_are_centres(tmp_path: Path, um: Any, mpp: float | None) -> None:
    path = write_pt(tmp_path / "s1.pt", torch.from_numpy(FEATURES))
    np.savez(tmp_path / "s1.index", COORDS)
    extractor = {"class": "slideflow.model.extractors.virchow2.Virchow2Features", "kwargs": {}}
    config = {"extractor": extractor, "normalizer": None, "num_features": DIM, "tile_px": 299, "tile_um": um}
    (tmp_path / "bags_config.json").write_text(json.dumps(config))
    read = read_foreign(path)
    assert holds_the_features(read)
    assert (read.tool, read.corner, read.encoder, read.tile_px) == ("slideflow", "centre", "Virchow2Features", 299)
    assert read.tile_mpp == (None if mpp is None else pytest.approx(mpp))
    assert "tile corner" in read.doubts


def test_bare_features_and_coordinates_are_no_tools_unless_somebody_says_so(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "features.h5", feats=FEATURES, coords=COORDS * 2)
    assert "--layout plain" in refusal(path)
    assert holds_the_features(read_foreign(path, "plain"))


def test_file_with_names_of_tiles_instead_of_coordinates_needs_them_from_elsewhere(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "features.h5", features=FEATURES, metadata=[f"{i}.jpg".encode() for i in range(N)])
    assert "holds no coordinates (features, metadata); pass --coords" in refusal(path)
    np.save(tmp_path / "places.npy", COORDS)
    assert np.array_equal(read_foreign(path, "plain", coords=tmp_path / "places.npy").coords, COORDS)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (FEATURES[0], "one embedding of the whole slide"),
        (FEATURES[:, None], "not one row of numbers a tile"),
        (np.where(np.arange(DIM) == 3, 70000, FEATURES)[:2].repeat(3, axis=0), "6 of 6 tiles with numbers beyond"),
        (np.where(np.arange(N)[:, None] == 3, np.nan, FEATURES), "1 of 6 tiles whose embedding is not finite"),
        (np.arange(N * DIM).reshape(N, DIM), "of type int64"),
    ],
)
def test_what_is_no_float16_row_a_tile_is_refused(tmp_path: Path, features: Any, says: str) -> None:
    path = write_h5(tmp_path / "s1.h5", features=features, coords=COORDS)
    assert says in refusal(say(path, "coords", TRIDENT))


def _external(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file.create_dataset("features", shape=(N, DIM), dtype="f4", external=[(str(secret), 0, N * DIM * 4)])


def _virtual(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((N, DIM), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "features", (N, DIM))
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file.create_virtual_dataset("features", layout)


def _linked(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file["features"] = h5py.ExternalLink(str(secret), "features")


def _soft(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file.create_dataset("hidden", data=FEATURES)
        file["features"] = h5py.SoftLink("/hidden")


def _bomb(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file.create_dataset("features", shape=(10**9, 1024), dtype="f4", chunks=(64, 1024), compression="gzip")


def _filtered(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=COORDS)
        file.create_dataset("features", data=FEATURES, scaleoffset=2)


@pytest.mark.parametrize("spoil", [_external, _virtual, _linked, _soft, _bomb, _filtered])
@pytest.mark.parametrize("layout", ["clam", "auto"])
def test_hostile_hdf5_is_refused_before_it_is_read(tmp_path: Path, spoil: Any, layout: Any) -> None:
    secret = write_h5(tmp_path / "secret" / "secret.h5", features=FEATURES, coords=COORDS)
    spoil(tmp_path / "s1.h5", secret)
    refusal(tmp_path / "s1.h5", layout=layout)


@pytest.mark.parametrize("length", [0, 100, 3000])
def test_cut_or_empty_file_is_refused(tmp_path: Path, length: int) -> None:
    path = write_h5(tmp_path / "s1.h5", features=FEATURES, coords=COORDS)
    path.write_bytes(path.read_bytes()[:length])
    assert "cannot be read" in refusal(path)


def test_tensor_file_with_a_wrong_bit_anywhere_is_refused_or_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "s1.npy", COORDS)
    path = write_pt(tmp_path / "s1.pt", torch.from_numpy(FEATURES))
    whole, refusals = path.read_bytes(), 0
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert holds_the_features(read_foreign(path, "plain", coords=tmp_path / "s1.npy"))
        except SlideError:
            refusals += 1
    assert refusals > 10


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_tensor_files_run_no_code_and_claim_no_more_than_they_store(tmp_path: Path) -> None:
    np.save(tmp_path / "s1.npy", COORDS)
    beside = {"layout": "plain", "coords": tmp_path / "s1.npy"}
    refusal(write_pt(tmp_path / "evil.pt", _Payload(tmp_path / "ran")), **beside)
    assert not (tmp_path / "ran").exists()
    assert "more than it stores" in refusal(
        write_pt(tmp_path / "wide.pt", torch.zeros(1).expand(10**6, 10**6)), **beside
    )
    assert "as eva writes" in refusal(write_pt(tmp_path / "eva.pt", [torch.zeros(DIM)]), **beside)
    assert "holds a dict" in refusal(write_pt(tmp_path / "d.pt", {"features": 1}), **beside)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("archive/data/0", bytes(1 << 24))
    assert "unpack" in refusal(tmp_path / "bomb.pt", **beside)


def test_locations_are_read_without_unpickling(tmp_path: Path) -> None:
    path = write_pt(tmp_path / "s1.pt", torch.from_numpy(FEATURES))
    pickled = io.BytesIO()
    np.save(pickled, np.array([_Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
    (tmp_path / "s1.index.npy").write_bytes(pickled.getvalue())
    refusal(path)
    assert not (tmp_path / "ran").exists()


def test_our_own_files_are_not_imported_again(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "s1.h5", {"format": "pathfm-embeddings"}, features=FEATURES, coords=COORDS)
    assert "embeddings file of pathfm already" in refusal(path)


def test_files_are_found_where_the_tools_put_them(tmp_path: Path) -> None:
    job = tmp_path / "job" / "20x_256px_0px_overlap"
    for folder in ("features_uni_v1", "patches"):
        write_h5(job / folder / "s1.h5", features=FEATURES)
    write_h5(tmp_path / "clam" / "h5_files" / "s1.h5", features=FEATURES)
    write_pt(tmp_path / "clam" / "pt_files" / "s1.pt", torch.zeros(1))
    write_h5(tmp_path / "stamp" / "deep" / "s1.h5", feats=FEATURES)
    write_h5(tmp_path / "mopadi" / "s1" / "features.h5", feats=FEATURES)
    write_h5(tmp_path / "stamp" / ".hidden.h5", feats=FEATURES)
    for folder in ("job", "clam", "stamp", "mopadi"):
        assert list(find_foreign(tmp_path / folder)) == ["s1"]
    assert find_foreign(tmp_path / "job")["s1"].parent.name == "features_uni_v1"
    write_h5(job / "features_virchow" / "s1.h5", features=FEATURES)
    with pytest.raises(InputError, match=r"features_uni_v1, .*features_virchow; pass --features one"):
        find_foreign(tmp_path / "job")
    with pytest.raises(InputError, match="both of slide s1"):
        find_foreign(tmp_path)


def test_reading_is_a_picklable_call_that_imports_no_torch_for_hdf5(tmp_path: Path) -> None:
    path = say(write_h5(tmp_path / "s1.h5", features=FEATURES, coords=COORDS), "coords", TRIDENT)
    assert holds_the_features(pickle.loads(pickle.dumps(read_foreign(path))))
    code = (
        "import sys; from pathlib import Path; from pathfm.layouts import read_foreign;"
        f"read_foreign(Path({str(path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_of_other_tools_lead_to_rows_of_the_table() -> None:
    assert set(OUR_NAMES.values()) <= set(BACKBONES)
    for name in OUR_NAMES:  # what a row has as an alias is not said again
        with pytest.raises(UnknownNameError):
            find_backbone(name)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("uni_v1", "uni"),
        ("mahmood-uni2", "uni2-h"),
        ("conch_v15", "conch-v1.5"),
        ("pathology/mahmood_uni", "uni"),
        ("Virchow2", "virchow2"),
        ("virchow2:cls", "virchow2:cls"),
        ("uni2-h@abc", "uni2-h@abc"),
        ("midnight12k", "midnight-12k:cls"),
        ("virchow_v2", "virchow2"),
        ("UNIFeatures", "uni"),
        ("hf-hub:owner/nowhere", "hf-hub:owner/nowhere"),
        ("mine", "mine"),
        ("virchow2-cls", "virchow2-cls"),
    ],
)
def test_a_name_of_any_tool_is_ours_where_pathfm_has_the_backbone(name: str, ours: str) -> None:
    assert our_name(name) == ours


def test_an_encoder_of_several_may_be_asked_for_by_any_of_its_names(tmp_path: Path) -> None:
    held = {"features__virchow_v2": FEATURES, "features__uni_v1": FEATURES + 1}
    path = write_h5(tmp_path / "s.h5", coords=COORDS, **held)
    for asked, wanted in (("virchow_v2", "virchow_v2"), ("Virchow2", "virchow_v2"), ("uni", "uni_v1")):
        assert read_foreign(path, encoder=asked).encoder == wanted
    for asked in (None, "conch"):
        with pytest.raises(InputError, match="pass --backbone one of them"):
            read_foreign(path, encoder=asked)


def test_every_layout_is_named_as_the_table_names_it() -> None:
    assert {name: row.name for name, row in LAYOUTS.items()} == {name: name for name in LAYOUTS}
