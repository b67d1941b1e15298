"""Small pyramidal TIFFs of known content and scale, for the tests of the imaging half."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
