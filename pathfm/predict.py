"""Prediction: a model directory and new slides, or their embeddings, to a table of scores."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING

import pandas as pd

from pathfm.cohort import read_cohort
from pathfm.embeddings import read_embeddings
from pathfm.errors import InputError, SlidesFailedError
from pathfm.isolation import Limits
from pathfm.joined import Files, find_caches, slides_of
from pathfm.model import Model, read_model
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.scoring import SlideScore, score_slide, score_table, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.extract import ExtractResult
    from pathfm.failures import Failure
    from pathfm.privacy import Pseudonyms

__all__ = ["SlideScore", "predict", "score_slide"]

NEW, SEEN = "new", "seen"


def predict(
    model: Path,
    out: Path,
    slides: list[Path] | None = None,
    embeddings: list[Path] | None = None,
    mpp_override: float | None = None,
    device: str = "auto",
    backbone: str | None = None,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> pd.DataFrame:
    """Scores new slides and writes `predictions.csv`; from raw slides it extracts first, with the model's own recipe.

    Args:
        model: the model directory.
        out: gets predictions.csv; with slides also embeddings/ and its failures.csv.
        slides: folders, slide files or cohort tables; or else
        embeddings: the folder that extract wrote, of the model's own recipe; of a model that reads several side by side
            all of them, in any order.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: where to run the backbone; the head runs on the CPU.
        backbone: where the model's backbone lies here, if it is one from a folder: local-dir:/folder; of a model that
            reads several all of them by name, with commas between.
        limits: what a process that reads a slide may take.
        pseudonymise: a key file; ids in what is written are then keyed hashes. With --embeddings the one that extract
            was given, else it is made where it is missing.

    Returns:
        The table: slide_id, patient_id ("" where no cohort table names it), split ("new", or "seen" where the model
        has learned from the slide), label (""), predicted,
        prob_<class> for each class, n_tiles, reason ("", "no_tissue", or "no_embeddings" for a slide that failed).

    Raises:
        InputError: neither or both of slides and embeddings.
        ModelError: not a model directory.
        EmbeddingsStaleError: embeddings of another recipe, or this machine cannot make the model's own.
        SlidesFailedError: at the very end, when some slides could not be extracted; the others are in the table.
    """
    if (slides is None) == (embeddings is None):
        message = "predict needs either --slides or --embeddings; pass one of them"
        raise InputError(message)
    with private_run(pseudonymise, out, embeddings or [], [model], slides=slides) as names:
        frozen = read_model(model)
        failed: Sequence[Failure] = ()
        if embeddings is not None:
            files = slides_of(find_caches(embeddings, frozen.recipe))
        else:
            result = _extracted(frozen, slides or [], out / "embeddings", mpp_override, device, backbone, names, limits)
            made = (*result.done, *result.skipped)
            files = {name: tuple(folder / f"{name}.h5" for folder in result.folders) for name in made}
            files |= {failure.slide_id: None for failure in result.failed}
            files, failed = dict(sorted(files.items())), result.failed
        table = score_table(frozen, _rows(frozen, files, slides or [], names), "split")
        n_seen = int((table["split"] == SEEN).sum())
        if n_seen:
            logger.warning(
                "%d of %d slides were in the training of this model: their scores say nothing", n_seen, len(table)
            )
        write_table(out / "predictions.csv", table)
        if failed:
            raise SlidesFailedError(len(failed), len(files), out / "embeddings" / "failures.csv")
        return table


def _extracted(
    model: Model,
    slides: list[Path],
    folder: Path,
    mpp_override: float | None,
    device: str,
    backbone: str | None,
    names: Pseudonyms | None,
    limits: Limits,
) -> ExtractResult:
    # only here: predicting from embeddings works on a machine without OpenSlide
    from pathfm.extract import extract_like

    return extract_like(
        model.recipe,
        slides,
        folder,
        mpp_override=mpp_override,
        device=device,
        backbone=backbone,
        names=names,
        limits=limits,
    )


def _rows(model: Model, files: dict[str, Files | None], slides: list[Path], names: Pseudonyms | None) -> pd.DataFrame:
    patients: dict[str, str] = {}
    for table in slides:
        if table.suffix.lower() == ".csv":
            rows = read_cohort(table, names).table
            patients |= dict(zip(rows["slide_id"], rows["patient_id"], strict=True))
    return pd.DataFrame(
        [
            {
                "slide_id": name,
                "patient_id": patients.get(name, ""),
                "split": SEEN if _is_seen(model, name, its_files) else NEW,
                "label": "",
                "files": its_files,
            }
            for name, its_files in files.items()
        ]
    )


def _is_seen(model: Model, slide_id: str, files: Files | None) -> bool:
    known: dict[str, str] = model.training["slides"]
    digests = {read_embeddings(file).slide_digest for file in files or ()} - {""}  # imported ones may have none
    return slide_id in known or not digests.isdisjoint(known.values())
