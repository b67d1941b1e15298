"""Small pyramidal TIFFs of known content and scale, for the tests of the imaging half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import tifffile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def write_pyramid(
    path: Path,
    pixels: NDArray[np.uint8],
    mpp: float | tuple[float, float] | None = 0.5,
    levels: tuple[int, ...] = (),
    power: float | None = None,
    compression: str = "zlib",
) -> Path:
    """Writes uint8 (h, w, 3) as a tiled TIFF, each further level the mean of its blocks by the divisor given.

    Aperio's description is written where `power` is given, else the scale stands in the TIFF's resolution.
    """
    axes = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    options = {"tile": (64, 64), "photometric": "rgb", "compression": compression, "metadata": None}
    described = None
    if power is not None:
        scale = f"|MPP = {axes[0]}" if axes else ""
        described = f"Aperio Image Library v11.2.1\n{pixels.shape[1]}x{pixels.shape[0]}|AppMag = {power:g}{scale}"
    resolution = None if axes is None or power is not None else tuple(1e4 / axis for axis in axes)
    with tifffile.TiffWriter(path) as file:
        for divisor in (1, *levels):
            file.write(
                _shrunk(pixels, divisor),
                subfiletype=int(divisor > 1 and power is None),
                description=described,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                **options,
            )
    return path


def write_jpeg_pyramid(
    path: Path,
    pixels: NDArray[np.uint8],
    levels: tuple[int, ...] = (),
    tile: int = 256,
    subsampling: str | None = "420",
    aperio: bool = True,
    bigtiff: bool = False,
) -> Path:
    """Writes uint8 (h, w, 3) as JPEG tiles at 0.5 mpp, with the tables in the TIFF's tag as scanners have them.

    In RGB where no subsampling is given, else in YCbCr. Tiles of the edge are filled up with black.
    """
    colours = {"outcolorspace": "YCBCR" if subsampling else "RGB", "subsampling": subsampling or "444"}
    described = "Aperio Image Library v11.2.1\n|AppMag = 20|MPP = 0.5" if aperio else None
    path.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for divisor in (1, *levels):
            level = _shrunk(pixels, divisor)
            down, across = (-(-side // tile) for side in level.shape[:2])
            whole = np.zeros((down * tile, across * tile, 3), np.uint8)
            whole[: level.shape[0], : level.shape[1]] = level
            blocks = whole.reshape(down, tile, across, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
            jpegs = [split_jpeg(bytes(imagecodecs.jpeg8_encode(block.copy(), 85, **colours))) for block in blocks]
            file.write(
                iter([rest for _, rest in jpegs]),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr" if subsampling else "rgb",
                subsampling={"420": (2, 2), "422": (2, 1)}.get(subsampling or "", (1, 1)) if subsampling else None,
                compression="jpeg",
                jpegtables=jpegs[0][0],
                subfiletype=int(divisor > 1 and not aperio),
                description=described,
                resolution=None if aperio else (2e4, 2e4),
                resolutionunit=None if aperio else "CENTIMETER",
                metadata=None,
            )
    return path


def split_jpeg(jpeg: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG file and what is left of it, two abbreviated files as a TIFF has them."""
    tables, rest, at = bytearray(), bytearray(), 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        (tables if jpeg[at + 1] in (0xDB, 0xC4) else rest).extend(jpeg[at:end])
        at = end
    return jpeg[:2] + bytes(tables) + b"\xff\xd9", jpeg[:2] + bytes(rest) + jpeg[at:]


def _shrunk(pixels: NDArray[np.uint8], divisor: int) -> NDArray[np.uint8]:
    """Means of whole blocks, the rest dropped, as scanners do."""
    height, width = pixels.shape[0] // divisor, pixels.shape[1] // divisor
    blocks = pixels[: height * divisor, : width * divisor].reshape(height, divisor, width, divisor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def waves(width: int, height: int, mpp: float) -> NDArray[np.uint8]:
    """A picture that is a known smooth function of the place in microns, so that any read can be computed."""
    x_um, y_um = (np.arange(width) + 0.5) * mpp, (np.arange(height) + 0.5) * mpp
    return wave_colours(x_um, y_um)


def wave_colours(x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours of `waves` at the crossings of columns and rows."""
    across = np.sin(2 * np.pi * x_um / 97)[None, :] + 0 * y_um[:, None]
    down = np.sin(2 * np.pi * y_um / 83)[:, None] + 0 * x_um[None, :]
    diagonal = np.sin(2 * np.pi * (x_um[None, :] + y_um[:, None]) / 131)
    return np.rint(127.5 + 100 * np.stack([across, down, diagonal], axis=-1)).astype(np.uint8)


def spoil_tile(path: Path, index: int, level: int = 0) -> None:
    """Overwrites the compressed bytes of one tile of a level."""
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[level].dataoffsets[index], file.pages[level].databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
