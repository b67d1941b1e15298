"""Needles in haystacks: how well each head tells bags with a few positive instances, and finds these, by bag labels alone.

    python benchmarks/needle.py

An instance is 64 numbers: the centre of one of 8 kinds of tissue, drawn once (deviation 1), and noise (deviation 1). A bag
has 2,000, of kinds in shares of its own (Dirichlet, 10 each), which say nothing of its label. In a positive bag 1 % or
0.2 % of the instances are moved by 10 along one direction, the same for all kinds, which is drawn once. Half of the bags
are positive.

Heads learn from 200 bags, hidden 128, attention 64, 20 epochs at a rate of 5e-4, the rest as `pathfm train` has it, with no
bag to stop on. Figures are of 100 held-out bags, the mean over seeds of the data and the training: the AUROC over bags,
and the localisation, the AUROC of attention (its column of the positive class) over the instances of a positive bag,
averaged over these. Heads without attention have none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pathfm.bags import BagDataset
from pathfm.fit import Rows, fit
from pathfm.heads import HEADS, pack
from pathfm.settings import TrainSettings
from pathfm.targets import Task
from pathfm.targets.classes import Classes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

DIM, KINDS, INSTANCES, SHIFT = 64, 8, 2_000, 10.0
LEARN, TEST = 200, 100
SHARES = (0.01, 0.002)
TASK = Task((Classes("class", ("no", "yes")),))


class Haystacks(NamedTuple):
    """Bags (float32 (2000, 64) each), their labels int64 (bags,), and which instances are positive, bool (bags, 2000)."""

    bags: list[Tensor]
    labels: NDArray[np.int64]
    needles: NDArray[np.bool_]


def main() -> None:
    """Prints a line a head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=sorted(HEADS), choices=sorted(HEADS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--shares", nargs="+", type=float, default=SHARES, help="of positive instances in a positive bag"
    )
    parser.add_argument("--head_options", type=json.loads, default={}, help="options of the heads' own, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = "".join(f"{f'{100 * share:g} %: AUROC':>16}{'localisation':>14}" for share in arguments.shares)
    print(f"{'':<18}{columns}{'CPU s':>8}")
    for head in arguments.heads:
        started_s, cells = time.process_time(), ""
        for share in arguments.shares:
            found = [
                score(head, arguments.head_options, haystacks(share, seed), seed) for seed in range(arguments.seeds)
            ]
            auroc, place = (np.mean(one) for one in zip(*found, strict=True))
            cells += f"{auroc:>16.3f}" + (f"{'-':>14}" if np.isnan(place) else f"{place:>14.3f}")
        print(f"{head:<18}{cells}{time.process_time() - started_s:>8.0f}", flush=True)


def haystacks(share: float, seed: int) -> Haystacks:
    """Bags as the head of this file says, those to learn from first."""
    rng = np.random.default_rng(seed)
    centres, direction = rng.standard_normal((KINDS, DIM)), rng.standard_normal(DIM)
    labels, needles = np.arange(LEARN + TEST) % 2, np.zeros((LEARN + TEST, INSTANCES), bool)
    needles[labels == 1, : round(share * INSTANCES)] = True
    needles = rng.permuted(needles, axis=1)
    bags = []
    for positive in needles:
        kinds = rng.choice(KINDS, INSTANCES, p=rng.dirichlet(np.full(KINDS, 10.0)))
        bag = centres[kinds] + rng.standard_normal((INSTANCES, DIM))
        bag[positive] += SHIFT * direction / np.linalg.norm(direction)
        bags.append(torch.from_numpy(bag.astype(np.float32)))
    return Haystacks(bags, labels, needles)


def score(head: str, options: dict[str, Any], data: Haystacks, seed: int) -> tuple[float, float]:
    """AUROC over held-out bags, and of attention over the instances of the positive ones, NaN without attention."""
    how = TrainSettings(epochs=20, lr=5e-4, hidden=128, attention=64, loggers=[], seed=seed, head_options=options)
    with tempfile.TemporaryDirectory() as scratch:
        bags = BagDataset(data.bags, data.labels.astype(np.float32)[:, None])
        trained = fit(bags, Rows(range(LEARN), []), TASK, head, how, Path(scratch)).head
    margins, places = [], []
    with torch.inference_mode():
        for bag, needles in zip(data.bags[LEARN:], data.needles[LEARN:], strict=True):
            logits, attention, _ = trained(pack([bag]))
            margins.append(float(logits[0, 1] - logits[0, 0]))
            if attention is not None and needles.any():
                places.append(roc_auc_score(needles, attention[:, -1].numpy()))
    return float(roc_auc_score(data.labels[LEARN:], margins)), float(np.mean(places)) if places else float("nan")


if __name__ == "__main__":
    main()
