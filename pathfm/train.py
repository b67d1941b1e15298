"""Training: a cohort and its embeddings to a model directory."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import Any, Literal

import numpy as np
import pandas as pd

from pathfm.bags import BagDataset
from pathfm.cohort import read_cohort
from pathfm.errors import InputError, ModelError
from pathfm.files import write_json
from pathfm.fit import Fit, SlideClassifier, fingerprint, fit
from pathfm.folds import carve_stopping
from pathfm.labelled import LabelledSlides, LeftOut, labelled_slides
from pathfm.licences import require_permissive, warn_of_restrictions
from pathfm.model import Model, read_model, write_model
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.scoring import metrics_document, no_controls, score_table, summary, write_table
from pathfm.settings import TrainSettings

__all__ = [
    "Fit",
    "SlideClassifier",
    "TrainSettings",
    "Trained",
    "fit",
    "fit_model",
    "heed_licences",
    "stopping_rows",
    "train",
]

NO_SPLIT = "no_split"
# Slides are held in memory as float32 up to here; above, they are read from disk each epoch.
_KEEP_BYTES = 2 << 30


@dataclass(frozen=True)
class Trained:
    """What `train` leaves behind; prints as a few lines.

    Attributes:
        folder: the model directory.
        model: the model.
        predictions: predictions.csv, whose column split says which rows are held out.
        metrics: metrics.json; its figures are null where no patient was held out.
    """

    folder: Path
    model: Model
    predictions: pd.DataFrame
    metrics: dict[str, Any]

    def __str__(self) -> str:
        return f"{summary(self.metrics)}\nmodel: {self.folder}"


def train(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    head: str = "gated-abmil",
    training: TrainSettings = TrainSettings(),
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> Trained:
    """Trains one model into a model directory, with predictions.csv and metrics.json beside it.

    With a column `split`, the model learns from the train rows, stops on the val rows, and its figures are those of the
    test rows. Without one it learns from all labelled slides, and there are no figures: scores of slides that a model
    has seen say nothing about it.

    Args:
        cohort: the cohort table, CSV.
        embeddings: the folder that extract wrote, or one recipe folder in it; of several, each of another backbone, the
            head reads the embeddings side by side in this order.
        label: the label column.
        out: the model directory.
        head: "gated-abmil" or "mean".
        training: how the head is trained.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort or the settings cannot be used; patients on both sides of a split are refused.
        EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        LicenceError: a licence that `require_license` does not allow.
    """
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        slides = labelled_slides(read_cohort(cohort, names), embeddings, label)
        heed_licences(slides, require_license)
        split = _split(slides, training)
        model = fit_model(slides, split == "train", split == "val", head, training, out, what=f"train {label}")
        table = slides.table.assign(split=split)[split != ""]
        predictions = score_table(model, table, "split")
        metrics = _metrics(slides, split, predictions)
        write_table(out / "predictions.csv", predictions)
        write_json(out / "metrics.json", metrics)
        write_model(out, replace(model, figures=metrics if metrics["slide"] else None))
        return Trained(out, model, predictions, metrics)


def fit_model(
    slides: LabelledSlides,
    learn: pd.Series[bool],
    stop: pd.Series[bool],
    head: str,
    settings: TrainSettings,
    folder: Path,
    *,
    epochs: int | None = None,
    what: str = "train",
) -> Model:
    """Fits a head and writes it as a model directory; weights that are there for the same inputs are taken.

    What model.json says of label, classes, recipe, patients and slides is always that of the slides given.

    Args:
        slides: the labelled slides.
        learn: which rows of `slides.table` to learn from.
        stop: which rows decide when to stop; rows that cannot be used do not count in either.
        head: a row of `heads.HEADS`.
        settings: how.
        folder: the model directory; also holds the checkpoint and the logs of the fit.
        epochs: stop after so many of `settings.epochs`.
        what: the step in the user's words.
    """
    usable = slides.table["reason"] == ""
    rows, stopping_rows = slides.table[learn & usable], slides.table[stop & usable]
    _require_every_class(slides, rows)
    training_set, stopping_set = _bags(rows, slides.dim), _bags(stopping_rows, slides.dim)
    n_classes = len(slides.classes)
    wanted = fingerprint(training_set, stopping_set, n_classes, head, settings, epochs)
    done = _finished(folder, wanted)
    if done is None:
        (folder / "model.json").unlink(missing_ok=True)
        fitted = fit(training_set, stopping_set, n_classes, head, settings, folder, epochs=epochs, what=what)
    else:
        logger.info("%s: done before with the same inputs, taken from %s", what, folder)
        fitted = Fit(done.head, done.training["epochs"], done.training["stopped_early"])
    model = Model(
        head=fitted.head,
        label=slides.label,
        classes=slides.classes,
        recipe=slides.recipe,
        licences=slides.licences,
        training=_record(rows, stopping_rows, fitted, settings) | {"fingerprint": wanted},
    )
    if done is not None and replace(done, figures=None) == model:
        return done
    write_model(folder, model)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return model


def heed_licences(slides: LabelledSlides, require_license: Literal["permissive"] | None) -> None:
    """Says once what a head on these embeddings inherits, or refuses it.

    Raises:
        LicenceError: "permissive" is asked for, and a licence is not, or not known to be.
    """
    if require_license is not None:
        require_permissive(slides.licences, f"training on {slides.recipe['backbone']['name']}")
    warn_of_restrictions(slides.licences)


def stopping_rows(slides: LabelledSlides, learn: pd.Series[bool], settings: TrainSettings) -> pd.Series[bool]:
    """Which of the rows to learn from to set aside for early stopping, by patient; none where they cannot be spared."""
    rows = slides.table[learn & (slides.table["reason"] == "")].set_index("slide_id")
    carved = carve_stopping(rows["patient_id"], rows["target"], settings.stop_share, settings.seed)
    return learn & slides.table["patient_id"].isin(carved)


def _split(slides: LabelledSlides, settings: TrainSettings) -> pd.Series[str]:
    """Of each row "train", "val", "test", or "" where a cohort with a split does not say."""
    split = slides.table["split"]
    if not (split != "").any():
        split = pd.Series("train", index=split.index)
    if not ((split == "val") & (slides.table["reason"] == "")).any():
        split = split.mask(stopping_rows(slides, split == "train", settings), "val")
    return split


def _metrics(slides: LabelledSlides, split: pd.Series[str], predictions: pd.DataFrame) -> dict[str, Any]:
    held_out = predictions[predictions["split"] == "test"]
    unseen = len(held_out) > 0
    warning = "no held-out patients, so no figures; run pathfm crossval, or pathfm evaluate on another cohort"
    unplaced = [LeftOut(str(slide), NO_SPLIT) for slide in slides.table["slide_id"][split == ""]]
    return metrics_document(
        held_out,
        label=slides.label,
        classes=slides.classes,
        protocol="held-out test rows of the cohort's split" if unseen else "none held out",
        left_out=[*slides.left_out, *unplaced],
        controls=no_controls("the controls need cross-validation"),
        warnings=[] if unseen else [warning],
    )


def _bags(rows: pd.DataFrame, dim: int) -> BagDataset:
    keep = int(rows["n_tiles"].sum()) * dim * np.dtype(np.float32).itemsize <= _KEEP_BYTES
    return BagDataset(list(rows["files"]), list(rows["target"]), keep=keep)


def _finished(folder: Path, wanted: str) -> Model | None:
    if not (folder / "model.json").is_file():
        return None
    try:
        model = read_model(folder)
    except ModelError as error:
        logger.warning("%s; training it again", error)
        return None
    return model if model.training["fingerprint"] == wanted else None


def _record(rows: pd.DataFrame, stopping: pd.DataFrame, fitted: Fit, settings: TrainSettings) -> dict[str, Any]:
    """What model.json says of the training; a patient who only decided when to stop has been seen too."""
    seen = pd.concat([rows, stopping])
    return {
        "settings": asdict(settings),
        "seed": settings.seed,
        "epochs": fitted.epochs,
        "stopped_early": fitted.stopped_early,
        "n_slides": len(seen),
        "n_patients": int(seen["patient_id"].nunique()),
        "n_stop_patients": int(stopping["patient_id"].nunique()),
        "patients": sorted(set(seen["patient_id"])),
        "slides": dict(sorted(zip(seen["slide_id"], seen["slide_digest"], strict=True))),
    }


def _require_every_class(slides: LabelledSlides, rows: pd.DataFrame) -> None:
    """A class that nothing was learned of would still get a probability."""
    found = set(rows["target"])
    missing = [name for index, name in enumerate(slides.classes) if index not in found]
    if missing or len(found) < 2:
        message = (
            f"the slides to learn from hold no slide of {slides.label} {', '.join(missing) or 'but one class'};"
            " label more of them, empty the label of that class, or see the column split and --folds"
        )
        raise InputError(message)
