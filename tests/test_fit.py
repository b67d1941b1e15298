from __future__ import annotations

import csv
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from pathfm.bags import Bag, BagDataset, collate
from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.fit import Fit, SlideClassifier, class_weights, fingerprint, fit
from pathfm.heads import build_head, pack
from pathfm.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import EmbeddingsCohort

QUICK = TrainSettings(epochs=6, hidden=16, attention=8, lr=1e-2, patience=6, min_epochs=1, device="cpu")
Sets = tuple[BagDataset, BagDataset]


@pytest.fixture
def sets(embeddings_cohort: Callable[..., EmbeddingsCohort]) -> Sets:
    cohort = embeddings_cohort(patients=12)
    files = sorted(cohort.folder.glob("*.h5"))
    labels = [i % 2 for i in range(12)]
    return BagDataset(files[:8], labels[:8]), BagDataset(files[8:], labels[8:])


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


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(sets: Sets, tmp_path: Path) -> None:
    training, stopping = sets
    one = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "a")
    torch.rand(7)  # whatever the caller drew before
    two = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "b")
    other = fit(training, stopping, 2, "gated-abmil", TrainSettings(**{**vars(QUICK), "seed": 1}), tmp_path / "c")
    assert torch.equal(_weights(one), _weights(two))
    assert not torch.equal(_weights(one), _weights(other))


def test_a_fit_leaves_the_random_numbers_of_its_caller_alone(sets: Sets, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(*sets, 2, "mean", QUICK, tmp_path)
    assert torch.equal(torch.rand(3), expected)


# 4 passes over 8 training slides: standardiser, then epochs; 30 reads end inside the third epoch
@pytest.mark.parametrize("reads", [3, 9, 30, 50])
def test_a_fit_that_was_interrupted_ends_as_if_it_had_not_been(sets: Sets, tmp_path: Path, reads: int) -> None:
    training, stopping = sets
    whole = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "whole")
    broken = InterruptedBags(training.files, training.labels)
    broken.left = reads
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, stopping, 2, "gated-abmil", QUICK, tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "broken")
    assert torch.equal(_weights(whole), _weights(resumed))
    assert whole.epochs == resumed.epochs


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pathfm.bags import BagDataset
from pathfm.fit import fit
from pathfm.settings import TrainSettings

torch.set_num_threads(int(sys.argv[2]))
class Killed(BagDataset):
    left = 44
    def features(self, index):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().features(index)

