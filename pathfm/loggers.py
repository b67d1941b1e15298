"""Where the losses of a training go: files in its folder, or a service that a group runs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from pathfm.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.settings import LoggerName, TrainSettings

PROJECT = "pathfm"


@contextmanager
def training_loggers(settings: TrainSettings, folder: Path, what: str) -> Iterator[list[Logger]]:
    """The loggers of one fit; a fit that goes on later adds a run to those that are there.

    CSV and TensorBoard write below `folder/logs`. W&B and MLflow do too where the environment names no server, by their
    own variables such as WANDB_MODE and MLFLOW_TRACKING_URI; what they are told is settings, losses and rate.

    Args:
        settings: says which.
        folder: that of the fit.
        what: the step in the user's words; names the run.

    Raises:
        MissingExtraError: a service whose package is not installed.
    """
    logs = folder / "logs"
    run = f"run-{1 + len(list(logs.glob('run-*')))}"
    made = [_logger(name, folder, run, what) for name in settings.loggers]
    for logger in made:
        logger.log_hyperparams(asdict(settings))
    yield made
    for logger in made:
        if isinstance(logger, WandbLogger):  # or the next fit of the process would go on with this run
            logger.experiment.finish()


def _logger(name: LoggerName, folder: Path, run: str, what: str) -> Logger:
    try:
        if name == "csv":
            return CSVLogger(folder, "logs", run)
        if name == "tensorboard":
            return TensorBoardLogger(folder, "logs", run)
        if name == "wandb":
            (folder / "logs" / run).mkdir(parents=True, exist_ok=True)
            return WandbLogger(name=what, save_dir=folder / "logs" / run, project=PROJECT, log_model=False)
        server = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'logs' / 'mlflow.db').absolute()}"
        (folder / "logs" / run).mkdir(parents=True, exist_ok=True)
        return MLFlowLogger(PROJECT, what, tracking_uri=server)
    except ModuleNotFoundError as error:
        what = f"the logger {name}"
        raise MissingExtraError(what, name) from error
