"""One slide to one embeddings file: a function of picklable arguments, which goes on where it was stopped."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import openslide
import PIL
import torch

from pathfm.backbones import LoadedBackbone, Precision, load_backbone
from pathfm.embeddings import Embeddings, recipe_differences, recipe_sha256, write_embeddings
from pathfm.errors import BackboneError, EmbeddingsBusyError, EmbeddingsDamagedError, SlideError
from pathfm.files import sweep_temporaries
from pathfm.journal import claimed
from pathfm.progress import logger, progress
from pathfm.reading import read_tiles, survey
from pathfm.slidefiles import slide_state
from pathfm.stale import state_of, taken_back, why_stale

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.journal import Journal
    from pathfm.reading import Reading, Survey, TileBatch
    from pathfm.sources import SlideSource

_LONG_BATCHES = 64  # a slide of so many batches shows its own progress
_SUMS = struct.Struct("<4q")  # of red, green and blue over the pixels of a block, and how many these are
_JOURNAL_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ExtractWork:
    """What is done to every slide of a run; picklable, so that it can be sent to another process or machine.

    Attributes:
        backbone: the name it is loaded by.
        device: where it runs; "auto" is decided where the work is done.
        precision: of its matrix products.
        reading: how slides are read.
        recipe: what the files will say; the backbone found by the worker has to be the one in it.
        batch_size: tiles in a forward pass.
    """

    backbone: str
    device: str
    precision: Precision
    reading: Reading
    recipe: dict[str, Any]
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What came of one slide.

    Attributes:
        slide_id: the slide.
        n_tiles: tiles with an embedding.
        n_failed: tiles that could not be read.
        tissue_mm2: area of its tissue.
        seconds: how long it took.
    """

    slide_id: str
    n_tiles: int
    n_failed: int
    tissue_mm2: float
    seconds: float

    def __str__(self) -> str:
        """A line for the log."""
        if self.n_tiles + self.n_failed == 0:
            why = (
                "no tissue" if self.tissue_mm2 == 0 else f"no tile with enough of its {self.tissue_mm2:.2g} mm2 tissue"
            )
            return f"{self.slide_id}: done, {why}; written with 0 tiles"
        failed = f" ({self.n_failed} unreadable)" if self.n_failed else ""
        rate = self.n_tiles / max(self.seconds, 1e-9)
        return (
            f"{self.slide_id}: done, {self.n_tiles} tiles{failed}, {self.tissue_mm2:.3g} mm2 tissue, {rate:.1f} tiles/s"
        )


def extract_slide(source: SlideSource, work: ExtractWork, out: Path, *, wait: bool = True) -> Extracted | None:
    """Embeds one slide into one file, unless that is there and up to date once it is our turn.

    A function of picklable arguments alone. Rows go to a journal beside the file as they come; a killed run goes on
    after the last whole batch, and ends with the bytes of a run that was not killed: a batch never mixes slides and its
    bounds follow the tile index. A slide without tissue gives a file of 0 tiles: that is a result.

    Args:
        source: the slide.
        work: what is done to it.
        out: the file.
        wait: for another process that is writing it, instead of raising.

    Returns:
        What was done, None where another process was quicker.

    Raises:
        SlideError: the slide cannot be used; the reason is typed. What was embedded of it is kept.
        EmbeddingsBusyError: another process is writing it.
        BackboneError: the backbone here is not the one of the recipe, or gives embeddings that are not finite.
        DiskFullError: no space; what was embedded is kept.
    """
    started_s = time.monotonic()
    backbone = _backbone_of(work)
    looked_at, stale = state_of(out), why_stale(source, work.recipe, work.reading, out)
    part = out.with_suffix(".part")
    if stale is None:
        _tidy(out, part)
        return None
    with claimed(part, wait=wait) as journal:
        if state_of(out) != looked_at:
            stale = why_stale(source, work.recipe, work.reading, out)
            if stale is None:
                return None
        if taken_back(source, work.recipe, work.reading, out):
            return None
        if out.exists():
            logger.warning("%s: made again, for %s", source.slide_id, stale)
        sweep_temporaries(out)
        seen = survey(source, work.reading)
        _embed(source, seen, backbone, work, journal)
        embeddings = _assembled(source, seen, backbone, work, journal)
        _require_unchanged(source, seen)
        write_embeddings(out, embeddings)
        journal.remove()
    return Extracted(
        slide_id=source.slide_id,
        n_tiles=len(embeddings.coords),
        n_failed=len(embeddings.failed),
        tissue_mm2=seen.tissue_mm2,
        seconds=time.monotonic() - started_s,
    )


