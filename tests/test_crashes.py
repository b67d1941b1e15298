"""Every file operation of a write, and no state that a kill or a power loss leaves of it is read as what it is not."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from crashes import Recording, State, kills, power_losses, recorded
from runs import files_below, small_work, write_slides

from pathfm.embed import extract_slide
from pathfm.embeddings import Embeddings, find_embeddings, read_embeddings, write_embeddings
from pathfm.files import write_atomically
from pathfm.journal import Journal, claimed
from pathfm.sources import find_slides
from pathfm.underway import journal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pathfm.extract import ExtractWork
    from pathfm.sources import SlideSource

CACHE = Path("cache")
TARGET = str(small_work().files(CACHE, "s0")[0])
JOURNAL = str(journal_of(Path(TARGET)))
MOST_BYTES = 250
"""The system takes no more at a time, so that a small file has many crash points."""
UNSYNCED_BYTES, UNSYNCED_BLOCKS = 400, 3
"""What a journal may leave unsynced here, and how many blocks of it, the one that is being written included."""


@dataclasses.dataclass
class Slide:
    """A slide, what to do with it, and what an undisturbed run makes of it."""

    source: SlideSource
    work: ExtractWork
    whole: Embeddings
    data: bytes
    head: dict[str, Any]
    blocks: list[bytes]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    folder = tmp_path_factory.mktemp("slide")
    source, work = find_slides([write_slides(folder)])[0], small_work()
    heads: list[dict[str, Any]] = []
    blocks: list[bytes] = []
    begin, append = Journal.begin, Journal.append

    def begins(journal: Journal, head: dict[str, Any]) -> int:
        heads.append(head)
        return begin(journal, head)

    def appends(journal: Journal, block: bytes) -> None:
        blocks.append(block)
        append(journal, block)

    with patch.object(Journal, "begin", begins), patch.object(Journal, "append", appends):
        extract_slide(source, work, folder / CACHE)
    assert len(blocks) == 12
    return Slide(source, work, read_embeddings(folder / TARGET), (folder / TARGET).read_bytes(), heads[0], blocks)


class Promise(NamedTuple):
    """What was done so far: whether the file was renamed, and the folder synced; blocks written, and those surely synced."""

    renamed: int
    synced: int
    written: int
    safe: int


def fresh_write(slide: Slide, root: Path) -> Recording:
    with recorded(root, MOST_BYTES) as recording:
        write_embeddings(root / TARGET, slide.whole)
    return recording


def write_over_an_older_file(slide: Slide, root: Path) -> Recording:
    write_embeddings(root / TARGET, older(slide))
    with recorded(root, MOST_BYTES) as recording:
        write_embeddings(root / TARGET, slide.whole)
    return recording


def extraction(slide: Slide, root: Path) -> Recording:
    with recorded(root, MOST_BYTES) as recording:
        extract_slide(slide.source, slide.work, root / CACHE)
    return recording


def resumed_extraction_over_an_older_file(slide: Slide, root: Path) -> Recording:
    """A torn block at the end of the journal, a killed writer's leavings, and embeddings of the slide as it once was."""
    write_embeddings(root / TARGET, older(slide))
    with recorded(root) as first, claimed(root / JOURNAL, wait=False) as journal:
        journal.begin(slide.head)
        for block in slide.blocks[:5]:
            journal.append(block)
    torn = [one for one in kills(first) if "within" in one.what][-1]
    (root / JOURNAL).write_bytes(torn.tree.files()[JOURNAL])
    return extraction(slide, root)


def extraction_over_the_journal_of_another_recipe(slide: Slide, root: Path) -> Recording:
    with claimed(root / JOURNAL, wait=False) as journal:
        journal.begin(slide.head | {"recipe_sha256": "0" * 64})
        for block in slide.blocks:
            journal.append(block[::-1])
    return extraction(slide, root)


SCENARIOS = (
    fresh_write,
    write_over_an_older_file,
    extraction,
    resumed_extraction_over_an_older_file,
    extraction_over_the_journal_of_another_recipe,
)


def older(slide: Slide) -> Embeddings:
    return dataclasses.replace(slide.whole, slide_digest="sha256:" + "0" * 64, features=slide.whole.features[:, ::-1])


@pytest.fixture(autouse=True)
def _sync_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.journal._SYNC_BYTES", UNSYNCED_BYTES)


