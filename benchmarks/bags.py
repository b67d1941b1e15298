"""What reading embeddings costs a training, against copying the same bytes in memory; and what writing them takes of memory.

    python benchmarks/bags.py

Prints medians of interleaved rounds in milliseconds of CPU and of the clock, and how fast each is against its baseline,
the first line of its table: `ratio` is the baseline's CPU time by its own. Files are in the page cache unless said
otherwise. `32-row chunks` and `1-row chunks` are how CLAM and TRIDENT write; `pathfm import` rewrites such files.

The goals are 0.9 of memcpy for a whole bag as it lies, and 6 ms for 2,048 random rows of 20,000 x 1,024.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import torch

from pathfm.bags import BagDataset
from pathfm.embeddings import Embeddings, read_embeddings, write_embeddings, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Lines = dict[str, Callable[[], object]]

DIM = 1024
SAMPLED_ROWS = 2048
BLOCK_ROWS = 500
CHUNKS = {"32-row chunks": 32, "1-row chunks": 1}
PEAK = "VmHWM"  # not getrusage: what that gives a child begins with what its parent had


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="tiles of the generated slide")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median is taken")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)  # this program's own child: one write, its memory
    arguments = parser.parse_args()
    if arguments.write is not None:
        print(*memory_of_a_write(arguments.write))
        return
    torch.set_num_threads(1)
    print_memory()
    with tempfile.TemporaryDirectory() as scratch:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((arguments.rows, DIM), np.float32).astype(np.float16)
        path = Path(scratch, "slide.h5")
        write_embeddings(path, embeddings_of(features))
        chunked = {name: write_chunked(Path(scratch, f"{name}.h5"), features, n) for name, n in CHUNKS.items()}
        wholes = whole_bags(path, features, chunked)
        print_table(
            f"{arguments.rows} x {DIM} float16, whole, into a buffer that is used again", wholes, arguments.rounds
        )
        print_table(f"{SAMPLED_ROWS} random rows of these", random_rows(path, chunked, rng), arguments.rounds)
        print_table("whole, as float32 tensors", bags_as_float32(path), arguments.rounds)


def whole_bags(path: Path, features: NDArray[np.float16], chunked: dict[str, Path]) -> Lines:
    """Ways to a bag as it lies."""
    buffer, rows = np.empty_like(features), read_embeddings(path).features
    lines: Lines = {
        "memcpy": lambda: np.copyto(buffer, features),
        "our map": lambda: np.copyto(buffer, rows),
        "our map, mapped anew (no digest)": lambda: np.copyto(buffer, read_embeddings(path, "shape").features),
        "h5py [:] into new memory": lambda: whole(path),
    }
    return lines | {f"h5py [:], {name}": lambda file=file: whole(file) for name, file in chunked.items()}


def random_rows(path: Path, chunked: dict[str, Path], rng: np.random.Generator) -> Lines:
    """Ways to some rows of a bag; h5py takes them in order only."""
    rows = read_embeddings(path).features
    drawn = rng.choice(len(rows), min(SAMPLED_ROWS, len(rows)), replace=False)
    in_order = np.sort(drawn)
    lines: Lines = {
        "our map, in order": lambda: rows[in_order],
        "our map, as drawn": lambda: rows[drawn],
        "h5py": lambda: some(path, in_order),
    }
    return lines | {f"h5py, {name}": lambda file=file: some(file, in_order) for name, file in chunked.items()}


def bags_as_float32(path: Path) -> Lines:
    """What a training asks for."""
    rows, read, kept = read_embeddings(path).features, BagDataset([path]), BagDataset([path], keep=True)
    return {
        "numpy's astype": lambda: torch.from_numpy(rows.astype(np.float32)),
        "BagDataset": lambda: read[0],
        "BagDataset, kept": lambda: kept[0],
        "BagDataset, first use (digests proven)": lambda: first_use(path),
        "BagDataset, not in the page cache": lambda: from_the_disk(path),
    }


def whole(path: Path) -> NDArray[np.float16]:
    """All rows, by h5py."""
    with h5py.File(path) as file:
        return np.asarray(file["features"][:])


def some(path: Path, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Some rows, by h5py."""
    with h5py.File(path) as file:
        return np.asarray(file["features"][rows])


def first_use(path: Path) -> object:
    """A bag of a file that this process has not seen in this state."""
    path.touch()
    return BagDataset([path])[0]


def from_the_disk(path: Path) -> object:
    """A bag whose bytes the system was told to forget; the host of a virtual machine may still know them."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return BagDataset([path])[0]


def print_table(title: str, lines: Lines, rounds: int) -> None:
    """Runs each line once a round, in turn."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    for _ in range(rounds):
        for name, run in lines.items():
            started_s, cpu_s = time.perf_counter(), time.process_time()
            run()
            spent[name].append((time.process_time() - cpu_s, time.perf_counter() - started_s))
    medians = {name: [statistics.median(one) for one in zip(*times, strict=True)] for name, times in spent.items()}
    baseline_s = next(iter(medians.values()))[0]
    print(f"\n{title:<66} {'CPU ms':>9} {'ms':>9} {'ratio':>7}")
    for name, (cpu_s, wall_s) in medians.items():
        print(f"  {name:<64} {1000 * cpu_s:>9.2f} {1000 * wall_s:>9.2f} {baseline_s / max(cpu_s, 1e-9):>7.2f}")


def print_memory() -> None:
    """Runs a write and a proof in processes of their own."""
    print(f"{'written a block at a time, and proven':<40} {'file MiB':>9} {'peak MiB':>9} {'of these for it':>16}")
    for n in (10_000, 200_000):
        done = subprocess.run([sys.executable, __file__, "--write", str(n)], check=True, capture_output=True, text=True)
        file_mib, before_mib, peak_mib = map(float, done.stdout.split())
        print(f"  {f'{n} x {DIM} float16':<38} {file_mib:>9.0f} {peak_mib:>9.0f} {peak_mib - before_mib:>16.1f}")


def memory_of_a_write(n: int) -> tuple[float, float, float]:
    """Bytes of a file, and the most memory of this process before and after writing and reading it; all in MiB."""
    block = np.random.default_rng(0).standard_normal((BLOCK_ROWS, DIM), np.float32).astype(np.float16)
    before_mib = peak_mib()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "slide.h5")
        write_rows(path, embeddings_of(block[:0], n), n, lambda: (block for _ in range(n // BLOCK_ROWS)))
        read_embeddings(path)
        return path.stat().st_size / (1 << 20), before_mib, peak_mib()


def peak_mib() -> float:
    """The most memory that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(PEAK)) / 1024


def write_chunked(path: Path, features: NDArray[np.float16], rows: int) -> Path:
    """Features as other tools write them."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(rows, DIM))
    return path


def embeddings_of(features: NDArray[np.float16], n: int | None = None) -> Embeddings:
    """A slide in one row of tiles; `n` of them, where the features are written apart."""
    n = len(features) if n is None else n
    return Embeddings(
        slide_id="slide",
        slide_digest="",
        slide_size_px0=(max(1, n) * 256, 256),
        mpp=0.5,
        mpp_source="metadata",
        tile_extent_px0=256.0,
        tissue_sha256="",
        recipe={"backbone": {"name": "random"}, "tiles": {"size_px": 256, "stride_px": 256, "mpp": 0.5}},
        versions={},
        features=features,
        coords=np.stack([np.arange(n) * 256, np.zeros(n)], axis=1).astype(np.int32),
        failed=np.zeros((0, 2), np.int32),
        mean_rgb=np.full(3, 200, np.float32),
    )


if __name__ == "__main__":
    main()
