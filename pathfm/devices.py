"""Slides on the devices of one machine: on one of them in this process, on several in a process each."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones import BACKBONES
from pathfm.confined import die_with_the_program
from pathfm.embed import forget_backbone
from pathfm.embed_cohort import ExtractResult, embed_slides
from pathfm.embeddings import embeddings_folder_name
from pathfm.errors import BackboneError, InputError, SlideError
from pathfm.failures import write_failures
from pathfm.isolation import usable_cores
from pathfm.progress import log_lines_only, logger, progress
from pathfm.reading import counted_tiles
from pathfm.scrub import scrubbers, scrubbing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.queues import Queue
    from pathlib import Path

    from pathfm.backbones import Backbone
    from pathfm.embed import ExtractWork
    from pathfm.failures import Failure
    from pathfm.isolation import Call
    from pathfm.scrub import Scrubber
    from pathfm.sources import SlideSource

FAILURES = "failures.csv"


def extract_slides(sources: Sequence[SlideSource], work: ExtractWork, out: Path) -> ExtractResult:
    """Does the work on every slide, goes on past those that fail, and writes failures.csv; raises nothing for a slide.

    On several devices each has a process and its share of the slides, so that all have about as many tiles; what is
    written is the same.

    Raises:
        InputError: `work.device` names a device twice that is there once.
        BackboneError: the backbone's embeddings are not finite, or the process of a device died.
        DiskFullError: no space; what was finished is kept.
    """
    folder, devices = out / embeddings_folder_name(work.recipe), devices_of(work.device)
    logger.info("extract: %d slides into %s", len(sources), folder)
    if len(devices) == 1:
        return embed_slides(sources, replace(work, device=devices[0]), folder, out / FAILURES)
    shares = shared_out(sources, _tile_counts(sources, work), len(devices))
    for device, share in zip(devices, shares, strict=True):
        logger.info("%s: %d slides", device, len(share))
    forget_backbone()
    results = _on_each(devices, shares, work, folder)
    together = _merged(sources, results)
    write_failures(out / FAILURES, [*together.failed, *together.empty])
    return together


def devices_of(device: str) -> list[str]:
    """The devices that a name stands for: "cuda:0,cuda:1" are two, "cuda:all" all that this process may use.

    Raises:
        InputError: a GPU is named twice, or there is none.
    """
    names = [name.strip() for name in device.split(",")]
    if names == ["cuda:all"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    twice = {name for name in names if names.count(name) > 1 and name != "cpu"}
    if twice or not names or not all(names):
        message = f"--device {device} names a device twice, or none; pass for example cuda:0,cuda:1, or auto"
        raise InputError(message)
    return names


def _tile_counts(sources: Sequence[SlideSource], work: ExtractWork) -> list[int]:
    """How many tiles each slide has; 0 where it cannot be read, which is told by whoever gets it."""
    calls = [counted_tiles(source, work.reading) for source in sources]
    return [_count(call) for call in progress(calls, "count tiles")]


def _count(call: Call[int]) -> int:
    try:
        return call.result()
    except (SlideError, InputError):
        return 0


def shared_out(sources: Sequence[SlideSource], counts: Sequence[int], parts: int) -> list[list[SlideSource]]:
    """The largest slide first, each to whoever has the fewest tiles yet (Graham, SIAM J Appl Math 1969)."""
    shares: list[list[SlideSource]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for at in sorted(range(len(sources)), key=lambda at: -counts[at]):
        least = min(range(parts), key=lambda part: (sums[part], len(shares[part])))
        shares[least].append(sources[at])
        sums[least] += counts[at]
    return shares


def _on_each(
    devices: Sequence[str], shares: Sequence[Sequence[SlideSource]], work: ExtractWork, folder: Path
) -> list[ExtractResult]:
    reading = replace(work.reading, workers=max(1, work.reading.workers // len(devices)))
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with _relayed(context.Queue()) as records:
        setup = _Setup(
            records=records,
            level=logger.getEffectiveLevel(),
            threads=max(1, usable_cores() // len(devices)),
            rows=tuple(BACKBONES.values()),
            scrubbers=scrubbers(),
        )
        with ProcessPoolExecutor(len(devices), context, setup.apply) as pool:
            futures = [
                pool.submit(embed_slides, share, replace(work, device=device, reading=reading), folder)
                for device, share in zip(devices, shares, strict=True)
            ]
            try:
                return [future.result() for future in futures]
            except BrokenProcessPool as error:
                message = (
                    "the process of a device died, as where memory runs out; run the same command again: it goes on"
                )
                raise BackboneError(message) from error


@dataclass(frozen=True)
class _Setup:
    """What the process of a device is told before it begins.

    Attributes:
        records: takes what it logs.
        level: from which on it logs.
        threads: of torch on a CPU.
        rows: the backbones that are known, for some may be the user's own.
        scrubbers: keep it from saying what this process may not say.
    """

    records: Queue[logging.LogRecord]
    level: int
    threads: int
    rows: tuple[Backbone, ...]
    scrubbers: tuple[Scrubber, ...]

    def apply(self) -> None:
        """Runs first in that process."""
        die_with_the_program()
        for scrubber in self.scrubbers:
            _silence.enter_context(scrubbing(scrubber))
        logger.handlers[:] = [QueueHandler(self.records)]
        logger.propagate = False
        logger.setLevel(self.level)
        log_lines_only()
        torch.set_num_threads(self.threads)
        BACKBONES.update({row.name: row for row in self.rows})


_silence = ExitStack()  # of this process, where it is one of a device: to its end


@contextmanager
def _relayed(records: Queue[logging.LogRecord]) -> Iterator[Queue[logging.LogRecord]]:
    """Logs here what other processes put into a queue."""
    listener = QueueListener(records, _Relay())
    listener.start()
    try:
        yield records
    finally:
        listener.stop()


class _Relay(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.handle(record)


def _merged(sources: Sequence[SlideSource], results: Sequence[ExtractResult]) -> ExtractResult:
    order = {source.slide_id: at for at, source in enumerate(sources)}

    def ids(name: str) -> tuple[str, ...]:
        return tuple(sorted((slide_id for one in results for slide_id in getattr(one, name)), key=order.__getitem__))

    def rows(name: str) -> tuple[Failure, ...]:
        found: list[Any] = [row for one in results for row in getattr(one, name)]
        return tuple(sorted(found, key=lambda row: order[row.slide_id]))

    return ExtractResult(
        folder=results[0].folder, done=ids("done"), skipped=ids("skipped"), empty=rows("empty"), failed=rows("failed")
    )
