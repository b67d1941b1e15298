"""Reading files that other tools wrote, or somebody who means harm: every size, type and link is checked before data is read."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from pathfm.errors import SlideError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

READING_ERRORS = (
    *(OSError, EOFError, MemoryError, OverflowError),
    *(RuntimeError, LookupError, ValueError, TypeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError),
)
"""What a damaged or hostile file makes h5py, numpy and torch raise."""

MOST_BYTES = 16 << 30
_MOST_CHUNK_BYTES = 1 << 30
_MOST_ATTRIBUTE_BYTES = 1 << 16
MOST_RATIO = 1100  # deflate cannot pack more densely; what claims to is a bomb
BLOCK_BYTES = 64 << 20
_MOST_TILES = 20_000_000
_FILTERS = {1, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf: those that h5py brings, so no plugin is loaded


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignSlide:
    """What a file says of a slide, as it says it; None for what it does not say.

    Attributes:
        tool: the layout it was read as.
        features: float16 (n, dim), finite, in the file's order.
        coords: float64 (n, 2), (x, y) of each tile; row i belongs to feature i.
        unit: of coords: level-0 pixels, or microns.
        corner: where in its tile coords points: at the top-left corner or at the centre.
        encoder: the backbone by its name there.
        tile_px: width of a tile in pixels as the tool cut it.
        tile_mpp: microns per pixel of a tile.
        stride_px: pixels from one tile to the next.
        extent_px0: width of a tile in level-0 pixels.
        mpp: microns per pixel of level 0.
        size_px0: (width, height) of level 0.
        doubts: facts of this layout that nobody has verified, beside those of every import.
    """

    tool: str
    features: NDArray[np.float16]
    coords: NDArray[np.float64]
    unit: Literal["px0", "um"] = "px0"
    corner: Literal["top-left", "centre"] = "top-left"
    encoder: str | None = None
    tile_px: int | None = None
    tile_mpp: float | None = None
    stride_px: int | None = None
    extent_px0: float | None = None
    mpp: float | None = None
    size_px0: tuple[int, int] | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file to read, and what was said beside it.

    Attributes:
        path: the file.
        h5: its guarded content; None for a .pt file.
        encoder: which backbone was asked for.
        coords: the file with its coordinates, where the user named one.
    """

    path: Path
    h5: GuardedH5 | None
    encoder: str | None
    coords: Path | None

    @property
    def content(self) -> GuardedH5:
        """What an .h5 file holds.

        Raises:
            SlideError: it is a .pt file.
        """
        if self.h5 is None:
            raise refused(self.path, "is a .pt file, and this layout has .h5 files; pass those, or the right --layout")
        return self.h5


@dataclass(frozen=True)
class Layout:
    """One tool's way to store features: a row of the table.

    Attributes:
        name: what --layout says.
        claims: whether a file looks like it; only asked of files that earlier rows do not claim.
        read: reads a file as this layout, or raises SlideError.
    """

    name: str
    claims: Callable[[Source], bool]
    read: Callable[[Source], ForeignSlide]


def refused(path: Path, what: str) -> SlideError:
    """The error of a file that cannot be imported; the message starts with its path."""
    return SlideError(path, "features", f"{path} {what}")


