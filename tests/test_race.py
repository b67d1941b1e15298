"""Several processes on one folder: each slide is written once, by one of them, and the bytes are those of one alone."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from runs import ended, extract_slowly, files_below, start, wait_for, write_slides

from pathfm.files import write_atomically

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

PROCESSES, SLIDES = 8, 6


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), SLIDES)


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process alone writes."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(start(folder / "said", extract_slowly, slides, folder / "out")) == 0
    found = files_below(folder / "out", "*.h5")
    assert len(found) == SLIDES
    return found


def test_eight_processes_write_each_slide_once(slides: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    print(raced(slides, whole, tmp_path))


@pytest.mark.long
def test_eight_processes_replace_each_damaged_file_once(slides: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in whole.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data[:-1])
    print(raced(slides, whole, tmp_path))


def raced(slides: Path, whole: dict[str, bytes], tmp_path: Path) -> str:
    """Eight extractions into one folder at a time."""
    out = tmp_path / "out"
    processes = {n: start(tmp_path / f"said-{n}", extract_slowly, slides, out, 0.01) for n in range(PROCESSES)}
    first_seen = watched(processes, out, whole)
    assert [ended(process) for process in processes.values()] == [0] * PROCESSES
    assert files_below(out, "*.h5") == whole
    assert {path: state(path) for path in out.rglob("*.h5")} == first_seen, "a finished file was written again"
    done, waits = said(tmp_path, ": done, "), said(tmp_path, "another process is writing it")
    assert done == {f"s{n}": 1 for n in range(SLIDES)}
    assert waits
    assert not [path for path in out.rglob("*") if path.suffix in (".part", ".tmp")]
    return f"{PROCESSES} processes, {done.total()} slides written once each, {waits.total()} times left to another"


@pytest.mark.parametrize("others", [2, pytest.param(PROCESSES - 1, marks=pytest.mark.long)])
def test_the_others_finish_the_slide_of_one_that_is_killed(
    slides: Path, whole: dict[str, bytes], tmp_path: Path, others: int
) -> None:
    out = tmp_path / "out"
    victim = start(tmp_path / "said-victim", extract_slowly, slides, out, 2.0)
    assert wait_for(lambda: any(path.stat().st_size > 1000 for path in out.rglob("s0.part")))
    rest = [start(tmp_path / f"said-{n}", extract_slowly, slides, out) for n in range(others)]
    assert wait_for(lambda: said(tmp_path, "another process is writing it")["s0"] > 0)
    victim.kill()
    assert ended(victim) == -9
    assert [ended(process) for process in rest] == [0] * others
    assert files_below(out, "*.h5") == whole
    assert said(tmp_path, ": done, ") == {f"s{n}": 1 for n in range(SLIDES)}
    assert said(tmp_path, ": goes on after tile ") == {"s0": 1}


def watched(processes: dict[int, ForkServerProcess], out: Path, whole: dict[str, bytes]) -> dict[Path, tuple[int, int]]:
    """What each finished file was when it was first seen, while the processes run."""
    found: dict[Path, tuple[int, int]] = {}

    def look() -> bool:
        alive = any(process.is_alive() for process in processes.values())
        for path in out.rglob("*.h5"):
            if path not in found and path.read_bytes() == whole[str(path.relative_to(out))]:
                found[path] = state(path)
        return not alive

    assert wait_for(look)
    return found


def state(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def said(folder: Path, what: str) -> Counter[str]:
    """How often the processes said something of each slide."""
    lines = [line for path in folder.glob("said-*") for line in path.read_text().splitlines()]
    return Counter(line.partition(":")[0] for line in lines if what in line)


def test_two_writers_with_one_process_id_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers that share a folder: the second writes while the first has not renamed yet."""
    path, fsync = tmp_path / "failures.csv", os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr("os.fsync", fsync)
        write_atomically(path, b"second")
        assert path.read_bytes() == b"second"
        fsync(descriptor)

    monkeypatch.setattr("os.getpid", lambda: 7)
    monkeypatch.setattr("os.fsync", meanwhile)
    write_atomically(path, b"first, and longer")
    assert files_below(tmp_path) == {"failures.csv": b"first, and longer"}
