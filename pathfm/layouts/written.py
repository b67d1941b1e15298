"""An HDF5 file as bytes, for the layouts that pathfm writes for other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def h5_image(data: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]], attributes: Mapping[str, Any]) -> bytes:
    """A whole file, built in memory; equal contents give equal bytes.

    Args:
        data: name of a dataset to its array and its attributes.
        attributes: of the root.
    """
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        for name, (array, said) in data.items():
            file.create_dataset(name, data=array, track_times=False).attrs.update(said)
        file.attrs.update(attributes)
        file.flush()
        return bytes(file.id.get_file_image())
