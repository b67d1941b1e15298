from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pathfm.contents import metadata_sha256
from pathfm.embeddings import (
    Embeddings,
    embeddings_folder_name,
    find_embeddings,
    read_embeddings,
    recipe_differences,
    recipe_sha256,
    require_one_recipe,
    write_embeddings,
)
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsStaleError, SeveralRecipesError
from pathfm.files import canonical_json
from pathfm.guarded import sealed
from pathfm.licences import Licence

MIT = Licence("colour", "MIT").facts()
RECIPE: dict[str, Any] = {
    "backbone": {"name": "colour", "dim": 5},
    "tiles": {"size_px": 224, "mpp": 0.5, "stride_px": 224, "min_tissue": 0.5},
}


def embeddings(n: int = 7, slide_id: str = "a", recipe: dict[str, Any] = RECIPE, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    return Embeddings(
        slide_id=slide_id,
        slide_digest="sha256:" + "00" * 32,
        slide_size_px0=(4000, 3000),
        mpp=0.25,
        mpp_source="metadata",
        tile_extent_px0=448.0,
        tissue_sha256="11" * 32,
        recipe=recipe,
        versions={"torch": "2"},
        features=rng.normal(size=(n, 5)).astype(np.float16),
        coords=rng.integers(0, 2900, size=(n, 2)).astype(np.int32),
        failed=np.array([[1, 2]], dtype=np.int32),
        mean_rgb=np.full(3, 200 if n else np.nan, dtype=np.float32),
    )


def reseal(path: Path) -> None:
    """What somebody does who forges a file and knows the format."""
    data = path.read_bytes()
    path.write_bytes(sealed(data[:-79] if data[-79:].startswith(b"\npathfm-sha256:") else data))


def same(a: Embeddings, b: Embeddings) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x == y for x, y in pairs
    )


@pytest.mark.parametrize("n", [0, 1, 7])
def test_what_was_written_is_read_back(tmp_path: Path, n: int) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings(n))
    assert same(read_embeddings(path), embeddings(n))


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.h5", embeddings())
    write_embeddings(tmp_path / "b.h5", embeddings())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_plain_h5py_sees_what_trident_and_clam_users_expect(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.h5", embeddings())
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].shape == (7, 5)
        assert file["features"].chunks is None
        assert file["coords"].dtype == np.int32
        attributes = dict(file["coords"].attrs)
    assert attributes == {
        "patch_size": 224,
        "patch_size_level0": 448,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "a",
        "level0_width": 4000,
        "level0_height": 3000,
    }


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings())
    data = path.read_bytes()
    for length in [0, 1, 100, *np.linspace(200, len(data) - 1, 40).astype(int)]:
        path.write_bytes(data[:length])
        with pytest.raises(EmbeddingsDamagedError):
            read_embeddings(path)


def test_a_flipped_bit_never_gives_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings(1000))
    data, whole = path.read_bytes(), embeddings(1000)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.unlink()
        path.write_bytes(flipped)
        try:
            assert same(read_embeddings(path), whole)
        except EmbeddingsDamagedError:
            found += 1
    assert found > 100, "the flips hardly touched anything"


def _external(file: h5py.File, secret: Path) -> None:
    file.create_dataset("features", shape=(7, 5), dtype="<f2", external=[(str(secret), 0, 70)])


def _virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(7, 5), dtype="<f2")
    layout[:] = h5py.VirtualSource(str(secret), "features", shape=(7, 5))
    file.create_virtual_dataset("features", layout)


def _linked(file: h5py.File, secret: Path) -> None:
    file["features"] = h5py.ExternalLink(str(secret), "features")


def _soft(file: h5py.File, secret: Path) -> None:
    file["features"] = h5py.SoftLink("/coords")


def _chunked(file: h5py.File, secret: Path) -> None:
    file.create_dataset("features", data=np.zeros((7, 5), dtype="<f2"), chunks=(1, 5), compression="gzip")


def _huge(file: h5py.File, secret: Path) -> None:
    file.create_dataset("features", shape=(1 << 40, 5), dtype="<f2")


