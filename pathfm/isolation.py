"""Processes of their own for code that may hang, crash or eat the memory: native decoders on files from anywhere.

A call runs in a spawned process with a limit on its memory and a deadline. What goes wrong there costs that call: the
process is replaced, the caller gets a typed `SlideError`. The processes stay for further calls until the program ends.
"""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import resource
import signal
from concurrent.futures import TimeoutError as DeadlineError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

from pathfm.errors import InputError, SlideError
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pebble import ProcessFuture

P = ParamSpec("P")
T = TypeVar("T")

_LEAST_GIB = 1.0  # what the libraries themselves map


@dataclass(frozen=True)
class Limits:
    """What a process that reads a slide may take."""

    deadline_s: float = 30.0
    """Seconds that reading one tile may take; finding the tissue of a slide may take 20 times as long."""
    memory_gib: float = 6.0
    """Memory of each reading process in GiB; a slide that needs more is refused. Not enforced on macOS."""

    def __post_init__(self) -> None:
        """Refuses what nothing could be read under.

        Raises:
            InputError: the message names the flag.
        """
        if not self.deadline_s > 0 or not self.memory_gib >= _LEAST_GIB:
            message = (
                f"--limits.deadline_s is {self.deadline_s:g} and --limits.memory_gib {self.memory_gib:g};"
                f" give seconds above 0, and {_LEAST_GIB:g} GiB or more"
            )
            raise InputError(message)


class Call(Generic[T]):
    """A call that is under way."""

    def __init__(
        self, future: ProcessFuture[tuple[T, list[logging.LogRecord]]], path: Path, deadline_s: float, memory_gib: float
    ) -> None:
        self._future, self._path, self._deadline_s, self._memory_gib = future, path, deadline_s, memory_gib

    def result(self) -> T:
        """What it returned; what it logged is logged here.

        Raises:
            SlideError: it took too long ("timeout"), its process died ("crash"), or it asked for too much ("memory").
            Exception: whatever the call itself raised.
        """
        try:
            value, records = self._future.result()
        except DeadlineError as error:
            problem = f"was not read within {self._deadline_s:g} s; copy it to a faster disk, or pass a larger --limits.deadline_s"
            raise SlideError(self._path, "timeout", f"{self._path} {problem}") from error
        except ProcessExpired as error:
            problem = f"made its reader crash ({_ending(error.exitcode)}); copy the slide again, or convert it to a pyramidal TIFF"
            raise SlideError(self._path, "crash", f"{self._path} {problem}") from error
        except MemoryError as error:
            problem = (
                f"needs more than {self._memory_gib:g} GiB to be read; pass a larger --limits.memory_gib, or convert it"
            )
            raise SlideError(self._path, "memory", f"{self._path} {problem}") from error
        except BrokenProcessPool as error:
            message = (
                "the processes that read slides cannot be started; in a script of your own, put what runs pathfm under"
                " if __name__ == '__main__':"
            )
            raise InputError(message) from error
        for record in records:
            logger.handle(record)
        return value

    def cancel(self) -> None:
        """Ends it; its process is replaced if it has begun."""
        self._future.cancel()  # type: ignore[no-untyped-call]


def isolated(
    path: Path, limits: Limits, workers: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> Call[T]:
    """Begins a call in another process.

    Args:
        path: the file that it reads, for errors.
        limits: of its process; the deadline is that of this call, counted from when a process takes it up.
        workers: how many processes there are.
        function: a function of a module; it, its arguments and what it returns are pickled.
        args: for it.
        kwargs: for it.
    """
    pool = _pool(workers, limits.memory_gib)
    task = (logger.getEffectiveLevel(), function, args, kwargs)
    future = pool.schedule(_recorded, args=task, timeout=limits.deadline_s)
    return Call(future, path, limits.deadline_s, limits.memory_gib)


@functools.cache
def _pool(workers: int, memory_gib: float) -> ProcessPool:
    """The processes of this program; of another number or another limit only where somebody asks."""
    pool = ProcessPool(
        max_workers=workers,
        initializer=_confine,
        initargs=(int(memory_gib * 2**30),),
        context=multiprocessing.get_context("spawn"),  # a fork would copy torch's threads and mappings
    )
    atexit.register(_end, pool)
    return pool


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _confine(memory_bytes: int) -> None:
    """Runs first in each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds the pixels of a patient
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))


def _recorded(
    level: int, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[T, list[logging.LogRecord]]:
    """Calls, and takes along what is logged meanwhile."""
    records: list[logging.LogRecord] = []
    handler = _Collect(records)
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        return function(*args, **kwargs), records
    finally:
        logger.removeHandler(handler)


class _Collect(logging.Handler):
    """Keeps records; their arguments are put in, for these need not be picklable."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)


def _ending(exitcode: int) -> str:
    """How a process ended, in words."""
    try:
        return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    except ValueError:
        return f"exit code {exitcode}"
