"""Tissue as GeoJSON outlines and back, in level-0 pixels, as QuPath reads and writes them.

Outlines run through the middle between tissue and background pixels (marching squares at one half), so rasterising at
pixel centres gives the mask back.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NoReturn, cast

import contourpy
import numpy as np
import shapely

from pathfm.errors import SlideError
from pathfm.files import read_json
from pathfm.progress import logger
from pathfm.tissue import TissueMask, TissueSpec, find_tissue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.slide import Slide

_SIMPLIFY = 0.2  # of a mask pixel
_MAX_BYTES = 1 << 28
_DEPTHS = {"Polygon": 1, "MultiPolygon": 2}
_CROSSINGS = 1 << 18  # of edges and pixel rows, held at once


def tissue_of(slide: Slide, spec: TissueSpec, outlines: Path | None = None, original_id: str = "") -> TissueMask:
    """The tissue of a slide: from `<outlines>/<slide_id>.geojson` where there is such a file, found otherwise.

    Where the slide_id is a pseudonym, outlines of that name (which `tile` wrote) count before those of the original id.

    Raises:
        SlideError: the outline cannot be read or used.
        TileUnreadableError: the overview cannot be decoded.
    """
    names = [name for name in (slide.slide_id, original_id) if name]
    drawn = [] if outlines is None else [outlines / f"{name}.geojson" for name in names]
    path = next((path for path in drawn if _exists(path, slide)), None)
    return find_tissue(slide, spec) if path is None else tissue_from_geojson(path, slide, spec)


def tissue_to_geojson(mask: TissueMask, slide: Slide) -> dict[str, Any]:
    """A FeatureCollection with one Polygon a piece of tissue, holes kept, in level-0 pixels.

    Each feature is an annotation of the class "Tissue", which QuPath opens with File > Import objects.
    """
    scale = mask.mpp / slide.mpp
    features = [_feature(polygon, scale, slide.size_px0) for polygon in _polygons(mask.mask)]
    return {"type": "FeatureCollection", "features": features}


def tissue_from_geojson(path: Path, slide: Slide, spec: TissueSpec) -> TissueMask:
    """The mask of outlines drawn or edited by hand.

    Accepts a FeatureCollection, a bare list of Features, or one Feature; Polygon and MultiPolygon, in level-0 pixels.
    The areas of all classes count as tissue, but those of a class called Ignore..., Exclude... or ending in "*"
    (which QuPath itself ignores) are cut out. Points and lines have no area and are passed over. No feature at all
    means no tissue. What lies outside the scan is cut off.

    Raises:
        SlideError: the file is no such GeoJSON, has no area, or lies wholly outside the slide.
    """
    areas = [
        (_excluded(feature), polygon) for feature in _features(path, slide) for polygon in _rings(path, slide, feature)
    ]
    width, height = slide.overview_size(spec.mpp)
    tissue, cut = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for excluded, rings in areas:
        _fill(cut if excluded else tissue, [ring * (slide.mpp / spec.mpp) for ring in rings])
    if any(not excluded for excluded, _ in areas) and not tissue.any():
        _refuse_outside(path, slide)
    return TissueMask(tissue & ~cut, spec.mpp, "outline")


def annotations_from_geojson(path: Path, slide: Slide, spec: TissueSpec) -> dict[str, TissueMask]:
    """The areas of each class that somebody annotated, by the name of the class, sorted.

    Reads what `tissue_from_geojson` reads; here the name of an area's class (`properties.classification.name`, as QuPath
    writes it) is its label. Areas without a class are passed over with a warning; those of a class called Ignore...,
    Exclude... or ending in "*" are cut out of all others. Areas of two classes may overlap.

    Raises:
        SlideError: the file is no such GeoJSON, or its areas lie wholly outside the slide.
    """
    width, height = slide.overview_size(spec.mpp)
    masks: dict[str, NDArray[np.bool_]] = {}
    cut, nameless = np.zeros((height, width), bool), 0
    for feature in _features(path, slide):
        name = _class_of(feature)
        for rings in _rings(path, slide, feature):
            nameless += not name
            mask = cut if _excluded(feature) else masks.setdefault(name, np.zeros((height, width), bool))
            _fill(mask, [ring * (slide.mpp / spec.mpp) for ring in rings])
    if masks and not any(mask.any() for mask in masks.values()):
        _refuse_outside(path, slide)
    if nameless:
        logger.warning("%s: %d areas without a class are passed over", path, nameless)
    return {name: TissueMask(masks[name] & ~cut, spec.mpp, "outline") for name in sorted(masks) if name}


def _exists(path: Path, slide: Slide) -> bool:
    try:
        path.lstat()  # a link to nowhere is an outline that cannot be read, not the lack of one
    except FileNotFoundError:
        return False
    except OSError as error:
        _refuse(path, slide, f"cannot be looked up ({error.strerror}); check the folder passed to --outlines")
    return True


def _polygons(mask: NDArray[np.bool_]) -> list[shapely.Polygon]:
    """Pieces with holes, in mask pixels, row by row from the top."""
    padded = np.pad(mask, 1).astype(np.float32)
    lines = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset).filled(0.5, np.inf)
    points, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", lines)
    polygons = []
    for piece, ends in zip(points, offsets, strict=True):
        rings = [piece[a:b] - 0.5 for a, b in itertools.pairwise(ends)]
        polygons.append(shapely.Polygon(rings[0], rings[1:]))
    return [cast("shapely.Polygon", polygon.simplify(_SIMPLIFY)) for polygon in polygons]


def _feature(polygon: shapely.Polygon, scale: float, size_px0: tuple[int, int]) -> dict[str, Any]:
    rings = [polygon.exterior, *polygon.interiors]
    coordinates = [np.round(np.clip(np.asarray(ring.coords) * scale, 0, size_px0), 2).tolist() for ring in rings]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
    }


def _features(path: Path, slide: Slide) -> list[dict[str, Any]]:
    """The features of a file, of whichever wrapping."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            _refuse(path, slide, f"has over {_MAX_BYTES >> 20} MiB; simplify the outlines")
        value = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        _refuse(path, slide, f"cannot be read as GeoJSON ({' '.join(str(error).split())}); export it again")
    if isinstance(value, dict):
        value = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not isinstance(value, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in value):
        _refuse(path, slide, "is no FeatureCollection, list of Features or Feature; export annotations as GeoJSON")
    if value and not any(_kind(feature) in _DEPTHS for feature in value):
        _refuse(path, slide, "has features but no Polygon or MultiPolygon; draw areas, or leave it out of --outlines")
    return cast("list[dict[str, Any]]", value)


