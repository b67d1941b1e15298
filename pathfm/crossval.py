"""Cross-validation by patient: every slide scored by a model that has seen neither its patient nor its score."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from pathfm.cohort import read_cohort
from pathfm.controls import controls
from pathfm.files import write_json
from pathfm.folds import assign_folds
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.model import Model, write_model
from pathfm.privacy import private_run
from pathfm.scoring import metrics_document, score_table, summary, write_table
from pathfm.settings import TrainSettings
from pathfm.train import fit_model, heed_licences, stopping_rows

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class CrossValidation:
    """What `crossval` leaves behind; prints as a few lines.

    Attributes:
        folder: holds predictions.csv, metrics.json, folds.csv and folds/<k>/ with the model of each fold.
        predictions: out-of-fold scores of every labelled slide.
        metrics: metrics.json.
        epochs: median of the folds' best epochs, for the refit on all slides.
    """

    folder: Path
    predictions: pd.DataFrame
    metrics: dict[str, Any]
    epochs: int

    def __str__(self) -> str:
        return f"{summary(self.metrics)}\nresults: {self.folder}"


class Fold(NamedTuple):
    """One fold: its model, its out-of-fold predictions, and its entry in metrics.json."""

    model: Model
    predictions: pd.DataFrame
    facts: dict[str, Any]


def crossval(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    folds: int = 5,
    head: str = "gated-abmil",
    training: TrainSettings = TrainSettings(),
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> CrossValidation:
    """Cross-validates a head by patient and writes scores, figures with intervals, and the controls beside them.

    Each fold learns from the other folds' patients, of whom some are set aside to decide when to stop. Run again, folds
    that are done with the same inputs are taken as they are, and an interrupted one goes on.

    Args:
        cohort: the cohort table, CSV.
        embeddings: the folder that extract wrote, or one recipe folder in it; of several, each of another backbone, the
            head reads the embeddings side by side in this order.
        label: the label column.
        out: gets predictions.csv, metrics.json, folds.csv and folds/.
        folds: number of folds, at most the patients of the smallest class.
        head: "gated-abmil" or "mean".
        training: how the head is trained.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort, the folds or the settings cannot be used.
        EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        LicenceError: a licence that `require_license` does not allow.
    """
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        table = read_cohort(cohort, names)
        slides = labelled_slides(table, embeddings, label)
        heed_licences(slides, require_license)
        fold_of = fold_column(slides, folds, training.seed)
        _drop_other_folds(out / "folds", folds)
        write_table(out / "folds.csv", slides.table[["slide_id", "patient_id", "label"]].assign(fold=fold_of))
        done = [fit_fold(slides, fold_of, fold, head, training, out / "folds" / str(fold)) for fold in range(folds)]
        predictions = _in_order(slides, fold_of, done)
        metrics = _metrics(slides, folds, predictions, done, uses_split="split" in table.stated)
        write_table(out / "predictions.csv", predictions)
        write_json(out / "metrics.json", metrics)
        return CrossValidation(out, predictions, metrics, max(1, round(median(one.facts["epochs"] for one in done))))


def refit(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    epochs: int,
    head: str = "gated-abmil",
    training: TrainSettings = TrainSettings(),
    figures: dict[str, Any] | None = None,
    pseudonymise: Path | None = None,
) -> Model:
    """Fits the model to hand on: all labelled slides, nobody set aside, for a number of epochs known from the folds.

    Args:
        cohort: the cohort table, CSV.
        embeddings: as the cross-validation was given, whose warning of licences is not repeated.
        label: the label column.
        out: the model directory.
        epochs: how many of `training.epochs` to run, `CrossValidation.epochs`.
        head: "gated-abmil" or "mean".
        training: how the head is trained, as in the folds.
        figures: metrics.json of the cross-validation, to travel with the model.
        pseudonymise: the key file that extract was given.
    """
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        slides = labelled_slides(read_cohort(cohort, names), embeddings, label)
        every = pd.Series(data=True, index=slides.table.index)
        fitted = fit_model(slides, every, ~every, head, training, out, epochs=epochs, what="train on all slides")
        model = replace(fitted, figures=figures)
        if figures != fitted.figures:  # a model that is there and says the same is left alone
            write_model(out, model)
        return model


def fold_column(slides: LabelledSlides, folds: int, seed: int) -> pd.Series[int]:
    """The fold of each row of the table, Int64; missing for a slide that cannot be scored and whose patient has no other."""
    usable = slides.usable.set_index("slide_id")
    assigned = assign_folds(usable["patient_id"], usable["target"], folds, seed, slides.classes)
    of_patient = dict(zip(usable["patient_id"], assigned, strict=True))
    return slides.table["patient_id"].map(of_patient).astype("Int64")


def fit_fold(
    slides: LabelledSlides,
    fold_of: pd.Series[int],
    fold: int,
    head: str,
    settings: TrainSettings,
    folder: Path,
) -> Fold:
    """Fits one fold on the patients of the others and scores its own, whose labels and features the fit never sees."""
    scored = (fold_of == fold).fillna(value=False).astype(bool)
    learn = (fold_of != fold).fillna(value=False).astype(bool)
    stop = stopping_rows(slides, learn, settings)
    what = f"fold {fold + 1} of {int(fold_of.max()) + 1}"
    model = fit_model(slides, learn & ~stop, stop, head, settings, folder, what=what)
    predictions = score_table(model, slides.table.assign(fold=fold)[scored], "fold")
    facts = {
        "fold": fold,
        "n_train_patients": model.training["n_patients"] - model.training["n_stop_patients"],
        "n_stop_patients": model.training["n_stop_patients"],
        "n_scored_patients": int(slides.table["patient_id"][scored & (slides.table["reason"] == "")].nunique()),
        "epochs": model.training["epochs"],
        "stopped_early": model.training["stopped_early"],
    }
    return Fold(model, predictions, facts)


def _in_order(slides: LabelledSlides, fold_of: pd.Series[int], folds: Sequence[Fold]) -> pd.DataFrame:
    """The folds' predictions in the order of the cohort, and a row without score for a slide that stands in no fold."""
    unplaced = slides.table[fold_of.isna()].assign(fold=None)
    tables = [one.predictions for one in folds]
    if len(unplaced):
        tables.append(score_table(folds[0].model, unplaced, "fold"))
    joined = pd.concat(tables).set_index("slide_id").loc[slides.table["slide_id"]].reset_index()
    return joined.astype({"fold": "Int64"})


def _metrics(
    slides: LabelledSlides, folds: int, predictions: pd.DataFrame, done: Sequence[Fold], *, uses_split: bool
) -> dict[str, Any]:
    warnings = []
    if uses_split:
        warnings.append("the cohort's column split is not used by cross-validation; pathfm train uses it")
    fixed = [str(one.facts["fold"]) for one in done if not one.facts["n_stop_patients"]]
    if fixed:
        warnings.append(f"no patients to spare for early stopping in fold {', '.join(fixed)}: all epochs were run")
    return metrics_document(
        predictions,
        label=slides.label,
        classes=slides.classes,
        protocol=f"{folds}-fold cross-validation by patient",
        left_out=slides.left_out,
        controls=controls(predictions, slides.mean_rgb, slides.sites, slides.classes),
        folds=[one.facts for one in done],
        warnings=warnings,
    )


def _drop_other_folds(folder: Path, folds: int) -> None:
    """Removes the folds of an earlier run with more of them, which nothing would refer to any more."""
    for path in folder.glob("*"):
        if path.name.isdigit() and int(path.name) >= folds:
            shutil.rmtree(path)
