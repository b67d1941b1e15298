"""A cohort's slides overlap: one is begun and one is finished while another is embedded, and nothing gets mixed up."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from runs import ended, files_below, small_work, start, wait_for, write_slides

from pathfm import embed_cohort
from pathfm.backbones import LoadedBackbone
from pathfm.embed import SlideUnderway, extract_slide
from pathfm.embed_cohort import embed_slides
from pathfm.errors import BackboneError, EmbeddingsBusyError
from pathfm.journal import claimed
from pathfm.sources import find_slides
from pathfm.underway import journal_of

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.embed import Extracted, ExtractWork
    from pathfm.sources import SlideSource

PATIENCE_S = 60


def is_free(part: Path) -> bool:
    """Whether nobody has claimed what a journal is for."""
    try:
        with claimed(part, wait=False):
            return True
    except EmbeddingsBusyError:
        return False


class Steps:
    """The steps of slides, each noted when it begins, and able to wait for another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: dict[tuple[str, str], tuple[str, str]]) -> None:
        self.began: dict[tuple[str, str], threading.Event] = {}
        self._lock, self._after = threading.Lock(), after
        begin, embed, finish = embed_cohort.begin_slide, SlideUnderway.embed, SlideUnderway.finish

        def begun(source: SlideSource, work: ExtractWork, out: Path, **more: Any) -> SlideUnderway | None:
            self._note("begin", source.slide_id)
            return begin(source, work, out, **more)

        def embedded(slide: SlideUnderway) -> None:
            self._note("embed", slide.source.slide_id)
            embed(slide)

        def finished(slide: SlideUnderway) -> Extracted:
            self._note("finish", slide.source.slide_id)
            return finish(slide)

        monkeypatch.setattr(embed_cohort, "begin_slide", begun)
        monkeypatch.setattr(SlideUnderway, "embed", embedded)
        monkeypatch.setattr(SlideUnderway, "finish", finished)

    def event(self, step: tuple[str, str]) -> threading.Event:
        with self._lock:
            return self.began.setdefault(step, threading.Event())

    def _note(self, what: str, slide_id: str) -> None:
        self.event((what, slide_id)).set()
        other = self._after.get((what, slide_id))
        assert other is None or self.event(other).wait(PATIENCE_S), f"{other} did not begin during {what} {slide_id}"


@pytest.fixture
def sources(tmp_path: Path) -> list[SlideSource]:
    return find_slides([write_slides(tmp_path / "slides", 3)])


