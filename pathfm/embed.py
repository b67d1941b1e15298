"""One slide to one embeddings file: a function of picklable arguments, and why a file that is there has to be made again."""

from __future__ import annotations

import errno
import functools
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import openslide
import PIL
import torch

from pathfm.backbones import LoadedBackbone, Precision, load_backbone
from pathfm.embeddings import Embeddings, read_embeddings, recipe_differences, write_embeddings
from pathfm.errors import (
    BackboneError,
    EmbeddingsDamagedError,
    EmbeddingsError,
    MppError,
    SlideError,
    SlideUnreadableError,
)
from pathfm.outlines import tissue_of
from pathfm.progress import logger, progress
from pathfm.slide import Slide, slide_digest
from pathfm.tiles import read_tiles, require_scan_fine_enough, tile_slide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.errors import Reason
    from pathfm.sources import SlideSource
    from pathfm.tiles import TileBatch, Tiles, TileSpec
    from pathfm.tissue import TissueSpec

MAX_FAILED_SHARE = 0.005
"""A slide of which more than this share of the tiles cannot be read is refused."""

_WITHDRAWING = ("tissue outline", "too many failed tiles")  # as is every refusal of a scale
_LONG_BATCHES = 64  # a slide of so many batches shows its own progress


@dataclass(frozen=True, kw_only=True)
class ExtractWork:
    """What is done to every slide of a run; picklable, so that it can be sent to another process or machine.

    Attributes:
        backbone: the name it is loaded by.
        device: where it runs; "auto" is decided where the work is done.
        precision: of its matrix products.
        tiles: the resolved tile spec.
        tissue: the tissue spec.
        outlines: folder of hand-made outlines, None without.
        recipe: what the files will say; the backbone found by the worker has to be the one in it.
        batch_size: tiles in a forward pass.
        workers: threads that read tiles.
    """

    backbone: str
    device: str
    precision: Precision
    tiles: TileSpec
    tissue: TissueSpec
    outlines: Path | None
    recipe: dict[str, Any]
    batch_size: int
    workers: int


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


def extract_slide(source: SlideSource, work: ExtractWork, out: Path) -> Extracted:
    """Embeds one slide into one file, which is written whole at the end or not at all.

    A function of picklable arguments alone. A batch never mixes slides and its bounds follow the tile index, so the same
    machine gives the same bytes again. A slide without tissue gives a file of 0 tiles: that is a result.

    Args:
        source: the slide.
        work: what is done to it.
        out: the file.

    Raises:
        SlideError: the slide cannot be used; the reason is typed.
        BackboneError: the backbone here is not the one of the recipe, or gives embeddings that are not finite.
        DiskFullError: no space; nothing is left behind.
    """
    started_s = time.monotonic()
    backbone = _backbone_of(work)
    with _reading(source) as slide:
        digest = slide_digest(source.path)
        mask = tissue_of(slide, work.tissue, work.outlines)
        tiles = tile_slide(slide, mask, work.tiles)
        features, failed, mean_rgb = _embed(slide, tiles, backbone, work)
    _require_few_failed(source, failed)
    embeddings = Embeddings(
        slide_id=source.slide_id,
        slide_digest=digest,
        slide_size_px0=slide.size_px0,
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        tile_extent_px0=tiles.extent_px0,
        tissue_sha256=mask.sha256,
        recipe=work.recipe,
        versions=_versions(work, backbone),
        features=features[~failed],
        coords=tiles.coords[~failed],
        failed=tiles.coords[failed],
        mean_rgb=mean_rgb,
    )
    write_embeddings(out, embeddings)
    n_failed = int(failed.sum())
    return Extracted(
        slide_id=source.slide_id,
        n_tiles=len(tiles) - n_failed,
        n_failed=n_failed,
        tissue_mm2=mask.area_mm2,
        seconds=time.monotonic() - started_s,
    )


def why_stale(source: SlideSource, work: ExtractWork, path: Path) -> str | None:
    """Why a file is not what this work would write for this slide; None when it is, and is proven whole.

    Raises:
        SlideError: the slide cannot be read, or is too coarse for the tiles.
    """
    try:
        found = read_embeddings(path)
    except FileNotFoundError:
        return "it is not there"
    except EmbeddingsDamagedError as error:
        return f"its file is damaged: {error.message.partition(';')[0]}"
    differences = recipe_differences(found.recipe, work.recipe)
    for key, value in {} if differences else _facts(source, work).items():
        if getattr(found, key) != value:
            differences.append(f"{key} is {getattr(found, key)}, wanted {value}")
    return "; ".join(differences) or None


