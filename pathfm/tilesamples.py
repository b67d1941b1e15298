"""Labelled tiles of slides: their labels, patients and sites, a sample of each, and its pixels as each backbone wants them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pathfm.backbones import Backbone, require_tiles
from pathfm.cohort import read_cohort
from pathfm.errors import InputError, SlideError, TileUnreadableError
from pathfm.failures import Failure
from pathfm.isolation import cancelled_after, isolated
from pathfm.progress import logger, progress
from pathfm.slidesample import has_annotation, sample_slide
from pathfm.tilefeatures import LabelledTiles, TileSome, Unit, with_patients
from pathfm.tilereads import TileReads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.privacy import Pseudonyms
    from pathfm.slidesample import Sampling, SlideSample
    from pathfm.sources import SlideSource
    from pathfm.tilefeatures import Integers
    from pathfm.tiles import Tiles, TileSpec


class CohortFacts(NamedTuple):
    """What a cohort says of a slide; "" where it does not."""

    label: str = ""
    patient_id: str = ""
    site: str = ""


def tiles_of_slides(
    sources: Sequence[SlideSource],
    facts: Mapping[str, CohortFacts],
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
        TileSpecMismatchError: a backbone was not made for such tiles.
        UnknownNameError: no slide has a label that is asked for.
        InputError: no slide has a tile of a label that is asked for, or one scan has two labels.
        LeakageError: one scan under two patients.
    """
    specs = [slide_spec(row, spec) for row in rows]
    how = replace(how, specs=tuple(specs))
    sampled = sample_slides(sources, facts, how)
    table, notes = with_patients(sampled.tiles)
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


def slide_facts(slides: Sequence[Path], label: str | None, names: Pseudonyms | None) -> dict[str, CohortFacts]:
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
            facts[slide_id] = CohortFacts("" if labels is None else str(labels[slide_id]), patient_id, site)
    return facts


@dataclass(frozen=True, eq=False)
class Sampled:
    """The tiles that were taken.

    Attributes:
        tiles: one row a tile: tile (slide_id@x,y of its centre), slide_id, label, patient_id and site ("" unknown),
            digest (of the slide), pixels and flat (see `with_patients`), sorted by slide and place.
        slides: what is known of each slide that has tiles, by slide_id.
        failures: the slides that could not be used.
        notes: what somebody who reads the result should know.
    """

    tiles: pd.DataFrame
    slides: dict[str, SlideSample]
    failures: list[Failure]
    notes: list[str]


def sample_slides(sources: Sequence[SlideSource], facts: Mapping[str, CohortFacts], how: Sampling) -> Sampled:
    """Takes tiles from each slide; the choice depends on a slide's content, its label and the seed, not on its name.

    A tile belongs to a label where at least `tiles.min_tissue` of the field of every backbone does. Slides without a
    label, or without an annotation, are left out with a note.

    Raises:
        UnknownNameError: no slide has a label that is asked for.
        InputError: no slide has a tile of a label that is asked for, or one scan has two labels.
    """
    if how.annotations is None:
        how.require_known({one.label for one in facts.values()} - {""})
    unlabelled = [one for one in sources if how.annotations is None and not _label(one, facts, how)]
    bare = [one for one in sources if how.annotations is not None and not has_annotation(one, how)]
    asked = {one: _label(one, facts, how) for one in sources if one not in (*unlabelled, *bare)}
    samples, failures = _each(asked, how)
    if how.annotations is None:
        _require_one_label(samples, facts)
    elif samples:
        how.require_known({name for one in samples.values() for name in one.drawn})
    rows = [row for name in sorted(samples) for row in _rows(samples[name], facts.get(name, CohortFacts()))]
    if not rows:
        what = "of a label under the annotations" if how.annotations else "of labelled tissue"
        message = f"no tile {what} in {len(sources)} slides ({len(failures)} failed); look at them with pathfm tile"
        raise InputError(message)
    notes = _notes(unlabelled, bare, list(samples.values())) + _strays(sources, how)
    return Sampled(pd.DataFrame(rows), {name: one for name, one in samples.items() if one.labels}, failures, notes)


def slide_units(sampled: Sampled, spec: TileSpec, how: Sampling) -> list[Unit]:
    """The tiles of each slide as one backbone wants them."""
    units = []
    for slide_id, rows in sampled.tiles.groupby("slide_id").indices.items():
        sample = sampled.slides[str(slide_id)]
        tiles = sample.tiles(spec)
        scale = f"{sample.digest} {sample.mpp!r} {tiles.size_px} {tiles.mpp!r}"
        keys = tuple(f"{scale} {x} {y}" for x, y in tiles.coords.tolist())
        units.append(Unit(str(slide_id), keys, np.sort(rows).astype(np.int64), _Reading(sample, tiles, how)))
    return units


