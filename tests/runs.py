"""Small extractions of generated slides, in this process and in real others that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from pyramids import write_pyramid

from pathfm.backbones.load import LoadedBackbone
from pathfm.cli import main
from pathfm.extract import plan_extraction
from pathfm.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from pathfm.extract import ExtractWork

TILES = TileSpec(size_px=64, mpp=1.0)
OPTIONS = ("--tiles.size_px", "64", "--tiles.mpp", "1.0", "--device", "cpu", "--workers", "1")
PATIENCE_S = 120

# A server that has done the slow imports and forks from there: a real process of its own, in no time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "pathfm.study", "pathfm.tune", "pathfm.cli", "jsonargparse"])


def write_slides(folder: Path, count: int = 1, size: int = 512) -> Path:
    """Squares of noisy eosin with a margin of glass; 12 tiles each at the least size."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(236, 244, (size, size, 3), dtype=np.uint8)
        pixels[64:-64, 64:-64] = np.array([205, 110, 170]) + rng.integers(-20, 20, (size - 128, size - 128, 1))
        write_pyramid(folder / f"s{seed}.tiff", pixels, mpp=0.5, levels=(8,))
    return folder


def small_work(batch_size: int = 1, tiles: TileSpec = TILES) -> ExtractWork:
    """The work that `OPTIONS` asks for."""
    return plan_extraction("colour", tiles, device="cpu", batch_size=batch_size, workers=1)


def files_below(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Names and bytes of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern)) if p.is_file()}


def extract_slowly(slides: Path, out: Path, pause_s: float = 0.0, backbone: str = "colour") -> int:
    """`pathfm extract`, a batch a tile, with a backbone that takes its time; the exit code."""
    submit = LoadedBackbone.submit

    def slow(backbone: LoadedBackbone, tiles: Any) -> Any:
        time.sleep(pause_s)
        return submit(backbone, tiles)

    with patch.object(LoadedBackbone, "submit", slow):
        words = ["--slides", str(slides), "--out", str(out), "--backbone", backbone, "--batch_size", "1"]
        return main(["extract", *words, *OPTIONS])


def start(said: Path, function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Runs a function of a module in a real process; what it prints goes to a file, its exit code is what it returns."""
    process = _SERVER.Process(target=_run, args=(said, function, arguments))
    process.start()
    return process


def command_in(folder: Path, *words: str) -> int:
    """`pathfm` with some words, called in a folder; the exit code."""
    os.chdir(folder)
    return main(list(words))


def ended(process: ForkServerProcess) -> int | None:
    """Waits for its exit code; the process is killed if it takes far too long."""
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()
        message = f"not done within {PATIENCE_S} s"
        raise TimeoutError(message)
    return process.exitcode


def wait_for(what: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    """Whether something became true in time."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if what():
            return True
        time.sleep(0.002)
    return False


def descendants(pid: int) -> set[int]:
    """The living processes below one, whatever they have become."""
    children: dict[int, list[int]] = {}
    for one, parent in _processes():
        children.setdefault(parent, []).append(one)
    found, todo = set(), [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found |= set(below)
        todo += below
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of some processes that still are."""
    return pids & {pid for pid, _ in _processes()}


def _processes() -> Iterator[tuple[int, int]]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        pid, parent, state = line.split()
        if not state.startswith("Z"):
            yield int(pid), int(parent)


def _run(said: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with said.open("w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.exit(function(*arguments))
