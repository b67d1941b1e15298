"""External evaluation: a frozen model on a labelled cohort that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import Any

import pandas as pd

from pathfm.appraisal import Asked, appraise
from pathfm.claims import Claims
from pathfm.cohort import Cohort, read_cohort
from pathfm.embeddings import require_recipe
from pathfm.errors import InputError
from pathfm.folds import Split  # noqa: TC001 - the command line reads the annotation
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.leakage import require_unseen, scans_of
from pathfm.ledger import ledger_of, record_look, set_sha256
from pathfm.model import Model, model_sha256, read_model
from pathfm.privacy import private_run
from pathfm.reference import reference_of
from pathfm.results import metrics_document, no_controls, summary, write_results
from pathfm.scoring import patient_tables, score_tables
from pathfm.shift import shift_of
from pathfm.shiftblock import shift_block
from pathfm.subgroups import subgroup_columns

PROTOCOL = "external evaluation"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` leaves behind; prints as a few lines.

    Attributes:
        folder: holds predictions.csv and metrics.json; of several targets a folder each with these two.
        predictions: of each target by its name the scores of every labelled bag.
        metrics: of each target metrics.json.
    """

    folder: Path
    predictions: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return "\n".join([*map(summary, self.metrics.values()), f"results: {self.folder}"])


def evaluate(
    model: Path,
    cohort: Path,
    embeddings: list[Path],
    out: Path,
    label: str | None = None,
    split: Split = "patient",
    prevalence: float | None = None,
    subgroups: list[str] | None = None,
    ledger: Path | None = None,
    pseudonymise: Path | None = None,
) -> Evaluation:
    """Scores a labelled cohort that the model has not seen, and writes figures with intervals.

    What is frozen in the model, such as its operating point, is applied as it is: nothing here can move it. Each
    evaluation is counted in a ledger beside the cohort table, for a test set that is looked at often is one no more.

    Bags are of slides or of patients as in training, and covariates are those of the training, from columns of the same
    names.

    Args:
        model: the model directory.
        cohort: the cohort table, CSV.
        embeddings: embeddings of the model's own recipe; of one that reads several side by side all of them, in any order.
        out: gets predictions.csv and metrics.json; of several targets a folder each.
        label: the label column, where it is named otherwise than in training; of several targets all columns in the order
            of the model, with commas between.
        split: what the cohort may not share with the training: a patient, or a site and so a patient too.
        prevalence: share of patients with the condition where the model is to be used, for its predictive values there.
        subgroups: columns of the cohort table by whose values the figures are shown again; site and scanner need not be
            named.
        ledger: where evaluations of this cohort are counted; <cohort>.ledger.csv beside the table where not given.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes. A patient in
            both cohorts is noticed only if the model was trained with the same key.

    Raises:
        LeakageError: a patient, a scan or a copy of one was in the training of the model, or with `split` a site.
        InputError: a column holds a label that the model does not know, a covariate is missing, or the ledger cannot be
            written.
        EmbeddingsStaleError: embeddings of another recipe.
        ModelError: not a model directory.
    """
    counted = ledger or ledger_of(cohort)
    with private_run(pseudonymise, out, embeddings, [model], ledger=counted, cohort=cohort) as names:
        frozen, table = read_model(model), read_cohort(cohort, names)
        shown = _shown(table, frozen, prevalence, subgroups or [])  # before a look at the test set is counted
        asked = _label(table, frozen, label)
        slides = labelled_slides(
            table,
            embeddings,
            asked,
            frozen.recipe,
            unit=frozen.unit,
            covariates=frozen.covariates or (),
            asked=frozen.task,
        )
        require_recipe(embeddings[0], slides.recipe, frozen.recipe)
        new = reference_of(slides, pd.Series(data=True, index=slides.table.index))
        leakage = require_unseen(table.source, model, frozen, slides, frozen.reference, new, split)
        labels = pd.Series(_labels_by_name(frozen, slides), index=slides.table.index)
        predictions = score_tables(frozen, slides.table.assign(split="external", labels=labels), "split")
        scans, shown_as = scans_of(slides.usable, slides.unit), None if names is None else "the ledger"
        looked = record_look(counted, set_sha256(scans), model_sha256(model), "evaluate", len(scans), shown=shown_as)
        blocks = {
            "leakage": leakage,
            "ledger": looked,
            "shift": shift_block(frozen.reference, new, shift_of(frozen.reference, new)),
            "model_sha256": model_sha256(model),
        }
        metrics = {
            target.name: metrics_document(
                predictions[target.name],
                target=target,
                unit=frozen.unit,
                protocol=PROTOCOL,
                left_out=slides.left_out,
                controls=no_controls("the controls need cross-validation"),
                blocks=appraise(
                    predictions[target.name], target, frozen.unit, shown, (frozen.frozen or {}).get(target.name)
                )
                | blocks,
            )
            for target in frozen.task.targets
        }
        results = {name: (one, metrics[name]) for name, one in predictions.items()}
        write_results(out, results, patient_tables(predictions, frozen))
        return Evaluation(out, predictions, metrics)


def _shown(cohort: Cohort, model: Model, prevalence: float | None, subgroups: list[str]) -> Asked:
    """What is shown beside the figures.

    Raises:
        InputError: a prevalence that is none, or one of several conditions.
        UnknownNameError: no such column.
    """
    if prevalence is not None and len(model.task.targets) > 1:
        message = f"--prevalence is of one condition, and the model has several targets ({model.label}); leave it out"
        raise InputError(message)
    claims = Claims(prevalence=prevalence, subgroups=subgroups)
    return Asked(None, claims, subgroup_columns(cohort, subgroups, "subgroups"))


def _label(cohort: Cohort, model: Model, given: str | None) -> str:
    """The label as `read_task` has it, with the kinds of the model's targets."""
    targets, asked = model.task.targets, model.label if given is None else given
    if len(targets) == 1 and asked in cohort.stated and targets[0].kind == "classes":
        return asked
    words = [word.strip() for word in asked.split(",")]
    if len(words) != len(targets):
        message = f"--label names {len(words)} columns, the model has {len(targets)} targets: {model.label}; name one for each"
        raise InputError(message)
    pairs = zip(words, targets, strict=True)
    return ",".join(f"{word.removesuffix(f':{target.kind}')}:{target.kind}" for word, target in pairs)


def _labels_by_name(model: Model, slides: LabelledSlides) -> list[dict[str, str]]:
    """The labels of each row by the names of the model's targets, whose columns may be called otherwise here."""
    pairs = list(zip(slides.task.targets, model.task.targets, strict=True))
    return [{target.name: row[own.name] for own, target in pairs} for row in slides.table["labels"]]
