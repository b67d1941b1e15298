"""Slides on the devices of one machine: on one of them in this process, on several in a process each."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from logging import Handler, LogRecord
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones import BACKBONES, Backbone, resolve_device
from pathfm.confined import Outcome, die_with_the_program, pickled
from pathfm.embed_cohort import ExtractResult, embed_slides
from pathfm.errors import BackboneError, InputError, SlideError
from pathfm.failures import write_failures
from pathfm.isolation import cancelled_after, usable_cores
from pathfm.progress import log_lines_only, logger, progress
from pathfm.reading import counted_tiles
from pathfm.scrub import Scrubber, scrubbers, scrubbing
from pathfm.work import ExtractWork, forget_backbones

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.failures import Failure
    from pathfm.sources import SlideSource

FAILURES = "failures.csv"


def extract_slides(sources: Sequence[SlideSource], work: ExtractWork, out: Path) -> ExtractResult:
    """Does the work on every slide, goes on past those that fail, and writes failures.csv; raises nothing for a slide.

    On several devices each has a process, all backbones and its share of the slides, so that all have about as many
    tiles; what is written is the same. Where one cannot go on, the others are stopped at once: the same command goes on from there.

    Raises:
        InputError: `work.device` names a device twice, or one that is not there.
        BackboneError: a backbone's embeddings are not finite, or the process of a device died.
        DiskFullError: no space; what was finished is kept.
    """
    devices = devices_of(work.device)
    logger.info("extract: %d slides into %s", len(sources), " and ".join(map(str, work.folders(out))))
    write_failures(out / FAILURES, [])  # those of an older run
    if len(devices) == 1:
        one = replace(work, device=devices[0])
        return embed_slides(sources, one, out, lambda failures: write_failures(out / FAILURES, failures))
    shares = shared_out(sources, _tile_counts(sources, work, out), len(devices))
    forget_backbones()
    return _merged(sources, _on_each(list(zip(devices, shares, strict=True)), work, out))


def devices_of(device: str) -> list[str]:
    """The devices that a name stands for: "cuda:0,cuda:1" are two, "cuda:all" all that this process may use.

    Raises:
        InputError: a GPU is named twice, or one of several is not there.
    """
    names = [name.strip() for name in device.split(",")]
    if names == ["cuda:all"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cuda"]
    if len(names) == 1:
        return names
    there = ["cuda:0" if name == "cuda" else name for name in (str(resolve_device(name)) for name in names)]
    if len({name for name in there if name != "cpu"}) < sum(name != "cpu" for name in there):
        message = f"--device {device} names a device twice; pass for example cuda:0,cuda:1, or cuda:all"
        raise InputError(message)
    return there


def shared_out(sources: Sequence[Any], counts: Sequence[int], parts: int) -> list[list[Any]]:
    """The largest slide first, each to whoever has the fewest tiles yet (Graham, SIAM J Appl Math 1969)."""
    shares: list[list[Any]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for at in sorted(range(len(sources)), key=lambda at: -counts[at]):
        least = min(range(parts), key=lambda part: (sums[part], len(shares[part])))
        shares[least].append(sources[at])
        sums[least] += counts[at]
    return shares


def _tile_counts(sources: Sequence[SlideSource], work: ExtractWork, out: Path) -> list[int]:
    """How many tiles each slide has; 0 where it has its files, or cannot be read, which is told by whoever gets it."""
    missing = [one for one in sources if not all(path.exists() for path in work.files(out, one.slide_id))]
    calls = {source.slide_id: counted_tiles(source, work.reading) for source in missing}
    counts = dict.fromkeys((source.slide_id for source in sources), 0)
    with cancelled_after(calls.values()):
        for slide_id, call in progress(list(calls.items()), "count tiles"):
            try:
                counts[slide_id] = call.result()
            except (SlideError, InputError):
                continue
    return [counts[source.slide_id] for source in sources]


def _on_each(shares: list[tuple[str, list[SlideSource]]], work: ExtractWork, out: Path) -> list[ExtractResult]:
    """Starts a process a device and listens to them until all are through, or one is not."""
    results: list[ExtractResult] = []
    failures: dict[Any, list[Failure]] = {}
    with ExitStack() as started:
        running: dict[Any, _DeviceProcess] = {}
        for device, share in shares:
            logger.info("%s: %d slides", device, len(share))
            one = _DeviceProcess(device, _Task.of(share, work, device, len(shares), out))
            started.callback(one.end)
            running[one.pipe] = one
        while running:
            for pipe in wait(list(running)):
                said = running[pipe].hear()
                if isinstance(said, LogRecord):
                    logger.handle(said)
                elif isinstance(said, list):
                    failures[pipe] = said
                    write_failures(out / FAILURES, [failure for some in failures.values() for failure in some])
                else:
                    results.append(said)
                    del running[pipe]
    return results


@dataclass(frozen=True)
class _Task:
    """What the process of a device is told; picklable.

    Attributes:
        sources: its slides.
        work: what is done to each, on its device.
        out: the cache that gets the files.
        level: from which on it logs.
        threads: of torch on a CPU.
        rows: the backbones that are known, for some may be the user's own.
        scrubbers: keep it from saying what this process may not say.
    """

    sources: list[SlideSource]
    work: ExtractWork
    out: Path
    level: int
    threads: int
    rows: tuple[Backbone, ...]
    scrubbers: tuple[Scrubber, ...]

    @classmethod
    def of(cls, share: list[SlideSource], work: ExtractWork, device: str, devices: int, out: Path) -> _Task:
        reading = replace(work.reading, workers=max(1, work.reading.workers // devices))
        threads = max(1, usable_cores() // devices)
        mine = replace(work, device=device, reading=reading)
        rows = tuple(BACKBONES.values())
        return cls(share, mine, out, logger.getEffectiveLevel(), threads, rows, scrubbers())


class _DeviceProcess:
    """The process of a device; it is told its task, and says what it logs, who failed, and at last what it did.

    Started like those that read slides, not by multiprocessing: a user's script is not run again in it.
    """

    def __init__(self, device: str, task: _Task) -> None:
        self._device = device
        self.pipe, theirs = Pipe()
        words = [_PROGRAM, str(theirs.fileno()), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", *words], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.pipe.send_bytes(pickle.dumps(task))

    def hear(self) -> LogRecord | list[Failure] | ExtractResult:
        """The next of what it says.

        Raises:
            BackboneError: it died.
            Exception: what ended its work.
        """
        try:
            outcome: Outcome[Any] = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - of our own process
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
            message = (
                f"the process of {self._device} died ({how}), as where memory runs out; run the same command again: it"
                " goes on, with a smaller --batch_size or without that device"
            )
            raise BackboneError(message) from error
        if outcome.error is not None:
            raise outcome.error
        said: LogRecord | list[Failure] | ExtractResult = outcome.value
        return said

    def end(self) -> None:
        """Stops it, wherever it is: what it has embedded is kept, and gone on from."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()


