"""Squares of a level put together from its JPEG tiles, each decoded about once where squares are visited row by row."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from pathfm.pixels import area_mean
from pathfm.readers.tiledjpeg import parsed, tiled_jpegs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from pathfm.readers.tiledjpeg import Jpeg, TiledJpeg

CACHE_BYTES = 64 << 20
"""Of decoded JPEG tiles that a process keeps, of all its open slides: a row of them, 256 px high, over 87,000 px of tissue."""

Place = tuple[tuple[int, int], tuple[int, int]]
"""((x, y), (width, height)) in pixels of a level."""

_Key = tuple[int, int, int, int]  # number of the reader, level, index of the tile, factor
_HEAVIEST = 5


class TileCache:
    """Decoded tiles of any number of readers, those that were used last, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[_Key, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        self._gone: deque[int] = deque()

    def get(self, key: _Key) -> NDArray[np.uint8] | None:
        """What was put there, None where that is gone."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: _Key, pixels: NDArray[np.uint8]) -> None:
        """Keeps pixels; what was not used for longest goes."""
        with self._lock:
            self._drop_gone()
            before = self._kept.pop(key, None)  # another thread may have been first
            self.bytes += pixels.nbytes - (0 if before is None else before.nbytes)
            self._kept[key] = pixels
            while self.bytes > self.most_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def drop(self, reader: int) -> None:
        """Lets go of what one reader has put there."""
        self.drop_later(reader)
        with self._lock:
            self._drop_gone()

    def drop_later(self, reader: int) -> None:
        """The same, when something is put there next; takes no lock, for Python may clear away in the middle of anything."""
        self._gone.append(reader)

    def _drop_gone(self) -> None:
        gone = {self._gone.popleft() for _ in range(len(self._gone))}
        for key in [key for key in self._kept if key[0] in gone] if gone else ():
            self.bytes -= self._kept.pop(key).nbytes


_shared_cache = TileCache(CACHE_BYTES)
_numbers = count()


class DirectReader:
    """Reads the levels of a slide that are JPEG tiles of the known kind; usable from several threads at once.

    It does not know whether what it reads is what OpenSlide would; that is for its user to find out, level by level.
    """

    name = "direct"

    def __init__(self, path: Path, level_sizes: Sequence[tuple[int, int]], cache: TileCache = _shared_cache) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._sizes = level_sizes
        self._lock = threading.Lock()
        self._pages: list[TiledJpeg | None] | None = None
        self._heaviest: list[Jpeg | None] = []
        self._cache, self._number = cache, next(_numbers)
        weakref.finalize(self, cache.drop_later, self._number).atexit = False

    def __enter__(self) -> DirectReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets go of its tiles; no thread may be reading."""
        self._cache.drop(self._number)
        self._descriptor = -1  # which no other file ever has
        self._close()

    def places(self, level: int) -> list[Place]:
        """Squares that cross JPEG tiles, to compare this reader by: at the far edge, and where tiles are heaviest.

        Nothing is seen of a wrong colour on glass. None where the level cannot be read.
        """
        page = self._page(level)
        if page is None:
            return []
        (width, height), (across, down) = page.size, page.tile
        size = (min(across, width), min(down, height))
        heavy = [divmod(int(index), page.columns) for index in np.argsort(page.counts)[::-1][:_HEAVIEST]]
        starts = [(across * column + across // 3, down * row + down // 3) for row, column in heavy]
        far = (width - size[0], height - size[1])
        return [((min(x, far[0]), min(y, far[1])), size) for x, y in (far, *starts)]

    def read(
        self, level: int, start: tuple[int, int], size: tuple[int, int], factor: int, out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None:
        """Pixels of a level, or their mean over blocks of a whole factor.

        Where blocks do not cross JPEG tiles they are averaged tile by tile, and kept so.

        Args:
            level: of the slide.
            start: (x, y) in pixels of the level.
            size: (width, height) in pixels of the level, multiples of the factor.
            factor: pixels of the level a pixel.
            out: uint8 (height / factor, width / factor, 3) to fill; spoilt where None is returned.

        Returns:
            uint8 (height / factor, width / factor, 3), RGB; None where a part is outside of the level, missing, or not
            decoded for certain.
        """
        page = self._page(level)
        if (
            page is None
            or min(*start, *size) < 0
            or any(a + b > c for a, b, c in zip(start, size, page.size, strict=True))
        ):
            return None
        in_tiles = factor if all(n % factor == 0 for n in (*start, *page.tile)) else 1
        if factor == 1 and size == page.tile and all(a % b == 0 for a, b in zip(start, size, strict=True)):
            return self._whole(page, level, start, out)
        shape = (size[1] // in_tiles, size[0] // in_tiles, 3)
        pixels = out if out is not None and in_tiles == factor else np.empty(shape, np.uint8)
        keep = 4 * pixels.size <= self._cache.most_bytes  # a whole level read once would push all else out
        left, top = start[0] // in_tiles, start[1] // in_tiles
        width, height = page.tile[0] // in_tiles, page.tile[1] // in_tiles
        for row in range(top // height, -(-(top + shape[0]) // height)):
            for column in range(left // width, -(-(left + shape[1]) // width)):
                piece = self._piece(page, (self._number, level, row * page.columns + column, in_tiles), keep=keep)
                if piece is None:
                    return None
                _paste(pixels, piece, column * width - left, row * height - top)
        return pixels if in_tiles == factor else area_mean(pixels, factor, out)

    def _whole(
        self, page: TiledJpeg, level: int, start: tuple[int, int], out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None:
        """A square that is just one JPEG tile, decoded into its place: no other square has a part of it."""
        index = start[1] // page.tile[1] * page.columns + start[0] // page.tile[0]
        jpeg = self._jpeg(page, level, index)
        return None if jpeg is None else page.decoded(jpeg, out)

    def _piece(self, page: TiledJpeg, key: _Key, *, keep: bool) -> NDArray[np.uint8] | None:
        """A JPEG tile, decoded and averaged."""
        found = self._cache.get(key)
        if found is not None:
            return found
        _, level, index, factor = key
        jpeg = self._jpeg(page, level, index)
        if jpeg is None:
            return None
        piece = page.decoded(jpeg) if factor == 1 else self._mean(page, jpeg, factor)
        if piece is None:
            return None
        if keep:
            self._cache.put(key, piece)
        return piece

    def _jpeg(self, page: TiledJpeg, level: int, index: int) -> Jpeg | None:
        """A tile that is coded as the heaviest of its level, None where it is not."""
        like = self._heaviest[level]
        jpeg = parsed(page.bytes_of(index, self._descriptor) or b"", like)
        return jpeg if jpeg and like and jpeg.kind == like.kind else None

    def _mean(self, page: TiledJpeg, jpeg: Jpeg, factor: int) -> NDArray[np.uint8] | None:
        """A JPEG tile, averaged; decoded into memory of this thread, for to map that anew takes as long as to decode."""
        shape = (page.tile[1], page.tile[0], 3)
        if _scratch.pixels.shape != shape:
            _scratch.pixels = np.empty(shape, np.uint8)
        pixels = page.decoded(jpeg, _scratch.pixels)
        return None if pixels is None else area_mean(pixels, factor)

    def _page(self, level: int) -> TiledJpeg | None:
        """The tiles of a level, None where it is of another kind or two pages have its size."""
        with self._lock:
            if self._pages is None:
                found = tiled_jpegs(self._descriptor)
                fitting = [[page for page in found if page.size == size] for size in self._sizes]
                self._heaviest = [self._heaviest_of(pages) for pages in fitting]
                known = zip(fitting, self._heaviest, strict=True)
                self._pages = [pages[0] if heaviest else None for pages, heaviest in known]
        return self._pages[level]

    def _heaviest_of(self, pages: list[TiledJpeg]) -> Jpeg | None:
        """The tile of a level that all others have to be coded like, None where there is no such level."""
        if len(pages) != 1:
            return None
        jpeg = parsed(pages[0].bytes_of(int(pages[0].counts.argmax()), self._descriptor) or b"")
        return jpeg if jpeg and jpeg.size == pages[0].tile else None


class _Scratch(threading.local):
    """What a thread decodes into."""

    def __init__(self) -> None:
        self.pixels: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)


_scratch = _Scratch()


def _paste(pixels: NDArray[np.uint8], piece: NDArray[np.uint8], x: int, y: int) -> None:
    """Puts what fits of a piece at a place that may be outside."""
    height, width = piece.shape[:2]
    down, across = slice(max(0, -y), pixels.shape[0] - y), slice(max(0, -x), pixels.shape[1] - x)
    pixels[max(0, y) : y + height, max(0, x) : x + width] = piece[down, across]
