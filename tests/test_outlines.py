from __future__ import annotations

import json
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import shapely
from pyramids import write_pyramid

from pathfm.errors import SlideError
from pathfm.outlines import tissue_from_geojson, tissue_of, tissue_to_geojson
from pathfm.slide import Slide, open_slide
from pathfm.tissue import TissueMask, TissueSpec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = TissueSpec()


@pytest.fixture(scope="module")
def glass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1600 x 1200 pixels at 0.5 mpp: 100 x 75 mask pixels."""
    pixels = np.full((1200, 1600, 3), 243, np.uint8)
    return write_pyramid(tmp_path_factory.mktemp("glass") / "glass.tiff", pixels, 0.5, (4, 16))


@pytest.fixture
def slide(glass: Path) -> Any:
    with open_slide(glass) as opened:
        yield opened


def blobs(seed: int) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (75, 100)), (0, 0), 4)
    return noise > 0.02


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry: dict[str, Any] | None, name: str | None = "Tissue") -> dict[str, Any]:
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def read(tmp_path: Path, slide: Slide, value: Any) -> np.ndarray:
    path = tmp_path / "outline.geojson"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return tissue_from_geojson(path, slide, SPEC).mask


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_comes_back_from_its_outlines(tmp_path: Path, slide: Slide, seed: int) -> None:
    mask = blobs(seed)
    back = read(tmp_path, slide, tissue_to_geojson(TissueMask(mask, SPEC.mpp), slide))
    assert (back & mask).sum() / (back | mask).sum() > 0.98


def test_outlines_are_valid_pieces_in_level_0_pixels_with_their_holes(slide: Slide) -> None:
    mask = np.zeros((75, 100), bool)
    mask[10:40, 20:60] = True
    mask[20:30, 30:40] = False
    mask[50:60, 5:15] = True
    collection = tissue_to_geojson(TissueMask(mask, SPEC.mpp), slide)
    shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in collection["features"]]
    assert collection["type"] == "FeatureCollection"
    assert [len(s.interiors) for s in shapes] == [1, 0]
    assert all(s.is_valid for s in shapes)
    assert shapes[0].bounds == (320, 160, 960, 640)
    assert shapes[0].area == pytest.approx((30 * 40 - 100) * 256, rel=0.01)
    assert all(f["properties"]["classification"]["name"] == "Tissue" for f in collection["features"])
    assert all(f["properties"]["objectType"] == "annotation" for f in collection["features"])


def test_tissue_that_touches_the_edge_stays_inside_the_scan(tmp_path: Path, slide: Slide) -> None:
    mask = np.ones((75, 100), bool)
    collection = tissue_to_geojson(TissueMask(mask, SPEC.mpp), slide)
    points = np.array(collection["features"][0]["geometry"]["coordinates"][0])
    assert points.min() == 0
    assert points.max(axis=0).tolist() == [1600, 1200]
    assert read(tmp_path, slide, collection).all()


POLYGON = {"type": "Polygon", "coordinates": [square(160, 160, 320)]}


@pytest.mark.parametrize(
    "value",
    [
        {"type": "FeatureCollection", "features": [feature(POLYGON)]},
        [feature(POLYGON)],
        feature(POLYGON),
        [feature(POLYGON, None)],
        [feature(POLYGON, "Tumor")],
        [feature({"type": "MultiPolygon", "coordinates": [POLYGON["coordinates"]]})],
        [feature(POLYGON), feature({"type": "Point", "coordinates": [1, 2]})],
        [feature({"type": "Polygon", "coordinates": [[[*p, 0] for p in square(160, 160, 320)]]})],
        [feature(POLYGON), feature(POLYGON)],
    ],
)
def test_every_wrapping_that_qupath_exports_is_read(tmp_path: Path, slide: Slide, value: Any) -> None:
    expected = np.zeros((75, 100), bool)
    expected[10:30, 10:30] = True
    assert np.array_equal(read(tmp_path, slide, value), expected)


def test_holes_and_areas_to_ignore_are_cut_out(tmp_path: Path, slide: Slide) -> None:
    expected = np.zeros((75, 100), bool)
    expected[10:30, 10:30] = True
    expected[15:20, 15:20] = expected[10:12, 10:12] = expected[28:30, 28:30] = False
    value = [
        feature({"type": "Polygon", "coordinates": [square(160, 160, 320), square(240, 240, 80)]}),
        feature({"type": "Polygon", "coordinates": [square(160, 160, 32)]}, "Ignore*"),
        feature({"type": "Polygon", "coordinates": [square(448, 448, 99)]}, "exclude pen"),
    ]
    assert np.array_equal(read(tmp_path, slide, value), expected)


def test_an_empty_collection_means_no_tissue(tmp_path: Path, slide: Slide) -> None:
    assert not read(tmp_path, slide, {"type": "FeatureCollection", "features": []}).any()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{not json", "cannot be read as GeoJSON"),
        ("[" * 100_000, "cannot be read as GeoJSON"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as GeoJSON"),
        ("7", "no FeatureCollection"),
        ({"type": "FeatureCollection"}, "no FeatureCollection"),
        ([{"type": "Polygon"}], "no FeatureCollection"),
        ([feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})], "no Polygon or MultiPolygon"),
        ([feature(None)], "no Polygon or MultiPolygon"),
        ([feature({"type": "Polygon", "coordinates": None})], "no rings"),
        ([feature({"type": "Polygon", "coordinates": []})], "no rings"),
        ([feature({"type": "MultiPolygon", "coordinates": []})], "no rings"),
        ([feature({"type": "MultiPolygon", "coordinates": [[]]})], "no rings"),
        ([feature({"type": "Polygon", "coordinates": [[[0, 0], [9, 10**400], [1, 1]]]})], "no rings"),
        ([feature({"type": "Polygon", "coordinates": [[{"x": 0}] * 3]})], "no rings"),
        ('[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[9,1e400],[1,1]]]}}]', "no rings"),
        ([feature({"type": "Polygon", "coordinates": [[[0, 0], [9, 9]]]})], "no rings"),
        ([feature({"type": "Polygon", "coordinates": [[[0, 0], [9, "x"], [1, 1]]]})], "no rings"),
        ('[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[9,NaN],[1,1]]]}}]', "no rings"),
        ([feature({"type": "Polygon", "coordinates": [square(90_000, 90_000, 100)]})], "no area inside the slide"),
    ],
)
def test_a_bad_outline_is_a_typed_error_in_one_line(tmp_path: Path, slide: Slide, value: Any, said: str) -> None:
    with pytest.raises(SlideError, match=said) as caught:
        read(tmp_path, slide, value)
    assert (caught.value.reason, caught.value.path) == ("tissue outline", slide.path)
    assert "outline.geojson" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_outline_stands_in_for_found_tissue_only_where_there_is_one(tmp_path: Path, slide: Slide) -> None:
    assert tissue_of(slide, SPEC, tmp_path).source == "found"
    (tmp_path / "glass.geojson").write_text(json.dumps(feature(POLYGON)))
    assert tissue_of(slide, SPEC, tmp_path).source == "outline"
    assert tissue_of(slide, SPEC).source == "found"


@pytest.mark.parametrize("kind", ["a folder that is a loop", "a folder that is a file", "a dangling link", "a folder"])
def test_an_outline_that_cannot_be_reached_is_not_taken_for_a_missing_one(
    tmp_path: Path, slide: Slide, kind: str
) -> None:
    outlines = tmp_path / "outlines"
    if kind == "a folder that is a loop":
        outlines.symlink_to(outlines)
    elif kind == "a folder that is a file":
        outlines.write_text("")
    elif kind == "a dangling link":
        outlines.mkdir()
        (outlines / "glass.geojson").symlink_to(tmp_path / "nowhere")
    else:
        (outlines / "glass.geojson").mkdir(parents=True)
    with pytest.raises(SlideError, match=r"glass\.geojson cannot be") as caught:
        tissue_of(slide, SPEC, outlines)
    assert caught.value.reason == "tissue outline"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """1500 x 1502 pixels at 4 mpp: 750 x 751 mask pixels."""
    path = write_pyramid(tmp_path_factory.mktemp("large") / "large.tiff", np.full((1502, 1500, 3), 243, np.uint8), 4.0)
    with open_slide(path) as opened:
        yield opened


def test_thousands_of_small_areas_take_no_longer_than_a_moment(tmp_path: Path, large: Slide) -> None:
    corners = [(15 * (k % 50), 18 * (k // 50)) for k in range(2000)]
    rings = [[square(2 * x, 2 * y, 8), square(2 * x + 2, 2 * y + 2, 4)] for x, y in corners]
    value = [feature({"type": "Polygon", "coordinates": pair}) for pair in rings]
    expected = np.zeros((751, 750), bool)
    for x, y in corners:
        expected[y : y + 4, x : x + 4] = True
        expected[y + 1 : y + 3, x + 1 : x + 3] = False
    started_s = time.perf_counter()
    assert np.array_equal(read(tmp_path, large, value), expected)
    assert time.perf_counter() - started_s < 6  # the whole mask for each took 10 s


def test_an_outline_of_many_long_edges_is_filled_in_little_memory(tmp_path: Path, large: Slide) -> None:
    zigzag = [[1500 * k / 20_000, 1502 * (k % 2)] for k in range(20_000)]
    tracemalloc.start()
    mask = read(tmp_path, large, feature({"type": "Polygon", "coordinates": [zigzag]}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.any()
    assert peak < 100e6


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_areas_are_filled_alike_however_many_crossings_are_held(
    tmp_path: Path, slide: Slide, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("pathfm.outlines._CROSSINGS", chunk)
    star = np.random.default_rng(0).uniform(-200, 1800, (40, 2))
    filled = read(tmp_path, slide, feature({"type": "Polygon", "coordinates": [star.tolist()]}))
    y, x = np.mgrid[:75, :100] + 0.5
    expected = np.zeros((75, 100), bool)
    for (x0, y0), (x1, y1) in zip(star / 16, np.roll(star, -1, axis=0) / 16, strict=True):
        expected ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
    assert np.array_equal(filled, expected)
