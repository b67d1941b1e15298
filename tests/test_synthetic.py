"""The generated cohort: slides of known scale and truth, whose lesion has a texture of its own and no colour of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import pytest
import shapely
import torch

from pathfm.backbones.colour import FEATURES, ColourTexture
from pathfm.histology import LESION_SHARE, grow
from pathfm.scanner import SCANNERS, Pen, scan
from pathfm.synthetic import LABEL, N_PAIRS, GeneratedSlide, plan_cohort, write_slide

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from shapely.geometry.base import BaseGeometry

SIDE_UM = 600
SEEDS = range(6)


def positive(slide_id: str = "lesion", **changes: Any) -> GeneratedSlide:
    settings: dict[str, Any] = {"mpp": 0.5, "seed": 3, "lesion": True, "side_um": SIDE_UM} | changes
    return GeneratedSlide(slide_id, SCANNERS[1], **settings)


def truth(folder: Path, slide_id: str) -> dict[str, BaseGeometry]:
    features = json.loads((folder / "truth" / f"{slide_id}.geojson").read_text())["features"]
    shapes: dict[str, list[BaseGeometry]] = {}
    for feature in features:
        name = feature["properties"]["classification"]["name"]
        shapes.setdefault(name, []).append(shapely.geometry.shape(feature["geometry"]))
    return {name: shapely.union_all(parts) for name, parts in shapes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One positive slide with a hole, written."""
    out = tmp_path_factory.mktemp("generated")
    write_slide(positive(hole=True), out)
    return out


@pytest.fixture(scope="module")
def level_0(folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    with openslide.OpenSlide(folder / "slides" / "lesion.tiff") as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.float64)


def covered(shape: BaseGeometry, size_px0: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    y, x = np.mgrid[:size_px0, :size_px0] + 0.5
    shapely.prepare(shape)
    return np.asarray(shapely.contains_xy(shape, x.ravel(), y.ravel())).reshape(x.shape)


def test_equal_settings_give_equal_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again = write_slide(positive(hole=True), tmp_path)
    other = write_slide(positive("other", hole=True, seed=4), tmp_path)
    written = (folder / "slides" / "lesion.tiff").read_bytes()
    assert again.read_bytes() == written
    assert other.read_bytes() != written


def test_openslide_reads_the_scale_and_the_levels(folder: Path) -> None:
    with openslide.OpenSlide(folder / "slides" / "lesion.tiff") as slide:
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.5)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]) == pytest.approx(0.5)
        assert slide.level_downsamples == (1, *SCANNERS[1].downsamples)


def test_a_level_is_the_area_average_of_level_0(folder: Path, level_0: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    with openslide.OpenSlide(folder / "slides" / "lesion.tiff") as slide:
        level_1 = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"), np.float64)
    h, w = level_1.shape[:2]
    averaged = level_0[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3))
    assert np.abs(averaged - level_1).mean() < 3  # JPEG of both levels


def test_the_lesion_has_the_mean_colour_of_the_rest_of_the_tissue(
    folder: Path, level_0: np.ndarray[Any, np.dtype[np.float64]]
) -> None:
    shapes = truth(folder, "lesion")
    lesion, tissue = (covered(shapes[name], len(level_0)) for name in ("Lesion", "Tissue"))
    difference = level_0[lesion].mean(0) - level_0[tissue & ~lesion].mean(0)
    assert np.abs(difference).max() < 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_lesion_is_a_small_part_of_the_tissue_and_inside_it(seed: int) -> None:
    anatomy = grow(np.random.default_rng(seed), SIDE_UM, lesion=True, hole=seed % 2 == 0)
    share = anatomy.lesion.sum() / anatomy.tissue.sum()
    assert 0.01 < share <= LESION_SHARE[1] + 0.001 < 0.1
    assert not (anatomy.lesion & ~anatomy.tissue).any()


