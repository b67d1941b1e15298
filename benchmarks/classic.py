"""Classic multiple-instance data (MUSK1, Elephant, Fox, Tiger) by its 5 x 10 published folds, head by head.

    python benchmarks/classic.py --data FOLDER

FOLDER holds `musk1.npz`, `elephant.npz`, `fox.npz` and `tiger.npz`, each with `instances` float32 (sum_n, d), `lengths` and
`labels` int64 (bags,), and `folds` bool (5, 10, bags), the bags that each fold of each repeat learns from.

A repeat is scored as a whole: each bag by the fold that did not learn from it, accuracy at even odds and AUROC over all
bags. What is printed is the mean over the repeats and their standard deviation.

Hyper-parameters of `--tuned` heads are chosen from GRID for each fold by itself, without its test bags: each candidate is
fitted without these and without those of the next fold, and again of the fold before, and has the loss on the bags of
these two neighbours that it did not learn from. The lowest mean loss is taken. Two neighbours share the fit without
either, so a repeat costs 10 fits a candidate and 10 to be scored. Other heads take the first candidate, unchosen. All are
trained to the last epoch: nothing is stopped by a bag.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pathfm.bags import BagDataset
from pathfm.fit import Fit, Rows
from pathfm.heads import HEADS, pack
from pathfm.settings import TrainSettings
from pathfm.targets import Task
from pathfm.targets.classes import Classes
from pathfm.together import Job, fit_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NAMES = ("musk1", "elephant", "fox", "tiger")
TASK = Task((Classes("class", ("no", "yes")),))
_SHARED = {"hidden": 128, "attention": 64, "dropout": 0.5, "class_weights": False, "loggers": []}
GRID = (
    TrainSettings(epochs=40, lr=5e-4, **_SHARED),
    TrainSettings(epochs=20, lr=5e-4, bag_size=3, **_SHARED),
    TrainSettings(epochs=20, lr=1e-3, bag_size=3, **_SHARED),
)


class Data(NamedTuple):
    """One of the data sets: its bags, labels int64 (bags,), and bool (repeats, folds, bags), True where a fold learns."""

    bags: BagDataset
    labels: NDArray[np.int64]
    learns: NDArray[np.bool_]


def main() -> None:
    """Prints a line a head and data set, as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES, help="data sets")
    parser.add_argument(
        "--tuned", nargs="*", default=["gated-abmil"], choices=sorted(HEADS), help="heads to choose for"
    )
    parser.add_argument("--heads", nargs="*", default=sorted(HEADS), choices=sorted(HEADS), help="the other heads")
    parser.add_argument("--repeats", type=int, default=5, help="of the tuned heads")
    parser.add_argument("--others", type=int, default=1, help="repeats of the other heads")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<24}{'repeats':>9}{'accuracy':>16}{'AUROC':>16}{'CPU s':>8}")
    for name in arguments.names:
        data = read(arguments.data / f"{name}.npz")
        for head in arguments.tuned:
            print_line(name, head, data, arguments.repeats, tuned=True)
        for head in arguments.heads:
            if head not in arguments.tuned:
                print_line(name, head, data, arguments.others, tuned=False)


def read(path: Path) -> Data:
    """One of the data sets."""
    with np.load(path) as file:
        parts = torch.split_with_sizes(torch.from_numpy(file["instances"]), file["lengths"].tolist())
        labels = file["labels"].astype(np.int64)
        return Data(BagDataset(parts, labels.astype(np.float32)[:, None]), labels, file["folds"])


def print_line(name: str, head: str, data: Data, repeats: int, *, tuned: bool) -> None:
    """Fits all folds of the repeats and prints how they did."""
    started_s = time.process_time()
    data = data._replace(learns=data.learns[:repeats])
    every = [(repeat, fold) for repeat in range(repeats) for fold in range(data.learns.shape[1])]
    chosen = choose(data, head, every) if tuned else [0] * len(every)
    scores = np.full((repeats, len(data.labels)), np.nan)
    for candidate in sorted(set(chosen)):
        mine = [one for one, which in zip(every, chosen, strict=True) if which == candidate]
        fits = fit_each([data.learns[one] for one in mine], data, head, candidate)
        for (repeat, fold), found in zip(mine, fits, strict=True):
            test = np.flatnonzero(~data.learns[repeat, fold])
            scores[repeat, test] = margins(found, data, test)
    figures = (
        [((one > 0) == (data.labels > 0)).mean() for one in scores],
        [roc_auc_score(data.labels, one) for one in scores],
    )
    accuracy, auroc = (f"{np.mean(one):.3f} ({np.std(one):.3f})" for one in figures)
    title = f"{name:<10}{head}{' *' if tuned else ''}"
    print(f"{title:<24}{repeats:>9}{accuracy:>16}{auroc:>16}{time.process_time() - started_s:>8.0f}", flush=True)


def choose(data: Data, head: str, every: Sequence[tuple[int, int]]) -> list[int]:
    """The candidate of each fold of each repeat, by the bags of its neighbours."""
    n_folds = data.learns.shape[1]
    losses = np.zeros((len(GRID), *data.learns.shape[:2]))
    for candidate in range(len(GRID)):
        pairs = [data.learns[repeat, fold] & data.learns[repeat, (fold + 1) % n_folds] for repeat, fold in every]
        for (repeat, fold), found in zip(every, fit_each(pairs, data, head, candidate), strict=True):
            neighbours = fold, (fold + 1) % n_folds
            for own, other in (neighbours, neighbours[::-1]):
                left_out = np.flatnonzero(~data.learns[repeat, other] & data.learns[repeat, own])
                margin = margins(found, data, left_out) * np.where(data.labels[left_out] > 0, 1, -1)
                losses[candidate, repeat, own] += np.logaddexp(0, -margin).mean()
    return [int(losses[:, repeat, fold].argmin()) for repeat, fold in every]


def fit_each(learns: Sequence[NDArray[np.bool_]], data: Data, head: str, candidate: int) -> list[Fit]:
    """A fit for each set of bags, together in one pass over them."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [Rows(np.flatnonzero(one).tolist(), []) for one in learns]
        jobs = [Job(one, GRID[candidate], Path(scratch, str(i)), str(i)) for i, one in enumerate(rows)]
        return fit_all(data.bags, jobs, TASK, head)


@torch.inference_mode()
def margins(found: Fit, data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the logit of the positive class is above the other, float64 (rows,)."""
    logits: Tensor = found.head(pack([data.bags.features(row) for row in rows.tolist()])).logits.double()
    return (logits[:, 1] - logits[:, 0]).numpy()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
