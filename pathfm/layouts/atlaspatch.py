"""AtlasPatch: `patches/<slide>.h5`, coordinates and the features of several encoders in one file."""

from __future__ import annotations

import h5py

from pathfm.errors import InputError
from pathfm.layouts.foreign import ForeignSlide, GuardedH5, Layout, Source, refused
from pathfm.layouts.names import our_name


def _claims(source: Source) -> bool:
    return source.h5 is not None and source.h5.has("features", h5py.Group)


def _read(source: Source) -> ForeignSlide:
    h5 = source.content
    encoder = _encoder(source, h5)
    size, overlap = h5.whole("patch_size"), h5.number("overlap")
    width, height = h5.whole("level0_width"), h5.whole("level0_height")
    return ForeignSlide(
        tool="atlaspatch",
        features=h5.features(f"features/{encoder}"),
        coords=h5.coords(),
        encoder=encoder,
        tile_px=size,
        stride_px=size - round(overlap) if size and overlap is not None else None,
        extent_px0=h5.number("patch_size_level0"),
        mpp=h5.number("mpp"),
        size_px0=(width, height) if width and height else None,
    )


def _encoder(source: Source, h5: GuardedH5) -> str:
    """The encoder asked for, by its name here or in pathfm; the only one where nobody asked."""
    held = [name for name in h5.members("features") if not name.startswith("__tmp_")]
    if not held:
        raise refused(source.path, "holds coordinates and no features; run AtlasPatch's process")
    asked = source.encoder
    wanted = [name for name in held if name == asked] or [n for n in held if asked and our_name(n) == our_name(asked)]
    if len(wanted or held) == 1:
        return (wanted or held)[0]
    message = f"{source.path} holds features of {', '.join(held)}; pass --backbone one of them"
    raise InputError(message)


LAYOUT = Layout("atlaspatch", _claims, _read)
