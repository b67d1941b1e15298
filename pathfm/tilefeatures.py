"""Labelled tiles however they came, and their embeddings by one backbone, kept on disk tile by tile and proven."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pathfm.errors import InputError, LeakageError, SlideError
from pathfm.failures import Failure
from pathfm.files import canonical_json, sha256_text, sweep_temporaries, write_atomically
from pathfm.progress import logger, progress
from pathfm.recipe import READER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.backbones import Backbone, LoadedBackbone

    Integers = NDArray[np.int64]

_SEAL_BYTES = 64
_KEY_BYTES = 32


class TileSome(NamedTuple):
    """Some tiles of a unit as they come: which of its rows, their pixels uint8 (k, size, size, 3), and what failed."""

    rows: Integers
    pixels: NDArray[np.uint8]
    failures: list[Failure]


@dataclass(frozen=True, eq=False)
class Unit:
    """Tiles that are embedded together, in batches that hold no others.

    Attributes:
        name: the slide's name, "" for images.
        keys: for each tile what decides its pixels, in words.
        rows: int64 (n,), which tiles of the table they are.
        read: reads some of them, int64 (m,) into `rows`, a batch at a time; raises a SlideError where none can be had.
    """

    name: str
    keys: tuple[str, ...]
    rows: Integers
    read: Callable[[Integers], Iterator[TileSome]]


@dataclass(frozen=True, eq=False)
class LabelledTiles:
    """Tiles, their labels, and whose they are.

    Attributes:
        table: one row a tile: tile, label, patient_id and site ("" unknown), and what `with_patients` asks for and adds.
        units: reads them for a backbone.
        failures: what could not be used.
        total: how many slides, or images, were asked for.
        notes: what somebody who reads the result should know.
    """

    table: pd.DataFrame
    units: Callable[[Backbone], list[Unit]]
    failures: list[Failure]
    total: int
    notes: list[str]


def with_patients(tiles: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with the column patient, never empty, and notes.

    Whoever owns an image, or a scan, owns it wherever it lies; where nobody states an owner it is a patient of its own.

    Args:
        tiles: tile, label, patient_id ("" unknown); digest, of the image's pixels or the scan; pixels, what must have one
            label; flat, whether it is of one colour alone: such tiles look alike and may be anybody's.

    Raises:
        LeakageError: the same image, or scan, under two patients.
        InputError: the same pixels under two labels.
    """
    told = tiles[~tiles["flat"]]
    known = told[told["patient_id"] != ""]
    for owners, column, kind in (
        (known.groupby("digest"), "patient_id", "patients"),
        (told.groupby("pixels"), "label", "labels"),
    ):
        counts = owners[column].nunique()
        if (counts > 1).any():
            twice = owners.get_group(counts.index[counts > 1][0]).drop_duplicates(column)
            message = (
                f"{' and '.join(twice['tile'][:2])} are the same pixels under the {kind}"
                f" {' and '.join(twice[column][:2])}; keep one, or give them one"
            )
            raise LeakageError(message) if column == "patient_id" else InputError(message)
    owner = dict(zip(known["digest"], known["patient_id"], strict=True))
    stated = [one or owner.get(digest, "") for one, digest in zip(tiles["patient_id"], tiles["digest"], strict=True)]
    patients = [
        f"patient {one}" if one else f"file {digest}" for one, digest in zip(stated, tiles["digest"], strict=True)
    ]
    unknown = stated.count("")
    flats, copies = int(tiles["flat"].sum()), int(told["pixels"].duplicated().sum())
    notes = {
        f"the patients of {unknown} of {len(tiles)} tiles are not known: each file is taken for a patient of its own, so"
        " tiles of one patient may be on both sides, and the figures too good and too sure; state patient_id in a"
        " table": unknown,
        f"{flats} tiles are of one colour alone; that they are the same under several patients or labels is not"
        " refused": flats,
        f"{copies} tiles have the same pixels as another of their patient, and count beside it": copies,
    }
    return tiles.assign(patient=patients), [note for note, count in notes.items() if count]


