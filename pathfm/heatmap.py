"""Where a model looked: for each slide an overlay, a gallery of the top tiles and GeoJSON for QuPath."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pathfm.embeddings import recipe_sha256
from pathfm.errors import InputError, ModelError, SlideError, SlidesFailedError
from pathfm.files import canonical_json, sha256_file, sha256_text, write_atomically, write_text
from pathfm.isolation import Limits, isolated
from pathfm.joined import Files, find_caches, read_joined, slides_of
from pathfm.model import Model, read_model
from pathfm.overlay import attention_geojson, relative
from pathfm.pictures import View, draw_pictures
from pathfm.privacy import private_run
from pathfm.progress import logger, progress
from pathfm.scoring import require_slide, score_slide
from pathfm.scrub import withheld
from pathfm.sources import SlideSource, find_slides
from pathfm.tables import read_table
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pathfm.embeddings import Embeddings

HEATMAPS_CSV = "heatmaps.csv"
OUT_OF_FOLD = "out of fold"
FINAL_MODEL = "final model"
SEEN = "seen in training"


@dataclass(frozen=True, kw_only=True)
class HeatmapRow:
    """A row of heatmaps.csv: what was drawn of a slide, or why it was not."""

    slide_id: str
    """The slide."""
    overlay: str = ""
    """File name of the overlay, "" where nothing was drawn."""
    gallery: str = ""
    """File name of the top tiles."""
    geojson: str = ""
    """File name of the tiles for QuPath."""
    origin: str = ""
    """Whose attention it is: "out of fold", "final model", or "seen in training"."""
    predicted: str = ""
    """The most probable class."""
    probability: float | None = None
    """Its probability."""
    label: str = ""
    """The slide's own label, "" where it is not known."""
    n_tiles: int = 0
    """Tiles with attention."""
    top_attention: float | None = None
    """The highest attention, relative to the slide's average."""
    why: str = ""
    """Why nothing was drawn."""
    fingerprint: str = ""
    """Digest of all that decides the three files."""


class _Choice(NamedTuple):
    """The model that draws a slide."""

    folder: Path
    model: Model
    origin: str
    by: str
    label: str = ""


