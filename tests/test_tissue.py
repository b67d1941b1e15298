from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyramids import write_pyramid

from pathfm.errors import InputError
from pathfm.outlines import tissue_from_geojson
from pathfm.scanner import SCANNERS, Pen, Scanner
from pathfm.slide import open_slide
from pathfm.synthetic import GeneratedSlide, write_slide
from pathfm.tissue import TissueMask, TissueSpec, find_tissue, tissue_of_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

REAL = os.environ.get("PATHFM_TEST_SLIDES")
SIZE = (500, 600)
GLASS = (243, 241, 244)
PENS = {
    "black": (35, 33, 38),
    "blue": (35, 60, 150),
    "light blue": (95, 130, 205),
    "violet blue": (62, 83, 168),
    "green": (25, 125, 70),
}


def canvas(seed: int = 0) -> NDArray[np.uint8]:
    """Glass with the noise that scanners and JPEG leave, at 8 microns a pixel."""
    noise = np.random.default_rng(seed).normal(0, 1.2, (*SIZE, 3))
    return np.clip(np.array(GLASS) + noise, 0, 255).astype(np.uint8)


def disc(centre: tuple[int, int], radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    return np.asarray((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2)


def stain(picture: NDArray[np.uint8], where: NDArray[np.bool_], strength: float = 1.0, seed: int = 1) -> None:
    """Haematoxylin and eosin in absorbance, uneven as tissue is."""
    rng = np.random.default_rng(seed)
    uneven = cv2.GaussianBlur(rng.normal(0, 1, SIZE), (0, 0), 3)
    blue = np.clip(0.25 + uneven, 0.02, None)[..., None] * np.array([0.65, 0.70, 0.29])
    pink = np.clip(0.25 - uneven, 0.02, None)[..., None] * np.array([0.07, 0.99, 0.11])
    stained = picture * 10.0 ** (-strength * (blue + pink))
    picture[where] = np.clip(stained, 0, 255).astype(np.uint8)[where]


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def found(picture: NDArray[np.uint8], spec: TissueSpec | None = None) -> NDArray[np.bool_]:
    return tissue_of_image(picture, np.ones(SIZE, bool), spec or TissueSpec()).mask


def slide_with_tissue(strength: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A piece with a large hole, and a second piece."""
    picture = canvas()
    truth = (disc((200, 220), 140) & ~disc((230, 250), 30)) | disc((450, 380), 60)
    stain(picture, truth, strength)
    return picture, truth


@pytest.mark.parametrize("strength", [0.12, 0.25, 0.5, 1.0, 2.0])
def test_tissue_is_found_whether_faint_or_dark_and_its_hole_is_kept(strength: float) -> None:
    picture, truth = slide_with_tissue(strength)
    mask = found(picture)
    assert overlap(mask, truth) > 0.95
    assert not mask[250, 230]


def test_a_faint_piece_beside_a_dark_one_is_not_lost() -> None:
    picture, faint = canvas(), disc((450, 350), 80)
    stain(picture, disc((180, 200), 120), 2.0)
    stain(picture, faint, 0.15)
    assert overlap(found(picture), disc((180, 200), 120) | faint) > 0.95


@pytest.mark.parametrize("ink", PENS)
def test_pen_marks_are_no_tissue(ink: str) -> None:
    picture, truth = slide_with_tissue()
    for corner in ((420, 30), (30, 400)):
        cv2.circle(picture, (corner[0] + 60, corner[1] + 40), 38, PENS[ink], 9, cv2.LINE_AA)
    cv2.line(picture, (330, 480), (590, 160), PENS[ink], 7, cv2.LINE_AA)
    drawn = (canvas() != picture).any(axis=2) & ~truth
    mask = found(picture)
    assert overlap(mask, truth) > 0.9
    assert (mask & drawn).sum() < 0.05 * drawn.sum()


@pytest.mark.parametrize("ink", PENS)
def test_a_slide_with_nothing_but_pen_has_no_tissue(ink: str) -> None:
    picture = canvas()
    cv2.rectangle(picture, (80, 80), (400, 400), PENS[ink], 12, cv2.LINE_AA)
    assert not found(cv2.GaussianBlur(picture, (0, 0), 1)).any()


def test_black_background_and_padding_are_no_tissue() -> None:
    picture, truth = slide_with_tissue()
    picture[:, :40] = np.random.default_rng(5).integers(0, 14, (SIZE[0], 40, 3))
    picture[470:] = 255
    truth[:, :40] = truth[470:] = False
    assert overlap(found(picture), truth) > 0.95


def test_what_was_not_scanned_is_no_tissue() -> None:
    picture, truth = slide_with_tissue()
    opaque = np.ones(SIZE, bool)
    opaque[:, :200] = False
    mask = tissue_of_image(picture, opaque).mask
    assert not mask[:, :195].any()
    assert overlap(mask[:, 205:], truth[:, 205:]) > 0.95


def test_dust_threads_and_shadows_are_no_tissue() -> None:
    picture, truth = slide_with_tissue()
    shadow = np.linspace(1.0, 0.75, SIZE[1])[None, :, None]
    rng = np.random.default_rng(3)
    for x, y in rng.integers(0, 500, (120, 2)):
        cv2.circle(picture, (int(x), int(y)), int(rng.integers(1, 5)), (150, 60, 110), -1)
    cv2.line(picture, (330, 20), (560, 300), (120, 60, 140), 2)
    cv2.ellipse(picture, (520, 90), (60, 40), 20, 0, 360, (150, 148, 151), -1)
    assert overlap(found((picture * shadow).astype(np.uint8)), truth) > 0.9


@pytest.mark.parametrize("tint", [(255, 255, 255), (243, 241, 244), (225, 215, 235), (240, 238, 220), (200, 205, 203)])
def test_an_empty_slide_of_any_glass_has_no_tissue(tint: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = np.clip(np.array(tint) + rng.normal(0, 2, (*SIZE, 3)), 0, 255).astype(np.uint8)
    picture = (picture * np.linspace(0.9, 1, SIZE[0])[:, None, None]).astype(np.uint8)
    assert not found(picture).any()


@pytest.mark.parametrize("tint", [(255, 255, 255), (225, 215, 235), (240, 238, 220)])
def test_the_scanners_tint_does_not_move_the_mask(tint: tuple[int, int, int]) -> None:
    picture, truth = slide_with_tissue(0.4)
    tinted = np.clip(picture * (np.array(tint) / np.array(GLASS)), 0, 255).astype(np.uint8)
    assert overlap(found(tinted), truth) > 0.95


def test_a_dark_picture_as_of_fluorescence_has_no_tissue() -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[..., 2] = np.where(disc((200, 220), 140), 120, 8)
    assert not found(picture).any()


def test_tissue_that_fills_the_picture_is_found_without_any_glass() -> None:
    picture = canvas()
    stain(picture, np.ones(SIZE, bool), 1.5)
    assert found(picture).mean() > 0.95


def test_small_pieces_go_and_small_holes_are_filled() -> None:
    spec = TissueSpec(min_piece_um2=15_000, max_hole_um2=15_000, close_um=8.0, open_um=8.0)
    picture, piece = canvas(), disc((200, 220), 100)
    # Radii of 5 and 12 pixels are 5,000 and 29,000 square microns.
    truth = piece & ~disc((170, 200), 5) & ~disc((230, 220), 12) | disc((400, 100), 5) | disc((450, 300), 12)
    stain(picture, truth)
    mask = found(picture, spec)
    assert mask[200, 170]
    assert not mask[220, 230]
    assert not mask[100, 400]
    assert mask[300, 450]


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda scanner: scanner.name)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"pen": Pen((24, 84, 176))},
        {"pen": Pen((30, 122, 78))},
        {"pen": Pen((34, 32, 38))},
        {"hole": True, "side_um": 1000},  # so that it is larger than holes that are filled
        {"thickness": 0.5},
        {"thickness": 0.35},
    ],
    ids=["clean", "blue pen", "green pen", "black pen", "torn hole", "half as thick", "a third as thick"],
)
def test_the_tissue_of_a_generated_slide_is_found_where_it_was_drawn(
    case: dict[str, Any], scanner: Scanner, tmp_path: Path
) -> None:
    drawn = GeneratedSlide("drawn", scanner, 1.0, seed=0, **{"side_um": 640, **case})
    with open_slide(write_slide(drawn, tmp_path)) as slide:
        truth = tissue_from_geojson(tmp_path / "truth" / "drawn.geojson", slide, TissueSpec()).mask
        mask = find_tissue(slide).mask
    assert overlap(mask, truth) >= 0.9
    borders, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hole = (cv2.drawContours(np.zeros(truth.shape, np.uint8), borders, -1, 1, cv2.FILLED) > 0) & ~truth
    assert hole.any() == bool(drawn.hole)
    assert (mask & hole).sum() <= 0.5 * hole.sum()


def test_the_mask_of_a_slide_is_the_same_at_every_scan_resolution(tmp_path: Path) -> None:
    masks = []
    for name, factor, levels in (("fine", 4, (4,)), ("coarse", 2, ())):
        picture, truth = slide_with_tissue()
        pixels = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        path = write_pyramid(tmp_path / f"{name}.tiff", pixels, 8.0 / factor, levels)
        with open_slide(path) as slide:
            masks.append(find_tissue(slide))
    assert overlap(masks[0].mask, masks[1].mask) > 0.97
    assert overlap(masks[0].mask, truth) > 0.95
    assert masks[0].area_mm2 == pytest.approx(truth.sum() * 64 / 1e6, rel=0.03)


def test_the_same_picture_gives_the_same_mask_and_another_digest_where_it_differs() -> None:
    picture, _ = slide_with_tissue()
    opaque = np.ones(SIZE, bool)
    first, second = tissue_of_image(picture, opaque), tissue_of_image(picture, opaque)
    changed = first.mask.copy()
    changed[0, 0] ^= True
    assert np.array_equal(first.mask, second.mask)
    assert first.sha256 == second.sha256
    assert len({first.sha256, TissueMask(changed, 8.0).sha256, TissueMask(first.mask, 4.0).sha256}) == 3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    mask_mpp=st.floats(0.5, 9),
    slide_mpp=st.floats(0.2, 3),
    extent_px0=st.floats(0.5, 60),
)
def test_coverage_is_what_adding_up_pixel_overlaps_gives(
    seed: int, mask_mpp: float, slide_mpp: float, extent_px0: float
) -> None:
    rng = np.random.default_rng(seed)
    mask = TissueMask(rng.random((13, 17)) < 0.5, mask_mpp)
    corners = rng.uniform(-10, 17 * mask_mpp / slide_mpp + 5, (8, 2))
    shares = mask.coverage(corners[:, 0], corners[:, 1], extent_px0, slide_mpp)
    for (x, y), share in zip(corners * slide_mpp / mask_mpp, shares, strict=True):
        side = extent_px0 * slide_mpp / mask_mpp
        columns = np.clip(np.minimum(np.arange(17) + 1, x + side) - np.maximum(np.arange(17), x), 0, None)
        rows = np.clip(np.minimum(np.arange(13) + 1, y + side) - np.maximum(np.arange(13), y), 0, None)
        assert share == pytest.approx(float(rows @ mask.mask @ columns) / side**2, abs=1e-9)


@pytest.mark.parametrize(
    ("settings_", "flag"),
    [
        ({"mpp": 0.0}, "mpp"),
        ({"min_chroma": 0.5}, "min_chroma"),
        ({"max_chroma": 0.001}, "max_chroma"),
        ({"open_um": -1.0}, "open_um"),
        ({"open_um": 2001.0}, "open_um"),
        ({"close_um": 1e9}, "close_um"),
        ({"smooth_um": 2001.0}, "smooth_um"),
        ({"smooth_um": 500.0, "mpp": 0.5}, "smooth_um"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag(settings_: dict[str, float], flag: str) -> None:
    with pytest.raises(InputError, match=f"--tissue.{flag}"):
        TissueSpec(**settings_)


def test_the_widest_filters_that_are_allowed_can_be_computed() -> None:
    picture = canvas()
    half = np.zeros(SIZE, bool)
    half[:, :300] = True
    stain(picture, half)
    assert overlap(found(picture, TissueSpec(smooth_um=2000.0, close_um=2000.0, open_um=2000.0)), half) > 0.95


@pytest.mark.skipif(not REAL, reason="PATHFM_TEST_SLIDES is not set")
@pytest.mark.parametrize(
    ("name", "mpp", "low_mm2", "high_mm2"),
    [
        ("cohort/lung-squamous-cell-carcinoma_HE1.svs", None, 7, 8.5),
        ("cohort/PDAC-tru-cut_HE2.svs", None, 18.5, 21),
        ("cohort/erosion_HE.tiff", 0.5, 5.4, 6.2),
        ("test3-DAPI-2-(387).ndpi", None, 0, 0),
        ("hostile/small.svs", None, 0, 0),
    ],
)
def test_real_slides_have_the_tissue_that_an_eye_sees(
    name: str, mpp: float | None, low_mm2: float, high_mm2: float
) -> None:
    with open_slide(Path(str(REAL)) / name, mpp) as slide:
        assert low_mm2 <= find_tissue(slide).area_mm2 <= high_mm2
