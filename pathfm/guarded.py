"""What stands between an embeddings file from anywhere and libhdf5: bytes proven first, then only data that lies in the file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from pathfm.errors import EmbeddingsDamagedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES = {"features": "<f2", "coords": "<i4", "failed": "<i4"}

_MAX_ATTRIBUTE_BYTES = 1 << 20
# Behind the HDF5 image stand this and the hex sha256 of the image: libhdf5 may crash or hang on a damaged file, so the
# bytes are proven before it sees them. It does not read what lies behind its end of file.
_TRAILER = b"\npathfm-sha256:"
_TRAILER_BYTES = len(_TRAILER) + 64


def sealed(image: bytes) -> bytes:
    """An HDF5 image and its digest behind it."""
    return image + _TRAILER + hashlib.sha256(image).hexdigest().encode()


def prove_bytes(path: Path) -> None:
    """Refuses a file whose bytes are not those that were written, before libhdf5 opens it.

    Raises:
        EmbeddingsDamagedError: cut, changed, or not sealed by us.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
    image, trailer = data[:-_TRAILER_BYTES], bytes(data[-_TRAILER_BYTES:])
    if not trailer.startswith(_TRAILER):
        raise damaged(path, "is not a whole pathfm embeddings file (its last bytes are not the digest)")
    if hashlib.sha256(image.data).hexdigest().encode() != trailer.removeprefix(_TRAILER):
        raise damaged(path, "does not match the digest in its last bytes")


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


def damaged(path: Path, what: str) -> EmbeddingsDamagedError:
    """The error of a file that is not right, with its remedy."""
    return EmbeddingsDamagedError(path, f"{path} {what}; delete it and run pathfm extract again")
