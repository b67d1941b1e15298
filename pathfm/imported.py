"""One imported slide: what its file says and what its user says, agreed into embeddings; what neither says is asked for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import h5py
import numpy as np

from pathfm.embeddings import Embeddings
from pathfm.errors import InputError, MppError
from pathfm.layouts.foreign import refused
from pathfm.layouts.names import base_name, family_of, known_row, our_name
from pathfm.licences import Licence
from pathfm.progress import logger
from pathfm.recipe import RECIPE_FORMAT
from pathfm.scale import require_sane_mpp

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.layouts import ForeignSlide

N = TypeVar("N", int, float)

UNVERIFIED = ("backbone weights", "mpp", "precision", "slide identity", "tile size", "transform")
"""What nobody can prove of embeddings that pathfm did not make; a layout adds its own doubts."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+:/@-]{0,99}")
_MPP_TOLERANCE = 0.02
_BINS = 1.75  # tools that bin magnifications miss the scale they mean by up to this factor
_MOST_PX0 = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user says of all files; None for what the files have to say.

    Attributes:
        backbone: name of the backbone.
        tile_px: width of a tile in pixels.
        tile_mpp: microns per pixel of a tile.
        stride_px: pixels from one tile to the next.
    """

    backbone: str | None = None
    tile_px: int | None = None
    tile_mpp: float | None = None
    stride_px: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            InputError: the message names the flag.
        """
        if self.backbone is not None and not _NAME.fullmatch(self.backbone):
            message = f"--backbone is {self.backbone!r}; use letters, digits and dashes"
            raise InputError(message)
        for name, least, most in (("tile_px", 1, 1 << 16), ("tile_mpp", 0.01, 100), ("stride_px", 1, 1 << 20)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                message = f"--{name} is {value:g}; give {least:g} to {most:g}"
                raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What is known of a slide from elsewhere than its feature file.

    Attributes:
        mpp: microns per pixel of level 0, None where nobody said.
        mpp_source: where that comes from.
        size_px0: (width, height) of level 0, None where not known.
        digest: what the slide is known by, "" where not known.
    """

    mpp: float | None = None
    mpp_source: str = "imported"
    size_px0: tuple[int, int] | None = None
    digest: str = ""


def imported_embeddings(
    slide_id: str, path: Path, foreign: ForeignSlide, stated: Stated, facts: SlideFacts, dim: int | None = None
) -> Embeddings:
    """The embeddings of a slide in another tool's file.

    Args:
        slide_id: the slide.
        path: the file, for messages.
        foreign: what it holds.
        stated: what the user says of all files.
        facts: what is known of the slide.
        dim: width of the other files' embeddings, None for the first.

    Raises:
        InputError: neither the file nor the user says something that is needed; the message names the flags.
        SlideError: the two disagree, or the file cannot be right.
    """
    mpp = _agreed(path, "--mpp, the cohort or the slide", facts.mpp, "mpp", foreign.mpp, _MPP_TOLERANCE)
    tile_px = _agreed(path, "--tile_px", stated.tile_px, "tile size", foreign.tile_px)
    tile_mpp = _agreed(path, "--tile_mpp", stated.tile_mpp, "mpp of a tile", foreign.tile_mpp, _MPP_TOLERANCE)
    backbone = _backbone(path, foreign, stated.backbone)
    if mpp is None or tile_px is None or tile_mpp is None or backbone is None:
        raise _asking(path, foreign, mpp, tile_px, tile_mpp, backbone)
    _require_sane(path, mpp)
    features = _of_width(path, foreign.features, backbone, dim)
    extent_px0 = foreign.extent_px0 or tile_px * tile_mpp / mpp
    _require_scale(path, extent_px0 * mpp / tile_px, tile_mpp)
    size_px0 = _agreed_size(path, foreign.size_px0, facts.size_px0)
    coords = _coords_px0(path, foreign, mpp, extent_px0, size_px0)
    if len(coords) != len(features):
        raise refused(
            path, f"has {len(features)} embeddings and {len(coords)} coordinates; they do not belong together"
        )
    stride_px = _agreed(path, "--stride_px", stated.stride_px, "stride", foreign.stride_px)
    _require_grid(path, coords, extent_px0, tile_px, stride_px)
    tiles = {"size_px": tile_px, "mpp": float(tile_mpp), "stride_px": stride_px or tile_px}
    return Embeddings(
        slide_id=slide_id,
        slide_digest=facts.digest,
        slide_size_px0=size_px0 or (0, 0),
        mpp=mpp,
        mpp_source=facts.mpp_source if facts.mpp is not None else "imported",
        tile_extent_px0=float(extent_px0),
        tissue_sha256="",
        recipe={
            "format": RECIPE_FORMAT,
            "imported": {"tool": foreign.tool, "unverified": sorted({*UNVERIFIED, *foreign.doubts})},
            "tiles": tiles,
            "backbone": {"name": backbone, "dim": features.shape[1]},
        },
        versions={"h5py": h5py.__version__, "numpy": np.__version__},
        features=features,
        coords=coords,
        failed=np.empty((0, 2), dtype=np.int32),
        mean_rgb=np.full(3, np.nan, dtype=np.float32),
        licences=(licence_of(backbone),),
    )


def licence_of(backbone: str) -> Licence:
    """The licence of a backbone by any name, also of a variant such as virchow2-cls; "unknown" where pathfm has no row."""
    row = family_of(backbone)
    return Licence(backbone) if row is None else replace(row.terms, backbone=backbone)


def _weights(backbone: str) -> str:
    """The same for names of the same weights, which are under one licence."""
    row = family_of(backbone)
    return backbone if row is None else base_name(row.name)


def _backbone(path: Path, foreign: ForeignSlide, stated: str | None) -> str | None:
    """The name that counts: the user's, if the file does not speak of other weights."""
    said = our_name(foreign.encoder) if foreign.encoder is not None else None
    ours = our_name(stated) if stated is not None else None
    if ours is not None and said is not None and _weights(ours) != _weights(said):
        raise refused(
            path, f"was made with {foreign.encoder}, but --backbone says {stated}; pass the right one, or leave it out"
        )
    if said is not None and not _NAME.fullmatch(said):
        raise refused(path, f"has an odd name for its backbone ({said[:40]!r}); correct it there")
    return said if ours is None else ours


def _of_width(path: Path, features: NDArray[np.float16], backbone: str, dim: int | None) -> NDArray[np.float16]:
    """Features as wide as the backbone's row and the other files say; an empty file may not say its width."""
    row = known_row(backbone)
    expected = row.dim if row is not None and row.dim else dim
    if features.shape == (0, 0) and expected:
        return np.empty((0, expected), dtype=np.float16)
    if row is not None and row.dim and features.shape[1] != row.dim:
        message = (
            f"has {features.shape[1]} numbers a tile, {backbone} ({row.output}) gives {row.dim}, so it is another output of"
            f" it; pass --backbone {base_name(backbone)}-VARIANT, in a word of your own such as {base_name(backbone)}-cls"
        )
        raise refused(path, message)
    if expected and features.shape[1] != expected:
        raise refused(
            path, f"has {features.shape[1]} numbers a tile, the files before it {expected}; import it apart from them"
        )
    return features


def _agreed(path: Path, flag: str, stated: N | None, what: str, said: N | None, tolerance: float = 0.0) -> N | None:
    """The user's value, else the file's; they may not differ."""
    if stated is not None and said is not None and abs(stated - said) > tolerance * said:
        raise refused(path, f"says {what} {said:g}, but {flag} says {stated:g}; correct that, or leave the file out")
    return said if stated is None else stated


def _asking(
    path: Path,
    foreign: ForeignSlide,
    mpp: float | None,
    tile_px: int | None,
    tile_mpp: float | None,
    backbone: str | None,
) -> InputError:
    """The one line that asks for all that is missing."""
    by_width = f"{foreign.extent_px0 * mpp / tile_px:.3g}" if foreign.extent_px0 and mpp and tile_px else ""
    example = f"{by_width} (by the width of its tiles)" if by_width else "0.5"
    wanted = [
        ("the backbone", "--backbone NAME", backbone),
        ("the width of a tile in pixels", "--tile_px 256", tile_px),
        ("the microns per pixel of a tile", f"--tile_mpp {example}", tile_mpp),
        ("the microns per pixel of level 0", "--mpp 0.25 (or --cohort with a column mpp, or --slides)", mpp),
    ]
    missing = [(what, flag) for what, flag, value in wanted if value is None]
    whats, flags = ", ".join(what for what, _ in missing), ", ".join(flag for _, flag in missing)
    return InputError(f"{path} ({foreign.tool}) does not say {whats}; pass {flags}")


def _require_sane(path: Path, mpp: float) -> None:
    try:
        require_sane_mpp(mpp, f"{path}: mpp {mpp:g}")
    except InputError as error:
        raise MppError(path, "absurd mpp", str(error)) from error


def _require_scale(path: Path, here: float, tile_mpp: float) -> None:
    """Bins of magnification are a little off; a factor of two is another magnification."""
    if not 1 / _BINS < here / tile_mpp < _BINS:
        raise refused(
            path,
            f"has tiles of {here:.3g} microns per pixel by their width, but {tile_mpp:g} is stated; correct --tile_mpp or the mpp",
        )


def _agreed_size(path: Path, said: tuple[int, int] | None, known: tuple[int, int] | None) -> tuple[int, int] | None:
    if said is not None and known is not None and said != known:
        raise refused(
            path,
            f"is of a slide of {said[0]} x {said[1]} pixels, the slide has {known[0]} x {known[1]}; pass the right slide",
        )
    return known or said


def _coords_px0(
    path: Path, foreign: ForeignSlide, mpp: float, extent_px0: float, size_px0: tuple[int, int] | None
) -> NDArray[np.int32]:
    """Top-left corners in level-0 pixels, int32 (n, 2)."""
    coords = foreign.coords / mpp if foreign.unit == "um" else foreign.coords
    if foreign.corner == "centre":
        coords = coords - math.floor(extent_px0 / 2)
    coords = np.rint(coords)
    limits = np.array(size_px0 or (_MOST_PX0, _MOST_PX0))
    outside = ~(np.isfinite(coords) & (coords >= 0) & (coords < limits)).all(axis=1)
    if outside.any():
        first = coords[outside][0]
        message = (
            f"has {int(outside.sum())} of {len(coords)} tiles outside of the slide (first: {first[0]:g}, {first[1]:g})"
        )
        raise refused(path, f"{message}; check the mpp and the slide")
    _warn_of_twins(path, coords)
    return coords.astype(np.int32)


def _warn_of_twins(path: Path, coords: NDArray[np.float64]) -> None:
    twins = len(coords) - len(np.unique(coords, axis=0))
    if len(coords) > 1 and twins == len(coords) - 1:
        raise refused(path, f"has one place for all its {len(coords)} tiles; its coordinates are none")
    if twins:
        logger.warning("%s: %d of %d tiles have the place of another one", path, twins, len(coords))


def _require_grid(
    path: Path, coords: NDArray[np.int32], extent_px0: float, tile_px: int, stride_px: int | None
) -> None:
    """Most neighbours of tiles that are said to touch are one width apart; a wrong tile size or mpp shows here."""
    pitch = _pitch(coords)
    step = (stride_px or tile_px) * extent_px0 / tile_px
    off = abs(pitch - step) if pitch else 0.0
    if off <= max(1.5, 0.02 * step):
        return
    what = f"has tiles every {pitch} level-0 pixels, but by what is stated they are {extent_px0:.4g} wide and {step:.4g} apart"
    if stride_px is None:
        raise refused(
            path, f"{what}; correct --tile_px, --tile_mpp or the mpp, or pass --stride_px if they do not touch"
        )
    logger.warning("%s %s", path, what)


def _pitch(coords: NDArray[np.int32]) -> int | None:
    """The most common distance of neighbours in a row, in level-0 pixels; None where no two lie in one."""
    rows = coords[np.lexsort((coords[:, 0], coords[:, 1]))]
    steps = np.diff(rows, axis=0)
    distances, counts = np.unique(steps[(steps[:, 1] == 0) & (steps[:, 0] > 0), 0], return_counts=True)
    return int(distances[counts.argmax()]) if len(distances) else None
