"""Slides as an extraction reads them: surveyed and cut into batches by other processes."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pyramids import spoil_tile, waves, write_pyramid
from runs import wait_for
from stubs import Stub, Watched

from pathfm.errors import SlideError
from pathfm.isolation import Limits, isolated
from pathfm.reading import Reading, has_changed, identify, survey
from pathfm.slide import open_slide
from pathfm.slidefiles import slide_digest
from pathfm.sources import SlideSource
from pathfm.tilereads import TileReads
from pathfm.tiles import Tiles, TileSpec
from pathfm.tissue import TissueSpec

LIMITS = Limits(memory_gib=1.0)
SPEC = TileSpec(64, 0.5, 64, 0.0)
HOW = Reading(SPEC, TissueSpec(), None, "sha256", 0.005, 2, LIMITS)


def grid(side: int = 8, coords: list[list[int]] | None = None) -> Tiles:
    places = [[64 * x, 64 * y] for y in range(side) for x in range(side)] if coords is None else coords
    xy = np.array(places, np.int32).reshape(-1, 2)
    return Tiles(xy, np.ones(len(xy), np.float32), 64, 0.5, 64, 64.0)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> SlideSource:
    """512 x 512 pixels in tiles of 64, two of which cannot be decoded."""
    path = tmp_path_factory.mktemp("spoilt") / "spoilt.tiff"
    write_pyramid(path, waves(512, 512, 0.5), 0.5, compression="jpeg")
    for index in (5, 37):
        spoil_tile(path, index)
    return SlideSource("spoilt", path)


@pytest.fixture
def whole(tmp_path: Path) -> SlideSource:
    return SlideSource("whole", write_pyramid(tmp_path / "whole.tiff", waves(512, 512, 0.5), 0.5, (16,)))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_batches_hold_the_tiles_in_order_and_name_those_that_failed(
    spoilt: SlideSource, workers: int, batch_size: int
) -> None:
    tiles = grid()
    batches = list(TileReads(spoilt, tiles, batch_size, workers, LIMITS))
    assert [b.start for b in batches] == list(range(0, 64, batch_size))
    assert [b.stop for b in batches] == [min(start + batch_size, 64) for start in range(0, 64, batch_size)]
    assert all(len(b.failed) == b.stop - b.start == len(b.pixels) + b.failed.sum() for b in batches)
    failed = np.concatenate([b.failed for b in batches])
    pixels = np.concatenate([b.pixels for b in batches])
    assert np.flatnonzero(failed).tolist() == [5, 37]
    assert pixels.dtype == np.uint8
    with open_slide(spoilt.path) as slide:
        for (x, y), tile in zip(tiles.coords[~failed].tolist(), pixels, strict=True):
            assert np.array_equal(tile, slide.read_tile(x, y, 64, 0.5))


def test_a_start_in_the_middle_gives_the_batches_from_there_on(spoilt: SlideSource) -> None:
    every = list(TileReads(spoilt, grid(), 10, 2, LIMITS))
    late = list(TileReads(spoilt, grid(), 10, 2, LIMITS, first_row=30))
    assert [b.start for b in late] == [30, 40, 50, 60]
    for one, other in zip(every[3:], late, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.failed, other.failed)
    assert list(TileReads(spoilt, grid(), 10, 2, LIMITS, first_row=70)) == []


def test_a_batch_of_nothing_but_failures_is_empty(spoilt: SlideSource) -> None:
    (batch,) = TileReads(spoilt, grid(coords=[[320, 0]]), 32, 2, LIMITS)
    assert batch.pixels.shape == (0, 64, 64, 3)
    assert batch.failed.tolist() == [True]


def test_no_coords_give_no_batch(spoilt: SlideSource) -> None:
    assert list(TileReads(spoilt, grid(coords=[]), 32, 2, LIMITS)) == []


def test_reading_looks_ahead_only_so_far_and_opens_the_slide_once_a_process(whole: SlideSource, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    source = Watched(whole.slide_id, whole.path, notes=notes)
    batches = TileReads(source, grid(coords=[[0, 0]] * 10_000), 10, 2, LIMITS)
    next(batches)
    next(batches)
    batches.close()
    next(TileReads(whole, grid(), 64, 2, LIMITS))  # those that had begun are done
    said = notes.read_text()
    assert 20 <= said.count("t") <= 20 + 2 * 10
    assert 1 <= said.count("o") <= 2


def test_tiles_that_are_not_wanted_any_more_are_not_read(whole: SlideSource, tmp_path: Path) -> None:
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    source = Watched(whole.slide_id, whole.path, notes=notes, gate=gate)
    batches = TileReads(source, grid(), 4, 2, LIMITS)  # eight are ahead, in calls of two tiles
    assert wait_for(lambda: notes.exists() and notes.read_text().count("t") == 2)  # each process is held at its first
    batches.close()
    gate.touch()
    next(TileReads(whole, grid(), 64, 2, LIMITS))
    assert notes.read_text().count("t") == 4  # the calls that had begun


def test_a_batch_keeps_its_pixels_as_long_as_it_is_held_and_its_memory_is_used_again_after_that(
    whole: SlideSource,
) -> None:
    held = [(batch, batch.pixels.copy()) for batch in TileReads(whole, grid(), 5, 2, LIMITS)]
    assert all(np.array_equal(batch.pixels, copy) for batch, copy in held)
    places = {batch.pixels.__array_interface__["data"][0] for batch, _ in held}
    assert len(places) == len(held) == 13
    del held
    again = [batch.pixels.__array_interface__["data"][0] for batch in TileReads(whole, grid(), 5, 2, LIMITS)]
    assert set(again) <= places
    assert len(set(again)) <= 4  # one with us, one just given back, two ahead


def test_a_batch_knows_the_sums_of_its_colours(spoilt: SlideSource) -> None:
    for batch in TileReads(spoilt, grid(), 10, 2, LIMITS):
        assert batch.rgb_sums.tolist() == batch.pixels.sum(axis=(0, 1, 2), dtype=np.int64).tolist()
        assert batch.n_pixels == batch.pixels.size // 3


def test_slides_that_are_read_side_by_side_are_each_opened_once_a_process(whole: SlideSource, tmp_path: Path) -> None:
    one = Watched("one", whole.path, notes=tmp_path / "one")
    two = Watched("two", whole.path, notes=tmp_path / "two")
    for _ in zip(TileReads(one, grid(), 4, 2, LIMITS), TileReads(two, grid(), 4, 2, LIMITS), strict=True):
        pass
    assert all(source.notes.read_text().count("o") <= 2 for source in (one, two))


def test_batches_that_are_larger_than_a_reader_may_map_are_refused_and_large_ones_are_not(whole: SlideSource) -> None:
    wide = Tiles(np.zeros((6, 2), np.int32), np.ones(6, np.float32), 4096, 0.5, 4096, 4096.0)
    for batch_size, well in (
        (6, True),
        (30, False),
    ):  # 0.3 and 1.5 GB, of which the slide fills a little; 1 GiB is allowed
        batches = TileReads(whole, wide, batch_size, 2, LIMITS)
        if well:
            assert len(next(batches).pixels) == 6
        else:
            with pytest.raises(SlideError) as caught:
                next(batches)
            assert caught.value.reason == "memory"


def test_each_tile_has_the_deadline_to_itself(whole: SlideSource, tmp_path: Path) -> None:
    slow = Watched("slow", whole.path, notes=tmp_path / "notes", tile_s=0.5)
    (batch,) = TileReads(slow, grid(coords=[[0, 0]] * 8), 8, 1, replace(LIMITS, deadline_s=3.0))  # 4 s in one call
    assert len(batch.pixels) == 8


def test_a_slide_that_was_replaced_is_opened_again(whole: SlideSource) -> None:
    first = next(TileReads(whole, grid(), 64, 1, LIMITS))
    write_pyramid(whole.path, 255 - waves(512, 512, 0.5), 0.5, (16,))
    second = next(TileReads(whole, grid(), 64, 1, LIMITS))
    assert np.array_equal(second.pixels, 255 - first.pixels)


@pytest.mark.parametrize(("deed", "reason"), [("hangs", "timeout"), ("segfaults", "crash"), ("eats", "memory")])
def test_a_tile_that_takes_its_reader_along_ends_the_slide_after_the_batches_before_it(
    whole: SlideSource, deed: str, reason: str
) -> None:
    stub = Stub(whole.slide_id, whole.path, deed=deed)
    batches = TileReads(stub, grid(), 6, 2, replace(LIMITS, deadline_s=3.0))  # the stub's tile is number 36
    assert [next(batches).start for _ in range(6)] == [0, 6, 12, 18, 24, 30]
    with pytest.raises(SlideError) as caught:
        next(batches)
    assert caught.value.reason == reason
    after = np.concatenate([batch.pixels for batch in TileReads(whole, grid(), 6, 2, LIMITS)])
    assert len(after) == 64


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_slide_of_nothing_but_hanging_tiles_costs_the_next_one_little(whole: SlideSource, tmp_path: Path) -> None:
    slow = Watched("slow", whole.path, notes=tmp_path / "notes", tile_s=60)
    reads = TileReads(slow, grid(), 64, 1, replace(LIMITS, deadline_s=1.0))
    with pytest.raises(SlideError):
        next(reads)
    started_s = time.monotonic()
    assert len(next(TileReads(whole, grid(), 64, 1, LIMITS)).pixels) == 64
    assert time.monotonic() - started_s < 30  # a deadline for each of the others would be a minute


def test_readers_that_two_threads_are_the_first_to_want_are_the_same_ones(whole: SlideSource, tmp_path: Path) -> None:
    other = SlideSource("other", write_pyramid(tmp_path / "other.tiff", 255 - waves(512, 512, 0.5), 0.5, (16,)))
    with open_slide(whole.path) as slide:
        tiles = np.stack([slide.read_tile(x, y, 64, 0.5) for x, y in grid().coords.tolist()])
    for number in range(5):
        limits = replace(LIMITS, memory_gib=1.25 + number / 1024)  # which nobody had yet
        start = threading.Barrier(2)

        def read(source: SlideSource, limits: Limits = limits, start: threading.Barrier = start) -> Any:
            start.wait()
            return np.concatenate([batch.pixels.copy() for batch in TileReads(source, grid(), 16, 1, limits)])

        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(read, (whole, other))
        assert np.array_equal(one, tiles)
        assert np.array_equal(two, 255 - tiles)


def test_a_reader_with_nothing_to_do_closes_its_slides(whole: SlideSource) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc says which files a process has open")
    limits = replace(LIMITS, memory_gib=1.5)
    for _ in TileReads(whole, grid(), 64, 1, limits):
        pass
    pid = isolated(whole.path, limits, 1, os.getpid).result()

    def is_open() -> bool:
        files = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        return str(whole.path) in files

    assert is_open()
    assert wait_for(lambda: not is_open(), 30)


@pytest.mark.parametrize(("change", "reason"), [(_remove, "unreadable"), (_cut, "truncated")])
def test_a_slide_that_goes_while_it_is_read_has_not_just_bad_tiles(
    spoilt: SlideSource, tmp_path: Path, change: object, reason: str
) -> None:
    source = SlideSource("going", tmp_path / "going.tiff")
    source.path.write_bytes(spoilt.path.read_bytes())
    batches = TileReads(source, grid(coords=[[0, 0]] * 50 + [[320, 0]] * 50), 1, 1, LIMITS)
    next(batches)
    change(source.path)  # type: ignore[operator]
    with pytest.raises(SlideError) as caught:
        list(batches)
    assert caught.value.reason == reason


def test_a_survey_knows_the_slide_its_tissue_and_its_grid(whole: SlideSource) -> None:
    seen = survey(whole, HOW)
    with open_slide(whole.path) as slide:
        assert (seen.size_px0, seen.mpp, seen.mpp_source) == (slide.size_px0, slide.mpp, "metadata")
    assert seen.digest == slide_digest(whole.path)
    assert np.array_equal(seen.tiles.coords, grid().coords)
    assert identify(whole, HOW) == {
        "slide_id": "whole",
        "slide_digest": seen.digest,
        "mpp": seen.mpp,
        "mpp_source": "metadata",
    }
    assert not has_changed(whole, seen.digest, 2, LIMITS)
    write_pyramid(whole.path, 255 - waves(512, 512, 0.5), 0.5)
    assert has_changed(whole, seen.digest, 2, LIMITS)


def test_what_a_survey_warns_of_is_logged_once(spoilt: SlideSource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pathfm")
    survey(spoilt, HOW)
    assert caplog.text.count("blocks of the overview are left white") == 1


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("hangs", "timeout"),
        ("aborts", "crash"),
        ("oom", "memory"),
        ("eats_in_opencv", "memory"),
        ("eio", "unreadable"),
        ("eacces", "permission"),
    ],
)
def test_a_slide_that_fails_when_it_is_opened_has_a_typed_reason_and_the_next_is_well(
    whole: SlideSource, deed: str, reason: str
) -> None:
    stub = Stub(whole.slide_id, whole.path, deed=deed, at_px0=None)
    with pytest.raises(SlideError) as caught:
        survey(stub, replace(HOW, limits=replace(LIMITS, deadline_s=0.05)))  # a survey may take 20 times as long
    assert caught.value.reason == reason
    assert survey(whole, HOW).tiles


def test_a_small_file_that_unpacks_to_more_than_the_limit_is_refused_and_costs_this_process_nothing(
    tmp_path: Path,
) -> None:
    side = 1 << 14
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(3 * side << 6)) for _ in range(side >> 6)) + packer.flush()
    path = tmp_path / "bomb.tiff"
    with tifffile.TiffWriter(path) as file:
        scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "metadata": None}
        shape = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (side, side), "photometric": "rgb"}
        file.write(iter([packed]), compression="zlib", **shape, **scale)
    assert path.stat().st_size < 5_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SlideError) as caught:
        survey(SlideSource("bomb", path), HOW)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit_bytes < 50 << 20
    assert caught.value.reason == "memory"
