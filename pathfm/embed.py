"""One slide to an embeddings file a backbone: a function of picklable arguments, which goes on where it was stopped."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from pathfm.errors import EmbeddingsBusyError, SlideError
from pathfm.journal import claimed
from pathfm.progress import logger, progress
from pathfm.reading import survey
from pathfm.slidefiles import slide_state
from pathfm.stale import SlideNow
from pathfm.tilereads import TileReads
from pathfm.underway import claimed_file
from pathfm.work import Extracted, backbones_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from pathfm.reading import Survey
    from pathfm.sources import SlideSource
    from pathfm.tilereads import TileBatch
    from pathfm.underway import FileUnderway
    from pathfm.work import ExtractWork

_LONG_BATCHES = 64  # a slide of so many batches shows its own progress


def extract_slide(source: SlideSource, work: ExtractWork, out: Path, *, wait: bool = True) -> Extracted | None:
    """Embeds one slide into a file a backbone, but for those that are there and up to date once it is our turn.

    A function of picklable arguments alone. The slide is read once for all backbones. Rows go to a journal beside each
    file as they come; a killed run goes on after the last whole batch of each, and ends with the bytes of a run that was
    not killed, or of one with that backbone alone: a batch never mixes slides and its bounds follow the tile index. A
    slide without tissue gives files of 0 tiles: that is a result.

    Args:
        source: the slide.
        work: what is done to it.
        out: the cache; it gets <backbone>-<recipe8>/<slide_id>.h5 of each backbone.
        wait: for another process that is writing one of them, instead of raising once the others are done.

    Returns:
        What was done, None where all files were there, or another process was quicker.

    Raises:
        SlideError: the slide cannot be used; the reason is typed. What was embedded of it is kept.
        EmbeddingsBusyError: another process is writing a file.
        BackboneError: a backbone here is not the one of its recipe, or gives embeddings that are not finite.
        DiskFullError: no space; what was embedded is kept.
    """
    made: Extracted | None = None
    while True:
        slide = begin_slide(source, work, out, wait=wait)
        if slide is None:
            return made
        with slide:
            slide.embed()
            last = slide.finish()
        made = last if made is None else replace(last, backbones=(*made.backbones, *last.backbones))
        if not made.left:
            return made


def begin_slide(source: SlideSource, work: ExtractWork, out: Path, *, wait: bool = True) -> SlideUnderway | None:
    """The first of the three steps of `extract_slide`: claims the files, surveys the slide, begins to read its tiles.

    Files that another process is writing are left to it while there are others to do; only where there are none it is
    waited for, or its error raised. Steps of several slides may run in threads side by side: while one slide is embedded,
    the next is begun and the one before is finished. Arguments, None and errors are those of `extract_slide`.
    """
    backbones = backbones_of(work)
    while True:
        busy: list[tuple[str, EmbeddingsBusyError]] = []
        with ExitStack() as held:
            files, now = [], SlideNow(source, work.reading)
            for part, backbone in zip(work.parts, backbones, strict=True):
                try:
                    file = claimed_file(source, work, part, backbone, out, now)
                except EmbeddingsBusyError as error:
                    busy.append((backbone.row.name, error))
                    continue
                if file is not None:
                    held.callback(file.close)
                    files.append(file)
            if files:
                return SlideUnderway(source, work, files, tuple(name for name, _ in busy), held)
        if not busy:
            return None
        _, refusal = busy[0]
        if not wait:
            raise refusal
        with claimed(refusal.path, wait=True):
            pass  # and looks again: who waits holds nothing that another may wait for


class SlideUnderway:
    """A slide whose files are claimed and which is being read; a context manager that lets go of both.

    Attributes:
        source: the slide.
        tile_reads: its tiles, which are read ahead from the start.
    """

    def __init__(
        self,
        source: SlideSource,
        work: ExtractWork,
        files: Sequence[FileUnderway],
        left: tuple[str, ...],
        held: ExitStack,
    ) -> None:
        """Surveys the slide and begins to read its tiles; takes over what is held where that goes well.

        Raises:
            SlideError: the slide cannot be used.
            DiskFullError: no space for a journal.
        """
        self.source, self._work, self._files, self._left = source, work, files, left
        how = work.reading
        self._seen = survey(source, how)
        for file in files:
            file.begin(self._seen)
        tiles, first_row = self._seen.tiles, min(file.first_row for file in files)
        self._n_batches = math.ceil((len(tiles) - first_row) / work.batch_size)
        self.tile_reads = TileReads(source, tiles, work.batch_size, how.workers, how.limits, first_row, how.reader)
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
        """Has each file take the batches that its journal lacks, one block each; the last may be on its way still.

        Raises:
            SlideError: the slide cannot be read to its end.
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        self._started_s = time.monotonic()
        for file in self._files:
            if file.first_row:
                by = f" by {file.name}" if self._is_one_of_several else ""
                name, n_tiles = self.source.slide_id, len(self._seen.tiles)
                logger.info("%s: goes on after tile %d of %d%s", name, file.first_row, n_tiles, by)
        batches: Iterator[TileBatch] = self.tile_reads
        if self._n_batches >= _LONG_BATCHES:
            batches = progress(batches, self.source.slide_id, unit="step", total=self._n_batches)
        for batch in batches:
            lacking = [file for file in self._files if file.first_row <= batch.start]
            pixels = lacking[0].backbone.sent(batch.pixels) if len(lacking) > 1 else batch.pixels
            for file in lacking:
                file.take(batch, pixels)

    def finish(self) -> Extracted:
        """Writes the files from their journals, and takes these away.

        Raises:
            SlideError: the slide was changed meanwhile.
            BackboneError: embeddings that are not finite.
            DiskFullError: no space; what was embedded is kept.
        """
        _require_unchanged(self.source, self._seen)
        for file in self._files:
            n_tiles, n_failed = file.finish()
        return Extracted(
            slide_id=self.source.slide_id,
            n_tiles=n_tiles,
            n_failed=n_failed,
            tissue_mm2=self._seen.tissue_mm2,
            reader=self._seen.reader,
            seconds=time.monotonic() - self._started_s,
            backbones=tuple(file.name for file in self._files) if self._is_one_of_several else (),
            left=self._left,
        )

    @property
    def _is_one_of_several(self) -> bool:
        return len(self._work.parts) > 1


def _require_unchanged(source: SlideSource, seen: Survey) -> None:
    """Refuses rows of a slide that was replaced or written to while it was read: its digest may be that of the other."""
    try:
        state = slide_state(source.path)
    except OSError:
        state = ()
    if state != seen.state:
        message = f"{source.path} was changed while it was read; run the same command again when it is at rest"
        raise SlideError(source.path, "changed", message)
