"""One slide to one embeddings file: a function of picklable arguments, which goes on where it was stopped."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np

from pathfm.embeddings import Embeddings, write_rows
from pathfm.errors import EmbeddingsBusyError, SlideError
from pathfm.files import sweep_temporaries
from pathfm.journal import claimed
from pathfm.progress import logger, progress
from pathfm.reading import survey
from pathfm.rows import append_rows, journal_head, journalled_rows, versions
from pathfm.slidefiles import slide_state
from pathfm.stale import state_of, taken_back, why_stale
from pathfm.tilereads import TileReads
from pathfm.work import Extracted, backbone_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from pathfm.backbones import LoadedBackbone, Pending
    from pathfm.journal import Journal
    from pathfm.reading import Survey
    from pathfm.rows import Rows
    from pathfm.sources import SlideSource
    from pathfm.tilereads import TileBatch
    from pathfm.work import ExtractWork

_LONG_BATCHES = 64  # a slide of so many batches shows its own progress


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
    slide = begin_slide(source, work, out, wait=wait)
    if slide is None:
        return None
    with slide:
        slide.embed()
        return slide.finish()


def begin_slide(source: SlideSource, work: ExtractWork, out: Path, *, wait: bool = True) -> SlideUnderway | None:
    """The first of the three steps of `extract_slide`: claims the file, surveys the slide, begins to read its tiles.

    Steps of several slides may run in threads side by side: while one slide is embedded, the next is begun and the one
    before is finished. Arguments, None and errors are those of `extract_slide`.
    """
    backbone = backbone_of(work)
    looked_at, stale = state_of(out), why_stale(source, work.recipe, work.reading, out)
    part = out.with_suffix(".part")
    if stale is None:
        _tidy(out, part)
        return None
    with ExitStack() as held:
        journal = held.enter_context(claimed(part, wait=wait))
        if state_of(out) != looked_at:
            stale = why_stale(source, work.recipe, work.reading, out)
            if stale is None:
                return None
        if taken_back(source, work.recipe, work.reading, out):
            return None
        if out.exists():
            logger.warning("%s: made again, for %s", source.slide_id, stale)
        sweep_temporaries(out)
        return SlideUnderway(source, work, out, backbone, journal, held)


class SlideUnderway:
    """A slide that is claimed and being read; a context manager that lets go of both.

    Attributes:
        source: the slide.
        tile_reads: its tiles, which are read ahead from the start.
    """

    def __init__(
        self,
        source: SlideSource,
        work: ExtractWork,
        out: Path,
        backbone: LoadedBackbone,
        journal: Journal,
        held: ExitStack,
    ) -> None:
        """Surveys the slide and begins to read its tiles; takes over what is held where that goes well.

        Raises:
            SlideError: the slide cannot be used.
            DiskFullError: no space for the journal.
        """
        self.source, self._work, self._out = source, work, out
        self._backbone, self._journal = backbone, journal
        how = work.reading
        self._seen = survey(source, how)
        tiles = self._seen.tiles
        head = journal_head(source.slide_id, self._seen, work.recipe, backbone, work.batch_size)
        self._first_row = journal.begin(head) * work.batch_size
        self._failed, self._rgb_sums, self._n_pixels = np.zeros(len(tiles), bool), np.zeros(3, np.int64), 0
        for start, rows in enumerate(self._journalled()) if self._first_row else ():
            self._count(start * work.batch_size, rows)
        self._unsettled: tuple[TileBatch, Pending] | None = None
        self.tile_reads = TileReads(
            source, tiles, work.batch_size, how.workers, how.limits, self._first_row, how.reader
        )
        held.callback(self.tile_reads.close)
        self._held = held.pop_all()
        self._started_s = time.monotonic()

    def __enter__(self) -> SlideUnderway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading and lets others have the slide; what was embedded is kept."""
        self._held.close()

    def embed(self) -> None:
        """Appends the batches that the journal lacks, one block each; the last may be on its way still.

        Raises:
            SlideError: the slide cannot be read to its end.
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        self._started_s, n_tiles = time.monotonic(), len(self._failed)
        if self._first_row:
            name, done = self.source.slide_id, min(self._first_row, n_tiles)
            logger.info("%s: goes on after tile %d of %d", name, done, n_tiles)
        batches: Iterator[TileBatch] = self.tile_reads
        count = math.ceil((n_tiles - self._first_row) / self._work.batch_size)
        if count >= _LONG_BATCHES:
            batches = progress(batches, self.source.slide_id, unit="step", total=count)
        for batch in batches:
            self._count(batch.start, batch)
            pending = self._backbone.submit(batch.pixels)
            self._settle()
            self._unsettled = batch, pending
            if pending.done():
                self._settle()
        self._require_few_failed()

    def finish(self) -> Extracted:
        """Writes the file from the journal, and takes that away.

        Raises:
            SlideError: the slide was changed meanwhile.
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        self._settle()
        facts, n_tiles = self._facts(), len(self._failed) - int(self._failed.sum())
        _require_unchanged(self.source, self._seen)
        write_rows(self._out, facts, n_tiles, lambda: (rows.features for rows in self._journalled()))
        self._journal.remove()
        return Extracted(
            slide_id=self.source.slide_id,
            n_tiles=n_tiles,
            n_failed=len(facts.failed),
            tissue_mm2=self._seen.tissue_mm2,
            reader=self._seen.reader,
            seconds=time.monotonic() - self._started_s,
        )

    def _settle(self) -> None:
        """Journals the batch whose embeddings were waited for."""
        if self._unsettled is not None:
            batch, pending = self._unsettled
            self._unsettled = None
            append_rows(self._journal, batch, pending.result())

    def _journalled(self) -> Iterator[Rows]:
        n_tiles, dim = len(self._seen.tiles), self._backbone.row.dim or 0
        return journalled_rows(self._journal, n_tiles, self._work.batch_size, dim)

    def _count(self, start: int, rows: Rows | TileBatch) -> None:
        self._failed[start : start + len(rows.failed)] = rows.failed
        self._rgb_sums += rows.rgb_sums
        self._n_pixels += rows.n_pixels
        self._require_few_failed()

    def _require_few_failed(self) -> None:
        """As soon as it is known, so that no hours go into a slide that will be refused."""
        n_failed, n_tiles, most = int(self._failed.sum()), len(self._failed), self._work.reading.max_failed_share
        if n_failed > most * n_tiles:
            message = (
                f"{self.source.path}: at least {n_failed} of {n_tiles} tiles cannot be read, more than {most:.1%};"
                " copy the slide again, or leave it out of --slides"
            )
            raise SlideError(self.source.path, "corrupt tile", message)

    def _facts(self) -> Embeddings:
        """What the file will say beside the features."""
        seen, coords = self._seen, self._seen.tiles.coords
        mean_rgb = self._rgb_sums / self._n_pixels if self._n_pixels else np.full(3, np.nan)
        return Embeddings(
            slide_id=self.source.slide_id,
            slide_digest=seen.digest,
            slide_size_px0=seen.size_px0,
            mpp=seen.mpp,
            mpp_source=seen.mpp_source,
            tile_extent_px0=seen.tiles.extent_px0,
            tissue_sha256=seen.tissue_sha256,
            recipe=self._work.recipe,
            versions=versions(seen, self._backbone, self._work.batch_size),
            features=np.empty((0, self._backbone.row.dim or 0), np.float16),
            coords=coords[~self._failed],
            failed=coords[self._failed],
            mean_rgb=mean_rgb.astype(np.float32),
        )


def _tidy(out: Path, part: Path) -> None:
    """Takes away what a run left that was killed between the end of its file and that of its journal."""
    if part.exists():
        with suppress(EmbeddingsBusyError), claimed(part, wait=False) as journal:
            sweep_temporaries(out)
            journal.remove()


def _require_unchanged(source: SlideSource, seen: Survey) -> None:
    """Refuses rows of a slide that was replaced or written to while it was read: its digest may be that of the other."""
    try:
        state = slide_state(source.path)
    except OSError:
        state = ()
    if state != seen.state:
        message = f"{source.path} was changed while it was read; run the same command again when it is at rest"
        raise SlideError(source.path, "changed", message)