def set_aside_if_withdrawn(source: SlideSource, path: Path, error: SlideError) -> None:
    """Renames the file of a slide that now cannot be used, so that nobody trains on it.

    Only where the slide has changed since, or its scale, its outline or its tiles are what is refused: a slide that
    just cannot be read may be back tomorrow, and keeps its file.
    """
    withdrawn = isinstance(error, MppError) or error.reason in _WITHDRAWING
    if path.exists() and (withdrawn or _has_changed(source, path)):
        path.replace(path.with_name(f"{path.name}.stale"))
        logger.warning(
            "%s: its older embeddings no longer hold and were renamed to %s.stale", source.slide_id, path.name
        )


def loaded_backbone(name: str, device: str, precision: Precision) -> LoadedBackbone:
    """Loads a backbone afresh and keeps it as the one of this process, so that changed weights are seen by a new run."""
    _load.cache_clear()
    return _load(name, device, precision)


def _facts(source: SlideSource, work: ExtractWork) -> dict[str, Any]:
    """What decides an embedding beside the recipe, as it is now."""
    with _reading(source) as slide:
        require_scan_fine_enough(slide, work.tiles)  # the recipe does not say whether upsampling was allowed
        facts = {
            "slide_id": source.slide_id,
            "slide_digest": slide_digest(source.path),
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
        }
        if work.outlines is not None:
            facts["tissue_sha256"] = tissue_of(slide, work.tissue, work.outlines).sha256
    return facts


def _has_changed(source: SlideSource, path: Path) -> bool:
    try:
        return read_embeddings(path).slide_digest != slide_digest(source.path)
    except (OSError, EmbeddingsError):
        return False  # what cannot be read now need not have changed; damaged embeddings are refused anyway


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


@contextmanager
def _reading(source: SlideSource) -> Iterator[Slide]:
    """The open slide; what the system refuses while it is read is a failure of this slide, not of the run."""
    try:
        with source.open() as slide:
            yield slide
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason: Reason = "permission" if isinstance(error, PermissionError) else "unreadable"
        what = error.filename or source.path
        message = f"{what} cannot be read to its end ({error.strerror or error}); check the file, its permissions and its disk"
        raise SlideUnreadableError(source.path, reason, message) from error


def _embed(
    slide: Slide, tiles: Tiles, backbone: LoadedBackbone, work: ExtractWork
) -> tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float32]]:
    """(features float16 (n, dim), failed bool (n,), mean_rgb float32 (3,)); a failed row of features means nothing."""
    features = np.zeros((len(tiles), backbone.row.dim or 0), dtype=np.float16)
    failed = np.zeros(len(tiles), dtype=bool)
    total_rgb, pixels = np.zeros(3, dtype=np.int64), 0
    batches = read_tiles(slide, tiles.coords, tiles.size_px, tiles.mpp, work.batch_size, work.workers)
    count = math.ceil(len(tiles) / work.batch_size)
    if count >= _LONG_BATCHES:
        batches = progress(batches, slide.slide_id, unit="step", total=count)
    for batch in batches:
        features[batch.rows] = backbone.embed(batch.pixels)
        failed[batch.failed] = True
        total_rgb += _sum_rgb(batch)
        pixels += batch.pixels[..., 0].size
    mean_rgb = total_rgb / pixels if pixels else np.full(3, np.nan)
    return features, failed, mean_rgb.astype(np.float32)


def _sum_rgb(batch: TileBatch) -> NDArray[np.int64]:
    """Sum of the pixels of a batch, exact; row by row of the tiles first, in 32 bits, which is several times faster."""
    columns: NDArray[np.uint32] = batch.pixels.sum(axis=1, dtype=np.uint32)
    return np.asarray(columns.reshape(-1, 3).sum(axis=0), dtype=np.int64)


def _require_few_failed(source: SlideSource, failed: NDArray[np.bool_]) -> None:
    if failed.sum() > MAX_FAILED_SHARE * len(failed):
        message = (
            f"{source.path}: {int(failed.sum())} of {len(failed)} tiles cannot be read, more than"
            f" {MAX_FAILED_SHARE:.1%}; copy the slide again, or leave it out of --slides"
        )
        raise SlideError(source.path, "too many failed tiles", message)


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
