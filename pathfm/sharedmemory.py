"""Memory that this program and the processes that read for it both see: pixels are decoded into it, and cross no pipe.

One file without a name, which grows by blocks. A block is lent, and comes back by itself when nothing refers to it any
more: no array over it, and no call that may still write to it. Then it is lent again. So memory is bounded by what is
held at a time, and whoever keeps an array keeps its pixels.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Place:
    """Where a block lies; picklable, so that another process finds it.

    Attributes:
        offset: of its first byte.
        n_bytes: its length.
    """

    offset: int
    n_bytes: int


class Block:
    """A block that was lent, until nothing refers to it.

    Attributes:
        place: where it lies.
    """

    def __init__(self, place: Place, memory: NDArray[np.uint8]) -> None:
        self.place = place
        self.__array_interface__ = memory.__array_interface__

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (n_bytes,); it and each view of it refer to the block. What the last borrower left, until it is written to."""
        return np.asarray(self)


class SharedMemory:
    """A growing file without a name. Other processes map its blocks by `mapped`, once they have inherited its descriptor."""

    def __init__(self) -> None:
        self.descriptor = _nameless_file()
        self._lock = threading.Lock()
        self._size = 0
        self._free: dict[int, list[tuple[Place, NDArray[np.uint8]]]] = {}
        # Appended to wherever Python finds that nothing refers to a block, also in the middle of `lend`: without a lock.
        self._returned: deque[tuple[Place, NDArray[np.uint8]]] = deque()

    def lend(self, n_bytes: int) -> Block:
        """A block of so many bytes, a free one where there is one of that size.

        Raises:
            OSError: no memory for another.
        """
        with self._lock:
            self._take_back()
            free = self._free.get(n_bytes)
            place, memory = free.pop() if free else self._grown(n_bytes)
        block = Block(place, memory)
        weakref.finalize(block, self._returned.append, (place, memory)).atexit = False
        return block

    def _take_back(self) -> None:
        while self._returned:
            place, memory = self._returned.popleft()
            self._free.setdefault(place.n_bytes, []).append((place, memory))

    def _grown(self, n_bytes: int) -> tuple[Place, NDArray[np.uint8]]:
        place = Place(self._size, n_bytes)
        end = self._size + -(-n_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.descriptor, end)
        self._size = end
        return place, mapped(self.descriptor, place)


def mapped(descriptor: int, place: Place) -> NDArray[np.uint8]:
    """The bytes of a block, uint8 (n_bytes,), as they lie."""
    return np.frombuffer(mmap.mmap(descriptor, place.n_bytes, offset=place.offset), np.uint8)


def _nameless_file() -> int:
    """A descriptor that child processes inherit only where it is passed on."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pathfm-pixels")  # memory, and not what a container's /dev/shm allows
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
