from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pathfm.bags import BagDataset
from pathfm.fit import Fit, Rows
from pathfm.grouping import group_jobs
from pathfm.heads import HEADS, Bags, HeadOutput, HeadShape, Pooling, pack
from pathfm.jointmodule import JointModule
from pathfm.outoffold import repeat_settings
from pathfm.settings import TrainSettings
from pathfm.targets import Classes, Task
from pathfm.targets.regression import Regression
from pathfm.together import Job, fit_all

if TYPE_CHECKING:
    from pathlib import Path

QUICK = TrainSettings(
    epochs=4,
    hidden=16,
    attention=8,
    lr=5e-3,
    patience=2,
    min_epochs=1,
    device="cpu",
    loggers=["csv"],
    together="always",
)
TASK = Task((Classes("cancer", ("0", "1")),))
TRUTH = np.array([[i % 2] for i in range(15)], np.float32)
LENGTHS = [7, 12, 3, 9, 1, 11, 4, 8, 6, 10, 5, 13, 2, 7, 9]
SLIM = {"transmil": {"landmarks": 4}}


def _bags(truth: np.ndarray = TRUTH, kind: type[BagDataset] = BagDataset) -> BagDataset:
    drawn = torch.Generator().manual_seed(0)
    return kind([torch.randn(n, 6, generator=drawn) + i % 2 for i, n in enumerate(LENGTHS)], truth)


def _jobs(folder: Path, settings: TrainSettings, folds: int = 3) -> list[Job]:
    """Folds, of which the first has nothing to stop on and is asked for fewer epochs."""
    jobs = []
    for fold in range(folds):
        stop = [i for i in range(15) if i % 5 == fold and fold]
        learn = [i for i in range(15) if i % 5 not in (fold, 4 - fold)]
        asked = 3 if fold == 0 else None
        jobs.append(Job(Rows(learn, stop), settings, folder / str(fold), f"fold {fold}", asked))
    return jobs


