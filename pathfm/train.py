"""Training: a cohort and its embeddings to a model directory."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any, Literal

from pathfm.appraisal import Asked, appraise, asked_of, require_asked, say_frozen
from pathfm.claims import Claims
from pathfm.cohort import read_cohort
from pathfm.errors import InputError, ModelError
from pathfm.fit import Fit, Rows, fingerprint
from pathfm.freezing import freeze
from pathfm.labelled import LabelledSlides, LeftOut, labelled_slides
from pathfm.leakage import cuts_of, require_no_leak, scans_of
from pathfm.ledger import ledger_of, record_look, set_sha256
from pathfm.licences import require_permissive, warn_of_restrictions
from pathfm.model import Model, read_model, same, write_model
from pathfm.patients import Unit, slides_of_bag
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.reference import reference_of
from pathfm.results import drop_results, metrics_document, no_controls, summary, write_results
from pathfm.scoring import patient_tables, score_tables
from pathfm.settings import TrainSettings
from pathfm.splits import learn_and_stop, split_of
from pathfm.subgroups import subgroup_columns
from pathfm.together import Job, fit_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from pathfm.frozen import Frozen
    from pathfm.reference import Reference
    from pathfm.targets import Target, Task, Truth

NO_SPLIT = "no_split"


@dataclass(frozen=True)
class Trained:
    """What `train` leaves behind; prints as a few lines.

    Attributes:
        folder: the model directory.
        model: the model.
        predictions: of each target by its name predictions.csv, whose column split says which rows are held out.
        metrics: of each target metrics.json; its figures are null where no patient was held out.
    """

    folder: Path
    model: Model
    predictions: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return "\n".join([*map(summary, self.metrics.values()), f"model: {self.folder}"])


def train(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    head: str = "gated-abmil",
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    training: TrainSettings = TrainSettings(),
    operating_point: str | None = None,
    claims: Claims = Claims(),
    require_license: Literal["permissive"] | None = None,
    ledger: Path | None = None,
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
        label: the label column, or COLUMN:KIND, several with commas between: classes, ordinal, multilabel, regression;
            survival is TIME/EVENT:cox or TIME/EVENT:hazards. Several targets make one model, and results in a folder each.
        out: the model directory.
        head: a head by name, such as gated-abmil, mean, clam-sb, transmil; docs/heads.md says which there are.
        unit: what a bag is: slide, or patient for all slides of a patient as one.
        covariates: columns of the table that the head reads beside the slides, such as age and sex: numbers, or up to 32
            categories; empty cells count as not known.
        training: how the head is trained.
        operating_point: how the threshold is chosen, on the val rows, that is frozen into the model: specificity>=0.95,
            sensitivity>=0.9, cost:10/1 (what a missed one costs to what a false alarm does) or youden. Without a column
            split the rows that decide when to stop serve; more patients, all of them, serve in crossval.
        claims: what else is chosen and frozen, and shown beside the figures.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        ledger: where looks at the test rows are counted; <cohort>.ledger.csv beside the table where not given.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort or the settings cannot be used; patients on both sides of a split are refused; with test
            rows also a ledger that cannot be written.
        LeakageError: copies of a scan on both sides.
        EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        LicenceError: a licence that `require_license` does not allow.
    """
    counted = ledger or ledger_of(cohort)
    with private_run(pseudonymise, out, embeddings, ledger=counted, cohort=cohort) as names:
        table = read_cohort(cohort, names)
        slides = asked_of(labelled_slides(table, embeddings, label, unit=unit, covariates=covariates or ()), claims)
        heed_licences(slides, require_license)
        split = split_of(slides, training)
        asked = Asked(operating_point, claims, subgroup_columns(table, claims.subgroups))
        able = require_asked(slides.task.targets, asked)
        reference = reference_of(slides, split != "")
        leakage = require_no_leak(slides, cuts_of(split, slides.table["split"], freezes=asked.freezes), reference)
        rows = Rows(*learn_and_stop(slides, split))
        (model,) = fit_models(slides, [Job(rows, training, out, f"train {label}")], head, out)
        placed = slides.table.assign(split=split)[split != ""]
        frozen = _frozen(model, placed[placed["split"] == "val"], asked, able)
        model = replace(model, frozen=frozen or None, reference=_seen(reference, model))
        predictions = score_tables(model, placed, "split")
        targets = {target.name: target for target in model.task.targets}
        test = scans_of(placed[(placed["split"] == "test") & (placed["reason"] == "")], slides.unit)
        words = (set_sha256(test), model.training["fingerprint"], "train", len(test))
        looked = record_look(counted, *words, shown=None if names is None else "the ledger") if test else None
        blocks = {"leakage": leakage, "ledger": looked}
        metrics = {
            name: _metrics(slides, targets[name], split, one, asked, frozen.get(name)) | blocks
            for name, one in predictions.items()
        }
        results = {name: (one, metrics[name]) for name, one in predictions.items()}
        write_results(out, results, patient_tables(predictions, model))
        held_out = any(one["patient"] for one in metrics.values())
        # not how often it was looked at: the same model would be another one after each look
        figures = {name: one | {"ledger": None} for name, one in metrics.items()}
        write_model(out, replace(model, figures=figures if held_out else None))
        return Trained(out, model, predictions, metrics)


