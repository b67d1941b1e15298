"""Where a model looked: for each slide an overlay, a gallery of the top tiles and GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections import deque
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, NamedTuple

from pathfm.choices import SEEN, final_choices, fold_choices
from pathfm.cohort import read_cohort
from pathfm.embeddings import recipe_sha256
from pathfm.errors import InputError, SlideError, SlidesFailedError
from pathfm.files import canonical_json, sha256_file, sha256_text, write_atomically, write_text
from pathfm.heatmaprows import HEATMAPS_CSV, HeatmapRow, read_rows, table_of, write_rows
from pathfm.isolation import Limits, isolated, usual_workers
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
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.choices import Choice
    from pathfm.embeddings import Embeddings
    from pathfm.isolation import Call
    from pathfm.model import Model
    from pathfm.pictures import Pictures

_AHEAD = 2  # slides a process


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
        drawn_before = read_rows(out / HEATMAPS_CSV)
        how = (out, top_tiles, drawn_before, limits)
        begun = (
            _begun(one, files[_key(choices.get(one.slide_id))], choices.get(one.slide_id), *how) for one in sources
        )
        rows: list[HeatmapRow] = []
        failed = 0
        try:
            with closing(_ahead(begun)) as coming:
                for one in progress(coming, "heatmap", total=len(sources)):
                    try:
                        rows.append(_written(one, out))
                    except SlideError as error:
                        failed += 1
                        why = withheld(error.message).replace(str(error.path), error.path.name)  # folders name people
                        rows.append(HeatmapRow(slide_id=one.row.slide_id, why=why))
                    if rows[-1].why:
                        logger.warning("no heatmap of %s: %s", rows[-1].slide_id, rows[-1].why)
        finally:  # also when interrupted: what is drawn is not drawn again
            not_reached = [drawn_before[one.slide_id] for one in sources[len(rows) :] if one.slide_id in drawn_before]
            write_rows(out / HEATMAPS_CSV, rows + not_reached)
        if failed:
            raise SlidesFailedError(failed, len(rows), out / HEATMAPS_CSV)
        return table_of(rows).drop(columns=["fingerprint", "geojson"])


class _Coming(NamedTuple):
    """The row of a slide, and what is being drawn for it, if anything is."""

    row: HeatmapRow
    view: View | None = None
    drawing: Call[Pictures] | None = None


def _ahead(begun: Iterator[_Coming]) -> Generator[_Coming]:
    """The same, each while the next ones are being drawn."""
    coming: deque[_Coming] = deque()
    try:
        coming.extend(islice(begun, _AHEAD * usual_workers()))
        while coming:
            yield coming.popleft()
            coming.extend(islice(begun, 1))
    finally:
        for one in coming:
            if one.drawing is not None:
                one.drawing.cancel()


def _begun(
    source: SlideSource,
    files: Mapping[str, Files | None],
    choice: Choice | None,
    out: Path,
    top_tiles: int,
    drawn_before: dict[str, HeatmapRow],
    limits: Limits,
) -> _Coming:
    """Scores a slide, and has another process draw it, which the slide may crash."""
    row = HeatmapRow(slide_id=source.slide_id)
    why = _why_not(row.slide_id, files, choice)
    if choice is None or why:
        return _Coming(replace(row, why=why))
    its_files = [one for name in choice.bag if (one := files[name]) is not None]
    bag = [read_joined(one, choice.model.recipe) for one in its_files]
    for name, one, embeddings in zip(choice.bag, its_files, bag, strict=True):
        require_slide(one[0], embeddings, name)
    score = score_bag(choice.model, bag, choice.covariates)
    place = choice.bag.index(row.slide_id)
    if score.reason or not len(bag[place].coords):
        return _Coming(replace(row, why=score.reason or NO_TISSUE))
    attention = score.attention(choice.which)
    if attention is None:
        return _Coming(replace(row, why=f"the head '{choice.model.heads[0].name}' has no attention"))
    before_it = sum(len(one.coords) for one in bag[:place])
    mine = attention[before_it : before_it + len(bag[place].coords)]
    row = _scored_row(row, bag[place], choice, score.scores[choice.which], relative(mine, len(attention)))
    fingerprint = _fingerprint(row, its_files, choice, top_tiles)
    before, names = drawn_before.get(row.slide_id), _names(row.slide_id)
    if before is not None and before.fingerprint == fingerprint and all((out / name).is_file() for name in names):
        return _Coming(before)
    view = View.of(bag[place], mine, len(attention), _title(row, choice), top_tiles)
    where = (source.path, limits.for_whole_slide(), usual_workers())
    drawing = isolated(*where, draw_pictures, source, its_files[place][0], view)
    row = replace(row, overlay=names[0], gallery=names[1], geojson=names[2], fingerprint=fingerprint)
    return _Coming(row, view, drawing)


def _written(one: _Coming, out: Path) -> HeatmapRow:
    """The row of a slide, whose pictures are there.

    Raises:
        SlideError: it could not be drawn.
    """
    if one.view is None or one.drawing is None:
        return one.row
    pictures = one.drawing.result()
    write_atomically(out / one.row.overlay, pictures.overlay)
    write_atomically(out / one.row.gallery, pictures.gallery)
    points = attention_geojson(one.view.coords, one.view.extent_px0, one.view.attention, one.view.n_bag)
    write_text(out / one.row.geojson, json.dumps(points, separators=(",", ":")))
    return one.row


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
