"""Several backbones in one pass over a slide: each file is, byte for byte, that of a run with its backbone alone."""

from __future__ import annotations

import csv
import logging
import pickle
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from pyramids import write_pyramid
from runs import OPTIONS, TILES, ended, extract_slowly, files_below, start, wait_for, write_slides
from stubs import Watched

from pathfm.backbones import BACKBONES, Backbone, LoadedBackbone, register_backbone
from pathfm.cli import main
from pathfm.embed import extract_slide
from pathfm.embed_cohort import embed_slides
from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import (
    BackboneError,
    EmbeddingsBusyError,
    EmbeddingsStaleError,
    InputError,
    SlidesFailedError,
    TileSpecMismatchError,
)
from pathfm.extract import extract, extract_like, plan_extraction, plan_like
from pathfm.joined import joined_recipe
from pathfm.journal import claimed
from pathfm.sources import find_slides
from pathfm.tilereads import TileReads
from pathfm.tiles import TileSpec
from pathfm.underway import journal_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.work import ExtractWork

SLIDES = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 12 tiles and a small network with random weights."""
    folder = tmp_path_factory.mktemp("several")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(model, folder / "tiny", safe_serialization=True)
    write_slides(folder / "slides", SLIDES)
    return folder


@pytest.fixture(scope="module")
def tiny(root: Path) -> str:
    return f"local-dir:{root / 'tiny'}"


@pytest.fixture(scope="module")
def alone(root: Path, tiny: str) -> dict[str, bytes]:
    """What runs with one backbone each write, a batch a tile, as `work` has it."""
    for name in ("colour", tiny):
        embed_slides(sources(root), work(name), root / "alone")
    found = files_below(root / "alone")
    assert len(found) == 2 * SLIDES
    return found


@pytest.fixture
def _log_everything() -> Iterator[None]:
    logger = logging.getLogger("pathfm")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


def sources(root: Path) -> Any:
    return find_slides([root / "slides"])


def work(backbone: str, batch_size: int = 1) -> ExtractWork:
    return plan_extraction(backbone, TILES, device="cpu", batch_size=batch_size, workers=1)


def tiles_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the first row of every batch that is given out."""
    starts: list[int] = []
    following = TileReads.__next__

    def noted(reads: TileReads) -> Any:
        batch = following(reads)
        starts.append(batch.start)
        return batch

    monkeypatch.setattr(TileReads, "__next__", noted)
    return starts


