"""Labelled tiles that lie as images in folders or in a table, read in processes of their own as if a stranger made them."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from pathfm.errors import InputError, SlideError, TileUnreadableError
from pathfm.failures import Failure
from pathfm.files import is_disk_full
from pathfm.isolation import Limits, cancelled_after, isolated
from pathfm.progress import logger, progress
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.errors import Reason
    from pathfm.isolation import Call
    from pathfm.privacy import Pseudonyms

TABLE = "tiles.csv"
"""A table of this name in the folder of the tiles says what the names of its folders cannot: patients and sites."""

_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff"])
_FORMATS = ("PNG", "JPEG", "TIFF")
_MODES = ("RGB", "L", "P", "1")
_SIZE_PX = (8, 4096)
_MOST_BYTES = 1 << 28
_IN_A_UNIT = 1024
_BATCHES_AHEAD = 2
# What Pillow raises for files that are none of what they say.
_BROKEN = (SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError)
_BROKEN_INSIDE = (struct.error, zlib.error, Image.DecompressionBombError)


class TileSome(NamedTuple):
    """Some tiles of a unit as they come: which of its rows, their pixels uint8 (k, size, size, 3), and what failed."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    failures: list[Failure]


@dataclass(frozen=True, eq=False)
class Unit:
    """Tiles that are embedded together, in batches that hold no others.

    Attributes:
        name: the slide's name, "" for images.
        facts: JSON that decides their pixels.
        rows: int64 (n,), which tiles of the table they are.
        read: reads them a batch at a time; raises a SlideError where none can be had.
    """

    name: str
    facts: dict[str, Any]
    rows: NDArray[np.int64]
    read: Callable[[], Iterator[TileSome]]


def find_tile_images(source: Path, label: str | None = None, names: Pseudonyms | None = None) -> pd.DataFrame:
    """The tile images of a folder or of a table.

    A folder holds one folder a label with .png, .jpg or .tif files, or a table `tiles.csv`. A table (.csv) has the
    columns path (relative to it) and label, and may have patient_id and site; a row without a label is left out.

    Args:
        source: the folder or the table.
        label: the column of the labels, "label" where not given.
        names: gives pseudonyms in place of the names of files and patients.

    Returns:
        One row a tile: tile (its name), path, label, patient_id and site ("" unknown), sorted by tile.

    Raises:
        InputError: no such folder, no tiles, a table that cannot be used, or a label without a table.
    """
    table = source / TABLE if (source / TABLE).is_file() else source
    if table.suffix.lower() == ".csv":
        found = _of_table(table, label or "label")
    elif label is not None:
        message = f"--label {label} is a column, and {source} has no table; pass --images a table, or leave --label out"
        raise InputError(message)
    else:
        found = _of_folder(source)
    if names is not None:
        found = _renamed(found, names)
    return found.sort_values("tile", ignore_index=True)


def survey_tile_images(found: pd.DataFrame, limits: Limits, workers: int) -> tuple[pd.DataFrame, list[Failure]]:
    """The tiles that can be opened, with the columns digest ("sha256:...") and size_px; and those that cannot."""
    calls = {
        tile: isolated(path, limits, workers, _facts, path)
        for tile, path in zip(found["tile"], found["path"], strict=True)
    }
    facts: dict[str, tuple[str, int]] = {}
    failures: list[Failure] = []
    with cancelled_after(calls.values()):
        for tile, call in progress(calls.items(), "look at tiles", "tile"):
            try:
                facts[tile] = call.result()
            except SlideError as error:
                failures.append(Failure.of(tile, error))
    usable = found[found["tile"].isin(facts.keys())].reset_index(drop=True)
    digests, sizes = zip(*(facts[tile] for tile in usable["tile"]), strict=True) if len(usable) else ((), ())
    return usable.assign(digest=list(digests), size_px=list(sizes)), failures


def image_units(tiles: pd.DataFrame, batch_size: int, limits: Limits, workers: int) -> list[Unit]:
    """The tiles in units of a size: what was embedded of a run that was killed is found again unit by unit."""
    units = []
    for _, of_a_size in tiles.groupby("size_px"):
        for start in range(0, len(of_a_size), _IN_A_UNIT):
            some = of_a_size.iloc[start : start + _IN_A_UNIT]
            read = _Reading(some, batch_size, limits, workers)
            units.append(Unit("", {"images": list(some["digest"])}, some.index.to_numpy(np.int64), read))
    return units


