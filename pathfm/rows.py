"""The rows of a slide's embeddings as blocks of its journal, and back."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import openslide
import PIL
import torch

from pathfm.embeddings import recipe_sha256
from pathfm.errors import EmbeddingsDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pathfm.backbones import LoadedBackbone
    from pathfm.journal import Journal
    from pathfm.reading import Survey
    from pathfm.tilereads import TileBatch

_SUMS = struct.Struct("<4q")  # of red, green and blue over the pixels of a block, and how many these are
_JOURNAL_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Rows:
    """What one batch gave.

    Attributes:
        failed: bool (k,), which of its tiles could not be read.
        rgb_sums: int64 (3,), sums of red, green and blue over the pixels of the others.
        n_pixels: how many these are.
        features: float16 (k', dim), the embeddings of the others.
    """

    failed: NDArray[np.bool_]
    rgb_sums: NDArray[np.int64]
    n_pixels: int
    features: NDArray[np.float16]


def append_rows(journal: Journal, batch: TileBatch, features: NDArray[np.float16]) -> None:
    """Adds the block of a batch: which tiles failed (a byte each), the sums of the colours, the features of the others.

    Raises:
        DiskFullError: no space; the blocks before it stay.
    """
    sums = _SUMS.pack(*batch.rgb_sums.tolist(), batch.n_pixels)
    journal.append(batch.failed.astype("u1").tobytes() + sums + features.astype("<f2").tobytes())


def journalled_rows(journal: Journal, n_tiles: int, batch_size: int, dim: int) -> Iterator[Rows]:
    """The rows of a begun journal, batch by batch.

    Args:
        journal: the journal.
        n_tiles: of the slide.
        batch_size: tiles in a batch.
        dim: length of an embedding.

    Raises:
        EmbeddingsDamagedError: its blocks are none of such batches, or changed since they were written.
    """
    for start, block in zip(range(0, n_tiles, batch_size), journal.blocks(), strict=False):
        count = min(batch_size, n_tiles - start)
        failed = np.frombuffer(block[:count], "u1").astype(bool)
        if len(block) != count + _SUMS.size + 2 * dim * (count - int(failed.sum())):
            message = f"{journal.path} is no journal that pathfm wrote; delete it and run pathfm extract again"
            raise EmbeddingsDamagedError(journal.path, message)
        *sums, n_pixels = _SUMS.unpack_from(block, count)
        features = np.frombuffer(block, "<f2", offset=count + _SUMS.size).reshape(-1, dim)
        yield Rows(failed, np.array(sums, np.int64), n_pixels, features)


def journal_head(
    slide_id: str, seen: Survey, recipe: dict[str, Any], backbone: LoadedBackbone, batch_size: int
) -> dict[str, Any]:
    """Everything that decides the rows: rows of two libraries or two machines' devices never share a file."""
    return {
        "format": _JOURNAL_FORMAT,
        "recipe_sha256": recipe_sha256(recipe),
        "slide_id": slide_id,
        "slide_digest": seen.digest,
        "mpp": seen.mpp,
        "mpp_source": seen.mpp_source,
        "tissue_sha256": seen.tissue_sha256,
        "coords_sha256": hashlib.sha256(seen.tiles.coords.tobytes()).hexdigest(),
        "dim": backbone.row.dim or 0,
        "versions": versions(seen, backbone, batch_size),
    }


def versions(seen: Survey, backbone: LoadedBackbone, batch_size: int) -> dict[str, str]:
    """What the numbers were made with; recorded, but no part of the recipe."""
    return {
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "openslide": openslide.__library_version__,
        "simplejpeg": version("simplejpeg"),
        "reader": seen.reader,
        "engine": backbone.engine,
        "weights_revision": backbone.revision,
        "device": backbone.device.type,
        "batch_size": str(batch_size),
    }
