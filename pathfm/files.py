"""Writing that either happened or did not, and the digests that prove it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pathfm.errors import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_BLOCK_BYTES = 1 << 22


def write_atomically(path: Path, data: bytes) -> None:
    """Writes bytes as `write_blocks_atomically` does.

    Raises:
        DiskFullError: there is no space; nothing is left behind.
    """
    write_blocks_atomically(path, [data])


def write_blocks_atomically(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Writes blocks of bytes so that a reader sees the whole file or the old one, also after a power loss.

    Written to a hidden sibling, synced, closed, renamed, then the directory is synced. Parent folders are made. A block
    is asked for when the one before it is written; what is raised instead of one leaves nothing behind.

    Raises:
        DiskFullError: there is no space; nothing is left behind.
    """
    # A process id alone is not one's own: two containers, or two machines, may share a folder and have the same.
    temporary = path.with_name(f"{_temporary_stem(path)}{os.getpid()}-{os.urandom(4).hex()}.tmp")
    with disk_full_named(path):
        make_folder(path.parent)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                for block in blocks:
                    write_all(descriptor, block)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sweep_temporaries(path: Path) -> None:
    """Removes what killed writers of a file left beside it; only for one who holds the claim on that file."""
    for left in path.parent.glob(f"{_temporary_stem(path)}*.tmp"):
        left.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Writes every byte, however many the system takes at a time; at an offset, or where the file stands."""
    view = memoryview(data).cast("B")
    while view:
        written = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        offset = None if offset is None else offset + written
        view = view[written:]


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turns the system's "no space left" and "quota exceeded" into a `DiskFullError` that names the file."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(path) from error
        raise


def is_disk_full(error: OSError) -> bool:
    """Whether the system had no space, or no quota, left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically, keys in the order given; NaN is refused, for no other program reads it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; errors are those of `json` and `open`."""
    return json.loads(path.read_text(encoding="utf-8"))


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII. Equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each durable, so that no power loss takes away what will be synced in it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename durable; file systems that cannot sync a directory (some network mounts) are let be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _temporary_stem(path: Path) -> str:
    return f".{sha256_text(path.name)[:16]}."  # short: the name may fill its limit
