"""What a confined process does: it answers calls, one at a time, until the program that started it is gone."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pathfm.progress import logger
from pathfm.sharedmemory import Place, mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_SIGN_EVERY_S = 0.1
_IDLE_S = 10.0
_MOST_MAPPED_BYTES = 1 << 28  # of shared memory; at least the one block that is written to


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a call: a value or an error, and what was logged."""

    value: T
    error: Exception | None
    records: list[logging.LogRecord]


def answer_calls(descriptor: int, pixels_descriptor: int, memory_bytes: int) -> None:
    """What such a process does, until the program that started it is gone.

    Args:
        descriptor: of its pipe.
        pixels_descriptor: of the memory that it shares with that program.
        memory_bytes: how much it may map.
    """
    _confine(memory_bytes)
    _self.parent = parent = Connection(descriptor)
    _self.pixels_descriptor = pixels_descriptor
    with suppress(EOFError, OSError):
        while True:
            if not parent.poll(_IDLE_S):
                _forget()
            parent.send_bytes(_answer(parent, parent.recv_bytes()))


def sign_of_life() -> None:
    """Says that a call of many parts goes on: its deadline counts from here again. Does nothing outside of such a process."""
    now_s = time.monotonic()
    if _self.parent is not None and now_s - _self.signed_s >= _SIGN_EVERY_S:
        _self.parent.send_bytes(b"")
        _self.signed_s = now_s


def forgotten_when_idle(forget: Callable[[], None]) -> None:
    """Has a function called when there has been nothing to do for a while: it closes files and drops caches."""
    if forget not in _self.to_forget:
        _self.to_forget.append(forget)


def _forget() -> None:
    for forget in _self.to_forget:
        forget()
    _self.blocks.clear()


def shared_bytes(place: Place) -> NDArray[np.uint8]:
    """A block of the memory that is shared with the program, uint8 (n_bytes,); to be written to during a call alone.

    Raises:
        MemoryError: it does not fit into what this process may map.
    """
    blocks = _self.blocks
    if place not in blocks:
        while blocks and sum(one.n_bytes for one in blocks) + place.n_bytes > _MOST_MAPPED_BYTES:
            blocks.pop(next(iter(blocks)))
        try:
            blocks[place] = mapped(_self.pixels_descriptor, place)
        except OSError as error:
            raise MemoryError from error
    return blocks[place]


@dataclass
class _Self:
    """What this process is, where it is one that answers calls."""

    parent: Connection | None = None
    pixels_descriptor: int = -1
    signed_s: float = 0.0
    blocks: dict[Place, NDArray[np.uint8]] = field(default_factory=dict)
    to_forget: list[Callable[[], None]] = field(default_factory=list)


_self = _Self()


def die_with_the_program() -> None:
    """Has the system kill this process when the thread that started it is gone; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _confine(memory_bytes: int) -> None:
    """Runs first in each process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds the pixels of a patient
    die_with_the_program()  # one that hangs does not see that it was killed
    if sys.platform != "darwin":  # which maps far more than it uses, and refuses the limit
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))


def _answer(parent: Connection, message: bytes) -> bytes:
    """The pickled outcome of a pickled call; the parent hears when the imports for it are done."""
    records: list[logging.LogRecord] = []
    handler = _Collect(records)
    logger.addHandler(handler)
    value, error = None, None
    try:
        try:
            here, level, function, args, kwargs = pickle.loads(message)  # noqa: S301 - from the program that started us
        finally:
            parent.send_bytes(b"")
        os.chdir(here)  # paths may be relative, and the program may have gone elsewhere since
        logger.setLevel(level)
        value = function(*args, **kwargs)
    except Exception as problem:  # noqa: BLE001 - the parent raises it
        problem.add_note(f"in a reading process:\n{traceback.format_exc()}")
        error = problem.with_traceback(None)  # which would keep the pixels
    finally:
        logger.removeHandler(handler)
    return pickled(Outcome(value, error, records))


def pickled(outcome: Outcome[Any]) -> bytes:
    """An outcome as bytes that can be read back: some errors cannot be pickled, others not unpickled."""
    try:
        message = pickle.dumps(outcome)
        if outcome.error is not None:
            pickle.loads(message)  # noqa: S301 - our own
    except MemoryError:
        return pickle.dumps(Outcome(None, MemoryError(), outcome.records))
    except Exception as problem:  # noqa: BLE001 - the parent raises it
        said = outcome.error or problem
        stand_in = RuntimeError(f"{type(said).__name__}: {said}")
        return pickle.dumps(Outcome(None, stand_in, outcome.records))
    return message


class _Collect(logging.Handler):
    """Keeps records; their arguments are put in, for these need not be picklable."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)
