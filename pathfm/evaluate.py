"""External evaluation: a frozen model on a labelled cohort that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import Any

import numpy as np
import pandas as pd

from pathfm.cohort import Cohort, read_cohort
from pathfm.embeddings import require_recipe
from pathfm.errors import InputError, LeakageError
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.model import Model, read_model
from pathfm.patients import slides_of_bag
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.proven import name_some
from pathfm.results import metrics_document, no_controls, summary, write_results
from pathfm.scoring import score_tables

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
    pseudonymise: Path | None = None,
) -> Evaluation:
    """Scores a labelled cohort that the model has not seen, and writes figures with intervals.

    Bags are of slides or of patients as in training, and covariates are those of the training, from columns of the same
    names.

    Args:
        model: the model directory.
        cohort: the cohort table, CSV.
        embeddings: embeddings of the model's own recipe; of one that reads several side by side all of them, in any order.
        out: gets predictions.csv and metrics.json; of several targets a folder each.
        label: the label column, where it is named otherwise than in training; of several targets all columns in the order
            of the model, with commas between.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes. A patient in
            both cohorts is noticed only if the model was trained with the same key.

    Raises:
        LeakageError: a patient or a scan of the cohort was in the training of the model.
        InputError: a column holds a label that the model does not know, or a covariate is missing.
        EmbeddingsStaleError: embeddings of another recipe.
        ModelError: not a model directory.
    """
    with private_run(pseudonymise, out, embeddings, [model], cohort=cohort) as names:
        frozen, table = read_model(model), read_cohort(cohort, names)
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
        _require_unseen(table, model, frozen, slides.table)
        labels = pd.Series(_labels_by_name(frozen, slides), index=slides.table.index)
        rows = slides.table.assign(split="external", labels=labels)
        predictions = score_tables(frozen, rows, "split")
        metrics = {
            target.name: metrics_document(
                predictions[target.name],
                target=target,
                unit=frozen.unit,
                protocol=PROTOCOL,
                left_out=slides.left_out,
                controls=no_controls("the controls need cross-validation"),
            )
            for target in frozen.task.targets
        }
        write_results(out, {name: (one, metrics[name]) for name, one in predictions.items()})
        return Evaluation(out, predictions, metrics)


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


def _require_unseen(cohort: Cohort, folder: Path, model: Model, bags: pd.DataFrame) -> None:
    """Patients by id, scans by digest; by slide_id where the file then or now states none, or one of another kind."""
    rows = [
        pair
        for slide_id, digests in zip(bags["slide_id"], bags["slide_digests"], strict=True)
        for pair in zip(slides_of_bag(slide_id, model.unit), digests, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["slide_id", "slide_digest"])
    patients = set(bags["patient_id"]) & set(model.training["patients"])
    seen = model.training["slides"]
    digests = set(seen.values()) - {""}
    nameless = [slide_id for slide_id, digest in seen.items() if not digest]
    same = table["slide_digest"].isin(digests) | table["slide_id"].isin(nameless)
    same |= (table["slide_digest"] == "") & table["slide_id"].isin(seen)
    same |= np.array([_kind(seen.get(slide_id, digest)) != _kind(digest) for slide_id, digest in rows], bool)
    if {_kind(digest) for digest in digests} != {_kind(digest) for digest in table["slide_digest"]} - {""}:
        logger.warning("digests of two kinds cannot be compared: a scan under another slide_id would not be noticed")
    if patients or same.any():
        who = [f"patients {name_some(patients)}"] if patients else []
        who += [f"slides {name_some(table['slide_id'][same])}"] if same.any() else []
        message = (
            f"{cohort.source} and the training of {folder} share {' and '.join(who)}; remove these rows,"
            " figures on what a model has seen say nothing"
        )
        raise LeakageError(message)


def _kind(digest: str) -> str:
    """What a digest can be compared with, "" for none."""
    return digest.partition(":")[0]
