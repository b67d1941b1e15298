"""The labelled tiles of one slide: a seeded sample of those under its annotations, or of the tissue of its one label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathfm.errors import UnknownNameError
from pathfm.outlines import annotations_from_geojson, tissue_of
from pathfm.reading import opened
from pathfm.slidefiles import slide_digest
from pathfm.tiles import Tiles, require_scan_fine_enough, tile_slide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.isolation import Limits
    from pathfm.slide import Reader, Slide
    from pathfm.sources import SlideSource
    from pathfm.tilefeatures import Integers
    from pathfm.tiles import TileSpec
    from pathfm.tissue import TissueMask, TissueSpec

_LEAST_DRAWN = 1e-9  # of a tile: with --tiles.min_tissue 0 an area still has to touch it


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
        return max(self.specs, key=lambda spec: (_width_um(spec), -(spec.mpp or 0)))

    def require_known(self, labels: set[str]) -> None:
        """Refuses a label that is asked for and is none of these.

        Raises:
            UnknownNameError: with the names that are near.
        """
        for name in self.classes or ():
            if name not in labels:
                kind = "label"
                raise UnknownNameError(kind, name, labels, "pass --classes some of these")


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
        of_few: tiles that were not, for the field of some backbone holds too little of the label.
        drawn: the classes that are annotated.
    """

    source: SlideSource
    digest: str
    mpp: float
    labels: tuple[str, ...]
    centres_px0: NDArray[np.float64]
    found: int
    of_two: int
    of_few: int
    drawn: tuple[str, ...]

    def tiles(self, spec: TileSpec) -> Tiles:
        """The tiles as one backbone wants them, around the same centres; whole pixels, so up to one off."""
        size_px, extent_px0 = spec.size_px or 0, _width_um(spec) / self.mpp
        corners = _corners(self.centres_px0, extent_px0)
        return Tiles(corners, np.ones(len(corners), np.float32), size_px, spec.mpp or 0.0, size_px, extent_px0)


def sample_slide(source: SlideSource, label: str, how: Sampling) -> SlideSample:
    """Takes tiles from a slide; for another process.

    Args:
        source: the slide.
        label: of all its tissue; not looked at where annotations label tiles.
        how: how tiles are taken.

    Raises:
        SlideError: the slide or its annotations cannot be used; of the type MppError where it is too coarse for a spec.
    """
    with opened(source, how.reader) as slide:
        for spec in how.specs:
            require_scan_fine_enough(slide, spec)
        masks, drawn = _masks(slide, source, label, how)
        digest = slide_digest(source.path)
        grids = [tile_slide(slide, mask, how.widest).coords for mask in masks.values()]
        corners = np.unique(np.concatenate([np.zeros((0, 2), np.int32), *grids])[:, ::-1], axis=0)[:, ::-1]
        centres = corners + _width_um(how.widest) / slide.mpp / 2
        # by label whether each tile's field has enough of it, for every backbone
        enough = {name: _enough(slide, mask, centres, how) for name, mask in masks.items()}
        of_any = sum((one.any(axis=0).astype(np.int64) for one in enough.values()), np.zeros(len(corners), np.int64))
        chosen, found = [], 0
        for name, each in enough.items():
            alone = np.flatnonzero(each.all(axis=0) & (of_any == 1))
            chosen += [(row, name) for row in _chosen(alone, f"{how.seed} {digest} {name}", how.most).tolist()]
            found += len(alone)
        chosen.sort()
        return SlideSample(
            source,
            digest,
            slide.mpp,
            tuple(name for _, name in chosen),
            centres[[row for row, _ in chosen]],
            found,
            int((of_any > 1).sum()),
            int((of_any == 1).sum()) - found,
            drawn,
        )


def has_annotation(source: SlideSource, how: Sampling) -> bool:
    """Whether there is a file of annotations for the slide, readable or not."""
    return _is_there(_annotation(source, how))


def _masks(
    slide: Slide, source: SlideSource, label: str, how: Sampling
) -> tuple[dict[str, TissueMask], tuple[str, ...]]:
    """Where each label is that is asked for, and which classes are drawn."""
    if how.annotations is None:
        return {label: tissue_of(slide, how.tissue)}, ()
    drawn = annotations_from_geojson(_annotation(source, how), slide, how.tissue)
    return {name: mask for name, mask in drawn.items() if how.classes is None or name in how.classes}, tuple(drawn)


def _enough(slide: Slide, mask: TissueMask, centres_px0: NDArray[np.float64], how: Sampling) -> NDArray[np.bool_]:
    """Whether the field around each centre is enough of the label, bool (s, n), of each distinct spec, the widest first."""
    fields = sorted({(_width_um(one), one.min_tissue) for one in how.specs}, reverse=True)
    touching = 0 if how.annotations is None else _LEAST_DRAWN
    each = []
    for width_um, least in fields:
        extent_px0 = width_um / slide.mpp
        corners = _corners(centres_px0, extent_px0)
        each.append(mask.coverage(corners[:, 0], corners[:, 1], extent_px0, slide.mpp) >= max(least - 1e-9, touching))
    enough = np.stack(each)
    # the grid of tissue also has what could not be read when tissue was sought: reading it shall fail, and say so
    return enough if how.annotations is not None else enough | ~enough[0]


def _corners(centres_px0: NDArray[np.float64], extent_px0: float) -> NDArray[np.int32]:
    """The corners of tiles of one width; rounded down, so what lies inside the field of the widest lies inside the scan."""
    return np.floor(centres_px0 - extent_px0 / 2 + 1e-6).astype(np.int32)


def _width_um(spec: TileSpec) -> float:
    return (spec.size_px or 0) * (spec.mpp or 0)


def _chosen(rows: Integers, seed: str, most: int) -> Integers:
    if len(rows) <= most:
        return rows
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    return rows[np.sort(generator.choice(len(rows), most, replace=False))]


def _annotation(source: SlideSource, how: Sampling) -> Path:
    """The file of a slide; one of its pseudonym counts before one of its original id."""
    names = [name for name in (source.slide_id, source.original_id) if name]
    paths = [(how.annotations or source.path.parent) / f"{name}.geojson" for name in names]
    return next((path for path in paths if _is_there(path)), paths[-1])


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()  # a link to nowhere is one that cannot be read, not the lack of one
