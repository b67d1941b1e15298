"""The embeddings file of a slide: written once, proven, read through one guarded function. docs/embeddings-file.md specifies it."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from pathfm.contents import (
    Embeddings,
    attributes_of,
    dataset_attributes_of,
    embeddings_folder_name,
    embeddings_of,
    metadata_sha256,
    recipe_sha256,
    require_ours,
    sha256_of,
)
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError, EmbeddingsStaleError, SeveralRecipesError
from pathfm.files import write_blocks_atomically
from pathfm.guarded import blocks_of_rows, damaged, guarded_attribute, guarded_dataset, prove_bytes, sealed_blocks
from pathfm.hollow import Left, hollow_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "Embeddings",
    "embeddings_folder_name",
    "features_sha256",
    "find_embeddings",
    "read_embeddings",
    "recipe_differences",
    "recipe_sha256",
    "require_one_recipe",
    "require_recipe",
    "write_embeddings",
    "write_rows",
]

# What a damaged or hostile HDF5 file makes h5py raise.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Writes a complete file or nothing; equal contents give equal bytes.

    Raises:
        DiskFullError: no space; nothing is left behind.
    """
    facts = replace(embeddings, features=embeddings.features[:0])
    write_rows(path, facts, len(embeddings.features), lambda: [embeddings.features])


def write_rows(
    path: Path, facts: Embeddings, n_tiles: int, blocks: Callable[[], Iterable[NDArray[np.float16]]]
) -> None:
    """Writes a complete file or nothing, its features a block at a time; the bytes are those of `write_embeddings`.

    Memory is that of one block and of the coords. The blocks are gone through twice: their digest stands before them in
    the file. libhdf5 never writes to the disk, because it crashes the process when that is full.

    Args:
        path: the file.
        facts: everything but the features, of which it has none: float16 (0, dim).
        n_tiles: how many rows all blocks have together.
        blocks: gives the features from the start, float16 (k, dim) each, in order; each may lie where the last one lay.

    Raises:
        ValueError: the blocks are no such, or are others the second time; nothing is left behind.
        DiskFullError: no space; nothing is left behind.
    """
    shape = (n_tiles, facts.features.shape[1])
    if len(facts.features) or len(facts.coords) != n_tiles:
        message = f"{len(facts.features)} features and {len(facts.coords)} coords where 0 and {n_tiles} are due"
        raise ValueError(message)
    digest = hashlib.sha256()
    for block in _checked(blocks(), shape):
        digest.update(block)
    before, behind = hollow_image(
        Left("features", shape, "<f2"),
        {name: np.ascontiguousarray(getattr(facts, name), dtype="<i4") for name in ("coords", "failed")},
        attributes_of(facts, digest.hexdigest()),
        dataset_attributes_of(facts),
    )

    def image() -> Iterator[bytes | memoryview]:
        again = hashlib.sha256()
        yield before
        for block in _checked(blocks(), shape):
            again.update(block)
            yield block
        yield behind
        if again.digest() != digest.digest():
            message = "the blocks are others the second time"
            raise ValueError(message)

    write_blocks_atomically(path, sealed_blocks(image()))


def read_embeddings(path: Path, check: Literal["shape", "digests"] = "digests") -> Embeddings:
    """Reads a file that may come from anywhere; features come back as a read-only memory map.

    Args:
        path: the file.
        check: "digests" hashes features, coords and metadata (once per state of the file, then remembered);
            "shape" trusts them, for a file whose digests were checked in this run.

    Raises:
        EmbeddingsDamagedError: incomplete, corrupt, not ours, or built from external, linked, virtual or filtered data.
    """
    with _named_errors(path):
        if check == "digests":
            _proven(path)
        return _read_guarded(path)[0]


def features_sha256(path: Path) -> str:
    """Hex digest of the features of a file, proven once per state of the file: what a training depends on.

    Raises:
        EmbeddingsDamagedError: as `read_embeddings`.
    """
    with _named_errors(path):
        return _proven(path)


def find_embeddings(folder: Path) -> dict[str, Path]:
    """The embeddings files below a cache root, or in one of its recipe folders: slide_id to path, sorted.

    Raises:
        EmbeddingsDamagedError: the folder is missing or holds no embeddings.
        SeveralRecipesError: a root with several recipe folders; the message lists them.
    """
    if not folder.is_dir():
        raise EmbeddingsDamagedError(
            folder, f"{folder} is not a folder; pass --embeddings the folder that extract wrote"
        )
    groups = {p.parent for p in [*folder.glob("*.h5"), *folder.glob("*/*.h5")] if not p.name.startswith(".")}
    if len(groups) > 1:
        names = ", ".join(sorted(group.name for group in groups))
        raise SeveralRecipesError(folder, f"{folder} holds several recipes: {names}; pass --embeddings one of them")
    files = sorted(p for group in groups for p in group.glob("*.h5") if not p.name.startswith("."))
    if not files:
        raise EmbeddingsDamagedError(
            folder, f"{folder} holds no embeddings (*.h5); run pathfm extract with --out {folder}"
        )
    return {path.stem: path for path in files}


