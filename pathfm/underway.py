"""One backbone's file of a slide on its way: claimed, gone on with, its rows journalled batch by batch, and sealed."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np

from pathfm.embeddings import Embeddings, write_rows
from pathfm.errors import EmbeddingsBusyError, SlideError
from pathfm.files import sweep_temporaries
from pathfm.journal import claimed
from pathfm.progress import logger
from pathfm.rows import append_rows, journal_head, journalled_rows, versions
from pathfm.stale import SlideNow, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pathfm.backbones import LoadedBackbone, Pending
    from pathfm.journal import Journal
    from pathfm.reading import Survey
    from pathfm.rows import Rows
    from pathfm.sources import SlideSource
    from pathfm.tilereads import TileBatch
    from pathfm.work import BackboneWork, ExtractWork


def claimed_file(
    source: SlideSource, work: ExtractWork, part: BackboneWork, backbone: LoadedBackbone, out: Path, now: SlideNow
) -> FileUnderway | None:
    """Claims the file of a slide by one backbone, unless it is there and up to date.

    Args:
        source: the slide.
        work: what is done to it.
        part: the part of that which is this backbone's.
        backbone: the backbone.
        out: the cache.
        now: the slide.

    Raises:
        SlideError: the slide cannot be used.
        EmbeddingsBusyError: another process is writing the file.
        DiskFullError: no space for a journal.
    """
    path = part.folder(out) / f"{source.slide_id}.h5"
    looked_at, stale = state_of(path), now.why_stale(part.recipe, path)
    if stale is None:
        _tidy(path)
        return None
    with ExitStack() as held:
        journal = held.enter_context(claimed(journal_of(path), wait=False))
        if state_of(path) != looked_at:  # somebody wrote it meanwhile
            now = SlideNow(source, work.reading)
            stale = now.why_stale(part.recipe, path)
            if stale is None:
                return None
        if now.taken_back(part.recipe, path):
            return None
        if path.exists():
            logger.warning("%s: made again, for %s", source.slide_id, stale)
        sweep_temporaries(path)
        return FileUnderway(source, work, part, backbone, path, journal, held.pop_all())


def journal_of(path: Path) -> Path:
    """Where the journal of an embeddings file is."""
    return path.with_suffix(".part")


class FileUnderway:
    """A claimed file: rows go to its journal as they come, and from there to the file.

    Attributes:
        name: of the backbone.
        backbone: embeds its tiles.
        first_row: the first tile that its journal lacks, once it was begun.
    """

    def __init__(
        self,
        source: SlideSource,
        work: ExtractWork,
        part: BackboneWork,
        backbone: LoadedBackbone,
        path: Path,
        journal: Journal,
        held: ExitStack,
    ) -> None:
        self.name, self.backbone, self.first_row = backbone.row.name, backbone, 0
        self._source, self._work, self._recipe, self._path = source, work, part.recipe, path
        self._journal, self._held = journal, held
        self._unsettled: tuple[TileBatch, Pending] | None = None

    def close(self) -> None:
        """Lets others have the file; what was embedded is kept."""
        self._held.close()

    def begin(self, seen: Survey) -> None:
        """Goes on after the last whole batch of its journal, or begins one.

        Raises:
            SlideError: too many tiles of the slide could not be read.
            DiskFullError: no space.
        """
        batch_size, n_tiles = self._work.batch_size, len(seen.tiles)
        self._seen = seen
        self._failed, self._rgb_sums, self._n_pixels = np.zeros(n_tiles, bool), np.zeros(3, np.int64), 0
        head = journal_head(self._source.slide_id, seen, self._recipe, self.backbone, batch_size)
        self.first_row = min(self._journal.begin(head) * batch_size, n_tiles)
        for number, rows in enumerate(self._journalled()) if self.first_row else ():
            self._count(number * batch_size, rows)

    def take(self, batch: TileBatch, pixels: NDArray[np.uint8] | Tensor) -> None:
        """Embeds a batch and journals the one before; what it gives itself may be on its way still.

        Args:
            batch: the next that the journal lacks.
            pixels: its pixels, which may be on the backbone's device already.

        Raises:
            SlideError: too many tiles of the slide cannot be read.
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        self._count(batch.start, batch)
        pending = self.backbone.submit(pixels)
        self._settle()
        self._unsettled = batch, pending
        if pending.done():
            self._settle()

    def finish(self) -> tuple[int, int]:
        """Writes the file from the journal, and takes that away.

        Returns:
            How many tiles have an embedding, and how many could not be read.

        Raises:
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        self._settle()
        facts = self._facts()
        write_rows(self._path, facts, len(facts.coords), lambda: (rows.features for rows in self._journalled()))
        self._journal.remove()
        return len(facts.coords), len(facts.failed)

    def _settle(self) -> None:
        """Journals the batch whose embeddings were waited for."""
        if self._unsettled is not None:
            batch, pending = self._unsettled
            self._unsettled = None
            append_rows(self._journal, batch, pending.result())

    def _journalled(self) -> Iterator[Rows]:
        n_tiles, dim = len(self._seen.tiles), self.backbone.row.dim or 0
        return journalled_rows(self._journal, n_tiles, self._work.batch_size, dim)

    def _count(self, start: int, rows: Rows | TileBatch) -> None:
        """Refuses the slide as soon as it is known that it will be refused, so that no hours go into it."""
        self._failed[start : start + len(rows.failed)] = rows.failed
        self._rgb_sums += rows.rgb_sums
        self._n_pixels += rows.n_pixels
        n_failed, n_tiles, most = int(self._failed.sum()), len(self._failed), self._work.reading.max_failed_share
        if n_failed > most * n_tiles:
            message = (
                f"{self._source.path}: at least {n_failed} of {n_tiles} tiles cannot be read, more than {most:.1%};"
                " copy the slide again, or leave it out of --slides"
            )
            raise SlideError(self._source.path, "corrupt tile", message)

    def _facts(self) -> Embeddings:
        """What the file will say beside the features."""
        seen, coords, row = self._seen, self._seen.tiles.coords, self.backbone.row
        mean_rgb = self._rgb_sums / self._n_pixels if self._n_pixels else np.full(3, np.nan)
        return Embeddings(
            slide_id=self._source.slide_id,
            slide_digest=seen.digest,
            slide_size_px0=seen.size_px0,
            mpp=seen.mpp,
            mpp_source=seen.mpp_source,
            tile_extent_px0=seen.tiles.extent_px0,
            tissue_sha256=seen.tissue_sha256,
            recipe=self._recipe,
            versions=versions(seen, self.backbone, self._work.batch_size),
            features=np.empty((0, row.dim or 0), np.float16),
            coords=coords[~self._failed],
            failed=coords[self._failed],
            mean_rgb=mean_rgb.astype(np.float32),
            licences=(row.terms,),
            thumbnail_hash=seen.thumbnail_hash,
        )


def _tidy(path: Path) -> None:
    """Takes away what a run left that was killed between the end of its file and that of its journal."""
    part = journal_of(path)
    if part.exists():
        with suppress(EmbeddingsBusyError), claimed(part, wait=False) as journal:
            sweep_temporaries(path)
            journal.remove()
