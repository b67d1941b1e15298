"""Tile images, read in processes of their own as if a stranger had made them."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from pathfm.backbones import Backbone, require_tiles
from pathfm.errors import InputError, SlideError, TileSpecMismatchError, TileUnreadableError
from pathfm.failures import Failure
from pathfm.files import is_disk_full
from pathfm.isolation import Limits, cancelled_after, isolated
from pathfm.progress import progress
from pathfm.tilefeatures import LabelledTiles, TileSome, Unit, with_patients

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.errors import Reason
    from pathfm.isolation import Call
    from pathfm.slidesample import Sampling
    from pathfm.tilefeatures import Integers
    from pathfm.tiles import TileSpec

_FORMATS = ("PNG", "JPEG", "TIFF")
_MODES = ("RGB", "RGBA", "L", "P", "1")  # RGBA where nothing shows through
_SIZE_PX = (8, 4096)
_MOST_BYTES = 1 << 28
_IN_A_UNIT = 1024
_BATCHES_AHEAD = 2
# What Pillow raises for files that are none of what they say.
_BROKEN = (SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError)
_BROKEN_INSIDE = (struct.error, zlib.error, Image.DecompressionBombError)


def tiles_of_images(found: pd.DataFrame, rows: Sequence[Backbone], spec: TileSpec, how: Sampling) -> LabelledTiles:
    """The tile images that can be read; every backbone gets the same pixels.

    Args:
        found: by `imagelist.find_tile_images`.
        rows: the backbones.
        spec: says their mpp, if anybody does; a size that it gives must be that of the images.
        how: which labels are asked for, and how files are read.

    Raises:
        TileSpecMismatchError: a backbone was not made for such tiles.
        UnknownNameError: no tile has a label that is asked for.
        InputError: no image can be read, they are of another size than stated, or one image has two labels.
        LeakageError: one image under two patients.
    """
    how.require_known(set(found["label"]))
    asked = found if how.classes is None else found[found["label"].isin(how.classes)].reset_index(drop=True)
    usable, failures = survey_tile_images(asked, how.limits, how.workers)
    if usable.empty:
        message = f"none of {len(asked)} tile images can be read; the first: {failures[0].message}"
        raise InputError(message)
    for size_px, count in usable["size_px"].value_counts().items():
        _require_size(rows, int(str(size_px)), count, spec)
    table, notes = with_patients(usable)
    if spec.mpp is None:
        notes.append("nobody states the mpp of the tile images, so it is not checked; --tiles.mpp states it")
    units = image_units(table, how.batch_size, how.limits, how.workers)
    return LabelledTiles(table, lambda _: units, failures, len(asked), notes)


def survey_tile_images(found: pd.DataFrame, limits: Limits, workers: int) -> tuple[pd.DataFrame, list[Failure]]:
    """The tiles that can be decoded, and those that cannot.

    Those that can have the columns digest ("sha256:..." of the pixels, whatever file holds them), the same as pixels,
    size_px, and flat (of one colour alone).
    """
    calls = {
        tile: isolated(path, limits, workers, _facts, path)
        for tile, path in zip(found["tile"], found["path"], strict=True)
    }
    facts: dict[str, tuple[str, int, bool]] = {}
    failures: list[Failure] = []
    with cancelled_after(calls.values()):
        for tile, call in progress(calls.items(), "look at tiles", "tile"):
            try:
                facts[tile] = call.result()
            except SlideError as error:
                failures.append(Failure.of(tile, error))
    usable = found[found["tile"].isin(facts.keys())].reset_index(drop=True)
    digests, sizes, flats = zip(*(facts[tile] for tile in usable["tile"]), strict=True) if len(usable) else ((), (), ())
    return usable.assign(digest=list(digests), pixels=list(digests), size_px=list(sizes), flat=list(flats)), failures


def image_units(tiles: pd.DataFrame, batch_size: int, limits: Limits, workers: int) -> list[Unit]:
    """The tiles in units of a size: a run that is killed has kept the units before."""
    units = []
    for _, of_a_size in tiles.groupby("size_px"):
        for start in range(0, len(of_a_size), _IN_A_UNIT):
            some = of_a_size.iloc[start : start + _IN_A_UNIT]
            read = _Reading(some, batch_size, limits, workers)
            units.append(Unit("", tuple(some["digest"]), some.index.to_numpy(np.int64), read))
    return units


@dataclass(frozen=True, eq=False)
class _Reading:
    """Reads images of a unit: an iterator over their batches, with the next two read ahead."""

    tiles: pd.DataFrame
    batch_size: int
    limits: Limits
    workers: int

    def __call__(self, rows: Integers) -> Iterator[TileSome]:
        batches = iter([rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)])
        ahead: deque[tuple[Integers, list[Call[NDArray[np.uint8]]]]] = deque()
        try:
            while True:
                while len(ahead) <= _BATCHES_AHEAD and (batch := next(batches, None)) is not None:
                    ahead.append((batch, self._begun(batch)))
                if not ahead:
                    return
                yield self._batch(*ahead.popleft())
        finally:
            for _, calls in ahead:
                for call in calls:
                    call.cancel()

    def _begun(self, batch: Integers) -> list[Call[NDArray[np.uint8]]]:
        some = self.tiles.iloc[batch]
        return [
            isolated(path, self.limits, self.workers, _pixels, path, digest)
            for path, digest in zip(some["path"], some["digest"], strict=True)
        ]

    def _batch(self, batch: Integers, calls: Sequence[Call[NDArray[np.uint8]]]) -> TileSome:
        rows, pixels, failures = [], [], []
        for at, call in zip(batch, calls, strict=True):
            try:
                pixels.append(call.result())
                rows.append(at)
            except SlideError as error:
                failures.append(Failure.of(str(self.tiles["tile"].iloc[at]), error))
        size_px = int(self.tiles["size_px"].iloc[0])
        stacked = np.stack(pixels) if pixels else np.zeros((0, size_px, size_px, 3), np.uint8)
        return TileSome(np.array(rows, np.int64), stacked, failures)


def _require_size(rows: Sequence[Backbone], size_px: int, count: int, spec: TileSpec) -> None:
    if spec.size_px not in (None, size_px) and not spec.allow_mismatch:
        message = f"{count} tile images are {size_px} px wide, not --tiles.size_px {spec.size_px}; leave that out"
        raise InputError(message)
    for row in rows:
        try:
            require_tiles(row, size_px, spec.mpp or row.default_mpp, allow_mismatch=spec.allow_mismatch)
        except TileSpecMismatchError as error:
            message = f"{count} tile images are {size_px} px wide: {error}"
            raise TileSpecMismatchError(message) from error


def _facts(path: Path) -> tuple[str, int, bool]:
    """Digest of the pixels, width, and whether they are all of one colour; in another process."""
    pixels = _decoded(path)
    return _digest(pixels), len(pixels), bool((pixels == pixels[0, 0]).all())


def _pixels(path: Path, digest: str) -> NDArray[np.uint8]:
    """The image, uint8 (size, size, 3), RGB; in another process."""
    pixels = _decoded(path)
    if _digest(pixels) != digest:
        raise _unreadable(path, "changed", "has changed since this run began")
    return pixels


def _digest(pixels: NDArray[np.uint8]) -> str:
    return "sha256:" + hashlib.sha256(f"{len(pixels)};".encode() + pixels.tobytes()).hexdigest()


def _decoded(path: Path) -> NDArray[np.uint8]:
    with _typed(path):
        if not path.is_file():
            raise _unreadable(path, "unreadable", "is no file that is there")
        size = path.stat().st_size
        if not 0 < size <= _MOST_BYTES:
            raise _unreadable(path, "unsupported" if size else "empty file", f"has {size} bytes")
        with Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image:
            width, height = image.size
            if width != height or not _SIZE_PX[0] <= width <= _SIZE_PX[1] or image.mode not in _MODES:
                what = f"is {width} x {height} pixels of the kind {image.mode}; a tile is a square of RGB or grey"
                raise _unreadable(path, "unsupported", what)
            if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
                raise _unreadable(path, "unsupported", "is transparent in places; a tile is RGB or grey")
            return np.asarray(image.convert("RGB"))


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise _unreadable(path, "unreadable", "is no PNG, JPEG or TIFF") from error
    except OSError as error:
        if is_disk_full(error):
            raise
        reason: Reason = "permission" if isinstance(error, PermissionError) else "unreadable"
        reason = "truncated" if error.errno is None else reason  # Pillow's own, of what ends too early
        raise _unreadable(path, reason, f"cannot be read ({_said(error)})") from error
    except (*_BROKEN, *_BROKEN_INSIDE) as error:
        raise _unreadable(path, "unreadable", f"cannot be decoded ({_said(error)})") from error


def _said(error: Exception) -> str:
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:200]


def _unreadable(path: Path, reason: Reason, what: str) -> TileUnreadableError:
    return TileUnreadableError(path, reason, f"{path} {what}; save it again, or take it out")
