from __future__ import annotations

import csv
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from pathfm.bags import BagDataset
from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.fit import Fit, Rows, fingerprint, fit
from pathfm.settings import TrainSettings
from pathfm.targets import Classes, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import EmbeddingsCohort

QUICK = TrainSettings(
    epochs=6, hidden=16, attention=8, lr=1e-2, patience=6, min_epochs=1, device="cpu", keep="disk", loggers=["csv"]
)
SHORT = replace(QUICK, epochs=3)
TASK = Task((Classes("cancer", ("0", "1")),))
ROWS = Rows(range(8), range(8, 12))
TRUTH = np.array([[i % 2] for i in range(12)], np.float32)
# the opposite labels to stop on: whatever is learned makes the stopping loss worse
MISLED = np.concatenate([TRUTH[:8], 1 - TRUTH[8:]])


@pytest.fixture
def files(embeddings_cohort: Callable[..., EmbeddingsCohort]) -> list[Path]:
    return sorted(embeddings_cohort(patients=12).folder.glob("*.h5"))


@pytest.fixture
def bags(files: list[Path]) -> BagDataset:
    return BagDataset(files, TRUTH)


def _weights(fitted: Fit) -> Tensor:
    return torch.cat([value.flatten() for value in fitted.head.state_dict().values()])


class InterruptedBags(BagDataset):
    """Bags that are read so often, and then somebody presses Ctrl-C."""

    left = 0

    def features(self, index: int) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().features(index)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(bags: BagDataset, tmp_path: Path) -> None:
    one = fit(bags, ROWS, TASK, "gated-abmil", SHORT, tmp_path / "a")
    torch.rand(7)  # whatever the caller drew before
    two = fit(bags, ROWS, TASK, "gated-abmil", SHORT, tmp_path / "b")
    other = fit(bags, ROWS, TASK, "gated-abmil", replace(SHORT, seed=1), tmp_path / "c")
    assert torch.equal(_weights(one), _weights(two))
    assert not torch.equal(_weights(one), _weights(other))


