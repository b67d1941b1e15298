"""Drawn tissue: where glands, fibres, nuclei and a lesion lie, in microns, before any stain or scanner.

Nothing here is a model of disease. It is a picture with known truth: the lesion has fewer, larger, irregular nuclei in
matted fibres, and as much haematoxylin as the tissue around it, so that texture alone gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Field = NDArray[np.float32]
    Mask = NDArray[np.bool_]

LESION_SHARE = (0.045, 0.09)
"""The lesion's share of the tissue, drawn evenly between the two."""

_FIBRE_UM = 21
_OPENCV_RIM_PX = 0.45  # OpenCV's smooth ellipses are that much too wide: it would make nuclei grow with the mpp
SUBPIXEL = 4
"""Bits of OpenCV's fixed-point coordinates."""


@dataclass(frozen=True)
class Anatomy:
    """One section of tissue; maps have one pixel a micron, shape (height_um, width_um).

    Attributes:
        tissue: bool, holes out.
        lesion: bool, inside the tissue; nowhere in a negative.
        eosin: float32, amount of eosin, 0 off the tissue.
        nuclei: float32 (n, 6): x_um, y_um, half axes a_um and b_um, angle in degrees, amount of haematoxylin 0..1.
        atypical: float32 (m, 4): x_um, y_um, radius_um, amount; the lesion's nuclei, in the order to draw them in.
    """

    tissue: Mask
    lesion: Mask
    eosin: Field
    nuclei: Field
    atypical: Field


@dataclass(frozen=True)
class _Gland:
    x: float
    y: float
    radius: float
    stretch: float
    angle: float


def grow(rng: np.random.Generator, side_um: int, lesion: bool, hole: bool) -> Anatomy:
    """A section of tissue on a square of glass.

    Args:
        rng: the only source of chance.
        side_um: side of the glass, at least 400.
        lesion: whether it has a lesion.
        hole: whether the tissue is torn open somewhere.
    """
    shape = (side_um, side_um)
    tissue = _outline(rng, shape)
    if hole:
        tissue = tissue & ~_blob(rng, _largest(_depth(tissue) > side_um * 0.12), 0.05 * tissue.sum())
    depth = _depth(tissue)
    sick = _lesion(rng, tissue, depth) if lesion else np.zeros(shape, bool)
    glands = _glands(rng, depth, _depth(~sick))
    flow = smooth(rng, shape, side_um / 4) * np.float32(np.pi / 2)
    eosin = _eosin(rng, tissue, sick, glands, flow)
    crowd = _crowds(rng, depth, _depth(~sick))
    nuclei = _nuclei(rng, tissue & ~sick, glands, crowd, flow)
    return Anatomy(tissue, sick, eosin, nuclei, _atypical(rng, sick))