def _tidy(out: Path, part: Path) -> None:
    """Takes away what a run left that was killed between the end of its file and that of its journal."""
    if part.exists():
        with suppress(EmbeddingsBusyError), claimed(part, wait=False) as journal:
            sweep_temporaries(out)
            journal.remove()


def loaded_backbone(name: str, device: str, precision: Precision) -> LoadedBackbone:
    """Loads a backbone afresh and keeps it as the one of this process, so that changed weights are seen by a new run."""
    _load.cache_clear()
    return _load(name, device, precision)


@functools.lru_cache(maxsize=1)
def _load(name: str, device: str, precision: Precision) -> LoadedBackbone:
    """The backbone of this process, loaded once."""
    return load_backbone(name, device, precision)


def _backbone_of(work: ExtractWork) -> LoadedBackbone:
    backbone = _load(work.backbone, work.device, work.precision)
    differences = recipe_differences(backbone.identity, work.recipe["backbone"], "backbone.")
    if differences:
        message = f"the backbone here is not that of the recipe: {'; '.join(differences[:3])}; install the same weights"
        raise BackboneError(message)
    return backbone


def _embed(source: SlideSource, seen: Survey, backbone: LoadedBackbone, work: ExtractWork, journal: Journal) -> None:
    """Appends the batches that the journal lacks, one block each."""
    n_tiles = len(seen.tiles)
    there = journal.begin(_head(source, seen, backbone, work))
    if there:
        logger.info("%s: goes on after tile %d of %d", source.slide_id, min(there * work.batch_size, n_tiles), n_tiles)
    before = _unpacked(journal.path, journal.blocks(), n_tiles, work.batch_size, backbone.row.dim or 0)
    n_failed = sum(int(failed.sum()) for failed, _, _ in before)
    how = work.reading
    batches: Iterator[TileBatch] = read_tiles(
        source, seen.tiles, work.batch_size, how.workers, how.limits, there * work.batch_size
    )
    count = math.ceil(n_tiles / work.batch_size) - there
    if count >= _LONG_BATCHES:
        batches = progress(batches, source.slide_id, unit="step", total=count)
    for batch in batches:
        n_failed += int(batch.failed.sum())
        _require_few_failed(source, n_failed, n_tiles, how.max_failed_share)
        journal.append(_packed(batch, backbone.embed(batch.pixels)))
    _require_few_failed(source, n_failed, n_tiles, how.max_failed_share)


def _head(source: SlideSource, seen: Survey, backbone: LoadedBackbone, work: ExtractWork) -> dict[str, Any]:
    """Everything that decides the rows: rows of two libraries or two machines' devices never share a file."""
    return {
        "format": _JOURNAL_FORMAT,
        "recipe_sha256": recipe_sha256(work.recipe),
        "slide_id": source.slide_id,
        "slide_digest": seen.digest,
        "mpp": seen.mpp,
        "mpp_source": seen.mpp_source,
        "tissue_sha256": seen.tissue_sha256,
        "coords_sha256": hashlib.sha256(seen.tiles.coords.tobytes()).hexdigest(),
        "dim": backbone.row.dim or 0,
        "versions": _versions(work, backbone),
    }


