"""The journal of a slide, and processes that are killed while they write it."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from runs import alive, descendants, ended, extract_slowly, files_below, start, wait_for, write_slides

from pathfm.errors import EmbeddingsBusyError, EmbeddingsDamagedError
from pathfm.isolation import Limits, isolated
from pathfm.journal import Journal, claimed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

HEAD = {"slide": "a", "dim": 3}
BLOCKS = [bytes([i]) * (10 + i) for i in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with written(tmp_path / "a.part"):
        pass
    return tmp_path / "a.part"


@contextmanager
def written(path: Path, blocks: list[bytes] = BLOCKS) -> Iterator[Journal]:
    with claimed(path, wait=False) as journal:
        journal.begin(HEAD)
        for block in blocks:
            journal.append(block)
        yield journal


def test_a_journal_goes_on_where_it_was(path: Path) -> None:
    with claimed(path, wait=False) as journal:
        assert journal.begin(HEAD) == len(BLOCKS)
        assert list(journal.blocks()) == BLOCKS
        journal.append(b"one more")
        assert list(journal.blocks()) == [*BLOCKS, b"one more"]
    with claimed(path, wait=False) as journal:
        assert journal.begin(HEAD) == len(BLOCKS) + 1


def test_a_journal_of_anything_else_starts_again(path: Path) -> None:
    with claimed(path, wait=False) as journal:
        assert journal.begin(HEAD | {"dim": 4}) == 0
        assert list(journal.blocks()) == []
    with claimed(path, wait=False) as journal:
        assert journal.begin(HEAD) == 0


def test_a_journal_cut_anywhere_gives_the_whole_blocks_before_the_cut(path: Path) -> None:
    data, counts = path.read_bytes(), set()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with claimed(path, wait=False) as journal:
            count = journal.begin(HEAD)
            assert list(journal.blocks()) == BLOCKS[:count]
            journal.append(b"next")
            assert list(journal.blocks()) == [*BLOCKS[:count], b"next"]
        counts.add(count)
    assert counts == set(range(len(BLOCKS) + 1))


def test_a_flipped_bit_costs_its_block_and_those_after_it(path: Path) -> None:
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with claimed(path, wait=False) as journal:
            count = journal.begin(HEAD)
            assert count < len(BLOCKS)
            assert list(journal.blocks()) == BLOCKS[:count]


def test_a_block_counts_only_in_its_own_place(path: Path) -> None:
    """Blocks that another journal left where this one now grows are no rows of this slide."""
    data = path.read_bytes()
    starts = [data.index(b"BLK0" + len(block).to_bytes(4, "little") + block) for block in BLOCKS]
    pieces = [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
    for order, right in (([0, 2, 1, 3, 4], 1), ([1, 0, 2, 3, 4], 0), ([0, 1, 1, 2, 3, 4], 2), ([0, 1, 3, 4], 2)):
        path.write_bytes(data[: starts[0]] + b"".join(pieces[i] for i in order))
        with claimed(path, wait=False) as journal:
            assert journal.begin(HEAD) == right
            assert list(journal.blocks()) == BLOCKS[:right]


def test_blocks_that_changed_since_they_were_written_are_no_rows(path: Path) -> None:
    with written(path.with_name("b.part")) as journal:
        data = journal.path.read_bytes()
        journal.path.write_bytes(data.replace(BLOCKS[3], BLOCKS[3][::-1][:-1] + b"!"))
        with pytest.raises(EmbeddingsDamagedError, match="changed while it was written"):
            list(journal.blocks())


def test_a_journal_that_was_never_begun_leaves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "new" / "a.part", wait=False) as journal:
        assert journal.is_empty
    assert files_below(tmp_path) == {}


def test_a_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.part").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"a\.part"), claimed(tmp_path / "a.part", wait=False) as journal:
        journal.begin(HEAD)
    assert (tmp_path / "precious").read_text() == "mine"


def hold(path: Path, seconds: float) -> int:
    """In another process: claims a journal, writes to it, and keeps it."""
    with written(path):
        path.with_suffix(".held").touch()
        time.sleep(seconds)
    return 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_claim_lasts_as_long_as_its_process(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "a.part"
    holder = start(tmp_path / "said", hold, path, 600 if killed else 0.3)
    assert wait_for(path.with_suffix(".held").exists)
    with pytest.raises(EmbeddingsBusyError, match=r"a\.part is being written by another process"):
        claimed(path, wait=False).__enter__()
    if killed:
        holder.kill()
    with claimed(path, wait=True) as journal:
        assert journal.begin(HEAD) == len(BLOCKS)
    assert ended(holder) == (-9 if killed else 0)


def test_one_who_waited_for_a_journal_that_was_removed_gets_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    holder = start(tmp_path / "said", hold_and_remove, path)
    assert wait_for(path.with_suffix(".held").exists)
    with claimed(path, wait=True) as journal:
        assert journal.is_empty
        assert os.path.samestat(path.stat(), os.fstat(journal._descriptor))
    assert ended(holder) == 0


def hold_and_remove(path: Path) -> int:
    with written(path) as journal:
        path.with_suffix(".held").touch()
        time.sleep(0.3)
        journal.remove()
    return 0


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), count=2)


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that is left in peace writes."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(start(folder / "said", extract_slowly, slides, folder / "out")) == 0
    found = files_below(folder / "out", "*.h5")
    assert len(found) == 2
    return found


def test_a_run_killed_at_any_moment_goes_on_inside_the_slide(
    slides: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    print(killed_and_resumed(slides, whole, tmp_path, wanted=3))


@pytest.mark.long
def test_a_run_killed_often_goes_on_inside_the_slide(slides: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    print(killed_and_resumed(slides, whole, tmp_path, wanted=50))


def killed_and_resumed(slides: Path, whole: dict[str, bytes], folder: Path, wanted: int) -> str:
    """Kills extractions at random moments until they are done all the same; enough of them for so many kills."""
    rng = np.random.default_rng(0)
    kills = inside = resumed = rounds = 0
    while kills < wanted:
        out, killed = folder / f"out-{rounds}", True
        while killed:
            process = start(folder / "said", extract_slowly, slides, out, 0.03)
            wait_for_growth(process, out)
            time.sleep(rng.uniform(0, 0.4))
            killed = kill_with_readers(process)
            kills, inside = kills + killed, inside + (killed and size_of_journals(out) > 0)
            assert killed or process.exitcode == 0
            assert files_below(out, "*.h5").items() <= whole.items()
        assert files_below(out, "*.h5") == whole
        resumed, rounds = resumed + next(out.glob("*.log")).read_text().count("goes on after tile"), rounds + 1
    assert inside > 0  # how many is a matter of the machine; the count is printed
    assert resumed > 0
    return f"{kills} kills, {inside} inside a slide, {resumed} times gone on there, {rounds} runs byte-identical"


def wait_for_growth(process: ForkServerProcess, out: Path) -> None:
    before = size_of_journals(out)
    assert wait_for(lambda: size_of_journals(out) > before or not process.is_alive())


def size_of_journals(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob("*.part"))


def kill_with_readers(process: ForkServerProcess) -> bool:
    """Kills a process, unless it is done, and waits until those that read for it have ended by themselves."""
    below = descendants(process.pid or 0)
    process.kill()
    process.join()
    assert wait_for(lambda: not alive(below), 30), "processes that read slides outlive the one they read for"
    return process.exitcode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_reader_that_hangs_ends_with_the_process_it_reads_for(tmp_path: Path) -> None:
    process = start(tmp_path / "said", read_for_ever, tmp_path / "reading")
    assert wait_for((tmp_path / "reading").exists)
    below = descendants(process.pid or 0)
    process.kill()
    process.join()
    try:
        assert below
        assert wait_for(lambda: not alive(below), 5)
    finally:
        for pid in alive(below):
            os.kill(pid, 9)


def read_for_ever(sign: Path) -> None:
    isolated(sign, Limits(), 1, hang, sign).result()


def hang(sign: Path) -> None:
    sign.touch()
    time.sleep(600)
