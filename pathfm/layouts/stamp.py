"""STAMP: `<extractor>-<hash>/<slide>.h5` with `feats`, coords in microns, and everything but the slide's mpp.

Its version 1 wrote no unit: where tiles lie about 224 apart, STAMP takes 224 to be 256 microns, and so does this reader.
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

_THEIR_NAMES = {"uni": "mahmood-uni", "uni2-h": "mahmood-uni2", "virchow": "virchow_full"}
_TOKENS = ("stamp_version", "extractor", "unit", "tile_size", "tile_size_um", "feat_type")
_OLD_PX, _OLD_UM = 224, 256.0


def _claims(source: Source) -> bool:
    h5 = source.h5
    if h5 is None:
        return False
    if h5.says("precision") and h5.says("encoder"):
        return True
    if not h5.has("feats") and not h5.has("patch_embeddings"):
        return False
    return any(h5.says(key) for key in _TOKENS) or (h5.has("coords") and _is_old(h5.coords()))


def _read(source: Source) -> ForeignSlide:
    h5 = source.content
    kind = h5.text("feat_type") or ("slide" if h5.says("precision") and h5.says("encoder") else "tile")
    if kind != "tile":
        raise refused(
            source.path, f"holds one embedding a {kind} (STAMP's feat_type), not one a tile; pass tile features"
        )
    if not h5.has("coords"):
        raise refused(source.path, f"holds no coordinates ({', '.join(sorted(h5.names))}), so it is no slide's tiles")
    features, coords, encoder = h5.features("feats"), h5.coords(), h5.text("extractor")
    size_px, size_um = h5.whole("tile_size_px"), h5.number("tile_size_um")
    if h5.text("unit") == "um":
        size_um = size_um or h5.number("tile_size")
    if not size_um:
        if round(h5.number("tile_size") or 0) != _OLD_PX and not _is_old(coords):
            raise refused(source.path, _NO_UNIT)
        size_px, size_um, coords = _OLD_PX, _OLD_UM, coords * (_OLD_UM / _OLD_PX)
    return ForeignSlide(
        tool="stamp",
        features=features,
        coords=coords,
        unit="um",
        encoder=encoder,
        tile_px=size_px,
        tile_mpp=size_um / size_px if size_px else None,
        stride_px=size_px,
    )


def _is_old(coords: NDArray[np.float64]) -> bool:
    """STAMP's own rule for files without a unit: the least distance of two columns is about 224."""
    distances = np.diff(np.unique(coords[:, 0]))
    return bool(len(distances)) and round(float(distances.min())) == _OLD_PX


_NO_UNIT = (
    "does not say the unit of its coordinates, and they are not 224 apart as in STAMP's first version;"
    " pass --layout plain if they are top-left corners in level-0 pixels"
)


def files(embeddings: Embeddings, out: Path) -> dict[Path, bytes]:
    """What STAMP reads of a slide: float16 features, float32 coords in microns; it was not STAMP that wrote it, so no version."""
    tiles = embeddings.recipe["tiles"]
    ours = str(embeddings.recipe["backbone"]["name"])
    extractor = folder_name(_THEIR_NAMES.get(ours, ours))
    coords_um = (embeddings.coords * embeddings.mpp).astype(np.float32)
    data: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "coords": (coords_um, {}),
        "feats": (np.asarray(embeddings.features, dtype=np.float16), {}),
    }
    said = {
        "extractor": extractor,
        "unit": "um",
        "tile_size_um": round(embeddings.tile_extent_px0 * embeddings.mpp, 6),
        "tile_size_px": int(tiles["size_px"]),
        "feat_type": "tile",
    }
    return {out / extractor / f"{embeddings.slide_id}.h5": h5_image(data, said)}


LAYOUT = Layout("stamp", _claims, _read)