def test_a_fit_leaves_the_random_numbers_of_its_caller_alone(bags: BagDataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(bags, ROWS, TASK, "mean", SHORT, tmp_path)
    assert torch.equal(torch.rand(3), expected)


VARIANTS = {
    "plain": SHORT,
    "mean of the weights, one cycle": replace(SHORT, ema=0.7, schedule="one-cycle", clip=0.5),
    "drawn bags, drawn instances": replace(QUICK, balanced_sampling=True, bag_size=7, batch_size=2),
    "kept in memory": replace(SHORT, keep="memory", precision="bf16", schedule="constant"),
}


# 8 training and 4 stopping bags: moments, then epochs of 12 reads; 30 reads end inside the second epoch
@pytest.mark.parametrize(("variant", "reads"), [("plain", 3), *((name, 30) for name in VARIANTS)])
def test_a_fit_that_was_interrupted_ends_as_if_it_had_not_been(
    files: list[Path], tmp_path: Path, variant: str, reads: int
) -> None:
    settings = VARIANTS[variant]
    whole = fit(BagDataset(files, TRUTH), ROWS, TASK, "gated-abmil", settings, tmp_path / "whole")
    broken = InterruptedBags(files, TRUTH)
    broken.left = reads
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, ROWS, TASK, "gated-abmil", settings, tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = fit(BagDataset(files, TRUTH), ROWS, TASK, "gated-abmil", settings, tmp_path / "broken")
    assert torch.equal(_weights(whole), _weights(resumed))
    assert whole.epochs == resumed.epochs
    assert all(weight.requires_grad for weight in resumed.head.parameters())  # also those of a running mean


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from pathfm.bags import BagDataset
from pathfm.fit import Rows, fit
from pathfm.settings import TrainSettings
from pathfm.targets import Classes, Task

torch.set_num_threads(int(sys.argv[2]))
class Killed(BagDataset):
    left = 60
    def features(self, index):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().features(index)

files = sorted(Path(sys.argv[1]).glob("*.h5"))
bags = Killed(files, np.array([[i % 2] for i in range(12)], np.float32))
quick = TrainSettings(
    epochs=6, hidden=16, attention=8, lr=1e-2, patience=6, min_epochs=1, device="cpu", keep="disk"
)
fit(bags, Rows(range(8), range(8, 12)), Task((Classes("cancer", ("0", "1")),)), "gated-abmil", quick, Path(sys.argv[3]))
"""


@pytest.mark.long
def test_a_process_killed_in_the_middle_of_an_epoch_is_taken_up_where_it_was(files: list[Path], tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(files[0].parent), str(torch.get_num_threads()), str(tmp_path / "killed")]
    process = subprocess.run(words, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert (tmp_path / "killed/checkpoints/last.ckpt").is_file()
    bags = BagDataset(files, TRUTH)
    resumed = fit(bags, ROWS, TASK, "gated-abmil", QUICK, tmp_path / "killed")
    whole = fit(bags, ROWS, TASK, "gated-abmil", QUICK, tmp_path / "whole")
    print(f"killed once, {whole.epochs} epochs")
    assert torch.equal(_weights(whole), _weights(resumed))
    epochs = [int(row["epoch"]) for row in _log(tmp_path / "killed", "run-2")]
    assert min(epochs) == 4  # 8 reads for the moments, 48 for epochs 0 to 3: they are not run again


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_checkpoint_is_no_reason_never_to_train_again(bags: BagDataset, tmp_path: Path, share: float) -> None:
    whole = fit(bags, ROWS, TASK, "gated-abmil", SHORT, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    assert torch.equal(_weights(fit(bags, ROWS, TASK, "gated-abmil", SHORT, tmp_path)), _weights(whole))


def test_what_another_training_left_is_not_gone_on_from(files: list[Path], bags: BagDataset, tmp_path: Path) -> None:
    fit(bags, ROWS, TASK, "gated-abmil", SHORT, tmp_path / "used")
    flipped = BagDataset(files, 1 - TRUTH)
    fresh = fit(flipped, ROWS, TASK, "gated-abmil", SHORT, tmp_path / "fresh")
    again = fit(flipped, ROWS, TASK, "gated-abmil", SHORT, tmp_path / "used")
    assert torch.equal(_weights(again), _weights(fresh))


def test_the_fingerprint_follows_what_decides_the_weights_and_nothing_else(files: list[Path], bags: BagDataset) -> None:
    wanted = fingerprint(bags, ROWS, TASK, "mean", QUICK)
    elsewhere = replace(QUICK, device="auto", keep="memory", loggers=["csv"], together="never")
    assert fingerprint(bags, ROWS, TASK, "mean", elsewhere) == wanted
    others = [
        fingerprint(bags, Rows(range(8), []), TASK, "mean", QUICK),
        fingerprint(bags, Rows(range(7), range(8, 12)), TASK, "mean", QUICK),
        fingerprint(bags, ROWS, Task((Classes("cancer", ("0", "1", "2")),)), "mean", QUICK),
        fingerprint(bags, ROWS, TASK, "gated-abmil", QUICK),
        fingerprint(bags, ROWS, TASK, "mean", replace(QUICK, lr=1e-3)),
        fingerprint(bags, ROWS, TASK, "mean", replace(QUICK, head_options={"k": 4})),
        fingerprint(bags, ROWS, TASK, "mean", QUICK, epochs=3),
        fingerprint(BagDataset(files[::-1], TRUTH), ROWS, TASK, "mean", QUICK),
        fingerprint(BagDataset(files, TRUTH[::-1].copy()), ROWS, TASK, "mean", QUICK),
        fingerprint(BagDataset(files, TRUTH, np.zeros((12, 1), np.float32)), ROWS, TASK, "mean", QUICK),
    ]
    assert len({wanted, *others}) == 1 + len(others)


def test_training_stops_after_its_patience_and_keeps_the_best_epoch(files: list[Path], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=40, patience=3)
    bags = BagDataset(files, MISLED)
    fitted = fit(bags, ROWS, TASK, "gated-abmil", settings, tmp_path)
    losses = [float(row["stop_loss"]) for row in _log(tmp_path, "run-1") if row["stop_loss"]]
    assert fitted.stopped_early
    assert fitted.epochs == 1 + int(np.argmin(losses))
    assert len(losses) == fitted.epochs + 3
    again = fit(bags, ROWS, TASK, "gated-abmil", settings, tmp_path)
    assert torch.equal(_weights(again), _weights(fitted))
    assert again[1:] == fitted[1:]


def test_no_epoch_before_the_first_that_counts_is_kept_or_stopped_at(files: list[Path], tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=40, patience=3, min_epochs=9)
    fitted = fit(BagDataset(files, MISLED), ROWS, TASK, "gated-abmil", settings, tmp_path)
    losses = [float(row["stop_loss"]) for row in _log(tmp_path, "run-1") if row["stop_loss"]]
    assert fitted.epochs == 9 + int(np.argmin(losses[8:]))
    assert fitted.epochs != 1 + int(np.argmin(losses))
    assert len(losses) == fitted.epochs + 3


def test_without_stopping_slides_all_epochs_are_run(bags: BagDataset, tmp_path: Path) -> None:
    whole = fit(bags, Rows(range(8), []), TASK, "mean", QUICK, tmp_path / "a")
    two = fit(bags, Rows(range(8), []), TASK, "mean", QUICK, tmp_path / "b", epochs=2)
    assert (whole.epochs, whole.stopped_early, two.epochs, two.stopped_early) == (6, False, 2, False)


def test_fewer_epochs_are_the_first_of_more(bags: BagDataset, tmp_path: Path) -> None:
    for schedule in ("cosine", "one-cycle"):
        settings = replace(QUICK, schedule=schedule)
        fit(bags, Rows(range(8), []), TASK, "mean", settings, tmp_path / schedule / "six")
        fit(bags, Rows(range(8), []), TASK, "mean", settings, tmp_path / schedule / "two", epochs=2)
        six, two = (_log(tmp_path / schedule / name, "run-1") for name in ("six", "two"))
        assert two == six[: len(two)]


def test_the_log_has_the_losses_and_rate_of_each_epoch_as_csv_and_for_tensorboard(
    bags: BagDataset, tmp_path: Path
) -> None:
    fit(bags, ROWS, TASK, "mean", replace(QUICK, loggers=["csv", "tensorboard"]), tmp_path)
    rows = _log(tmp_path, "run-1")
    for column in ("train_loss", "stop_loss", "lr"):
        assert len([row for row in rows if row[column]]) == 6
    assert float(next(row["lr"] for row in rows if row["lr"])) == pytest.approx(1e-2)
    assert list((tmp_path / "logs/run-1").glob("events.out.tfevents*"))


def test_training_says_nothing_of_lightning(
    bags: BagDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(bags, ROWS, TASK, "mean", SHORT, tmp_path)
    out, err = capfd.readouterr()
    assert "Tip" not in out + err
    assert "available" not in out + err


def test_the_standardisation_sees_the_training_slides_only(bags: BagDataset, tmp_path: Path) -> None:
    head = fit(bags, ROWS, TASK, "mean", SHORT, tmp_path).head
    tiles = torch.cat([bags.features(i) for i in range(8)])
    torch.testing.assert_close(head.state_dict()["pooling.hidden.mean"], tiles.mean(0))


def test_a_training_that_diverges_is_an_error_that_says_what_to_lower(bags: BagDataset, tmp_path: Path) -> None:
    wild = replace(QUICK, lr=1.0, weight_decay=1e9)
    with pytest.raises(ModelError, match=r"--training\.lr"):
        fit(bags, Rows(range(8), []), TASK, "mean", wild, tmp_path)


def test_an_unknown_head_is_named_before_anything_is_written(bags: BagDataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="mean"):
        fit(bags, ROWS, TASK, "maen", QUICK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_machine_cannot_do_is_an_error_that_names_the_setting(bags: BagDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--training\.precision 32"):
        fit(bags, ROWS, TASK, "mean", replace(QUICK, precision=16), tmp_path)


def test_drawing_instances_says_what_it_costs(
    bags: BagDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pathfm")
    fit(bags, ROWS, TASK, "gated-abmil", replace(SHORT, bag_size=6), tmp_path)
    assert "a step sees 20 % of the instances" in caplog.text
    assert "whole" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("lr", 2.0), ("dropout", 1.0), ("stop_share", 0.9), ("batch_size", 0),
     ("seed", -1), ("weight_decay", -1.0), ("patience", 0), ("hidden", 0), ("clip", 0.0), ("ema", 1.0), ("bag_size", 0),
     ("devices", 0)],
)  # fmt: skip
def test_settings_out_of_range_name_their_flag(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"--training\.{field} is "):
        TrainSettings(**{field: value})


def _log(folder: Path, run: str) -> list[dict[str, str]]:
    with (folder / "logs" / run / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