def _wrong_type(file: h5py.File, secret: Path) -> None:
    file.create_dataset("features", data=np.zeros((7, 5), dtype="<f8"))


def _missing(file: h5py.File, secret: Path) -> None:
    pass


@pytest.mark.parametrize("forge", [_external, _virtual, _linked, _soft, _chunked, _huge, _wrong_type, _missing])
def test_features_that_lie_elsewhere_or_claim_too_much_are_refused(tmp_path: Path, forge: Any) -> None:
    secret, path = tmp_path / "secret", tmp_path / "a.h5"
    write_embeddings(secret, embeddings(seed=1))
    write_embeddings(path, embeddings())
    with h5py.File(path, "a") as file:
        del file["features"]
        forge(file, secret)
    for check in ("shape", "digests"):
        reseal(path)
        with pytest.raises(EmbeddingsDamagedError, match=r"a\.h5"):
            read_embeddings(path, check=check)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "[1]"),
        ("recipe", "{}"),
        ("versions", "[]"),
        ("mpp", np.nan),
        ("slide_width_px0", -5),
        ("mean_rgb", np.zeros(7)),
        ("format_version", 0),
        ("n_failed", 3),
        ("features_sha256", "00"),
        ("licences", 5),
        ("licences", b"\xff"),
        ("licences", np.zeros(3)),
        ("licences", "{}"),
        ("licences", "MIT"),
        ("licences", "["),
        ("licences", "[" * 100_000),
        ("licences", '"' + "x" * 10_000_000 + '"'),
        ("licences", json.dumps([MIT] * 65)),
        ("licences", json.dumps([MIT | {"licence": 5}])),
        ("licences", json.dumps([MIT | {"licence": None}])),
        ("licences", json.dumps([MIT | {"derivatives": "x" * 1001}])),
        ("licences", json.dumps([MIT | {"page": "a\nb"}])),
        ("licences", json.dumps([MIT | {"page": "\x1b[2J"}])),
        ("licences", json.dumps([MIT | {"path": "/home/ann"}])),
        ("licences", json.dumps([{"backbone": "colour"}])),
        ("licences", json.dumps(["MIT"])),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_that_cannot_be_is_refused_even_behind_a_right_digest(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings())
    with h5py.File(path, "a") as file:
        file.attrs[name] = value
        if name == "recipe":
            file.attrs["recipe_sha256"] = recipe_sha256(json.loads(value))
    reseal(path)
    with pytest.raises(EmbeddingsDamagedError, match=r"a\.h5") as caught:
        read_embeddings(path)
    assert "\n" not in str(caught.value)
    if name == "licences":  # the shape alone refuses them, without the digest of the metadata
        with pytest.raises(EmbeddingsDamagedError, match="licences"):
            read_embeddings(path, "shape")


def test_licences_come_back_and_are_unknown_where_none_is_stated(tmp_path: Path) -> None:
    stated = Licence("virchow2", "CC-BY-NC-ND-4.0", "covers “heads” trained on it", "https://example.org/v2")
    for licences, wanted in (
        ((stated, Licence("b", "MIT")), (stated, Licence("b", "MIT"))),
        ((), (Licence("colour"),)),
    ):
        write_embeddings(tmp_path / "a.h5", dataclasses.replace(embeddings(), licences=licences))
        assert read_embeddings(tmp_path / "a.h5").licences == wanted


def test_another_licence_makes_another_file_of_the_same_recipe_and_is_covered_by_the_proof(tmp_path: Path) -> None:
    one, other = (dataclasses.replace(embeddings(), licences=(Licence("a", name),)) for name in ("MIT", "GPL-3.0"))
    assert embeddings_folder_name(one.recipe) == embeddings_folder_name(other.recipe)
    write_embeddings(tmp_path / "a.h5", one)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["licences"] = file.attrs["licences"].replace("MIT", "ISC")
    reseal(tmp_path / "a.h5")
    with pytest.raises(EmbeddingsDamagedError, match="attributes do not match their digest"):
        read_embeddings(tmp_path / "a.h5")