class GuardedH5:
    """An open HDF5 file of which only plain data inside of it can be reached: hard links, numbers, known filters."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        self.names = frozenset(map(str, file))

    def has(self, name: str, kind: type = h5py.Dataset) -> bool:
        """Whether it holds a dataset, or a group, of this name by a hard link."""
        return isinstance(self._file.get(name, getlink=True), h5py.HardLink) and isinstance(self._file[name], kind)

    def members(self, group: str) -> list[str]:
        """The names in a group, sorted."""
        return sorted(map(str, self._node(group)))

    def says(self, key: str, of: str = "/") -> bool:
        """Whether there is an attribute `key` of the root, or of a dataset."""
        return key in self._node(of).attrs

    def number(self, key: str, of: str = "/") -> float | None:
        """An attribute that is a number, or the first of a pair; None where absent or TRIDENT's "None"."""
        value = self._attribute(key, of)
        if value is None or (isinstance(value, str) and value == "None"):
            return None
        numbers = np.asarray(value).ravel()
        if numbers.dtype.kind not in "iuf" or not len(numbers) or not 0 <= float(numbers[0]) < math.inf:
            raise refused(
                self.path, f"has an attribute {key!r} that is no number ({str(value)[:40]}); correct it there"
            )
        return float(numbers[0])

    def whole(self, key: str, of: str = "/") -> int | None:
        """An attribute that is a whole number above 0; None where absent or 0."""
        return round(self.number(key, of) or 0) or None

    def text(self, key: str, of: str = "/") -> str | None:
        """An attribute that is text; None where absent, empty or "None"."""
        value = self._attribute(key, of)
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) if value is not None else ""
        return text if text not in ("", "None") else None

    def features(self, name: str) -> NDArray[np.float16]:
        """A dataset of one row a tile, as float16 (n, dim); (0, 0) where an empty one has no width.

        Raises:
            SlideError: another shape or type, values that are not finite or too large for float16, or not plain data.
        """
        dataset = self._dataset(name, "f")
        if dataset.shape == (0,):
            return np.empty((0, 0), dtype=np.float16)
        require_tiles(self.path, dataset.shape)
        row_bytes = max(1, dataset.shape[1] * dataset.dtype.itemsize)
        step = max(1, BLOCK_BYTES // row_bytes)
        starts = range(0, len(dataset), step)
        return as_float16(self.path, dataset.shape, ((at, dataset[at : at + step]) for at in starts))

    def coords(self, name: str = "coords") -> NDArray[np.float64]:
        """The first two columns of a dataset of coordinates, float64 (n, 2)."""
        dataset = self._dataset(name, "iuf")
        if dataset.ndim != 2 or dataset.shape[1] not in (2, 5) or len(dataset) > _MOST_TILES:
            raise refused(self.path, f"has {name!r} of shape {dataset.shape}, not one (x, y) a tile")
        return np.asarray(dataset[:, :2], dtype=np.float64)

    def _node(self, name: str) -> Any:
        node: Any = self._file
        for part in name.strip("/").split("/"):
            if part:
                if not isinstance(node, h5py.Group) or not isinstance(node.get(part, getlink=True), h5py.HardLink):
                    raise refused(self.path, f"has no {name!r} of its own: it is missing, or a link to something else")
                node = node[part]
        return node

    def _attribute(self, key: str, of: str) -> Any:
        attributes = self._node(of).attrs
        if key not in attributes:
            return None
        if attributes.get_id(key).get_storage_size() > _MOST_ATTRIBUTE_BYTES:
            raise refused(self.path, f"has an attribute {key!r} of more than {_MOST_ATTRIBUTE_BYTES} bytes")
        return attributes[key]

    def _dataset(self, name: str, kinds: str) -> h5py.Dataset:
        """A dataset that may be read: refuses what would read something else, run a plugin, or allocate without end."""
        dataset = self._node(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.external is not None or dataset.is_virtual:
            raise refused(self.path, f"has {name!r} that is external, virtual or no dataset; such data is not read")
        plist = dataset.id.get_create_plist()
        unknown = {plist.get_filter(at)[0] for at in range(plist.get_nfilters())} - _FILTERS
        if unknown:
            raise refused(self.path, f"has {name!r} behind a filter that is not read ({unknown}); use gzip or lzf")
        if dataset.dtype.kind not in kinds or dataset.dtype.itemsize > 8:
            raise refused(self.path, f"has {name!r} of type {dataset.dtype}, where numbers are needed")
        stored, chunk = dataset.id.get_storage_size(), math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        if dataset.nbytes > min(MOST_BYTES, MOST_RATIO * stored) or chunk > _MOST_CHUNK_BYTES:
            raise refused(
                self.path, f"has {name!r} that claims {dataset.nbytes} bytes and stores {stored}; it is not read"
            )
        return dataset


def require_tiles(path: Path, shape: tuple[int, ...]) -> None:
    """Refuses features that are not one row a tile.

    Raises:
        SlideError: one vector a slide, or several a tile.
    """
    if len(shape) == 1:
        raise refused(
            path, f"holds one embedding of the whole slide ({shape[0]} numbers), not one a tile; pass tile features"
        )
    if len(shape) != 2 or not shape[1]:
        raise refused(path, f"holds features of shape {shape}, not one row of numbers a tile; pass tile features")


def as_float16(path: Path, shape: tuple[int, ...], blocks: Iterable[tuple[int, NDArray[Any]]]) -> NDArray[np.float16]:
    """Rows given as (first row, block) in one float16 array.

    Raises:
        SlideError: some are not finite, or too large for float16: they are counted, never turned into infinity.
    """
    out = np.empty(shape, dtype=np.float16)
    odd = large = small = 0
    for at, block in blocks:
        with np.errstate(over="ignore"):
            out[at : at + len(block)] = block
        finite = np.isfinite(block).all(axis=1)
        odd += int((~finite).sum())
        small += int((block.any(axis=1) & ~out[at : at + len(block)].any(axis=1)).sum())
        large += int((finite & ~np.isfinite(out[at : at + len(block)]).all(axis=1)).sum())
    if odd:
        raise refused(path, f"holds {odd} of {shape[0]} tiles whose embedding is not finite; embed that slide again")
    if small:
        raise refused(path, f"holds {small} of {shape[0]} tiles whose numbers are all too small for float16")
    if large:
        raise refused(path, f"holds {large} of {shape[0]} tiles with numbers beyond 65504, which float16 cannot hold")
    return out
