"""Slides as an extraction reads them: in processes of their own, under a deadline and a memory limit, a batch at a time."""

from __future__ import annotations

import functools
import os
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pathfm.errors import SlideUnreadableError, TileUnreadableError
from pathfm.files import is_disk_full
from pathfm.isolation import Limits, cancelled_after, isolated
from pathfm.outlines import tissue_of
from pathfm.slidefiles import require_readable, slide_changed, slide_digest, slide_state
from pathfm.tiles import require_scan_fine_enough, tile_slide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.errors import Reason
    from pathfm.isolation import Call
    from pathfm.slide import Slide
    from pathfm.slidefiles import DigestKind
    from pathfm.sources import SlideSource
    from pathfm.tiles import Tiles, TileSpec
    from pathfm.tissue import TissueSpec

_run = count()


@dataclass(frozen=True)
class Survey:
    """What is known of a slide before its tiles are read; picklable.

    Attributes:
        state: of its files when it was opened.
        digest: what it is known by.
        size_px0: (width, height) of level 0.
        mpp: microns per pixel of level 0.
        mpp_source: where that is from.
        tissue_sha256: digest of its tissue mask.
        tissue_mm2: area of its tissue.
        tiles: the grid over it.
    """

    state: tuple[tuple[int, int, int], ...]
    digest: str
    size_px0: tuple[int, int]
    mpp: float
    mpp_source: str
    tissue_sha256: str
    tissue_mm2: float
    tiles: Tiles


