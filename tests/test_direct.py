"""Direct decoding gives OpenSlide's pixels or none: every read here is compared with one by OpenSlide alone."""

from __future__ import annotations

import logging
import os
import random
import struct
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyramids import spoil_tile, waves, write_jpeg_pyramid, write_pyramid

from pathfm.errors import InputError, TileUnreadableError
from pathfm.readers.direct import DirectReader, TileCache
from pathfm.readers.tiledjpeg import tiled_jpegs
from pathfm.slide import Slide, open_slide
from pathfm.sources import SlideSource

REAL = os.environ.get("PATHFM_TEST_SLIDES")
MPP = 0.5
LAYOUTS = {
    "rgb-240": {"tile": 240, "subsampling": None},
    "420": {"subsampling": "420"},
    "422": {"subsampling": "422"},
    "444": {"subsampling": "444"},
    "rgb-bigtiff": {"tile": 240, "subsampling": None, "bigtiff": True},
    "420-generic": {"subsampling": "420", "aperio": False},
    "rgb-generic-bigtiff": {"tile": 128, "subsampling": None, "aperio": False, "bigtiff": True},
}


def picture(width: int = 1024, height: int = 768) -> np.ndarray:
    """Waves with noise, so that every pixel matters, and a corner of glass."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    pixels = np.clip(waves(width, height, MPP) + noise, 0, 255).astype(np.uint8)
    pixels[:200, :300] = 243
    return pixels


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A slide of each layout."""
    folder = tmp_path_factory.mktemp("jpeg")
    return {
        name: write_jpeg_pyramid(folder / f"{name}.svs", picture(), levels=(4,), **layout)
        for name, layout in LAYOUTS.items()
    }


