"""An embeddings file held against its slide: the same bytes, the same tissue, and tiles that give the same rows again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pathfm.devices import devices_of
from pathfm.embeddings import read_embeddings
from pathfm.errors import SlideError
from pathfm.reading import has_changed, survey
from pathfm.slidefiles import digest_kind
from pathfm.tilereads import TileReads
from pathfm.work import backbones_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.backbones import LoadedBackbone
    from pathfm.embeddings import Embeddings
    from pathfm.isolation import Limits
    from pathfm.reading import Survey
    from pathfm.sources import SlideSource
    from pathfm.tiles import Tiles
    from pathfm.work import ExtractWork

TOLERANCE = {"float32": 0.01, "bfloat16": 0.05, "float16": 0.02}
"""Largest distance of a row from its tile's embedding, by precision, as a share of the row's length.

Chosen above what another batch size, device or library should move a row by, and below what the tile next to it, even of
one noisy tissue, is away (tests/test_verify.py).
"""


@dataclass(frozen=True)
class Recheck:
    """What came of holding a file against its slide.

    Attributes:
        problem: what is wrong and what now, in one line; None when nothing is.
        n_tiles: how many tiles were embedded again.
        distance: the largest of their relative distances, 0 without any.
        compared: whether there was something to compare; an imported file may not know its slide.
    """

    problem: str | None
    n_tiles: int = 0
    distance: float = 0.0
    compared: bool = True


def recheck_digest(path: Path, source: SlideSource, limits: Limits) -> Recheck:
    """Whether the slide is still the one that the file was made from.

    Raises:
        EmbeddingsError: the file itself cannot be used.
    """
    digest = read_embeddings(path, "shape").slide_digest
    if not digest:
        return Recheck(None, compared=False)
    try:
        changed = has_changed(source, digest, 1, limits)
    except (OSError, SlideError) as error:
        return Recheck(f"{path} cannot be held against its slide: {error}; bring the slide back")
    return Recheck(f"{path}: its slide {source.path} has changed since; run pathfm extract again" if changed else None)


def recheck_tiles(path: Path, source: SlideSource, work: ExtractWork, count: int) -> Recheck:
    """Finds the tissue again, and reads and embeds some tiles again; the same ones each time.

    Args:
        path: the file.
        source: its slide.
        work: what makes files of its recipe here, and of no other.
        count: how many tiles.

    Raises:
        EmbeddingsError: the file itself cannot be used.
        BackboneError: the backbone cannot be used.
    """
    found = read_embeddings(path, "shape")
    try:
        seen = survey(source, replace(work.reading, digest=digest_kind(found.slide_digest)))
        problem = _differs(found, seen, work)
        if problem:
            return Recheck(f"{path}: {problem}; run pathfm extract again")
        return _embedded_again(path, found, source, seen.tiles, work, count)
    except SlideError as error:
        return Recheck(f"{path} cannot be held against its slide: {error.message}")


def _differs(found: Embeddings, seen: Survey, work: ExtractWork) -> str | None:
    """What the slide says otherwise than the file, apart from its rows."""
    if found.slide_digest not in ("", seen.digest):
        return "its slide has changed since"
    if abs(found.mpp / seen.mpp - 1) > 1e-6:
        return f"it was made at {found.mpp:g} mpp ({found.mpp_source}), its slide has {seen.mpp:g} ({seen.mpp_source})"
    if work.parts[0].recipe["tissue"]["method"] == "outlines" and work.reading.outlines is None:
        return None  # nobody knows where its tissue was drawn
    grid = np.concatenate([found.coords, found.failed])
    grid = grid[np.lexsort((grid[:, 0], grid[:, 1]))]
    if found.tissue_sha256 != seen.tissue_sha256 or not np.array_equal(grid, seen.tiles.coords):
        return (
            f"it has {len(grid)} tiles, its slide gives {len(seen.tiles)}, or others, for its tissue is found elsewhere"
        )
    return None


def _embedded_again(
    path: Path, found: Embeddings, source: SlideSource, tiles: Tiles, work: ExtractWork, count: int
) -> Recheck:
    rows = _sample(found, count)
    work = replace(work, device=devices_of(work.device)[0])  # one does: these are a few tiles
    (backbone,), (part,) = backbones_of(work), work.parts
    again, failed = _embed(source, replace(tiles, coords=found.coords[rows]), work, backbone)
    stored = np.asarray(found.features[rows], dtype=np.float64)
    distances = np.linalg.norm(again - stored, axis=1) / np.maximum(np.linalg.norm(stored, axis=1), 1e-6)
    wrong = failed | (distances > TOLERANCE[part.precision])
    if wrong.any():
        first = ", ".join(f"{row} at ({x}, {y})" for row, (x, y) in _first(rows[wrong], found))
        message = (
            f"{path}: {wrong.sum()} of {len(rows)} rows are not what its slide gives now ({first});"
            " delete it and run pathfm extract again"
        )
        return Recheck(message, len(rows), float(distances[~failed].max(initial=0)))
    return Recheck(None, len(rows), float(distances.max(initial=0)))


def _first(rows: NDArray[np.int64], found: Embeddings) -> list[tuple[int, list[int]]]:
    return [(int(row), found.coords[row].tolist()) for row in rows[:5]]


def _sample(found: Embeddings, count: int) -> NDArray[np.int64]:
    """Rows drawn at random, ascending; by the slide's name, so that another run looks at the same."""
    seed = int.from_bytes(hashlib.sha256(found.slide_id.encode()).digest()[:8])
    n_tiles = len(found.coords)
    return np.sort(np.random.default_rng(seed).choice(n_tiles, min(count, n_tiles), replace=False))


def _embed(
    source: SlideSource, tiles: Tiles, work: ExtractWork, backbone: LoadedBackbone
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(embeddings float64 (n, dim), failed bool (n,)); a failed row means nothing."""
    again = np.zeros((len(tiles), backbone.row.dim or 0))
    failed = np.zeros(len(tiles), dtype=bool)
    how = work.reading
    for batch in TileReads(source, tiles, work.batch_size, how.workers, how.limits, reader=how.reader):
        failed[batch.start : batch.stop] = batch.failed
        again[batch.start : batch.stop][~batch.failed] = backbone.embed(batch.pixels)
    return again, failed
