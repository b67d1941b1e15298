from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import EmbeddingsCohort, planted_embeddings
from safetensors.numpy import load_file, save

from pathfm.cohort import read_cohort
from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import ModelError
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.reference import (
    REFERENCE,
    Reference,
    facts_of_slides,
    join,
    read_reference,
    reference_of,
    write_reference,
)

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]


def _join(cohort: EmbeddingsCohort, unit: Any = "slide") -> LabelledSlides:
    return labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer", unit=unit)


def _small(n: int = 3, dim: int = 4) -> Reference:
    rng = np.random.default_rng(0)
    return Reference(
        slide_ids=tuple(f"s{i}" for i in range(n)),
        patient_ids=("p0", *("" for _ in range(n - 1))),
        embeddings=rng.normal(size=(n, dim)).astype(np.float32),
        mean_rgb=np.r_[np.full((1, 3), np.nan), rng.uniform(0, 255, (n - 1, 3))].astype(np.float32),
        mpp=np.full(n, 0.25),
        thumbnail_hashes=("0123456789abcdef", *("" for _ in range(n - 1))),
    )


def _same(first: Reference, other: Reference) -> bool:
    texts = [(one.slide_ids, one.patient_ids, one.thumbnail_hashes) for one in (first, other)]
    arrays = [(one.embeddings, one.mean_rgb, one.mpp) for one in (first, other)]
    return texts[0] == texts[1] and all(
        np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype for a, b in zip(*arrays, strict=True)
    )


def _tensors(folder: Path) -> dict[str, Any]:
    write_reference(folder, _small())
    return load_file(folder / REFERENCE)