def require_one_recipe(embeddings: Iterable[tuple[Path, Embeddings]]) -> dict[str, Any]:
    """The recipe that all files share.

    Raises:
        EmbeddingsStaleError: two files differ; the message names the file and the first keys that differ.
    """
    recipe: dict[str, Any] | None = None
    for path, one in embeddings:
        if recipe is None:
            recipe = one.recipe
        require_recipe(path, one.recipe, recipe)
    return recipe or {}


def require_recipe(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a recipe that is not the wanted one.

    Raises:
        EmbeddingsStaleError: the message says which keys differ, and both values.
    """
    differing = recipe_differences(found, wanted)
    if differing:
        text = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
        message = (
            f"{path} was made with another recipe: {text}; extract again with this recipe, or pass the other folder"
        )
        raise EmbeddingsStaleError(path, message)


def recipe_differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys at which two recipes differ, each as `key is X, wanted Y`.

    A licence decides no embedding: the key `backbone.licence`, which recipes had before format version 3, is not compared.
    """
    lines: list[str] = []
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key, "absent"), wanted.get(key, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += recipe_differences(a, b, f"{prefix}{key}.")
        elif key == "joined" and _are_recipes(a) and _are_recipes(b) and len(a) == len(b):
            for index, pair in enumerate(zip(a, b, strict=True)):
                lines += recipe_differences(*pair, f"{prefix}{key}.{index}.")
        elif a != b and not (key == "licence" and prefix.endswith("backbone.")):
            lines.append(f"{prefix}{key} is {a}, wanted {b}")
    return lines


def _are_recipes(joined: Any) -> bool:
    """One that comes from elsewhere may hold anything."""
    return isinstance(joined, list) and all(isinstance(one, dict) for one in joined)


def _checked(blocks: Iterable[NDArray[np.float16]], shape: tuple[int, int]) -> Iterator[memoryview]:
    """The bytes of each block; refuses those that do not make up a dataset of this shape."""
    count = 0
    for block in blocks:
        if block.dtype != np.float16 or block.shape[1:] != shape[1:]:
            message = f"a block is {block.dtype} {block.shape}, it should be float16 with rows of {shape[1]}"
            raise ValueError(message)
        count += len(block)
        if block.size:
            yield np.ascontiguousarray(block, dtype="<f2").data.cast("B")
    if count != shape[0]:
        message = f"the blocks have {count} rows, there should be {shape[0]}"
        raise ValueError(message)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns what h5py and the system raise for a file into errors that say what to do; a missing file stays one."""
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        message = f"{path} may not be read ({error.strerror}); check its permissions"
        raise EmbeddingsError(path, message) from error
    except _HDF5_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:  # of the process, and no fault of the file
            message = f"{path} cannot be opened ({os.strerror(error.errno)}); raise the limit with ulimit -n, or close other programs"
            raise EmbeddingsError(path, message) from error
        raise damaged(path, f"cannot be read as an embeddings file ({error})") from error


def _read_guarded(path: Path) -> tuple[Embeddings, dict[str, Any]]:
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        attributes = {name: guarded_attribute(file, name) for name in file.attrs}
        require_ours(path, attributes)
        data = {name: guarded_dataset(path, file, name, size) for name in ("features", "coords", "failed")}
    return embeddings_of(path, attributes, data), attributes


def _proven(path: Path) -> str:
    state = path.stat()
    return _prove(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=65536)
def _prove(path: Path, _mtime_ns: int, _size: int, _inode: int) -> str:
    """Proves a file once per state, which is the key it is remembered by; gives the digest of its features.

    Errors are not remembered.
    """
    prove_bytes(path)
    embeddings, stated = _read_guarded(path)
    _prove_features(path, embeddings.features, stated["features_sha256"])
    if sha256_of(embeddings.coords) != stated["coords_sha256"]:
        raise damaged(path, "coords do not match their digest")
    if metadata_sha256(stated, embeddings.failed) != stated["metadata_sha256"]:
        raise damaged(path, "its attributes do not match their digest")
    return str(stated["features_sha256"])


def _prove_features(path: Path, features: NDArray[np.float16], stated: str) -> None:
    digest, wrong, start = hashlib.sha256(), list[int](), 0
    for block in blocks_of_rows(path, features):
        digest.update(block.data)
        # a float16 whose exponent is all ones is infinite or no number: a third of the time of np.isfinite
        finite = ((block.view("<u2") & 0x7C00) != 0x7C00).all(axis=1)
        wrong += (start + np.flatnonzero(~finite)).tolist()
        start += len(block)
    if digest.hexdigest() != stated:
        raise damaged(path, "features do not match their digest")
    if wrong:
        raise damaged(path, f"holds {len(wrong)} tiles whose embedding is not finite (first: row {wrong[0]})")