_PROGRAM = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import do_share as do; do(int(sys.argv[1]))"


def do_share(descriptor: int) -> None:
    """What the process of a device does."""
    die_with_the_program()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; we are stopped by who started us
    parent = Connection(descriptor)
    task: _Task = pickle.loads(parent.recv_bytes())  # noqa: S301 - from the program that started us
    logger.handlers[:] = [_Sender(parent)]
    logger.propagate = False
    logger.setLevel(task.level)
    log_lines_only()
    torch.set_num_threads(task.threads)
    BACKBONES.update({row.name: row for row in task.rows})
    with ExitStack() as silence:
        for scrubber in task.scrubbers:
            silence.enter_context(scrubbing(scrubber))
        result, problem = None, None
        try:
            result = embed_slides(
                task.sources, task.work, task.out, lambda failures: _say(parent, Outcome(failures, None, []))
            )
        except Exception as error:  # noqa: BLE001 - raised by who started us
            problem = error.with_traceback(None)
        _say(parent, Outcome(result, problem, []))
    os._exit(0)  # what Python takes to end, the others would wait for


def _say(parent: Connection, outcome: Outcome[Any]) -> None:
    parent.send_bytes(pickled(outcome))


class _Sender(Handler):
    """Sends records, their arguments put in, for these need not be picklable; `emit` is called under a lock."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        _say(self._parent, Outcome(record, None, []))


def _merged(sources: Sequence[SlideSource], results: Sequence[ExtractResult]) -> ExtractResult:
    order = {source.slide_id: at for at, source in enumerate(sources)}

    def ids(name: str) -> tuple[str, ...]:
        return tuple(sorted((slide_id for one in results for slide_id in getattr(one, name)), key=order.__getitem__))

    def rows(name: str) -> tuple[Failure, ...]:
        found: list[Any] = [row for one in results for row in getattr(one, name)]
        return tuple(sorted(found, key=lambda row: order[row.slide_id]))

    return ExtractResult(
        folders=results[0].folders, done=ids("done"), skipped=ids("skipped"), empty=rows("empty"), failed=rows("failed")
    )
