"""Where the losses of a training go: files in its folder, or a service that a group runs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from pathfm.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.settings import LoggerName, TrainSettings

PROJECT = "pathfm"


_SERVER = "MLFLOW_TRACKING_URI"
_UNSAID = {"mlflow.user": PROJECT, "mlflow.source.name": PROJECT, "mlflow.source.git.commit": ""}


@contextmanager
def training_loggers(settings: TrainSettings, folder: Path, what: str) -> Iterator[list[Logger]]:
    """The loggers of one fit; a fit that goes on later adds a run to those that are there, and a failed one ends its own.

    CSV and TensorBoard write below `folder/logs`. W&B and MLflow do too where the environment names no server, by their
    own variables such as WANDB_MODE and MLFLOW_TRACKING_URI. What they are told is settings, losses, rate and the name of
    the step; what they would find out by themselves (command line, paths, packages, git, user, host, load of the machine)
    is switched off, for it may name people.

    Args:
        settings: says which.
        folder: that of the fit.
        what: the step in the user's words; names the run.

    Raises:
        MissingExtraError: a service whose package is not installed.
    """
    logs = folder / "logs"
    run = f"run-{1 + len(list(logs.glob('run-*')))}"
    made: list[Logger] = []
    status = "failed"
    try:
        for name in settings.loggers:
            made.append(_logger(name, folder, run, what))
            made[-1].log_hyperparams(asdict(settings))
        yield made
        status = "success"
    finally:
        for logger in made:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):  # Lightning leaves it open
                logger.experiment.finish(int(status == "failed"))


def _logger(name: LoggerName, folder: Path, run: str, what: str) -> Logger:
    try:
        if name == "csv":
            return CSVLogger(folder, "logs", run)
        if name == "tensorboard":
            return TensorBoardLogger(folder, "logs", run)
        (folder / "logs" / run).mkdir(parents=True, exist_ok=True)
        if name == "wandb":
            return WandbLogger(log_model=False, experiment=_wandb_run(folder / "logs" / run, what))
        return _mlflow_run(folder / "logs", what)
    except ModuleNotFoundError as error:
        what = f"the logger {name}"
        raise MissingExtraError(what, name) from error


def _mlflow_run(folder: Path, what: str) -> MLFlowLogger:
    named = os.environ.get(_SERVER)
    server = named or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    logger = MLFlowLogger(PROJECT, what, tracking_uri=server, tags=dict(_UNSAID))
    try:
        _ = logger.experiment  # starts the run, and sets the variable, which the next fit would take for the user's
    finally:
        os.environ.pop(_SERVER, None)
        os.environ.update({_SERVER: named} if named else {})
    return logger


def _wandb_run(folder: Path, what: str) -> Any:
    """A run of its own, whatever others the process has open; W&B's logger would go on with one of them."""
    import wandb

    silent = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host=PROJECT,
        program=PROJECT,
        program_abspath=PROJECT,
        program_relpath=PROJECT,
        save_code=False,
        username=PROJECT,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return wandb.init(project=PROJECT, name=what, dir=folder, reinit="create_new", settings=silent)
