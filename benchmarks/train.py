"""What an epoch of training costs, against a plain Lightning loop of the same maths and against its matrix products alone.

    python benchmarks/train.py

Prints medians of interleaved rounds in seconds an epoch, of CPU (of the clock on a GPU), on one thread. The bags are in
memory, standardised beforehand for the plain loop; for pathfm they are raw, and its line holds all that `fit` does beside:
standardising, checkpoints, logs. `torch's products` is pathfm where torch multiplies as in the plain loop;
`products.onednn_is_faster` says when it does not. Folds are five heads fitted to four fifths of the bags each.

The goals are 1.35 times the plain loop and 0.68 of the products on a CPU, and five folds for less than twice one on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pathfm.bags import BagDataset
from pathfm.fit import Rows, fit
from pathfm.heads import HEADS
from pathfm.heads.products import columns_times, onednn_is_faster, rows_times
from pathfm.jointmodule import JointModule
from pathfm.outoffold import repeat_settings
from pathfm.settings import TrainSettings
from pathfm.targets import Task
from pathfm.targets.classes import Classes
from pathfm.together import Job, fit_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Lines = dict[str, Callable[[], object]]

TABLES = ("epochs", "folds", "sizes", "repeats", "heads")
DIM, HIDDEN, FOLDS, REPEATS = 1024, 512, 5, 3
LENGTHS = (5_000, 7_000, 9_000, 10_000)
SIZES = (  # instances of a bag, numbers of an instance, hidden ones
    (10, 200, 128),
    (10, 1024, 256),
    (10, 1024, 512),
    (240, 64, 64),
    (240, 1024, 256),
    (240, 1024, 512),
    (1000, 64, 256),
    (1000, 512, 256),
    (1000, 1024, 256),
    (4000, 512, 256),
)
TASK = Task((Classes("class", ("no", "yes")),))
NO_ONEDNN = ("pathfm.heads.products.onednn_is_faster", lambda: False)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken; heads have one")
    parser.add_argument("--epochs", type=int, default=3, help="of each training; what is printed is one")
    parser.add_argument("--heads", nargs="+", default=sorted(HEADS), choices=sorted(HEADS), help="of the last table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    bags = [torch.randn(n, DIM) for n in LENGTHS]
    if "epochs" in arguments.tables:
        for attention in (384, 256):
            print_epochs(bags, attention, arguments.rounds, arguments.epochs)
    if "folds" in arguments.tables:
        print_folds(arguments.rounds, arguments.epochs)
    if "sizes" in arguments.tables:
        print_sizes(arguments.rounds, arguments.epochs)
    if "repeats" in arguments.tables:
        print_repeats(arguments.rounds, arguments.epochs)
    if "heads" in arguments.tables:
        lines = {name: trained(bags, settings(1), name) for name in arguments.heads}
        print_table(f"every head, {len(bags)} bags of {sum(LENGTHS) // len(bags)} x {DIM}", lines, 1, 1)


def print_epochs(bags: list[Tensor], attention: int, rounds: int, epochs: int) -> None:
    """The same head by the plain loop and by pathfm, and its products."""
    ours = trained(bags, settings(epochs, attention=attention))
    lines: Lines = {"plain Lightning loop": lambda: plain_loop(bags, attention, epochs), "pathfm": ours}
    if onednn_is_faster():
        lines["pathfm, torch's products"] = lambda: patched(ours)
    lines["matrix products alone, torch's"] = lambda: patched(lambda: products(bags, attention, epochs))
    if onednn_is_faster():
        lines["matrix products alone, as pathfm"] = lambda: products(bags, attention, epochs)
    title = (
        f"gated-abmil, {len(bags)} bags of {sum(LENGTHS) // len(bags)} x {DIM}, hidden {HIDDEN}, attention {attention}"
    )
    print_table(title, lines, rounds, epochs)


def print_folds(rounds: int, epochs: int) -> None:
    """Five folds in one pass over the bags, one after the other, and one alone."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    long = [torch.randn(n // (1 if on_gpu else 4), DIM) for n in itertools.islice(itertools.cycle(LENGTHS), 10)]
    short = short_bags()
    for title, bags, hidden in (
        (f"{FOLDS} folds, 10 long bags", long, HIDDEN),
        (f"{FOLDS} folds, 100 bags of 2 to 13", short, 128),
    ):
        how = settings(epochs, hidden=hidden, device=device, together="never")
        lines: Lines = {
            "one fold": folds(bags, how, 1),
            "apart": folds(bags, how, FOLDS),
            "together": folds(bags, dataclasses.replace(how, together="always"), FOLDS),
            "auto": folds(bags, dataclasses.replace(how, together="auto"), FOLDS),
        }
        spent_s = print_table(title + (", on the GPU" if on_gpu else ""), lines, rounds, epochs)
        print(f"  {FOLDS} folds by auto for {spent_s['auto'] / spent_s['one fold']:.2f} times one")


