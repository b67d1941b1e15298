"""What an extraction holds in memory: bounded by batches, and by neither the slide nor the cohort."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
import tifffile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process holds"),
]

CACHE_MIB = 64  # of decoded tiles that a reading process keeps

# Run as `python -c`: prints what the process held, in MiB, after each of its runs, and at most; then the most that one of
# its reading processes did.
PROGRAM = """
import re, sys
from dataclasses import replace
from pathlib import Path
from pathfm.extract import extract_slides, plan_extraction
from pathfm.sources import find_slides
from pathfm.tiles import TileSpec

def held(what, pid="self"):
    return int(re.search(what + r":\\s+(\\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024

slide, out, *counts = sys.argv[1:]
(source,) = find_slides([Path(slide)])
work = plan_extraction("colour", TileSpec(64, 0.5), device="cpu", batch_size=32)
done = 0
for count in map(int, counts):
    part = [replace(source, slide_id=f"s{number}") for number in range(done, count)]
    result = extract_slides(part, work, Path(out))
    assert len(result.done) == len(part), result
    done = count
    print(held("VmRSS"), flush=True)
print(held("VmHWM"))
readers = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
print(max(held("VmHWM", pid) for pid in readers))
"""


def write_square(path: Path, side: int) -> Path:
    """Tissue everywhere, the same few JPEG tiles over and over, with the levels that an overview needs."""
    rng = np.random.default_rng(0)
    eosin = np.array([205, 110, 170]) + rng.integers(-20, 20, (4, 256, 256, 1))
    stock = [imagecodecs.jpeg8_encode(tile, 85, outcolorspace="RGB") for tile in eosin.astype(np.uint8)]
    with tifffile.TiffWriter(path) as file:
        for divisor in (1, 16):
            size = side // divisor
            file.write(
                (bytes(stock[number % 4]) for number in range((-(-size // 256)) ** 2)),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(divisor > 1),
                resolution=(2e4 / divisor, 2e4 / divisor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def memory_mib(slide: Path, out: Path, *counts: int) -> list[int]:
    """What a real process held after so many slides each, and at most."""
    words = [sys.executable, "-c", PROGRAM, str(slide), str(out), *map(str, counts)]
    run = subprocess.run(words, check=True, capture_output=True, text=True)
    return [int(line) for line in run.stdout.split()]


def test_a_slide_of_many_times_the_tiles_takes_hardly_more_memory(tmp_path: Path) -> None:
    (_, small, reader_of_small), (_, large, reader_of_large) = (
        memory_mib(write_square(tmp_path / f"{side}.tiff", side), tmp_path / str(side), 1) for side in (2048, 20480)
    )
    print(f"peak of 1,024 tiles {small} MiB, of 102,400 tiles {large} MiB")
    print(f"of a reading process {reader_of_small} and {reader_of_large} MiB")
    assert large < 1.3 * small
    assert reader_of_large < reader_of_small + 1.5 * CACHE_MIB


def test_a_long_cohort_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    after_40, after_100, after_200, *_ = memory_mib(
        write_square(tmp_path / "a.tiff", 1024), tmp_path / "out", 40, 100, 200
    )
    print(f"held after 40 slides {after_40} MiB, after 100 {after_100}, after 200 {after_200}")
    assert after_200 < 1.03 * after_40