def test_while_a_slide_is_embedded_the_next_is_begun_and_while_it_is_finished_the_next_is_embedded(
    sources: list[SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = small_work(4)
    for source in sources:
        extract_slide(source, work, tmp_path / "alone")
    Steps(
        monkeypatch,
        {
            ("embed", "s0"): ("begin", "s1"),
            ("finish", "s0"): ("embed", "s1"),
            ("embed", "s1"): ("begin", "s2"),
            ("finish", "s1"): ("embed", "s2"),
        },
    )
    result = embed_slides(sources, work, tmp_path / "together")
    assert result.done == ("s0", "s1", "s2")
    assert files_below(tmp_path / "together") == files_below(tmp_path / "alone")


def test_the_first_tiles_of_the_next_slide_are_read_before_the_last_batch_of_this_one_is_embedded(
    sources: list[SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides: list[SlideUnderway] = []
    begin, submit = embed_cohort.begin_slide, LoadedBackbone.submit

    def begun(*arguments: Any, **more: Any) -> SlideUnderway | None:
        slide = begin(*arguments, **more)
        slides.extend([slide] if slide else [])
        return slide

    def submitted(backbone: LoadedBackbone, tiles: Any) -> Any:
        ready = lambda: len(slides) > 1 and slides[1].tile_reads.is_ahead  # noqa: E731
        assert wait_for(ready, PATIENCE_S), "the next slide's tiles were not read meanwhile"
        return submit(backbone, tiles)

    monkeypatch.setattr(embed_cohort, "begin_slide", begun)
    monkeypatch.setattr(LoadedBackbone, "submit", submitted)
    assert embed_slides(sources[:2], small_work(4), tmp_path / "out").done == ("s0", "s1")


def test_slides_that_fail_in_any_step_are_listed_in_order_and_cost_no_other(
    sources: list[SlideSource], tmp_path: Path
) -> None:
    for number, source in enumerate(sources[:2]):
        broken = source.path.with_name(f"broken{number}.tiff")
        broken.write_bytes(b"no slide")
    everything = find_slides([sources[0].path.parent])
    mixed = sorted(everything, key=lambda source: source.slide_id[::-1])  # broken0, s0, broken1, s1, s2
    told: list[list[str]] = []
    work, out = small_work(4), tmp_path / "out"
    result = embed_slides(mixed, work, out, lambda some: told.append([failure.slide_id for failure in some]))
    assert result.done == ("s0", "s1", "s2")
    assert [failure.slide_id for failure in result.failed] == ["broken0", "broken1"]
    assert told[0] == ["broken0"]
    assert told[-1] == ["broken0", "broken1"]


def test_a_run_that_ends_early_lets_go_of_what_it_had_begun(
    sources: list[SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: LoadedBackbone, tiles: Any) -> Any:
        message = "gone"
        raise BackboneError(message)

    work = small_work(4)
    steps = Steps(monkeypatch, {("embed", "s0"): ("begin", "s1")})
    with monkeypatch.context() as patch:
        patch.setattr(LoadedBackbone, "submit", gone)
        with pytest.raises(BackboneError, match="gone"):
            embed_slides(sources, work, tmp_path / "out")
    assert ("embed", "s1") not in steps.began
    assert wait_for(lambda: is_free(journal_of(work.files(tmp_path / "out", "s1")[0])), PATIENCE_S)
    assert embed_slides(sources, work, tmp_path / "out").done == ("s0", "s1", "s2")


def interrupt_a_wait(sources: list[SlideSource], out: Path) -> int:
    """Ctrl-C while a slide is waited for, as in a notebook, which keeps the error and with it all that the run held."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work, begin = small_work(4), embed_cohort.begin_slide
    part = journal_of(work.files(out, "s0")[0])
    began, may_go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any, **more: Any) -> SlideUnderway | None:
        began.set()
        assert may_go_on.wait(PATIENCE_S)
        return begin(*arguments, **more)

    def interrupt() -> None:
        began.wait(PATIENCE_S)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    kept: list[BaseException] = []
    with patch.object(embed_cohort, "begin_slide", slowly):
        threading.Thread(target=interrupt).start()
        try:
            embed_slides(sources, work, out)
        except KeyboardInterrupt as error:
            kept.append(error)
        may_go_on.set()
    print("interrupted:", len(kept))
    print("let go:", wait_for(lambda: not part.exists() or is_free(part)))
    print("done:", *embed_slides(sources, work, out).done)
    return 0


def test_a_wait_that_is_interrupted_lets_go_of_the_slide_it_waited_for(
    sources: list[SlideSource], tmp_path: Path
) -> None:
    """In a process of its own: what a signal does to one that runs tests is not known."""
    said = tmp_path / "said"
    code = ended(start(said, interrupt_a_wait, sources, tmp_path / "out"))
    lines = [line for line in said.read_text().splitlines() if line.startswith(("interrupted", "let go", "done"))]
    assert (code, lines) == (0, ["interrupted: 1", "let go: True", "done: s0 s1 s2"]), said.read_text()


def test_a_batch_is_journalled_once_its_embeddings_are_here_also_when_they_come_late(
    sources: list[SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a batch is computed while the next is sent."""
    work, submit = small_work(2), LoadedBackbone.submit
    extract_slide(sources[0], work, tmp_path / "now")

    class Late:
        def __init__(self, pending: Any) -> None:
            self._pending = pending

        def done(self) -> bool:
            return False

        def result(self) -> Any:
            return self._pending.result()

    monkeypatch.setattr(LoadedBackbone, "submit", lambda backbone, tiles: Late(submit(backbone, np.array(tiles))))
    extract_slide(sources[0], work, tmp_path / "late")
    embed_slides(sources, work, tmp_path / "many")
    now = files_below(tmp_path / "now")
    assert files_below(tmp_path / "late") == now
    assert now.items() <= files_below(tmp_path / "many").items()
