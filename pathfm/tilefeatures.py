"""Embeddings of units of tiles by one backbone, kept on disk: what is there and proven is not computed again."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.errors import SlideError
from pathfm.failures import Failure
from pathfm.files import canonical_json, sha256_text, sweep_temporaries, write_atomically
from pathfm.progress import logger, progress
from pathfm.recipe import READER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.backbones import LoadedBackbone
    from pathfm.tileimages import Unit

_SEAL_BYTES = 64


def embed_units(
    units: Sequence[Unit], identity: dict[str, Any], load: Callable[[], LoadedBackbone], folder: Path
) -> tuple[NDArray[np.float16], list[Failure]]:
    """The embeddings of all tiles of the units; the backbone is loaded only where some are not on disk.

    A unit whose every tile was embedded is kept in `<folder>/<backbone>-<identity8>/<unit16>.npy`, named by digests of
    the backbone's identity and of what decides its pixels. One with tiles that failed is tried again by the next run.

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
    place = folder / f"{re.sub(r'[^0-9A-Za-z.-]', '_', identity['name'])}-{sha256_text(canonical_json(identity))[:8]}"
    failures: list[Failure] = []
    missing = []
    for unit in units:
        key = sha256_text(canonical_json({"unit": unit.facts, "backbone": identity, "reader": READER}))
        kept = _kept(place / f"{key[:16]}.npy", key, (len(unit.rows), features.shape[1]))
        if kept is None:
            missing.append((unit, key))
        else:
            features[unit.rows] = kept
    if len(missing) < len(units):
        logger.info("%s: %d of %d parts are there", identity["name"], len(units) - len(missing), len(units))
    if not missing:
        return features, []
    backbone = load()
    for unit, key in progress(missing, f"embed by {identity['name']}", "part"):
        failed = _embedded(unit, backbone, features)
        failures += failed
        if not failed:
            _keep(place / f"{key[:16]}.npy", key, features[unit.rows])
    return features, failures


def _embedded(unit: Unit, backbone: LoadedBackbone, features: NDArray[np.float16]) -> list[Failure]:
    """Embeds a unit into its rows; the failures."""
    failures: list[Failure] = []
    try:
        for some in unit.read():
            failures += some.failures
            if len(some.rows):
                features[unit.rows[some.rows]] = backbone.embed(some.pixels)
    except SlideError as error:
        logger.error("%s: failed, %s: %s", unit.name, error.reason, error.message)
        features[unit.rows] = np.nan
        return [Failure.of(unit.name, error)]
    return failures


def _keep(path: Path, key: str, features: NDArray[np.float16]) -> None:
    """Writes a .npy with a digest behind it, which `numpy.load` does not mind."""
    sweep_temporaries(path)
    data = _head(features.shape) + np.ascontiguousarray(features, "<f2").tobytes()
    write_atomically(path, data + _seal(key, data))


def _kept(path: Path, key: str, shape: tuple[int, int]) -> NDArray[np.float16] | None:
    """What was kept under a key; None where there is nothing, or anything but what was written."""
    head, size = _head(shape), shape[0] * shape[1] * 2
    if not path.is_file() or path.stat().st_size != len(head) + size + _SEAL_BYTES:
        return None
    data = path.read_bytes()
    if not data.startswith(head) or data[-_SEAL_BYTES:] != _seal(key, data[:-_SEAL_BYTES]):
        logger.warning("%s does not match its digest and is made again", path)
        return None
    return np.frombuffer(data, "<f2", shape[0] * shape[1], len(head)).reshape(shape)


def _head(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _seal(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).hexdigest().encode()