def _packed(batch: TileBatch, features: NDArray[np.float16]) -> bytes:
    """A block: which tiles failed (a byte each), the sums of the colours, the features of the others."""
    sums = _SUMS.pack(*_sum_rgb(batch.pixels).tolist(), batch.pixels[..., 0].size)
    return batch.failed.astype("u1").tobytes() + sums + features.astype("<f2").tobytes()


def _unpacked(
    part: Path, blocks: Iterable[bytes], n_tiles: int, batch_size: int, dim: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float16]]]:
    """(failed bool (k,), sums of red, green, blue and pixels int64 (4,), features float16 (k', dim)) of each block."""
    for start, block in zip(range(0, n_tiles, batch_size), blocks, strict=False):
        count = min(batch_size, n_tiles - start)
        failed = np.frombuffer(block[:count], "u1").astype(bool)
        if len(block) != count + _SUMS.size + 2 * dim * (count - int(failed.sum())):
            message = f"{part} is no journal that pathfm wrote; delete it and run pathfm extract again"
            raise EmbeddingsDamagedError(part, message)
        sums = np.array(_SUMS.unpack_from(block, count), np.int64)
        yield failed, sums, np.frombuffer(block, "<f2", offset=count + _SUMS.size).reshape(-1, dim)


def _assembled(
    source: SlideSource, seen: Survey, backbone: LoadedBackbone, work: ExtractWork, journal: Journal
) -> Embeddings:
    """What the journal holds, as the file will say it."""
    coords, dim = seen.tiles.coords, backbone.row.dim or 0
    features = np.empty((len(coords), dim), dtype=np.float16)
    failed = np.empty(len(coords), dtype=bool)
    sums, at, row = np.zeros(4, dtype=np.int64), 0, 0
    for lost, colours, some in _unpacked(journal.path, journal.blocks(), len(coords), work.batch_size, dim):
        failed[at : at + len(lost)], features[row : row + len(some)] = lost, some
        at, row, sums = at + len(lost), row + len(some), sums + colours
    mean_rgb = sums[:3] / sums[3] if sums[3] else np.full(3, np.nan)
    return Embeddings(
        slide_id=source.slide_id,
        slide_digest=seen.digest,
        slide_size_px0=seen.size_px0,
        mpp=seen.mpp,
        mpp_source=seen.mpp_source,
        tile_extent_px0=seen.tiles.extent_px0,
        tissue_sha256=seen.tissue_sha256,
        recipe=work.recipe,
        versions=_versions(work, backbone),
        features=features[:row],
        coords=coords[~failed],
        failed=coords[failed],
        mean_rgb=mean_rgb.astype(np.float32),
    )


def _sum_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of the pixels of a batch, exact; row by row of the tiles first, in 32 bits, which is several times faster."""
    columns: NDArray[np.uint32] = pixels.sum(axis=1, dtype=np.uint32)
    return np.asarray(columns.reshape(-1, 3).sum(axis=0), dtype=np.int64)


def _require_unchanged(source: SlideSource, seen: Survey) -> None:
    """Refuses rows of a slide that was replaced or written to while it was read: its digest may be that of the other."""
    try:
        state = slide_state(source.path)
    except OSError:
        state = ()
    if state != seen.state:
        message = f"{source.path} was changed while it was read; run the same command again when it is at rest"
        raise SlideError(source.path, "changed", message)


def _require_few_failed(source: SlideSource, n_failed: int, n_tiles: int, max_failed_share: float) -> None:
    """As soon as it is known, so that no hours go into a slide that will be refused."""
    if n_failed > max_failed_share * n_tiles:
        message = (
            f"{source.path}: at least {n_failed} of {n_tiles} tiles cannot be read, more than {max_failed_share:.1%};"
            " copy the slide again, or leave it out of --slides"
        )
        raise SlideError(source.path, "corrupt tile", message)


def _versions(work: ExtractWork, backbone: LoadedBackbone) -> dict[str, str]:
    """What the numbers were made with; recorded, but no part of the recipe."""
    return {
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "openslide": openslide.__library_version__,
        "device": backbone.device.type,
        "batch_size": str(work.batch_size),
    }