def test_the_page_lists_exactly_the_attributes_that_are_written(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "embeddings-file.md").read_text(encoding="utf-8")
    table = page.partition("## Root attributes")[2].partition("\n\n")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    write_embeddings(tmp_path / "a.h5", dataclasses.replace(embeddings(), thumbnail_hash="0123456789abcdef"))
    with h5py.File(tmp_path / "a.h5") as file:
        assert listed == set(file.attrs)
        assert f"format version {file.attrs['format_version']}" in page.splitlines()[0]
        assert f"`{file.attrs['format_version']}`. A reader MUST refuse" in table


def test_what_other_tools_read_is_covered_by_the_proof(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings())
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_size_level0"] = 9999
    with pytest.raises(EmbeddingsDamagedError, match="last bytes"):
        read_embeddings(path)


def test_embeddings_that_are_not_finite_or_lie_off_the_slide_are_refused(tmp_path: Path) -> None:
    whole = embeddings()
    features, coords = whole.features.copy(), whole.coords.copy()
    features[3, 1], coords[2] = np.nan, (3999, 3000)
    for name, wrong in (("features", features), ("coords", coords)):
        write_embeddings(tmp_path / "a.h5", dataclasses.replace(whole, **{name: wrong}))
        with pytest.raises(EmbeddingsDamagedError):
            read_embeddings(tmp_path / "a.h5")


def test_rubbish_and_foreign_hdf5_are_named_errors(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"rubbish" * 100)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = np.zeros((2, 2))
    for name in ("a.h5", "b.h5"):
        with pytest.raises(EmbeddingsDamagedError, match="run pathfm extract again"):
            read_embeddings(tmp_path / name)


