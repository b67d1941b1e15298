"""What readers are made to do by the tests: slides whose native code hangs or dies, and calls that do.

Readers import this module, so it must not import torch, which their memory limit has no room for.

`python stubs.py extract ...` is `pathfm extract ...`, but slides called after a deed do it when their middle tile is read
(`hangs-3`), or when they are opened (`hangs-opening`).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pathfm.isolation import Limits, isolated
from pathfm.sources import SlideSource, find_slides

if TYPE_CHECKING:
    from collections.abc import Callable

    from pathfm.slide import Reader, Slide

MIDDLE = (256, 256)
TESTS = Path(__file__).parent

# Root may read everything, unless it has given that up (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) for good.
UNPRIVILEGED = [
    sys.executable,
    "-c",
    "import ctypes, os, sys;"
    " os.geteuid() or [ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) for capability in (1, 2)];"
    " os.execv(sys.argv[1], sys.argv[1:])",
]
"""Put before a command, makes it one that file permissions hold for."""


def hang() -> None:
    """In native code that holds the interpreter's lock, past any signal that Python would have to handle."""
    lock = ctypes.create_string_buffer(256)
    native = ctypes.PyDLL(None)
    native.pthread_mutex_lock(lock)
    native.pthread_mutex_lock(lock)


def out_of_memory() -> None:
    """As GLib ends where malloc refuses, and so OpenSlide."""
    os.write(2, b"(process:1): GLib-ERROR **: gmem.c:106: failed to allocate 1073741824 bytes\n")
    os.abort()


def eat_in_opencv() -> None:
    import cv2
    import numpy as np

    cv2.resize(np.zeros((1, 1, 3), np.uint8), (1 << 17, 1 << 15))


def fail(number: int) -> None:
    """As the system fails."""
    raise OSError(number, os.strerror(number))


class OddError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def raise_odd() -> None:
    raise OddError("very", "odd")


def raise_local() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("does not pickle")


DEEDS: dict[str, Callable[[], Any]] = {
    "hangs": hang,
    "segfaults": functools.partial(ctypes.string_at, 0),
    "aborts": os.abort,
    "exits": functools.partial(os._exit, 3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "oom": out_of_memory,
    "eats": functools.partial(bytearray, 1 << 34),
    "eats_in_opencv": eat_in_opencv,
    "eio": functools.partial(fail, errno.EIO),
    "eacces": functools.partial(fail, errno.EACCES),
    "odd": raise_odd,
    "local": raise_local,
}


def do(deed: str, wait_s: float = 0.0) -> int:
    """The id of the process that did it, if it comes to that."""
    time.sleep(wait_s)
    if deed:
        DEEDS[deed]()
    return os.getpid()


def do_in_a_reader(deed: str = "", wait_s: float = 0.0) -> int:
    return isolated(Path("slide.tiff"), Limits(60.0, 1.0), 2, do, deed, wait_s).result()


def a_million_bytes() -> tuple[int, bytes]:
    return os.getpid(), b"x" * (1 << 20)


def limits() -> tuple[tuple[int, int], tuple[int, int]]:
    """Those on the size of a core and on memory, as the system has them."""
    return resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_AS)


def log(word: str, *, fails: bool = False) -> None:
    """Something that cannot be pickled."""

    class Local:
        def __str__(self) -> str:
            return "<local>"

    logging.getLogger("pathfm").info("%s: %s", word, Local())
    if fails:
        raise ValueError(word)


@dataclass(frozen=True)
class Stub(SlideSource):
    """A slide that does something when its tile at `at_px0` is read, or when it is opened."""

    deed: str = "hangs"
    at_px0: tuple[int, int] | None = MIDDLE

    def open(self, reader: Reader = "auto") -> Slide:
        if self.at_px0 is None:
            do(self.deed)
        slide = super().open(reader)
        if self.at_px0 is not None:
            slide.read_tile = functools.partial(self._read_tile, slide.read_tile)  # type: ignore[method-assign]
        return slide

    def _read_tile(self, read_tile: Callable[..., Any], x_px0: int, y_px0: int, *rest: Any, **more: Any) -> Any:
        if (x_px0, y_px0) == self.at_px0:
            do(self.deed)
        return read_tile(x_px0, y_px0, *rest, **more)


@dataclass(frozen=True)
class Watched(SlideSource):
    """A slide that notes in a file when it is opened ("o") and when a tile is read ("t").

    A tile may take a while, or wait until there is a file.
    """

    notes: Path = Path()
    tile_s: float = 0.0
    gate: Path | None = None

    def open(self, reader: Reader = "auto") -> Slide:
        self._note("o")
        slide = super().open(reader)
        read_tile = slide.read_tile
        slide.read_tile = lambda *a, **k: self._note("t") or read_tile(*a, **k)  # type: ignore[method-assign,func-returns-value]
        return slide

    def _note(self, what: str) -> None:
        with self.notes.open("a") as file:
            file.write(what)
        if what == "t":
            time.sleep(self.tile_s)
            while self.gate is not None and not self.gate.exists():
                time.sleep(0.01)


def find_stubbed(*given: Any) -> list[SlideSource]:
    """In the place of `find_slides`."""
    return [_stubbed(source) for source in find_slides(*given)]


def _stubbed(source: SlideSource) -> SlideSource:
    """A stub of the deed that a slide is called after, else the slide."""
    deed, _, when = source.slide_id.partition("-")
    if deed not in DEEDS:
        return source
    at_px0 = None if when == "opening" else MIDDLE
    return Stub(source.slide_id, source.path, source.mpp_override, deed=deed, at_px0=at_px0)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    import stubs  # the readers import it by this name

    from pathfm.cli import main

    with patch("pathfm.extract.find_slides", stubs.find_stubbed):
        sys.exit(main(sys.argv[1:]))