@pytest.fixture(scope="module")
def pairs(files: dict[str, Path]) -> dict[str, tuple[Slide, Slide]]:
    """Each slide open twice: as usual, and by OpenSlide alone."""
    return {name: (open_slide(path), open_slide(path, reader="openslide")) for name, path in files.items()}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    downsample=st.sampled_from([1, 1.5, 2, 3, 4, 8, 9]),
    x_px0=st.integers(-40, 1023),
    y_px0=st.integers(-40, 767),
    size_px=st.integers(1, 200),
)
def test_any_tile_is_the_one_that_openslide_gives(
    pairs: dict[str, tuple[Slide, Slide]], name: str, downsample: float, x_px0: int, y_px0: int, size_px: int
) -> None:
    fast, plain = pairs[name]
    mpp = fast.mpp * downsample
    assert (fast.reader_for(mpp), plain.reader_for(mpp)) == ("direct", "openslide")
    expected = plain.read_tile(x_px0, y_px0, size_px, mpp)
    assert np.array_equal(fast.read_tile(x_px0, y_px0, size_px, mpp), expected)
    out = np.empty((size_px, size_px, 3), np.uint8)
    assert fast.read_tile(x_px0, y_px0, size_px, mpp, out) is out
    assert np.array_equal(out, expected)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["rgb-240", "420"]),
    factor=st.integers(2, 3),
    x_px0=st.integers(0, 300),
    y_px0=st.integers(0, 300),
)
def test_a_whole_factor_gives_the_mean_of_the_pixels(
    pairs: dict[str, tuple[Slide, Slide]], name: str, factor: int, x_px0: int, y_px0: int
) -> None:
    slide = pairs[name][0]
    small = slide.read_tile(x_px0, y_px0, 100, slide.mpp * factor)
    large = slide.read_tile(x_px0, y_px0, 100 * factor, slide.mpp).astype(int)
    sums = large.reshape(100, factor, 100, factor, 3).sum(axis=(1, 3))
    assert np.array_equal(small, (2 * sums + factor**2) // (2 * factor**2))  # to the nearest, a half up


@pytest.mark.parametrize("name", ["rgb-240", "420"])
def test_direct_tiles_come_without_openslide(
    files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(files[name]) as slide:
        assert [slide.reader_for(MPP * downsample) for downsample in (1, 2, 4)] == ["direct"] * 3
        monkeypatch.setattr(openslide.OpenSlide, "read_region", None)
        for downsample in (1, 2, 4, 1.7):
            slide.read_tile(17, 31, 90, MPP * downsample)


def test_each_jpeg_tile_is_decoded_once_where_tiles_are_visited_row_by_row(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with DirectReader(files["rgb-240"], [(1024, 768)]) as reader:
        decoded = []
        read = os.pread
        monkeypatch.setattr(os, "pread", lambda *place: decoded.append(place[2]) or read(*place))
        for factor in (1, 2):
            for y in range(0, 600, 100):
                for x in range(0, 900, 100):
                    reader.read(0, (x, y), (100, 100), factor, None)
    assert len(decoded) <= 2 * 4 * 3 + 1
    assert len(set(decoded)) == 4 * 3


def test_the_cache_stays_within_its_bytes(files: dict[str, Path]) -> None:
    most = 4 * 240 * 240 * 3
    cache, held = TileCache(most), []
    with DirectReader(files["rgb-240"], [(1024, 768)], cache) as reader:
        for y in range(0, 668, 37):
            for x in range(0, 924, 37):
                assert reader.read(0, (x, y), (100, 100), 1, None) is not None
                held.append(cache.bytes)
    assert 0 < max(held) <= most
    assert cache.bytes == 0  # the slide is closed


def test_slides_share_one_cache_and_never_each_others_tiles(files: dict[str, Path]) -> None:
    cache = TileCache(1 << 26)
    size = [(1024, 768)]
    one, other = (DirectReader(files[name], size, cache) for name in ("rgb-240", "rgb-bigtiff"))
    with one, open_slide(files["420"]) as third:
        for reader in (one, other):
            reader.read(0, (0, 0), (500, 500), 1, None)
        held = cache.bytes
        other.close()
        assert 0 < cache.bytes < held
        assert third.read_tile(0, 0, 500, MPP).shape == (500, 500, 3)
        del other
    assert cache.bytes == 0


def test_a_level_that_openslide_interpolates_is_left_to_it(tmp_path: Path) -> None:
    path = write_jpeg_pyramid(tmp_path / "s.svs", picture(1022, 767), levels=(4,))
    with open_slide(path) as slide, open_slide(path, reader="openslide") as plain:
        assert (slide.reader_for(MPP), slide.reader_for(4 * MPP)) == ("direct", "openslide")
        assert np.array_equal(slide.read_tile(52, 37, 64, 4 * MPP), plain.read_tile(52, 37, 64, 4 * MPP))
        for one, other in zip(slide.read_overview(4.0), plain.read_overview(4.0), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("mpp", [1.0, 2.3, 8.0])
def test_the_overview_is_the_one_of_openslide(pairs: dict[str, tuple[Slide, Slide]], name: str, mpp: float) -> None:
    fast, plain = pairs[name]
    for one, other in zip(fast.read_overview(mpp), plain.read_overview(mpp), strict=True):
        assert np.array_equal(one, other)


def _tag(path: Path, name: str, value: int) -> None:
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[name].valueoffset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<H", value))


@pytest.mark.parametrize(("name", "wrong"), [("rgb-240", 6), ("420", 2)])
def test_colours_that_the_file_states_wrongly_are_those_that_openslide_shows(
    files: dict[str, Path], tmp_path: Path, name: str, wrong: int
) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(files[name].read_bytes())
    _tag(path, "PhotometricInterpretation", wrong)
    _same_everywhere(path)


def test_a_reader_that_differs_is_found_out_and_said_so(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = DirectReader.read
    monkeypatch.setattr(DirectReader, "read", lambda *args: None if (got := read(*args)) is None else got ^ 1)
    with open_slide(files["420"]) as slide, caplog.at_level(logging.INFO):
        assert [slide.reader_for(MPP) for _ in range(3)] == ["openslide"] * 3
    assert caplog.text.count("direct does not read level 0, its pixels differ") == 1


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_other_codecs_are_left_to_openslide(tmp_path: Path, compression: str) -> None:
    with open_slide(write_pyramid(tmp_path / "s.tiff", picture(256, 256), compression=compression)) as slide:
        assert slide.reader_for(MPP) == "openslide"


@pytest.mark.skipif(not REAL, reason="PATHFM_TEST_SLIDES is not set")
def test_jpeg_2000_is_left_to_openslide() -> None:
    with open_slide(Path(str(REAL)) / "tcga-cr-7395-01a-01-ts1.svs", MPP) as slide:
        assert slide.reader_for(MPP) == "openslide"


def test_a_missing_tile_is_white_as_openslide_has_it(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(files["420"].read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
        kind, at = {3: "<H", 4: "<I", 16: "<Q"}[tag.dtype], tag.valueoffset
    with path.open("r+b") as file:
        file.seek(at + 5 * struct.calcsize(kind))
        file.write(struct.pack(kind, 0))
    _same_everywhere(path)
    with open_slide(path) as slide:
        assert (slide.read_tile(256, 256, 256, MPP) == 255).all()


@pytest.mark.parametrize("name", ["rgb-240", "420", "422"])
def test_damage_that_openslide_refuses_is_refused_and_other_damage_looks_the_same(
    files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    rng = random.Random(name)
    path = tmp_path / "s.svs"
    clean = files[name].read_bytes()
    with files[name].open("rb") as file:
        page = tiled_jpegs(file.fileno())[0]
    refused = 0
    for _ in range(60):
        index = rng.choice([1, 2, 4, 5, 6])
        data = bytearray(clean)
        at = int(page.offsets[index]) + rng.randrange(int(page.counts[index]))
        for k in range(rng.choice([1, 1, 20])):
            data[at + k] = rng.choice([0, 0xFF, data[at + k] ^ (1 << rng.randrange(8))])
        path.write_bytes(data)
        row, column = divmod(index, page.columns)
        corner = (column * page.tile[0] + 3, row * page.tile[1] + 3)
        with open_slide(path) as slide, open_slide(path, reader="openslide") as plain:
            expected = _or_none(plain, *corner)
            found = _or_none(slide, *corner)
        refused += expected is None
        assert (found is None) == (expected is None)
        assert found is None or np.array_equal(found, expected)
    assert 10 < refused < 60


def test_a_slide_that_is_damaged_after_it_was_opened_loses_the_tile_and_no_other(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(files["420"].read_bytes())
    with open_slide(path) as slide, open_slide(files["420"]) as whole:
        assert slide.reader_for(MPP) == "direct"
        spoil_tile(path, 10)
        lost = {(x, y) for x in range(0, 1024, 128) for y in range(0, 768, 128) if _or_none(slide, x, y, 128) is None}
        assert lost <= {(512, 512), (640, 512), (512, 640), (640, 640)}  # some are still in the cache
        with ThreadPoolExecutor(8) as pool:
            places = [(x, y) for y in range(0, 500, 50) for x in range(0, 900, 50)]
            for place, tile in zip(places, pool.map(lambda at: slide.read_tile(*at, 100, MPP), places), strict=True):
                assert place[1] > 400 or np.array_equal(tile, whole.read_tile(*place, 100, MPP))


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_file_that_ends_under_an_open_slide_is_read_by_openslide_or_not_at_all(
    files: dict[str, Path], tmp_path: Path, share: float
) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(files["rgb-240"].read_bytes())
    with open_slide(path) as slide, open_slide(files["rgb-240"]) as whole:
        os.truncate(path, int(path.stat().st_size * share))
        for x, y in ((0, 0), (600, 500)):
            found = _or_none(slide, x, y)
            assert found is None or np.array_equal(found, _or_none(whole, x, y))
        assert _or_none(slide, 600, 500) is None


def test_a_header_alone_takes_no_memory(files: dict[str, Path], tmp_path: Path) -> None:
    for name, value in (("TileWidth", 65520), ("ImageWidth", 65535), ("TileLength", 0), ("SamplesPerPixel", 60000)):
        path = tmp_path / f"{name}.svs"
        path.write_bytes(files["420"].read_bytes())
        _tag(path, name, value)
        with path.open("rb") as file:
            assert all(page.size == (256, 192) for page in tiled_jpegs(file.fileno()))


@pytest.mark.parametrize("seed", range(60))
def test_a_directory_of_junk_is_no_tiles_and_no_crash(
    files: dict[str, Path], tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    data = bytearray(files["420"].read_bytes())
    with tifffile.TiffFile(files["420"]) as file:
        tags = [tag.offset for tag in file.pages[0].tags]
    for _ in range(rng.randrange(1, 6)):
        data[rng.choice(tags) + rng.randrange(12)] = rng.randrange(256)
    (tmp_path / "junk").write_bytes(data)
    with (tmp_path / "junk").open("rb") as file:
        for page in tiled_jpegs(file.fileno()):
            for index in range(len(page.counts)):
                page.bytes_of(index, file.fileno())
    assert caplog.text == ""  # which might be of the patient


def test_an_out_that_is_no_tile_is_an_error_and_not_lost(pairs: dict[str, tuple[Slide, Slide]]) -> None:
    for slide in pairs["420"]:
        for downsample in (1, 2, 1.5):
            with pytest.raises(ValueError, match="a tile is writeable uint8"):
                slide.read_tile(0, 0, 64, MPP * downsample, np.empty((60, 64, 3), np.uint8))
            fixed = np.empty((64, 64, 3), np.uint8)
            fixed.flags.writeable = False
            for out in (np.empty((64, 64, 3), np.int32), fixed):
                with pytest.raises(ValueError, match="a tile is writeable uint8"):
                    slide.read_tile(0, 0, 64, MPP * downsample, out)


def test_closed_slides_leave_no_descriptor(files: dict[str, Path]) -> None:
    before = _open_files()
    for _ in range(20):
        with open_slide(files["420"]) as slide:
            slide.reader_for(MPP)
        SlideSource("s", files["420"]).open("openslide").close()
        open_slide(files["420"]).reader_for(MPP)  # never closed by anybody
    after = _open_files()
    assert after <= before + 1


class _Image:
    """What pathfm asks of `cucim.CuImage`, by OpenSlide."""

    off_by = 0

    def __init__(self, path: str) -> None:
        self._slide = openslide.OpenSlide(path)
        self.resolutions = {"level_dimensions": self._slide.level_dimensions}

    def read_region(self, location: tuple[int, int], size: tuple[int, int], level: int) -> np.ndarray:
        return np.asarray(self._slide.read_region(location, level, size))[..., :3] ^ np.uint8(self.off_by)

    def close(self) -> None:
        self._slide.close()


@pytest.mark.parametrize(("off_by", "reader"), [(0, "cucim"), (1, "direct")])
def test_cucim_reads_where_it_gives_the_same(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, off_by: int, reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = type("CuImage", (_Image,), {"off_by": off_by})
    monkeypatch.setitem(sys.modules, "cucim", types.SimpleNamespace(CuImage=image))
    with open_slide(files["420"], reader="cucim") as slide, open_slide(files["420"]) as usual:
        with caplog.at_level(logging.INFO):
            assert slide.reader_for(MPP) == reader
        for mpp in (MPP, 2 * MPP, 1.7 * MPP):
            assert np.array_equal(slide.read_tile(37, 51, 128, mpp), usual.read_tile(37, 51, 128, mpp))
    assert ("cucim does not read level 0" in caplog.text) == (off_by == 1)


def test_cucim_that_is_not_installed_is_an_error_with_its_remedy(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cucim", None)
    with pytest.raises(InputError, match="pip install cucim-cu12"):
        open_slide(files["420"], reader="cucim")


REAL_SLIDES = sorted(path for path in Path(REAL).rglob("*.*") if path.suffix in (".svs", ".tiff")) if REAL else []


@pytest.mark.parametrize("path", REAL_SLIDES, ids=lambda path: path.stem)
def test_real_slides_are_read_as_openslide_reads_them(path: Path) -> None:
    if "hostile" in path.parts:
        pytest.skip("not to be read")
    mpp = 0.5 if path.stem.startswith("tcga") or path.suffix == ".tiff" else None
    try:
        fast, plain = open_slide(path, mpp), open_slide(path, mpp, reader="openslide")
    except InputError:
        pytest.skip("it states another scale")
    rng = np.random.default_rng(0)
    with fast, plain:
        for _ in range(12):
            x, y = (int(rng.integers(-50, side)) for side in fast.size_px0)
            tile_mpp = fast.mpp * float(rng.choice([1, 2, 3.1, 4]))
            assert np.array_equal(fast.read_tile(x, y, 200, tile_mpp), plain.read_tile(x, y, 200, tile_mpp))


def _or_none(slide: Slide, x_px0: int, y_px0: int, size_px: int = 150) -> np.ndarray | None:
    try:
        return slide.read_tile(x_px0, y_px0, size_px, MPP)
    except TileUnreadableError:
        return None


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def _same_everywhere(path: Path) -> None:
    with open_slide(path) as slide, open_slide(path, reader="openslide") as plain:
        for y in range(-30, 768, 190):
            for x in range(-30, 1024, 190):
                found, expected = _or_none(slide, x, y, 200), _or_none(plain, x, y, 200)
                assert (found is None) == (expected is None)
                assert found is None or np.array_equal(found, expected)
