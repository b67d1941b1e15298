"""The tiles of a slide, read ahead a batch at a time: decoded by other processes into memory that is shared with them."""

from __future__ import annotations

import functools
import os
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pathfm.confined import forgotten_when_idle, shared_bytes, sign_of_life
from pathfm.errors import SlideError, TileUnreadableError
from pathfm.isolation import Limits, isolated_on, lent_block
from pathfm.slidefiles import require_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pathfm.isolation import Call
    from pathfm.sharedmemory import Block, Place
    from pathfm.slide import Reader, Slide
    from pathfm.sources import SlideSource
    from pathfm.tiles import Tiles

_BATCHES_AHEAD = 2
_MOST_IN_A_CALL = 8  # tiles; what has begun when a run is stopped is still read
_LEAST_STRIPE = 2  # columns of tiles that one process reads
_MOST_OPEN = 4  # slides in a process: this one and the next, of two runs side by side
_jobs = count()


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Rows `start` to `stop` of the coords, read.

    Attributes:
        start: first row of the batch.
        stop: one past its last row.
        pixels: uint8 (k, size_px, size_px, 3), RGB, of the tiles that could be read, in order.
        failed: bool (stop - start,), which of the rows could not be read; nothing stands in for them.
        rgb_sums: int64 (3,), sums of red, green and blue over `pixels`.
    """

    start: int
    stop: int
    pixels: NDArray[np.uint8]
    failed: NDArray[np.bool_]
    rgb_sums: NDArray[np.int64]

    @property
    def n_pixels(self) -> int:
        """How many pixels they have."""
        return int(self.pixels[..., 0].size)


class TileReads:
    """The tiles of a slide in the order of their coords: an iterator over `TileBatch`.

    Reading begins at once, and stays two batches ahead of the one that is asked for. Batch i holds rows `i * batch_size`
    onwards whatever the number of workers, so a run can stop after any batch and go on from the next. The memory of a
    batch is used again when nobody holds its pixels any more.
    """

    def __init__(
        self,
        source: SlideSource,
        tiles: Tiles,
        batch_size: int,
        workers: int,
        limits: Limits = Limits(),
        first_row: int = 0,
        reader: Reader = "auto",
    ) -> None:
        """Begins to read.

        Args:
            source: the slide.
            tiles: its grid.
            batch_size: tiles in a batch; the last may be smaller.
            workers: processes that read.
            limits: of each of them.
            first_row: where to start; a multiple of the batch size.
            reader: what decodes the slide.
        """
        self._source, self._tiles, self._workers, self._limits = source, tiles, workers, limits
        self._job, self._reader = (os.getpid(), next(_jobs)), reader
        self._batch_size = batch_size
        self._starts = iter(range(first_row, len(tiles), batch_size))
        self._ahead: deque[_Coming] = deque()
        with self._closed_on_error():
            for _ in range(_BATCHES_AHEAD):
                self._begin_next()

    def __iter__(self) -> Iterator[TileBatch]:
        return self

    def __next__(self) -> TileBatch:
        """The next batch.

        Raises:
            SlideError: a tile took too long, or its process died: such a slide is not trusted further. Or there is no
                memory for a batch.
        """
        if not self._ahead:
            raise StopIteration
        with self._closed_on_error():
            self._begin_next()
            batch = self._ahead[0].batch()
            self._ahead.popleft()
            return batch

    @property
    def is_ahead(self) -> bool:
        """Whether the batches that are read ahead are all there."""
        return all(part.call.outcome.done() for coming in self._ahead for part in coming.parts)

    def close(self) -> None:
        """Drops what has not begun; nothing more comes."""
        self._starts = iter(())
        while self._ahead:
            for part in self._ahead.popleft().parts:
                part.call.cancel()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()  # or what is left of this slide would be read before the next
            raise

    def _begin_next(self) -> None:
        """Has the next batch read, in calls of a few tiles that lie side by side."""
        start = next(self._starts, None)
        if start is None:
            return
        size_px, stop = self._tiles.size_px, min(start + self._batch_size, len(self._tiles))
        coming = _Coming(start, stop, size_px, self._block(size_px), [])
        self._ahead.append(coming)
        processes = self._processes(start, stop)
        for process in range(self._workers):
            rows = np.flatnonzero(processes == process)
            for at in range(0, len(rows), _MOST_IN_A_CALL):
                self._begin_call(coming, process, rows[at : at + _MOST_IN_A_CALL])

    def _block(self, size_px: int) -> Block:
        """Always of one size, so that a block fits every batch; what is not written to takes no memory."""
        try:
            return lent_block(self._limits, self._workers, self._batch_size * size_px * size_px * 3)
        except OSError as error:
            path = self._source.path
            message = f"{path}: no memory for {self._batch_size} tiles at a time ({error}); pass a smaller --batch_size"
            raise SlideError(path, "memory", message) from error

    def _processes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Which process each tile of a batch is for, int64 (k,): tiles below one another have the same one.

        The slide's own tiles that two of them share were then decoded there before, and a process keeps a few columns of
        these instead of all.
        """
        stride_px0 = self._tiles.extent_px0 * self._tiles.stride_px / self._tiles.size_px
        columns = np.rint(self._tiles.coords[start:stop, 0] / stride_px0).astype(np.int64)
        width = min(max(_LEAST_STRIPE, self._batch_size // self._workers), _MOST_IN_A_CALL)
        return np.asarray(columns // width % self._workers)

    def _begin_call(self, coming: _Coming, process: int, rows: NDArray[np.int64]) -> None:
        tiles = self._tiles
        job = _Job(self._source, self._job, self._reader, tiles.size_px, tiles.mpp)
        places = [(int(row), *tiles.coords[coming.start + row].tolist()) for row in rows]
        how = (self._source.path, self._limits, self._workers)
        call = isolated_on(process, coming.block, *how, _read_some, job, places, coming.block.place)
        coming.parts.append(_Part(rows, call))


@dataclass(frozen=True)
class _Job:
    """What is the same for all calls of a run over a slide; picklable."""

    source: SlideSource
    number: tuple[int, int]
    reader: Reader
    size_px: int
    mpp: float


@dataclass(frozen=True)
class _Read:
    """What came of a call, beside the pixels: which of its tiles failed, and the sums of the colours of the others."""

    failed: list[bool]
    rgb_sums: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of a batch and the call that reads them."""

    rows: NDArray[np.int64]
    call: Call[_Read]


@dataclass(frozen=True, eq=False)
class _Coming:
    """A batch that is being read."""

    start: int
    stop: int
    size_px: int
    block: Block
    parts: list[_Part]

    def batch(self) -> TileBatch:
        """Waits for it."""
        failed, sums = np.zeros(self.stop - self.start, bool), np.zeros(3, np.int64)
        for part in self.parts:
            read = part.call.result()
            failed[part.rows] = read.failed
            sums += np.array(read.rgb_sums)
        pixels = self.block.pixels.reshape(-1, self.size_px, self.size_px, 3)[: len(failed)]
        return TileBatch(self.start, self.stop, pixels[~failed] if failed.any() else pixels, failed, sums)


def _read_some(job: _Job, places: list[tuple[int, int, int]], where: Place) -> _Read:
    """Decodes tiles, each (which of the block's, its x and its y in level-0 pixels), into a block of the shared memory."""
    tiles = shared_bytes(where).reshape(-1, job.size_px, job.size_px, 3)
    slide, sums = _kept_open(job), np.zeros(3, np.int64)
    failed = []
    for row, x_px0, y_px0 in places:
        try:
            slide.read_tile(x_px0, y_px0, job.size_px, job.mpp, out=tiles[row])
        except TileUnreadableError:
            require_readable(job.source.path)  # a slide that is gone or cut by now has not one bad tile
            failed.append(True)
        else:
            failed.append(False)
            sums += np.array(cv2.sumElems(tiles[row])[:3], np.int64)  # whole numbers below 2**53
        sign_of_life()
    red, green, blue = sums.tolist()
    return _Read(failed, (red, green, blue))


@functools.lru_cache(maxsize=_MOST_OPEN)
def _kept_open(job: _Job) -> Slide:
    """A slide, opened once a process and job, beside those of other jobs; closed when it is let go."""
    forgotten_when_idle(_kept_open.cache_clear)
    return job.source.open(job.reader)
