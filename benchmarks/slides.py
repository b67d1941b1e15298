"""Slides to measure on, written once: drawn tissue in the file layouts of real scanners, at any size, with known truth.

    python benchmarks/slides.py FOLDER mid big huge

A slide is a mosaic of cells, each one JPEG tile of level 0, from a stock of a few hundred: tissue, glass, and the edge
of tissue for each of the fourteen ways in which it can run between the corners of a cell. So level 0 costs no more than
copying encoded tiles, pieces of tissue have whole outlines, and lower levels are put together from the cells made small.

- `mid`: 12,000 x 12,000, as Aperio writes it (240 px tiles, JPEG in RGB): a 256 px tile crosses several of the file's.
- `big`: 61,440 x 60,160, 256 px tiles, JPEG 4:2:0.
- `huge`: 100,000 x 60,000, the same.

All at 0.25 mpp with levels of 1, 4 and 16, and the JPEG tables in the TIFF's tag as scanners have them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import imagecodecs
import numpy as np
import tifffile

from pathfm.histology import grow, smooth
from pathfm.scanner import SCANNERS, scan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cv2.typing import MatLike
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

MPP = 0.25
LEVELS = (1, 4, 16)
TRUTH_MPP = 8.0

_SECTION_UM = 1300
_TISSUES, _GLASSES, _EDGES = 160, 60, 6  # cells in stock; of edges, for each way in which one can run
_ISLAND_CELLS = 64  # about from one island of tissue to the next, at most
_QUALITY = 85
_TABLES = (0xDB, 0xC4)  # JPEG markers of quantisation and Huffman tables


@dataclass(frozen=True)
class Kind:
    """What to write.

    Attributes:
        name: file stem.
        width: of level 0, in pixels; best a multiple of 16, so that downsamples are whole.
        height: the same.
        tile_px: side of the file's tiles and of a cell, a multiple of 16.
        ycbcr: JPEG in YCbCr 4:2:0; otherwise in RGB.
    """

    name: str
    width: int
    height: int
    tile_px: int = 256
    ycbcr: bool = True

    def sized(self, width: int, height: int) -> Kind:
        """The same sort of file and the same stock of tiles at another size."""
        return replace(self, name=f"{self.name}-{width}x{height}", width=width, height=height)


MID = Kind("mid", 12_000, 12_000, tile_px=240, ycbcr=False)
BIG = Kind("big", 61_440, 60_160)
HUGE = Kind("huge", 100_000, 60_000)
KINDS = {kind.name: kind for kind in (MID, BIG, HUGE)}


def slide(folder: Path, kind: Kind) -> Path:
    """The path of `<folder>/<name>.svs`, written if it is not there at the right size; `truth` reads what it shows."""
    path = folder / f"{kind.name}.svs"
    if not _is_there(path, kind):
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, kind)
    return path


def truth(path: Path) -> NDArray[np.bool_]:
    """Where a written slide has tissue: bool (h, w), pixels of `TRUTH_MPP`."""
    mask = cv2.imread(str(_truth_path(path)), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise FileNotFoundError(_truth_path(path))
    return np.asarray(mask > 0)


def _truth_path(path: Path) -> Path:
    return path.with_suffix(".truth.png")


def _is_there(path: Path, kind: Kind) -> bool:
    if not path.exists() or not _truth_path(path).exists():
        return False
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        wanted = ((kind.height, kind.width), (kind.tile_px, kind.tile_px), 6 if kind.ycbcr else 2)
        return (page.shape[:2], page.tile, page.photometric) == wanted


@dataclass(frozen=True)
class _Stock:
    """Cells by index.

    Attributes:
        codes: int (n,), which corners of the cell are tissue: 1 top left, 2 top right, 4 bottom left, 8 bottom right.
        pictures: for each level, uint8 (n, side, side, 3).
        masks: bool (n, side, side), where a cell has tissue, at the last level.
    """

    codes: NDArray[np.int64]
    pictures: list[Picture]
    masks: NDArray[np.bool_]


def _write(path: Path, kind: Kind) -> None:
    rng = np.random.default_rng(0)
    stock = _stock(rng, kind.tile_px)
    # As many cells as the last level's tiles cover, so that its tiles are whole.
    covered = LEVELS[-1] * kind.tile_px
    rows, columns = (-(-side // covered) * LEVELS[-1] for side in (kind.height, kind.width))
    shown = (-(-kind.height // kind.tile_px), -(-kind.width // kind.tile_px))
    layout = _layout(rng, stock, _corners(rng, shown), (rows, columns))
    half = path.with_suffix(".part")
    _write_tiff(half, kind, stock, layout)
    _write_truth(_truth_path(path), kind, stock, layout)
    half.replace(path)


def _write_tiff(path: Path, kind: Kind, stock: _Stock, layout: NDArray[np.int64]) -> None:
    first = [_encoded(picture, kind) for picture in stock.pictures[0]]
    tables = _split(first[0])[0]
    with tifffile.TiffWriter(path) as file:
        for k, downsample in enumerate(LEVELS):
            width, height = kind.width // downsample, kind.height // downsample
            across, down = (-(-side // kind.tile_px) for side in (width, height))
            tiles = (
                (_split(first[n])[1] for n in layout[:down, :across].ravel())
                if downsample == 1
                else (
                    _split(_encoded(p, kind))[1] for p in _pictures(stock.pictures[k], layout, downsample, down, across)
                )
            )
            file.write(
                tiles,
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(kind.tile_px, kind.tile_px),
                photometric="ycbcr" if kind.ycbcr else "rgb",
                subsampling=(2, 2) if kind.ycbcr else (1, 1),
                compression="jpeg",
                compressionargs={"outcolorspace": "ycbcr" if kind.ycbcr else "rgb"},
                jpegtables=tables,
                description=_description(kind, width, height),
                metadata=None,
            )


def _description(kind: Kind, width: int, height: int) -> str:
    """What Aperio's scanner writes; OpenSlide knows the vendor and the scale by it."""
    size = f"{kind.width}x{kind.height} ({kind.tile_px}x{kind.tile_px})"
    small = "" if width == kind.width else f" -> {width}x{height}"
    return f"Aperio Image Library v11.2.1 \r\n{size}{small} JPEG Q={_QUALITY}|AppMag = 40|MPP = {MPP:.4f}"


