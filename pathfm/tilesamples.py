"""Labelled tiles of slides: a seeded sample of those under annotations, or of the tissue of slides that have one label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pathfm.errors import InputError, SlideError, TileUnreadableError
from pathfm.failures import Failure
from pathfm.isolation import cancelled_after, isolated
from pathfm.outlines import annotations_from_geojson, tissue_of
from pathfm.progress import logger, progress
from pathfm.reading import opened
from pathfm.slidefiles import slide_digest
from pathfm.tileimages import TileSome, Unit
from pathfm.tilereads import TileReads
from pathfm.tiles import Tiles, require_scan_fine_enough, tile_slide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.isolation import Limits
    from pathfm.slide import Reader, Slide
    from pathfm.sources import SlideSource
    from pathfm.tiles import TileSpec
    from pathfm.tissue import TissueMask, TissueSpec


class SlideFacts(NamedTuple):
    """What a cohort says of a slide; "" where it does not."""

    label: str = ""
    patient_id: str = ""
    site: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tiles are taken from slides; picklable.

    Attributes:
        specs: the resolved tile spec of each backbone; the grid is that of the widest.
        tissue: how tissue is found, and how finely annotations are drawn.
        annotations: folder of <slide_id>.geojson whose classes are the labels, None where a slide has one label.
        classes: the labels that are asked for, None for all.
        most: tiles of a slide and label.
        seed: of the choice.
        workers: processes that read.
        limits: of each of them.
        reader: what decodes slides.
        batch_size: tiles at a time.
    """

    specs: tuple[TileSpec, ...]
    tissue: TissueSpec
    annotations: Path | None
    classes: tuple[str, ...] | None
    most: int
    seed: int
    workers: int
    limits: Limits
    reader: Reader
    batch_size: int

    @property
    def widest(self) -> TileSpec:
        """The spec with the widest field; of equal ones the finest."""
        return max(self.specs, key=lambda spec: ((spec.size_px or 0) * (spec.mpp or 0), -(spec.mpp or 0)))


@dataclass(frozen=True, eq=False)
class Sampled:
    """The tiles that were taken.

    Attributes:
        tiles: one row a tile: tile (slide_id@x,y of its centre), slide_id, label, patient_id and site ("" unknown),
            digest (of the slide), sorted by slide and place.
        slides: what is known of each slide that has tiles, by slide_id.
        failures: the slides that could not be used.
        notes: what somebody who reads the result should know.
    """

    tiles: pd.DataFrame
    slides: dict[str, SlideSample]
    failures: list[Failure]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SlideSample:
    """The tiles that were taken from a slide; picklable.

    Attributes:
        source: the slide.
        digest: what it is known by.
        mpp: microns per pixel of its level 0.
        labels: of each tile.
        centres_px0: float64 (n, 2), (x, y) of the middle of each tile in level-0 pixels, sorted by y, then x.
        found: tiles that could have been taken.
        of_two: tiles that were not, for they lie under annotations of two classes.
    """

    source: SlideSource
    digest: str
    mpp: float
    labels: tuple[str, ...]
    centres_px0: NDArray[np.float64]
    found: int
    of_two: int

    def tiles(self, spec: TileSpec) -> Tiles:
        """The tiles as one backbone wants them, around the same centres; whole pixels, so up to one off."""
        size_px, mpp = spec.size_px or 0, spec.mpp or 0.0
        extent_px0 = size_px * mpp / self.mpp
        # rounded down: the field of the widest lies inside the scan, and so does each narrower one
        corners = np.floor(self.centres_px0 - extent_px0 / 2 + 1e-6).astype(np.int32)
        return Tiles(corners, np.ones(len(corners), np.float32), size_px, mpp, size_px, extent_px0)


