"""Bits that flip on a disk or in memory: every one is found, wherever in a file it is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from conftest import RECIPE, planted_embeddings

from pathfm.embeddings import embeddings_folder_name, read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsDamagedError
from pathfm.guarded import sealed
from pathfm.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_of_a_thousand_flipped_bits_verify_finds_each(tmp_path: Path) -> None:
    folder = tmp_path / embeddings_folder_name(RECIPE)
    for number in range(1000):
        write_embeddings(folder / f"{number:04}.h5", planted_embeddings(f"{number:04}", 1, n=200, dim=64))
    assert verify(tmp_path).startswith("1000 files verified")
    extents = {name: extent(folder / "0000.h5", name) for name in ("features", "coords")}  # of all, they are alike
    files = zip(sorted(folder.iterdir()), generators(1000), strict=True)
    where = Counter(flipped(path, rng, extents) for path, rng in files)
    with pytest.raises(EmbeddingsDamagedError, match="1000 of 1000 files"):
        verify(tmp_path)
    print(f"1000 bits flipped, all found: {dict(where)}")
    assert where["features"] > 500
    assert where["coords"] > 20


@pytest.mark.parametrize("name", ["features", "coords"])
def test_a_flipped_bit_is_found_also_behind_a_new_seal(tmp_path: Path, name: str) -> None:
    """As where the memory of the writer was at fault, and not the disk."""
    path, good = tmp_path / "a.h5", planted_embeddings("a", 1, n=200, dim=64)
    for rng in generators(100):
        write_embeddings(path, good)
        data = bytearray(path.read_bytes()[:-79])
        start, stop = extent(path, name)
        data[rng.integers(start, stop)] ^= 1 << rng.integers(8)
        path.write_bytes(sealed(bytes(data)))
        with pytest.raises(EmbeddingsDamagedError, match=r"do not match their digest|outside of its slide"):
            read_embeddings(path)


def generators(count: int) -> Iterator[np.random.Generator]:
    return map(np.random.default_rng, range(count))


def flipped(path: Path, rng: np.random.Generator, extents: dict[str, tuple[int, int]]) -> str:
    """Flips a bit anywhere in a file, and says in what."""
    at = int(rng.integers(path.stat().st_size))
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ (1 << int(rng.integers(8)))]))
    return next((name for name, (start, stop) in extents.items() if start <= at < stop), "elsewhere")


def extent(path: Path, name: str) -> tuple[int, int]:
    """Where the bytes of a dataset lie in its file."""
    with h5py.File(path) as file:
        start = file[name].id.get_offset()
        return start, start + file[name].nbytes
