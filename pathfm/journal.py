"""The journal of one slide: blocks appended as they are made, so that a killed run goes on where it was.

The file is a head and blocks, each with a digest that covers everything before it:

    head   PATHFMJ1 | length u32 | canonical JSON of what decides the blocks | digest
    block  BLK0     | length u32 | bytes                                     | digest

A block counts when its digest is right; with the first that is not, the file ends. So a torn write, a block lost to a
power cut, or one left over from another journal in the same place of the disk is never taken for data. Syncing bounds
what a power cut can cost, and nothing else: no promise depends on it.

Whoever holds the lock on the journal (flock, which ends with its process) is the one who may write the file beside it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pathfm.errors import EmbeddingsBusyError, EmbeddingsDamagedError
from pathfm.files import canonical_json, disk_full_named, make_folder, sync_folder, write_all
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEAD, _BLOCK = b"PATHFMJ1", b"BLK0"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 16
_SYNC_BYTES, _SYNC_S = 1 << 20, 5.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[Journal]:
    """Holds the one right to write what a journal is for; leaves no empty journal behind.

    Args:
        path: the journal; made where it is not there.
        wait: for another process that holds it, instead of raising.

    Raises:
        EmbeddingsBusyError: another process holds it.
        DiskFullError: no space to make it.
    """
    with disk_full_named(path):
        make_folder(path.parent)
        descriptor = _locked(path, wait=wait)
    journal = Journal(path, descriptor)
    try:
        yield journal
    finally:
        if journal.is_empty:
            path.unlink(missing_ok=True)
        os.close(descriptor)


class Journal:
    """A claimed journal."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self._end, self._digest, self._head_end = 0, b"", 0
        self._unsynced_bytes, self._synced_s = 0, time.monotonic()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written to it."""
        return os.fstat(self._descriptor).st_size == 0

    def begin(self, head: dict[str, Any]) -> int:
        """Goes on from what is there if it was begun with the same head, else starts again.

        Args:
            head: everything that decides the blocks; JSON types only.

        Returns:
            How many blocks are there and right.

        Raises:
            DiskFullError: no space.
        """
        record = _record(_HEAD, canonical_json(head).encode(), b"")
        found = os.pread(self._descriptor, len(record), 0)
        if found != record:
            self._start_again(record)
        self._end = self._head_end = len(record)
        self._digest = record[-_DIGEST_BYTES:]
        count = 0
        for _, end, digest in self._records():
            self._end, self._digest, count = end, digest, count + 1
        os.ftruncate(self._descriptor, self._end)
        return count

    def append(self, block: bytes) -> None:
        """Adds a block; it survives a kill at once, and a power cut from the next sync on (1 MiB or 5 s later).

        Raises:
            DiskFullError: no space; the blocks before it stay.
        """
        record = _record(_BLOCK, block, self._digest)
        self._write(record)
        self._digest = record[-_DIGEST_BYTES:]
        self._unsynced_bytes += len(record)
        if self._unsynced_bytes >= _SYNC_BYTES or time.monotonic() - self._synced_s >= _SYNC_S:
            self._sync()

    def blocks(self) -> Iterator[bytes]:
        """The blocks in order, read back and proven again.

        Raises:
            EmbeddingsDamagedError: what was written is not what is there.
        """
        end = self._head_end
        for block, end, _ in self._records():  # noqa: B007 - where the last one ended
            yield block
        if end != self._end:
            message = f"{self.path} changed while it was written; check the disk, and run pathfm extract again"
            raise EmbeddingsDamagedError(self.path, message)

    def remove(self) -> None:
        """Takes the journal away, once the file that it was for is durable."""
        with disk_full_named(self.path):
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)

    def _start_again(self, record: bytes) -> None:
        self._end = 0
        with disk_full_named(self.path):
            os.ftruncate(self._descriptor, 0)
            self._write(record)
            self._sync()
            sync_folder(self.path.parent)

    def _write(self, record: bytes) -> None:
        with disk_full_named(self.path):
            write_all(self._descriptor, record, self._end)
        self._end += len(record)

    def _sync(self) -> None:
        with disk_full_named(self.path):
            os.fsync(self._descriptor)
        self._unsynced_bytes, self._synced_s = 0, time.monotonic()

    def _records(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(block, where it ends, its digest) from the head on, up to the first that is not right."""
        at = self._head_end
        digest = os.pread(self._descriptor, _DIGEST_BYTES, at - _DIGEST_BYTES)
        size = os.fstat(self._descriptor).st_size
        overhead = len(_BLOCK) + _LENGTH.size + _DIGEST_BYTES
        while at + overhead <= size:
            start = os.pread(self._descriptor, len(_BLOCK) + _LENGTH.size, at)
            (length,) = _LENGTH.unpack(start[len(_BLOCK) :])
            if not start.startswith(_BLOCK) or at + overhead + length > size:
                return
            block = os.pread(self._descriptor, length, at + len(start))
            record = _record(_BLOCK, block, digest)
            if os.pread(self._descriptor, _DIGEST_BYTES, at + len(start) + length) != record[-_DIGEST_BYTES:]:
                return
            at, digest = at + len(record), record[-_DIGEST_BYTES:]
            yield block, at, digest


def _record(magic: bytes, content: bytes, before: bytes) -> bytes:
    """A head or a block with its digest, which covers the digest before it."""
    body = magic + _LENGTH.pack(len(content)) + content
    return body + hashlib.blake2b(before + body, digest_size=_DIGEST_BYTES).digest()


def _locked(path: Path, *, wait: bool) -> int:
    """A descriptor of the journal that lies at the path now, locked; its last holder may just have removed it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # no link to a file that is not ours
        try:
            _lock(path, descriptor, wait=wait)
            if _lies_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(path: Path, descriptor: int, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"{path} is being written by another process; wait for it, or stop it"
        raise EmbeddingsBusyError(path, message) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks; let one process alone write there", path.parent)


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
