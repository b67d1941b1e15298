"""Extraction from end to end against its own forward pass, and against what a plain script does.

    python benchmarks/extract.py

Each variant embeds the same tiles (256 px at 0.5 mpp, read from 0.25 mpp scans) by the same resnet50 (third stage, random
weights) in a process of its own, round by round in turn; the clock starts when model and processes are warm:

- `plain`: OpenSlide read_region, PIL resize and a torch DataLoader in front of the plain torch module: what TRIDENT,
  CLAM and LazySlide do, without what else they do.
- `forward`: pathfm's backbone alone, on tiles that are in memory; what no reader can beat.
- `pathfm`: `extract`, from opened slide to proven file: tissue, digest, journal and all.
- `pathfm, openslide`: the same with --reader openslide.

Prints medians of tiles/s, and the median of each round's ratio to `plain` and to `forward`. The goals are 2 and 0.95.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import timm
import torch
from PIL import Image
from slides import MID, slide
from torch.utils.data import DataLoader, Dataset

from pathfm.backbones import BACKBONES, Engine, load_backbone, register_backbone
from pathfm.embeddings import read_embeddings
from pathfm.extract import extract_slides, plan_extraction
from pathfm.isolation import Limits
from pathfm.reading import Reading, survey
from pathfm.sources import find_slides
from pathfm.tilereads import TileReads
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from pathfm.slide import Reader
    from pathfm.sources import SlideSource
    from pathfm.tiles import Tiles

BATCH = 32
BACKBONE = "resnet50-random"
VARIANTS = ("plain", "forward", "pathfm", "pathfm, openslide")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=2, help="how many are generated")
    parser.add_argument("--side", type=int, default=12_000, help="of a slide, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and processes that read")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)  # this program's own child
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        name, folder = arguments.variant
        print(*measured(name, Path(folder), arguments))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(arguments.slides):
            slide(folder / "slides", replace(MID, name=f"slide{number}", width=arguments.side, height=arguments.side))
        model = timm.create_model("resnet50", num_classes=0)
        timm.models.save_for_hf(model, folder / "resnet50", safe_serialization=True)
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for number in range(arguments.rounds):
            for name in VARIANTS:
                rates[name].append(rate_of_child(name, folder))
            print(f"round {number + 1}:", *(f"{rates[name][-1]:.2f}" for name in VARIANTS), file=sys.stderr)
    print_table(rates)


def rate_of_child(name: str, folder: Path) -> float:
    """Tiles a second of a variant in a process of its own: the allocator is set for a whole process."""
    words = [sys.executable, __file__, *sys.argv[1:], "--variant", name, str(folder)]
    tiles, seconds = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return int(tiles) / float(seconds)


def print_table(rates: dict[str, list[float]]) -> None:
    """Medians over the rounds; ratios are taken within a round."""
    print(f"{'':<20} {'tiles/s':>8} {'x plain':>8} {'of forward':>11}")
    for name, values in rates.items():
        plain, forward = (
            statistics.median(a / b for a, b in zip(values, rates[base], strict=True)) for base in ("plain", "forward")
        )
        print(f"{name:<20} {statistics.median(values):>8.2f} {plain:>8.2f} {forward:>11.2f}")


def measured(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[int, float]:
    """(tiles, seconds) of a variant."""
    row = replace(BACKBONES["resnet50"], name=BACKBONE, source=f"local-dir:{folder / 'resnet50'}")
    register_backbone(row)
    if name == "plain":
        return plain(folder, arguments.device, arguments.threads)
    if name == "forward":
        return forward(folder, arguments.device, arguments.engine)
    reader: Reader = "openslide" if name.endswith("openslide") else "auto"
    return pathfm(folder, arguments, reader)


def pathfm(folder: Path, arguments: argparse.Namespace, reader: Reader) -> tuple[int, float]:
    """The whole of `extract`, once for warmth on the first slide alone."""
    work = plan_extraction(
        BACKBONE, device=arguments.device, engine=arguments.engine, batch_size=BATCH, reader=reader,
        workers=arguments.threads,
    )  # fmt: skip
    sources = find_slides([folder / "slides"])
    with tempfile.TemporaryDirectory() as scratch:
        extract_slides(sources[:1], work, Path(scratch, "warm"))
        started_s = time.perf_counter()
        result = extract_slides(sources, work, Path(scratch, "out"))
        seconds = time.perf_counter() - started_s
        tiles = sum(len(read_embeddings(path).coords) for path in result.folders[0].glob("*.h5"))
    return tiles, seconds


def forward(folder: Path, device: str, engine: Engine) -> tuple[int, float]:
    """The backbone alone, on the same tiles."""
    backbone = load_backbone(BACKBONE, device, engine=engine)
    batches = [batch.pixels for source, tiles in cut(folder) for batch in TileReads(source, tiles, BATCH, 2)]
    backbone.embed(batches[0])
    return timed(lambda: [backbone.embed(batch) for batch in batches], sum(map(len, batches)))


def plain(folder: Path, device: str, workers: int) -> tuple[int, float]:
    """A script as people write it."""
    network: Any = timm.create_model(f"local-dir:{folder / 'resnet50'}", pretrained=True).eval().to(device)
    network.layer4, network.fc = torch.nn.Identity(), torch.nn.Identity()
    slides = [PlainTiles(source.path, tiles.coords) for source, tiles in cut(folder)]
    loaders = [DataLoader(slide, BATCH, num_workers=workers) for slide in slides]

    @torch.inference_mode()
    def run() -> None:
        for loader in loaders:
            for images in loader:
                network.forward_features(images.to(device)).mean(dim=(2, 3)).cpu().numpy()

    with torch.inference_mode():
        network.forward_features(torch.zeros(BATCH, 3, 224, 224, device=device))
    return timed(run, sum(map(len, slides)))


def cut(folder: Path) -> list[tuple[SlideSource, Tiles]]:
    """The slides and their tiles."""
    spec = TileSpec(256, 0.5).resolved(256, 0.5)
    how = Reading(spec, TissueSpec(), None, "sha256", 0.005, 2, Limits())
    return [(source, survey(source, how).tiles) for source in find_slides([folder / "slides"])]


def timed(work: Callable[[], object], tiles: int) -> tuple[int, float]:
    """(tiles, seconds)."""
    started_s = time.perf_counter()
    work()
    return tiles, time.perf_counter() - started_s


class PlainTiles(Dataset[torch.Tensor]):
    """Tiles by OpenSlide and PIL, one at a time."""

    def __init__(self, path: Path, coords: np.ndarray[Any, Any]) -> None:
        self.path, self.coords = path, coords
        self.slide: openslide.OpenSlide | None = None
        mean, deviation = BACKBONES["resnet50"].mean_std or ()
        self.mean, self.deviation = (torch.tensor(values).view(3, 1, 1) for values in (mean, deviation))

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.slide = self.slide or openslide.OpenSlide(self.path)
        x, y = self.coords[index].tolist()
        tile = self.slide.read_region((x, y), 0, (512, 512)).convert("RGB")
        tile = tile.resize((256, 256), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(tile)).permute(2, 0, 1).float() / 255
        return (image - self.mean) / self.deviation


if __name__ == "__main__":
    main()
