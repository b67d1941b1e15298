"""Drawn tissue seen through a stain and a scanner: RGB with that laboratory's tint, blur, noise and glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pathfm.histology import SUBPIXEL, Anatomy, ellipse, smooth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Field = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Picture = NDArray[np.uint8]

# Typical amounts of the two stains over a piece of tissue; with them a stain has a mean colour that every section of
# one thickness is brought to, so that a slide's colour says how it was stained and never what is on it.
_TYPICAL_HAEMATOXYLIN, _TYPICAL_EOSIN = 0.1, 0.24
_STRIP_PX = 512
_MARGIN_PX = 8
_PEN_REACH_UM = 75
_WHOLE_PX = 16


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains and its scanner sees; OD is base 10.

    Attributes:
        haematoxylin: OD of red, green, blue per unit.
        eosin: the same.
        glass: RGB of empty glass, 0..255.
        blur_um: deviation of the optics' blur.
        noise: deviation of the sensor's noise, grey levels.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[float, float, float]
    blur_um: float
    noise: float

    def mean_rgb(self, thickness: float) -> tuple[float, ...]:
        """Mean colour of tissue in sections of this thickness."""
        od = _TYPICAL_HAEMATOXYLIN * np.array(self.haematoxylin) + _TYPICAL_EOSIN * np.array(self.eosin)
        return tuple(float(v) for v in np.array(self.glass) * 10 ** (-thickness * od))


@dataclass(frozen=True)
class Scanner:
    """A scanner and the laboratory in front of it.

    Attributes:
        name: as the cohort table says it.
        stain: tint, blur and noise.
        mpps: the resolutions it scans at.
        downsamples: of its pyramid's levels below level 0.
    """

    name: str
    stain: Stain
    mpps: tuple[float, ...]
    downsamples: tuple[int, ...]


SCANNERS = (
    Scanner(
        "rose",
        Stain((0.563, 0.720, 0.406), (0.216, 0.801, 0.558), (244, 242, 245), blur_um=0.30, noise=2.5),
        (0.2634, 0.35),
        (4, 16),
    ),
    Scanner(
        "violet",
        Stain((0.650, 0.680, 0.330), (0.120, 0.860, 0.420), (236, 238, 241), blur_um=0.24, noise=1.8),
        (0.44, 0.5),
        (2, 4, 8),
    ),
)


@dataclass(frozen=True)
class Pen:
    """A felt pen's mark around a part of the tissue."""

    rgb: tuple[int, int, int]
    width_um: float = 45


def scan(rng: np.random.Generator, anatomy: Anatomy, stain: Stain, thickness: float, mpp: float) -> Picture:
    """The section at a scanner's resolution: uint8 (size, size, 3), RGB, `size_px0(...)` wide.

    The mean colour of the lesion equals that of the rest of the tissue, channel by channel, before noise and
    compression; both equal `stain.mean_rgb(thickness)`.

    Args:
        rng: the only source of chance.
        anatomy: what lies where.
        stain: laboratory and scanner.
        thickness: of the section, around 1: scales both stains.
        mpp: microns per pixel of level 0.
    """
    side_um = anatomy.tissue.shape[0]
    size_px = size_px0(side_um, mpp)
    nuclei = _draw_nuclei(rng, anatomy, mpp, size_px)
    chromatin = 1 + 0.16 * smooth(rng, anatomy.tissue.shape, 1.6)
    body = _float(chromatin * thickness)
    eosin = _float(anatomy.eosin * thickness)
    preview = _transmit(_float(_per_micron(nuclei, anatomy, mpp) / 255 * body), eosin, stain)
    extra = [_correction(preview[c], anatomy, stain.mean_rgb(thickness)[c] / stain.glass[c]) for c in range(3)]
    return _strips(rng, nuclei, [body, eosin, *extra], stain, mpp)