files = sorted(Path(sys.argv[1]).glob("*.h5"))
training = Killed(files[:8], [i % 2 for i in range(8)])
stopping = BagDataset(files[8:], [i % 2 for i in range(8, 12)])
quick = TrainSettings(epochs=6, hidden=16, attention=8, lr=1e-2, patience=6, min_epochs=1, device="cpu")
fit(training, stopping, 2, "gated-abmil", quick, Path(sys.argv[3]))
"""


def test_a_process_killed_in_the_middle_of_an_epoch_is_taken_up_where_it_was(sets: Sets, tmp_path: Path) -> None:
    training, stopping = sets
    folder = str(training.files[0][0].parent)
    words = [sys.executable, "-c", KILLED, folder, str(torch.get_num_threads()), str(tmp_path / "killed")]
    process = subprocess.run(words, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert (tmp_path / "killed/checkpoints/last.ckpt").is_file()
    resumed = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "killed")
    whole = fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "whole")
    assert torch.equal(_weights(whole), _weights(resumed))
    epochs = [int(row["epoch"]) for row in _log(tmp_path / "killed", "run-2")]
    assert min(epochs) == 4  # 8 reads for the standardiser, 32 for epochs 0 to 3: they are not run again


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_checkpoint_is_no_reason_never_to_train_again(sets: Sets, tmp_path: Path, share: float) -> None:
    whole = fit(*sets, 2, "gated-abmil", QUICK, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    assert torch.equal(_weights(fit(*sets, 2, "gated-abmil", QUICK, tmp_path)), _weights(whole))


def test_what_another_training_left_is_not_gone_on_from(sets: Sets, tmp_path: Path) -> None:
    training, stopping = sets
    fit(training, stopping, 2, "gated-abmil", QUICK, tmp_path / "used")
    flipped = BagDataset(training.files, [1 - label for label in training.labels])
    fresh = fit(flipped, stopping, 2, "gated-abmil", QUICK, tmp_path / "fresh")
    assert torch.equal(_weights(fit(flipped, stopping, 2, "gated-abmil", QUICK, tmp_path / "used")), _weights(fresh))


def test_the_fingerprint_follows_what_decides_the_weights_and_nothing_else(sets: Sets) -> None:
    training, stopping = sets
    wanted = fingerprint(training, stopping, 2, "mean", QUICK)
    assert fingerprint(training, stopping, 2, "mean", TrainSettings(**{**vars(QUICK), "device": "auto"})) == wanted
    others = [
        fingerprint(training, None, 2, "mean", QUICK),
        fingerprint(training, stopping, 3, "mean", QUICK),
        fingerprint(training, stopping, 2, "gated-abmil", QUICK),
        fingerprint(training, stopping, 2, "mean", TrainSettings(**{**vars(QUICK), "lr": 1e-3})),
        fingerprint(training, stopping, 2, "mean", QUICK, epochs=3),
        fingerprint(BagDataset(training.files[::-1], training.labels), stopping, 2, "mean", QUICK),
        fingerprint(BagDataset(training.files, training.labels[::-1]), stopping, 2, "mean", QUICK),
    ]
    assert len({wanted, *others}) == 1 + len(others)


def test_training_stops_after_its_patience_and_keeps_the_best_epoch(sets: Sets, tmp_path: Path) -> None:
    training, _ = sets
    # the opposite labels: whatever is learned makes the stopping loss worse
    opposite = BagDataset(training.files, [1 - label for label in training.labels])
    settings = TrainSettings(**{**vars(QUICK), "epochs": 40, "patience": 3})
    fitted = fit(training, opposite, 2, "gated-abmil", settings, tmp_path)
    losses = [float(row["stop_loss"]) for row in _log(tmp_path, "run-1") if row["stop_loss"]]
    assert fitted.stopped_early
    assert fitted.epochs == 1 + int(np.argmin(losses))
    assert len(losses) == fitted.epochs + 3
    again = fit(training, opposite, 2, "gated-abmil", settings, tmp_path)
    assert torch.equal(_weights(again), _weights(fitted))
    assert again[1:] == fitted[1:]


def test_no_epoch_before_the_first_that_counts_is_kept_or_stopped_at(sets: Sets, tmp_path: Path) -> None:
    opposite = BagDataset(sets[0].files, [1 - label for label in sets[0].labels])
    settings = TrainSettings(**{**vars(QUICK), "epochs": 40, "patience": 3, "min_epochs": 9})
    fitted = fit(sets[0], opposite, 2, "gated-abmil", settings, tmp_path)
    losses = [float(row["stop_loss"]) for row in _log(tmp_path, "run-1") if row["stop_loss"]]
    assert fitted.epochs == 9 + int(np.argmin(losses[8:]))
    assert fitted.epochs != 1 + int(np.argmin(losses))
    assert len(losses) == fitted.epochs + 3


def test_without_stopping_slides_all_epochs_are_run(sets: Sets, tmp_path: Path) -> None:
    assert fit(sets[0], None, 2, "mean", QUICK, tmp_path / "a")[1:] == (6, False)
    assert fit(sets[0], None, 2, "mean", QUICK, tmp_path / "b", epochs=2)[1:] == (2, False)


def test_fewer_epochs_are_the_first_of_more(sets: Sets, tmp_path: Path) -> None:
    fit(sets[0], None, 2, "mean", QUICK, tmp_path / "six")
    fit(sets[0], None, 2, "mean", QUICK, tmp_path / "two", epochs=2)
    six, two = (_log(tmp_path / name, "run-1") for name in ("six", "two"))
    assert two == six[: len(two)]


def test_the_log_has_the_losses_and_rate_of_each_epoch_as_csv_and_for_tensorboard(sets: Sets, tmp_path: Path) -> None:
    fit(*sets, 2, "mean", QUICK, tmp_path)
    rows = _log(tmp_path, "run-1")
    for column in ("train_loss", "stop_loss", "lr"):
        assert len([row for row in rows if row[column]]) == 6
    assert float(next(row["lr"] for row in rows if row["lr"])) == pytest.approx(1e-2)
    assert list((tmp_path / "logs/run-1").glob("events.out.tfevents*"))


def test_training_says_nothing_of_lightning(sets: Sets, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(*sets, 2, "mean", QUICK, tmp_path)
    out, err = capfd.readouterr()
    assert "Tip" not in out + err
    assert "available" not in out + err


def test_the_standardiser_sees_the_training_slides_only(sets: Sets, tmp_path: Path) -> None:
    training, stopping = sets
    head = fit(training, stopping, 2, "mean", QUICK, tmp_path).head
    tiles = torch.cat([training.features(i) for i in range(len(training))])
    torch.testing.assert_close(head.standardiser.mean, tiles.mean(0))


def test_a_training_that_diverges_is_an_error_that_says_what_to_lower(sets: Sets, tmp_path: Path) -> None:
    wild = TrainSettings(**{**vars(QUICK), "lr": 1.0, "weight_decay": 1e9})
    with pytest.raises(ModelError, match=r"--training\.lr"):
        fit(sets[0], None, 2, "mean", wild, tmp_path)


def test_an_unknown_head_is_named_before_anything_is_written(sets: Sets, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="abmil"):
        fit(*sets, 2, "abmil", QUICK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_weights_have_mean_one_over_the_slides_and_undo_imbalance() -> None:
    weights = class_weights([0, 0, 0, 1], 3)
    assert weights.tolist() == pytest.approx([4 / 6, 2, 0])
    assert weights[[0, 0, 0, 1]].mean() == pytest.approx(1)


def test_the_loss_is_weighted_also_at_one_slide_a_step() -> None:
    torch.manual_seed(0)
    head = build_head("mean", 4, 2, hidden=4)
    batch = collate([Bag(torch.randn(3, 4), 1)])
    head.eval()
    plain = SlideClassifier(head, QUICK).loss(batch)
    heavy = SlideClassifier(head, QUICK, torch.tensor([1.0, 5.0])).loss(batch)
    assert heavy.item() == pytest.approx(5 * plain.item())


@pytest.mark.filterwarnings("ignore")  # Lightning's advice to the user
def test_the_module_runs_under_a_trainer_of_the_users_own(sets: Sets, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SlideClassifier(build_head("gated-abmil", 8, 2, hidden=8, attention=4), QUICK)
    before = module.head(pack([sets[0].features(0)])).logits.detach()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(sets[0], batch_size=3, collate_fn=collate))
    assert not torch.equal(module.head(pack([sets[0].features(0)])).logits, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("lr", 2.0), ("dropout", 1.0), ("stop_share", 0.9), ("batch_size", 0),
     ("seed", -1), ("weight_decay", -1.0), ("patience", 0), ("hidden", 0)],
)  # fmt: skip
def test_settings_out_of_range_name_their_flag(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"--training\.{field} is "):
        TrainSettings(**{field: value})


def _log(folder: Path, run: str) -> list[dict[str, str]]:
    with (folder / "logs" / run / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
