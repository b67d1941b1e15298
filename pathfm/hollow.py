"""An HDF5 file in memory without the rows of one of its datasets: what stands before them, and what behind."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_WRONG = "libhdf5 wrote where the rows belong that are left out; this release of it lays files out in another way"


class Left(NamedTuple):
    """A dataset whose rows are written by somebody else."""

    name: str
    shape: tuple[int, int]
    dtype: str


def hollow_image(
    left: Left,
    datasets: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
    dataset_attributes: Mapping[str, Mapping[str, Any]],
) -> tuple[bytes, bytes]:
    """The bytes of an HDF5 file before and behind the rows of a dataset, which are never held; equal input, equal bytes.

    Every dataset is contiguous and unfiltered. Memory is that of the other datasets.

    Args:
        left: the dataset whose rows belong between the two parts; where it has no bytes the second part is empty.
        datasets: the others, by name; they follow behind it.
        attributes: of the root.
        dataset_attributes: of datasets, by their name.
    """
    held = _HeldBytes()
    with h5py.File(held, "w") as file:
        dataset = _without_rows(file, left)
        if dataset.nbytes:
            held.leave_out(dataset.id.get_offset(), dataset.nbytes)
        for name, data in datasets.items():
            file.create_dataset(name, data=data, track_times=False)
        for name, some in dataset_attributes.items():
            file[name].attrs.update(some)
        for name, value in attributes.items():
            file.attrs[name] = value
    image = held.getvalue()
    at = held.start if held.length else len(image)
    return image[:at], image[at:]


def _without_rows(file: h5py.File, left: Left) -> h5py.Dataset:
    """A contiguous dataset that has its place in the file at once, and into which libhdf5 writes nothing."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    kind, space = h5py.h5t.py_create(left.dtype), h5py.h5s.create_simple(left.shape)
    return h5py.Dataset(h5py.h5d.create(file.id, left.name.encode(), kind, space, dcpl=how))


class _HeldBytes(io.BytesIO):
    """What libhdf5 takes for the file: a range of it is left out, and all behind that is moved up."""

    start = length = 0

    def leave_out(self, start: int, length: int) -> None:
        """From here on the bytes from `start` on are thought to be there; libhdf5 has written nothing behind it yet."""
        if len(self.getbuffer()) > start:
            raise RuntimeError(_WRONG)
        self.start, self.length = start, length

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:  # libhdf5 asks for the size so
            return super().seek(offset, whence) + self.length
        super().seek(self._held(offset))
        return offset

    def truncate(self, size: int | None = None, /) -> int:
        """To exactly this size: libhdf5 counts space that it has not written as part of the file."""
        wanted = self._held(size or 0)
        super().truncate(wanted)
        super().seek(0, io.SEEK_END)
        self.write(bytes(wanted - len(self.getbuffer())))
        return size or 0

    def _held(self, offset: int) -> int:
        if self.start < offset < self.start + self.length:
            raise RuntimeError(_WRONG)
        return offset - self.length if self.length and offset >= self.start + self.length else offset
