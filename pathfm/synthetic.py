"""A generated cohort: pyramidal slides of drawn tissue with known truth, for the demo and for tests.

Twelve pairs of patients, a positive and a negative each. The two of a pair share scanner, tint and mpp, and the lesion
has the mean colour of the tissue around it, so that only texture tells them apart.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import tifffile

from pathfm.files import write_atomically, write_json, write_text
from pathfm.histology import grow
from pathfm.progress import progress
from pathfm.scanner import SCANNERS, Pen, Scanner, glass, mark, scan

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

N_PAIRS = 12
LABEL = "cancer"
"""The label column: "1" with a lesion, "0" without."""

SITES = ("north", "south")
_NORTHERN = (4, 7)  # of the negatives, of the positives; see `_sites`
_CHANCE_T = (1.4, 1.7)  # see `_thickness`
_THICKNESS_DEVIATION = 0.11
_TINT_DEVIATION = 0.02
_TWO_SLIDES = (2, 7)
_TORN = (0, 3, 9)
_PENS = {1: Pen((24, 84, 176)), 4: Pen((30, 122, 78)), 10: Pen((34, 32, 38))}
_WITHOUT_MPP = 5
_JPEG_QUALITY = 87
_TILE_PX = 256
_WORKERS = 2
_COLOURS = {"Tissue": [0, 114, 178], "Lesion": [213, 94, 0]}


@dataclass(frozen=True)
class GeneratedSlide:
    """What is to be drawn on one slide; equal ones give equal bytes.

    Attributes:
        slide_id: file stem.
        scanner: what it is scanned with; its stain already has the tint of the pair.
        mpp: microns per pixel of level 0.
        seed: of everything random on it.
        lesion: whether it has a lesion.
        tissue: False for empty glass.
        thickness: of the section, around 1.
        hole: whether the tissue is torn open.
        pen: a pen's mark, or None.
        states_mpp: whether the file says its mpp.
        truncated: whether the second half of the file is missing.
        side_um: side of the scanned square.
    """

    slide_id: str
    scanner: Scanner
    mpp: float
    seed: int
    lesion: bool = False
    tissue: bool = True
    thickness: float = 1.0
    hole: bool = False
    pen: Pen | None = None
    states_mpp: bool = True
    truncated: bool = False
    side_um: int = 1300


def generate_cohort(out: Path, seed: int = 0) -> Path:
    """Writes slides, their truth and the table of them; the same seed gives the same bytes.

    Thirty slides of 25 patients: 28 in 12 pairs of patients (four patients have two slides), one without tissue (its
    label is empty) and one truncated file. Three pairs have a pen's mark, three a hole, and one slide states no mpp, so
    that the table's column `mpp` is needed.

    Args:
        out: folder; gets `slides/*.tiff`, `truth/*.geojson` (level-0 px; classes Tissue and Lesion) and `cohort.csv`.
        seed: of everything random.

    Returns:
        The path of `cohort.csv`, with slide_id, patient_id, path, site, scanner, age, mpp and `cancer`.
    """
    rows, slides = plan_cohort(seed)
    with ThreadPoolExecutor(_WORKERS) as pool:
        work = pool.map(lambda slide: write_slide(slide, out), slides)
        for _ in progress(work, "generate", total=len(slides)):
            pass
    table = out / "cohort.csv"
    write_text(table, rows.to_csv(index=False))
    return table


def write_slide(slide: GeneratedSlide, out: Path) -> Path:
    """Draws one slide into `out/slides` and its truth into `out/truth`; gives the path of the TIFF."""
    rng = np.random.default_rng(slide.seed)
    stain = slide.scanner.stain
    if slide.tissue:
        anatomy = grow(rng, slide.side_um, slide.lesion, slide.hole)
        picture = scan(rng, anatomy, stain, slide.thickness, slide.mpp)
        if slide.pen is not None:
            mark(picture, anatomy, slide.pen, slide.mpp)
        truth = {"Tissue": anatomy.tissue, "Lesion": anatomy.lesion}
    else:
        picture, truth = glass(rng, stain, slide.side_um, slide.mpp), {}
    features = [_feature(name, polygon) for name, mask in truth.items() for polygon in _polygons(mask, slide.mpp)]
    write_json(out / "truth" / f"{slide.slide_id}.geojson", {"type": "FeatureCollection", "features": features})
    path = out / "slides" / f"{slide.slide_id}.tiff"
    data = _tiff(picture, slide)
    write_atomically(path, data[: len(data) // 2] if slide.truncated else data)
    return path


def plan_cohort(seed: int) -> tuple[pd.DataFrame, list[GeneratedSlide]]:
    """The table as it will be written, and what to draw for each of its rows, in the same order."""
    rng = np.random.default_rng(seed)
    north, thickness = _sites(rng), _thickness(rng)
    names = np.array([f"P{n + 1:02d}" for n in rng.permutation(2 * N_PAIRS)]).reshape(2, N_PAIRS)
    rows, slides = [], []
    for pair in range(N_PAIRS):
        scanner = _tinted(rng, SCANNERS[pair % 2])
        mpp = scanner.mpps[pair // 2 % 2]
        for label in (1, 0):
            name = str(names[label, pair])
            common = {"patient_id": name, "site": SITES[int(not north[label, pair])], "age": int(rng.integers(41, 86))}
            for block in range(1 + (pair in _TWO_SLIDES)):
                slide = GeneratedSlide(
                    f"{name}-{'AB'[block]}",
                    scanner,
                    mpp,
                    seed=int(rng.integers(2**32)),
                    lesion=bool(label),
                    thickness=float(thickness[label, pair, block]),
                    hole=pair in _TORN,
                    pen=_PENS.get(pair),
                    states_mpp=pair != _WITHOUT_MPP or bool(label),
                )
                slides.append(slide)
                rows.append(_row(slide, str(label), common))
    for slide, grade, common in _odd_ones(rng, slides, rows):
        slides.append(slide)
        rows.append(_row(slide, grade, common))
    order = np.argsort([slide.slide_id for slide in slides])
    return pd.DataFrame([rows[k] for k in order]), [slides[k] for k in order]


def _odd_ones(
    rng: np.random.Generator, slides: list[GeneratedSlide], rows: list[dict[str, Any]]
) -> list[tuple[GeneratedSlide, str, dict[str, Any]]]:
    """A slide without tissue of a patient of its own, and a damaged file of a patient who has a good one."""
    seeds = [int(s) for s in rng.integers(2**32, size=2)]
    patient = f"P{2 * N_PAIRS + 1:02d}"
    empty = GeneratedSlide(f"{patient}-A", SCANNERS[1], SCANNERS[1].mpps[1], seeds[0], tissue=False, side_um=900)
    good, known = slides[-1], rows[-1]
    damaged = replace(good, slide_id=f"{known['patient_id']}-C", seed=seeds[1], truncated=True)
    return [(empty, "", {"patient_id": patient, "site": SITES[1], "age": 58}), (damaged, known[LABEL], known)]


def _row(slide: GeneratedSlide, label: str, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "slide_id": slide.slide_id,
        "patient_id": common["patient_id"],
        "path": f"slides/{slide.slide_id}.tiff",
        "site": common["site"],
        "scanner": slide.scanner.name,
        "age": common["age"],
        "mpp": "" if slide.states_mpp else slide.mpp,
        LABEL: label,
    }


def _tinted(rng: np.random.Generator, scanner: Scanner) -> Scanner:
    """The scanner on one day in the laboratory: every stain's OD a little off."""
    shift = 1 + _TINT_DEVIATION * rng.standard_normal((2, 3))
    h, e = np.array(scanner.stain.haematoxylin) * shift[0], np.array(scanner.stain.eosin) * shift[1]
    stain = replace(scanner.stain, haematoxylin=(h[0], h[1], h[2]), eosin=(e[0], e[1], e[2]))
    return replace(scanner, stain=stain)