def test_replaying_a_log_gives_the_same_files(slide: Slide, tmp_path: Path) -> None:
    root, again = tmp_path / "root", tmp_path / "again"
    root.mkdir()
    again.mkdir()
    recording = resumed_extraction_over_an_older_file(slide, root)
    assert files_below(root) == {TARGET: slide.data}
    recording.tree_after(len(recording.operations)).write_to(again)
    assert files_below(again) == files_below(root)
    kinds = Counter(one.kind for one in recording.operations)
    assert {"create", "rename", "unlink", "write", "truncate", "sync", "sync folder"} <= set(kinds)


def test_a_write_past_the_log_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"older")
    with pytest.raises(AssertionError, match="past the log"), recorded(tmp_path):
        (tmp_path / "a").write_bytes(b"newer")


def straight_to_its_name(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def renamed_before_it_is_synced(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    straight = os.open(temporary, os.O_WRONLY | os.O_CREAT)
    os.write(straight, data)
    temporary.replace(path)
    os.fsync(straight)
    os.close(straight)


def never_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, data)
    os.close(descriptor)
    path.with_suffix(".tmp").replace(path)


@pytest.mark.parametrize(
    ("write", "survives_kills", "survives_power_losses"),
    [
        (straight_to_its_name, False, False),
        (renamed_before_it_is_synced, True, False),
        (never_synced, True, False),
        (write_atomically, True, True),
    ],
)
def test_the_states_tell_a_careless_writer_from_a_careful_one(
    tmp_path: Path, write: Callable[[Path, bytes], None], survives_kills: bool, survives_power_losses: bool
) -> None:
    old, new = b"o" * 100, b"n" * 120
    (tmp_path / "a").write_bytes(old)
    with recorded(tmp_path) as recording:
        write(tmp_path / "a", new)

    def all_right(states: Iterator[State]) -> bool:
        return all(one.tree.files().get("a") in (old, new) for one in states)

    assert all_right(kills(recording)) == survives_kills
    assert all_right(power_losses(recording, 40, np.random.default_rng(0))) == survives_power_losses


def test_no_state_of_a_write_is_read_as_what_it_is_not(slide: Slide, tmp_path: Path) -> None:
    counts = examined(slide, tmp_path, draws=7)
    print(f"states of a kill or a power loss: {counts}")
    assert counts["states"] >= 1000
    assert min(counts[what] for what in ("new", "old", "absent", "journals", "journals with blocks")) >= 20


@pytest.mark.long
def test_no_state_of_many_more_is_read_as_what_it_is_not(slide: Slide, tmp_path: Path) -> None:
    counts = examined(slide, tmp_path, draws=80)
    print(f"states of a kill or a power loss: {counts}")
    assert counts["states"] >= 8_000


def test_a_run_goes_on_from_any_state_and_ends_with_the_same_bytes(slide: Slide, tmp_path: Path) -> None:
    print(f"resumed from {resumed(slide, tmp_path, 60)} states, ends byte-identical")


@pytest.mark.long
def test_a_run_goes_on_from_many_more_states_and_ends_with_the_same_bytes(slide: Slide, tmp_path: Path) -> None:
    print(f"resumed from {resumed(slide, tmp_path, 2000)} states, ends byte-identical")


def test_a_run_killed_after_its_file_was_renamed_leaves_no_journal_for_ever(slide: Slide, tmp_path: Path) -> None:
    recording = made(extraction, slide, tmp_path)
    renamed = next(at for at, one in enumerate(recording.operations, 1) if one.to == TARGET)
    folder = recording.tree_after(renamed).write_to(tmp_path / "killed")
    assert sorted(files_below(folder)) == [TARGET, JOURNAL]
    extract_slide(slide.source, slide.work, folder / CACHE)
    assert sorted(files_below(folder)) == [TARGET]


def examined(slide: Slide, root: Path, draws: int) -> Counter[str]:
    """Builds the states of all scenarios and holds each against what may be true of it; counts what was seen."""
    counts: Counter[str] = Counter()
    for make in SCENARIOS:
        recording = made(make, slide, root)
        promises = promised(slide, recording)
        lost = power_losses(recording, draws, np.random.default_rng(1))
        for state in (*distinct(kills(recording), promises), *distinct(lost, promises)):
            folder = state.tree.write_to(root / f"{make.__name__}-{counts['states']}")
            count = recovered(slide, folder, state, promises)
            counts.update(("states", verdict(slide, recording, folder, state, promises)))
            counts.update(["journals"] * (JOURNAL in state.tree.names) + ["journals with blocks"] * bool(count))
    return counts


def made(make: Callable[[Slide, Path], Recording], slide: Slide, root: Path) -> Recording:
    (root / make.__name__).mkdir()
    return make(slide, root / make.__name__)


def distinct(states: Iterator[State], promises: list[Promise]) -> Iterator[State]:
    """Those with other files, or of which more has to be true, than all before them."""
    seen = set()
    for one in states:
        what = (tuple(sorted(one.tree.files().items())), promises[one.after])
        if what not in seen:
            seen.add(what)
            yield one


def promised(slide: Slide, recording: Recording) -> list[Promise]:
    """What has to be there after each number of operations."""
    done, removed, promises = Promise(0, 0, 0, 0), False, [Promise(0, 0, 0, 0)]
    for count, one in enumerate(recording.operations, 1):
        removed = removed or (one.kind, one.path) == ("unlink", JOURNAL)
        blocks = blocks_in(slide, recording.tree_after(count).files().get(JOURNAL, b""))
        renamed = int(done.renamed or one.to == TARGET)
        synced = int(done.synced or (renamed and one.kind == "sync folder"))
        done = Promise(renamed, synced, *((0, 0) if removed else (blocks, max(0, blocks - UNSYNCED_BLOCKS))))
        promises.append(done)
    return promises


def verdict(slide: Slide, recording: Recording, folder: Path, state: State, promises: list[Promise]) -> str:
    """What a reader finds under the file's name: the new rows, the older ones or nothing; what else would be wrong."""
    try:
        found = read_embeddings(folder / TARGET)
    except FileNotFoundError:
        what = "absent"
    else:
        what = "new" if same(found, slide.whole) else "old" if same(found, older(slide)) else "wrong rows"
        assert find_embeddings(folder / CACHE) == {"s0": folder / TARGET}, state.what
    had_older = TARGET in recording.start.names
    assert what in (("new", "old") if had_older else ("new", "absent")), f"{state.what}: {what}"
    done = promises[state.after].renamed if state.is_kill else promises[state.after].synced
    assert what == "new" or not done, f"{state.what}: {what}, though the write was done"
    return what


def recovered(slide: Slide, folder: Path, state: State, promises: list[Promise]) -> int:
    """How many blocks the journal gives back: only true ones, in order, and none is lost that was safe."""
    count = 0
    if (folder / JOURNAL).exists():
        there = blocks_in(slide, (folder / JOURNAL).read_bytes())
        with claimed(folder / JOURNAL, wait=False) as journal:
            count = journal.begin(slide.head)
            assert list(journal.blocks()) == slide.blocks[:count], state.what
        assert count <= there, state.what
    promise = promises[state.after]
    assert count >= (promise.written if state.is_kill else promise.safe), state.what
    return count


def blocks_in(slide: Slide, data: bytes) -> int:
    """Whole true blocks in the bytes of a journal; found by their bytes, not by the reader that is tested."""
    at = 0
    for count, block in enumerate(slide.blocks):
        start = data.find(block, at)
        if start < 0 or start + len(block) + 16 > len(data):
            return count
        at = start + len(block)
    return len(slide.blocks)


def resumed(slide: Slide, root: Path, most: int) -> int:
    """Runs the extraction again from states drawn from all scenarios, and holds what it ends with against a whole run."""
    rng, count = np.random.default_rng(2), 0
    for make in SCENARIOS:
        recording = made(make, slide, root)
        promises = promised(slide, recording)
        states = [*distinct(kills(recording), promises), *distinct(power_losses(recording, 4, rng), promises)]
        for at in rng.permutation(len(states))[: most // len(SCENARIOS)]:
            folder = states[at].tree.write_to(root / f"resumed-{count}")
            if extract_slide(slide.source, slide.work, folder / CACHE) is not None:
                assert list(files_below(folder)) == [TARGET], states[at].what
            assert (folder / TARGET).read_bytes() == slide.data, states[at].what
            count += 1
    return count


def same(a: Embeddings, b: Embeddings) -> bool:
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    )
