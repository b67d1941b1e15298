"""What durability costs an extraction: the time inside the journal and the final write, of all of one run.

    python benchmarks/durability.py

Prints one line a backbone: tiles, tiles/s, the share of the time that went into durability, and milliseconds a tile.
resnet50 has random weights here: its speed does not depend on them. The goal is 3 % and 0.3 ms.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import tifffile
import timm

from pathfm import embed
from pathfm.embeddings import read_embeddings
from pathfm.extract import extract
from pathfm.journal import Journal
from pathfm.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable

TILE_PX = 224


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1024, help="tiles on the generated slide")
    tiles = parser.parse_args().tiles
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        timm.models.save_for_hf(
            timm.create_model("resnet50", num_classes=0), root / "resnet50", safe_serialization=True
        )
        side = round(tiles**0.5)
        write_slide(root / "slide.tiff", side * TILE_PX)
        print(f"{'backbone':<10} {'tiles':>6} {'tiles/s':>8} {'durability':>11} {'ms/tile':>8}")
        for name in ("colour", f"local-dir:{root / 'resnet50'}"):
            print(line(name, root), flush=True)


def write_slide(path: Path, size_px: int) -> None:
    """Noisy eosin everywhere, JPEG, with a small level for the overview."""
    rng = np.random.default_rng(0)
    pixels = (np.array([205, 110, 170]) + rng.integers(-20, 20, (size_px, size_px, 1))).astype(np.uint8)
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **options)
        file.write(pixels[::8, ::8], subfiletype=1, resolution=(2.5e3, 2.5e3), resolutionunit="CENTIMETER", **options)


def line(backbone: str, root: Path) -> str:
    """Runs one extraction with clocks around everything that is only there for durability."""
    spent_s: list[float] = []
    spec = TileSpec(size_px=TILE_PX, mpp=0.5)
    with ExitStack() as stack:
        for owner, name in ((Journal, "begin"), (Journal, "append"), (Journal, "remove"), (embed, "write_rows")):
            stack.enter_context(patch.object(owner, name, clocked(getattr(owner, name), spent_s)))
        extract([root / "slide.tiff"], root / "warm", backbone=backbone, tiles=spec, device="cpu")
        spent_s.clear()
        started_s = time.perf_counter()
        result = extract([root / "slide.tiff"], root / "out", backbone=backbone, tiles=spec, device="cpu")
        total_s = time.perf_counter() - started_s
    n_tiles = len(read_embeddings(result.folders[0] / "slide.h5").coords)
    cost = sum(spent_s)
    name = backbone.rpartition("/")[2]
    return f"{name:<10} {n_tiles:>6} {n_tiles / total_s:>8.1f} {cost / total_s:>10.2%} {1000 * cost / n_tiles:>8.3f}"


def clocked(function: Callable[..., Any], spent_s: list[float]) -> Callable[..., Any]:
    """The same function, with its time added to a list."""

    def timed(*args: Any, **more: Any) -> Any:
        started_s = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            spent_s.append(time.perf_counter() - started_s)

    return timed


if __name__ == "__main__":
    main()