def heatmap(
    model: Path,
    slides: list[Path],
    embeddings: list[Path],
    out: Path,
    final_model: Path | None = None,
    top_tiles: int = 8,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> pd.DataFrame:
    """Draws the attention of a model over slides: `<slide_id>.png`, `-tiles.png`, `.geojson` and the list heatmaps.csv.

    Scale and tiles are those of the embeddings files. Slides without embeddings or without tiles, and heads without
    attention, are listed with the reason and not drawn. What is drawn already by the same model from the same embeddings is kept.

    Args:
        model: a model directory, or one that crossval wrote: then the model of each slide's own fold draws it, which has
            not seen its patient.
        slides: folders, files or cohort tables.
        embeddings: the folder that extract wrote; of a model that reads several side by side all of them, in any order.
        out: folder for the pictures.
        final_model: the model directory for slides that took no part in the cross-validation; else they are not drawn.
        top_tiles: number of tiles in the gallery.
        limits: what a process that reads a slide may take.
        pseudonymise: the key file that extract was given; slides are then called by keyed hashes of their ids.

    Returns:
        heatmaps.csv as a table.

    Raises:
        SlidesFailedError: at the end, when a slide could not be read; the others are drawn.
        EmbeddingsStaleError: embeddings of another recipe than the model's, or of another slide.
        ModelError: not a model directory, or a folds.csv that cannot be used.
    """
    if top_tiles < 1:
        message = f"--top-tiles is {top_tiles}; show at least 1"
        raise InputError(message)
    with private_run(pseudonymise, out, embeddings, [model, final_model], slides=slides) as names:
        choices = _fold_choices(model)
        other = _whole_model(final_model or model) if final_model or not choices else None
        files = _files_by_recipe(embeddings, [*choices.values(), other])
        drawn_before = _read_rows(out / HEATMAPS_CSV)
        sources = find_slides(slides, names=names)
        rows: list[HeatmapRow] = []
        failed = 0
        try:
            for source in progress(sources, "heatmap"):
                choice = choices.get(source.slide_id, other)
                try:
                    its_files = files[_key(choice)].get(source.slide_id)
                    rows.append(_one_slide(source, its_files, choice, out, top_tiles, drawn_before, limits))
                except SlideError as error:
                    failed += 1
                    why = withheld(error.message).replace(str(error.path), error.path.name)  # folders name people
                    rows.append(HeatmapRow(slide_id=source.slide_id, why=why))
                if rows[-1].why:
                    logger.warning("no heatmap of %s: %s", rows[-1].slide_id, rows[-1].why)
        finally:  # also when interrupted: what is drawn is not drawn again
            not_reached = [drawn_before[one.slide_id] for one in sources[len(rows) :] if one.slide_id in drawn_before]
            _write_rows(out / HEATMAPS_CSV, rows + not_reached)
        if failed:
            raise SlidesFailedError(failed, len(rows), out / HEATMAPS_CSV)
        return _table(rows).drop(columns=["fingerprint", "geojson"])


def _one_slide(
    source: SlideSource,
    files: Files | None,
    choice: _Choice | None,
    out: Path,
    top_tiles: int,
    drawn_before: dict[str, HeatmapRow],
    limits: Limits,
) -> HeatmapRow:
    row = HeatmapRow(slide_id=source.slide_id)
    if files is None:
        return replace(row, why="it has no embeddings file")
    if choice is None:
        return replace(row, why="it took no part in the cross-validation; pass --final-model to draw it")
    model = choice.model
    embeddings = read_joined(files, model.recipe)
    require_slide(files[0], embeddings, source.slide_id)
    score = score_slide(model, embeddings)
    attention = score.attention
    if score.probabilities is None or attention is None or not len(attention):
        return replace(row, why=score.reason or f"the head '{model.head.name}' has no attention")
    row = _scored_row(row, embeddings, choice, score.probabilities, attention)
    fingerprint = _fingerprint(row, files, choice, top_tiles)
    before, names = drawn_before.get(row.slide_id), _names(row.slide_id)
    if before is not None and before.fingerprint == fingerprint and all((out / name).is_file() for name in names):
        return before
    _write(source, files[0], View.of(embeddings, attention, _title(row, choice), top_tiles), out, limits)
    return replace(row, overlay=names[0], gallery=names[1], geojson=names[2], fingerprint=fingerprint)


def _fold_choices(folder: Path) -> dict[str, _Choice]:
    """For each slide of a cross-validation, the model of its own fold; empty for a plain model directory."""
    path = folder / "folds.csv"
    if not path.is_file():
        return {}
    table = _read_folds(path)
    models: dict[Path, Model] = {}
    choices: dict[str, _Choice] = {}
    for row in table[table["fold"] != ""].to_dict("records"):
        fold = folder / "folds" / str(row["fold"])
        if fold not in models:
            models[fold] = read_model(fold)
        by = f"out of fold: by the model of fold {row['fold']}, which has not seen this patient"
        _require_unseen(fold, models[fold], str(row["patient_id"]), str(row["slide_id"]))
        choices[str(row["slide_id"])] = _Choice(fold, models[fold], OUT_OF_FOLD, by, str(row.get("label", "")))
    return choices


def _read_folds(path: Path) -> pd.DataFrame:
    remedy = "run pathfm crossval again, or pass --model the folder that it wrote"
    try:
        table = read_table(path, ("slide_id", "patient_id", "fold"), remedy)
    except InputError as error:
        raise ModelError(str(error)) from error
    if not table["fold"].str.fullmatch("[0-9]{0,9}").all():
        message = f"{path} holds something else than numbers in the column fold; {remedy}"
        raise ModelError(message)
    return table


def _require_unseen(fold: Path, model: Model, patient_id: str, slide_id: str) -> None:
    if patient_id in model.training["patients"] or slide_id in model.training["slides"]:
        message = f"{fold} was trained on patient {patient_id}, whom its folds.csv keeps for scoring; run pathfm crossval again"
        raise ModelError(message)


def _files_by_recipe(embeddings: list[Path], choices: Sequence[_Choice | None]) -> dict[str, dict[str, Files | None]]:
    """The files of each slide in the order of each model's recipe, by its digest; by "" for slides without a model.

    Each slide's own model is held against its files again.
    """
    recipes = {_key(choice): choice.model.recipe for choice in choices if choice is not None}
    files = {key: slides_of(find_caches(embeddings, recipe)) for key, recipe in recipes.items()}
    return files | {"": next(iter(files.values()), {})}


def _key(choice: _Choice | None) -> str:
    return "" if choice is None else recipe_sha256(choice.model.recipe)


def _whole_model(folder: Path) -> _Choice:
    return _Choice(folder, read_model(folder), FINAL_MODEL, "by the final model, which has not seen this slide")


def _scored_row(
    row: HeatmapRow,
    embeddings: Embeddings,
    choice: _Choice,
    probabilities: NDArray[np.floating[Any]],
    attention: NDArray[np.floating[Any]],
) -> HeatmapRow:
    best = int(np.argmax(probabilities))
    slides = choice.model.training["slides"]
    seen = row.slide_id in slides or (embeddings.slide_digest and embeddings.slide_digest in slides.values())
    return replace(
        row,
        origin=SEEN if seen else choice.origin,
        predicted=choice.model.classes[best],
        probability=round(float(probabilities[best]), 4),
        label=choice.label,
        n_tiles=len(attention),
        top_attention=round(float(relative(attention).max()), 3),
    )


def _title(row: HeatmapRow, choice: _Choice) -> str:
    said = f"{row.slide_id}: {choice.model.label} {row.predicted} with probability {row.probability:.2f}"
    if row.label:
        said += f", labelled {row.label} ({'right' if row.label == row.predicted else 'wrong'})"
    by = "by a model that was trained on this slide" if row.origin == SEEN else choice.by
    return f"{said}\n{by}; {row.n_tiles} tiles"


def _write(source: SlideSource, file: Path, view: View, out: Path, limits: Limits) -> None:
    """Draws in another process, which a slide may crash, and writes here."""
    pictures = isolated(source.path, limits.for_whole_slide(), 1, draw_pictures, source, file, view).result()
    overlay, gallery, geojson = (out / name for name in _names(source.slide_id))
    write_atomically(overlay, pictures.overlay)
    write_atomically(gallery, pictures.gallery)
    points = attention_geojson(view.coords, view.extent_px0, view.attention)
    write_text(geojson, json.dumps(points, separators=(",", ":")))


def _names(slide_id: str) -> tuple[str, str, str]:
    return f"{slide_id}.png", f"{slide_id}-tiles.png", f"{slide_id}.geojson"


def _fingerprint(row: HeatmapRow, files: Files, choice: _Choice, top_tiles: int) -> str:
    facts = [
        asdict(row),
        *map(sha256_file, files),
        sha256_file(choice.folder / "model.json"),
        choice.by,
        top_tiles,
        __version__,
    ]
    return sha256_text(canonical_json(facts))


def _table(rows: list[HeatmapRow]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(HeatmapRow)])


def _write_rows(path: Path, rows: list[HeatmapRow]) -> None:
    write_text(path, _table(rows).to_csv(index=False, lineterminator="\n"))


def _read_rows(path: Path) -> dict[str, HeatmapRow]:
    """What heatmaps.csv says was drawn before, by slide_id; nothing where it cannot be used, then all is drawn again."""
    if not path.is_file():
        return {}
    names = [field.name for field in fields(HeatmapRow)]
    numbers = {"probability": float, "top_attention": float, "n_tiles": int}
    try:
        table = read_table(path, names, "all slides are drawn again")
        drawn = table.loc[table["fingerprint"] != "", names].to_dict("records")
        rows = [HeatmapRow(**{str(k): numbers.get(str(k), str)(v) for k, v in row.items()}) for row in drawn]
    except (InputError, ValueError) as error:
        logger.warning("%s", error)
        return {}
    return {row.slide_id: row for row in rows}
