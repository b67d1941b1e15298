"""How many calls an accelerator would get for an epoch of five folds in one pass, against an epoch of one fold.

    python benchmarks/calls.py

An accelerator that is given small products waits for its next call, so calls, and what Python does between them, are what
an epoch then costs. Both are counted here without one: the operations that torch dispatches and that touch numbers (no
views), and the CPU time of epochs whose products are so small that nothing else is left. A fold learns from four fifths of
the bags, five folds together from all: the ratios are of epochs.

This is no measurement of a GPU. Long bags in float32 are bound by their products there, which five folds have four times.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import warnings
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train import FOLDS, folds, print_table, settings, short_bags

from pathfm.heads import HEADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pathfm.settings import TrainSettings

NO_NUMBERS = ("aten.detach", "aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.scalar_tensor", "profiler.")


class Calls(TorchDispatchMode):
    """Counts the operations that compute something."""

    n = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts, and calls."""
        views = any(one.alias_info and not one.alias_info.is_write for one in call._schema.returns)
        self.n += not views and not str(call).startswith(NO_NUMBERS)
        return call(*args, **(kwargs or {}))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=sorted(HEADS), choices=sorted(HEADS))
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--epochs", type=int, default=10, help="of each training; what is printed is one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", "There is a performance drop")
    bags = [bag[:, :8].contiguous() for bag in short_bags()]
    how = settings(arguments.epochs, hidden=16, attention=8, together="never")
    together = dataclasses.replace(how, together="always")
    print(f"{'calls of an epoch':<24} {'one fold':>9} {f'{FOLDS} folds':>9} {'ratio':>7}")
    for head in arguments.heads:
        one = of_an_epoch(lambda some: folds(bags, some, 1, head=head), how)  # noqa: B023 - called at once
        five = of_an_epoch(lambda some: folds(bags, some, FOLDS, head=head), together)  # noqa: B023
        print(f"  {head:<22} {one:>9} {five:>9} {five / one:>7.2f}", flush=True)
    lines = {
        "one fold": folds(bags, how, 1),
        f"{FOLDS} folds": folds(bags, together, FOLDS),
    }
    spent_s = print_table("gated-abmil, 8 numbers an instance, 16 hidden", lines, arguments.rounds, arguments.epochs)
    print(f"  {FOLDS} folds for {spent_s[f'{FOLDS} folds'] / spent_s['one fold']:.2f} times one")


def of_an_epoch(training: Callable[[TrainSettings], Callable[[], object]], how: TrainSettings) -> int:
    """The calls of an epoch: those of a training of two less those of a training of one."""
    counts = []
    for epochs in (1, 2):
        run = training(dataclasses.replace(how, epochs=epochs, min_epochs=epochs))
        with Calls() as calls, patch("pathfm.stacked._of_members", lambda gradient: gradient.contiguous().unbind()):
            run()  # with the gradients handed out as on an accelerator
        counts.append(calls.n)
    return counts[1] - counts[0]


if __name__ == "__main__":
    main()