def _kind(feature: dict[str, Any]) -> str:
    geometry = feature.get("geometry")
    return str(geometry.get("type")) if isinstance(geometry, dict) else ""


def _class_of(feature: dict[str, Any]) -> str:
    """The name of the feature's class, "" where it has none."""
    properties = feature.get("properties")
    classification = properties.get("classification") if isinstance(properties, dict) else None
    return str(classification.get("name", "") if isinstance(classification, dict) else classification or "")


def _excluded(feature: dict[str, Any]) -> bool:
    """Whether the feature's class says that it is no tissue."""
    name = _class_of(feature)
    return name.lower().startswith(("ignore", "exclude")) or name.endswith("*")


def _rings(path: Path, slide: Slide, feature: dict[str, Any]) -> Iterator[list[NDArray[np.float64]]]:
    """The polygons of a feature, each its outer ring and its holes, float64 (n, 2)."""
    kind = _kind(feature)
    if kind not in _DEPTHS:
        logger.warning("%s: a feature of the type %s has no area and is passed over", path, kind or "nothing")
        return
    coordinates = feature["geometry"].get("coordinates")
    try:
        for polygon in _some(coordinates) if kind == "MultiPolygon" else [coordinates]:
            yield [_ring(ring) for ring in _some(polygon)]
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        _refuse(
            path, slide, f"has a {kind} whose coordinates are no rings of (x, y) numbers ({error}); export it again"
        )


def _some(items: Any) -> Any:
    if not items:
        message = "there are none"
        raise ValueError(message)
    return items


def _ring(points: Any) -> NDArray[np.float64]:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not (np.abs(ring) < 1e9).all():
        message = "a ring needs three points or more, each two finite numbers"
        raise ValueError(message)
    return ring


def _fill(mask: NDArray[np.bool_], rings: list[NDArray[np.float64]]) -> None:
    """Sets the pixels whose centres lie inside (even-odd rule, so inner rings are holes); looks only at their box.

    Each edge toggles, in every pixel row whose centre line it crosses, all pixels from the crossing on to the right.
    """
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    (left, top), (right, bottom) = (
        [int(_rows(side, count)) for side, count in zip(corner, mask.shape[::-1], strict=True)]
        for corner in (start.min(axis=0), start.max(axis=0))
    )
    box = mask[top:bottom, left:right]
    if box.size:
        origin = np.array([left, top])
        box |= _inside(start - origin, end - origin, *box.shape)


def _inside(start: NDArray[np.float64], end: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Whether each pixel centre of a box lies inside the edges' even-odd area; parity survives the wrap of uint8."""
    toggles = np.zeros((height, width + 1), np.uint8)
    first, last = (_rows(pick(start[:, 1], end[:, 1]), height) for pick in (np.minimum, np.maximum))
    crossings = np.cumsum(last - first)
    for k in range(0, int(crossings[-1]), _CROSSINGS):
        some = slice(*np.searchsorted(crossings, (k, k + _CROSSINGS), side="right"))
        _toggle(toggles, start[some], end[some], first[some], last[some])
    inside: NDArray[np.bool_] = np.cumsum(toggles, axis=1, dtype=np.uint8)[:, :width] % 2 == 1
    return inside


def _toggle(
    toggles: NDArray[np.uint8],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
) -> None:
    """Adds one where each edge crosses the centre lines of the rows from its `first` up to its `last`."""
    edge = np.repeat(np.arange(len(start)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    columns = toggles.shape[1]
    np.add.at(toggles.reshape(-1), row * columns + _rows(crossing, columns - 1), np.uint8(1))


def _rows(position: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The first pixel whose centre is not before a position."""
    return np.clip(np.ceil(position - 0.5), 0, count).astype(np.int64)


def _refuse_outside(outline: Path, slide: Slide) -> NoReturn:
    w, h = slide.size_px0
    _refuse(
        outline, slide, f"has no area inside the slide, which is {w} x {h} pixels; export in full-resolution pixels"
    )


def _refuse(outline: Path, slide: Slide, problem: str) -> NoReturn:
    raise SlideError(slide.path, "tissue outline", f"{outline} {problem}")
