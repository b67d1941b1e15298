"""TRIDENT: `<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`, with attributes on coords and no mpp.

Its magnifications are bins (0.2 to 0.3 mpp are all called 40x), so no scale is ever made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.layouts.foreign import ForeignSlide, Layout, Source, refused
from pathfm.layouts.names import folder_name
from pathfm.layouts.written import h5_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.embeddings import Embeddings

_THEIR_NAMES = {
    "uni": "uni_v1",
    "uni2-h": "uni_v2",
    "h-optimus-0": "hoptimus0",
    "h-optimus-1": "hoptimus1",
    "phikon-v2": "phikon_v2",
    "midnight-12k": "midnight12k",
}


def _claims(source: Source) -> bool:
    h5 = source.h5
    if h5 is None or not h5.has("features") or not h5.has("coords"):
        return False
    return h5.says("target_magnification", "coords") or h5.says("patch_size_level0", "coords")


def _read(source: Source) -> ForeignSlide:
    h5 = source.content
    features = h5.features("features")
    name = h5.text("name", "features") or h5.text("name", "coords")
    if name is not None and name != source.path.stem:
        raise refused(source.path, "says that it holds another slide than its name; give the file its slide's name")
    folder = source.path.parent.name
    encoder = h5.text("encoder", "features") or (folder[9:] if folder.startswith("features_") else None)
    size, overlap = h5.whole("patch_size", "coords"), h5.number("overlap", "coords")
    width, height = h5.whole("level0_width", "coords"), h5.whole("level0_height", "coords")
    return ForeignSlide(
        tool="trident",
        features=features,
        coords=h5.coords(),
        encoder=encoder,
        tile_px=size,
        stride_px=size - round(overlap) if size and overlap is not None else None,
        extent_px0=h5.number("patch_size_level0", "coords"),
        size_px0=(width, height) if width and height else None,
    )


def files(embeddings: Embeddings, out: Path) -> dict[Path, bytes]:
    """What TRIDENT, Patho-Bench and TITAN scripts read of a slide; no path is written into it."""
    tiles, name = embeddings.recipe["tiles"], embeddings.slide_id
    ours = str(embeddings.recipe["backbone"]["name"])
    encoder = _THEIR_NAMES.get(ours, ours)
    magnification, overlap = max(1, round(10 / tiles["mpp"])), int(tiles["size_px"] - tiles["stride_px"])
    cut = {
        "patch_size": int(tiles["size_px"]),
        "patch_size_level0": round(embeddings.tile_extent_px0),
        "level0_magnification": max(1, round(10 / embeddings.mpp)),
        "target_magnification": magnification,
        "overlap": overlap,
        "name": name,
        "savetodir": "",
        "level0_width": int(embeddings.slide_size_px0[0]),
        "level0_height": int(embeddings.slide_size_px0[1]),
    }
    features = np.asarray(embeddings.features, dtype=np.float32)
    data: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "features": (features, {"name": name, "savetodir": "", "encoder": encoder}),
        "coords": (np.asarray(embeddings.coords, dtype=np.int64), cut),
    }
    job = out / f"{magnification}x_{tiles['size_px']}px_{overlap}px_overlap"
    return {job / f"features_{folder_name(encoder)}" / f"{name}.h5": h5_image(data, {})}


LAYOUT = Layout("trident", _claims, _read)
