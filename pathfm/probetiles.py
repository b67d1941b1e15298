"""The labelled tiles that a probe is about, and how each backbone gets them: images as they are, or tiles of slides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pathfm.backbones import Backbone, require_tiles
from pathfm.cohort import read_cohort
from pathfm.errors import InputError, LeakageError, TileSpecMismatchError
from pathfm.tileimages import Unit, image_units, survey_tile_images
from pathfm.tilesamples import Sampling, SlideFacts, sample_slides, slide_units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from pathfm.failures import Failure
    from pathfm.privacy import Pseudonyms
    from pathfm.sources import SlideSource
    from pathfm.tiles import TileSpec


@dataclass(frozen=True, eq=False)
class LabelledTiles:
    """Tiles, their labels, and whose they are.

    Attributes:
        table: one row a tile: tile, label, patient_id and site ("" unknown), digest, and patient, which is never empty:
            where nobody states it, the file or the slide itself.
        units: reads them for a backbone.
        failures: what could not be used.
        total: how many slides, or images, were asked for.
        notes: what somebody who reads the result should know.
    """

    table: pd.DataFrame
    units: Callable[[Backbone], list[Unit]]
    failures: list[Failure]
    total: int
    notes: list[str]


def tiles_of_images(found: pd.DataFrame, rows: Sequence[Backbone], spec: TileSpec, how: Sampling) -> LabelledTiles:
    """The tile images that can be read; every backbone gets the same pixels.

    Args:
        found: by `find_tile_images`.
        rows: the backbones.
        spec: says their mpp, if anybody does; a size that it gives must be that of the images.
        how: which labels are asked for, and how files are read.

    Raises:
        TileSpecMismatchError: a backbone was not made for such tiles.
        InputError: no image of a label that is asked for can be read, or they are of another size than stated.
        LeakageError: one image under two patients.
    """
    asked = found if how.classes is None else found[found["label"].isin(how.classes)].reset_index(drop=True)
    if asked.empty:
        message = f"no tile has a label of --classes {', '.join(how.classes or ())}; there are {_names(found['label'])}"
        raise InputError(message)
    usable, failures = survey_tile_images(asked, how.limits, how.workers)
    if usable.empty:
        message = f"none of {len(asked)} tile images can be read; the first: {failures[0].message}"
        raise InputError(message)
    for size_px, count in usable["size_px"].value_counts().items():
        _require_images(rows, int(str(size_px)), count, spec)
    table, notes = _with_patients(usable)
    if spec.mpp is None:
        notes.append("nobody states the mpp of the tile images, so it is not checked; --tiles.mpp states it")
    units = image_units(table, how.batch_size, how.limits, how.workers)
    return LabelledTiles(table, lambda _: units, failures, len(asked), notes)


def tiles_of_slides(
    sources: Sequence[SlideSource],
    facts: dict[str, SlideFacts],
    rows: Sequence[Backbone],
    spec: TileSpec,
    how: Sampling,
) -> LabelledTiles:
    """Tiles of slides; every backbone gets its own size and mpp around the same centres.

    Args:
        sources: the slides.
        facts: label, patient and site of each, by slide_id.
        rows: the backbones.
        spec: what it leaves open, each backbone decides for itself.
        how: how tiles are taken.

    Raises:
        InputError: no slide has a tile of a label that is asked for.
        LeakageError: one scan under two patients.
    """
    specs = [slide_spec(row, spec) for row in rows]
    how = replace(how, specs=tuple(specs))
    sampled = sample_slides(sources, facts, how)
    table, notes = _with_patients(sampled.tiles)
    if len({(one.size_px, one.mpp) for one in specs}) > 1:
        cut = ", ".join(f"{row.name} {one.size_px} px @ {one.mpp:g} mpp" for row, one in zip(rows, specs, strict=True))
        notes.append(f"each backbone sees its own field around the same centres: {cut}")
    return LabelledTiles(
        table,
        lambda row: slide_units(sampled, slide_spec(row, spec), how),
        sampled.failures,
        len(sources),
        [*sampled.notes, *notes],
    )


def slide_spec(row: Backbone, spec: TileSpec) -> TileSpec:
    """The tile spec of a backbone.

    Raises:
        TileSpecMismatchError: it was not made for such tiles.
    """
    resolved = spec.resolved(row.default_size_px, row.default_mpp)
    require_tiles(row, resolved.size_px or 0, resolved.mpp or 0, allow_mismatch=spec.allow_mismatch)
    return resolved


def slide_facts(slides: Sequence[Path], label: str | None, names: Pseudonyms | None) -> dict[str, SlideFacts]:
    """What the cohort tables among the slides say, by slide_id.

    Raises:
        InputError: a label, and no table that could have it.
        CohortError: a table that cannot be used, or none of its rows has a label.
    """
    tables = [read_cohort(path, names) for path in slides if path.suffix.lower() == ".csv"]
    if label is not None and not tables:
        message = f"--label {label} is a column, and --slides names no cohort table (.csv) that could have it"
        raise InputError(message)
    facts = {}
    for cohort in tables:
        labels = cohort.labels(label) if label is not None else None
        for slide_id, patient_id, site in cohort.table[["slide_id", "patient_id", "site"]].itertuples(index=False):
            facts[slide_id] = SlideFacts("" if labels is None else str(labels[slide_id]), patient_id, site)
    return facts


def _require_images(rows: Sequence[Backbone], size_px: int, count: int, spec: TileSpec) -> None:
    if spec.size_px not in (None, size_px) and not spec.allow_mismatch:
        message = f"{count} tile images are {size_px} px wide, not --tiles.size_px {spec.size_px}; leave that out"
        raise InputError(message)
    for row in rows:
        try:
            require_tiles(row, size_px, spec.mpp or row.default_mpp, allow_mismatch=spec.allow_mismatch)
        except TileSpecMismatchError as error:
            message = f"{count} tile images are {size_px} px wide: {error}"
            raise TileSpecMismatchError(message) from error


def _with_patients(tiles: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with the column patient, and a note where patients are not known.

    The same file, or scan, is one patient's wherever it lies.
    """
    known = tiles[tiles["patient_id"] != ""]
    owners = known.groupby("digest")["patient_id"].nunique()
    if (owners > 1).any():
        twice = known[known["digest"] == owners.index[owners > 1][0]].drop_duplicates("patient_id")
        message = (
            f"{' and '.join(twice['tile'][:2])} are the same file under the patients"
            f" {' and '.join(twice['patient_id'][:2])}; keep one, or give them one patient_id"
        )
        raise LeakageError(message)
    owner = dict(zip(known["digest"], known["patient_id"], strict=True))
    patients = [f"patient {owner[digest]}" if digest in owner else f"file {digest}" for digest in tiles["digest"]]
    unknown = sum(digest not in owner for digest in tiles["digest"])
    note = (
        f"the patients of {unknown} of {len(tiles)} tiles are not known: each file is taken for a patient of its own, so"
        " tiles of one patient may be on both sides, and the figures too good and too sure; state patient_id in a table"
    )
    return tiles.assign(patient=patients), [note] if unknown else []


def _names(values: pd.Series[str]) -> str:
    return ", ".join(sorted(set(values))[:10])
