"""CLAM: `h5_files/<slide>.h5` or `pt_files/<slide>.pt` with features, and `patches/<slide>.h5` with how the tiles were cut.

The feature files have no attributes. What the coordinates file says comes from there, the rest has to be asked for.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.layouts.arrays import coords_and_cut, read_coords_file, read_tensor
from pathfm.layouts.foreign import ForeignSlide, Layout, Source, refused
from pathfm.layouts.written import h5_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.embeddings import Embeddings


def _claims(source: Source) -> bool:
    """What is neither slideflow's nor TRIDENT's: those are asked first."""
    h5 = source.h5
    return h5 is None or "imgs" in h5.names or (h5.has("features") and h5.has("coords"))


def _read(source: Source) -> ForeignSlide:
    if source.h5 is not None and "imgs" in source.h5.names and "features" not in source.h5.names:
        raise refused(
            source.path, "holds pictures of tiles, as CLAM once wrote, and no features; run CLAM's extraction"
        )
    features = read_tensor(source.path) if source.h5 is None else source.h5.features("features")
    coords, cut = _coords(source)
    size, downsample = cut.get("patch_size"), cut.get("downsample")
    return ForeignSlide(
        tool="clam",
        features=features,
        coords=coords,
        tile_px=round(size) if size else None,
        extent_px0=size * downsample if size and downsample else None,
        doubts=("stride",),
    )


def _coords(source: Source) -> tuple[NDArray[np.float64], dict[str, float]]:
    """The coordinates beside the features or from --coords; where there are both they have to be the same."""
    beside = source.coords
    if beside is None and source.h5 is None:
        beside = source.path.parent.parent / "h5_files" / f"{source.path.stem}.h5"
        if not beside.is_file():
            raise refused(
                source.path, "holds no coordinates; pass --coords the folder with CLAM's patches/<slide_id>.h5"
            )
    if beside is None:
        return coords_and_cut(source.content)
    coords, cut = read_coords_file(beside)
    if source.h5 is not None and not np.array_equal(source.h5.coords(), coords):
        raise refused(source.path, f"has other coordinates than {beside}; pass --coords the folder of the same run")
    return coords, cut


def files(embeddings: Embeddings, out: Path) -> dict[Path, bytes]:
    """What CLAM reads of a slide: float32 features as HDF5 and as a bare tensor."""
    import torch

    features = np.asarray(embeddings.features, dtype=np.float32)
    data: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "features": (features, {}),
        "coords": (np.asarray(embeddings.coords, dtype=np.int32), {}),
    }
    tensor = io.BytesIO()
    torch.save(torch.from_numpy(features), tensor)
    name = embeddings.slide_id
    return {out / "h5_files" / f"{name}.h5": h5_image(data, {}), out / "pt_files" / f"{name}.pt": tensor.getvalue()}


LAYOUT = Layout("clam", _claims, _read)