def smooth(rng: np.random.Generator, shape: tuple[int, int], scale_um: float) -> Field:
    """Smooth noise without structure below `scale_um`: float32, mean 0, deviation 1."""
    cells = [int(np.ceil(n / scale_um)) + 4 for n in shape]
    noise = rng.standard_normal(cells).astype(np.float32)
    # A window with a random start: otherwise the lattice's lines would fall on the same places in every field.
    start = rng.random(2) * 1.5 + 0.5
    matrix = np.array([[1 / scale_um, 0, start[0]], [0, 1 / scale_um, start[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    field = _float(cv2.warpAffine(noise, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT))
    return _float((field - field.mean()) / (field.std() + 1e-6))


def ellipse(plane: NDArray[np.uint8], x: float, y: float, a: float, b: float, angle: float, amount: float) -> None:
    """Paints a filled ellipse, in place: centre and half axes in pixels of the plane, angle in degrees, amount 0..1."""
    unit = 1 << SUBPIXEL
    centre = (round((x - 0.5) * unit), round((y - 0.5) * unit))
    axes = tuple(round(max(half - _OPENCV_RIM_PX, 0) * unit) for half in (a, b))
    cv2.ellipse(plane, centre, axes, angle, 0, 360, round(255 * float(amount)), cv2.FILLED, cv2.LINE_AA, SUBPIXEL)


def _float(value: Any) -> Field:
    return np.asarray(value, np.float32)


def _depth(mask: Mask) -> Field:
    """Distance to the nearest pixel outside; the glass's edge is outside of nothing."""
    return _float(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3))


def _largest(mask: Mask) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    mine: Mask = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return mine


def _grid(shape: tuple[int, int]) -> tuple[Field, Field]:
    """Where every pixel lies: x and y in microns."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return x, y


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> Mask:
    """A ragged piece of tissue that covers about 55 % of the glass and keeps off its edge."""
    side = shape[0]
    x, y = _grid(shape)
    stretch = rng.uniform(0.88, 1.12)
    radius = np.hypot((x - side / 2) * stretch, (y - side / 2) / stretch) / side
    for scale, height in ((side / 4, 0.05), (60, 0.012), (15, 0.005)):
        radius += smooth(rng, shape, scale) * np.float32(height)
    edge = np.minimum.reduce([x, y, side - 1 - x, side - 1 - y])
    radius += np.clip(0.08 - edge / side, 0, None) * np.float32(4)
    solid = _largest((radius < np.quantile(radius, 0.57)) & (edge > 5)).astype(np.uint8)
    borders, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(solid, borders, -1, 1, cv2.FILLED), bool)


def _blob(rng: np.random.Generator, room: Mask, area: float) -> Mask:
    """A ragged patch of about `area` um2 whose centre lies in `room`; it may reach out of it."""
    ys, xs = np.nonzero(room)
    pick = int(rng.integers(len(ys)))
    x, y = _grid((room.shape[0], room.shape[1]))
    size = np.sqrt(area / np.pi)
    radius = np.hypot(x - xs[pick], y - ys[pick])
    for scale, height in ((1.1 * size, 0.22 * size), (0.3 * size, 0.06 * size)):
        radius += smooth(rng, radius.shape, scale) * np.float32(height)
    level = np.partition(radius.ravel(), int(area))[int(area)]
    return _largest(radius < level)


def _lesion(rng: np.random.Generator, tissue: Mask, depth: Field) -> Mask:
    """A patch well inside, `LESION_SHARE` of the tissue."""
    area = rng.uniform(*LESION_SHARE) * tissue.sum()
    room = depth > min(1.15 * np.sqrt(area / np.pi), 0.8 * float(depth.max()))
    return _blob(rng, room, area) & (depth > 20)


def _spots(rng: np.random.Generator, shape: tuple[int, int], spacing_um: float, jitter: float) -> NDArray[np.float64]:
    """(n, 2) x, y of a shaken lattice: as even as cells lie, and cheap."""
    side = np.arange(spacing_um / 2, shape[0], spacing_um)
    lattice = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    lattice = lattice + rng.uniform(-jitter, jitter, lattice.shape) * spacing_um
    return np.asarray(np.clip(lattice, 0, shape[0] - 1))


def _at(field: NDArray[Any], spots: NDArray[np.float64]) -> NDArray[Any]:
    whole = spots.astype(np.int64)
    return np.asarray(field[whole[:, 1], whole[:, 0]])


def _glands(rng: np.random.Generator, depth: Field, from_lesion: Field) -> list[_Gland]:
    shape = (depth.shape[0], depth.shape[1])
    spots = _spots(rng, shape, 120, 0.2)
    radii = rng.uniform(24, 42, len(spots))
    free = (_at(depth, spots) > radii * 1.3) & (_at(from_lesion, spots) > radii * 1.3)
    zone = _at(smooth(rng, shape, 260), spots) > 0.1
    return [
        _Gland(x, y, r, rng.uniform(1.0, 1.25), rng.uniform(0, 180))
        for (x, y), r in zip(spots[free & zone], radii[free & zone], strict=True)
    ]


def _crowds(rng: np.random.Generator, depth: Field, from_lesion: Field) -> Field:
    """How crowded with lymphocytes a place is, 0..1: benign patches that are dense but not atypical, in every section."""
    x, y = _grid((depth.shape[0], depth.shape[1]))
    crowd = np.zeros(depth.shape, np.float32)
    ys, xs = np.nonzero((depth > 60) & (from_lesion > 90))
    for _ in range(int(rng.integers(1, 3)) if len(ys) else 0):
        pick, radius = int(rng.integers(len(ys))), rng.uniform(35, 65)
        crowd = np.maximum(crowd, np.clip(2.2 - 2 * np.hypot(x - xs[pick], y - ys[pick]) / radius, 0, 1))
    return _float(crowd)


def _fibres(rng: np.random.Generator, flow: Field) -> Field:
    """Streaks along the flow: noise smeared in four directions, blended by how well each fits."""
    total, power = np.zeros_like(flow), np.full_like(flow, 1e-6)
    for k in range(4):
        fit = np.clip(np.cos(2 * (flow - k * np.float32(np.pi / 4))), 0, None) ** 2
        streaks = cv2.filter2D(rng.standard_normal(flow.shape).astype(np.float32), -1, _streak(k * 45))
        total += fit * streaks / streaks.std()
        power += fit * fit
    return _float(total / np.sqrt(power))


def _streak(angle: int) -> Field:
    half = _FIBRE_UM // 2
    x, y = _grid((_FIBRE_UM, _FIBRE_UM))
    turn = np.deg2rad(angle)
    along = (x - half) * np.cos(turn) + (y - half) * np.sin(turn)
    across = (y - half) * np.cos(turn) - (x - half) * np.sin(turn)
    return _float(np.exp(-((along / 6) ** 2) / 2 - ((across / 0.9) ** 2) / 2))


def _eosin(rng: np.random.Generator, tissue: Mask, lesion: Mask, glands: list[_Gland], flow: Field) -> Field:
    shape = (tissue.shape[0], tissue.shape[1])
    soft = _float(cv2.GaussianBlur(lesion.astype(np.float32), (0, 0), 6))
    weave = _fibres(rng, flow) * (1 - soft) + smooth(rng, shape, 4) * soft
    clefts = 1 / (1 + np.exp(-4 * (weave + 1.7)))
    eosin = _float((0.27 + 0.055 * weave + 0.02 * smooth(rng, shape, 50)) * clefts)
    cytoplasm = 0.24 + 0.02 * smooth(rng, shape, 5)
    wall, lumen = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for gland in glands:
        long = gland.radius * gland.stretch
        ellipse(wall, gland.x, gland.y, long, gland.radius, gland.angle, 1)
        ellipse(lumen, gland.x, gland.y, 0.42 * long, 0.36 * gland.radius, gland.angle, 1)
    eosin = np.where(wall > 127, np.where(lumen > 127, 0.02, cytoplasm), eosin)
    return _float(cv2.GaussianBlur(_float(np.clip(eosin, 0, None) * tissue), (0, 0), 0.7))


def _nuclei(rng: np.random.Generator, room: Mask, glands: list[_Gland], crowd: Field, flow: Field) -> Field:
    shape = (room.shape[0], room.shape[1])
    plump = np.clip(smooth(rng, shape, 150) - 0.9, 0, 0.6)
    kept = partial(_kept, room, glands)
    stroma = kept(_spots(rng, shape, 15.5, 0.42))
    stroma = stroma[rng.random(len(stroma)) < 0.8]
    swell = 1 + 0.5 * _at(plump, stroma)
    spindle = rng.random(len(stroma)) < 0.6
    a = np.where(spindle, rng.normal(4.8, 0.6, len(stroma)), rng.normal(3.6, 0.35, len(stroma))) * swell
    b = np.where(spindle, rng.normal(2.1, 0.25, len(stroma)), rng.normal(3.2, 0.3, len(stroma))) * swell
    angle = np.rad2deg(_at(flow, stroma)) + rng.normal(0, 14, len(stroma))
    lymph = kept(_spots(rng, shape, 6.6, 0.25))
    lymph = lymph[rng.random(len(lymph)) < 0.75 * _at(crowd, lymph)]
    small = rng.normal(2.7, 0.2, len(lymph))
    rows = [
        np.column_stack([stroma, a, b, angle, rng.uniform(0.6, 0.9, len(stroma))]),
        np.column_stack([lymph, small, small * 0.92, np.zeros(len(lymph)), rng.uniform(0.8, 1.0, len(lymph))]),
        *(_ring(rng, gland) for gland in glands),
    ]
    return _float(np.concatenate(rows))


def _kept(room: Mask, glands: list[_Gland], spots: NDArray[np.float64]) -> NDArray[np.float64]:
    """The spots in the room and outside of every gland."""
    free = _at(room, spots).astype(bool)
    for gland in glands:
        free &= np.hypot(spots[:, 0] - gland.x, spots[:, 1] - gland.y) > gland.radius * gland.stretch
    return np.asarray(spots[free])


def _ring(rng: np.random.Generator, gland: _Gland) -> NDArray[np.float64]:
    """Epithelium: upright nuclei along the base of the gland's wall."""
    turn = np.arange(0, 2 * np.pi, 7.5 / gland.radius)
    turn = turn + rng.normal(0, 0.03, len(turn))
    reach = gland.radius * rng.normal(0.78, 0.035, len(turn))
    u, v = reach * gland.stretch * np.cos(turn), reach * np.sin(turn)
    tilt = np.deg2rad(gland.angle)
    x, y = gland.x + u * np.cos(tilt) - v * np.sin(tilt), gland.y + u * np.sin(tilt) + v * np.cos(tilt)
    angle = np.rad2deg(np.arctan2(y - gland.y, x - gland.x))
    long, wide = rng.normal(4.2, 0.4, len(turn)), rng.normal(2.7, 0.2, len(turn))
    return np.column_stack([x, y, long, wide, angle, rng.uniform(0.6, 0.85, len(turn))])


def _atypical(rng: np.random.Generator, lesion: Mask) -> Field:
    """More large nuclei than are needed, in random order, apart from each other."""
    spots = _spots(rng, (lesion.shape[0], lesion.shape[1]), 19, 0.3)
    spots = rng.permutation(spots[_at(lesion, spots).astype(bool)])
    radius = np.clip(rng.lognormal(np.log(5.6), 0.2, len(spots)), 4.2, 8.5)
    return _float(np.column_stack([spots, radius, rng.uniform(0.55, 0.95, len(spots))]))