def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of the backbone of every forward pass."""
    names: list[str] = []
    submit = LoadedBackbone.submit

    def noted(backbone: LoadedBackbone, tiles: Any) -> Any:
        names.append(backbone.row.name)
        return submit(backbone, tiles)

    monkeypatch.setattr(LoadedBackbone, "submit", noted)
    return names


def test_one_pass_writes_the_bytes_of_two_and_reads_each_tile_once(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, names = tiles_read(monkeypatch), embedded(monkeypatch)
    result = embed_slides(sources(root), work(f"colour, {tiny}"), tmp_path)
    assert files_below(tmp_path) == alone
    assert starts == [*range(12), *range(12)]
    assert sorted(names) == 24 * ["colour"] + 24 * ["local-dir:tiny"]
    assert [folder.name.partition("-")[0] for folder in result.folders] == ["colour", "local"]
    assert result.done == ("s0", "s1")
    again = embed_slides(sources(root), work(f"{tiny},colour"), tmp_path)
    assert again.folders == result.folders[::-1]
    assert (again.done, again.skipped) == ((), ("s0", "s1"))


def test_a_backbone_that_is_added_later_leaves_the_files_of_the_other_alone(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed_slides(sources(root), work("colour"), tmp_path)
    times = [path.stat().st_mtime_ns for path in sorted(first.folders[0].iterdir())]
    names = embedded(monkeypatch)
    result = embed_slides(sources(root), work(f"colour,{tiny}"), tmp_path)
    assert result.done == ("s0", "s1")  # for a file of each was written
    assert set(names) == {"local-dir:tiny"}
    assert [path.stat().st_mtime_ns for path in sorted(first.folders[0].iterdir())] == times
    assert files_below(tmp_path) == alone


@pytest.mark.usefixtures("_log_everything")
def test_each_journal_goes_on_where_it_was_and_reading_begins_at_the_earlier_one(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    both, source = work(f"colour,{tiny}"), sources(root)[0]
    for name, blocks in (("colour", 7), (tiny, 3)):
        stopped_after(work(name), source, tmp_path, blocks, monkeypatch)
    starts, names = tiles_read(monkeypatch), embedded(monkeypatch)
    extract_slide(source, both, tmp_path)
    assert starts == list(range(3, 12))
    assert (names.count("colour"), names.count("local-dir:tiny")) == (5, 9)
    assert files_below(tmp_path) == {name: data for name, data in alone.items() if name.endswith("s0.h5")}
    assert "s0: goes on after tile 7 of 12 by colour" in caplog.text
    assert "s0: goes on after tile 3 of 12 by local-dir:tiny" in caplog.text


def test_where_one_file_is_whole_and_the_other_journal_is_not_only_the_rest_is_read(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, source = work(f"colour,{tiny}"), sources(root)[0]
    extract_slide(source, work("colour"), tmp_path)
    stopped_after(work(tiny), source, tmp_path, 7, monkeypatch)
    starts, names = tiles_read(monkeypatch), embedded(monkeypatch)
    extract_slide(source, both, tmp_path)
    assert (starts, names) == (list(range(7, 12)), 5 * ["local-dir:tiny"])
    assert files_below(tmp_path) == {name: data for name, data in alone.items() if name.endswith("s0.h5")}


def stopped_after(one: ExtractWork, source: Any, out: Path, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extracts a slide until so many blocks are in its journal."""
    count, submit = 0, LoadedBackbone.submit

    def stopping(backbone: LoadedBackbone, tiles: Any) -> Any:
        nonlocal count
        count += 1
        if count > blocks:
            raise KeyboardInterrupt
        return submit(backbone, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedBackbone, "submit", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract_slide(source, one, out)
    assert journal_of(one.files(out, source.slide_id)[0]).exists()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_that_is_killed_in_the_middle_ends_with_the_same_bytes(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    out, rng = tmp_path / "out", np.random.default_rng(0)
    for number in range(kills):
        process = start(tmp_path / f"said-{number}", extract_slowly, root / "slides", out, 0.05, f"colour,{tiny}")
        grown = sum(part.stat().st_size for part in out.rglob("*.part")) + 2000 + int(rng.integers(3000))
        assert wait_for(lambda: sum(sizes(out, "*.part")) > grown or not process.is_alive())  # noqa: B023
        process.kill()
        ended(process)
    assert ended(start(tmp_path / "said", extract_slowly, root / "slides", out, 0.0, f"colour,{tiny}")) == 0
    assert files_below(out, "*.h5") == alone
    assert not list(out.rglob("*.part"))
    said = [path.read_text() for path in tmp_path.glob("said*")]
    print(f"{kills} kills, {sum(': goes on after tile ' in text for text in said)} runs went on inside a slide")


def failures(out: Path) -> list[tuple[str, str]]:
    with (out / "failures.csv").open(newline="") as file:
        return [(row["slide_id"], row["reason"]) for row in csv.DictReader(file)]


def sizes(out: Path, pattern: str) -> list[int]:
    found = []
    for path in out.rglob(pattern):
        try:
            found.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return found


def test_two_runs_at_a_time_both_end_though_the_order_of_their_backbones_is_opposite(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    names = [f"colour,{tiny}", f"{tiny},colour"]
    runs = [
        start(tmp_path / f"said-{at}", extract_slowly, root / "slides", out, 0.02, name)
        for at, name in enumerate(names)
    ]
    assert [ended(process) for process in runs] == [0, 0]
    assert files_below(out, "*.h5") == alone
    assert not list(out.rglob("*.part"))
    assert failures(out) == []


@pytest.mark.usefixtures("_log_everything")
def test_a_file_that_another_process_is_writing_is_left_to_it_while_the_others_go_on(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Run by a thread that waits where it must, while this one holds the journal of one file."""
    both, source = work(f"colour,{tiny}"), sources(root)[0]
    colour, other = both.files(tmp_path, "s0")
    with claimed(journal_of(colour), wait=False):
        with pytest.raises(EmbeddingsBusyError):
            extract_slide(source, both, tmp_path, wait=False)
        assert other.exists()  # before it gave up on the rest
        other.unlink()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(embed_slides([source], both, tmp_path)), daemon=True)
        thread.start()
        assert wait_for(lambda: "s0: another process is writing it; waiting" in caplog.text)
        assert other.exists()
        assert not colour.exists()
    thread.join(60)
    assert results[0].done == ("s0",)
    assert results[0].skipped == ()
    assert "s0: done by local-dir:tiny, 12 tiles" in caplog.text
    assert "s0: done by colour, 12 tiles" in caplog.text
    assert files_below(tmp_path) == {name: data for name, data in alone.items() if name.endswith("s0.h5")}


def test_a_slide_that_fails_is_listed_once_and_a_slide_without_tissue_has_two_empty_files(
    root: Path, tiny: str, tmp_path: Path
) -> None:
    folder = write_slides(tmp_path / "slides")
    (folder / "broken.tiff").write_bytes(b"no slide")
    write_pyramid(folder / "glass.tiff", np.full((512, 512, 3), 240, np.uint8), mpp=0.5, levels=(8,))
    with pytest.raises(SlidesFailedError):
        extract([folder], tmp_path / "out", f"colour,{tiny}", TILES, device="cpu", workers=1)
    assert failures(tmp_path / "out") == [("broken", "unsupported"), ("glass", "no tissue")]
    assert len(list((tmp_path / "out").glob("*/glass.h5"))) == 2


def test_a_slide_that_was_replaced_has_both_of_its_files_set_aside_or_made_again(
    root: Path, tiny: str, tmp_path: Path
) -> None:
    folder, both = write_slides(tmp_path / "slides"), work(f"colour,{tiny}")
    result = embed_slides(find_slides([folder]), both, tmp_path / "out")
    (folder / "s0.tiff").write_bytes((root / "slides" / "s1.tiff").read_bytes())
    assert embed_slides(find_slides([folder]), both, tmp_path / "out").done == ("s0",)
    (folder / "s0.tiff").write_bytes(b"no slide")
    assert len(embed_slides(find_slides([folder]), both, tmp_path / "out").failed) == 1
    assert [[path.name for path in one.iterdir()] for one in result.folders] == [["s0.h5.stale"]] * 2


def test_tiles_that_cannot_be_read_for_a_backbone_that_is_added_leave_the_whole_file_of_the_other(
    root: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_slides(tmp_path / "slides")
    colour, other = embed_slides(find_slides([folder]), work(f"colour,{tiny}"), tmp_path / "out").folders
    facts = read_embeddings(other / "s0.h5")
    write_embeddings(other / "s0.h5", replace(facts, slide_digest="sha256:" + 64 * "0"))  # so that it is made again
    following = TileReads.__next__

    def broken(reads: TileReads) -> Any:
        batch = following(reads)
        return replace(batch, pixels=batch.pixels[:0], failed=np.ones_like(batch.failed))

    monkeypatch.setattr(TileReads, "__next__", broken)
    result = embed_slides(find_slides([folder]), work(f"colour,{tiny}"), tmp_path / "out")
    assert [failure.reason for failure in result.failed] == ["corrupt tile"]
    assert (colour / "s0.h5").exists()
    assert (other / "s0.h5.stale").exists()
    assert not (other / "s0.h5").exists()


def test_embeddings_that_come_late_go_to_the_journal_of_their_backbone(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a batch is computed by one network while it is given to the next."""
    submit = LoadedBackbone.submit

    class Late:
        def __init__(self, pending: Any) -> None:
            self.result = pending.result

        def done(self) -> bool:
            return False

    monkeypatch.setattr(LoadedBackbone, "submit", lambda backbone, tiles: Late(submit(backbone, tiles.clone())))
    embed_slides(sources(root), work(f"colour,{tiny}"), tmp_path)
    assert files_below(tmp_path) == alone


class Spoilt(torch.nn.Module):
    """Gives no numbers from its third batch on."""

    dim, count = 3, 0

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        Spoilt.count += 1
        return torch.full((len(tiles), self.dim), torch.nan if Spoilt.count > 2 else 1.0)


def test_a_backbone_that_gives_no_numbers_ends_the_run_and_what_the_other_gave_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_backbone(Backbone(name="spoilt", source="python:test_several:Spoilt", library="python", dim=3))
    try:
        both, source = work("colour,spoilt"), sources(root)[0]
        with pytest.raises(BackboneError, match="backbone spoilt gave embeddings that are not finite"):
            embed_slides([source], both, tmp_path)
        starts = tiles_read(monkeypatch)
        extract_slide(source, work("colour"), tmp_path)
        assert starts == list(range(3, 12))
    finally:
        del BACKBONES["spoilt"]


@pytest.mark.long
def test_several_devices_each_have_all_backbones_and_write_the_same(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    name = f"colour,{tiny}"
    result = extract([root / "slides"], tmp_path, name, TILES, device="cpu,cpu", batch_size=1, workers=2)
    assert files_below(tmp_path, "*.h5") == alone
    assert [folder.name.partition("-")[0] for folder in result.folders] == ["colour", "local"]


def test_backbones_of_different_tiles_are_refused_before_anything_is_loaded(root: Path, tiny: str) -> None:
    with pytest.raises(InputError, match=r"uni 256 px @ 0\.5 mpp, local-dir:tiny 160 px @ 0\.5 mpp.*--tiles\.size_px"):
        plan_extraction(f"uni,{tiny}", device="cpu")
    with pytest.raises(TileSpecMismatchError, match="backbone uni was made for"):
        plan_extraction("colour,uni", TileSpec(64, 1.0), device="cpu")


def test_a_backbone_that_takes_any_tile_takes_that_of_the_other(tiny: str) -> None:
    for name in (f"colour,{tiny}", f"{tiny},colour"):
        assert plan_extraction(name, device="cpu").reading.tiles.size_px == 160


def test_a_backbone_twice_is_refused_under_whatever_names(root: Path, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(root / "tiny")
    for name in ("colour,colour", f"{tiny},local-dir:{tmp_path / 'tiny'}"):
        with pytest.raises(InputError, match="is one backbone twice"):
            plan_extraction(name, TILES, device="cpu")


def test_a_folder_with_commas_in_its_name_is_one_backbone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a, b").symlink_to(root / "tiny")
    assert len(plan_extraction(f"local-dir:{tmp_path / 'a, b'}", TILES, device="cpu").parts) == 1


def test_slides_can_be_embedded_as_a_joined_recipe_says_in_its_order(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [work(name).parts[0].recipe for name in (tiny, "colour")]
    recipe = joined_recipe(recipes)
    with pytest.raises(InputError, match=r"local-dir:tiny and colour; pass --backbone local-dir:/folder,colour"):
        plan_like(recipe, device="cpu")
    with pytest.raises(InputError, match="pass --backbone local-dir:/folder,colour"):
        plan_like(recipe, device="cpu", backbone="colour")
    swapped = plan_like(recipe, device="cpu", backbone=f"colour,{tiny}")
    assert swapped == plan_like(recipe, device="cpu", backbone=f"{tiny},colour")
    assert [part.name for part in swapped.parts] == [tiny, "colour"]
    order = r"the recipe says: .*pass --backbone in the order local-dir:tiny,colour, or install the same weights"
    with pytest.raises(EmbeddingsStaleError, match=order):
        plan_like(
            recipe | {"joined": [recipes[0] | {"reader": {}}, recipes[1]]}, device="cpu", backbone=f"{tiny},colour"
        )
    starts = tiles_read(monkeypatch)
    result = extract_like(recipe, [root / "slides"], tmp_path, device="cpu", backbone=f"{tiny},colour")
    assert starts == [0, 0]  # a batch of 32 a slide
    assert [folder.name for folder in result.folders] == [
        next(iter(folder_names(alone, name))) for name in ("local", "colour")
    ]
    for odd in ([], 5, [recipes[0], "colour"], [recipe]):
        with pytest.raises(InputError, match="none that pathfm wrote"):
            plan_like(recipe | {"joined": odd}, device="cpu")


def folder_names(files: dict[str, bytes], prefix: str) -> set[str]:
    return {name.partition("/")[0] for name in files if name.startswith(prefix)}


def test_the_work_of_several_is_picklable_and_the_command_line_takes_them(
    root: Path, tiny: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    both = work(f"colour,{tiny}")
    assert pickle.loads(pickle.dumps(both)) == both
    command = ["extract", "--slides", str(root / "slides"), "--out", str(tmp_path), "--batch_size", "1", *OPTIONS]
    assert main([*command, "--backbone", f"colour,{tiny}"]) == 0
    assert files_below(tmp_path, "*.h5") == alone


def test_a_slide_is_read_by_no_more_calls_than_it_has_tiles(root: Path, tiny: str, tmp_path: Path) -> None:
    source, notes = sources(root)[0], tmp_path / "notes"
    watched = Watched(source.slide_id, source.path, notes=notes)
    one = work(f"colour,{tiny}", batch_size=4)
    reading = replace(one.reading, reader="openslide")
    extract_slide(watched, replace(one, reading=reading), tmp_path / "out")
    assert notes.read_text().count("t") == 12