def test_a_negative_has_no_lesion() -> None:
    anatomy = grow(np.random.default_rng(0), SIDE_UM, lesion=False, hole=False)
    assert not anatomy.lesion.any()
    assert len(anatomy.atypical) == 0


def test_the_lesion_has_fewer_and_larger_nuclei(folder: Path) -> None:
    anatomy = grow(np.random.default_rng(0), SIDE_UM, lesion=True, hole=False)
    usual = np.sqrt(anatomy.nuclei[:, 2] * anatomy.nuclei[:, 3])
    assert np.median(anatomy.atypical[:, 2]) > 1.5 * np.median(usual)
    whole = anatomy.nuclei[:, :2].astype(int)
    assert not anatomy.lesion[whole[:, 1], whole[:, 0]].any()


def test_the_true_outlines_lie_where_the_picture_has_tissue(
    folder: Path, level_0: np.ndarray[Any, np.dtype[np.float64]]
) -> None:
    shapes = truth(folder, "lesion")
    inside = covered(shapes["Tissue"], len(level_0))
    green = level_0[..., 1]
    assert green[inside].mean() < 170
    assert green[~inside].mean() > 225
    assert shapes["Tissue"].buffer(3).contains(shapes["Lesion"])


def test_a_hole_is_a_hole_in_the_truth(folder: Path) -> None:
    tissue = truth(folder, "lesion")["Tissue"]
    pieces = list(getattr(tissue, "geoms", [tissue]))
    solid = shapely.union_all([shapely.Polygon(piece.exterior) for piece in pieces])
    assert tissue.area < 0.98 * solid.area


def test_nuclei_keep_their_size_in_microns_at_every_mpp() -> None:
    means = []
    for mpp in (0.25, 0.5):
        rng = np.random.default_rng(0)
        anatomy = grow(rng, SIDE_UM, lesion=False, hole=False)
        picture = scan(rng, anatomy, SCANNERS[1].stain, 1.0, mpp)
        assert picture.shape[0] * mpp == pytest.approx(SIDE_UM, rel=0.02)
        side = min(int(SIDE_UM / mpp), len(picture))
        dark = picture[:side, :side, 0] < 130
        means.append(dark.mean())
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_texture_tells_lesion_from_the_rest_on_both_scanners() -> None:
    for scanner in SCANNERS:
        rng = np.random.default_rng(1)
        anatomy = grow(rng, 800, lesion=True, hole=False)
        picture = scan(rng, anatomy, scanner.stain, 1.0, 0.5)
        tiles, inside = [], []
        for y in range(0, len(picture) - 127, 64):
            for x in range(0, len(picture) - 127, 64):
                window = np.s_[y // 2 : y // 2 + 64, x // 2 : x // 2 + 64]
                if anatomy.tissue[window].mean() > 0.99 and anatomy.lesion[window].mean() in (0, 1):
                    tiles.append(picture[y : y + 128, x : x + 128])
                    inside.append(bool(anatomy.lesion[window].all()))
        assert sum(inside) >= 2
        batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
        coarse = ColourTexture()(batch)[:, FEATURES.index("texture_dark_3")].numpy()
        chosen = np.array(inside)
        assert coarse[chosen].min() > np.quantile(coarse[~chosen], 0.9)


def test_a_slide_without_tissue_is_glass(tmp_path: Path) -> None:
    path = write_slide(positive("empty", lesion=False, tissue=False), tmp_path)
    with openslide.OpenSlide(path) as slide:
        picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    assert np.median(picture) > 230
    assert truth(tmp_path, "empty") == {}


def test_a_truncated_file_is_half_of_a_good_one_and_does_not_open(folder: Path, tmp_path: Path) -> None:
    path = write_slide(positive(hole=True, truncated=True), tmp_path)
    whole = (folder / "slides" / "lesion.tiff").read_bytes()
    assert path.read_bytes() == whole[: len(whole) // 2]
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)


def test_a_slide_can_be_without_mpp(tmp_path: Path) -> None:
    path = write_slide(positive("bare", states_mpp=False), tmp_path)
    with openslide.OpenSlide(path) as slide:
        assert openslide.PROPERTY_NAME_MPP_X not in slide.properties


def test_a_pen_marks_the_glass_in_its_colour(tmp_path: Path) -> None:
    pen = Pen((24, 84, 176))
    path = write_slide(positive("marked", pen=pen), tmp_path)
    with openslide.OpenSlide(path) as slide:
        picture = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), int)
    inked = np.abs(picture - np.array(pen.rgb)).max(2) < 45
    tissue = covered(truth(tmp_path, "marked")["Tissue"], len(picture))
    assert inked.mean() > 0.01
    assert (inked & ~tissue).sum() > (inked & tissue).sum()