def _pictures(cells: Picture, layout: NDArray[np.int64], many: int, down: int, across: int) -> Iterator[Picture]:
    """The tiles of a lower level, row by row, each put together from `many` times `many` small cells."""
    side = many * cells.shape[1]
    for i in range(down):
        for j in range(across):
            block = cells[layout[i * many : (i + 1) * many, j * many : (j + 1) * many]]
            yield np.ascontiguousarray(block.transpose(0, 2, 1, 3, 4).reshape(side, side, 3))


def _write_truth(path: Path, kind: Kind, stock: _Stock, layout: NDArray[np.int64]) -> None:
    blocks = stock.masks[layout].transpose(0, 2, 1, 3)
    whole = blocks.reshape(blocks.shape[0] * blocks.shape[1], -1)
    width, height = (-(-side * MPP // TRUTH_MPP) for side in (kind.width, kind.height))
    shrunk = cv2.resize(whole.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), (shrunk[: int(height), : int(width)] >= 0.5).astype(np.uint8) * 255)


def _encoded(picture: Picture, kind: Kind) -> bytes:
    if kind.ycbcr:
        return bytes(imagecodecs.jpeg8_encode(picture, _QUALITY, outcolorspace="YCBCR", subsampling="420"))
    return bytes(imagecodecs.jpeg8_encode(picture, _QUALITY, outcolorspace="RGB", subsampling="444"))


def _split(jpeg: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG file and what is left of it, two abbreviated files as a TIFF has them."""
    tables, rest, at = bytearray(), bytearray(), 2
    while jpeg[at + 1] != 0xDA:  # start of scan, after which there are no more segments
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        (tables if jpeg[at + 1] in _TABLES else rest).extend(jpeg[at:end])
        at = end
    return jpeg[:2] + bytes(tables) + b"\xff\xd9", jpeg[:2] + bytes(rest) + jpeg[at:]


def _corners(rng: np.random.Generator, shown: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each corner of the cells shown lies in tissue: several ragged islands that keep off the slide's edge."""
    rows, columns = (side + 1 for side in shown)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    ragged = 0.25 * smooth(rng, (rows, columns), 12) + 0.08 * smooth(rng, (rows, columns), 3)
    tissue = np.zeros((rows, columns), bool)
    down, across = (max(2, round(side / _ISLAND_CELLS)) for side in shown)
    for i in range(down):
        for j in range(across):
            size = np.array([rows / down, columns / across])
            centre = (np.array([i, j]) + 0.5 + rng.uniform(-0.08, 0.08, 2)) * size
            axes = size * rng.uniform(0.27, 0.4, 2)
            tissue |= np.hypot((y - centre[0]) / axes[0], (x - centre[1]) / axes[1]) + ragged < 1
    tissue[[0, -1]] = False
    tissue[:, [0, -1]] = False
    return tissue


def _layout(
    rng: np.random.Generator, stock: _Stock, corners: NDArray[np.bool_], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """The cell of the stock at each place, int (rows, columns), glass where nothing is shown."""
    code = np.zeros(shape, np.int64)
    tissue = corners.astype(np.int64)
    inside = tissue[:-1, :-1] + 2 * tissue[:-1, 1:] + 4 * tissue[1:, :-1] + 8 * tissue[1:, 1:]
    code[: inside.shape[0], : inside.shape[1]] = inside
    layout = np.zeros(shape, np.int64)
    for one in range(16):
        there = code == one
        layout[there] = rng.choice(np.flatnonzero(stock.codes == one), int(there.sum()))
    return layout


def _stock(rng: np.random.Generator, tile_px: int) -> _Stock:
    """Cuts cells of tissue and of glass out of one drawn section, and blends edges from both."""
    stain = SCANNERS[1].stain
    anatomy = grow(rng, _SECTION_UM, lesion=False, hole=False)
    section = scan(rng, anatomy, stain, 1.0, MPP)
    inside = _squares(rng, anatomy.tissue, tile_px)
    outside = _squares(rng, cv2.dilate(anatomy.tissue.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0, tile_px)
    tissues = [section[y : y + tile_px, x : x + tile_px] for y, x in inside[:_TISSUES]]
    glasses = [section[y : y + tile_px, x : x + tile_px] for y, x in outside[:_GLASSES]]
    codes, pictures = [0] * len(glasses) + [15] * len(tissues), glasses + tissues
    masks = [np.full((tile_px, tile_px), code / 15, np.float32) for code in codes]
    for code in np.repeat(np.arange(1, 15), _EDGES):
        mask = _edge(rng, int(code), tile_px)
        soft = cv2.GaussianBlur(mask, (0, 0), 1.5)[..., None]
        one, other = rng.integers(len(tissues)), rng.integers(len(glasses))
        codes.append(int(code))
        masks.append(mask)
        pictures.append(np.rint(tissues[one] * soft + glasses[other] * (1 - soft)).astype(np.uint8))
    small = np.stack([_shrunk(mask, LEVELS[-1]) >= 0.5 for mask in masks])
    levels = [np.array([_shrunk(picture, downsample) for picture in pictures], np.uint8) for downsample in LEVELS]
    return _Stock(np.array(codes), levels, small)


def _squares(rng: np.random.Generator, mask: NDArray[np.bool_], tile_px: int) -> NDArray[np.int64]:
    """Corners (y, x) in pixels of the section of squares that lie wholly in a mask of a pixel a micron, shuffled."""
    side = round(tile_px * MPP)
    room = cv2.erode(np.pad(mask, side)[side:, side:].astype(np.uint8), np.ones((side, side), np.uint8), anchor=(0, 0))
    places = np.argwhere(room[: -2 * side : side // 2, : -2 * side : side // 2])
    return rng.permutation(places) * round(side // 2 / MPP)


def _edge(rng: np.random.Generator, code: int, tile_px: int) -> NDArray[np.float32]:
    """Tissue in a cell with such corners, float32 0 or 1; its outline leaves through the middle of the cell's sides."""
    corners = np.array([[code & 1, code >> 1 & 1], [code >> 2 & 1, code >> 3 & 1]], np.float32)
    at = (np.arange(tile_px, dtype=np.float32) + 0.5) / tile_px
    weights = np.stack([1 - at, at])
    level = weights.T @ corners @ weights
    fade = 4 * at * (1 - at)
    level = level + 0.12 * smooth(rng, (tile_px, tile_px), tile_px / 10) * fade[:, None] * fade
    return np.asarray(level > 0.5, np.float32)


def _shrunk(picture: MatLike, divisor: int) -> MatLike:
    side = picture.shape[0] // divisor
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) if divisor > 1 else picture


def main() -> None:
    """Writes the slides asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS))
    asked = parser.parse_args()
    for kind in asked.kinds:
        path = slide(asked.folder, KINDS[kind])
        print(f"{path} {path.stat().st_size / 1e6:.0f} MB, {truth(path).mean():.0%} tissue")


if __name__ == "__main__":
    main()
