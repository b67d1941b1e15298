"""Progress with rate and time left, the same on a terminal, in a log file and on a cluster's captured stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sized
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")

logger = logging.getLogger("pathfm")

_LINE_EVERY_S = 30.0
_bars = {"shown": True}


def progress(iterable: Iterable[T], what: str, unit: str = "slide", total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is: a bar on a terminal, a log line now and then elsewhere and in the log file.

    Args:
        iterable: the work.
        what: the step in the user's words, such as "extract".
        unit: what is counted.
        total: number of items where `len` cannot tell.
    """
    end = total if total is not None else (len(iterable) if isinstance(iterable, Sized) else None)
    hidden = not sys.stderr.isatty() or not _bars["shown"]
    with tqdm(iterable, desc=what, unit=unit, total=end, disable=hidden, file=sys.stderr) as bar:
        started_s = said_s = time.monotonic()
        for done, item in enumerate(bar, start=1):
            yield item
            now_s = time.monotonic()
            if now_s - said_s >= _LINE_EVERY_S or (done == end and done > 1):
                logger.info(_line(what, unit, done, end, now_s - started_s))
                said_s = now_s


def log_lines_only() -> None:
    """No bars from this process from now on: one of several that would draw over each other."""
    _bars["shown"] = False


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Appends everything that pathfm logs to a file as well, with the time of day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    if level == logging.NOTSET:  # a notebook, where nobody has asked for less
        logger.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log file that keeps silent where its disk is full: whoever writes the results there says so, once."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _line(what: str, unit: str, done: int, end: int | None, elapsed_s: float) -> str:
    rate = done / max(elapsed_s, 1e-9)
    speed = f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"
    if end is None:
        return f"{what}: {done} {unit}s, {speed}"
    return f"{what}: {done}/{end} {unit}s, {speed}, {tqdm.format_interval((end - done) / rate)} left"
