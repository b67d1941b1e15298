"""How other tools store tile features: a table of layouts, telling them apart, and reading one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import h5py

from pathfm.contents import FORMAT
from pathfm.errors import InputError, PathfmError
from pathfm.layouts import atlaspatch, clam, plain, slideflow, stamp, trident
from pathfm.layouts.foreign import READING_ERRORS, ForeignSlide, GuardedH5, Layout, Source, refused

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXPORTS", "LAYOUTS", "ForeignSlide", "LayoutName", "find_foreign", "read_foreign"]

LayoutName = Literal["auto", "clam", "trident", "stamp", "atlaspatch", "slideflow", "plain"]

LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (atlaspatch, stamp, trident, slideflow, clam, plain)
}
"""By name, in the order in which they are asked whether a file is theirs."""

EXPORTS = {"trident": trident.files, "clam": clam.files, "stamp": stamp.files}
"""The layouts that pathfm also writes: each gives the files of a slide as bytes."""


def read_foreign(
    path: Path, layout: LayoutName = "auto", encoder: str | None = None, coords: Path | None = None
) -> ForeignSlide:
    """Reads one file of another tool; a function of picklable arguments, for a process of its own.

    Args:
        path: .h5 or .pt.
        layout: whose it is; "auto" tells by what it holds.
        encoder: the backbone wanted, where a file has several.
        coords: the file with its coordinates, where they are not in `path`.

    Raises:
        SlideError: it cannot be read, or is not what it would have to be; the reason is "features".
        InputError: the user has to say which of several encoders is meant.
    """
    try:
        if path.suffix == ".pt":
            return _read(Source(path, None, encoder, coords), layout)
        with h5py.File(path, "r") as file:
            return _read(Source(path, GuardedH5(path, file), encoder, coords), layout)
    except PathfmError:
        raise
    except READING_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise refused(
            path, f"cannot be read ({type(error).__name__}: {said}); copy it again from where it was made"
        ) from error


def find_foreign(features: Path) -> dict[str, Path]:
    """The feature files below a folder, or the one file: slide_id to path, sorted.

    `h5_files`, `pt_files`, `patches` and a single `features_<encoder>` are looked into; other folders are searched to any
    depth. A slide is called by its file, or by its folder where the file is called features.h5.

    Raises:
        InputError: nothing there, several folders of features, or two files of one slide.
    """
    if features.is_file():
        return {_slide_id(features): features}
    folder = _folder_of(features)
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h5", ".pt") and p.is_file()):
        if not _is_utf8(path):
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            message = f"the name of {shown} is not UTF-8; rename the file"
            raise InputError(message)
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if _slide_id(path) in found:
            message = (
                f"{found[_slide_id(path)]} and {path} are both of slide {_slide_id(path)}; pass --features one folder"
            )
            raise InputError(message)
        found[_slide_id(path)] = path
    if not found:
        message = f"no .h5 or .pt files in {features}; pass --features the folder with another tool's features"
        raise InputError(message)
    return found


def _read(source: Source, layout: LayoutName) -> ForeignSlide:
    h5 = source.h5
    if h5 is not None and h5.text("format") == FORMAT:
        raise refused(source.path, "is an embeddings file of pathfm already; pass its folder to --embeddings")
    if layout != "auto":
        return LAYOUTS[layout].read(source)
    claimed = next((row for row in LAYOUTS.values() if row.claims(source)), None)
    if claimed is None:
        raise refused(source.path, _unclaimed(source))
    return claimed.read(source)


def _unclaimed(source: Source) -> str:
    names = source.h5.names if source.h5 else frozenset()
    if not names & {"features", "feats"}:
        return f"holds no features that are known ({', '.join(sorted(names)) or 'nothing'}); pass --layout if you know whose it is"
    if "coords" not in names:
        return plain.no_coords(source)
    return (
        "does not say which tool wrote it, nor the frame of its coordinates; pass --layout plain if they are"
        " top-left corners in level-0 pixels"
    )


def _folder_of(features: Path) -> Path:
    """Where in a tool's output the features lie."""
    if not features.is_dir():
        message = f"no file or folder at {features}; pass --features another tool's features"
        raise InputError(message)
    for name in ("h5_files", "pt_files"):
        if (features / name).is_dir():
            return features / name
    several = sorted(p for p in [*features.glob("features_*"), *features.glob("*/features_*")] if p.is_dir())
    if len(several) > 1:
        message = (
            f"{features} holds {', '.join(str(p.relative_to(features)) for p in several)}; pass --features one of them"
        )
        raise InputError(message)
    if several:
        return several[0]
    return features / "patches" if (features / "patches").is_dir() else features


def _is_utf8(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _slide_id(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "features" else path.stem
