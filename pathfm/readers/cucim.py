"""NVIDIA's cuCIM as a reader of levels, where somebody has installed it and asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathfm.errors import InputError
from pathfm.pixels import area_mean
from pathfm.progress import logger
from pathfm.slidefiles import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.readers.direct import Place

_SIDE_PX = 300  # more than a tile of most files has


class CucimReader:
    """Reads the levels that cuCIM knows by OpenSlide's sizes; usable from several threads at once.

    Raises:
        InputError: cuCIM is not installed, or cannot be loaded.
    """

    name = "cucim"

    def __init__(self, path: Path, level_sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> None:
        try:
            import cucim
        except ImportError as error:
            message = (
                f"the reader 'cucim' is not installed ({error}); pip install cucim-cu12, or ask for the reader 'auto'"
            )
            raise InputError(message) from error
        self._sizes, self._downsamples = level_sizes, downsamples
        try:
            self._image = cucim.CuImage(str(path))
            self._theirs = [tuple(size) for size in self._image.resolutions["level_dimensions"]]
        except HOSTILE as error:
            logger.info("%s: cucim does not open it (%s)", path, " ".join(str(error).split()))
            self._theirs = []

    def close(self) -> None:
        """Closes the file; no thread may be reading."""
        if self._theirs:
            self._image.close()
        self._theirs = []

    def places(self, level: int) -> list[Place]:
        """Squares to compare this reader by: at the far edge, in the middle, and between; none for a level it lacks."""
        if tuple(self._sizes[level]) not in self._theirs:
            return []
        width, height = self._sizes[level]
        size = (min(width, _SIDE_PX), min(height, _SIDE_PX))
        far = (width - size[0], height - size[1])
        return [((far[0] * part // 4, far[1] * part // 4), size) for part in (4, 2, 1)]

    def read(
        self, level: int, start: tuple[int, int], size: tuple[int, int], factor: int, out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None:
        """Pixels of a level, or their mean over blocks of a whole factor; as `DirectReader.read`."""
        inside = all(a >= 0 and a + b <= c for a, b, c in zip(start, size, self._sizes[level], strict=True))
        if not inside or tuple(self._sizes[level]) not in self._theirs:
            return None
        place_px0 = tuple(round(at * self._downsamples[level]) for at in start)
        index = self._theirs.index(tuple(self._sizes[level]))
        try:
            pixels = np.asarray(self._image.read_region(location=place_px0, size=size, level=index))
        except HOSTILE:
            return None
        if pixels.dtype != np.uint8 or pixels.shape != (size[1], size[0], 3):
            return None
        return area_mean(pixels, factor, out)
