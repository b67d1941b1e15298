"""Prediction: a model directory and new slides, or their embeddings, to a table of scores."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.beside import covariates_of, require_tables, slides_to_score
from pathfm.cohort import Cohort, read_cohort
from pathfm.embeddings import read_embeddings
from pathfm.errors import InputError, SlidesFailedError
from pathfm.isolation import Limits
from pathfm.joined import Files, find_caches, slides_of
from pathfm.model import Model, model_sha256, read_model
from pathfm.patients import BETWEEN, bags_of, slides_of_bag
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.reference import facts_of_slides
from pathfm.results import write_results
from pathfm.scoring import BagScore, patient_tables, score_bag, score_tables
from pathfm.shift import not_available, shift_of
from pathfm.shiftblock import shift_block
from pathfm.stage import read_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.extract import ExtractResult
    from pathfm.failures import Failure
    from pathfm.privacy import Pseudonyms
    from pathfm.stage import StageStamp

__all__ = ["BagScore", "predict", "score_bag"]

NEW, SEEN = "new", "seen"
DIGITS = 12
"""Of a digest, that name a model in a table."""


def predict(
    model: Path,
    out: Path,
    slides: list[Path] | None = None,
    embeddings: list[Path] | None = None,
    cohort: Path | None = None,
    mpp_override: float | None = None,
    device: str = "auto",
    backbone: str | None = None,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Scores new slides and writes `predictions.csv`; from raw slides it extracts first, with the model's own recipe.

    Args:
        model: the model directory.
        out: gets predictions.csv, of several targets in a folder each; with slides also embeddings/ and its failures.csv.
        slides: folders, slide files or cohort tables; or else
        embeddings: the folder that extract wrote, of the model's own recipe; of a model that reads several side by side
            all of them, in any order.
        cohort: a table that names the patients of the slides, and the covariates that the model reads beside them; a cohort
            table among the slides serves as well.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: where to run the backbone; the head runs on the CPU.
        backbone: where the model's backbone lies here, if it is one from a folder: local-dir:/folder; of a model that
            reads several all of them by name, with commas between.
        limits: what a process that reads a slide may take.
        pseudonymise: a key file; ids in what is written are then keyed hashes. With --embeddings the one that extract
            was given, else it is made where it is missing.

    Returns:
        By the name of the target a table with one row a slide, or a patient where the model takes all slides of one as a
        bag: slide_id (of a patient those of its slides with ";" between), patient_id ("" where no table names it), split
        ("new", or "seen" where the model knows the slide or its patient from its training), label (""), predicted, the scores such as
        prob_<class>, n_tiles, reason ("", "no_tissue", or "no_embeddings" for a slide that failed); what the model's
        operating point decides, and the possible classes, where these are frozen in it; ood, colour and mpp, the shares of
        the slides of the training that are nearer to the others than this one, flagged and why, where the model has a
        reference; stage, which the release gate gave the model, and model, the first digits of the sha256 of model.json.

    Raises:
        InputError: neither or both of slides and embeddings, or a table that the model needs is missing.
        CohortError: a table without a column that the model reads.
        ModelError: not a model directory.
        EmbeddingsStaleError: embeddings of another recipe, or this machine cannot make the model's own.
        SlidesFailedError: at the very end, when some slides could not be extracted; the others are in the table.
    """
    if (slides is None) == (embeddings is None):
        message = "predict needs either --slides or --embeddings; pass one of them"
        raise InputError(message)
    with private_run(pseudonymise, out, embeddings or [], [model], slides=slides, cohort=cohort) as names:
        frozen = read_model(model)
        named = [one for one in slides or [] if one.suffix.lower() == ".csv"]
        tables = [read_cohort(one, names) for one in [*([cohort] if cohort else []), *named]]
        require_tables(frozen, tables)
        failed: Sequence[Failure] = ()
        if embeddings is not None:
            files = slides_of(find_caches(embeddings, frozen.recipe))
        else:
            made = _extracted(frozen, slides or [], out / "embeddings", mpp_override, device, backbone, names, limits)
            files, failed = _files_of(made), made.failed
        rows = _bags(frozen, files, tables)
        _say_seen(frozen, rows)
        stage = read_stage(model)
        beside = _beside(frozen, rows, model, stage)
        predictions = {name: one.assign(**beside) for name, one in score_tables(frozen, rows, "split").items()}
        tables_of_patients = patient_tables(predictions, frozen).items()
        of_patients = {name: _of_patients(one, predictions[name]) for name, one in tables_of_patients}
        patients = {name: one for name, one in of_patients.items() if len(one)}
        write_results(out, {name: (one, None) for name, one in predictions.items()}, patients)
        logger.warning("%s", stage)
        if failed:
            raise SlidesFailedError(len(failed), len(files), out / "embeddings" / "failures.csv")
        return predictions


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


