"""Embeddings that are written a block at a time: the same file, in memory that does not grow with the slide."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from conftest import planted_embeddings
from crashes import recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import files_below

from pathfm.embeddings import Embeddings, features_sha256, read_embeddings, write_embeddings, write_rows
from pathfm.errors import DiskFullError, EmbeddingsDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray


def written(path: Path, whole: Embeddings, blocks: Iterable[NDArray[np.float16]]) -> None:
    some = list(blocks)
    write_rows(path, facts_of(whole), len(whole.coords), lambda: some)


def facts_of(whole: Embeddings) -> Embeddings:
    return dataclasses.replace(whole, features=whole.features[:0])


def cut(features: NDArray[np.float16], bounds: list[int]) -> list[NDArray[np.float16]]:
    return np.split(features, sorted(bounds))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_bytes_are_the_same_however_the_rows_are_cut(data: st.DataObject) -> None:
    n, dim = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 9))
    bounds = data.draw(st.lists(st.integers(0, n), max_size=8))
    whole = planted_embeddings("a", 0, n=n, dim=dim)
    with TemporaryDirectory() as folder:
        one, other = Path(folder, "one.h5"), Path(folder, "other.h5")
        write_embeddings(one, whole)
        written(other, whole, cut(whole.features, bounds))
        assert one.read_bytes() == other.read_bytes()
        found = read_embeddings(other)
    np.testing.assert_array_equal(found.features, whole.features)
    np.testing.assert_array_equal(found.coords, whole.coords)


def test_a_block_may_lie_anywhere_in_memory_and_where_the_last_one_lay(tmp_path: Path) -> None:
    whole = planted_embeddings("a", 1, n=100)
    write_embeddings(tmp_path / "one.h5", whole)
    unaligned = np.frombuffer(b"-" + whole.features.tobytes(), "<f2", offset=1).reshape(whole.features.shape)
    backwards = whole.features[::-1].copy()[::-1]

    def in_one_place() -> Iterator[NDArray[np.float16]]:
        held = np.empty((10, 8), np.float16)
        for start in range(0, 100, 10):
            held[:] = whole.features[start : start + 10]
            yield held

    for number, blocks in enumerate((lambda: [unaligned], lambda: [backwards], in_one_place)):
        path = tmp_path / f"{number}.h5"
        write_rows(path, facts_of(whole), 100, blocks)
        assert path.read_bytes() == (tmp_path / "one.h5").read_bytes()


@pytest.mark.parametrize(("n", "dim"), [(0, 8), (1, 1), (3, 5), (5000, 300)])
def test_plain_h5py_reads_it_from_one_contiguous_range(tmp_path: Path, n: int, dim: int) -> None:
    whole = planted_embeddings("a", 0, n=n, dim=dim)
    written(tmp_path / "a.h5", whole, cut(whole.features, [n // 3, n // 2]))
    with h5py.File(tmp_path / "a.h5") as file:
        features = file["features"]
        assert features.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        assert (features.shape, features.dtype) == ((n, dim), np.float16)
        np.testing.assert_array_equal(features[:], whole.features)
        np.testing.assert_array_equal(file["coords"][:], whole.coords)
        assert dict(features.attrs) == {"name": "a", "encoder": "planted"}
        assert file.attrs["complete"]


def test_another_program_can_still_add_to_the_file(tmp_path: Path) -> None:
    """Nothing of how it was made is left in it: rows and free space are as libhdf5 itself would have left them."""
    whole = planted_embeddings("a", 0, n=500)
    write_embeddings(tmp_path / "a.h5", whole)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["more"] = np.arange(10_000)
        file.attrs["note"] = "n" * 2000
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][:], whole.features)
        np.testing.assert_array_equal(file["coords"][:], whole.coords)
        np.testing.assert_array_equal(file["more"][:], np.arange(10_000))


WRONG: dict[str, Any] = {
    "too few": lambda rows: [rows[:-1]],
    "none": lambda rows: [],
    "too many": lambda rows: [rows, rows[:1]],
    "too narrow": lambda rows: [rows[:, :-1]],
    "of another width at the end": lambda rows: [rows, rows[:0, :2]],
    "of another type": lambda rows: [rows.astype(np.float32)],
    "one long row": lambda rows: [rows.reshape(-1)],
}


@pytest.mark.parametrize("how", WRONG)
def test_blocks_that_do_not_add_up_are_refused_and_leave_what_was_there(tmp_path: Path, how: str) -> None:
    whole = planted_embeddings("a", 0)
    with pytest.raises(ValueError, match="should be"):
        written(tmp_path / "new" / "a.h5", whole, WRONG[how](whole.features))
    assert list(tmp_path.iterdir()) == []


def test_facts_that_do_not_fit_the_count_are_refused(tmp_path: Path) -> None:
    whole = planted_embeddings("a", 0)
    for facts, n_tiles in ((facts_of(whole), 29), (whole, 30)):
        with pytest.raises(ValueError, match="are due"):
            write_rows(tmp_path / "a.h5", facts, n_tiles, lambda: [whole.features])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["other rows", "fewer rows"])
def test_blocks_that_are_others_the_second_time_leave_the_older_file(tmp_path: Path, how: str) -> None:
    whole = planted_embeddings("a", 0)
    write_embeddings(tmp_path / "a.h5", whole)
    older = files_below(tmp_path)
    second = whole.features[::-1] if how == "other rows" else whole.features[:-1]
    given_out = iter([[whole.features], [second]])
    with pytest.raises(ValueError, match=r"second time|should be"):
        write_rows(tmp_path / "a.h5", facts_of(whole), 30, lambda: next(given_out))
    assert files_below(tmp_path) == older


def test_a_disk_that_fills_up_at_any_block_leaves_nothing(tmp_path: Path) -> None:
    whole = planted_embeddings("a", 0)
    blocks = cut(whole.features, list(range(3, 30, 3)))
    with recorded(tmp_path) as recording:
        written(tmp_path / "a.h5", whole, blocks)
    writes = [one for one in recording.operations if one.kind == "write"]
    assert len(writes) == len(blocks) + 3, "what stands before the rows, the blocks, what stands behind, the seal"
    for at in range(len(recording.operations)):
        root = tmp_path / f"full-{at}"
        root.mkdir()
        with pytest.raises(DiskFullError), recorded(root, full_from=at):
            written(root / "a.h5", whole, blocks)
        last_is_sync = at == len(recording.operations) - 1  # the rename was done, only its sync was not
        assert files_below(root) == ({"a.h5": (tmp_path / "a.h5").read_bytes()} if last_is_sync else {})


def test_the_digest_of_the_features_is_of_their_bytes_and_only_given_when_proven(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.h5", planted_embeddings("a", 0)
    write_embeddings(path, whole)
    with h5py.File(path) as file:
        assert features_sha256(path) == file.attrs["features_sha256"]
    data = bytearray(path.read_bytes())
    data[data.index(whole.features.tobytes())] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(EmbeddingsDamagedError, match="does not match the digest"):
        features_sha256(path)
    with pytest.raises(FileNotFoundError):
        features_sha256(tmp_path / "missing.h5")


@pytest.mark.parametrize(("rows", "message"), [([1400], "holds 1 .* row 1400"), ([3, 1400, 1499], "holds 3 .* row 3")])
def test_a_row_that_is_not_finite_is_found_in_any_block_of_a_long_file(
    tmp_path: Path, rows: list[int], message: str
) -> None:
    whole = planted_embeddings("a", 0, n=1500, dim=1024)
    features = whole.features.copy()
    for row, wrong in zip(rows, (np.inf, np.nan, -np.inf), strict=False):
        features[row, row % 1024] = wrong
    write_embeddings(tmp_path / "a.h5", dataclasses.replace(whole, features=features))
    with pytest.raises(EmbeddingsDamagedError, match=message):
        read_embeddings(tmp_path / "a.h5")


def test_the_largest_and_the_smallest_float16_are_finite(tmp_path: Path) -> None:
    whole = planted_embeddings("a", 0)
    features = whole.features.copy()
    features[0, :4] = [65504, -65504, 6e-8, -0.0]
    write_embeddings(tmp_path / "a.h5", dataclasses.replace(whole, features=features))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.h5").features, features)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[3])
from conftest import planted_embeddings
from pathfm.embeddings import read_embeddings, write_rows

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

path, n = Path(sys.argv[1]), int(sys.argv[2])
block = np.ones((500, 1024), np.float16)
facts = planted_embeddings("a", 0, n=n, dim=0)
write_rows(path.with_name("small.h5"), planted_embeddings("a", 0, n=0, dim=1024), 0, lambda: [])
read_embeddings(path.with_name("small.h5"))
from dataclasses import replace
facts = replace(facts, features=block[:0])
before = peak_mib()
write_rows(path, facts, n, lambda: (block for _ in range(n // 500)))
written = peak_mib()
assert read_embeddings(path).features.shape == (n, 1024)
print(written - before, peak_mib() - written)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_writing_and_proving_take_no_memory_that_grows_with_the_features(tmp_path: Path) -> None:
    n = 50_000
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "a.h5"), str(n), str(Path(__file__).parent)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    written_mib, read_mib = map(float, done.stdout.split())
    features_mib = n * 1024 * 2 / (1 << 20)
    print(f"{features_mib:.0f} MiB of features: {written_mib:.1f} MiB more to write them, {read_mib:.1f} to prove them")
    assert features_mib > 90
    assert written_mib < 12
    assert read_mib < 12
