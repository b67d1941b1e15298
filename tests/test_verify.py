from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyramids import spoil_tile
from test_embeddings import RECIPE, embeddings
from test_extract import SPEC, write_outline, write_slide

from pathfm.embeddings import embeddings_folder_name, read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsDamagedError, InputError, PathfmError
from pathfm.extract import extract
from pathfm.recheck import TOLERANCE
from pathfm.verify import verify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(slides, embeddings folder) of two slides; tests change copies."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        write_slide(root / "slides" / f"{name}.tiff", seed)
    return root / "slides", extracted(root)


def extracted(root: Path, **more: Any) -> Path:
    return extract([root / "slides"], root / "out", tiles=SPEC, device="cpu", batch_size=8, workers=2, **more).folders[
        0
    ]


@pytest.fixture
def case(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    slides, folder = tmp_path / "slides", tmp_path / made[1].name
    for here, there in zip(made, (slides, folder), strict=True):
        there.mkdir()
        for path in here.iterdir():
            (there / path.name).write_bytes(path.read_bytes())
    return slides, folder


def test_verify_counts_the_good_and_names_the_bad(tmp_path: Path) -> None:
    folder = tmp_path / embeddings_folder_name(RECIPE)
    for name in ("a", "b", "c"):
        write_embeddings(folder / f"{name}.h5", embeddings(slide_id=name))
    assert verify(tmp_path).startswith("3 files verified")
    data = bytearray((folder / "b.h5").read_bytes())
    data[data.index(embeddings().features.tobytes()) + 3] ^= 4
    (folder / "b.h5").write_bytes(data)
    (folder / "c.h5").rename(folder / "d.h5")
    with pytest.raises(PathfmError, match=r"2 of 3 files .* b\.h5, d\.h5"):
        verify(tmp_path)


def test_verify_finds_a_file_that_strayed_from_another_recipe(tmp_path: Path) -> None:
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"mpp": 1.0}}
    write_embeddings(tmp_path / embeddings_folder_name(RECIPE) / "a.h5", embeddings(recipe=other))
    with pytest.raises(PathfmError, match=r"1 of 1 files"):
        verify(tmp_path)


def test_files_that_are_what_their_slides_give_pass_the_deep_proof(case: tuple[Path, Path]) -> None:
    slides, folder = case
    said = verify(folder, [slides], deep=5, device="cpu")
    assert said.startswith("2 files verified")
    assert "2 held against their slides, 10 of their tiles embedded again" in said


def test_rows_that_a_slide_does_not_give_are_named(case: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    slides, folder = case
    found = read_embeddings(folder / "b.h5")
    features = np.array(found.features)
    features[[3, 4]] = features[[4, 3]]  # two neighbours of one tissue: nothing that a checksum could notice
    write_embeddings(folder / "b.h5", replace(found, features=features))
    assert verify(folder, [slides]).startswith("2 files verified")
    with pytest.raises(EmbeddingsDamagedError, match=r"1 of 2 files .*b\.h5"):
        verify(folder, [slides], deep=1000, device="cpu")
    x, y = found.coords[3].tolist()
    assert f"2 of {len(features)} rows are not what its slide gives now (3 at ({x}, {y})" in caplog.text


def test_neighbouring_tiles_of_one_tissue_are_further_apart_than_the_tolerance(case: tuple[Path, Path]) -> None:
    features = np.asarray(read_embeddings(case[1] / "a.h5").features, np.float64)
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1) / np.linalg.norm(features[:-1], axis=1)
    assert steps.min() > TOLERANCE["float32"]


def test_a_slide_that_changed_under_its_name_is_seen(case: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    slides, folder = case
    spoil_tile(slides / "a.tiff", 37)
    for deep in (0, 2):
        caplog.clear()
        with pytest.raises(EmbeddingsDamagedError, match=r"1 of 2 files .*a\.h5"):
            verify(folder, [slides], deep=deep, device="cpu")
        assert "has changed since; run pathfm extract again" in caplog.text


def test_a_slide_that_went_away_is_no_proof(case: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    slides, folder = case
    table = slides / "cohort.csv"
    table.write_text("slide_id,patient_id,path\na,p,a.tiff\nb,q,b.tiff\n")
    (slides / "b.tiff").unlink()
    with pytest.raises(EmbeddingsDamagedError, match=r"1 of 2 files .*b\.h5"):
        verify(folder, [table])
    assert "cannot be held against its slide" in caplog.text
    (slides / "a.tiff").rename(slides / "c.tiff")
    caplog.clear()
    assert "0 held against their slides" in verify(folder, [slides / "c.tiff"])
    assert "2 files have no slide among those given" in caplog.text
    assert "1 slides have no file that is right: c" in caplog.text


def test_another_scale_or_tissue_than_the_files_is_named(
    case: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    slides, folder = case
    with pytest.raises(EmbeddingsDamagedError, match="2 of 2"):
        verify(folder, [slides], deep=1, mpp_override=0.52, device="cpu")
    assert "it was made at 0.5 mpp (metadata), its slide has 0.52 (override)" in caplog.text
    found = read_embeddings(folder / "a.h5")
    rows = slice(0, len(found.coords) - 3)
    write_embeddings(folder / "a.h5", replace(found, features=found.features[rows], coords=found.coords[rows]))
    with pytest.raises(EmbeddingsDamagedError, match=r"a\.h5"):
        verify(folder, [slides], deep=1, device="cpu")
    assert f"it has {len(found.coords) - 3} tiles, its slide gives {len(found.coords)}" in caplog.text


def test_outlines_are_held_against_the_files_where_they_are_given(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "a.tiff")
    (tmp_path / "outlines").mkdir()
    write_outline(tmp_path / "outlines" / "a.geojson", 256, 768)
    folder = extracted(tmp_path, outlines=tmp_path / "outlines")
    for outlines in (None, tmp_path / "outlines"):
        assert "2 of their tiles" in verify(folder, [tmp_path / "slides"], deep=2, outlines=outlines, device="cpu")
    write_outline(tmp_path / "outlines" / "a.geojson", 256, 640)
    with pytest.raises(EmbeddingsDamagedError):
        verify(folder, [tmp_path / "slides"], deep=2, outlines=tmp_path / "outlines", device="cpu")


def test_a_deep_proof_needs_slides(case: tuple[Path, Path]) -> None:
    for deep, slides in ((3, None), (-1, [case[0]])):
        with pytest.raises(InputError, match="--deep"):
            verify(case[1], slides, deep=deep)


def test_what_an_interrupted_run_left_is_mentioned(case: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (case[1] / "c.part").write_bytes(b"PATHFMJ1")
    verify(case[1])
    assert "1 slides are unfinished: c.part; run the same pathfm extract again" in caplog.text


def test_a_file_that_does_not_know_its_slide_is_not_called_compared(case: tuple[Path, Path]) -> None:
    slides, folder = case
    write_embeddings(folder / "a.h5", replace(read_embeddings(folder / "a.h5"), slide_digest=""))
    assert verify(folder, [slides]).endswith("; 1 held against their slides; 1 do not say which slide they are of")


def test_a_deep_proof_takes_one_of_several_devices(case: tuple[Path, Path]) -> None:
    slides, folder = case
    assert "4 of their tiles embedded again" in verify(folder, [slides], deep=2, device="cpu,cpu")
