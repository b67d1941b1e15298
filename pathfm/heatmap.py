"""Where a model looked: for each slide an overlay, a gallery of the top tiles and GeoJSON for QuPath."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING

import pandas as pd

from pathfm.choices import SEEN, final_choices, fold_choices
from pathfm.cohort import read_cohort
from pathfm.embeddings import recipe_sha256
from pathfm.errors import InputError, SlideError, SlidesFailedError
from pathfm.files import canonical_json, sha256_file, sha256_text, write_atomically, write_text
from pathfm.isolation import Limits, isolated
from pathfm.joined import Files, find_caches, read_joined, slides_of
from pathfm.overlay import attention_geojson, relative
from pathfm.patients import NO_TISSUE
from pathfm.pictures import View, draw_pictures
from pathfm.privacy import private_run
from pathfm.progress import logger, progress
from pathfm.proven import name_some
from pathfm.scoring import require_slide, score_bag
from pathfm.scrub import withheld
from pathfm.sources import SlideSource, find_slides
from pathfm.stage import read_stage
from pathfm.tables import read_table
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pathfm.choices import Choice
    from pathfm.embeddings import Embeddings
    from pathfm.model import Model

HEATMAPS_CSV = "heatmaps.csv"


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
    target: str = ""
    """What is predicted."""
    origin: str = ""
    """Whose attention it is: "out of fold", "final model", or "seen in training"."""
    predicted: str = ""
    """The most probable class, or what else is predicted."""
    probability: float | None = None
    """Its probability, where it has one."""
    label: str = ""
    """The label, "" where it is not known."""
    n_tiles: int = 0
    """Tiles of the slide."""
    top_attention: float | None = None
    """The highest attention of a tile of the slide, relative to the average tile of the bag."""
    stage: str = ""
    """What the release gate let the model be used for, "" where nothing was drawn."""
    why: str = ""
    """Why nothing was drawn."""
    fingerprint: str = ""
    """Digest of all that decides the three files."""


def heatmap(
    model: Path,
    slides: list[Path],
    embeddings: list[Path],
    out: Path,
    final_model: Path | None = None,
    target: str | None = None,
    top_tiles: int = 8,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> pd.DataFrame:
    """Draws the attention of a model over slides: `<slide_id>.png`, `-tiles.png`, `.geojson` and the list heatmaps.csv.

    Scale and tiles are those of the embeddings files. A head with a branch of attention for each output shows the mean
    of its branches, each weighted by how far it moves the decision, an ensemble the mean of its members. A model of
    patients is shown slide by slide, each with its tiles' part of the attention over all slides of the patient. Slides
    without embeddings or without tiles, and heads without attention, are listed with the reason and not drawn. What is
    drawn already by the same model from the same embeddings is kept.

    Args:
        model: a model directory, or one that crossval wrote: then the model of each slide's own fold draws it, which has
            not seen its patient.
        slides: folders, files or cohort tables; of a model of patients a cohort table, which says whose they are.
        embeddings: the folder that extract wrote; of a model that reads several side by side all of them, in any order.
        out: folder for the pictures.
        final_model: the model directory for slides that took no part in the cross-validation; else they are not drawn.
        target: which target is shown, where the model has several.
        top_tiles: number of tiles in the gallery.
        limits: what a process that reads a slide may take.
        pseudonymise: the key file that extract was given; slides are then called by keyed hashes of their ids.

    Returns:
        heatmaps.csv as a table.

    Raises:
        SlidesFailedError: at the end, when a slide could not be read; the others are drawn.
        EmbeddingsStaleError: embeddings of another recipe than the model's, or of another slide.
        ModelError: not a model directory, or a folds.csv that cannot be used.
        InputError: the model has several targets and none is named, or a path that cannot be used.
    """
    if top_tiles < 1:
        message = f"--top-tiles is {top_tiles}; show at least 1"
        raise InputError(message)
    with private_run(pseudonymise, out, embeddings, [model, final_model], slides=slides) as names:
        sources = find_slides(slides, names=names)
        ids = [one.slide_id for one in sources]
        cohorts = [read_cohort(path.absolute(), names) for path in slides if path.suffix.lower() == ".csv"]
        choices = fold_choices(model, target, cohorts)
        if final_model or not choices:
            choices = final_choices(final_model or model, target, cohorts, ids, embeddings) | choices
        files = _files_by_recipe(embeddings, choices.values())
        drawn_before = _read_rows(out / HEATMAPS_CSV)
        rows: list[HeatmapRow] = []
        failed = 0
        try:
            for source in progress(sources, "heatmap"):
                choice = choices.get(source.slide_id)
                try:
                    rows.append(_one_slide(source, files[_key(choice)], choice, out, top_tiles, drawn_before, limits))
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
    files: Mapping[str, Files | None],
    choice: Choice | None,
    out: Path,
    top_tiles: int,
    drawn_before: dict[str, HeatmapRow],
    limits: Limits,
) -> HeatmapRow:
    row = HeatmapRow(slide_id=source.slide_id)
    why = _why_not(row.slide_id, files, choice)
    if choice is None or why:
        return replace(row, why=why)
    its_files = [one for name in choice.bag if (one := files[name]) is not None]
    bag = [read_joined(one, choice.model.recipe) for one in its_files]
    for name, one, embeddings in zip(choice.bag, its_files, bag, strict=True):
        require_slide(one[0], embeddings, name)
    score = score_bag(choice.model, bag, choice.covariates)
    place = choice.bag.index(row.slide_id)
    if score.reason or not len(bag[place].coords):
        return replace(row, why=score.reason or NO_TISSUE)
    attention = score.attention(choice.which)
    if attention is None:
        return replace(row, why=f"the head '{choice.model.heads[0].name}' has no attention")
    before_it = sum(len(one.coords) for one in bag[:place])
    mine = attention[before_it : before_it + len(bag[place].coords)]
    row = _scored_row(row, bag[place], choice, score.scores[choice.which], relative(mine, len(attention)))
    fingerprint = _fingerprint(row, its_files, choice, top_tiles)
    before, names = drawn_before.get(row.slide_id), _names(row.slide_id)
    if before is not None and before.fingerprint == fingerprint and all((out / name).is_file() for name in names):
        return before
    view = View.of(bag[place], mine, len(attention), _title(row, choice), top_tiles)
    _write(source, its_files[place][0], view, out, limits)
    return replace(row, overlay=names[0], gallery=names[1], geojson=names[2], fingerprint=fingerprint)


def _why_not(slide_id: str, files: Mapping[str, Files | None], choice: Choice | None) -> str:
    if files.get(slide_id) is None:
        return "it has no embeddings file"
    if choice is None:
        return "it took no part in the cross-validation; pass --final-model to draw it"
    missing = [name for name in choice.bag if files.get(name) is None]
    if missing:
        return f"the model takes the slides of a patient as one bag, and {name_some(missing)} has no embeddings file"
    return ""


def _files_by_recipe(embeddings: list[Path], choices: Iterable[Choice | None]) -> dict[str, dict[str, Files | None]]:
    """The files of each slide in the order of each model's recipe, by its digest; by "" for slides without a model.

    Each slide's own model is held against its files again.
    """
    recipes = {_key(choice): choice.model.recipe for choice in choices if choice is not None}
    files = {key: slides_of(find_caches(embeddings, recipe)) for key, recipe in recipes.items()}
    return files | {"": next(iter(files.values()), {})}


def _key(choice: Choice | None) -> str:
    return "" if choice is None else recipe_sha256(choice.model.recipe)


def _scored_row(
    row: HeatmapRow,
    embeddings: Embeddings,
    choice: Choice,
    scores: NDArray[np.float64],
    relative_attention: NDArray[np.float64],
) -> HeatmapRow:
    target, slides = choice.model.task.targets[choice.which], choice.model.training["slides"]
    predicted = target.predicted(scores[None])[0]
    probability = dict(zip(target.names, scores, strict=True)).get(f"prob_{predicted}")
    seen = row.slide_id in slides or (embeddings.slide_digest and embeddings.slide_digest in slides.values())
    return replace(
        row,
        target=target.name,
        origin=SEEN if seen else choice.origin,
        predicted=predicted,
        probability=None if probability is None else round(float(probability), 4),
        label=choice.label,
        n_tiles=len(embeddings.coords),
        top_attention=round(float(relative_attention.max()), 3),
        stage=read_stage(choice.folder).stage,
    )


def _title(row: HeatmapRow, choice: Choice) -> str:
    said = f"{row.slide_id}: {row.target} {row.predicted}"
    if row.probability is not None:
        said += f" with probability {row.probability:.2f}"
    if row.label:
        verdict = "right" if row.label == row.predicted else "wrong"
        said += f", labelled {row.label}" + (f" ({verdict})" if row.probability is not None else "")
    by = "by a model that was trained on this slide, or on another of the patient" if row.origin == SEEN else choice.by
    others = f", one bag with {len(choice.bag) - 1} more of the patient" if len(choice.bag) > 1 else ""
    branches = ", branches of attention by their weight" if _has_branches(choice.model) else ""
    return f"{said}\n{by}; {row.n_tiles} tiles{others}{branches}; stage: {row.stage}"


def _has_branches(model: Model) -> bool:
    return model.task.n_outputs > 1 and any(head.pooling.attention == "each output" for head in model.heads)


def _write(source: SlideSource, file: Path, view: View, out: Path, limits: Limits) -> None:
    """Draws in another process, which a slide may crash, and writes here."""
    pictures = isolated(source.path, limits.for_whole_slide(), 1, draw_pictures, source, file, view).result()
    overlay, gallery, geojson = (out / name for name in _names(source.slide_id))
    write_atomically(overlay, pictures.overlay)
    write_atomically(gallery, pictures.gallery)
    points = attention_geojson(view.coords, view.extent_px0, view.attention, view.n_bag)
    write_text(geojson, json.dumps(points, separators=(",", ":")))


def _names(slide_id: str) -> tuple[str, str, str]:
    return f"{slide_id}.png", f"{slide_id}-tiles.png", f"{slide_id}.geojson"


def _fingerprint(row: HeatmapRow, files: Sequence[Files], choice: Choice, top_tiles: int) -> str:
    facts = [
        asdict(row),
        *(sha256_file(file) for its in files for file in its),
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