@dataclass(frozen=True)
class Reading:
    """How slides are read; picklable.

    Attributes:
        tiles: the resolved tile spec.
        tissue: the tissue spec.
        outlines: folder of hand-made outlines, None without.
        digest: what a slide is known by.
        max_failed_share: of the tiles that may be unreadable before the slide is refused.
        workers: processes that read.
        limits: of each of them.
    """

    tiles: TileSpec
    tissue: TissueSpec
    outlines: Path | None
    digest: DigestKind
    max_failed_share: float
    workers: int
    limits: Limits


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Rows `start` to `stop` of the coords, read.

    Attributes:
        start: first row of the batch.
        stop: one past its last row.
        pixels: uint8 (k, size_px, size_px, 3), RGB, of the tiles that could be read, in order.
        failed: bool (stop - start,), which of the rows could not be read; nothing stands in for them.
    """

    start: int
    stop: int
    pixels: NDArray[np.uint8]
    failed: NDArray[np.bool_]


def survey(source: SlideSource, how: Reading) -> Survey:
    """Opens a slide, takes its digest, finds its tissue and lays the grid.

    Raises:
        SlideError: it cannot be used; the reason is typed.
        InputError: the tiles cannot be laid on it.
    """
    return isolated(source.path, how.limits.for_whole_slide(), how.workers, _survey, source, how).result()


def read_tiles(
    source: SlideSource, tiles: Tiles, batch_size: int, workers: int, limits: Limits = Limits(), first_row: int = 0
) -> Iterator[TileBatch]:
    """Reads tiles in the order of their coords, a batch at a time.

    Batch i holds rows `i * batch_size` onwards whatever the number of workers, so a run can stop after any batch and go
    on from the next. At most one batch and two tiles a worker are read ahead.

    Args:
        source: the slide.
        tiles: its grid.
        batch_size: tiles in a batch; the last may be smaller.
        workers: processes that read.
        limits: of each of them.
        first_row: where to start; a multiple of the batch size.

    Raises:
        SlideError: a tile took too long, or its process died: such a slide is not trusted further.
    """
    job, queued = (os.getpid(), next(_run)), first_row
    ahead: deque[Call[NDArray[np.uint8] | None]] = deque()
    with cancelled_after(ahead):
        for start in range(first_row, len(tiles), batch_size):
            stop = min(start + batch_size, len(tiles))
            upto = min(stop + batch_size + 2 * workers, len(tiles))
            for x, y in tiles.coords[queued:upto].tolist():
                place = (x, y, tiles.size_px, tiles.mpp)
                ahead.append(isolated(source.path, limits, workers, _read_tile, source, job, place))
            queued = max(queued, upto)
            yield _batch(start, [ahead.popleft().result() for _ in range(start, stop)], tiles.size_px)


def identify(source: SlideSource, how: Reading) -> dict[str, Any]:
    """What decides an embedding beside the recipe, under the names that `Embeddings` has for it.

    Raises:
        SlideError: the slide cannot be used; the reason is typed.
    """
    return isolated(source.path, how.limits.for_whole_slide(), how.workers, _identify, source, how).result()


def has_changed(source: SlideSource, digest: str, workers: int = 1, limits: Limits = Limits()) -> bool:
    """Whether a slide is another than the one that a digest was taken of.

    Raises:
        OSError: it cannot be read.
        SlideError: it cannot be opened, where its digest asks for that.
    """
    return isolated(source.path, limits.for_whole_slide(), workers, slide_changed, source.path, digest).result()


@contextmanager
def opened(source: SlideSource) -> Iterator[Slide]:
    """The open slide, in a process of its own; what the system refuses while it is read is this slide's failure.

    Raises:
        SlideError: it cannot be used, or not read to its end.
        MemoryError: OpenCV had none left, where it raises an error of its own kind.
    """
    try:
        with source.open() as slide:
            yield slide
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem or "bad_alloc" in str(error):
            raise MemoryError from error
        raise
    except OSError as error:
        if is_disk_full(error):
            raise
        reason: Reason = "permission" if isinstance(error, PermissionError) else "unreadable"
        what = error.filename or source.path
        message = f"{what} cannot be read to its end ({error.strerror or error}); check the file, its permissions and its disk"
        raise SlideUnreadableError(source.path, reason, message) from error


def _survey(source: SlideSource, how: Reading) -> Survey:
    with opened(source) as slide:
        state, digest = slide_state(source.path), slide_digest(source.path, how.digest)
        mask = tissue_of(slide, how.tissue, how.outlines, source.original_id)
        return Survey(
            state=state,
            digest=digest,
            size_px0=slide.size_px0,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            tissue_sha256=mask.sha256,
            tissue_mm2=mask.area_mm2,
            tiles=tile_slide(slide, mask, how.tiles),
        )


def _identify(source: SlideSource, how: Reading) -> dict[str, Any]:
    with opened(source) as slide:
        require_scan_fine_enough(slide, how.tiles)  # the recipe does not say whether upsampling was allowed
        facts = {
            "slide_id": source.slide_id,
            "slide_digest": slide_digest(source.path, how.digest),
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
        }
        if how.outlines is not None:
            facts["tissue_sha256"] = tissue_of(slide, how.tissue, how.outlines, source.original_id).sha256
    return facts


def _read_tile(
    source: SlideSource, job: tuple[int, int], place: tuple[int, int, int, float]
) -> NDArray[np.uint8] | None:
    """One tile, None where it cannot be decoded."""
    try:
        return _kept_open(source, job).read_tile(*place)
    except TileUnreadableError:
        require_readable(source.path)  # a slide that is gone or cut by now has not one bad tile
        return None


@functools.lru_cache(maxsize=1)
def _kept_open(source: SlideSource, _job: tuple[int, int]) -> Slide:
    """The slide of this process, opened once a job; the one before closes itself when it is let go."""
    return source.open()


def _batch(start: int, tiles: list[NDArray[np.uint8] | None], size_px: int) -> TileBatch:
    pixels = [tile for tile in tiles if tile is not None]
    stacked = np.stack(pixels) if pixels else np.zeros((0, size_px, size_px, 3), np.uint8)
    return TileBatch(start, start + len(tiles), stacked, np.array([tile is None for tile in tiles], bool))
