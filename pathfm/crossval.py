"""Cross-validation: every patient scored by models that have not seen it, figures with intervals, and the models as one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from pathfm.appraisal import Asked, appraise, asked_of, require_asked, say_frozen
from pathfm.claims import Claims
from pathfm.cohort import read_cohort
from pathfm.controls import controls
from pathfm.errors import InputError
from pathfm.folds import Split  # noqa: TC001 - the command line reads the annotation
from pathfm.frozen import Frozen, patient_table
from pathfm.handon import hand_on_ensemble, hand_on_folds
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.leakage import require_no_leak
from pathfm.model import MOST_HEADS, Model
from pathfm.outoffold import (
    Folding,
    fold_column,
    fold_facts,
    fold_job,
    fold_warnings,
    mean_embeddings,
    out_of_fold,
    repeat_settings,
)
from pathfm.patients import Unit  # noqa: TC001 - the command line reads the annotation
from pathfm.privacy import private_run
from pathfm.promises import Promised, promised
from pathfm.reference import reference_of
from pathfm.results import metrics_document, summary, write_results, write_table
from pathfm.settings import TrainSettings
from pathfm.subgroups import subgroup_columns
from pathfm.train import fit_models, heed_licences

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class CrossValidation:
    """What `crossval` leaves behind; prints as a few lines.

    Attributes:
        folder: holds predictions.csv, metrics.json (of several targets in a folder each), folds.csv, folds/<k>/ with the
            model of each fold, and ensemble/; of several repeats repeats.csv and repeats/<r>/<k>/ too.
        predictions: of each target the out-of-fold scores of every labelled bag, the mean over the repeats.
        rows: of each target the scores of every repeat, below each other, with the column repeat.
        metrics: of each target metrics.json.
        epochs: median of the folds' best epochs, for the refit on all slides.
        model: the models of all folds and repeats as one.
        frozen: of each target what was chosen on these predictions, for the model that is handed on.
    """

    folder: Path
    predictions: dict[str, pd.DataFrame]
    rows: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]
    epochs: int
    model: Model
    frozen: dict[str, Frozen]

    def __str__(self) -> str:
        return "\n".join([*map(summary, self.metrics.values()), f"results: {self.folder}"])


def crossval(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    folds: int = 5,
    head: str = "gated-abmil",
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    split: Split = "patient",
    repeats: int = 1,
    training: TrainSettings = TrainSettings(),
    operating_point: str | None = None,
    claims: Claims = Claims(),
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> CrossValidation:
    """Cross-validates a head by patient or by site and writes scores, figures with intervals, and the controls beside them.

    Each fold learns from the other folds' patients, of whom some are set aside to decide when to stop. Run again, folds
    that are done with the same inputs are taken as they are, and an interrupted one goes on. The models of all folds
    together are written as one model, whose scores are the means of theirs.

    Args:
        cohort: the cohort table, CSV.
        embeddings: the folder that extract wrote, or one recipe folder in it; of several, each of another backbone, the
            head reads the embeddings side by side in this order.
        label: the label column, or COLUMN:KIND; several with commas between them are learned together.
        out: gets predictions.csv, metrics.json, folds.csv, folds/ and ensemble/.
        folds: number of folds, at most the patients of the smallest class.
        head: a name of `pathfm heads`.
        unit: what is scored at a time: a slide, or a patient by all its slides.
        covariates: columns of the cohort table, such as age, that the head takes into account.
        split: what folds do not share: a patient, or a site and so a patient too. By site the column site has to be
            filled; the classes are as even as the sites allow.
        repeats: how often all is done, each time with folds and weights of the next seed; figures are means over the
            repeats.
        training: how the head is trained.
        operating_point: how the threshold is chosen that is frozen into the ensemble: specificity>=0.95,
            sensitivity>=0.9, cost:10/1 (what a missed one costs to what a false alarm does) or youden. The figures at it
            are honest: what a fold is decided by is chosen on the other folds.
        claims: what else is chosen and frozen, and shown beside the figures.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort, the folds or the settings cannot be used.
        EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        LicenceError: a licence that `require_license` does not allow.
    """
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        table = read_cohort(cohort, names)
        slides = asked_of(labelled_slides(table, embeddings, label, unit=unit, covariates=covariates or ()), claims)
        heed_licences(slides, require_license)
        asked = Asked(operating_point, claims, subgroup_columns(table, claims.subgroups))
        warnings = split_warnings(table.stated)
        return cross_validate(slides, out, Folding(folds, split, repeats), head, training, warnings, asked)


def cross_validate(
    slides: LabelledSlides,
    out: Path,
    folding: Folding,
    head: str,
    settings: TrainSettings,
    warnings: Sequence[str] = (),
    asked: Asked = Asked(),
) -> CrossValidation:
    """What `crossval` does, of a cohort that is joined with its embeddings.

    Args:
        slides: the cohort.
        out: the folder for everything.
        folding: how it is cut.
        head: a row of `heads.HEADS`.
        settings: how the head is trained.
        warnings: to be said before those of the figures.
        asked: what is chosen, frozen and shown beside the figures.
    """
    require_repeats(folding)
    able = require_asked(slides.task.targets, asked)
    repeats = [repeat_settings(settings, repeat) for repeat in range(folding.repeats)]
    cuts = [fold_column(slides, folding, one.seed) for one in repeats]
    _drop_others(out, folding)
    write_table(out / "folds.csv", slides.table[["slide_id", "patient_id", "label"]].assign(fold=cuts[0]))
    jobs = [
        fold_job(slides, cuts[repeat], fold, one, *_place(out, repeat))
        for repeat, one in enumerate(repeats)
        for fold in range(folding.folds)
    ]
    everybody = pd.Series(data=True, index=slides.table.index)
    reference = reference_of(slides, everybody)
    leakage = require_no_leak(slides, cuts, reference, folding.split)
    models = fit_models(slides, jobs, head, out)
    parts = [models[first : first + folding.folds] for first in range(0, len(models), folding.folds)]
    scored = [out_of_fold(slides, fold_of, part) for fold_of, part in zip(cuts, parts, strict=True)]
    chosen = promised(slides, scored, asked, able, str(folding))
    say_frozen(chosen.frozen)
    said = [*warnings, *fold_warnings(slides, cuts, folding, models)]
    means = mean_embeddings(slides)
    metrics = {
        target.name: metrics_document(
            chosen.rows[target.name] if folding.repeats > 1 else chosen.predictions[target.name],
            target=target,
            unit=slides.unit,
            protocol=str(folding),
            left_out=slides.left_out,
            controls=controls(chosen.rows[target.name], slides.mean_rgb, slides.sites, target, means),
            blocks=appraise(
                chosen.predictions[target.name], target, slides.unit, asked, chosen.of_folds.get(target.name)
            )
            | {"leakage": leakage},
            folds=fold_facts(slides, cuts[0], parts[0]),
            warnings=said,
        )
        for target in slides.task.targets
    }
    _write(out, slides, chosen, metrics, folding)
    hand_on_folds(jobs, models, chosen.of_repeats)
    model = hand_on_ensemble(out / "ensemble", models, metrics, chosen.frozen, reference)
    epochs = max(1, round(median(model.training["epochs"] for model in models)))
    return CrossValidation(out, chosen.predictions, chosen.rows, metrics, epochs, model, chosen.frozen)


def split_warnings(stated: frozenset[str]) -> list[str]:
    """What to say of a cohort whose own split is not used."""
    return ["the cohort's column split is not used by cross-validation; pathfm train uses it"] * ("split" in stated)


def _place(out: Path, repeat: int) -> tuple[Path, str]:
    """The folder of a repeat's folds, and what one of them is in the user's words."""
    return (out / "folds", "fold") if not repeat else (out / "repeats" / str(repeat), f"repeat {repeat + 1}, fold")


def _write(
    out: Path, slides: LabelledSlides, chosen: Promised, metrics: dict[str, dict[str, Any]], folding: Folding
) -> None:
    targets = {target.name: target for target in slides.task.targets}
    patients = {
        name: patient_table(chosen.predictions[name], targets[name], of_folds)
        for name, of_folds in chosen.of_folds.items()
        if slides.unit == "slide"
    }
    write_results(out, {name: (chosen.predictions[name], metrics[name]) for name in metrics}, patients)
    for target in targets.values() if folding.repeats > 1 else ():
        place = out if len(targets) == 1 else out / target.folder
        write_table(place / "repeats.csv", chosen.rows[target.name])


def require_repeats(folding: Folding) -> None:
    """Refuses a number of repeats that cannot be.

    Raises:
        InputError: the most there can be.
    """
    if not 1 <= folding.repeats <= MOST_HEADS // max(folding.folds, 1):
        message = (
            f"--repeats is {folding.repeats}; it must be 1 or more, and with {folding.folds} folds at most"
            f" {MOST_HEADS // max(folding.folds, 1)}, for all models together are written as one"
        )
        raise InputError(message)


def _drop_others(out: Path, folding: Folding) -> None:
    """Removes the folds of an earlier run with more of them, which nothing would refer to any more."""
    limits = {out / "folds": folding.folds, out / "repeats": folding.repeats}
    limits |= {out / "repeats" / str(repeat): folding.folds for repeat in range(1, folding.repeats)}
    for folder, limit in limits.items():
        for path in folder.glob("*"):
            if path.name.isdigit() and int(path.name) >= limit:
                shutil.rmtree(path)
