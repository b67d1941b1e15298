"""What lies beside HDF5: features in .pt files, coordinates in files of their own; read without running code in them."""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING

import h5py
import numpy as np

from pathfm.layouts.foreign import BLOCK_BYTES, MOST_BYTES, MOST_RATIO, GuardedH5, as_float16, refused, require_tiles

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_tensor(path: Path) -> NDArray[np.float16]:
    """The features of a .pt file that is one tensor; read without running any code in it.

    Raises:
        SlideError: something else than a tensor of one row a tile.
    """
    import torch  # only here: HDF5 files need no torch

    _require_whole(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message recommends to run the code
        raise refused(path, "is damaged, or holds objects instead of numbers; only a bare tensor is read") from error
    if isinstance(value, list):
        raise refused(path, "is a list of tensors, as eva writes; only one tensor a slide is read")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise refused(path, f"holds a {type(value).__name__} and not one tensor of numbers")
    if value.numel() * value.element_size() > min(MOST_BYTES, value.untyped_storage().nbytes()):
        raise refused(path, f"claims {tuple(value.shape)} numbers, more than it stores")
    require_tiles(path, tuple(value.shape))
    step = max(1, BLOCK_BYTES // (4 * value.shape[1]))
    starts = range(0, len(value), step)
    return as_float16(path, tuple(value.shape), ((at, value[at : at + step].detach().float().numpy()) for at in starts))


def read_coords_file(path: Path) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Coordinates that lie in a file of their own (.h5, .npy or .npz) and what it says of the tiles.

    Returns:
        float64 (n, 2), and of "patch_size", "downsample" what an .h5 file says.
    """
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            return coords_and_cut(GuardedH5(path, file))
    if path.suffix == ".npz":
        _require_whole(path)
        with np.load(path, allow_pickle=False) as archive:
            coords = archive["arr_0"]
    else:
        coords = np.load(path, mmap_mode="r", allow_pickle=False)
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise refused(path, f"holds {coords.dtype} of shape {coords.shape}, not one (x, y) a tile")
    return np.asarray(coords, dtype=np.float64), {}


def coords_and_cut(h5: GuardedH5) -> tuple[NDArray[np.float64], dict[str, float]]:
    """The coordinates of an HDF5 file, and of "patch_size" and "downsample" what it says."""
    said = {key: h5.number(key, "coords") for key in ("patch_size", "downsample")}
    return h5.coords(), {key: value for key, value in said.items() if value}


def _require_whole(path: Path) -> None:
    """Refuses an archive that unpacks to far more than it is, or whose checksums are wrong."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > min(MOST_BYTES, MOST_RATIO * path.stat().st_size):
            raise refused(path, f"would unpack to {unpacked} bytes; it is not read")
        if archive.testzip() is not None:  # torch does not look
            raise refused(path, "is damaged, its checksums are wrong; copy it again from where it was made")