@pytest.fixture
def joint_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of members of every joint fit, as they begin."""
    sizes: list[int] = []
    made = JointModule.__init__

    def counted(self: JointModule, members: list[object]) -> None:
        sizes.append(len(members))
        made(self, members)

    monkeypatch.setattr(JointModule, "__init__", counted)
    return sizes


def _require_same(apart: list[Fit], together: list[Fit], bags: BagDataset) -> None:
    """The same epochs, and heads that say the same. Weights that change nothing, as a bias before a softmax, may differ."""
    assert [one[2:] for one in apart] == [one[2:] for one in together]
    packed = pack([bags.features(i) for i in range(len(bags))])
    for one, other in zip(apart, together, strict=True):
        mine, theirs = one.head(packed), other.head(packed)
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        if mine.attention is not None:
            torch.testing.assert_close(mine.attention, theirs.attention, rtol=1e-4, atol=1e-4)


def _both(folder: Path, settings: TrainSettings, head: str) -> tuple[list[Fit], list[Fit]]:
    apart = fit_all(_bags(), _jobs(folder / "apart", replace(settings, together="never")), TASK, head)
    return apart, fit_all(_bags(), _jobs(folder / "together", settings), TASK, head)


@pytest.mark.parametrize("head", ["mean", "gated-abmil", "clam-mb"])
def test_folds_fitted_together_come_to_what_they_come_to_apart(
    tmp_path: Path, head: str, joint_fits: list[int]
) -> None:
    apart, together = _both(tmp_path, QUICK, head)
    assert joint_fits == [3]
    _require_same(apart, together, _bags())


@pytest.mark.long
@pytest.mark.parametrize("head", HEADS)
def test_every_head_comes_together_to_what_it_comes_to_apart(tmp_path: Path, head: str, joint_fits: list[int]) -> None:
    settings = replace(QUICK, epochs=8, head_options=SLIM.get(head, {}))
    apart, together = _both(tmp_path, settings, head)
    print(f"{head}: {len(together)} fits together, epochs {[one.epochs for one in together]}")
    assert joint_fits == [3]
    _require_same(apart, together, _bags())


def test_clipping_schedule_mean_of_weights_and_drawn_instances_are_each_members_own(
    tmp_path: Path, joint_fits: list[int]
) -> None:
    settings = replace(QUICK, clip=0.3, schedule="one-cycle", ema=0.8, bag_size=4, class_weights=False)
    apart, together = _both(tmp_path, settings, "gated-abmil")
    assert joint_fits == [3]
    _require_same(apart, together, _bags())


class InterruptedBags(BagDataset):
    """Bags that are read so often, and then somebody presses Ctrl-C."""

    left = 10**6

    def features(self, index: int) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().features(index)


def test_a_joint_fit_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path, joint_fits: list[int]) -> None:
    settings = replace(QUICK, ema=0.6, schedule="one-cycle")
    whole = fit_all(_bags(), _jobs(tmp_path / "whole", settings), TASK, "gated-abmil")
    broken = _bags(kind=InterruptedBags)
    broken.left = 75  # 15 for the moments and the trial, 21 an epoch: in the third
    with pytest.raises(KeyboardInterrupt):
        fit_all(broken, _jobs(tmp_path / "broken", settings), TASK, "gated-abmil")
    resumed = fit_all(_bags(), _jobs(tmp_path / "broken", settings), TASK, "gated-abmil")
    assert joint_fits == [3, 3, 3]
    for one, other in zip(whole, resumed, strict=True):
        assert one[2:] == other[2:]
        for name, value in one.head.state_dict().items():
            assert torch.equal(value, other.head.state_dict()[name]), name
    assert min(int(row["epoch"]) for row in _log(tmp_path / "broken" / "0", "run-2")) > 0


def test_each_member_has_the_log_of_its_own_fit(tmp_path: Path) -> None:
    fit_all(_bags(), _jobs(tmp_path, QUICK), TASK, "mean")
    fit_all(_bags(), _jobs(tmp_path / "apart", replace(QUICK, together="never")), TASK, "mean")
    for fold in range(3):
        rows, apart = _log(tmp_path / str(fold), "run-1"), _log(tmp_path / "apart" / str(fold), "run-1")
        for column in ("lr", "train_loss", *(["stop_loss"] if fold else [])):
            mine, theirs = ([float(row[column]) for row in one if row[column]] for one in (rows, apart))
            assert mine == pytest.approx(theirs, rel=1e-4)


def _jobs_of_seeds(folder: Path, settings: TrainSettings) -> list[Job]:
    repeats = [repeat_settings(settings, repeat) for repeat in (0, 1)]
    return [job for one in repeats for job in _jobs(folder / str(one.seed), one)]


def test_repeats_have_weights_of_their_own_seeds_and_come_together_to_what_they_come_to_apart(
    tmp_path: Path, joint_fits: list[int]
) -> None:
    settings = replace(QUICK, bag_size=4, dropout=0.5, seed=7)
    together = fit_all(_bags(), _jobs_of_seeds(tmp_path / "together", settings), TASK, "gated-abmil")
    assert joint_fits == [6]
    alone = replace(settings, together="never")
    apart = fit_all(_bags(), _jobs_of_seeds(tmp_path / "apart", alone), TASK, "gated-abmil")
    _require_same(apart, together, _bags())
    packed = pack([_bags().features(0)])
    assert not torch.allclose(together[0].head(packed).logits, together[3].head(packed).logits, atol=1e-3)


def test_a_repeat_is_the_training_of_its_seed_with_the_order_seed_of_the_first(tmp_path: Path) -> None:
    first, second = _jobs_of_seeds(tmp_path / "repeats", QUICK)[::3]
    alone = second._replace(settings=replace(QUICK, seed=1, order_seed=0, together="never"), folder=tmp_path / "alone")
    _require_same(
        [fit_all(_bags(), [first, second], TASK, "mean")[1]], fit_all(_bags(), [alone], TASK, "mean"), _bags()
    )


def test_seeds_with_orders_of_their_own_go_apart(tmp_path: Path, joint_fits: list[int]) -> None:
    seeds = [replace(QUICK, seed=seed, epochs=1) for seed in (0, 1)]
    jobs = [job for one in seeds for job in _jobs(tmp_path / str(one.seed), one)]
    fits = fit_all(_bags(), jobs[::2] + jobs[1::2], TASK, "mean")
    assert joint_fits == [3, 3]
    assert len(fits) == 6


def _sizes(total: int, longer: int, settings: TrainSettings, folder: Path, jobs: int = 6) -> list[int]:
    """How many of several fits share each pass where there is so much memory and bags are so many times longer."""
    bags = BagDataset([torch.randn(n * longer, 6) for n in LENGTHS], TRUTH)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pathfm.grouping.total_bytes", lambda device: total)
        groups = group_jobs(bags, _jobs_of_seeds(folder, settings)[:jobs], TASK, "gated-abmil")
    assert sorted(at for group in groups for at in group) == list(range(jobs))
    return [len(group) for group in groups]


@pytest.mark.parametrize("jobs", [5, 6])
def test_no_more_fits_share_a_pass_than_memory_holds_and_passes_are_as_even_as_can_be(
    tmp_path: Path, jobs: int
) -> None:
    found = [_sizes(2**power, 1, QUICK, tmp_path, jobs) for power in range(8, 24)]
    assert found[0] == [1] * jobs
    assert found[-1] == [jobs]
    assert any(1 < sizes[0] < jobs for sizes in found)
    assert all(max(sizes) - min(sizes) <= 1 for sizes in found)
    assert [sizes[0] for sizes in found] == sorted(sizes[0] for sizes in found)


def _needed(longer: int, folder: Path, settings: TrainSettings = QUICK) -> int:
    """The least power of 2, in bytes, with which six fits share a pass."""
    return next(total for total in (2**power for power in range(40)) if _sizes(total, longer, settings, folder) == [6])


def test_what_a_pass_takes_grows_with_the_longest_bag_and_not_with_what_is_not_drawn(tmp_path: Path) -> None:
    assert _needed(400, tmp_path) * 3 < _needed(3200, tmp_path) < _needed(400, tmp_path) * 17
    assert _needed(3200, tmp_path, replace(QUICK, bag_size=400 * 13)) > _needed(400, tmp_path), "of bags to stop on"
    nowhere = replace(QUICK, bag_size=400 * 13, stop_share=0.0)
    bags = BagDataset([torch.randn(n * 3200, 6) for n in LENGTHS], TRUTH)
    jobs = [job._replace(rows=Rows(job.rows.learn, [])) for job in _jobs_of_seeds(tmp_path, nowhere)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pathfm.grouping.total_bytes", lambda device: _needed(400, tmp_path))
        assert len(group_jobs(bags, jobs, TASK, "gated-abmil")) == 1


def test_folds_of_which_two_are_too_many_for_memory_go_apart(
    tmp_path: Path, joint_fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        message = "CUDA out of memory"
        raise torch.OutOfMemoryError(message)

    monkeypatch.setattr("pathfm.grouping.StackedHead.learn", full)
    fits = fit_all(_bags(), _jobs(tmp_path, replace(QUICK, epochs=1)), TASK, "mean")
    assert (len(fits), joint_fits) == (3, [])


def test_folds_of_bags_without_instances_are_fitted_together(tmp_path: Path, joint_fits: list[int]) -> None:
    bags = BagDataset([torch.zeros(0, 6) for _ in LENGTHS], TRUTH)
    fit_all(bags, _jobs(tmp_path, replace(QUICK, epochs=1)), TASK, "gated-abmil")
    assert joint_fits == [3]


@pytest.mark.parametrize(
    "settings",
    [replace(QUICK, batch_size=2), replace(QUICK, balanced_sampling=True), replace(QUICK, together="never")],
)
def test_what_cannot_or_may_not_go_together_goes_apart(
    tmp_path: Path, settings: TrainSettings, joint_fits: list[int]
) -> None:
    fit_all(_bags(), _jobs(tmp_path, replace(settings, epochs=1), folds=2), TASK, "mean")
    assert joint_fits == []


def test_by_itself_it_takes_together_what_that_makes_faster(
    tmp_path: Path, joint_fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, epochs=1, together="auto")
    fit_all(_bags(), _jobs(tmp_path / "two", settings, folds=2), TASK, "mean")
    fit_all(_bags(), _jobs(tmp_path / "wide", replace(settings, hidden=32_000), folds=4), TASK, "mean")
    assert joint_fits == []
    fit_all(_bags(), _jobs(tmp_path / "four", settings, folds=4), TASK, "mean")
    assert joint_fits == [4]
    monkeypatch.setattr("pathfm.grouping._FEW_PRODUCTS", 100)  # as if bags were long
    fit_all(_bags(), _jobs(tmp_path / "long", settings, folds=4), TASK, "mean")
    assert joint_fits == [4]


@pytest.mark.parametrize(("landmarks", "fits"), [(256, []), (16, [4])])
def test_by_itself_it_counts_what_tokens_have_to_do_with_each_other(
    tmp_path: Path, joint_fits: list[int], landmarks: int, fits: list[int]
) -> None:
    bags = BagDataset([torch.randn(300, 6) for _ in range(8)], TRUTH[:8])
    settings = replace(QUICK, epochs=1, together="auto", head_options={"landmarks": landmarks})
    jobs = [Job(Rows([0, 1, 2, 3 + fold], [7]), settings, tmp_path / str(fold), f"fold {fold}") for fold in range(4)]
    fit_all(bags, jobs, TASK, "transmil")
    assert joint_fits == fits


def test_targets_that_the_training_rows_decide_go_apart(
    tmp_path: Path, joint_fits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    values = np.arange(15, dtype=np.float32)[:, None]
    task, jobs = Task((Regression("size"),)), _jobs(tmp_path, replace(QUICK, epochs=1), folds=2)
    fit_all(_bags(values), jobs, task, "mean")
    assert joint_fits == []
    assert "the training rows of each fold decide its targets" in caplog.text


class HalfFrozen(Pooling):
    """A head of somebody's own of which a part is not trained, and a part is used twice."""

    paper = "none"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(dim, dim).requires_grad_(requires_grad=False), nn.Linear(dim, dim)
        self.again = self.twice
        self.classifier = nn.Linear(dim, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        hidden = self.again(torch.tanh(self.twice(torch.tanh(self.first(bags.features)))))
        means = torch.stack([part.mean(0) for part in hidden.split(bags.lengths.tolist())])
        return HeadOutput(self.classifier(means), None)


def test_what_a_head_does_not_train_stays_and_what_it_uses_twice_stays_one(
    tmp_path: Path, joint_fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "half-frozen", HalfFrozen)
    apart, together = _both(tmp_path, QUICK, "half-frozen")
    assert joint_fits == [3]
    _require_same(apart, together, _bags())
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(
            one.head.state_dict()["pooling.first.weight"], other.head.state_dict()["pooling.first.weight"]
        )


class Branching(Pooling):
    """A head of somebody's own that branches on its numbers."""

    paper = "none"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        logits = torch.stack([self.classifier(part.mean(0)) for part in bags.features.split(bags.lengths.tolist())])
        return HeadOutput(-logits if logits.sum() > 0 else logits, None)


def test_a_head_that_cannot_be_stacked_goes_apart_and_the_log_says_why(
    tmp_path: Path, joint_fits: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pathfm")
    monkeypatch.setitem(HEADS, "branching", Branching)
    fits = fit_all(_bags(), _jobs(tmp_path, replace(QUICK, epochs=1), folds=2), TASK, "branching")
    assert joint_fits == []
    assert [one.epochs for one in fits] == [3, 1]
    assert "branching cannot be stacked" in caplog.text


def _log(folder: Path, run: str) -> list[dict[str, str]]:
    with (folder / "logs" / run / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
