"""What a confined process does: it answers calls, one at a time, until the program that started it is gone."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import resource
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pathfm.progress import logger

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a call: a value or an error, and what was logged."""

    value: T
    error: Exception | None
    records: list[logging.LogRecord]


def answer_calls(descriptor: int, memory_bytes: int) -> None:
    """What such a process does, until the program that started it is gone."""
    _confine(memory_bytes)
    parent = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            parent.send_bytes(_answer(parent, parent.recv_bytes()))


def _confine(memory_bytes: int) -> None:
    """Runs first in each process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds the pixels of a patient
    if sys.platform == "linux":
        # One that hangs does not see that its parent was killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
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
    return _pickled(Outcome(value, error, records))


def _pickled(outcome: Outcome[Any]) -> bytes:
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