def _sites(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether a patient comes from the north: bool (2, N_PAIRS), negatives first.

    Both hospitals send to both scanners. The classes are not split exactly alike between them: over an exact balance a
    cross-validated control lies far below 0.5, for each patient held out tips the rest the other way.
    """
    north = np.zeros((2, N_PAIRS), bool)
    alone = np.setdiff1d(np.arange(N_PAIRS), _TWO_SLIDES)
    for label, count in enumerate(_NORTHERN):
        north[label, rng.permutation(_TWO_SLIDES)[0]] = True
        north[label, rng.permutation(alone)[: count - 1]] = True
    return north


def _thickness(rng: np.random.Generator) -> NDArray[np.float64]:
    """The thickness of each section: (2, N_PAIRS, 2 blocks), negatives first.

    Dealt again until the two classes differ by about as much as chance lets them (Student's t near 1.5, either sign),
    for the reason in `_sites`: a perfect balance is no neutral control either.
    """
    cut = np.ones((N_PAIRS, 2), bool)
    cut[:, 1] = np.isin(np.arange(N_PAIRS), _TWO_SLIDES)
    while True:
        dealt = rng.standard_normal((2, N_PAIRS, 2))
        negative, positive = dealt[0][cut], dealt[1][cut]
        spread = np.sqrt((negative.var(ddof=1) + positive.var(ddof=1)) / cut.sum())
        if _CHANCE_T[0] <= abs(positive.mean() - negative.mean()) / spread <= _CHANCE_T[1]:
            return np.clip(1 + _THICKNESS_DEVIATION * dealt, 0.75, 1.25)


def _tiff(picture: NDArray[np.uint8], slide: GeneratedSlide) -> bytes:
    """A tiled JPEG pyramid as OpenSlide's generic reader knows it; levels are area averages of level 0."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for downsample in (1, *slide.scanner.downsamples):
            size = (picture.shape[1] // downsample, picture.shape[0] // downsample)
            level = picture if downsample == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            per_cm = 1e4 / (slide.mpp * downsample)
            file.write(
                level,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                subfiletype=int(downsample > 1),
                resolution=(per_cm, per_cm) if slide.states_mpp else (1, 1),
                resolutionunit="CENTIMETER" if slide.states_mpp else "NONE",
                metadata=None,
                software="pathfm",
            )
    return buffer.getvalue()


def _polygons(mask: Mask, mpp: float) -> list[list[list[list[float]]]]:
    """GeoJSON coordinates of each piece of a mask of one pixel a micron: outer ring first, then its holes; level-0 px."""
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_ring(contour, mpp) for contour in contours]
    pieces = []
    for k, ring in enumerate(rings):
        if tree[0][k][3] < 0 and len(ring) > 3:
            holes = [rings[j] for j in range(len(rings)) if tree[0][j][3] == k and len(rings[j]) > 3]
            pieces.append([ring, *holes])
    return pieces


def _ring(contour: NDArray[Any], mpp: float) -> list[list[float]]:
    points = (cv2.approxPolyDP(contour, epsilon=0.7, closed=True)[:, 0] + 0.5) / mpp
    closed = [[round(float(x), 1), round(float(y), 1)] for x, y in points]
    return [*closed, closed[0]]


def _feature(name: str, polygon: list[list[list[float]]]) -> dict[str, Any]:
    """A QuPath annotation."""
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": polygon},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": _COLOURS[name]}},
    }
