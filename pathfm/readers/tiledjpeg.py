"""The JPEG tiles of a TIFF: where their bytes lie, and what they decode to where nothing about them is odd.

Only what OpenSlide decodes by plain libjpeg is known here: 8-bit baseline JPEG of three samples, interleaved. Pages of
any other kind are left out. OpenSlide refuses a tile that libjpeg merely warns of, and so does simplejpeg where it is
asked to be strict; imagecodecs does not say that it warned, and would give other pixels.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
import tifffile

from pathfm.slidefiles import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_JPEG, _RGB, _YCBCR, _INTERLEAVED = 7, 2, 6, 1  # values of TIFF tags
_MOST_PAGES = 64
_MOST_SIDE_PX = 2048  # of a JPEG tile; no memory is taken on the word of a header
_START, _END = b"\xff\xd8", b"\xff\xd9"
_SOS, _DHT, _DQT, _COM = 0xDA, 0xC4, 0xDB, 0xFE
_BASELINE = (0xC0, 0xC1)
_APPLICATIONS = range(0xE0, 0xF0)
# How a JPEG says which colours it holds: a segment of Adobe's, whose last byte is 0 for RGB and 1 for YCbCr.
_ADOBE = {
    "RGB": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00",
    "YCBCR": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01",
}


@dataclass(frozen=True, eq=False)
class TiledJpeg:
    """A page of JPEG tiles in a TIFF.

    Attributes:
        size: (width, height) in pixels.
        tile: (width, height) of a tile; those of the last column and row reach past the page.
        offsets: int64 (n,), of the tiles in the file, row by row.
        counts: int64 (n,), their bytes; 0 where there is none.
        tables: the quantisation and Huffman tables that the tiles share, without start and end; empty where each has its own.
        colours: what the samples are, by the TIFF tag; the tiles themselves often say nothing, or something else.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes
    colours: Literal["RGB", "YCBCR"]

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.size[0] // self.tile[0])

    def bytes_of(self, index: int, descriptor: int) -> bytes | None:
        """The compressed bytes of a tile; None where it is missing, outside of the file, or larger than its pixels."""
        offset, count = int(self.offsets[index]), int(self.counts[index])
        if offset <= 0 or not 0 < count <= 4 * self.tile[0] * self.tile[1]:
            return None
        try:
            data = os.pread(descriptor, count, offset)
        except (OSError, OverflowError):
            return None
        return data if len(data) == count else None

    def decoded(self, jpeg: Jpeg, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8] | None:
        """uint8 (h, w, 3), RGB, of a whole tile, in `out` where given; None where OpenSlide may refuse it.

        That is also what libjpeg merely warns of, as it does of damage.
        """
        if jpeg.size != self.tile:
            return None
        stream = b"".join((_START, _ADOBE[self.colours], self.tables, jpeg.plain_head, jpeg.body))
        pixels = np.empty((self.tile[1], self.tile[0], 3), np.uint8) if out is None else out
        try:
            simplejpeg.decode_jpeg(stream, "RGB", buffer=pixels, strict=True)
        except HOSTILE:
            return None
        return pixels


@dataclass(frozen=True)
class Jpeg:
    """A JPEG in parts.

    Attributes:
        kind: its head but for tables and comments; intact tiles of one kind are decoded in the same way.
        size: (width, height) in pixels.
        head: all before the coded pixels, as it is.
        plain_head: the same without its start, its comments and what it says of its colours: the TIFF's tag counts.
        body: the coded pixels.
    """

    kind: bytes
    size: tuple[int, int]
    head: bytes
    plain_head: bytes
    body: memoryview


def tiled_jpegs(descriptor: int) -> list[TiledJpeg]:
    """The pages of a TIFF that are JPEG tiles of the known kind; none where it is no TIFF, or a damaged one."""
    try:
        with (
            _without_log("tifffile"),
            os.fdopen(os.dup(descriptor), "rb") as file,
            tifffile.TiffFile(file, name="slide") as tiff,
        ):
            return [known for page in islice(tiff.pages, _MOST_PAGES) if (known := _known(page))]
    except (tifffile.TiffFileError, MemoryError, *HOSTILE):  # memory: a tag that claims gigabytes, and is none of ours
        return []


def parsed(data: bytes, like: Jpeg | None = None) -> Jpeg | None:
    """A JPEG in parts, None where it is not baseline of three samples of 8 bits; quicker with another of the same head."""
    if like is not None and data.startswith(like.head):
        return Jpeg(like.kind, like.size, like.head, like.plain_head, memoryview(data)[len(like.head) :])
    if data[:2] != _START:
        return None
    kinds, parts, at, frame = [], [], 2, b""
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (*_BASELINE, _DHT):
            return None
        segment = data[at:end]
        if marker in _BASELINE:
            frame = segment
        if marker not in (_DHT, _DQT, _COM):
            kinds.append(segment)
        if marker not in (*_APPLICATIONS, _COM):
            parts.append(segment)
        if marker == _SOS:
            size = _size(frame)
            body = memoryview(data)[end:]
            return None if size is None else Jpeg(b"".join(kinds), size, data[:end], b"".join(parts), body)
        at = end
    return None


def _size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) of a frame: its length, the bits of a sample, height, width, how many samples a pixel has."""
    if len(frame) < 10 or frame[4] != 8 or frame[9] != 3:
        return None
    height, width = struct.unpack(">HH", frame[5:9])
    return width, height


def _known(page: tifffile.TiffPage | tifffile.TiffFrame) -> TiledJpeg | None:
    """The page, where it is JPEG tiles of the known kind."""
    if not isinstance(page, tifffile.TiffPage) or not page.is_tiled:
        return None
    size, tile = (page.imagewidth, page.imagelength), (page.tilewidth, page.tilelength)
    plain = (page.compression, page.samplesperpixel, page.bitspersample, page.planarconfig) == (
        _JPEG,
        3,
        8,
        _INTERLEAVED,
    )
    one_depth = page.imagedepth == page.tiledepth == 1 and not page.extrasamples and page.fillorder == 1
    if not plain or not one_depth or page.photometric not in (_RGB, _YCBCR):
        return None
    if not all(0 < side <= _MOST_SIDE_PX for side in tile) or not all(side > 0 for side in size):
        return None
    offsets, counts = (np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    tables = (page.jpegtables or b"").removeprefix(_START).removesuffix(_END)
    found = TiledJpeg(size, tile, offsets, counts, tables, "RGB" if page.photometric == _RGB else "YCBCR")
    fits = len(offsets) == len(counts) == found.columns * -(-size[1] // tile[1])
    return found if fits else None


_log_lock = threading.Lock()


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Keeps a library silent: it logs what it finds odd in a file with the text that it found there."""
    logger = logging.getLogger(name)
    silence = _Silence()
    with _log_lock:
        logger.addFilter(silence)
    try:
        yield
    finally:
        with _log_lock:
            logger.removeFilter(silence)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False
