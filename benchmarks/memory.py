"""How much memory an extraction takes, by the size of a slide and by the length of a cohort.

    python benchmarks/memory.py

Extracts generated slides of 12,000 and of 60,000 pixels a side by `colour`, each in a process of its own, and then many
small slides in one. Prints the peak of resident memory of the program and of the largest of its reading processes (which
keep a bounded cache of decoded tiles), and what the program holds after so many slides. The goals: the large slide within
1.3 times the small one, and no growth with the cohort.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from slides import BIG, slide

from pathfm.devices import extract_slides
from pathfm.embeddings import read_embeddings
from pathfm.extract import plan_extraction
from pathfm.sources import find_slides

SIDES = (12_000, 60_000)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=200, help="of the cohort")
    parser.add_argument("--folder", type=Path, help="keeps the generated slides here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # this program's own child
    arguments = parser.parse_args()
    if arguments.child:
        what, folder = arguments.child
        print(*(one_slide(Path(folder)) if what == "slide" else cohort(Path(folder), int(what))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        print(f"{'slide':<16} {'tiles':>7} {'program MiB':>12} {'largest reader MiB':>19}")
        for side in SIDES:
            slide(folder / str(side), replace(BIG, name="slide", width=side, height=side))
            tiles, program, reader = child("slide", folder / str(side))
            print(f"{side:>6} x {side:<7} {tiles:>7} {program:>12} {reader:>19}", flush=True)
        slide(folder / "small", replace(BIG, name="slide", width=2048, height=2048))
        after = child(str(arguments.slides), folder / "small")
        print(f"\n{'slides':<16} {'program MiB':>12}")
        for share, mib in zip((0.1, 0.25, 0.5, 1.0), after, strict=True):
            print(f"{round(share * arguments.slides):<16} {mib:>12}")


def child(*words: object) -> list[int]:
    """The numbers that this program prints as its own child."""
    command = [sys.executable, __file__, "--child", *map(str, words)]
    return [int(word) for word in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()]


def one_slide(folder: Path) -> tuple[int, int, int]:
    """(tiles, peak of this process, largest peak of its readers), in MiB."""
    work = plan_extraction("colour", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        result = extract_slides(find_slides([folder]), work, Path(scratch))
        tiles = len(read_embeddings(result.folders[0] / "slide.h5").coords)
    readers = [memory_mib("VmHWM", pid) for pid in children()]
    return tiles, memory_mib("VmHWM", os.getpid()), max(readers)


def cohort(folder: Path, count: int) -> list[int]:
    """What this process holds after a tenth, a quarter, half and all of the slides, in MiB."""
    work, (source,) = plan_extraction("colour", device="cpu"), find_slides([folder])
    held, done = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for share in (0.1, 0.25, 0.5, 1.0):
            part = [replace(source, slide_id=f"slide{number}") for number in range(done, round(share * count))]
            assert len(extract_slides(part, work, Path(scratch)).done) == len(part)
            done += len(part)
            held.append(memory_mib("VmRSS", os.getpid()))
    return held


def children() -> list[int]:
    """The processes that read for this one."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def memory_mib(what: str, pid: int) -> int:
    """A figure of /proc/<pid>/status."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


if __name__ == "__main__":
    main()
