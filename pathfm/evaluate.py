"""External evaluation: a frozen model on a labelled cohort that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.cohort import read_cohort
from pathfm.embeddings import require_recipe
from pathfm.errors import InputError, LeakageError
from pathfm.files import write_json
from pathfm.labelled import LabelledSlides, labelled_slides, name_some
from pathfm.model import Model, read_model
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.scoring import metrics_document, no_controls, score_table, summary, write_table

if TYPE_CHECKING:
    import pandas as pd

PROTOCOL = "external evaluation"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` leaves behind; prints as a few lines.

    Attributes:
        folder: holds predictions.csv and metrics.json.
        predictions: the scores of every labelled slide.
        metrics: metrics.json.
    """

    folder: Path
    predictions: pd.DataFrame
    metrics: dict[str, Any]

    def __str__(self) -> str:
        return f"{summary(self.metrics)}\nresults: {self.folder}"


def evaluate(
    model: Path,
    cohort: Path,
    embeddings: list[Path],
    out: Path,
    label: str | None = None,
    pseudonymise: Path | None = None,
) -> Evaluation:
    """Scores a labelled cohort that the model has not seen, and writes figures with intervals.

    Args:
        model: the model directory.
        cohort: the cohort table, CSV.
        embeddings: embeddings of the model's own recipe; of one that reads several side by side all of them, in any order.
        out: gets predictions.csv and metrics.json.
        label: the label column, where it is named otherwise than in training.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes. A patient in
            both cohorts is noticed only if the model was trained with the same key.

    Raises:
        LeakageError: a patient or a scan of the cohort was in the training of the model.
        InputError: the column holds a class that the model does not know.
        EmbeddingsStaleError: embeddings of another recipe.
        ModelError: not a model directory.
    """
    with private_run(pseudonymise, out, embeddings, [model], cohort=cohort) as names:
        frozen, table = read_model(model), read_cohort(cohort, names)
        slides = labelled_slides(table, embeddings, label or frozen.label, frozen.recipe)
        require_recipe(embeddings[0], slides.recipe, frozen.recipe)
        _require_known_classes(table.source, frozen, slides)
        _require_unseen(table.source, model, frozen, slides.table)
        predictions = score_table(frozen, slides.table.assign(split="external"), "split")
        metrics = metrics_document(
            predictions,
            label=slides.label,
            classes=frozen.classes,
            protocol=PROTOCOL,
            left_out=slides.left_out,
            controls=no_controls("the controls need cross-validation"),
        )
        write_table(out / "predictions.csv", predictions)
        write_json(out / "metrics.json", metrics)
        return Evaluation(out, predictions, metrics)


def _require_known_classes(cohort: Path, model: Model, slides: LabelledSlides) -> None:
    unknown = set(slides.classes) - set(model.classes)
    if unknown:
        message = (
            f"{cohort}: column {slides.label!r} holds {name_some(unknown)}, the model knows"
            f" {', '.join(model.classes)}; rename the labels, empty them, or pass another --label"
        )
        raise InputError(message)


def _require_unseen(cohort: Path, folder: Path, model: Model, table: pd.DataFrame) -> None:
    """Patients by id, scans by digest; by slide_id where the file then or now states none, or one of another kind."""
    patients = set(table["patient_id"]) & set(model.training["patients"])
    seen = model.training["slides"]
    digests = set(seen.values()) - {""}
    nameless = [slide_id for slide_id, digest in seen.items() if not digest]
    same = table["slide_digest"].isin(digests) | table["slide_id"].isin(nameless)
    same |= (table["slide_digest"] == "") & table["slide_id"].isin(seen)
    rows = zip(table["slide_id"], table["slide_digest"], strict=True)
    same |= np.array([_kind(seen.get(slide_id, digest)) != _kind(digest) for slide_id, digest in rows], bool)
    if {_kind(digest) for digest in digests} != {_kind(digest) for digest in table["slide_digest"]} - {""}:
        logger.warning("digests of two kinds cannot be compared: a scan under another slide_id would not be noticed")
    if patients or same.any():
        who = [f"patients {name_some(patients)}"] if patients else []
        who += [f"slides {name_some(table['slide_id'][same])}"] if same.any() else []
        message = (
            f"{cohort} and the training of {folder} share {' and '.join(who)}; remove these rows,"
            " figures on what a model has seen say nothing"
        )
        raise LeakageError(message)


def _kind(digest: str) -> str:
    """What a digest can be compared with, "" for none."""
    return digest.partition(":")[0]
