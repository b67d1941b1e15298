"""The models that a cross-validation hands on: those of its folds, all of them as one, or one fitted to everybody."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from pathfm.appraisal import asked_of
from pathfm.cardfile import Card
from pathfm.claims import Claims
from pathfm.cohort import read_cohort
from pathfm.errors import ModelError
from pathfm.fit import Rows
from pathfm.labelled import labelled_slides
from pathfm.model import Model, ensemble, read_model, same, write_model
from pathfm.privacy import private_run
from pathfm.reference import reference_of
from pathfm.settings import TrainSettings
from pathfm.together import Job
from pathfm.train import fit_models

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.frozen import Frozen
    from pathfm.patients import Unit
    from pathfm.reference import Reference

_UNTESTED = "figures of the members, each on the patients that it had not seen; the ensemble itself was not tested"


def hand_on(model: Model, folder: Path) -> Model:
    """Writes a model; one that is there and says the same is left alone, and so is what was drawn with it."""
    try:
        found = read_model(folder)
    except ModelError:
        found = None
    if found is not None and same(found, model):
        return found
    write_model(folder, model)
    return model


def hand_on_folds(
    jobs: Sequence[Job], models: Sequence[Model], of_repeats: Sequence[dict[str, dict[int, Frozen]]]
) -> None:
    """Writes what decides a fold into its model, so that a heatmap of the fold says what its predictions say.

    Args:
        jobs: of all repeats one after the other, each with as many folds.
        models: of the jobs.
        of_repeats: of each repeat, target and fold what decides it.
    """
    n_folds = len(jobs) // len(of_repeats)
    for at, (job, model) in enumerate(zip(jobs, models, strict=True)):
        chosen = of_repeats[at // n_folds]
        frozen = {name: folds[at % n_folds] for name, folds in chosen.items() if at % n_folds in folds}
        hand_on(replace(model, frozen=frozen or None), job.folder)


def hand_on_ensemble(
    folder: Path,
    models: Sequence[Model],
    metrics: dict[str, dict[str, Any]],
    frozen: dict[str, Frozen],
    reference: Reference,
) -> Model:
    """The models as one; its figures are theirs, each on the patients that it had not seen."""
    figures = {name: one | {"warnings": [*one["warnings"], _UNTESTED]} for name, one in metrics.items()}
    whole = replace(ensemble(models), figures=figures, frozen=frozen or None, reference=reference)
    return hand_on(whole, folder)


def refit(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    epochs: int,
    head: str = "gated-abmil",
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    training: TrainSettings = TrainSettings(),
    figures: dict[str, Any] | None = None,
    frozen: dict[str, Frozen] | None = None,
    claims: Claims = Claims(),
    card: Card = Card(),
    pseudonymise: Path | None = None,
) -> Model:
    """Fits the model to hand on: all labelled slides, nobody set aside, for a number of epochs known from the folds.

    Args:
        cohort: the cohort table, CSV.
        embeddings: as the cross-validation was given, whose warning of licences is not repeated.
        label: the label.
        out: the model directory.
        epochs: how many of `training.epochs` to run, `CrossValidation.epochs`.
        head: a row of `heads.HEADS`.
        unit: what a bag is of.
        covariates: columns that join the head.
        training: how the head is trained, as in the folds.
        figures: of each target metrics.json of the cross-validation, to travel with the model.
        frozen: of each target what the cross-validation chose, `CrossValidation.frozen`.
        claims: as the cross-validation was given them.
        card: what its makers say of it.
        pseudonymise: the key file that extract was given.
    """
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        table = read_cohort(cohort, names)
        slides = asked_of(labelled_slides(table, embeddings, label, unit=unit, covariates=covariates or ()), claims)
        everybody = pd.Series(data=True, index=slides.table.index)
        job = Job(Rows(slides.rows(everybody), []), training, out, "train on all slides", epochs)
        (fitted,) = fit_models(slides, [job], head)
        reference = reference_of(slides, everybody)
        whole = replace(fitted, figures=figures, frozen=frozen or None, reference=reference, card=card)
        return hand_on(whole, out)
