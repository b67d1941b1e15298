"""Fitting one head: a Lightning module that any `Trainer` takes, and the settings, checkpoints and stopping around it."""

from __future__ import annotations

import copy
import logging
import shutil
import signal
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pathfm.bags import BagDataset, Batch, collate
from pathfm.embeddings import features_sha256
from pathfm.epochs import BestEpoch, EpochOrder, EveryEpoch
from pathfm.errors import InputError, ModelError
from pathfm.files import canonical_json, sha256_text, write_text
from pathfm.heads import Head, build_head
from pathfm.progress import logger
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pathfm.settings import TrainSettings

LAST = "last"


class Fit(NamedTuple):
    """A fitted head.

    Attributes:
        head: on the CPU, in evaluation mode, with the weights of the best epoch (the last without stopping slides).
        epochs: epochs that these weights took.
        stopped_early: whether the stopping slides ended the training before its last epoch.
    """

    head: Head
    epochs: int
    stopped_early: bool


class SlideClassifier(LightningModule):
    """A head, its loss and its optimiser, for `lightning.Trainer` and a `DataLoader` of a `BagDataset` with `collate`.

    The loss is cross-entropy, each slide weighted by its class and averaged over slides (not over weights, which
    would undo them at one slide a step). Logs `train_loss`, `stop_loss` and `lr` each epoch.
    """

    def __init__(self, head: Head, settings: TrainSettings, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.head, self.settings = head, settings
        weights = torch.ones(head.n_classes) if class_weights is None else class_weights.float()
        self.register_buffer("class_weights", weights)

    def loss(self, batch: Batch) -> Tensor:
        """Mean weighted cross-entropy of a batch, a scalar."""
        bags, labels = batch
        losses = functional.cross_entropy(self.head(bags).logits, labels, reduction="none")
        return (losses * self.get_buffer("class_weights")[labels]).mean()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; the loss is also logged."""
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Logs the loss on the stopping slides."""
        self.log("stop_loss", self.loss(batch), on_epoch=True, batch_size=len(batch.labels))

    def on_train_epoch_start(self) -> None:
        """Logs the learning rate of the epoch."""
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        """AdamW, its rate falling along a cosine over all epochs of the settings."""
        settings = self.settings
        optimizer = torch.optim.AdamW(self.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def fit(
    training_set: BagDataset,
    stopping_set: BagDataset | None,
    n_classes: int,
    head: str,
    settings: TrainSettings,
    folder: Path,
    *,
    epochs: int | None = None,
    what: str = "train",
) -> Fit:
    """Fits a head; interrupted and called again with the same inputs, it goes on from the last epoch it finished.

    The same inputs and seed give bit-identical weights on a CPU with the same number of threads, interrupted or not.

    Args:
        training_set: labelled slides to learn from.
        stopping_set: labelled slides of other patients, whose loss picks the epoch; None trains all epochs.
        n_classes: number of classes.
        head: a row of `heads.HEADS`.
        settings: how.
        folder: gets `checkpoints/` and `logs/` (CSV and TensorBoard).
        epochs: stop after so many of `settings.epochs`, the learning rate falling as if it went on.
        what: the step in the user's words, for the progress bar.

    Raises:
        UnknownNameError: no such head.
        ModelError: the training diverged.
    """
    _require_device(settings.device)
    wanted = fingerprint(training_set, stopping_set, n_classes, head, settings, epochs)
    with _own_randomness(settings.seed):
        module = SlideClassifier(
            build_head(head, training_set.features(0).shape[1], n_classes, **settings.head_kwargs()),
            settings,
            class_weights(training_set.labels, n_classes) if settings.class_weights else None,
        )
        checkpoint = _checkpoint(folder / "checkpoints", wanted)
        if checkpoint is None:
            module.head.standardiser.fit(training_set.features(i) for i in range(len(training_set)))
        first = min(settings.min_epochs, epochs or settings.epochs)
        best = BestEpoch(settings.patience, first) if stopping_set else None
        with _quiet(), _interruptible():
            trainer = _trainer(settings, folder, epochs or settings.epochs, [EveryEpoch(settings.seed, what), best])
            trainer.fit(
                module,
                _loader(training_set, settings, EpochOrder(len(training_set), settings.seed)),
                _loader(stopping_set, settings) if stopping_set else None,
                ckpt_path=checkpoint,
                weights_only=True,
            )
    return _fitted(module, best, trainer.current_epoch, epochs or settings.epochs)


def fingerprint(
    training_set: BagDataset,
    stopping_set: BagDataset | None,
    n_classes: int,
    head: str,
    settings: TrainSettings,
    epochs: int | None = None,
) -> str:
    """Hex digest of all that decides the weights of a fit: features and labels in order, settings, head, version."""
    how = {key: value for key, value in asdict(settings).items() if key != "device"}
    sets = [
        [("+".join(map(features_sha256, files)), label) for files, label in zip(one.files, one.labels, strict=True)]
        if one
        else []
        for one in (training_set, stopping_set)
    ]
    return sha256_text(canonical_json([__version__, head, n_classes, how, epochs, *sets]))


def class_weights(labels: Sequence[int], n_classes: int) -> Tensor:
    """Inverse class frequencies, float32 (c,), of mean 1 over the slides; 0 for a class without slides."""
    counts = torch.bincount(torch.tensor(labels), minlength=n_classes)
    return torch.where(counts > 0, len(labels) / (max(int((counts > 0).sum()), 1) * counts.clamp(min=1)), 0.0)


def _loader(bags: BagDataset, settings: TrainSettings, order: EpochOrder | None = None) -> DataLoader[Any]:
    # The main process reads: a memory map is faster than handing tensors from worker to worker. A loader draws a number
    # whenever it is started, and a resumed fit starts it at another moment: so it draws from a generator of its own.
    return DataLoader(
        bags, batch_size=settings.batch_size, sampler=order, collate_fn=collate, generator=torch.Generator()
    )


def _trainer(settings: TrainSettings, folder: Path, epochs: int, callbacks: list[Callback | None]) -> Trainer:
    logs = folder / "logs"
    run = f"run-{1 + len(list(logs.glob('run-*')))}"  # a resumed training adds to its logs
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", LAST, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return Trainer(
        accelerator=settings.device,
        devices=1,
        max_epochs=epochs,
        logger=[CSVLogger(folder, "logs", run), TensorBoardLogger(folder, "logs", run)],
        callbacks=[*filter(None, callbacks), checkpoints],
        plugins=[LightningEnvironment()],  # a training is one process, also inside a SLURM job
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def _checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from; what another training left is removed."""
    stated, last = folder / "fingerprint.txt", folder / f"{LAST}.ckpt"
    if stated.is_file() and stated.read_text(encoding="utf-8").strip() == wanted:
        return last if last.is_file() and _is_whole(last) else None
    shutil.rmtree(folder, ignore_errors=True)
    write_text(stated, wanted + "\n")
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read; one that was cut off while it was written is no reason never to train again."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, ValueError, UnpicklingError):
        logger.warning("%s is damaged; this training starts again", checkpoint)
        return False
    return True


def _require_device(device: str) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        message = f"no {device} device on this machine; pass --training.device auto"
        raise InputError(message)


def _fitted(module: SlideClassifier, best: BestEpoch | None, ran: int, asked: int) -> Fit:
    head = copy.deepcopy(module.head).cpu()
    if best is not None and best.weights:
        head.load_state_dict(best.weights)
    if not all(torch.isfinite(value).all() for value in head.state_dict().values()):
        message = "the training diverged: a weight is not finite; lower --training.lr"
        raise ModelError(message)
    return Fit(head.eval(), best.epochs if best is not None and best.weights else ran, ran < asked)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds torch for the fit and gives the caller's generators back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's tips, hardware lines and advice to itself; its errors still come through."""
    chatty = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [one.level for one in chatty]
    for one in chatty:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for one, level in zip(chatty, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays Ctrl-C: Lightning turns it into exit code 1 and leaves the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from stop
        raise
