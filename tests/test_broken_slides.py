"""Broken slides among good ones, read by the real command: what it says of each, and that the others are none the worse.

What cannot be seen without an earlier digest is stated in
`test_random_bytes_that_decode_are_seen_by_a_digest_alone`.
"""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from drawn import make_study
from pyramids import write_pyramid
from runs import alive, descendants, wait_for
from stubs import TESTS, UNPRIVILEGED, Stub, find_stubbed

from pathfm.cli import main
from pathfm.doctor import doctor
from pathfm.embeddings import read_embeddings
from pathfm.errors import EmbeddingsDamagedError, SlideError
from pathfm.extract import extract_slides, plan_extraction
from pathfm.isolation import Limits
from pathfm.reading import Reading, survey
from pathfm.sources import SlideSource, find_slides
from pathfm.tilereads import TileReads
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec
from pathfm.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pathfm.embed import ExtractWork

OPTIONS = ("--tiles.size_px", "64", "--tiles.mpp", "0.5", "--device", "cpu", "--workers", "2", "--batch_size", "8")
A_TILE, THREE_TILES = (27,), (27, 28, 35)  # of the 36 with tissue


def write_slide(
    path: Path, seed: int, compression: str = "zlib", mpp: float | None = 0.5, tissue: int = 384, size: int = 512
) -> Path:
    """A square of noisy eosin in the middle of glass; 8 x 8 tiles of the file where it has the least size."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(236, 244, (size, size, 3), dtype=np.uint8)
    inside = slice((size - tissue) // 2, (size + tissue) // 2)
    pixels[inside, inside] = np.array([205, 110, 170]) + rng.integers(-20, 20, (tissue, tissue, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_pyramid(path, pixels, mpp, (8,), 20 if path.suffix == ".svs" else None, compression)


def truncate(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share) - 1)


def overwrite(tiles: Iterable[int], fill: Callable[[int], bytes]) -> Callable[[Path], None]:
    """Puts other bytes in the place of the compressed bytes of tiles of level 0."""

    def change(path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            places = [(file.pages[0].dataoffsets[i], file.pages[0].databytecounts[i]) for i in tiles]
        with path.open("r+b") as file:
            for offset, count in places:
                file.seek(offset)
                file.write(fill(count))

    return change


def stay(_: Path) -> None:
    """A stub does it."""


MUTATIONS: list[tuple[str, Callable[[Path], None], str]] = [
    *((f"truncated-{i}", truncate(share), "truncated") for i, share in enumerate((0.1, 0.5, 0.9, 1.0))),
    *((f"zeroed-{i}", overwrite(THREE_TILES, bytes), "corrupt tile") for i in range(4)),
    *((f"random-{i}", overwrite(THREE_TILES, random.Random(i).randbytes), "corrupt tile") for i in range(4)),
    *((f"empty-{i}", lambda path: os.truncate(path, 0), "empty file") for i in range(2)),
    *((f"locked-{i}", lambda path: path.chmod(0), "permission") for i in range(2)),
    *((f"hangs-{i}", stay, "timeout") for i in range(2)),
    *((f"segfaults-{i}", stay, "crash") for i in range(2)),
]


def test_twenty_broken_slides_of_a_hundred_are_named_and_the_eighty_are_those_of_a_clean_run(tmp_path: Path) -> None:
    names = [f"good-{i:02}" for i in range(80)] + [name for name, _, _ in MUTATIONS]
    kinds = ((".tiff", "zlib"), (".tiff", "jpeg"), (".svs", "jpeg"))
    for seed, name in enumerate(names):
        suffix, compression = kinds[seed % 3]
        write_slide(tmp_path / "clean" / f"{name}{suffix}", seed, compression)
    slides = shutil.copytree(tmp_path / "clean", tmp_path / "slides")
    for name, change, _ in MUTATIONS:
        change(next(slides.glob(f"{name}.*")))
    assert main(["extract", "--slides", str(tmp_path / "clean"), "--out", str(tmp_path / "all"), *OPTIONS]) == 0
    clean = files_below(tmp_path / "all")

    said = run(slides, tmp_path / "out", "--max_failed_share", "0.05", "--limits.deadline_s", "2", code=2)
    assert re.fullmatch(r"pathfm: 20 of 100 slides failed, the others are done; .*failures\.csv .*", said[-1])
    assert reasons(tmp_path / "out") == {name: reason for name, _, reason in MUTATIONS}
    found = files_below(tmp_path / "out")
    assert {Path(name).stem for name in found} == set(names[:80])
    assert all(clean[name] == data for name, data in found.items())

    shutil.rmtree(slides)
    shutil.copytree(tmp_path / "clean", slides)
    assert main(["extract", "--slides", str(slides), "--out", str(tmp_path / "out"), *OPTIONS]) == 0
    assert files_below(tmp_path / "out") == clean
    assert reasons(tmp_path / "out") == {}
    assert list((tmp_path / "out").rglob("*.part")) == []
    log = (tmp_path / "out" / "pathfm-extract.log").read_text()
    assert log.count("skipped, its file is whole") == 80
    assert log.count("goes on after tile") == 4  # where the stubs had hung or died


@pytest.mark.parametrize(
    "change",
    [overwrite(A_TILE, bytes), overwrite(A_TILE, random.Random(0).randbytes)],
    ids=["zeroed", "random"],
)
@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_one_corrupt_tile_costs_one_tile_which_is_recorded(
    tmp_path: Path, change: Callable[[Path], None], compression: str
) -> None:
    path = write_slide(tmp_path / "slide.tiff", 0, compression)
    work = small_work(max_failed_share=0.05)
    clean = extracted(path, work, tmp_path / "clean")
    change(path)
    found = extracted(path, work, tmp_path / "spoilt")
    assert found.failed.tolist() == [[64 * (A_TILE[0] % 8), 64 * (A_TILE[0] // 8)]]
    kept = (clean.coords != found.failed[0]).any(axis=1)
    assert np.array_equal(found.coords, clean.coords[kept])
    assert np.array_equal(found.features, clean.features[kept])


def test_random_bytes_that_decode_are_seen_by_a_digest_alone(tmp_path: Path) -> None:
    """JPEG has no checksum: bytes changed inside a tile's coded data decode, into other pixels."""
    path = write_slide(tmp_path / "slide.tiff", 0, "jpeg")
    work = small_work()
    clean = extracted(path, work, tmp_path / "clean")

    def some(count: int) -> bytes:
        return before[: count // 2] + bytes([before[count // 2] ^ 1]) + before[count // 2 + 1 :]

    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[27], file.pages[0].databytecounts[27]
    before = path.read_bytes()[offset : offset + length]
    overwrite(A_TILE, some)(path)
    unseen = extracted(path, work, tmp_path / "first-look")
    assert len(unseen.failed) == 0
    differing = (unseen.features != clean.features).any(axis=1)
    assert unseen.coords[differing].tolist() == [[64 * (27 % 8), 64 * (27 // 8)]]

    with pytest.raises(EmbeddingsDamagedError):
        verify(tmp_path / "clean", [path])
    assert extracted(path, work, tmp_path / "clean").slide_digest == unseen.slide_digest != clean.slide_digest


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_whatever_is_wrong_with_the_bytes_of_a_slide_it_is_read_or_has_a_typed_reason(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything else than a typed reason would end the run."""
    whole = [write_slide(tmp_path / name, 0, "jpeg") for name in ("a.tiff", "b.svs")]
    whole.append(write_slide(tmp_path / "c.tiff", 0))
    chance, ends = random.Random(count), Counter[str]()
    for _ in range(count):
        origin = chance.choice(whole)
        path = tmp_path / f"broken{origin.suffix}"
        path.write_bytes(_mutated(origin.read_bytes(), chance))
        ends[_end_of(SlideSource("broken", path))] += 1
    with capsys.disabled():
        print(f"\n{count} mutated slides: {dict(ends.most_common())}")
    assert ends["truncated"]
    assert ends["some tiles failed"]


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Cut short, with a block of zeros or noise, with flipped bits anywhere, or some near the end, where the tags are."""
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.randrange(16, 1 << 16))
    kind, changed = chance.choice(("cut", "zeros", "noise", "bits", "tags")), bytearray(data)
    if kind == "cut":
        return data[:start]
    if kind in ("zeros", "noise"):
        changed[start:stop] = bytes(stop - start) if kind == "zeros" else chance.randbytes(stop - start)
    for _ in range(chance.choice((1, 1, 10)) if kind in ("bits", "tags") else 0):
        place = chance.randrange(len(data)) if kind == "bits" else len(data) - 1 - chance.randrange(3000)
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _end_of(source: SlideSource) -> str:
    limits = Limits(20.0, 2.0)
    how = Reading(TileSpec(64, 0.5, 64), TissueSpec(), None, "sha256", 0.005, 2, limits)
    try:
        failed = [batch.failed.any() for batch in TileReads(source, survey(source, how).tiles, 8, 2, limits)]
    except SlideError as error:
        return error.reason
    return "some tiles failed" if any(failed) else "read"


@pytest.mark.parametrize(("deed", "reason"), [("hangs", "timeout"), ("segfaults", "crash"), ("eats", "memory")])
def test_what_was_embedded_of_a_slide_before_its_reader_went_is_kept_for_a_better_day(
    tmp_path: Path, deed: str, reason: str
) -> None:
    paths = [write_slide(tmp_path / "slides" / f"{name}.tiff", seed) for seed, name in enumerate("abc")]
    good = find_slides(paths)
    work = small_work(limits=Limits(3.0, 1.0), batch_size=4)
    clean = extract_slides(good, work, tmp_path / "clean")
    started_s = time.monotonic()
    broken = [good[0], Stub("b", paths[1], deed=deed), good[2]]
    result = extract_slides(broken, work, tmp_path / "out")
    assert time.monotonic() - started_s < 60
    assert (result.done, [failure.reason for failure in result.failed]) == (("a", "c"), [reason])
    assert (result.folders[0] / "b.part").stat().st_size > 1000
    assert not (result.folders[0] / "b.h5").exists()
    again = extract_slides(good, work, tmp_path / "out")
    assert (again.done, again.skipped) == (("b",), ("a", "c"))
    assert files_below(tmp_path / "out") == files_below(clean.folders[0].parent)


REASONS = {
    "truncated": "copy it again",
    "unsupported": "convert it to a pyramidal TIFF",
    "corrupt tile": "copy the slide again",
    "timeout": "--limits.deadline_s",
    "crash": "convert it to a pyramidal TIFF",
    "memory": "--limits.memory_gib",
    "permission": "grant read permission",
    "empty file": "copy it again",
    "no mpp": "--mpp-override",
    "no tissue": "--outlines",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], str]:
    """The rows of failures.csv by reason, and the text of a report, of a run on one broken slide of each kind."""
    root = tmp_path_factory.mktemp("reasons")
    slides = root / "slides"
    for seed, name in enumerate(("hangs-1", "segfaults-1", "oom-1", "corrupt", "cut", "locked", "empty")):
        write_slide(slides / f"{name}.tiff", seed)
    overwrite(THREE_TILES, bytes)(slides / "corrupt.tiff")
    truncate(0.5)(slides / "cut.tiff")
    (slides / "locked.tiff").chmod(0)
    os.truncate(slides / "empty.tiff", 0)
    (slides / "junk.svs").write_bytes(b"no slide" * 99)
    write_slide(slides / "scaleless.tiff", 8, mpp=None)
    write_slide(slides / "blank.tiff", 9, tissue=0)
    run(slides, root / "out", "--limits.deadline_s", "2", code=2)
    with (root / "out" / "failures.csv").open(newline="") as file:
        rows = {row["reason"]: row for row in csv.DictReader(file)}
    study = make_study(root / "study", list("abcdef"))
    parts = {"crossval": study.crossval, "embeddings": study.embeddings, "cohort": study.cohort}
    parts |= {"failures": root / "out" / "failures.csv", "out": root / "report.html"}
    assert main(["report", *(word for name, path in parts.items() for word in (f"--{name}", str(path)))]) == 0
    body = (root / "report.html").read_text().split("<body>")[1]
    return rows, " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize("reason", REASONS)
def test_each_kind_of_broken_slide_has_its_reason_and_a_remedy_in_failures_csv_and_the_report(
    told: tuple[dict[str, dict[str, str]], str], reason: str
) -> None:
    rows, report = told
    assert set(rows) == set(REASONS)
    row = rows[reason]
    assert REASONS[reason] in row["message"]
    assert row["path"] in row["message"]
    shown = row["message"].replace(row["path"], Path(row["path"]).name)  # folders name people
    kind = "left out" if reason == "no tissue" else "failed"
    assert f"{row['slide_id']} {kind} {reason} {' '.join(shown.split())}" in report


@pytest.fixture
def suspicious(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slides two of which take their reader along."""
    for seed, name in enumerate(("aborts-opening", "cut", "good", "oom-opening")):
        write_slide(tmp_path / "slides" / f"{name}.tiff", seed)
    truncate(0.5)(tmp_path / "slides" / "cut.tiff")
    for module in ("preview", "doctor"):
        monkeypatch.setattr(f"pathfm.{module}.find_slides", find_stubbed)
    return tmp_path / "slides"


SUSPICIONS = {"aborts-opening": "crash", "cut": "truncated", "oom-opening": "memory"}


def test_a_slide_that_crashes_its_reader_does_not_take_the_command_tile_along(
    suspicious: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tile", "--slides", str(suspicious), "--out", str(tmp_path / "out")]) == 2
    assert "pathfm: 3 of 4 slides failed" in capsys.readouterr().err
    assert reasons(tmp_path / "out") == SUSPICIONS
    assert (tmp_path / "out" / "tiles.csv").read_text().splitlines()[1].startswith("good,0.5,")


def test_the_doctor_looks_at_slides_that_crash_their_readers(suspicious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = doctor([suspicious]).splitlines()
    assert "4 slides, 1 fit for use" in said
    found = {name: verdict for name, _, verdict in (line.partition("  ") for line in said)}
    assert {name: found[name].partition(":")[0] for name in SUSPICIONS} == SUSPICIONS
    assert found["good"].startswith("ok  ")


@pytest.fixture
def long_run(tmp_path: Path) -> Iterable[subprocess.Popen[str]]:
    """A command in the middle of a slide."""
    write_slide(tmp_path / "slides" / "large.tiff", 0, tissue=2048, size=2304)
    line = [sys.executable, "-m", "pathfm", "extract", "--slides", str(tmp_path / "slides")]
    line += [
        "--out",
        str(tmp_path / "out"),
        *OPTIONS[4:],
        "--tiles.size_px",
        "32",
        "--tiles.mpp",
        "0.5",
        "--tiles.stride_px",
        "4",
    ]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        process.kill()


def test_ctrl_c_ends_at_once_with_one_line_and_takes_the_readers_along(
    long_run: subprocess.Popen[str], tmp_path: Path
) -> None:
    readers = reading(long_run, tmp_path)
    os.killpg(long_run.pid, signal.SIGINT)
    _, said = long_run.communicate(timeout=20)
    assert long_run.returncode == 130
    assert said.splitlines()[-1].startswith("pathfm: interrupted; ")
    assert [line for line in said.splitlines() if not line.startswith(("extract: ", "pathfm: "))] == []
    assert wait_for(lambda: not alive(readers), 5)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent was killed")
def test_a_kill_takes_the_readers_along(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    readers = reading(long_run, tmp_path)
    long_run.kill()
    assert wait_for(lambda: not alive(readers), 5)


def test_a_script_without_a_guard_extracts_and_ends(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "a.tiff", 0)
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from pathfm.extract import extract\n"
        "from pathfm.tiles import TileSpec\n"
        "print(extract([Path('slides')], Path('out'), tiles=TileSpec(64, 0.5), device='cpu', workers=2))\n"
    )
    line = [sys.executable, "script.py"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.count("1 slides embedded") == 1


def reading(process: subprocess.Popen[str], root: Path) -> set[int]:
    """Its readers, once rows have come from them."""
    wait_for(lambda: process.poll() is not None or _largest(root.glob("out/*/*.part")) > 10_000, 60)
    assert process.poll() is None
    readers = descendants(process.pid)
    assert len(readers) == 2
    return readers


def _largest(paths: Iterable[Path]) -> int:
    return max((path.stat().st_size for path in paths), default=0)


def run(slides: Path, out: Path, *options: str, code: int) -> list[str]:
    """What `pathfm extract` says, where file permissions hold and some slides hang or die; it has to end with a code."""
    words = ["extract", "--slides", str(slides), "--out", str(out), *OPTIONS, *options]
    line = [*UNPRIVILEGED, sys.executable, str(TESTS / "stubs.py"), *words]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == code, result.stderr
    return result.stderr.splitlines()


def reasons(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}


def small_work(max_failed_share: float = 0.005, limits: Limits = Limits(), batch_size: int = 8) -> ExtractWork:
    spec = TileSpec(64, 0.5)
    more = {"max_failed_share": max_failed_share, "limits": limits}
    return plan_extraction("colour", spec, device="cpu", workers=2, batch_size=batch_size, **more)


def extracted(path: Path, work: ExtractWork, out: Path) -> object:
    result = extract_slides([SlideSource(path.stem, path)], work, out)
    return read_embeddings(result.folders[0] / f"{path.stem}.h5")