@pytest.fixture(scope="module")
def plan() -> tuple[pd.DataFrame, list[GeneratedSlide]]:
    return plan_cohort(0)


def test_every_positive_has_a_negative_of_its_scanner_tint_and_mpp(
    plan: tuple[pd.DataFrame, list[GeneratedSlide]],
) -> None:
    table, slides = plan
    kinds: dict[str, list[Any]] = {"0": [], "1": []}
    for label, slide in zip(table[LABEL], slides, strict=True):
        if label and not slide.truncated:
            assert slide.lesion == (label == "1")
            kinds[label].append((slide.scanner, slide.mpp, slide.hole, slide.pen))
    assert len(kinds["1"]) == len(kinds["0"]) == len(slides) // 2 - 1
    assert all(kinds["1"].count(kind) == kinds["0"].count(kind) for kind in kinds["1"])


def test_the_cohort_has_what_the_demo_is_to_show(plan: tuple[pd.DataFrame, list[GeneratedSlide]]) -> None:
    table, slides = plan
    assert table["slide_id"].is_unique
    assert len(table) == len(slides) >= 20
    patients = table[table[LABEL] != ""].groupby("patient_id")
    assert len(patients) == 2 * N_PAIRS
    assert (patients[LABEL].nunique() == 1).all()
    assert (patients.size() > 1).sum() >= 4
    assert len({slide.mpp for slide in slides}) >= 4
    assert set(table["scanner"]) == {scanner.name for scanner in SCANNERS}
    assert [sum(not s.tissue for s in slides), sum(s.truncated for s in slides)] == [1, 1]
    assert sum(slide.pen is not None for slide in slides) >= 1
    assert sum(slide.hole for slide in slides) >= 1


def test_the_table_states_the_mpp_only_where_the_file_does_not(
    plan: tuple[pd.DataFrame, list[GeneratedSlide]],
) -> None:
    table, slides = plan
    stated = {slide.slide_id: slide.mpp for slide in slides if not slide.states_mpp}
    assert dict(zip(table["slide_id"], table["mpp"], strict=True)) == {
        slide.slide_id: stated.get(slide.slide_id, "") for slide in slides
    }
    assert len(stated) == 1


def test_a_plan_is_the_same_every_time_and_another_for_another_seed(
    plan: tuple[pd.DataFrame, list[GeneratedSlide]],
) -> None:
    assert plan_cohort(0)[1] == plan[1]
    assert plan_cohort(1)[1] != plan[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_thickness_and_site_differ_between_the_classes_no_more_than_chance_makes_them(seed: int) -> None:
    table, slides = plan_cohort(seed)
    table = table.assign(thickness=[slide.thickness for slide in slides], damaged=[s.truncated for s in slides])
    table = table[(table[LABEL] != "") & ~table["damaged"]]
    groups = [group for _, group in table.groupby(LABEL)]
    a, b = (group["thickness"].to_numpy(float) for group in groups)
    t = abs(a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    assert t < 1.9
    north = [group.groupby("patient_id")["site"].first().eq("north").sum() for group in groups]
    assert abs(int(north[0]) - int(north[1])) <= 3
