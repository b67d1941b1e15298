"""Slides as an extraction looks at them before it reads their tiles: in other processes, under a deadline and a memory limit."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2

from pathfm.errors import SlideError, SlideUnreadableError
from pathfm.files import is_disk_full
from pathfm.isolation import Limits, isolated
from pathfm.outlines import tissue_of
from pathfm.slidefiles import slide_changed, slide_digest, slide_state
from pathfm.thumbnailhash import UNKNOWN_HASH, thumbnail_hash
from pathfm.tiles import require_scan_fine_enough, tile_slide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.errors import Reason
    from pathfm.isolation import Call
    from pathfm.slide import Reader, Slide
    from pathfm.slidefiles import DigestKind
    from pathfm.sources import SlideSource
    from pathfm.tiles import Tiles, TileSpec
    from pathfm.tissue import TissueMask, TissueSpec


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
        reader: what decodes its tiles: "direct", "openslide" or "cucim".
        thumbnail_hash: what the whole of it looks like, "" where there is nothing on the glass.
    """

    state: tuple[tuple[int, int, int], ...]
    digest: str
    size_px0: tuple[int, int]
    mpp: float
    mpp_source: str
    tissue_sha256: str
    tissue_mm2: float
    tiles: Tiles
    reader: str
    thumbnail_hash: str


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
        reader: what decodes slides.
    """

    tiles: TileSpec
    tissue: TissueSpec
    outlines: Path | None
    digest: DigestKind
    max_failed_share: float
    workers: int
    limits: Limits
    reader: Reader = "auto"


def survey(source: SlideSource, how: Reading) -> Survey:
    """Opens a slide, takes its digest, finds its tissue and lays the grid.

    Raises:
        SlideError: it cannot be used; the reason is typed.
        InputError: the tiles cannot be laid on it.
    """
    return isolated(source.path, how.limits.for_whole_slide(), how.workers, _survey, source, how).result()


def identify(source: SlideSource, how: Reading) -> dict[str, Any]:
    """What decides an embedding beside the recipe, under the names that `Embeddings` has for it.

    Raises:
        SlideError: the slide cannot be used; the reason is typed.
    """
    return isolated(source.path, how.limits.for_whole_slide(), how.workers, _identify, source, how).result()


def counted_tiles(source: SlideSource, how: Reading) -> Call[int]:
    """Begins to count the tiles of a slide; the result raises what `survey` raises."""
    return isolated(source.path, how.limits.for_whole_slide(), how.workers, _count_tiles, source, how)


def has_changed(source: SlideSource, digest: str, workers: int = 1, limits: Limits = Limits()) -> bool:
    """Whether a slide is another than the one that a digest was taken of.

    Raises:
        OSError: it cannot be read.
        SlideError: it cannot be opened, where its digest asks for that.
    """
    return isolated(source.path, limits.for_whole_slide(), workers, slide_changed, source.path, digest).result()


@contextmanager
def opened(source: SlideSource, reader: Reader = "auto") -> Iterator[Slide]:
    """The open slide, in a process of its own; what the system refuses while it is read is this slide's failure.

    Raises:
        SlideError: it cannot be used, or not read to its end.
        MemoryError: OpenCV had none left, where it raises an error of its own kind.
    """
    try:
        with source.open(reader) as slide:
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
    with opened(source, how.reader) as slide:
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
            reader=slide.reader_for(how.tiles.mpp or slide.mpp),
            thumbnail_hash=_thumbnail_hash(slide, mask),
        )


def _thumbnail_hash(slide: Slide, mask: TissueMask) -> str:
    """That of the overview the tissue was found in; for an outline, which needs none, one is read if it can be."""
    if mask.source == "found":
        return mask.thumbnail_hash
    with suppress(SlideError):
        return thumbnail_hash(*slide.read_overview(mask.mpp))
    return UNKNOWN_HASH


def _count_tiles(source: SlideSource, how: Reading) -> int:
    with opened(source, how.reader) as slide:
        return len(tile_slide(slide, tissue_of(slide, how.tissue, how.outlines, source.original_id), how.tiles))


def _identify(source: SlideSource, how: Reading) -> dict[str, Any]:
    with opened(source, how.reader) as slide:
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
