"""A process that answers calls for this program, one after the other, under a limit on its memory and a deadline a call."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any

from pathfm.confined import Outcome, answer_calls
from pathfm.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path

_MOST_S = 1e6  # what the system can be told
_START_S = 300.0
_DYING_S = 5.0
_LAST_WORDS_BYTES = 1 << 12
_OUT_OF_MEMORY = "failed to allocate"  # the last words of GLib, and so of OpenSlide
# One reader a core. The many threads of a large machine would also have each their share of the address space.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_PROGRAM = (
    f"import sys; sys.path[:] = sys.argv[4:]; from {answer_calls.__module__} import {answer_calls.__name__} as answer;"
    " answer(*map(int, sys.argv[1:4]))"
)


class Process:
    """A process that answers one call after the other, and ends with this program."""

    def __init__(self, pixels_descriptor: int, limit_bytes: int) -> None:
        """Starts it.

        Args:
            pixels_descriptor: of the memory that it shares with this program.
            limit_bytes: how much it may map.
        """
        self._limit_bytes = limit_bytes
        with ExitStack() as opened:
            self._pipe, theirs = map(opened.enter_context, Pipe())
            self._stderr = opened.enter_context(tempfile.TemporaryFile("a+b"))
            passed = [theirs.fileno(), pixels_descriptor]
            words = [_PROGRAM, *map(str, [*passed, limit_bytes, *sys.path])]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", *words],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=passed,
                env=os.environ | _ENVIRONMENT,
            )
            theirs.close()
            self._opened = opened.pop_all()
        atexit.register(self.end)  # macOS does not end it with us

    def take_up(self, message: bytes) -> None:
        """Returns once it has what it needs for the call: its imports are not on the call's time.

        Raises:
            EOFError: it has died.
            OSError: it has died, or takes minutes.
        """
        if os.fstat(self._stderr.fileno()).st_size:
            self._stderr.truncate(0)  # what was said of another slide
        self._pipe.send_bytes(message)
        if not self._pipe.poll(_START_S):
            raise TimeoutError
        self._pipe.recv_bytes()

    def outcome(self, path: Path, deadline_s: float) -> Outcome[Any]:
        """The outcome of the call that it has taken up.

        Raises:
            SlideError: it took too long, died, or asked for too much; it cannot be used further.
        """
        try:
            message = b""
            while not message:  # which is a sign of life
                if not self._pipe.poll(min(deadline_s, _MOST_S)):
                    problem = f"was not read within {deadline_s:g} s; copy it to a faster disk, or pass a larger --limits.deadline_s"
                    raise SlideError(path, "timeout", f"{path} {problem}")
                message = self._pipe.recv_bytes()
            outcome: Outcome[Any] = pickle.loads(message)  # noqa: S301 - of our own process
        except (EOFError, OSError) as error:
            ending = self.ending()
            if _OUT_OF_MEMORY in ending:
                raise self._too_large(path) from error
            problem = f"made its reader crash ({ending}); copy the slide again, or convert it to a pyramidal TIFF"
            raise SlideError(path, "crash", f"{path} {problem}") from error
        if isinstance(outcome.error, MemoryError):
            raise self._too_large(path) from outcome.error
        return outcome

    def ending(self) -> str:
        """How it ended, in words, with its last words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        code = self._process.returncode
        how = f"exit code {code}" if code is None or code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        if code == -signal.SIGKILL:
            how += ", as the system does where memory runs out"
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - _LAST_WORDS_BYTES))
        said = self._stderr.read().decode("utf-8", "replace").split("\n")
        return ": ".join([how, *[line.strip() for line in said if line.strip()][-1:]])

    def end(self) -> None:
        """Kills it; one that waits for a dead disk dies when that answers, and is not waited for."""
        atexit.unregister(self.end)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        self._opened.close()

    def _too_large(self, path: Path) -> SlideError:
        problem = f"needs more than {self._limit_bytes / 2**30:g} GiB to be read; pass a larger --limits.memory_gib, or convert it"
        return SlideError(path, "memory", f"{path} {problem}")
