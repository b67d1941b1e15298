"""Processes of their own for code that may hang, crash or eat the memory: native decoders on files from anywhere.

A call runs in another process with a limit on its memory and a deadline. What goes wrong there costs that call: the
process is replaced, the caller gets a typed `SlideError`. The processes stay for further calls until the program ends,
and end with it. Each has a pipe and a thread here to itself, so a death leaves nothing locked that others wait for.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pathfm.errors import InputError
from pathfm.process import Process
from pathfm.progress import logger
from pathfm.sharedmemory import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pathfm.confined import Outcome
    from pathfm.sharedmemory import Block

P = ParamSpec("P")
T = TypeVar("T")

_MOST_WORKERS = 16
_WHOLE_SLIDE_DEADLINES = 20
_LEAST_GIB = 1.0  # what the libraries themselves map
_MOST_GIB = 1e6  # what the system can be told
_STARTS = 3


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

    def for_whole_slide(self) -> Limits:
        """Those of a call that may have to read all of the largest level."""
        return replace(self, deadline_s=self.deadline_s * _WHOLE_SLIDE_DEADLINES)


class Call(Generic[T]):
    """A call that waits for a process, is under way, or is done."""

    def __init__(self, path: Path, limits: Limits, message: bytes, process: int | None, block: Block | None) -> None:
        self.path, self.limits, self.message, self.process = path, limits, message, process
        self._block = block  # is lent as long as this refers to it
        self.outcome: Future[Outcome[T]] = Future()

    def result(self) -> T:
        """What it returned; what it logged is logged here.

        Raises:
            SlideError: it took too long ("timeout"), its process died ("crash"), or it asked for too much ("memory").
            InputError: no process can be started.
            Exception: whatever the call itself raised.
        """
        outcome = self.outcome.result()
        for record in outcome.records:
            logger.handle(record)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def cancel(self) -> None:
        """Drops it if it has not begun; what has begun ends by itself or at its deadline, and nobody waits for it."""
        self.outcome.cancel()


def isolated(
    path: Path, limits: Limits, workers: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> Call[T]:
    """Begins a call in another process.

    Args:
        path: the file that it reads, for errors.
        limits: of its process; the deadline is that of this call, counted from when a process has taken it up, or from
            the call's last `sign_of_life`.
        workers: how many processes there are at most.
        function: a function of a module that can be imported; it, its arguments and what it returns are pickled.
        args: for it.
        kwargs: for it.
    """
    return _begun(None, None, path, limits, workers, (function, args, kwargs))


def isolated_on(
    process: int,
    block: Block,
    path: Path,
    limits: Limits,
    workers: int,
    function: Callable[P, T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Call[T]:
    """Begins a call like `isolated` that writes to shared memory.

    Args:
        process: the number (modulo `workers`) of the process that does it, unless another has nothing to do: for calls
            that profit from what it still holds of a call before.
        block: what it writes to, by `shared_bytes(block.place)`; is not lent again before the call has ended.
        path: as of `isolated`, and so are the others.
        limits: those that the block was lent under.
        workers: as many as it was lent for.
        function: for the process.
        args: for it.
        kwargs: for it.
    """
    return _begun(process % workers, block, path, limits, workers, (function, args, kwargs))


def _begun(
    process: int | None, block: Block | None, path: Path, limits: Limits, workers: int, what: tuple[Any, Any, Any]
) -> Call[Any]:
    message = pickle.dumps((Path.cwd(), logger.getEffectiveLevel(), *what))
    call: Call[Any] = Call(path, limits, message, process, block)
    _team(workers, limits.memory_gib).waiting.put(call)
    return call


def lent_block(limits: Limits, workers: int, n_bytes: int) -> Block:
    """Memory that calls under the same limits and number of workers can write to; see `isolated_on`.

    Raises:
        OSError: there is none.
    """
    return _team(workers, limits.memory_gib).memory.lend(n_bytes)


@contextmanager
def cancelled_after(calls: Iterable[Call[Any]]) -> Iterator[None]:
    """Drops what has not begun when the block ends early, as by Ctrl-C in a notebook, which lives on."""
    try:
        yield
    finally:
        for call in calls:
            call.cancel()


def usual_workers(devices: int = 1) -> int:
    """How many processes are started where nobody says: one a core that this process may use, up to 16 a device."""
    return min(usable_cores(), _MOST_WORKERS * devices)


def usable_cores() -> int:
    """The cores this process may use, which on a shared cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Team:
    """Processes that answer calls.

    Attributes:
        waiting: where they take calls from.
        memory: what they share with this program.
        limit_bytes: how much each may map.
    """

    waiting: _Waiting
    memory: SharedMemory
    limit_bytes: int


_teams: dict[tuple[int, int, float], _Team] = {}
_founding = threading.Lock()


def _team(workers: int, memory_gib: float) -> _Team:
    """The processes of this program; others only for another number, another limit, or after a fork."""
    key = (os.getpid(), workers, memory_gib)
    with _founding:
        if key not in _teams:
            _teams[key] = team = _Team(_Waiting(), SharedMemory(), int(min(memory_gib, _MOST_GIB) * 2**30))
            for number in range(workers):
                threading.Thread(target=_look_after_one, args=(team, number), daemon=True).start()
        return _teams[key]


def _forget_lock() -> None:
    """Another thread may have held it when this process was forked."""
    global _founding
    _founding = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


class _Waiting:
    """Calls that no process has taken up yet, oldest first."""

    def __init__(self) -> None:
        self._calls: deque[Call[Any]] = deque()
        self._changed = threading.Condition()

    def put(self, call: Call[Any]) -> None:
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def take(self, number: int) -> Call[Any]:
        """The oldest call for this process or for any; else the oldest, for it is better done here than late."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls)
            call = next((call for call in self._calls if call.process in (number, None)), self._calls[0])
            self._calls.remove(call)
            return call


def _look_after_one(team: _Team, number: int) -> None:
    """Has one process after the other answer calls; they are started when they are needed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C reaches the group, we answer it
    process: Process | None = None
    while True:
        call = team.waiting.take(number)
        if not call.outcome.set_running_or_notify_cancel():
            continue
        try:
            process = _taking_up(call.message, process, team)
            outcome = process.outcome(call.path, call.limits.deadline_s)
        except Exception as error:  # noqa: BLE001 - whoever waits for the call gets it
            if process is not None:
                process.end()  # before the call counts as over: it may still write to shared memory
            process = None
            call.outcome.set_exception(error)
        else:
            call.outcome.set_result(outcome)
        del call  # and what its outcome holds, while this waits for the next


def _taking_up(message: bytes, process: Process | None, team: _Team) -> Process:
    """The process that has taken a call up: another, where this one has died since the last call."""
    said = ""
    for _ in range(_STARTS):
        try:
            process = process or Process(team.memory.descriptor, team.limit_bytes)
            process.take_up(message)
        except (EOFError, OSError) as error:
            said = process.ending() if process else str(error)
            if process:
                process.end()
            process = None
        else:
            return process
    problem = f"the processes that read slides cannot be started ({said}); free some memory, or install pathfm again"
    raise InputError(problem)
