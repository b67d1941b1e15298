"""The slides of a cohort one after the other, so that the device never waits for a slide to begin or to end.

While a slide is embedded, the next is begun (its files proven or claimed, its tissue found, its first tiles read) and the
one before is finished (its last batch waited for, its files written).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

from pathfm.embed import begin_slide
from pathfm.embeddings import read_embeddings
from pathfm.errors import EmbeddingsBusyError, EmbeddingsError, SlideError
from pathfm.failures import Failure
from pathfm.files import is_disk_full
from pathfm.progress import logger, progress
from pathfm.stale import SlideNow, set_aside_if_withdrawn
from pathfm.work import backbones_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pathfm.embed import SlideUnderway
    from pathfm.sources import SlideSource
    from pathfm.work import BackboneWork, Extracted, ExtractWork

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """What a run did.

    Attributes:
        folders: where the files are, one folder a backbone, in the order asked for.
        done: ids of the slides of which at least one file was written.
        skipped: ids of those whose files were all there and proven.
        empty: those of them without a tile of tissue, as rows for failures.csv: a result, but nothing to learn from.
        failed: those that could not be used, with their reasons.
    """

    folders: tuple[Path, ...]
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    empty: tuple[Failure, ...]
    failed: tuple[Failure, ...]

    def __str__(self) -> str:
        """A line for the terminal."""
        counts = [f"{len(self.done)} slides embedded", f"{len(self.skipped)} were already"]
        counts += [f"{len(self.empty)} of them without tissue"] if self.empty else []
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        return f"{', '.join(counts)}; the embeddings are in {' and '.join(map(str, self.folders))}"


def embed_slides(
    sources: Sequence[SlideSource],
    work: ExtractWork,
    out: Path,
    tell: Callable[[list[Failure]], None] = lambda _: None,
) -> ExtractResult:
    """Embeds slides on one device and goes on past those that fail; raises nothing for a slide.

    What another process is writing is left to it, and the slide looked at again at the end.

    Args:
        sources: the slides.
        work: what is done to each.
        out: the cache; it gets <backbone>-<recipe8>/<slide_id>.h5 of each.
        tell: called with all that have failed so far, in the order of the slides, whenever there may be another.

    Raises:
        BackboneError: a backbone's embeddings are not finite.
        DiskFullError: no space; what was finished is kept.
    """
    backbones_of(work)  # once, before two slides ask for them at a time
    run = _Run(sources, work, out, tell)
    left = run.take(sources, wait=False)
    while left:
        source, *left = left
        logger.info("%s: another process is writing it; waiting", source.slide_id)
        left += run.take([source], wait=True)  # alone: who waits holds no slide that another waits for
    run.tell_failures()
    return run.result()


class _Run:
    """What has become of the slides of a run so far."""

    def __init__(
        self,
        sources: Sequence[SlideSource],
        work: ExtractWork,
        out: Path,
        tell: Callable[[list[Failure]], None],
    ) -> None:
        self._work, self._out, self._tell = work, out, tell
        self._order = {source.slide_id: at for at, source in enumerate(sources)}
        self._made: dict[str, bool] = {}
        self._empty: dict[str, Failure] = {}
        self._failed: dict[str, Failure] = {}
        self._left: list[SlideSource] = []

    def result(self) -> ExtractResult:
        """What the run did, in the order of the slides."""
        whole = [name for name in self._order if name in self._made and name not in self._failed]
        return ExtractResult(
            folders=self._work.folders(self._out),
            done=tuple(name for name in whole if self._made[name]),
            skipped=tuple(name for name in whole if not self._made[name]),
            empty=self._sorted(self._empty),
            failed=self._sorted(self._failed),
        )

    def tell_failures(self) -> None:
        """Says who has failed so far, and who has no tissue."""
        self._tell([*self._sorted(self._failed), *self._sorted(self._empty)])

    def take(self, sources: Sequence[SlideSource], *, wait: bool) -> list[SlideSource]:
        """Does slides; gives those that another process is at, with `wait` only where something else was to do."""
        self._left = []
        begun = [self._begin(source, wait=wait) for source in sources[:1]]
        ending: list[tuple[SlideSource, Future[Extracted]]] = []
        try:
            for source, following in zip_longest(progress(sources, "extract"), sources[1:]):
                beginning = begun.pop()
                if following is not None:
                    begun.append(self._begin(following, wait=wait))
                ending += self._embedded(source, beginning)
                self._note_ended(ending, but=1)
            self._note_ended(ending)
        finally:
            for coming in begun:
                coming.add_done_callback(_let_go)
            wait_for([future for _, future in ending])
        return self._left

    def _begin(self, source: SlideSource, *, wait: bool) -> Future[SlideUnderway | None]:
        return _beside(lambda: begin_slide(source, self._work, self._out, wait=wait))

    def _embedded(
        self, source: SlideSource, beginning: Future[SlideUnderway | None]
    ) -> list[tuple[SlideSource, Future[Extracted]]]:
        """Embeds a slide that is being begun; what is left to do of it, which goes on beside the next one."""
        with self._noting(source), ExitStack() as held:
            slide = _waited_for(beginning)
            if slide is None:
                self._note(source, None)
                return []
            held.enter_context(slide)
            slide.embed()
            held.pop_all()
            return [(source, _beside(lambda: _finished(slide)))]
        return []

    def _note_ended(self, ending: list[tuple[SlideSource, Future[Extracted]]], but: int = 0) -> None:
        """Waits for what was still going on, the last few excepted."""
        while len(ending) > but:
            source, future = ending[0]
            with self._noting(source):
                self._note(source, future.result())
            del ending[0]

    @contextmanager
    def _noting(self, source: SlideSource) -> Iterator[None]:
        """Takes down what becomes of a slide in a step, so that the next can go on."""
        paths = self._work.files(self._out, source.slide_id)
        try:
            yield
        except EmbeddingsBusyError:
            self._left.append(source)
            return
        except SlideError as error:
            self._fail(source, error)
            for part, path in zip(self._work.parts, paths, strict=True):
                if error.reason != "corrupt tile" or not self._still_holds(source, part, path):
                    set_aside_if_withdrawn(source, self._work.reading, path, error)
        except (EmbeddingsError, OSError) as error:  # of this slide's own files in the cache: the next may be well
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            names = " or ".join(map(str, paths))
            message = f"{names} or its journal cannot be read or written ({error}); check what lies there, and its permissions"
            self._fail(source, SlideError(source.path, "embeddings", message))
        self.tell_failures()

    def _still_holds(self, source: SlideSource, part: BackboneWork, path: Path) -> bool:
        """Whether the file of a backbone was whole already, so that no tile was read for it; not because of its tiles."""
        try:
            return SlideNow(source, self._work.reading).why_stale(part.recipe, path) is None
        except SlideError:
            return True  # it may be back tomorrow

    def _fail(self, source: SlideSource, error: SlideError) -> None:
        logger.error("%s: failed, %s: %s", source.slide_id, error.reason, error.message)
        self._failed[source.slide_id] = Failure.of(source.slide_id, error)
        self._empty.pop(source.slide_id, None)

    def _note(self, source: SlideSource, made: Extracted | None) -> None:
        name = source.slide_id
        if made is not None:
            logger.info("%s", made)
            n_tiles = made.n_tiles + made.n_failed
        else:
            its = "its file is" if len(self._work.parts) == 1 else "its files are"
            if name not in self._made:
                logger.info("%s: skipped, %s whole and up to date", name, its)
            found = read_embeddings(self._work.files(self._out, name)[0], "shape")
            n_tiles = len(found.coords) + len(found.failed)
        self._made[name] = self._made.get(name, False) or made is not None
        self._left += [source] if made is not None and made.left else []
        if not n_tiles:
            message = f"{source.path} has no tile with enough tissue; look at it with pathfm tile, or draw its tissue for --outlines"
            self._empty[name] = Failure.of(name, SlideError(source.path, "no tissue", message))

    def _sorted(self, failures: dict[str, Failure]) -> tuple[Failure, ...]:
        return tuple(failures[name] for name in self._order if name in failures)


def _finished(slide: SlideUnderway) -> Extracted:
    with slide:
        return slide.finish()


def _waited_for(beginning: Future[SlideUnderway | None]) -> SlideUnderway | None:
    """What was begun; where the wait itself is interrupted, as by Ctrl-C, it is let go once it is there."""
    try:
        return beginning.result()
    except BaseException:
        beginning.add_done_callback(_let_go)
        raise


def _let_go(beginning: Future[SlideUnderway | None]) -> None:
    """Closes a slide that nobody is going to embed, for the run ends early."""
    slide = None if beginning.exception() else beginning.result()
    if slide is not None:
        slide.close()


def _beside(step: Callable[[], T]) -> Future[T]:
    """Runs a step in a thread of its own, which an early end of the program does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(step())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the step gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
