"""Memory that this program and the processes that read for it both see: pixels are decoded into it, and cross no pipe.

One file without a name, which grows by blocks. A block is lent as an array and comes back by itself, when the last array
over it is gone and the last call that writes to it has ended; then it is lent again. So memory is bounded by what is held
at a time, and whoever keeps an array keeps its pixels.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import Future

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


@dataclass(eq=False)
class Block:
    """A block that was lent.

    Attributes:
        place: where it lies.
        pixels: uint8 (n_bytes,); whatever the last borrower left in it, until it is written to.
    """

    place: Place
    pixels: NDArray[np.uint8]
    _loan: _Loan = field(repr=False)

    def written_by(self, outcome: Future[Any]) -> None:
        """Keeps the block from being lent again before a call has ended, whether somebody waits for that or not."""
        loan = self._loan  # a finished call keeps its callbacks: they must not keep the pixels
        loan.hold()
        outcome.add_done_callback(lambda _: loan.let_go())


class SharedMemory:
    """A growing file without a name. Other processes map its blocks by `mapped`, once they have inherited its descriptor."""

    def __init__(self) -> None:
        self.descriptor = _nameless_file()
        self._lock = threading.Lock()
        self._size = 0
        self._free: dict[int, list[tuple[Place, NDArray[np.uint8]]]] = {}

    def lend(self, n_bytes: int) -> Block:
        """A block of so many bytes, a free one where there is one of that size.

        Raises:
            OSError: no memory for another.
        """
        with self._lock:
            free = self._free.get(n_bytes)
            place, memory = free.pop() if free else self._grown(n_bytes)
        loan = _Loan(self, place, memory)
        view = _View(memory)
        weakref.finalize(view, loan.let_go).atexit = False
        return Block(place, np.asarray(view), loan)

    def _grown(self, n_bytes: int) -> tuple[Place, NDArray[np.uint8]]:
        place = Place(self._size, n_bytes)
        end = self._size + -(-n_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.descriptor, end)
        self._size = end
        return place, mapped(self.descriptor, place)

    def take_back(self, place: Place, memory: NDArray[np.uint8]) -> None:
        """Called by the loan, when nobody needs it any more."""
        with self._lock:
            self._free.setdefault(place.n_bytes, []).append((place, memory))


def mapped(descriptor: int, place: Place) -> NDArray[np.uint8]:
    """The bytes of a block, uint8 (n_bytes,), as they lie."""
    return np.frombuffer(mmap.mmap(descriptor, place.n_bytes, offset=place.offset), np.uint8)


class _Loan:
    """Who still holds a block: the array, and calls that write to it."""

    def __init__(self, owner: SharedMemory, place: Place, memory: NDArray[np.uint8]) -> None:
        self._owner, self._place, self._memory = owner, place, memory
        self._lock, self._holders = threading.Lock(), 1

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            is_free = self._holders == 0
        if is_free:
            self._owner.take_back(self._place, self._memory)


class _View:
    """What the array over a block, and every view of that, has as its base: numpy keeps it alive while one of them is."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.__array_interface__ = memory.__array_interface__


def _nameless_file() -> int:
    """A descriptor that child processes inherit only where it is passed on."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pathfm-pixels")  # memory, and not what a container's /dev/shm allows
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