def fit_models(slides: LabelledSlides, jobs: Sequence[Job], head: str, results_of: Path | None = None) -> list[Model]:
    """Fits a head for each job and writes it as a model directory; weights that are there for the same inputs are taken.

    What model.json says of targets, recipe, patients and slides is always that of the slides given.

    Args:
        slides: the labelled slides.
        jobs: the rows of `slides.bags()` to learn from and to stop on, how, and the model directory, which also holds the
            checkpoint and the logs of the fit.
        head: a row of `heads.HEADS`.
        results_of: the folder of the results and the ensemble of all these fits. Where one is made anew they go first: a
            run that is killed leaves no figures beside settings that are not theirs.

    Raises:
        InputError: rows from which a target cannot be learned.
    """
    bags, truth = slides.bags(), slides.truth[(slides.table["reason"] == "").to_numpy()]
    remedy = "; folds are balanced over the first target: name the rarest first in --label"
    for job in jobs:
        of_several = len(jobs) > 1 and len(slides.task.targets) > 1
        _require_learnable(slides.task, truth[list(job.rows.learn)], job.what, remedy if of_several else "")
    tasks = [slides.task.fitted(truth[list(job.rows.learn)]) for job in jobs]
    wanted = [fingerprint(bags, job.rows, slides.task, head, job.settings, job.epochs) for job in jobs]
    done = [_finished(job, digest) for job, digest in zip(jobs, wanted, strict=True)]
    missing = [job for job, model in zip(jobs, done, strict=True) if model is None]
    for job in missing:
        (job.folder / "model.json").unlink(missing_ok=True)
    if missing and results_of is not None:
        drop_results(results_of)
        (results_of / "ensemble" / "model.json").unlink(missing_ok=True)
    fresh = iter(fit_all(bags, missing, slides.task, head))
    fits = [
        next(fresh) if model is None else Fit(model.heads[0], task, *_epochs(model))
        for model, task in zip(done, tasks, strict=True)
    ]
    models = [
        _written(slides, job, one, digest, model)
        for job, one, digest, model in zip(jobs, fits, wanted, done, strict=True)
    ]
    for job in jobs:  # not before all are written: fits in one pass share a checkpoint
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return models


def _require_learnable(task: Task, truth: Truth, what: str, remedy: str) -> None:
    try:
        task.require(truth)
    except InputError as error:
        message = f"{what}: {error}{remedy}"
        raise InputError(message) from error


def heed_licences(slides: LabelledSlides, require_license: Literal["permissive"] | None) -> None:
    """Says once what a head on these embeddings inherits, or refuses it.

    Raises:
        LicenceError: "permissive" is asked for, and a licence is not, or not known to be.
    """
    if require_license is not None:
        require_permissive(slides.licences, f"training on {slides.recipe['backbone']['name']}")
    warn_of_restrictions(slides.licences)


