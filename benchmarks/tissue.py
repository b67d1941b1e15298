"""What tissue costs, from opening a slide to its tiles, and how well it is found.

    python benchmarks/tissue.py [SLIDE ...] [--folder FOLDER] [--rounds 7]

Prints the median CPU milliseconds of each step over interleaved rounds (files in the page cache, one thread), beside
OpenSlide's `get_thumbnail((1024, 1024))`, which others start from; then the intersection over union of the tissue found
with that drawn, for slides of both generated scanners. The goals: under 100 ms for a slide of 12,000 x 12,000 pixels
(`mid`) and under 1000 ms for one of 100,000 x 60,000 (`huge`), contours and coverage included, and an overlap of 0.9 or
more in every case. Without a slide, `slides.py` draws `mid`, `big` and `huge`, with known truth too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import openslide
import slides

from pathfm.outlines import tissue_from_geojson, tissue_to_geojson
from pathfm.scanner import SCANNERS, Pen
from pathfm.slide import open_slide
from pathfm.synthetic import GeneratedSlide, write_slide
from pathfm.tiles import TileSpec, tile_slide
from pathfm.tissue import TissueSpec, find_tissue, tissue_of_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pathfm.scanner import Scanner

    T = TypeVar("T")

STEPS = ("open", "overview", "mask", "contours", "grid", "sum")
THUMBNAIL = "thumbnail"
CASES: dict[str, dict[str, object]] = {
    "clean": {},
    "blue pen": {"pen": Pen((24, 84, 176))},
    "green pen": {"pen": Pen((30, 122, 78))},
    "black pen": {"pen": Pen((34, 32, 38))},
    "torn hole": {"hole": True},
    "half as thick": {"thickness": 0.5},
    "a third as thick": {"thickness": 0.35},
    "hole, blue pen, a third as thick": {"hole": True, "pen": Pen((24, 84, 176)), "thickness": 0.35},
}


class Clock:
    """CPU milliseconds of this process by step."""

    def __init__(self) -> None:
        self.spent_ms: dict[str, float] = {}

    def __call__(self, step: str, function: Callable[[], T]) -> T:
        """The function's result; its time is kept under the step's name."""
        started_s = time.process_time()
        result = function()
        self.spent_ms[step] = 1e3 * (time.process_time() - started_s)
        return result


def round_of(path: Path) -> dict[str, float]:
    """CPU milliseconds of each step, once; tiles are 224 px at 0.5 mpp, or as fine as the scan."""
    clock = Clock()
    with clock("open", lambda: open_slide(path)) as slide:
        tiles = TileSpec(224, max(0.5, slide.mpp), 224)
        rgb, opaque = clock("overview", lambda: slide.read_overview(TissueSpec.mpp))
        mask = clock("mask", lambda: tissue_of_image(rgb, opaque))
        clock("contours", lambda: tissue_to_geojson(mask, slide))
        clock("grid", lambda: tile_slide(slide, mask, tiles))
    clock.spent_ms["sum"] = sum(clock.spent_ms.values())
    clock(THUMBNAIL, lambda: thumbnail(path))
    return clock.spent_ms


def thumbnail(path: Path) -> None:
    """What is replaced."""
    with openslide.OpenSlide(path) as slide:
        slide.get_thumbnail((1024, 1024))


def print_costs(paths: list[Path], rounds: int) -> None:
    """A line a slide."""
    spent: dict[Path, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(rounds):
        for path in paths:
            spent[path].append(round_of(path))
    print(f"{'CPU ms':28}{'size':>16}" + "".join(f"{step:>10}" for step in (*STEPS, THUMBNAIL)))
    for path, found in spent.items():
        with open_slide(path) as slide:
            size = "{} x {}".format(*slide.size_px0)
        medians = (statistics.median(one[step] for one in found) for step in (*STEPS, THUMBNAIL))
        print(f"{path.stem[:27]:28}{size:>16}" + "".join(f"{ms:10.1f}" for ms in medians))


def print_overlaps(seeds: int, large: list[Path]) -> None:
    """A line a case: the smallest overlap over some slides of each scanner; then the large slides."""
    print(f"\n{'overlap with the truth':36}" + "".join(f"{scanner.name:>8}" for scanner in SCANNERS))
    for name, case in CASES.items():
        lowest = (min(drawn_overlap(scanner, seed, case) for seed in range(seeds)) for scanner in SCANNERS)
        print(f"{name:36}" + "".join(f"{value:8.3f}" for value in lowest), flush=True)
    for path in large:
        with open_slide(path) as slide:
            print(f"{path.stem:36}{'':8}{overlap(find_tissue(slide).mask, slides.truth(path)):8.3f}")


def drawn_overlap(scanner: Scanner, seed: int, case: dict[str, object]) -> float:
    """Of one generated slide, scanned at 1 mpp, with the outline that was written beside it."""
    drawn = GeneratedSlide("drawn", scanner, 1.0, seed, **case)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, open_slide(write_slide(drawn, Path(folder))) as slide:
        truth = tissue_from_geojson(Path(folder) / "truth" / "drawn.geojson", slide, TissueSpec())
        return overlap(find_tissue(slide).mask, truth.mask)


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float(np.count_nonzero(found & truth) / np.count_nonzero(found | truth))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pathfm-benchmarks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3, help="generated slides a case and scanner")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    large = [] if given.slides else [slides.slide(given.folder, kind) for kind in slides.KINDS.values()]
    print_costs(given.slides or large, given.rounds)
    print_overlaps(given.seeds, large)


if __name__ == "__main__":
    main()
