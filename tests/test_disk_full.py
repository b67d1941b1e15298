"""A disk that fills up: one clear line, nothing complete that is wrong, and the same command ends what it began."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from crashes import recorded
from runs import OPTIONS, files_below, small_work, write_slides

from pathfm.cli import main
from pathfm.embed import extract_slide
from pathfm.errors import DiskFullError
from pathfm.files import write_atomically
from pathfm.sources import find_slides
from pathfm.underway import journal_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES = 300
"""The system takes no more at a time, so that a small file is many writes."""
DISK_BYTES, PAGE_BYTES = 1 << 20, 4096
LEVELS = range(20)
"""Pages of free space; a whole run needs a few more."""
MANY_TILES = ("--tiles.size_px", "32", "--tiles.mpp", "0.5", "--device", "cpu", "--workers", "1", "--batch_size", "8")


class Ending(NamedTuple):
    """How a run on a disk of a given free space ended."""

    pages: int
    code: int
    said: str
    early: dict[str, bytes]
    completed: dict[str, bytes]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"))


def test_a_disk_that_fills_up_at_any_operation_costs_nothing_but_time(slides: Path, tmp_path: Path) -> None:
    """Half of a write is taken, then nothing more, at each operation in turn."""
    source, work = find_slides([slides])[0], small_work(batch_size=2)
    with recorded(tmp_path, MOST_BYTES) as recording:
        extract_slide(source, work, tmp_path / "whole")
    (target,) = work.files(Path("whole"), "s0")
    whole = (tmp_path / target).read_bytes()
    for at in range(len(recording.operations)):
        root = tmp_path / f"full-{at}"
        root.mkdir()
        with (
            pytest.raises(DiskFullError, match=r"free some and run the same command again"),
            recorded(root, MOST_BYTES, full_from=at),
        ):
            extract_slide(source, work, root / "whole")
        left = files_below(root)
        assert left.pop(str(target), whole) == whole
        assert left.keys() <= {str(journal_of(target))}
        extract_slide(source, work, root / "whole")
        assert (root / target).read_bytes() == whole
    print(f"disk full at each of {len(recording.operations)} operations; each run completed afterwards, byte-identical")


def test_a_disk_that_fills_up_is_one_line_of_the_command(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--slides", str(slides), *OPTIONS, "--out"]
    with recorded(tmp_path, but=".log") as recording:
        assert main([*command, str(tmp_path / "whole")]) == 0
    whole = files_below(tmp_path / "whole", "*.h5")
    for at in range(0, len(recording.operations), 4):
        root = tmp_path / f"full-{at}"
        root.mkdir()
        capsys.readouterr()
        with recorded(root, full_from=at, but=".log"):
            assert main([*command, str(root / "whole")]) == 2
        assert_one_line(capsys.readouterr().err)
        assert main([*command, str(root / "whole")]) == 0
        assert files_below(root / "whole", "*.h5") == whole


def test_a_full_disk_is_named_also_where_not_even_a_folder_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"new/a"), recorded(tmp_path, full_from=0):
        write_atomically(tmp_path / "new" / "a", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ending]]:
    """Runs on a real file system of a given free space; each run again with more, which has to complete it."""
    folder = tmp_path_factory.mktemp("disk")
    slides = write_slides(folder / "slides", size=640)
    assert run(slides, folder / "whole")[0] == 0
    with small_disk(folder / "disk") as disk:
        found = [ending(slides, disk, pages) for pages in LEVELS]
    whole = files_below(folder / "whole", "*.h5")
    for one in found:
        assert one.completed == whole, f"{one.pages} pages were free"
        assert one.early.items() <= whole.items(), f"{one.pages} pages were free"
    return found


def test_a_disk_of_any_size_costs_nothing_but_time(endings: list[Ending]) -> None:
    assert [one.code for one in endings] == [2] * len(LEVELS)
    for one in endings:
        assert one.said.splitlines()[-1].startswith("pathfm: no space left to write ")
    where = Counter(
        one.said.rpartition("no space left to write ")[2].partition(";")[0].rpartition("/")[2] for one in endings
    )
    print(
        f"disk full at {len(LEVELS)} levels while writing {dict(where)}; each run completed afterwards, byte-identical"
    )
    assert {"pathfm-extract.yaml", "s0.part", "s0.h5"} <= set(where)


def test_a_disk_of_any_size_is_one_line(endings: list[Ending]) -> None:
    for one in endings:
        assert_one_line(one.said)


def ending(slides: Path, disk: Path, pages: int) -> Ending:
    """A run with so many pages of 4 KiB free, and another one when the disk has room."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(filler, 0, DISK_BYTES - pages * PAGE_BYTES)
    os.close(filler)
    code, said = run(slides, disk / "out")
    early = files_below(disk / "out", "*.h5")
    (disk / "filler").unlink()
    assert run(slides, disk / "out")[0] == 0
    return Ending(pages, code, said, early, files_below(disk / "out", "*.h5"))


def run(slides: Path, out: Path) -> tuple[int, str]:
    """Exit code and stderr of an extraction."""
    with redirect_stderr(io.StringIO()) as said:
        code = main(["extract", "--slides", str(slides), "--out", str(out), *MANY_TILES])
    return code, said.getvalue()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        os.geteuid()
        or not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]).returncode
    ):
        pytest.skip("a file system of a given size needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def assert_one_line(said: str) -> None:
    """Whether stderr is the lines of the log and then the one error."""
    *log, last = said.splitlines()
    assert last.startswith("pathfm: no space left to write ")
    assert all(line.startswith(("extract: ", "s0: ")) for line in log), said