def _written(folder: Path, data: bytes) -> str:
    (folder / REFERENCE).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _names(**changed: Any) -> Any:
    reference = _small()
    names = {key: list(getattr(reference, key)) for key in ("slide_ids", "patient_ids", "thumbnail_hashes")}
    return np.frombuffer(json.dumps(names | changed).encode(), np.uint8)


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_a_reference_has_a_row_for_every_slide_of_the_chosen_bags_whatever_a_bag_is_of(
    embeddings_cohort: Make, unit: str
) -> None:
    cohort = embeddings_cohort(patients=6, slides=2)
    write_embeddings(cohort.file("p02-0"), planted_embeddings("p02-0", 0, n=0))
    slides = _join(cohort, unit)
    reference = reference_of(slides, slides.table["patient_id"].isin(["p01", "p02"]))
    assert reference.slide_ids == ("p01-0", "p01-1", "p02-1")
    assert reference.patient_ids == ("p01", "p01", "p02")
    for row, name in enumerate(reference.slide_ids):
        one = read_embeddings(cohort.file(name))
        np.testing.assert_allclose(reference.embeddings[row], one.features.astype(np.float64).mean(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(reference.mean_rgb[row], one.mean_rgb)
        assert reference.mpp[row] == one.mpp


def test_new_slides_look_as_they_would_in_a_reference_and_those_without_tiles_are_left_out(
    embeddings_cohort: Make,
) -> None:
    cohort = embeddings_cohort(patients=4)
    write_embeddings(cohort.file("p00-0"), replace(planted_embeddings("p00-0", 0), thumbnail_hash="0123456789abcdef"))
    slides = _join(cohort)
    known = reference_of(slides, slides.table["reason"] == "")
    write_embeddings(cohort.file("empty"), planted_embeddings("empty", 0, n=0))
    assert known.thumbnail_hashes == ("0123456789abcdef", "", "", "")
    files = {name: (cohort.file(name),) for name in (*known.slide_ids, "empty")} | {"failed": None}
    assert _same(facts_of_slides(files, dict(zip(known.slide_ids, known.patient_ids, strict=True))), known)
    assert facts_of_slides(files, {}).patient_ids == ("",) * 4
    assert len(facts_of_slides({"failed": None}, {})) == 0


def test_a_reference_reads_back_as_it_was_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    digests = [write_reference(tmp_path / name, _small()) for name in ("a", "b")]
    assert digests[0] == digests[1] == hashlib.sha256((tmp_path / "a" / REFERENCE).read_bytes()).hexdigest()
    found = read_reference(tmp_path / "a", digests[0])
    assert found is not None
    assert _same(found, _small())


def test_references_are_joined_with_each_slide_once() -> None:
    whole = _small(5)
    assert _same(join([whole.at([0, 1, 2]), whole.at([2, 3, 1]), whole.at([4])]), whole)


def test_slides_whose_patient_is_not_known_are_patients_of_their_own() -> None:
    assert len(set(_small(4).patients)) == 4


def test_a_model_without_a_reference_works_and_one_that_was_taken_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_reference(tmp_path, None) is None
    assert caplog.text == ""
    assert read_reference(tmp_path, "0" * 64) is None
    assert "reference.safetensors is not there" in caplog.text


def test_a_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path, _small())
    with pytest.raises(ModelError, match="does not match key 'reference_sha256'"):
        read_reference(tmp_path, "0" * 64)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mpp": None}, "holds other tensors"),
        ({"more": np.zeros(1)}, "holds other tensors"),
        ({"mpp": np.ones(4)}, "'mpp' has a type or a shape"),
        ({"mpp": np.ones(3, np.float32)}, "'mpp' has a type or a shape"),
        ({"names": np.zeros((1, 2), np.uint8)}, "'names' has a type or a shape"),
        ({"embeddings": np.zeros((3, 0), np.float32)}, "'embeddings' has a type or a shape"),
        ({"embeddings": np.zeros(3, np.float32)}, "has a type or a shape"),
        ({"embeddings": np.full((3, 4), np.inf, np.float32)}, "'embeddings' holds a number that cannot be"),
        ({"mean_rgb": np.full((3, 3), 256, np.float32)}, "'mean_rgb' holds a number that cannot be"),
        ({"mpp": np.array([1.0, 1.0, 0.0])}, "'mpp' holds a number that cannot be"),
        ({"names": np.frombuffer(b"{", np.uint8)}, "cannot be read"),
        ({"names": np.frombuffer(b"[" * 200_000, np.uint8)}, "cannot be read"),
        ({"names": np.frombuffer(b"\xff", np.uint8)}, "cannot be read"),
        ({"names": _names(slide_ids=["s0", "s1", "s1"])}, "does not name 3 different slides"),
        ({"names": _names(patient_ids=["p0"])}, "does not name 3 different slides"),
        ({"names": _names(patient_ids=[1, 2, 3])}, "'patient_ids.0' holds int"),
        ({"names": _names(thumbnail_hashes=["", "", "0123"])}, "16 hex digits"),
    ],
)
def test_a_reference_that_no_model_of_ours_has_is_refused_and_the_fault_is_named(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    tensors = {name: value for name, value in (_tensors(tmp_path) | changes).items() if value is not None}
    with pytest.raises(ModelError, match=what):
        read_reference(tmp_path, _written(tmp_path, save(tensors)))


@pytest.mark.parametrize("header", ["length", "offsets", "shape", "cut"])
def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, header: str
) -> None:
    write_reference(tmp_path, _small())
    data = (tmp_path / REFERENCE).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    described, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if header == "length":
        data = struct.pack("<Q", 1 << 60) + data[8:]
    elif header == "cut":
        data = data[:-8]
    else:
        last = max((key for key in described if key != "__metadata__"), key=lambda k: described[k]["data_offsets"][1])
        if header == "offsets":
            described[last]["data_offsets"][1] = 1 << 50
        described[last]["shape"] = [1 << 50]
        text = json.dumps(described).encode()
        data = struct.pack("<Q", len(text)) + text + body
    with pytest.raises(ModelError, match="cannot be read"):
        read_reference(tmp_path, _written(tmp_path, data))
