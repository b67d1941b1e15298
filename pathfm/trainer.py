"""The Lightning trainer of a fit, and the process around it: its randomness, its silence, and Ctrl-C."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from pathfm.checkpoints import LAST
from pathfm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lightning.pytorch.loggers import Logger

    from pathfm.settings import TrainSettings

_PRECISION: dict[int | str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    32: "32-true",
    "bf16": "bf16-mixed",
    16: "16-mixed",
}


def new_trainer(
    settings: TrainSettings, checkpoints: Path, epochs: int, loggers: list[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """The trainer of a fit, which writes `checkpoints/last.ckpt` after each epoch."""
    saved = ModelCheckpoint(checkpoints, LAST, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False)
    return Trainer(
        accelerator=settings.device,
        devices=settings.devices,
        # processes that end with the fit, so that only one goes on with what the fit is part of
        strategy="ddp_spawn" if settings.devices > 1 else "auto",
        max_epochs=epochs,
        precision=_PRECISION[settings.precision],
        logger=loggers,
        callbacks=[*callbacks, saved],
        plugins=[LightningEnvironment()],  # a training is one process, also inside a SLURM job
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def torch_device(settings: TrainSettings) -> torch.device:
    """The device that a training runs on.

    Raises:
        InputError: there is none such on this machine, or it cannot do what is asked.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = settings.device if settings.device != "auto" else next(name for name in there if there[name])
    if not there[wanted]:
        message = f"no {wanted} device on this machine; pass --training.device auto"
        raise InputError(message)
    if settings.precision == 16 and wanted != "cuda":
        message = (
            f"precision 16 needs a cuda device, this training runs on {wanted}; pass --training.precision 32 or bf16"
        )
        raise InputError(message)
    if wanted != "cpu" and settings.devices > getattr(torch, wanted).device_count():
        message = (
            f"--training.devices is {settings.devices}, but this machine has {getattr(torch, wanted).device_count()}"
        )
        raise InputError(message)
    return torch.device(wanted)


@contextmanager
def undisturbed(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's CPU, keeps Lightning quiet and Ctrl-C Ctrl-C, and gives the caller all of it back as it was.

    Args:
        seed: of the weights, which are drawn on the CPU.
        device: that the steps draw on; CUDA is left alone unless it is that.
    """
    used = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=used), _quiet(), _interruptible():
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tips, hardware lines and advice of Lightning and torch to itself; their errors still come through."""
    chatty = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [one.level for one in chatty]
    for one in chatty:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            # vmap says so where it loops itself, as over torch's own attention on a CPU; what is measured knows it
            warnings.filterwarnings("ignore", "There is a performance drop")
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
