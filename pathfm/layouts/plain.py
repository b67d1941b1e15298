"""No tool in particular: features and top-left corners in level-0 pixels, because whoever passes --layout plain says so."""

from __future__ import annotations

from pathfm.layouts.arrays import read_coords_file, read_tensor
from pathfm.layouts.foreign import ForeignSlide, Layout, Source, refused


def _claims(_: Source) -> bool:
    return False  # nobody but the user knows


def _read(source: Source) -> ForeignSlide:
    h5 = source.h5
    if h5 is None:
        features = read_tensor(source.path)
    else:
        name = next((name for name in ("features", "feats") if h5.has(name)), None)
        if name is None:
            raise refused(source.path, f"holds no features ({', '.join(sorted(h5.names))}); it needs features or feats")
        features = h5.features(name)
    if source.coords is not None:
        coords = read_coords_file(source.coords)[0]
    elif h5 is not None and h5.has("coords"):
        coords = h5.coords()
    else:
        raise refused(source.path, no_coords(source))
    return ForeignSlide(tool="plain", features=features, coords=coords, doubts=("coordinate frame", "stride"))


def no_coords(source: Source) -> str:
    """What is missing of a file without coordinates, and where they may come from."""
    held = f" ({', '.join(sorted(source.h5.names))})" if source.h5 else ""
    return f"holds no coordinates{held}; pass --coords a folder with <slide_id>.h5 or .npy, and --layout plain"


LAYOUT = Layout("plain", _claims, _read)