def _files_of(made: ExtractResult) -> dict[str, Files | None]:
    """Of every slide its files, sorted by slide_id; None where it failed."""
    done = {name: tuple(folder / f"{name}.h5" for folder in made.folders) for name in (*made.done, *made.skipped)}
    return dict(sorted({**done, **{failure.slide_id: None for failure in made.failed}}.items()))


def _bags(model: Model, files: dict[str, Files | None], tables: Sequence[Cohort]) -> pd.DataFrame:
    """One row a bag, as `score_tables` takes it."""
    slides = slides_to_score(model, files, tables)
    slides["seen"] = [
        _is_seen(model, *row) for row in slides[["slide_id", "patient_id", "files"]].itertuples(index=False)
    ]
    covariates = covariates_of(model, slides, tables)
    rows = []
    for places in bags_of(slides, model.unit):
        bag = slides.iloc[places]
        rows.append(
            {
                "slide_id": BETWEEN.join(bag["slide_id"]),
                "patient_id": bag["patient_id"].iloc[0],
                "split": SEEN if bag["seen"].any() else NEW,
                "files": tuple(bag["files"]) if all(bag["files"]) else None,
                "covariates": None if covariates is None else covariates[places[0]],
            }
        )
    return pd.DataFrame(rows)


def _beside(model: Model, rows: pd.DataFrame, folder: Path, stage: StageStamp) -> dict[str, Any]:
    """Columns that say how far the bags are from those of the training, and by what they are scored."""
    bags = {bag: slides_of_bag(bag, model.unit) for bag in rows["slide_id"]}
    files: dict[str, Files | None] = {}
    patients: dict[str, str] = {}
    for names, its, patient in zip(bags.values(), rows["files"], rows["patient_id"], strict=True):
        files |= zip(names, its or (None,) * len(names), strict=True)
        patients |= dict.fromkeys(names, patient)
    said = {"stage": stage.stage, "model": model_sha256(folder)[:DIGITS]}
    if not_available(model.reference):
        logger.info("how far the slides are from those of the training is not said: %s", not_available(model.reference))
        return said
    slides = facts_of_slides(files, patients)
    shifts = shift_of(model.reference, slides)
    new = slides.at([row for row, name in enumerate(slides.slide_ids) if name not in model.training["slides"]])
    block = shift_block(model.reference, new, shifts[shifts["slide_id"].isin(new.slide_ids)])
    if block["alarm"]:
        logger.warning("%s", block["sentence"])
    of_slide = {row["slide_id"]: row for row in shifts.to_dict("records")}
    columns: dict[str, list[Any]] = {name: [] for name in ("ood", "colour", "mpp", "flagged", "why")}
    for names in bags.values():
        its = [of_slide[name] for name in names if name in of_slide]
        for name in ("ood", "colour", "mpp"):
            columns[name].append(float(np.fmax.reduce([row[name] for row in its], initial=np.nan)))
        columns["flagged"].append("yes" if any(row["flagged"] for row in its) else "no" if its else "")
        columns["why"].append("; ".join(row["why"] for row in its if row["why"]))
    return columns | said


def _of_patients(patients: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """A table of patients with what is known of any of their slides: one that is unlike, seen or without a score counts.

    Args:
        patients: as `frozen.patient_table` has it: in the order of their first slides.
        predictions: the slides; one whose patient is not known ("") is left out, for it may be one of several.
    """
    own = [patient or (place,) for place, patient in enumerate(predictions["patient_id"])]
    slides = predictions.groupby(pd.factorize(pd.Series(own, dtype=object))[0])
    columns: dict[str, Any] = {
        "split": [SEEN if (of == SEEN).any() else NEW for _, of in slides["split"]],
        "n_unscored": [int((of != "").sum()) for _, of in slides["reason"]],
    }
    if "flagged" in predictions:
        columns |= {name: slides[name].max().to_numpy() for name in ("ood", "colour", "mpp")}
        columns["flagged"] = [max(of, key=("", "no", "yes").index) for _, of in slides["flagged"]]
        columns["why"] = ["; ".join(dict.fromkeys(filter(None, of))) for _, of in slides["why"]]
    known = patients.assign(**columns)
    known = known[known["patient_id"] != ""]
    if len(known) < len(patients):
        what = "%d slides are of patients whom no table names: patients.csv has no row of them; pass --cohort"
        logger.warning(what, len(patients) - len(known))
    return known


def _say_seen(model: Model, rows: pd.DataFrame) -> None:
    n_seen = int((rows["split"] == SEEN).sum())
    if n_seen:
        what = "%d of %d %ss are known to the model, or their patients are, from its training: their scores say nothing"
        logger.warning(what, n_seen, len(rows), model.unit)


def _is_seen(model: Model, slide_id: str, patient_id: str, files: Files | None) -> bool:
    """Slides by id or digest, and every slide of a patient of whom the training had another."""
    if patient_id and patient_id in model.training["patients"]:
        return True
    known: dict[str, str] = model.training["slides"]
    digests = {read_embeddings(file).slide_digest for file in files or ()} - {""}  # imported ones may have none
    return slide_id in known or not digests.isdisjoint(known.values())