def _seen(reference: Reference, model: Model) -> Reference:
    """Those of the slides that the model has seen."""
    return reference.at([row for row, name in enumerate(reference.slide_ids) if name in model.training["slides"]])


def _frozen(model: Model, rows: pd.DataFrame, asked: Asked, able: Sequence[Target]) -> dict[str, Frozen]:
    """What is chosen on the rows that only decided when to stop; of none it cannot be."""
    if not able:
        return {}
    if not len(rows):
        message = (
            "--operating-point and --claims need patients whom the model did not learn from, and there are none to spare;"
            " run pathfm crossval, or fill val in the column split"
        )
        raise InputError(message)
    tables, where = score_tables(model, rows, "split"), "predictions of the val rows, which also decided when to stop"
    frozen = {
        target.name: freeze(tables[target.name], target, model.unit, asked.rule, asked.claims, where) for target in able
    }
    say_frozen(frozen)
    return frozen


def _metrics(
    slides: LabelledSlides,
    target: Target,
    split: pd.Series[str],
    predictions: pd.DataFrame,
    asked: Asked,
    frozen: Frozen | None,
) -> dict[str, Any]:
    held_out = predictions[predictions["split"] == "test"]
    unseen = len(held_out) > 0
    warning = "no held-out patients, so no figures; run pathfm crossval, or pathfm evaluate on another cohort"
    unplaced = slides.table[(split == "") & (slides.table["reason"] == "")]  # the others are left out already
    names = [name for slide_id in unplaced["slide_id"] for name in slides_of_bag(slide_id, slides.unit)]
    return metrics_document(
        held_out,
        target=target,
        unit=slides.unit,
        protocol="held-out test rows of the cohort's split" if unseen else "none held out",
        left_out=[*slides.left_out, *(LeftOut(name, NO_SPLIT) for name in names)],
        controls=no_controls("the controls need cross-validation"),
        blocks=appraise(held_out, target, slides.unit, asked, frozen),
        warnings=[] if unseen else [warning],
    )


def _finished(job: Job, wanted: str) -> Model | None:
    if not (job.folder / "model.json").is_file():
        return None
    try:
        model = read_model(job.folder)
    except ModelError as error:
        logger.warning("%s; training it again", error)
        return None
    if model.training["fingerprint"] != wanted or len(model.heads) > 1:
        return None
    logger.info("%s: done before with the same inputs, taken from %s", job.what, job.folder)
    return model


def _epochs(model: Model) -> tuple[int, bool]:
    return model.training["epochs"], bool(model.training.get("stopped_early"))


def _written(slides: LabelledSlides, job: Job, fitted: Fit, wanted: str, done: Model | None) -> Model:
    """The model of a fit, in its folder; one that is there and says the same is left alone."""
    model = Model(
        heads=(fitted.head,),
        task=fitted.task,
        unit=slides.unit,
        covariates=slides.covariates,
        recipe=slides.recipe,
        licences=slides.licences,
        training=_record(slides, job, fitted) | {"fingerprint": wanted},
    )
    if done is not None and same(replace(done, figures=None, frozen=None, reference=None), model):
        return model
    write_model(job.folder, model)
    return model


def _record(slides: LabelledSlides, job: Job, fitted: Fit) -> dict[str, Any]:
    """What model.json says of the training; a patient who only decided when to stop has been seen too."""
    usable = slides.usable
    stopping, seen = usable.iloc[list(job.rows.stop)], usable.iloc[[*job.rows.learn, *job.rows.stop]]
    digests = scans_of(seen, slides.unit)
    return {
        "settings": asdict(job.settings),
        "seed": job.settings.seed,
        "epochs": fitted.epochs,
        "stopped_early": fitted.stopped_early,
        "n_slides": len(digests),
        "n_patients": int(seen["patient_id"].nunique()),
        "n_stop_patients": int(stopping["patient_id"].nunique()),
        "patients": sorted(set(seen["patient_id"])),
        "sites": sorted({site for sites in seen["sites"] for site in sites if site}),
        "slides": dict(sorted(digests.items())),
    }