def sample_slides(sources: Sequence[SlideSource], facts: Mapping[str, SlideFacts], how: Sampling) -> Sampled:
    """Takes tiles from each slide; the choice depends on a slide's content, its label and the seed, not on its name.

    A tile belongs to a label where at least `tiles.min_tissue` of it does. Slides without a label, or without an
    annotation, are left out with a note.
    """
    unlabelled = [one for one in sources if how.annotations is None and not _label(one, facts, how)]
    bare = [one for one in sources if how.annotations is not None and not _annotation(one, how).exists()]
    asked = [one for one in sources if one not in (*unlabelled, *bare)]
    calls = {
        one: isolated(one.path, how.limits.for_whole_slide(), how.workers, _sample, one, _label(one, facts, how), how)
        for one in asked
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
    rows = [row for slide_id in sorted(samples) for row in _rows(samples[slide_id], facts.get(slide_id, SlideFacts()))]
    if not rows:
        what = "of a label under the annotations" if how.annotations else "of labelled tissue"
        message = f"no tile {what} in {len(sources)} slides ({len(failures)} failed); look at them with pathfm tile"
        raise InputError(message)
    notes = _notes(unlabelled, bare, list(samples.values()))
    return Sampled(pd.DataFrame(rows), {name: one for name, one in samples.items() if one.labels}, failures, notes)


def slide_units(sampled: Sampled, spec: TileSpec, how: Sampling) -> list[Unit]:
    """The tiles of each slide as one backbone wants them."""
    units = []
    for slide_id, rows in sampled.tiles.groupby("slide_id").indices.items():
        sample = sampled.slides[str(slide_id)]
        tiles = sample.tiles(spec)
        facts = {
            "slide": sample.digest,
            "mpp": sample.mpp,
            "size_px": tiles.size_px,
            "tile_mpp": tiles.mpp,
            "coords": tiles.coords.tolist(),
        }
        units.append(Unit(str(slide_id), facts, np.sort(rows).astype(np.int64), _Reading(sample, tiles, how)))
    return units


@dataclass(frozen=True, eq=False)
class _Reading:
    """Reads the tiles of a slide, as an extraction does."""

    sample: SlideSample
    tiles: Tiles
    how: Sampling

    def __call__(self) -> Iterator[TileSome]:
        source, how = self.sample.source, self.how
        for batch in TileReads(source, self.tiles, how.batch_size, how.workers, how.limits, reader=how.reader):
            rows = np.arange(batch.start, batch.stop)
            failures = [_failure(source, self.tiles.coords[row]) for row in rows[batch.failed]]
            yield TileSome(rows[~batch.failed], batch.pixels, failures)


def _failure(source: SlideSource, corner: NDArray[np.int32]) -> Failure:
    x, y = corner.tolist()
    message = f"{source.path} cannot be decoded at ({x}, {y}); that tile is left out for all backbones"
    return Failure.of(source.slide_id, TileUnreadableError(source.path, "corrupt tile", message))


def _sample(source: SlideSource, label: str, how: Sampling) -> SlideSample:
    """In another process."""
    with opened(source, how.reader) as slide:
        for spec in how.specs:
            require_scan_fine_enough(slide, spec)
        masks = _masks(slide, source, label, how)
        digest = slide_digest(source.path)
        grids = {name: _grid(slide, mask, how) for name, mask in masks.items()}
        counts: dict[tuple[int, int], int] = {}
        for coords in grids.values():
            for x, y in coords.tolist():
                counts[x, y] = counts.get((x, y), 0) + 1
        rows = []
        for name, coords in grids.items():
            alone = [(y, x, name) for x, y in coords.tolist() if counts[x, y] == 1]
            rows += _chosen(alone, f"{how.seed} {digest} {name}", how.most)
        rows.sort()
        extent_px0 = (how.widest.size_px or 0) * (how.widest.mpp or 0) / slide.mpp
        centres = np.array([(x, y) for y, x, _ in rows], np.float64).reshape(-1, 2) + extent_px0 / 2
        labels = tuple(name for *_, name in rows)
        of_two = sum(count > 1 for count in counts.values())
        return SlideSample(source, digest, slide.mpp, labels, centres, len(counts) - of_two, of_two)


def _masks(slide: Slide, source: SlideSource, label: str, how: Sampling) -> dict[str, TissueMask]:
    if how.annotations is None:
        return {label: tissue_of(slide, how.tissue)}
    drawn = annotations_from_geojson(_annotation(source, how), slide, how.tissue)
    return {name: mask for name, mask in drawn.items() if how.classes is None or name in how.classes}


def _grid(slide: Slide, mask: TissueMask, how: Sampling) -> NDArray[np.int32]:
    tiles = tile_slide(slide, mask, how.widest)
    return tiles.coords if how.annotations is None else tiles.coords[tiles.coverage > 0]


def _chosen(rows: list[tuple[int, int, str]], seed: str, most: int) -> list[tuple[int, int, str]]:
    if len(rows) <= most:
        return rows
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    return [rows[at] for at in np.sort(generator.choice(len(rows), most, replace=False))]


def _label(source: SlideSource, facts: Mapping[str, SlideFacts], how: Sampling) -> str:
    """The label of all tiles of a slide; "" where it has none that is asked for."""
    label = facts.get(source.slide_id, SlideFacts()).label
    return label if how.classes is None or label in how.classes else ""


def _annotation(source: SlideSource, how: Sampling) -> Path:
    """The file of a slide; one of its pseudonym counts before one of its original id."""
    names = [name for name in (source.slide_id, source.original_id) if name]
    paths = [(how.annotations or source.path.parent) / f"{name}.geojson" for name in names]
    return next((path for path in paths if path.exists()), paths[-1])


def _rows(sample: SlideSample, facts: SlideFacts) -> list[dict[str, str]]:
    slide_id = sample.source.slide_id
    return [
        {
            "tile": f"{slide_id}@{x:.0f},{y:.0f}",
            "slide_id": slide_id,
            "label": label,
            "patient_id": facts.patient_id,
            "site": facts.site,
            "digest": sample.digest,
        }
        for label, (x, y) in zip(sample.labels, sample.centres_px0.tolist(), strict=True)
    ]


def _notes(unlabelled: Sequence[SlideSource], bare: Sequence[SlideSource], samples: Sequence[SlideSample]) -> list[str]:
    taken, found = sum(len(one.labels) for one in samples), sum(one.found for one in samples)
    of_two = sum(one.of_two for one in samples)
    empty = [one.source.slide_id for one in samples if not one.labels]
    counts = {
        f"slides without a label that is asked for are left out: {_some(unlabelled)}": len(unlabelled),
        f"slides without an annotation are left out: {_some(bare)}": len(bare),
        f"slides have no tile with enough of a label: {', '.join(empty[:5])}": len(empty),
        "tiles under annotations of two classes are left out": of_two,
    }
    sampled = [f"{taken} of {found} tiles are a random sample, by --max_tiles and --seed"] if taken < found else []
    return [f"{count} {what}" for what, count in counts.items() if count] + sampled


def _some(sources: Sequence[SlideSource]) -> str:
    return ", ".join(one.slide_id for one in sources[:5]) + (" and more" if len(sources) > 5 else "")
