"""What stands between an embeddings file from anywhere and libhdf5: bytes proven first, then only data that lies in the file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from pathfm.errors import EmbeddingsDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import RawIOBase
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES = {"features": "<f2", "coords": "<i4", "failed": "<i4"}

_MAX_ATTRIBUTE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
# Behind the HDF5 image stand this and the hex sha256 of the image: libhdf5 may crash or hang on a damaged file, so the
# bytes are proven before it sees them. It does not read what lies behind its end of file.
_TRAILER = b"\npathfm-sha256:"
_TRAILER_BYTES = len(_TRAILER) + 64


def sealed(image: bytes) -> bytes:
    """An HDF5 image and its digest behind it."""
    return b"".join(sealed_blocks([image]))


def sealed_blocks(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The blocks of an HDF5 image, and its digest behind them."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        yield block
    yield _TRAILER + digest.hexdigest().encode()


def prove_bytes(path: Path) -> None:
    """Refuses a file whose bytes are not those that were written, before libhdf5 opens it.

    Raises:
        EmbeddingsDamagedError: cut, changed, or not sealed by us.
    """
    image_bytes = path.stat().st_size - _TRAILER_BYTES
    # what is too short is not opened: a pipe, whose size is 0, would never answer
    trailer = b"".join(_read(path, image_bytes, _TRAILER_BYTES, _TRAILER_BYTES)) if image_bytes >= 0 else b""
    if not trailer.startswith(_TRAILER):
        raise damaged(path, "is not a whole pathfm embeddings file (its last bytes are not the digest)")
    digest = hashlib.sha256()
    for block in _read(path, 0, image_bytes, _BLOCK_BYTES):
        digest.update(block)
    if digest.hexdigest().encode() != trailer.removeprefix(_TRAILER):
        raise damaged(path, "does not match the digest in its last bytes")


def blocks_of_rows(path: Path, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows of a dataset that `guarded_dataset` mapped, some at a time, by ordinary reads; valid until the next.

    What is read through a map stays in the memory of the process for as long as the map is there, the whole file in the
    end.
    """
    if not isinstance(rows, np.memmap):  # no rows, so there is no map
        return
    row_bytes = rows.nbytes // len(rows)
    most = max(1, _BLOCK_BYTES // row_bytes) * row_bytes
    for block in _read(path, rows.offset, rows.nbytes, most):
        yield np.frombuffer(block, rows.dtype).reshape(-1, *rows.shape[1:])


def guarded_attribute(file: h5py.File, name: str) -> Any:
    """A root attribute.

    Raises:
        ValueError: it is absurdly large.
    """
    identifier = file.attrs.get_id(name)
    if identifier.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
        message = f"attribute {name!r} is larger than {_MAX_ATTRIBUTE_BYTES} bytes"
        raise ValueError(message)
    return file.attrs[name]


def guarded_dataset(path: Path, file: h5py.File, name: str, file_bytes: int) -> NDArray[Any]:
    """Maps a dataset where it lies, after refusing whatever could read or allocate something else.

    Raises:
        EmbeddingsDamagedError: linked, external, virtual, chunked, filtered, of another type, or larger than the file.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise damaged(path, f"{name!r} is missing or is a link out of the file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external is not None or dataset.is_virtual:
        raise damaged(path, f"{name!r} is external or virtual")
    if dataset.chunks is not None or dataset.id.get_create_plist().get_nfilters():
        raise damaged(path, f"{name!r} is chunked or filtered, an embeddings file is contiguous")
    if dataset.dtype != np.dtype(DTYPES[name]) or dataset.ndim != 2:
        raise damaged(path, f"{name!r} has type {dataset.dtype} and {dataset.ndim} dimensions")
    if dataset.nbytes == 0:  # a dataset without rows has no offset
        return np.empty(dataset.shape, dtype=dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > file_bytes:
        raise damaged(path, f"{name!r} claims {dataset.nbytes} bytes that the file does not hold")
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def _read(path: Path, start: int, count: int, most: int) -> Iterator[memoryview]:
    """So many bytes of a file from `start` on, in blocks of `most`, all in the same memory; fewer where the file ends."""
    held = memoryview(bytearray(min(count, most)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while count and (got := _filled(file, held[: min(count, most)])):
            yield held[:got]
            count -= got


def _filled(file: RawIOBase, block: memoryview) -> int:
    """How many bytes were read: as many as the block has, unless the file ends."""
    got = 0
    while got < len(block) and (more := file.readinto(block[got:])):
        got += more
    return got


def damaged(path: Path, what: str) -> EmbeddingsDamagedError:
    """The error of a file that is not right, with its remedy."""
    return EmbeddingsDamagedError(path, f"{path} {what}; delete it and run pathfm extract again")
