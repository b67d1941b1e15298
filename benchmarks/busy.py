"""What a training on all cores loses where another process has one of them, with and without `pathfm`'s waiting threads.

    python benchmarks/busy.py

Prints epochs a second of the clock, the median of interleaved rounds, and their ratio to the first line. GNU's OpenMP lets a
thread that waits spin; the command line has it sleep after GOMP_SPINCOUNT turns (`pathfm.cli`). Needs two cores or more, and
Linux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS, BAGS, INSTANCES, DIM = 20, 14, 200, 64
WAYS = {"as it comes": {}, "GOMP_SPINCOUNT 1000": {"GOMP_SPINCOUNT": "1000"}, "no spinning": {"GOMP_SPINCOUNT": "0"}}
SPIN = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    """Prints the table; as a child it trains and prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", action="store_true", help="train, and print the seconds that it took")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.child:
        print(trained_s())
        return
    lines = [(busy, name) for busy in (False, True) for name in WAYS]
    speeds: dict[tuple[bool, str], list[float]] = {line: [] for line in lines}
    for _, (busy, name) in itertools.product(range(arguments.rounds), lines):
        speeds[busy, name].append(EPOCHS / child_s(WAYS[name], busy=busy))
    print(f"{EPOCHS} epochs, {BAGS} bags of {INSTANCES} x {DIM}, {os.cpu_count()} threads{'epochs/s':>18}{'ratio':>8}")
    for (busy, name), own in speeds.items():
        where = "a core is busy" if busy else "idle machine"
        ratio = statistics.median(own) / statistics.median(speeds[lines[0]])
        print(f"  {where + ', ' + name:<50}{statistics.median(own):>16.1f}{ratio:>8.2f}")


def child_s(way: dict[str, str], *, busy: bool) -> float:
    """Seconds of a training in a process of its own, whose environment is read as torch is loaded."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    others = [subprocess.Popen(SPIN)] if busy else []
    try:
        words = [sys.executable, __file__, "--child"]
        done = subprocess.run(words, env=unset | way, check=True, capture_output=True, text=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def trained_s() -> float:
    """Seconds of the second of two trainings."""
    import numpy as np
    import torch

    from pathfm.bags import BagDataset
    from pathfm.fit import Rows, fit
    from pathfm.settings import TrainSettings
    from pathfm.targets import Task
    from pathfm.targets.classes import Classes

    truth = (np.arange(BAGS) % 2).astype(np.float32)[:, None]
    bags = BagDataset([torch.randn(INSTANCES, DIM) for _ in range(BAGS)], truth)
    task, seconds = Task((Classes("class", ("no", "yes")),)), 0.0
    for epochs in (1, EPOCHS):
        settings = TrainSettings(epochs=epochs, min_epochs=1, hidden=128, attention=64, device="cpu", loggers=[])
        started_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            fit(bags, Rows(range(BAGS), []), task, "gated-abmil", settings, Path(scratch))
        seconds = time.perf_counter() - started_s
    return seconds


if __name__ == "__main__":
    main()