def print_sizes(rounds: int, epochs: int) -> None:
    """What five folds in one pass gain, by the length of the bags and the size of the head."""
    print(
        f"\n{'time apart over together, ' + str(FOLDS) + ' folds, 20 bags':<48}{'weights':>10}{'products':>12}{'ratio':>8}"
    )
    for length, dim, hidden in SIZES:
        bags = [torch.randn(length, dim) for _ in range(20)]
        how = settings(epochs, hidden=hidden, attention=hidden // 2, together="never")
        ways = [folds(bags, dataclasses.replace(how, together=one), FOLDS) for one in ("never", "always")]
        spent_s = [[_spent_s(way, time.process_time) for way in ways] for _ in range(rounds)]
        apart_s, together_s = (statistics.median(column) for column in zip(*spent_s, strict=True))
        weights = dim * hidden + 2 * hidden * (hidden // 2)
        line = f"{length} x {dim}, hidden {hidden}, attention {hidden // 2}"
        print(f"  {line:<46}{weights:>10,}{weights * length / 1e6:>10,.0f} M{apart_s / together_s:>8.2f}", flush=True)


def print_repeats(rounds: int, epochs: int) -> None:
    """The folds of several repeats one after the other, those of each repeat in one pass, and all in one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = settings(epochs, hidden=128, device=device, together="always")
    each = [folds(short_bags(), repeat_settings(how, repeat), FOLDS) for repeat in range(REPEATS)]
    lines: Lines = {
        "apart": folds(short_bags(), dataclasses.replace(how, together="never"), FOLDS, REPEATS),
        "a pass a repeat": lambda: [run() for run in each],
        "one pass": folds(short_bags(), how, FOLDS, REPEATS),
    }
    on_gpu = ", on the GPU" if device == "cuda" else ""
    print_table(f"{FOLDS} folds of {REPEATS} repeats, 100 bags of 2 to 13{on_gpu}", lines, rounds, epochs)


def short_bags() -> list[Tensor]:
    """Bags as those of classic data."""
    drawn = torch.Generator().manual_seed(0)
    return [torch.randn(int(n), 200, generator=drawn) for n in torch.randint(2, 14, (100,), generator=drawn)]


def settings(epochs: int, **given: Any) -> TrainSettings:
    """Of all trainings here: nothing that the plain loop has not."""
    fields = {"class_weights": False, "hidden": HIDDEN, "device": "cpu"} | given
    return TrainSettings(epochs=epochs, min_epochs=epochs, **fields)


def trained(bags: Sequence[Tensor], how: TrainSettings, head: str = "gated-abmil") -> Callable[[], object]:
    """A training by `fit`."""
    dataset = BagDataset(bags, truth(bags))

    def run() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            fit(dataset, Rows(range(len(bags)), []), TASK, head, how, Path(scratch))

    return run


def folds(
    bags: Sequence[Tensor], how: TrainSettings, n: int, repeats: int = 1, head: str = "gated-abmil"
) -> Callable[[], object]:
    """Trainings of the first folds by `fit_all`, as those of a cross-validation are."""
    dataset = BagDataset(bags, truth(bags))
    learn = [[row for row in range(len(bags)) if row % FOLDS != fold] for fold in range(n)]

    def run() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            jobs = [
                Job(
                    Rows(rows, []), repeat_settings(how, repeat), Path(scratch, f"{repeat}-{fold}"), f"{repeat}, {fold}"
                )
                for repeat in range(repeats)
                for fold, rows in enumerate(learn)
            ]
            with patch("pathfm.together.JointModule", wraps=JointModule) as joint:
                fit_all(dataset, jobs, TASK, head)
            if how.together == "always" and joint.call_count != 1:
                message = (
                    f"{len(jobs)} folds were to be trained together, and {joint.call_count} joint trainings were made"
                )
                raise RuntimeError(message)

    return run


def truth(bags: Sequence[Tensor]) -> NDArray[np.float32]:
    """Two classes, of which every fold has both."""
    return (np.arange(len(bags)) % 2).astype(np.float32)[:, None]


class Plain(lightning.LightningModule):
    """Gated attention as one would write it."""

    def __init__(self, attention: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Dropout(0.25))
        self.v = nn.Sequential(nn.Linear(HIDDEN, attention), nn.Tanh())
        self.u = nn.Sequential(nn.Linear(HIDDEN, attention), nn.Sigmoid())
        self.w = nn.Linear(attention, 1)
        self.classifier = nn.Linear(HIDDEN, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one bag, (1, n, dim)."""
        features, label = batch
        hidden = self.first(features.squeeze(0))
        attention = torch.softmax(self.w(self.v(hidden) * self.u(hidden)), dim=0)
        return nn.functional.cross_entropy(self.classifier(attention.T @ hidden), label)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW as torch has it."""
        return torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=1e-5)


def plain_loop(bags: list[Tensor], attention: int, epochs: int) -> None:
    """A training by a Trainer that writes nothing."""
    labels = torch.arange(len(bags)) % 2
    loader = DataLoader(list(zip(bags, labels, strict=True)), batch_size=1, shuffle=True)  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(Plain(attention), loader)


def products(bags: list[Tensor], attention: int, epochs: int) -> None:
    """The five products of a step: two forward, three backward."""
    first, gates = torch.randn(HIDDEN, DIM), torch.randn(2 * attention, HIDDEN)
    for bag in bags * epochs:
        hidden = rows_times(bag, first)
        d_gates = rows_times(hidden, gates)
        columns_times(d_gates, hidden)
        columns_times(rows_times(d_gates, gates.T), bag)


def patched(run: Callable[[], object]) -> None:
    """Runs where all products are torch's."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch(*NO_ONEDNN))
        run()


def print_table(title: str, lines: Lines, rounds: int, epochs: int) -> dict[str, float]:
    """Runs each line once a round, in turn, after one round that does not count; of each the seconds an epoch."""
    clock = time.perf_counter if "GPU" in title else time.process_time
    spent: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds + 1):
        for name, run in lines.items():
            spent[name].append(_spent_s(run, clock) / epochs)
    baseline_s = next(iter(spent.values()))
    print(f"\n{title:<70} {'s/epoch':>9} {'ratio':>7}")
    for name, times_s in spent.items():
        ratio = statistics.median(first / own for first, own in zip(baseline_s[1:], times_s[1:], strict=True))
        print(f"  {name:<68} {statistics.median(times_s[1:]):>9.3f} {ratio:>7.2f}", flush=True)
    return {name: statistics.median(times_s[1:]) for name, times_s in spent.items()}


def _spent_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    started_s = clock()
    run()
    return clock() - started_s


if __name__ == "__main__":
    main()
