"""What reading a tile costs: OpenSlide alone, our own reader, and decoding each touched JPEG tile once, the limit.

    python benchmarks/read.py [SLIDE ...] [--folder FOLDER] [--side 40] [--rounds 5]

Reads a square of side x side tiles of each slide, where there is most tissue, row by row, each time from a slide just
opened. Prints the median CPU milliseconds of a tile over interleaved rounds, the median over rounds of the ratio to
OpenSlide, and the share of the limit; then how much sooner two processes are through with the square than one, each
with half of its rows, which says something on an idle machine alone. Without a slide, `slides.py` draws two: `mid`
(240 px tiles in RGB, which every 256 px tile crosses) and `big` (256 px, 4:2:0).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import imagecodecs
import numpy as np
import openslide
import slides

from pathfm.readers.tiledjpeg import tiled_jpegs
from pathfm.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from pathfm.readers.tiledjpeg import TiledJpeg

TILE_PX = 256


@dataclass(frozen=True)
class Work:
    """A square of tiles.

    Attributes:
        path: the slide.
        factor: pixels of level 0 a pixel of a tile.
        corners_px0: (n, 2), (x, y) of the tiles, row by row.
    """

    path: Path
    factor: int
    corners_px0: list[tuple[int, int]]


def by_openslide(work: Work) -> float:
    """CPU seconds; what a plain loop does."""
    side = TILE_PX * work.factor
    with openslide.OpenSlide(work.path) as slide:
        started_s = time.process_time()
        for corner in work.corners_px0:
            tile = np.asarray(slide.read_region(corner, 0, (side, side)).convert("RGB"))
            if work.factor > 1:
                cv2.resize(tile, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
        return time.process_time() - started_s


def by_pathfm(work: Work, ready: Callable[[], object] = lambda: None) -> float:
    """CPU seconds, after the comparison with OpenSlide."""
    out = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    with open_slide(work.path) as slide:
        mpp = slide.mpp * work.factor
        slide.reader_for(mpp)
        ready()
        started_s = time.process_time()
        for x, y in work.corners_px0:
            slide.read_tile(x, y, TILE_PX, mpp, out)
        return time.process_time() - started_s


def by_decoding(work: Work) -> float:
    """CPU seconds to decode each JPEG tile that the square touches once, and do nothing with it."""
    page, descriptor = _level_0(work.path)
    corners, side = np.array(work.corners_px0), TILE_PX * work.factor
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0) + side - 1
    across, down = page.tile
    tables = b"\xff\xd8" + page.tables + b"\xff\xd9" if page.tables else None
    started_s = time.process_time()
    for row in range(top // down, bottom // down + 1):
        for column in range(left // across, right // across + 1):
            data = os.pread(
                descriptor,
                int(page.counts[row * page.columns + column]),
                int(page.offsets[row * page.columns + column]),
            )
            imagecodecs.jpeg8_decode(data, tables=tables, colorspace=page.colours, outcolorspace="RGB")
    spent_s = time.process_time() - started_s
    os.close(descriptor)
    return spent_s


def by_processes(work: Work, n: int) -> float:
    """Wall-clock seconds until n processes are through, each with its share of the rows; they start together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n + 1)
    rows = np.array_split(np.array(work.corners_px0), n)
    parts = [Work(work.path, work.factor, [(int(x), int(y)) for x, y in part]) for part in rows]
    processes = [context.Process(target=_one_of_several, args=(part, barrier)) for part in parts]
    for process in processes:
        process.start()
    barrier.wait()
    started_s = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - started_s


def _one_of_several(work: Work, barrier: multiprocessing.synchronize.Barrier) -> None:
    by_pathfm(work, barrier.wait)
    os._exit(0)  # what Python takes to end is not reading


def square(path: Path, side: int, factor: int, shift_px0: tuple[int, int]) -> Work:
    """Tiles where those of the file are heaviest, so on tissue; on the grid of tiles from level 0's corner but for a shift."""
    page = _level_0(path)[0]
    rows = page.counts.reshape(-1, page.columns)
    step = TILE_PX * factor
    columns, lines = (min(side, (length - step) // step) for length in page.size)
    window = (lines * step // page.tile[1], columns * step // page.tile[0])
    total = np.pad(rows.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    high, wide = window
    sums = total[high:, wide:] - total[:-high, wide:] - total[high:, :-wide] + total[:-high, :-wide]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    x0 = min(left * page.tile[0] // step, (page.size[0] - shift_px0[0]) // step - columns)
    y0 = min(top * page.tile[1] // step, (page.size[1] - shift_px0[1]) // step - lines)
    corners = [(x0 + x, y0 + y) for y in range(lines) for x in range(columns)]
    return Work(path, factor, [(x * step + shift_px0[0], y * step + shift_px0[1]) for x, y in corners])


def _level_0(path: Path) -> tuple[TiledJpeg, int]:
    """(its JPEG tiles, an open descriptor of the file)."""
    descriptor = os.open(path, os.O_RDONLY)
    return max(tiled_jpegs(descriptor), key=lambda page: page.size), descriptor


def measure(work: Work, rounds: int) -> str:
    """A line of the table."""
    spent: dict[str, list[float]] = {"openslide": [], "pathfm": [], "limit": []}
    for _ in range(rounds):
        spent["openslide"].append(by_openslide(work))
        spent["pathfm"].append(by_pathfm(work))
        spent["limit"].append(by_decoding(work))
    ms = {name: statistics.median(values) * 1e3 / len(work.corners_px0) for name, values in spent.items()}
    faster = statistics.median(a / b for a, b in zip(spent["openslide"], spent["pathfm"], strict=True))
    share = statistics.median(a / b for a, b in zip(spent["limit"], spent["pathfm"], strict=True))
    return f"{ms['openslide']:9.2f}  {ms['pathfm']:7.2f}  {ms['limit']:6.2f}  {faster:11.2f}  {share:8.2f}"


def measure_two(work: Work, rounds: int) -> float:
    """How many times sooner two processes are through."""
    pairs = [(by_processes(work, 1), by_processes(work, 2)) for _ in range(rounds)]
    return statistics.median(one / two for one, two in pairs)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pathfm-benchmarks")
    parser.add_argument("--side", type=int, default=40, help="tiles in a row and in a column")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    paths = given.slides or [slides.slide(given.folder, kind) for kind in (slides.MID, slides.BIG)]
    print(f"{'slide':28}  {'tiles':>16}  openslide  pathfm   limit  x openslide  of limit  2 processes")
    for path in paths:
        for what, factor, shift in (("256", 1, (0, 0)), ("256 at (37, 51)", 1, (37, 51)), ("512 -> 256", 2, (0, 0))):
            work = square(path, given.side // factor, factor, shift)
            two = measure_two(square(path, given.side, factor, shift), given.rounds)
            print(f"{path.stem[:28]:28}  {what:>16}  {measure(work, given.rounds)}  {two:11.2f}", flush=True)


if __name__ == "__main__":
    main()
