"""The forward pass of a backbone: what layout, allocator and engine make of it.

    python benchmarks/forward.py
    python benchmarks/forward.py --device cuda --batches 64 256

Random weights, tiles that are in memory as uint8 at the width of the network's input. Each variant runs in a process of
its own, for the allocator is set for a whole process, round by round in turn:

- `plain`: torch, as a script calls it: NCHW, the allocator as it is.
- `channels_last`, `mallopt`: either alone; on a ViT too, where pathfm leaves channels_last off.
- `both`: the two; what `--engine torch` does for a ResNet on a CPU.
- `compile`, `openvino`: these engines as `--engine` has them; openvino is left out where it is not installed.

On a GPU: `plain` in float32, `precision` in that of the row, `compile` in that too.

Prints medians of tiles/s over the rounds, the median of each round's ratio to `plain`, and the peak RSS.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch

from pathfm.backbones import BACKBONES, Backbone, Engine, LoadedBackbone, Precision, load_backbone, register_backbone

ROWS = {
    "resnet50": BACKBONES["resnet50"],
    "vit_small": replace(BACKBONES["kaiko-vits16"], size_px=224, crop_px=None, arch_kwargs={}, precision="float16"),
    "uni2-h": BACKBONES["uni2-h"],
}
ON_CPU = ("plain", "channels_last", "mallopt", "both", "compile", "openvino")
ON_GPU = ("plain", "precision", "compile")


def main() -> None:
    """Prints a table for each network and size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_small"], choices=list(ROWS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32], help="tiles in a forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a size of a batch is measured for, at least")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)  # this program's own child
    arguments = parser.parse_args()
    if arguments.variant:
        torch.set_num_threads(arguments.threads)
        print(*measured(*arguments.variant, arguments))
        return
    variants = ON_CPU if arguments.device == "cpu" else ON_GPU
    if importlib.util.find_spec("openvino") is None:
        variants = tuple(name for name in variants if name != "openvino")
    with tempfile.TemporaryDirectory() as scratch:
        for network in arguments.networks:
            row = ROWS[network]
            model = timm.create_model(row.arch, num_classes=0, **build_arguments(row))
            timm.models.save_for_hf(model, Path(scratch) / network, safe_serialization=True)
            rounds = [{name: of_child(name, network, scratch) for name in variants} for _ in range(arguments.rounds)]
            print_table(network, arguments.batches, rounds)


def build_arguments(row: Backbone) -> dict[str, object]:
    """What timm builds the network of a row with."""
    return row.arch_kwargs | ({"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU} if row.swiglu else {})


def of_child(name: str, network: str, scratch: str) -> list[float]:
    """What `measured` gives in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--variant", name, network, scratch]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(word) for word in said.split()]


def measured(name: str, network: str, scratch: str, arguments: argparse.Namespace) -> list[float]:
    """Tiles a second for each size of a batch, and the peak RSS in MB."""
    row = replace(ROWS[network], name="measured", source=f"local-dir:{Path(scratch) / network}")
    register_backbone(row)
    engine: Engine = name if name in ("compile", "openvino") else "torch"  # type: ignore[assignment]
    precision: Precision | None = None if name != "plain" else "float32"
    last, kept = name in ("channels_last", "both"), name in ("mallopt", "both")
    if engine == "torch" and arguments.device == "cpu":
        with (
            patch("pathfm.backbones.load.channels_last_pays", lambda *_: last),
            patch("pathfm.backbones.load.keep_activations_mapped", keep if kept else lambda: False),
        ):
            backbone = load_backbone("measured", arguments.device, precision)
        if not last:  # tiles have their channels last, and so have images made of them
            run = backbone.run
            backbone = replace(backbone, run=lambda images: run(images.contiguous()))
    else:
        backbone = load_backbone("measured", arguments.device, precision, engine)
    width = row.resize_px or row.default_size_px
    tiles = np.random.default_rng(0).integers(0, 256, (max(arguments.batches), width, width, 3), dtype=np.uint8)
    rates = [rate(backbone, tiles[:size], arguments.seconds) for size in arguments.batches]
    return [*rates, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]


def keep() -> bool:
    """The allocator as pathfm sets it."""
    from pathfm.backbones.memory import keep_activations_mapped

    return keep_activations_mapped()


def rate(backbone: LoadedBackbone, tiles: np.ndarray, seconds: float) -> float:
    """Tiles a second, warm, with one batch under way while the one before is waited for."""
    for _ in range(2):
        backbone.embed(tiles)
    count, begun = 0, time.perf_counter()
    before = None
    while time.perf_counter() - begun < seconds:
        pending = backbone.submit(tiles)
        if before is not None:
            before.result()
        before, count = pending, count + len(tiles)
    if before is not None:
        before.result()
    return count / (time.perf_counter() - begun)


def print_table(network: str, batches: list[int], rounds: list[dict[str, list[float]]]) -> None:
    """Medians over the rounds; ratios are taken within a round."""
    head = "".join(f"{f'batch {size}':>10} {'x plain':>8}" for size in batches)
    print(f"{network:<16}{head} {'peak MB':>9}", flush=True)
    for name in rounds[0]:
        cells = ""
        for at in range(len(batches)):
            ratio = statistics.median(one[name][at] / one["plain"][at] for one in rounds)
            cells += f"{statistics.median(one[name][at] for one in rounds):>10.1f} {ratio:>8.2f}"
        peak = statistics.median(one[name][-1] for one in rounds)
        print(f"{name:<16}{cells} {peak:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