def embed_units(
    units: Sequence[Unit], identity: dict[str, Any], load: Callable[[], LoadedBackbone], folder: Path
) -> tuple[NDArray[np.float16], list[Failure]]:
    """The embeddings of all tiles of the units; the backbone is loaded only where some are not on disk.

    What was embedded of a unit is kept in `<folder>/<backbone>-<digest8>/<digest16>.npy`, the digest of the folder that
    of the backbone's identity. A tile is found again by what decides its pixels, in whichever unit it was. Tiles that
    failed are tried again by the next run.

    Args:
        units: of `n` tiles in all, whose rows are 0 to n - 1.
        identity: of the backbone.
        load: gives it.
        folder: where embeddings are kept.

    Returns:
        float16 (n, dim), NaN for tiles that could not be read; and these, as failures.

    Raises:
        BackboneError: it does not run, or its embeddings are not finite.
        DiskFullError: no space; what was embedded is kept.
    """
    features = np.full((sum(len(unit.rows) for unit in units), int(identity["dim"])), np.nan, np.float16)
    recipe = canonical_json({"backbone": identity, "reader": READER})
    place = folder / f"{re.sub(r'[^0-9A-Za-z.-]', '_', identity['name'])}-{sha256_text(recipe)[:8]}"
    kept = _all_kept(place, recipe, features.shape[1])
    missing = []
    for unit in units:
        keys = [hashlib.sha256(key.encode()).digest() for key in unit.keys]
        there = np.array([key in kept for key in keys], bool)
        for row, key in zip(unit.rows[there], np.array(keys, object)[there], strict=True):
            features[row] = kept[key]
        if not there.all():
            missing.append((unit, keys, np.flatnonzero(~there)))
    left = sum(len(rows) for *_, rows in missing)
    if left < len(features):
        logger.info("%s: %d of %d tiles are there", identity["name"], len(features) - left, len(features))
    if not missing:
        return features, []
    backbone = load()
    failures: list[Failure] = []
    for unit, keys, rows in progress(missing, f"embed by {identity['name']}", "part"):
        failures += _embedded(unit, rows, backbone, features)
        done = rows[np.isfinite(features[unit.rows[rows]]).all(axis=1)]
        if len(done):
            _keep(place, recipe, [keys[row] for row in done], features[unit.rows[done]])
    return features, failures


def _embedded(unit: Unit, rows: Integers, backbone: LoadedBackbone, features: NDArray[np.float16]) -> list[Failure]:
    """Embeds some tiles of a unit into their rows; the failures."""
    failures: list[Failure] = []
    try:
        for some in unit.read(rows):
            failures += some.failures
            if len(some.rows):
                features[unit.rows[some.rows]] = backbone.embed(some.pixels)
    except SlideError as error:
        logger.error("%s: failed, %s: %s", unit.name, error.reason, error.message)
        features[unit.rows] = np.nan
        return [Failure.of(unit.name, error)]
    return failures


def _keep(place: Path, recipe: str, keys: Sequence[bytes], features: NDArray[np.float16]) -> None:
    """Writes a .npy with the keys of its rows and a digest behind it, which `numpy.load` does not mind."""
    path = place / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.npy"
    sweep_temporaries(path)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(features, "<f2"))
    data = buffer.getvalue() + b"".join(keys)
    write_atomically(path, data + _seal(recipe, data))


def _all_kept(place: Path, recipe: str, dim: int) -> dict[bytes, NDArray[np.float16]]:
    """The embeddings that were kept, by key; a file that is not what was written is taken away."""
    kept: dict[bytes, NDArray[np.float16]] = {}
    for path in sorted(place.glob("*.npy")):
        data = path.read_bytes()
        data, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if seal != _seal(recipe, data):
            logger.warning("%s does not match its digest and is made again", path)
            path.unlink(missing_ok=True)
            continue
        features = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1, dim)
        keys = data[len(data) - _KEY_BYTES * len(features) :]
        kept |= {keys[_KEY_BYTES * row : _KEY_BYTES * (row + 1)]: one for row, one in enumerate(features)}
    return kept


def _seal(recipe: str, data: bytes) -> bytes:
    return hashlib.sha256(recipe.encode() + data).hexdigest().encode()