@dataclass(frozen=True, eq=False)
class _Reading:
    """Reads tiles of a slide, as an extraction does."""

    sample: SlideSample
    tiles: Tiles
    how: Sampling

    def __call__(self, rows: Integers) -> Iterator[TileSome]:
        source, how = self.sample.source, self.how
        tiles = replace(self.tiles, coords=self.tiles.coords[rows], coverage=self.tiles.coverage[rows])
        for batch in TileReads(source, tiles, how.batch_size, how.workers, how.limits, reader=how.reader):
            some = rows[batch.start : batch.stop]
            failures = [_failure(source, self.tiles.coords[row]) for row in some[batch.failed]]
            yield TileSome(some[~batch.failed], batch.pixels, failures)


def _failure(source: SlideSource, corner: NDArray[np.int32]) -> Failure:
    x, y = corner.tolist()
    message = f"{source.path} cannot be decoded at ({x}, {y}); that tile is left out for all backbones"
    return Failure.of(source.slide_id, TileUnreadableError(source.path, "corrupt tile", message))


def _each(labels: Mapping[SlideSource, str], how: Sampling) -> tuple[dict[str, SlideSample], list[Failure]]:
    """What was taken from each slide, by slide_id, in processes of their own."""
    limits = how.limits.for_whole_slide()
    calls = {
        source: isolated(source.path, limits, how.workers, sample_slide, source, label, how)
        for source, label in labels.items()
    }
    samples: dict[str, SlideSample] = {}
    failures: list[Failure] = []
    with cancelled_after(calls.values()):
        for source, call in progress(calls.items(), "find tiles"):
            try:
                samples[source.slide_id] = call.result()
            except SlideError as error:
                logger.error("%s: failed, %s: %s", source.slide_id, error.reason, error.message)
                failures.append(Failure.of(source.slide_id, error))
    return samples, failures


def _require_one_label(samples: Mapping[str, SlideSample], facts: Mapping[str, CohortFacts]) -> None:
    seen: dict[str, str] = {}
    for name, sample in samples.items():
        other = seen.setdefault(sample.digest, name)
        if facts[other].label != facts[name].label:
            labels = f"{facts[other].label} and {facts[name].label}"
            message = f"{other} and {name} are the same scan under the labels {labels}; keep one, or give them one"
            raise InputError(message)


def _label(source: SlideSource, facts: Mapping[str, CohortFacts], how: Sampling) -> str:
    """The label of all tiles of a slide; "" where it has none that is asked for."""
    label = facts.get(source.slide_id, CohortFacts()).label
    return label if how.classes is None or label in how.classes else ""


def _strays(sources: Sequence[SlideSource], how: Sampling) -> list[str]:
    """Annotations of no slide; without their names where those of slides are pseudonyms."""
    if how.annotations is None:
        return []
    names = {name for one in sources for name in (one.slide_id, one.original_id)}
    strays = sorted(path.name for path in how.annotations.glob("*.geojson") if path.stem not in names)
    named = "" if any(one.original_id for one in sources) else f": {_some(strays)}"
    return [f"{len(strays)} .geojson files are called like no slide and are left out{named}"] if strays else []


def _rows(sample: SlideSample, facts: CohortFacts) -> list[dict[str, str | bool]]:
    slide_id = sample.source.slide_id
    return [
        {
            "tile": f"{slide_id}@{x:.0f},{y:.0f}",
            "slide_id": slide_id,
            "label": label,
            "patient_id": facts.patient_id,
            "site": facts.site,
            "digest": sample.digest,
            "pixels": f"{sample.digest}@{x:.0f},{y:.0f}",
            "flat": False,
        }
        for label, (x, y) in zip(sample.labels, sample.centres_px0.tolist(), strict=True)
    ]


def _notes(unlabelled: Sequence[SlideSource], bare: Sequence[SlideSource], samples: Sequence[SlideSample]) -> list[str]:
    taken, found = sum(len(one.labels) for one in samples), sum(one.found for one in samples)
    of_two, of_few = sum(one.of_two for one in samples), sum(one.of_few for one in samples)
    empty = [one.source.slide_id for one in samples if not one.labels]
    no_label, not_drawn = [one.slide_id for one in unlabelled], [one.slide_id for one in bare]
    counts = {
        f"slides without a label that is asked for are left out: {_some(no_label)}": len(no_label),
        f"slides without an annotation are left out: {_some(not_drawn)}": len(not_drawn),
        f"slides have no tile with enough of a label: {_some(empty)}": len(empty),
        "tiles under annotations of two classes are left out": of_two,
        "tiles are left out, for the field of some backbone holds too little of their label": of_few,
    }
    sampled = [f"{taken} of {found} tiles are a random sample, by --max_tiles and --seed"] if taken < found else []
    return [f"{count} {what}" for what, count in counts.items() if count] + sampled


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")