@dataclass(frozen=True, eq=False)
class _Reading:
    """Reads the images of a unit: an iterator over its batches, with the next two read ahead."""

    tiles: pd.DataFrame
    batch_size: int
    limits: Limits
    workers: int

    def __call__(self) -> Iterator[TileSome]:
        starts = iter(range(0, len(self.tiles), self.batch_size))
        ahead: deque[tuple[int, list[Call[NDArray[np.uint8]]]]] = deque()
        try:
            while True:
                while len(ahead) <= _BATCHES_AHEAD and (start := next(starts, None)) is not None:
                    ahead.append((start, self._begun(start)))
                if not ahead:
                    return
                yield self._batch(*ahead.popleft())
        finally:
            for _, calls in ahead:
                for call in calls:
                    call.cancel()

    def _begun(self, start: int) -> list[Call[NDArray[np.uint8]]]:
        some = self.tiles.iloc[start : start + self.batch_size]
        return [
            isolated(path, self.limits, self.workers, _pixels, path, digest)
            for path, digest in zip(some["path"], some["digest"], strict=True)
        ]

    def _batch(self, start: int, calls: Sequence[Call[NDArray[np.uint8]]]) -> TileSome:
        rows, pixels, failures = [], [], []
        for at, call in enumerate(calls, start):
            try:
                pixels.append(call.result())
                rows.append(at)
            except SlideError as error:
                failures.append(Failure.of(str(self.tiles["tile"].iloc[at]), error))
        size_px = int(self.tiles["size_px"].iloc[0])
        stacked = np.stack(pixels) if pixels else np.zeros((0, size_px, size_px, 3), np.uint8)
        return TileSome(np.array(rows, np.int64), stacked, failures)


def _of_folder(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        message = f"no folder at {folder}; pass --images a folder with one folder a label, or a table (.csv)"
        raise InputError(message)
    rows = [
        {"tile": f"{inside.name}/{path.name}", "path": path, "label": inside.name}
        for inside in sorted(folder.iterdir())
        if inside.is_dir() and not inside.name.startswith(".")
        for path in _images_in(inside)
    ]
    if not rows:
        message = f"no tiles in {folder}; it must hold one folder a label, with .png, .jpg or .tif files, or {TABLE}"
        raise InputError(message)
    return pd.DataFrame(rows).assign(patient_id="", site="")


def _images_in(folder: Path) -> list[Path]:
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    deeper = [path for path in inside if path.is_dir()]
    if deeper:
        message = (
            f"{folder} holds the folder {deeper[0].name}; tiles lie in one folder a label, else pass --images a table"
        )
        raise InputError(message)
    images = [path for path in inside if path.suffix.lower() in _SUFFIXES]
    if len(images) < len(inside):
        logger.warning("%s: %d files that are no .png, .jpg or .tif are left out", folder, len(inside) - len(images))
    return images


def _of_table(path: Path, label: str) -> pd.DataFrame:
    remedy = "give it the columns path and label, and patient_id and site where they are known"
    table = read_table(path, ["path", label], remedy)
    if label in ("path", "patient_id", "site"):
        message = f"--label {label} is no column of labels; pass another"
        raise InputError(message)
    for column in ("path", label, "patient_id", "site"):
        table[column] = table[column].str.strip() if column in table else ""
    rows = table[table[label] != ""]
    if len(rows) < len(table):
        logger.warning("%s: %d rows without a label are left out", path, len(table) - len(rows))
    twice = rows["path"][rows["path"].duplicated()]
    if rows.empty or len(twice) or (rows["path"] == "").any():
        what = f"names {twice.iloc[0]} twice" if len(twice) else "has no row with a label" if rows.empty else ""
        message = f"{path} {what or 'has rows without a path'}; {remedy}"
        raise InputError(message)
    paths = [path.parent.absolute() / one for one in rows["path"]]
    known = {"tile": rows["path"], "label": rows[label], "patient_id": rows["patient_id"], "site": rows["site"]}
    return pd.DataFrame(known).assign(path=paths)


def _renamed(found: pd.DataFrame, names: Pseudonyms) -> pd.DataFrame:
    """The tiles under pseudonyms, which are to be said in place of all that they were known by."""
    shown = [names.slide(tile) for tile in found["tile"]]
    for folder in {path.parent for path in found["path"]}:
        names.scrubber.learn_folder(folder, "the folder of a tile")
    for path, tile, pseudonym in zip(found["path"], found["tile"], shown, strict=True):
        names.scrubber.learn_file(path, pseudonym)
        for word in (path.stem, tile):
            names.scrubber.learn(word, pseudonym)
    patients = [names.patient(one) if one else "" for one in found["patient_id"]]
    return found.assign(tile=shown, patient_id=patients)


def _facts(path: Path) -> tuple[str, int]:
    """Digest of the file and width of the image, which is not decoded; in another process."""
    with _typed(path):
        if not path.is_file():
            raise _unreadable(path, "unreadable", "is no file that is there")
        size = path.stat().st_size
        if not 0 < size <= _MOST_BYTES:
            raise _unreadable(path, "unsupported" if size else "empty file", f"has {size} bytes")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width != height or not _SIZE_PX[0] <= width <= _SIZE_PX[1] or image.mode not in _MODES:
                what = f"is {width} x {height} pixels of the kind {image.mode}; a tile is a square of RGB or grey"
                raise _unreadable(path, "unsupported", what)
    return "sha256:" + hashlib.sha256(data).hexdigest(), width


def _pixels(path: Path, digest: str) -> NDArray[np.uint8]:
    """The image, uint8 (size, size, 3), RGB; in another process."""
    with _typed(path):
        data = path.read_bytes()
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise _unreadable(path, "changed", "has changed since this run began")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
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