def mark(picture: Picture, anatomy: Anatomy, pen: Pen, mpp: float) -> None:
    """Draws a pen's line on the glass, in place: along a third of the tissue's outline, at arm's length of it."""
    distance = cv2.distanceTransform((~anatomy.tissue).astype(np.uint8), cv2.DIST_L2, 5)
    near = (distance < _PEN_REACH_UM).astype(np.uint8)
    borders, _ = cv2.findContours(near, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    border = max(borders, key=len)[:, 0]
    line = [np.round(border[: len(border) // 3 : 20] / mpp).astype(np.int32)]
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.polylines(mask, line, isClosed=False, color=255, thickness=round(pen.width_um / mpp), lineType=cv2.LINE_AA)
    where = mask > 127
    picture[where] = (picture[where] * 0.12 + np.array(pen.rgb) * 0.88).astype(np.uint8)


def glass(rng: np.random.Generator, stain: Stain, side_um: int, mpp: float) -> Picture:
    """A slide without tissue: glass with a few specks of dust."""
    size_px = size_px0(side_um, mpp)
    nothing = np.zeros((side_um, side_um), np.float32)
    dust = np.zeros((size_px, size_px), np.uint8)
    for _ in range(12):
        x, y = rng.integers(0, size_px, 2)
        cv2.circle(dust, (int(x), int(y)), max(1, round(float(rng.uniform(2, 6)) / mpp)), 160, cv2.FILLED, cv2.LINE_AA)
    return _strips(rng, dust, [nothing + 1, *[nothing] * 4], stain, mpp)


def size_px0(side_um: int, mpp: float) -> int:
    """Side of a scan: whole microns to pixels of level 0, cut so that levels of 16 times less are whole too."""
    return int(side_um / mpp) // _WHOLE_PX * _WHOLE_PX


def _float(value: Any) -> Field:
    return np.asarray(value, np.float32)


def _draw_nuclei(rng: np.random.Generator, anatomy: Anatomy, mpp: float, size_px: int) -> NDArray[np.uint8]:
    """The amount of haematoxylin in nuclei, 255 for the most, uint8 (size_px, size_px).

    The lesion's nuclei are drawn until it holds as much as the rest of the tissue does on average.
    """
    plane = np.zeros((size_px, size_px), np.uint8)
    for x, y, a, b, angle, amount in anatomy.nuclei:
        ellipse(plane, x / mpp, y / mpp, a / mpp, b / mpp, float(angle), amount)
    if anatomy.lesion.any():
        small = _per_micron(plane, anatomy, mpp)
        wanted = float(small[anatomy.tissue & ~anatomy.lesion].mean()) / 255 * float(anatomy.lesion.sum())
        for x, y, radius, amount in anatomy.atypical:
            if wanted <= 0:
                break
            wanted -= _irregular(rng, plane, x / mpp, y / mpp, radius / mpp, float(amount)) * mpp * mpp
    return plane


def _per_micron(plane: Picture, anatomy: Anatomy, mpp: float) -> Field:
    """The plane on the maps' grid of one pixel a micron; the scan may end some microns before the maps do."""
    side = round(plane.shape[0] * mpp)
    small = np.zeros(anatomy.tissue.shape, np.float32)
    small[:side, :side] = cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA)
    return small


def _irregular(
    rng: np.random.Generator, plane: NDArray[np.uint8], x: float, y: float, radius: float, amount: float
) -> float:
    """Draws a lobed nucleus with a dark rim, pale chromatin and nucleoli; gives its haematoxylin in units of pixels."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    lobes = sum(rng.normal(0, 0.11 / k) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4))
    reach = radius * (1 + lobes)
    border = np.stack([x + reach * np.cos(turn) * rng.uniform(1, 1.3), y + reach * np.sin(turn)], axis=1)
    x0, y0 = np.floor(border.min(0)).astype(int) - 2
    x1, y1 = np.ceil(border.max(0)).astype(int) + 3
    x0, y0 = max(x0, 0), max(y0, 0)
    patch = plane[y0:y1, x0:x1]
    before = int(patch.sum())
    for size, share in ((1.0, 1.0), (0.76, 0.72)):
        points = (border - (x, y)) * size + (x - x0 - 0.5, y - y0 - 0.5)
        fixed = np.round(points * (1 << SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(patch, [fixed], round(255 * amount * share), cv2.LINE_AA, SUBPIXEL)
    for _ in range(int(rng.integers(1, 3))):
        dx, dy = rng.normal(0, 0.25 * radius, 2)
        ellipse(patch, x + dx - x0, y + dy - y0, 0.2 * radius, 0.2 * radius, 0, 1.0)
    return (int(patch.sum()) - before) / 255


def _transmit(haematoxylin: Field, eosin: Field, stain: Stain, extra: list[Field] | None = None) -> list[Field]:
    """Share of the light that comes through, by channel (Beer and Lambert)."""
    light = []
    for c in range(3):
        od = cv2.addWeighted(haematoxylin, stain.haematoxylin[c], eosin, stain.eosin[c], 0)
        if extra is not None:
            od = cv2.add(od, extra[c])
        light.append(_float(cv2.exp(_float(od) * np.float32(-np.log(10)))))
    return light


def _correction(light: Field, anatomy: Anatomy, wanted: float) -> Field:
    """OD to add so that the lesion and the rest both let `wanted` through on average; it fades over a cell's width."""
    soft = _float(cv2.GaussianBlur(anatomy.tissue.astype(np.float32), (0, 0), 1))
    rest = anatomy.tissue & ~anatomy.lesion
    extra = soft * np.float32(np.log10(light[rest].mean() / wanted))
    if anatomy.lesion.any():
        fade = _float(cv2.GaussianBlur(anatomy.lesion.astype(np.float32), (0, 0), 5))
        inside = (light * 10**-extra)[anatomy.lesion]
        # Newton's steps: the faded rim makes the mean not quite proportional.
        step = 0.0
        for _ in range(3):
            step += float(np.log10((inside * 10 ** (-step * fade[anatomy.lesion])).mean() / wanted))
        extra = extra + fade * soft * np.float32(step)
    return _float(extra)


def _strips(rng: np.random.Generator, nuclei: Picture, maps: list[Field], stain: Stain, mpp: float) -> Picture:
    """Composes strip by strip, to keep the memory of a large slide small; `maps` are chromatin, eosin and three corrections."""
    size_px = nuclei.shape[0]
    picture = np.empty((size_px, size_px, 3), np.uint8)
    noise = (rng.standard_normal((_STRIP_PX, size_px, 3)) * stain.noise).astype(np.int16)
    for top in range(0, size_px, _STRIP_PX):
        bottom = min(top + _STRIP_PX, size_px)
        first, last = max(top - _MARGIN_PX, 0), min(bottom + _MARGIN_PX, size_px)
        body, eosin, *extra = [_magnified(field, mpp, first, last, size_px) for field in maps]
        light = _transmit(_float(_float(nuclei[first:last]) / 255 * body), eosin, stain, extra)
        colour = cv2.merge([channel * level for channel, level in zip(light, stain.glass, strict=True)])
        colour = cv2.GaussianBlur(colour, (0, 0), stain.blur_um / mpp)[top - first : bottom - first]
        rolled = np.roll(noise, int(rng.integers(size_px)), axis=1)[: bottom - top]
        picture[top:bottom] = cv2.add(_float(colour), rolled, dtype=cv2.CV_8U)
    return picture


def _magnified(field: Field, mpp: float, first: int, last: int, size_px: int) -> Field:
    """Rows of a map of one pixel a micron, at the slide's resolution, pixel centres kept."""
    shift = (mpp - 1) / 2
    matrix = np.array([[mpp, 0, shift], [0, mpp, shift + first * mpp]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _float(cv2.warpAffine(field, matrix, (size_px, last - first), flags=flags, borderMode=cv2.BORDER_REPLICATE))
