"""slideflow: `<slide>.pt`, `<slide>.index.npz` with the locations, and one `bags_config.json` for all slides.

Its readers give the centre of a tile as its location, so that is what the index is taken to hold; its documents do not
say so, and the import marks it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pathfm.layouts.arrays import read_coords_file, read_tensor
from pathfm.layouts.foreign import ForeignSlide, Layout, Source, refused

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = "bags_config.json"
_MOST_CONFIG_BYTES = 1 << 20


def _claims(source: Source) -> bool:
    return source.h5 is None and (_index(source.path) is not None or (source.path.parent / _CONFIG).is_file())


def _read(source: Source) -> ForeignSlide:
    index = source.coords or _index(source.path)
    if source.h5 is not None or index is None:
        raise refused(source.path, "has no index of locations beside it (<slide>.index.npz); pass --coords its folder")
    config = _config(source.path.parent / _CONFIG)
    kind = config.get("extractor", {})
    encoder = str(kind.get("class", "")).rpartition(".")[2] if isinstance(kind, dict) else ""
    size_px, size_um = config.get("tile_px"), config.get("tile_um")
    width_px = size_px if isinstance(size_px, int) and size_px > 0 else None
    # "20x" is a magnification, and no width
    width_um = float(size_um) if isinstance(size_um, (int, float)) and size_um > 0 else None
    return ForeignSlide(
        tool="slideflow",
        features=read_tensor(source.path),
        coords=read_coords_file(index)[0],
        corner="centre",
        encoder=encoder or None,
        tile_px=width_px,
        tile_mpp=width_um / width_px if width_um and width_px else None,
        doubts=("stain normalisation", "stride", "tile corner"),
    )


def _index(path: Path) -> Path | None:
    found = (path.with_name(f"{path.stem}.index{suffix}") for suffix in (".npz", ".npy"))
    return next((index for index in found if index.is_file()), None)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _MOST_CONFIG_BYTES:
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    return config if isinstance(config, dict) else {}


LAYOUT = Layout("slideflow", _claims, _read)