@pytest.mark.parametrize(
    ("version", "digest", "licence"),
    [
        (1, "sha256:" + "00" * 32, Licence("colour")),
        (2, "quick:1938955:" + "00" * 32, Licence("colour")),
        (3, "sha256:" + "00" * 32, Licence("colour", "CC-BY-NC-ND-4.0", "covers heads", "https://example.org")),
    ],
)
def test_a_file_of_every_format_stays_readable(version: int, digest: str, licence: Licence) -> None:
    found = read_embeddings(Path(__file__).parent / "data" / f"embeddings-v{version}.h5")
    assert found.slide_digest == digest
    assert (found.slide_id, found.mpp, found.features.shape, found.failed.tolist()) == ("a", 0.25, (3, 5), [[1, 2]])
    assert found.recipe == RECIPE
    assert found.licences == (licence,)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_file_has_the_licence_of_its_recipe(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.h5"
    old = RECIPE | {"backbone": RECIPE["backbone"] | {"licence": "CC-BY-NC-ND-4.0"}}
    path.write_bytes((Path(__file__).parent / "data" / f"embeddings-v{version}.h5").read_bytes())
    with h5py.File(path, "a") as file:
        file.attrs["recipe"], file.attrs["recipe_sha256"] = canonical_json(old), recipe_sha256(old)
        file.attrs["metadata_sha256"] = metadata_sha256(dict(file.attrs), file["failed"][:])
    reseal(path)
    found = read_embeddings(path)
    assert found.licences == (Licence("colour", "CC-BY-NC-ND-4.0"),)
    assert found.recipe_sha256 == recipe_sha256(old), "the folder is still named by it"


def test_a_licence_in_the_recipe_of_an_older_file_makes_nothing_stale() -> None:
    old = RECIPE | {"backbone": RECIPE["backbone"] | {"licence": "MIT"}}
    joined = [{"backbone": {"name": "x"}, "joined": [recipe, recipe]} for recipe in (old, RECIPE)]
    assert recipe_differences(old, RECIPE) == recipe_differences(RECIPE, old) == recipe_differences(*joined) == []
    assert recipe_differences(old["backbone"], RECIPE["backbone"], "backbone.") == []
    other = RECIPE | {"licence": "MIT", "backbone": RECIPE["backbone"] | {"dim": 6}}
    assert recipe_differences(other, RECIPE) == ["backbone.dim is 6, wanted 5", "licence is MIT, wanted absent"]
    joined[0]["joined"] = [old, other]
    assert recipe_differences(*joined)[0] == "joined.1.backbone.dim is 6, wanted 5"
    joined[0]["joined"] = [old]
    assert recipe_differences(*joined)[0].startswith("joined is ")


def test_a_file_of_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.h5", embeddings())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["format_version"] = 99
    reseal(tmp_path / "a.h5")
    with pytest.raises(EmbeddingsDamagedError, match="upgrade pathfm"):
        read_embeddings(tmp_path / "a.h5")


def test_a_file_changed_after_it_was_proven_is_proven_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings())
    features = read_embeddings(path).features
    data = bytearray(path.read_bytes())
    data[data.index(features.tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(EmbeddingsDamagedError, match="does not match the digest"):
        read_embeddings(path)


def test_a_full_disk_is_a_named_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import errno\nfrom pathfm.files import write_atomically\n"
        "try:\n    write_atomically(pathlib.Path(sys.argv[1]), b'0' * 5000)\n"
        "except OSError as error:\n    sys.exit(0 if error.errno == errno.EFBIG else 1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.h5")], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_root_with_several_recipes_is_an_error_that_lists_them(tmp_path: Path) -> None:
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"mpp": 1.0}}
    for recipe in (RECIPE, other):
        write_embeddings(tmp_path / embeddings_folder_name(recipe) / "a.h5", embeddings(recipe=recipe))
    with pytest.raises(SeveralRecipesError) as caught:
        find_embeddings(tmp_path)
    assert embeddings_folder_name(RECIPE) in str(caught.value)
    assert embeddings_folder_name(other) in str(caught.value)
    assert list(find_embeddings(tmp_path / embeddings_folder_name(other))) == ["a"]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_embeddings_says_what_to_run(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "cache"
    if make:
        folder.mkdir()
    with pytest.raises(EmbeddingsDamagedError, match="extract"):
        find_embeddings(folder)


def test_a_stale_recipe_names_the_key_that_differs() -> None:
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"mpp": 1.0}}
    assert recipe_differences(other, RECIPE) == ["tiles.mpp is 1.0, wanted 0.5"]
    with pytest.raises(EmbeddingsStaleError, match=r"tiles\.mpp is 1\.0, wanted 0\.5"):
        require_one_recipe([(None, embeddings()), (None, embeddings(recipe=other))])  # type: ignore[list-item]


def test_a_file_with_the_recipe_of_several_backbones_is_damaged(tmp_path: Path) -> None:
    for joined in ([RECIPE, RECIPE], [], 5, ["x"], [{}]):
        write_embeddings(tmp_path / "a.h5", embeddings(recipe=RECIPE | {"joined": joined}))
        with pytest.raises(EmbeddingsDamagedError, match="a file is of one"):
            read_embeddings(tmp_path / "a.h5")


@pytest.mark.parametrize("joined", [[5], ["ab"], [None, RECIPE], 5, "x", {}, []])
def test_recipes_that_join_what_are_no_recipes_are_just_different(joined: Any) -> None:
    others = [[RECIPE], [RECIPE, RECIPE], [6], "y", None]
    for other in others:
        (line,) = recipe_differences({"joined": joined}, {"joined": other})
        assert line.startswith("joined is ")
    assert recipe_differences({"joined": joined}, {"joined": joined}) == []


def test_a_licence_in_the_recipe_of_a_newer_file_says_nothing(tmp_path: Path) -> None:
    """An empty list is unknown, whatever stands elsewhere."""
    free = RECIPE | {"backbone": RECIPE["backbone"] | {"licence": "MIT"}}
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings(recipe=free))
    with h5py.File(path, "a") as file:
        file.attrs["licences"] = "[]"
        file.attrs["metadata_sha256"] = metadata_sha256(dict(file.attrs), file["failed"][:])
    reseal(path)
    assert read_embeddings(path).licences == (Licence("colour"),)
