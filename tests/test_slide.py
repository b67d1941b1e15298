from __future__ import annotations

import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramids import spoil_tile, wave_colours, waves, write_pyramid

import pathfm.overview
import pathfm.slidefiles
from pathfm.errors import InputError, MppError, SlideUnreadableError, TileUnreadableError
from pathfm.slide import open_slide

REAL = os.environ.get("PATHFM_TEST_SLIDES")
needs_real = pytest.mark.skipif(not REAL, reason="PATHFM_TEST_SLIDES is not set")


@pytest.fixture(scope="module")
def wavy(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Slides of several mpp, sides that no level divides, and so downsamples that are no whole numbers."""
    folder = tmp_path_factory.mktemp("wavy")
    return {
        mpp: write_pyramid(folder / f"{mpp}.tiff", waves(1003, 801, mpp), mpp, levels=(4, 16))
        for mpp in (0.25, 0.37, 0.5, 1.05)
    }


@settings(max_examples=40, deadline=None)
@given(
    mpp=st.sampled_from([0.25, 0.37, 0.5, 1.05]),
    tile_mpp=st.floats(1.0, 5.0),
    size_px=st.integers(8, 40),
    x_share=st.floats(0, 1),
    y_share=st.floats(0, 1),
)
def test_a_tile_covers_size_times_mpp_microns_on_every_slide(
    wavy: dict[float, Path], mpp: float, tile_mpp: float, size_px: int, x_share: float, y_share: float
) -> None:
    with open_slide(wavy[mpp]) as slide:
        extent_px0 = size_px * tile_mpp / slide.mpp
        x_px0, y_px0 = (
            int(max(0, size - extent_px0) * share)
            for size, share in zip(slide.size_px0, (x_share, y_share), strict=True)
        )
        tile = slide.read_tile(x_px0, y_px0, size_px, tile_mpp)
        width_um, height_um = (size * slide.mpp for size in slide.size_px0)
    x_um, y_um = (start * mpp + (np.arange(size_px) + 0.5) * tile_mpp for start in (x_px0, y_px0))
    inside = np.ix_((y_um < height_um - 3 * tile_mpp).nonzero()[0], (x_um < width_um - 3 * tile_mpp).nonzero()[0])
    difference = np.abs(tile.astype(int) - wave_colours(x_um, y_um))[inside]
    assert tile.shape == (size_px, size_px, 3)
    # Half a pixel off would be about 3 a micron at these wavelengths.
    assert difference.size == 0 or difference.mean() < 1 + tile_mpp / 2


@pytest.mark.parametrize("mpp", [0.25, 0.37, 0.5])
def test_squares_of_sixteen_microns_are_sixteen_pixels_at_one_mpp(tmp_path: Path, mpp: float) -> None:
    side = int(300 / mpp)
    square = ((np.arange(side) + 0.5) * mpp // 16).astype(int)
    checker = np.uint8((square[:, None] + square[None, :]) % 2 * 255)
    path = write_pyramid(tmp_path / "checker.tiff", np.repeat(checker[..., None], 3, axis=2), mpp, levels=(2,))
    with open_slide(path) as slide:
        tile = slide.read_tile(0, 0, 256, 1.0)
    centres = tile[8::16, 8::16, 0]
    expected = np.add.outer(np.arange(16), np.arange(16)) % 2 * 255
    assert np.abs(centres.astype(int) - expected).max() < 12
    edges = np.abs(np.diff(tile[8, :, 0].astype(int))).reshape(-1)
    assert set(np.flatnonzero(edges > 100) % 16) <= {14, 15, 0}


def test_a_read_at_the_scans_own_mpp_is_the_pixels_themselves(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 210, 3), np.uint8)
    with open_slide(write_pyramid(tmp_path / "noise.tiff", pixels, 0.5)) as slide:
        assert np.array_equal(slide.read_tile(37, 51, 64, slide.mpp), pixels[51:115, 37:101])


@pytest.mark.parametrize("level", [1, 2])
def test_a_read_at_a_level_equals_the_same_place_downsampled(tmp_path: Path, level: int) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC))
    with open_slide(write_pyramid(tmp_path / "p.tiff", pixels, 0.5, levels=(2, 4))) as slide:
        divisor = round(slide.level_downsamples[level])
        tile = slide.read_tile(4 * divisor, 8 * divisor, 64, slide.mpp * divisor)
        whole, opaque = slide.read_level(level)
    mean = pixels.reshape(512 // divisor, divisor, 512 // divisor, divisor, 3).mean(axis=(1, 3))
    assert np.array_equal(tile, whole[8:72, 4:68])
    assert np.abs(whole - mean).max() <= 1
    assert opaque.all()


def test_outside_the_scan_is_white_and_not_opaque(tmp_path: Path) -> None:
    with open_slide(write_pyramid(tmp_path / "black.tiff", np.zeros((100, 130, 3), np.uint8), 0.5)) as slide:
        tile = slide.read_tile(100, 60, 64, 0.5)
        rgb, opaque = slide.read_overview(8.0)
    assert (tile[:40, :30] == 0).all()
    assert (tile[40:] == 255).all()
    assert (tile[:, 30:] == 255).all()
    assert rgb.shape == (7, 9, 3)
    assert opaque[:6, :8].all()
    assert not opaque[:, 8].any()


@pytest.mark.parametrize(("mpp", "overview_mpp"), [(0.25, 8.0), (0.37, 8.0), (0.5, 7.3), (1.05, 20.0), (1.05, 13.5)])
def test_the_overview_has_the_stated_scale(tmp_path: Path, mpp: float, overview_mpp: float) -> None:
    stretch = 6.0
    pixels = wave_colours((np.arange(1003) + 0.5) * mpp / stretch, (np.arange(801) + 0.5) * mpp / stretch)
    with open_slide(write_pyramid(tmp_path / "slow.tiff", pixels, mpp, levels=(4, 16))) as slide:
        rgb, opaque = slide.read_overview(overview_mpp)
        size = slide.overview_size(overview_mpp)
    x_um, y_um = ((np.arange(n) + 0.5) * overview_mpp for n in (rgb.shape[1], rgb.shape[0]))
    difference = np.abs(rgb.astype(int) - wave_colours(x_um / stretch, y_um / stretch))
    assert (rgb.shape[1], rgb.shape[0]) == size
    assert opaque[:-2, :-2].all()
    # Half a pixel off would be about 0.35 a micron of overview_mpp.
    assert difference[1:-2, 1:-2].mean() < 0.1 * overview_mpp


def test_an_overview_read_in_bands_is_the_same(wavy: dict[float, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(wavy[0.37]) as slide:
        whole, _ = slide.read_overview(6.0)
        monkeypatch.setattr(pathfm.overview, "_BAND_PX", 5000)
        banded, _ = slide.read_overview(6.0)
    assert np.abs(whole.astype(int) - banded).max() <= 2


def test_after_a_bad_tile_only_that_tile_is_lost(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "bad.tiff", waves(512, 512, 0.5), 0.5, compression="jpeg")
    with open_slide(path) as slide:
        good = [slide.read_tile(64 * (i % 8), 64 * (i // 8), 64, 0.5) for i in range(64)]
    spoil_tile(path, 9)
    with open_slide(path) as slide:
        for index, before in enumerate(good):
            x_px0, y_px0 = 64 * (index % 8), 64 * (index // 8)
            if index == 9:
                with pytest.raises(TileUnreadableError, match=r"\(64, 64\), level 0") as caught:
                    slide.read_tile(x_px0, y_px0, 64, 0.5)
                assert caught.value.reason == "corrupt tile"
            else:
                assert np.array_equal(slide.read_tile(x_px0, y_px0, 64, 0.5), before)


def test_bad_tiles_take_no_other_threads_tiles_along(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "bad.tiff", waves(512, 512, 0.5), 0.5, compression="jpeg")
    bad = {3, 9, 20, 41, 42, 63}
    for index in bad:
        spoil_tile(path, index)

    def lost(index: int) -> bool:
        try:
            slide.read_tile(64 * (index % 8), 64 * (index // 8), 64, 0.5)
        except TileUnreadableError:
            return True
        return False

    with open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert {i for i, is_lost in enumerate(pool.map(lost, range(64))) if is_lost} == bad


@pytest.mark.parametrize("levels", [(), (4,)])
def test_a_bad_tile_is_left_white_in_the_overview_and_the_rest_is_as_before(
    tmp_path: Path, levels: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pyramid(tmp_path / "bad.tiff", waves(1003, 801, 0.5), 0.5, levels, compression="jpeg")
    with open_slide(path) as slide:
        before, _ = slide.read_overview(1.0)
    spoil_tile(path, 5 * 16 + 6)  # of 64 px, so at (384, 320), in the block from (256, 256) to (512, 512)
    with open_slide(path) as slide, caplog.at_level(logging.WARNING):
        rgb, opaque = slide.read_overview(1.0)
    bad = np.zeros(opaque.shape, bool)
    bad[126:258, 126:258] = True
    assert "1 blocks of the overview are left white" in caplog.text
    assert not opaque[130:250, 130:250].any()
    assert (rgb[130:250, 130:250] == 255).all()
    assert opaque[:400, :501][~bad[:400, :501]].all()
    assert np.array_equal(rgb[~bad], before[~bad])


def test_a_bad_tile_of_a_coarse_level_is_read_from_a_finer_one(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "bad.tiff", waves(1003, 801, 0.5), 0.5, (4,), compression="jpeg")
    with open_slide(path) as slide:
        before, seen = slide.read_overview(8.0)
    spoil_tile(path, 1, level=1)
    with open_slide(path) as slide:
        rgb, opaque = slide.read_overview(8.0)
        assert slide.unreadable_px0 == ()
    assert np.array_equal(opaque, seen)
    inside = np.abs(rgb.astype(int) - before)[
        :48, :60
    ]  # the coarse level drops the last pixels that make no whole block
    assert inside.max() <= 12


def test_an_overview_of_bad_tiles_alone_is_an_error(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "bad.tiff", waves(512, 512, 0.5), 0.5, compression="jpeg")
    for index in range(64):
        spoil_tile(path, index)
    with open_slide(path) as slide, pytest.raises(TileUnreadableError):
        slide.read_overview(8.0)


def test_an_overview_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    with open_slide(write_pyramid(tmp_path / "s.tiff", waves(100, 100, 0.5))) as slide:
        with pytest.raises(SlideUnreadableError, match="too many pixels for an overview") as caught:
            slide.read_overview(0.001)
        assert caught.value.reason == "unsupported"


def test_a_slide_that_claims_more_pixels_than_any_scan_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "vast.tiff", waves(100, 100, 0.5))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for name, side in (("ImageWidth", 21), ("ImageLength", 21), ("TileWidth", 20), ("TileLength", 20)):
            struct.pack_into("<HII", data, file.pages[0].tags[name].offset + 2, 4, 1, 1 << side)
    path.write_bytes(data)
    with pytest.raises(SlideUnreadableError) as caught:
        open_slide(path)
    assert caught.value.reason == "unsupported"


def _junk(path: Path) -> None:
    path.write_bytes(b"IJrEr1vVVJCw" * 50)


def _cut(path: Path) -> None:
    write_pyramid(path, np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), levels=(4,))
    os.truncate(path, path.stat().st_size // 2)


def _cut_at_the_end(path: Path) -> None:
    write_pyramid(path, waves(300, 300, 0.5))
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.svs", lambda path: None, "unreadable"),
        ("folder.svs", lambda path: path.mkdir(), "unreadable"),
        ("empty.svs", lambda path: path.touch(), "empty file"),
        ("junk.svs", _junk, "unsupported"),
        ("junk.tiff", _junk, "unsupported"),
        ("junk.png", _junk, "unsupported"),
        ("cut.tiff", _cut, "truncated"),
        ("last-byte.tiff", _cut_at_the_end, "truncated"),
    ],
)
def test_a_slide_that_does_not_open_says_why(tmp_path: Path, name: str, make: object, reason: str) -> None:
    path = tmp_path / name
    make(path)  # type: ignore[operator]
    with pytest.raises(SlideUnreadableError) as caught:
        open_slide(path, 0.5)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_slide_without_read_permission_says_so(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "locked.tiff", waves(64, 64, 0.5))
    path.chmod(0)
    with pytest.raises(SlideUnreadableError) as caught:
        open_slide(path)
    assert caught.value.reason == "permission"


@pytest.mark.parametrize(
    ("mpp", "power", "reason"),
    [
        (None, None, "no mpp"),
        (None, 20, "no mpp"),
        (352.0, None, "absurd mpp"),
        (0.01, None, "absurd mpp"),
        ((0.5, 0.6), None, "contradicted mpp"),
        (0.25, 10, "contradicted mpp"),
        (0.5, 40, "contradicted mpp"),
    ],
)
def test_a_scale_not_to_be_believed_is_an_error_and_an_override_its_remedy(
    tmp_path: Path, mpp: float | tuple[float, float] | None, power: float | None, reason: str
) -> None:
    path = write_pyramid(tmp_path / "slide.tiff", waves(100, 100, 0.5), mpp, power=power)
    with pytest.raises(MppError, match="fill the column 'mpp' in the cohort, or pass --mpp-override") as caught:
        open_slide(path)
    assert caught.value.reason == reason
    with open_slide(path, 0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "override")
        assert slide.mpp_stated == (None if mpp is None else pytest.approx(np.mean(mpp), rel=1e-3))


def test_a_flag_may_not_overrule_a_believable_mpp_and_the_cohort_may_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pyramid(tmp_path / "slide.tiff", waves(100, 100, 0.5), 0.499, power=20)
    with pytest.raises(MppError, match=r"states 0\.499 mpp, --mpp-override says 0\.25; fill the cohort's") as caught:
        open_slide(path, 0.25)
    assert caught.value.reason == "contradicted mpp"
    with open_slide(path, 0.53) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.53, "override")
    assert not caplog.text
    with open_slide(path, 0.25, "cohort") as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "cohort")
    assert "states 0.499 mpp, the cohort says 0.25" in caplog.text


@pytest.mark.parametrize(("mpp", "power"), [(0.2282, 40), (0.526, 20), (1.052, 10), (0.252, 40), (0.5, None)])
def test_usual_scales_are_believed(tmp_path: Path, mpp: float, power: float | None) -> None:
    with open_slide(write_pyramid(tmp_path / "s.tiff", waves(100, 100, 0.5), mpp, power=power)) as slide:
        assert slide.mpp == pytest.approx(mpp, rel=1e-6)
        assert (slide.mpp_source, slide.objective_power) == ("metadata", power)


@pytest.mark.parametrize("override", [0.0, 0.01, 20.0, -1.0, float("nan")])
def test_an_absurd_override_is_refused(tmp_path: Path, override: float) -> None:
    path = write_pyramid(tmp_path / "slide.tiff", waves(100, 100, 0.5))
    with pytest.raises(InputError, match="--mpp-override"):
        open_slide(path, override)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_plain_image_is_a_slide_once_its_mpp_is_stated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plain{suffix}"
    Image.fromarray(waves(300, 200, 0.5)).save(path)
    with pytest.raises(MppError) as caught:
        open_slide(path)
    assert caught.value.reason == "no mpp"
    with open_slide(path, 0.5, "cohort", "named") as slide:
        assert (slide.vendor, slide.mpp_source, slide.slide_id) == ("image", "cohort", "named")
        tile = slide.read_tile(10, 20, 64, 1.0)
    expected = wave_colours(10 * 0.5 + np.arange(64) + 0.5, 20 * 0.5 + np.arange(64) + 0.5)
    assert np.abs(tile.astype(int) - expected).mean() < 3


def test_a_plain_image_that_is_cut_or_deep_says_so(tmp_path: Path) -> None:
    cut, deep = tmp_path / "cut.png", tmp_path / "deep.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(cut)
    os.truncate(cut, cut.stat().st_size // 2)
    Image.fromarray(np.zeros((50, 50), np.uint16)).save(deep)
    for path, reason in ((cut, "truncated"), (deep, "unsupported")):
        with pytest.raises(SlideUnreadableError) as caught:
            open_slide(path, 0.5)
        assert caught.value.reason == reason


def test_transparent_pixels_of_an_image_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    with open_slide(tmp_path / "half.png", 0.5) as slide:
        rgb, opaque = slide.read_level(0)
    assert (rgb[:, :32] == 0).all()
    assert (rgb[:, 32:] == 255).all()
    assert np.array_equal(opaque, pixels[..., 3] > 0)


@needs_real
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hostile/broken.svs", "unsupported"),
        ("hostile/unopenable.tiff", "unsupported"),
        ("hostile/boxes.tiff", "absurd mpp"),
        ("multiframe_camelyon_challenge_image.dcm", "absurd mpp"),
        ("tcga-cr-7395-01a-01-ts1.svs", "no mpp"),
    ],
)
def test_real_slides_that_cannot_be_used_say_why(name: str, reason: str) -> None:
    with pytest.raises((SlideUnreadableError, MppError)) as caught:
        open_slide(Path(str(REAL)) / name)
    assert caught.value.reason == reason


@needs_real
@pytest.mark.parametrize(
    ("name", "mpp", "vendor"),
    [
        ("cmu-1-small-region.svs", 0.499, "aperio"),
        ("test3-DAPI-2-(387).ndpi", 0.2282, "hamamatsu"),
        ("hostile/boxes_0.dcm", 0.499, "dicom"),
        ("hostile/small.svs", 0.499, "aperio"),
        ("cohort/PDAC-tru-cut_HE3.svs", 0.526, "aperio"),
    ],
)
def test_real_slides_open_and_read(name: str, mpp: float, vendor: str) -> None:
    path = Path(str(REAL)) / name
    with open_slide(path) as slide:
        assert (round(slide.mpp, 4), slide.vendor) == (pytest.approx(mpp, abs=1e-4), vendor)
        tile = slide.read_tile(0, 0, 32, 1.0)
        assert tile.shape == (32, 32, 3)
        assert path in slide.files


@pytest.mark.parametrize(("down", "believed"), [(0.501, True), (0.49, False)])
def test_two_axes_that_state_different_scales_are_refused_not_averaged(
    tmp_path: Path, down: float, believed: bool
) -> None:
    path = write_pyramid(tmp_path / "s.tiff", waves(300, 300, 0.5), (0.505, down))
    if believed:
        assert open_slide(path).mpp == pytest.approx((0.505 + down) / 2, rel=1e-4)
        return
    with pytest.raises(MppError, match="over 2 % apart"):
        open_slide(path)
