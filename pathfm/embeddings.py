"""The embeddings file of a slide: written once, proven, read through one guarded function. docs/embeddings-file.md specifies it."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError, EmbeddingsStaleError, SeveralRecipesError
from pathfm.files import canonical_json, sha256_text, write_atomically
from pathfm.guarded import damaged, guarded_attribute, guarded_dataset, prove_bytes, sealed
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = "pathfm-embeddings"
FORMAT_VERSION = 2
# What a damaged or hostile HDF5 file makes h5py raise.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of one slide.

    Attributes:
        slide_id: file stem of the slide, unique in a cohort.
        slide_digest: what the slide is known by, `sha256:<hex>` or `quick:<bytes>:<hex>` ("" where the file was
            imported and it is not known).
        slide_size_px0: (width, height) of level 0 in pixels; (0, 0) where the file was imported and it is not known.
        mpp: microns per pixel of level 0.
        mpp_source: "metadata", "override", "cohort", or "imported" where another tool's file or its user said so.
        tile_extent_px0: width of a tile in level-0 pixels; a float, for scale is exact.
        tissue_sha256: digest of the tissue mask the grid was laid on.
        recipe: everything that decides an embedding apart from the slide; JSON types only.
        versions: library versions at the time; recorded, not part of the recipe.
        features: float16 (n, dim); a read-only memory map when read from a file.
        coords: int32 (n, 2), (x, y) of each tile's top-left corner in level-0 pixels; row i belongs to feature i.
        failed: int32 (k, 2), coords of tiles that could not be read; they have no feature.
        mean_rgb: float32 (3,), mean colour of the tissue tiles in 0-255; NaN where n is 0.
    """

    slide_id: str
    slide_digest: str
    slide_size_px0: tuple[int, int]
    mpp: float
    mpp_source: str
    tile_extent_px0: float
    tissue_sha256: str
    recipe: dict[str, Any]
    versions: dict[str, str]
    features: NDArray[np.float16]
    coords: NDArray[np.int32]
    failed: NDArray[np.int32]
    mean_rgb: NDArray[np.float32]

    @property
    def recipe_sha256(self) -> str:
        """Hex digest of the canonical recipe; its first 8 digits name the folder."""
        return recipe_sha256(self.recipe)


def recipe_sha256(recipe: dict[str, Any]) -> str:
    """Hex digest of a recipe's canonical JSON."""
    return sha256_text(canonical_json(recipe))


def embeddings_folder_name(recipe: dict[str, Any]) -> str:
    """`<backbone>-<recipe8>`, the folder that files of this recipe live in."""
    return f"{recipe['backbone']['name'].replace('/', '--').replace(':', '--')}-{recipe_sha256(recipe)[:8]}"


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Writes a complete file or nothing; equal contents give equal bytes.

    The HDF5 image is built in memory and written by us, because libhdf5 crashes the process on a full disk.

    Raises:
        DiskFullError: no space; nothing is left behind.
    """
    image = _file_image(embeddings)
    write_atomically(path, sealed(image))


def read_embeddings(path: Path, check: Literal["shape", "digests"] = "digests") -> Embeddings:
    """Reads a file that may come from anywhere; features come back as a read-only memory map.

    Args:
        path: the file.
        check: "digests" hashes features, coords and metadata (once per state of the file, then remembered);
            "shape" trusts them, for a file whose digests were checked in this run.

    Raises:
        EmbeddingsDamagedError: incomplete, corrupt, not ours, or built from external, linked, virtual or filtered data.
    """
    try:
        if check == "digests":
            state = path.stat()
            _prove(path, state.st_mtime_ns, state.st_size, state.st_ino)
        return _read_guarded(path)[0]
    except FileNotFoundError:
        raise
    except PermissionError as error:
        message = f"{path} may not be read ({error.strerror}); check its permissions"
        raise EmbeddingsError(path, message) from error
    except _HDF5_ERRORS as error:
        raise damaged(path, f"cannot be read as an embeddings file ({error})") from error


def find_embeddings(folder: Path) -> dict[str, Path]:
    """The embeddings files below a cache root, or in one of its recipe folders: slide_id to path, sorted.

    Raises:
        EmbeddingsDamagedError: the folder is missing or holds no embeddings.
        SeveralRecipesError: a root with several recipe folders; the message lists them.
    """
    if not folder.is_dir():
        raise EmbeddingsDamagedError(
            folder, f"{folder} is not a folder; pass --embeddings the folder that extract wrote"
        )
    groups = {p.parent for p in [*folder.glob("*.h5"), *folder.glob("*/*.h5")] if not p.name.startswith(".")}
    if len(groups) > 1:
        names = ", ".join(sorted(group.name for group in groups))
        raise SeveralRecipesError(folder, f"{folder} holds several recipes: {names}; pass --embeddings one of them")
    files = sorted(p for group in groups for p in group.glob("*.h5") if not p.name.startswith("."))
    if not files:
        raise EmbeddingsDamagedError(
            folder, f"{folder} holds no embeddings (*.h5); run pathfm extract with --out {folder}"
        )
    return {path.stem: path for path in files}


def require_one_recipe(embeddings: Iterable[tuple[Path, Embeddings]]) -> dict[str, Any]:
    """The recipe that all files share.

    Raises:
        EmbeddingsStaleError: two files differ; the message names the file and the first keys that differ.
    """
    recipe: dict[str, Any] | None = None
    for path, one in embeddings:
        if recipe is None:
            recipe = one.recipe
        require_recipe(path, one.recipe, recipe)
    return recipe or {}


def require_recipe(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a recipe that is not the wanted one.

    Raises:
        EmbeddingsStaleError: the message says which keys differ, and both values.
    """
    differing = recipe_differences(found, wanted)
    if differing:
        text = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
        message = (
            f"{path} was made with another recipe: {text}; extract again with this recipe, or pass the other folder"
        )
        raise EmbeddingsStaleError(path, message)


def recipe_differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys at which two recipes differ, each as `key is X, wanted Y`."""
    lines: list[str] = []
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key, "absent"), wanted.get(key, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += recipe_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} is {a}, wanted {b}")
    return lines


def _file_image(e: Embeddings) -> bytes:
    features = np.ascontiguousarray(e.features, dtype="<f2")
    coords = np.ascontiguousarray(e.coords, dtype="<i4")
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        # contiguous and unfiltered, so that training maps the rows where they lie
        file.create_dataset("features", data=features, track_times=False).attrs.update(_trident_feature_attributes(e))
        file.create_dataset("coords", data=coords, track_times=False).attrs.update(_trident_coord_attributes(e))
        file.create_dataset("failed", data=np.ascontiguousarray(e.failed, dtype="<i4"), track_times=False)
        attributes = _attributes(e, features, coords)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.attrs["metadata_sha256"] = _metadata_sha256(attributes, e.failed)
        file.attrs["complete"] = True
        file.flush()
        return bytes(file.id.get_file_image())


def _attributes(e: Embeddings, features: NDArray[Any], coords: NDArray[Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pathfm_version": __version__,
        "slide_id": e.slide_id,
        "slide_digest": e.slide_digest,
        "slide_width_px0": int(e.slide_size_px0[0]),
        "slide_height_px0": int(e.slide_size_px0[1]),
        "mpp": float(e.mpp),
        "mpp_source": e.mpp_source,
        "tile_extent_px0": float(e.tile_extent_px0),
        "tissue_sha256": e.tissue_sha256,
        "recipe": canonical_json(e.recipe),
        "recipe_sha256": e.recipe_sha256,
        "versions": canonical_json(e.versions),
        "n_failed": len(e.failed),
        "mean_rgb": np.asarray(e.mean_rgb, dtype="<f4"),
        "features_sha256": _sha256(features),
        "coords_sha256": _sha256(coords),
    }


def _trident_feature_attributes(e: Embeddings) -> dict[str, Any]:
    return {"name": e.slide_id, "encoder": str(e.recipe["backbone"]["name"])}


def _trident_coord_attributes(e: Embeddings) -> dict[str, Any]:
    """What TRIDENT, Patho-Bench and TITAN scripts look for; rounded as they expect, the exact values are root attributes."""
    tiles = e.recipe["tiles"]
    return {
        "patch_size": int(tiles["size_px"]),
        "patch_size_level0": round(e.tile_extent_px0),
        "level0_magnification": max(1, round(10 / e.mpp)),
        "target_magnification": max(1, round(10 / tiles["mpp"])),
        "overlap": int(tiles["size_px"] - tiles["stride_px"]),
        "name": e.slide_id,
        "level0_width": int(e.slide_size_px0[0]),
        "level0_height": int(e.slide_size_px0[1]),
    }


def _read_guarded(path: Path) -> tuple[Embeddings, dict[str, Any]]:
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        attributes = {name: guarded_attribute(file, name) for name in file.attrs}
        _require_ours(path, attributes)
        data = {name: guarded_dataset(path, file, name, size) for name in ("features", "coords", "failed")}
    n = len(data["features"])
    if n and not data["features"].shape[1]:
        raise damaged(path, "has embeddings of no numbers")
    if data["coords"].shape != (n, 2) or data["failed"].shape != (attributes["n_failed"], 2):
        raise damaged(path, "features, coords and failed do not fit each other")
    _require_sane(path, attributes, data["coords"])
    embeddings = Embeddings(
        slide_id=str(attributes["slide_id"]),
        slide_digest=_slide_digest(attributes),
        slide_size_px0=(int(attributes["slide_width_px0"]), int(attributes["slide_height_px0"])),
        mpp=float(attributes["mpp"]),
        mpp_source=str(attributes["mpp_source"]),
        tile_extent_px0=float(attributes["tile_extent_px0"]),
        tissue_sha256=str(attributes["tissue_sha256"]),
        recipe=json.loads(attributes["recipe"]),
        versions=json.loads(attributes["versions"]),
        features=data["features"],
        coords=data["coords"],
        failed=data["failed"],
        mean_rgb=np.asarray(attributes["mean_rgb"], dtype=np.float32),
    )
    return embeddings, attributes


def _slide_digest(attributes: dict[str, Any]) -> str:
    """Version 1 had the bare sha256 under another name."""
    if attributes["format_version"] == 1:
        return f"sha256:{attributes['slide_sha256']}" if attributes["slide_sha256"] else ""
    return str(attributes["slide_digest"])


def _require_sane(path: Path, attributes: dict[str, Any], coords: NDArray[np.int32]) -> None:
    """Refuses metadata that no slide and no recipe of ours has."""
    recipe = json.loads(attributes["recipe"])
    if not isinstance(recipe, dict) or recipe_sha256(recipe) != attributes["recipe_sha256"]:
        raise damaged(path, "recipe_sha256 does not match its recipe")
    parts = [recipe.get("backbone"), recipe.get("tiles"), json.loads(attributes["versions"])]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(recipe["backbone"].get("name"), str):
        raise damaged(path, "has a recipe without backbone and tiles")
    size = (int(attributes["slide_width_px0"]), int(attributes["slide_height_px0"]))
    known = size != (0, 0)
    if np.shape(attributes["mean_rgb"]) != (3,) or not 0 < float(attributes["mpp"]) < np.inf:
        raise damaged(path, "states a mean_rgb or an mpp that cannot be")
    if known and min(size) <= 0:
        raise damaged(path, "states a size that cannot be")
    if len(coords) and (coords.min() < 0 or (known and (coords >= size).any())):
        raise damaged(path, "has tiles outside of its slide")


def _require_ours(path: Path, attributes: dict[str, Any]) -> None:
    if attributes.get("format") != FORMAT:
        raise damaged(path, f"is not a pathfm embeddings file (attribute 'format' is not {FORMAT!r})")
    if not 1 <= int(attributes["format_version"]) <= FORMAT_VERSION:
        raise EmbeddingsDamagedError(
            path,
            f"{path} has format version {attributes['format_version']}, this pathfm reads up to {FORMAT_VERSION}; upgrade pathfm",
        )
    if not attributes.get("complete", False):
        raise damaged(path, "is not complete")


@functools.lru_cache(maxsize=65536)
def _prove(path: Path, _mtime_ns: int, _size: int, _inode: int) -> None:
    """Hashes a file once per state, which is the key it is remembered by. Errors are not remembered."""
    prove_bytes(path)
    embeddings, stated = _read_guarded(path)
    for name, data in (("features", embeddings.features), ("coords", embeddings.coords)):
        if _sha256(data) != stated[f"{name}_sha256"]:
            raise damaged(path, f"{name} do not match their digest")
    wrong = np.flatnonzero(~np.isfinite(embeddings.features).all(axis=1))
    if len(wrong):
        raise damaged(path, f"holds {len(wrong)} tiles whose embedding is not finite (first: row {wrong[0]})")
    covered = {key: value for key, value in stated.items() if key not in ("metadata_sha256", "complete")}
    if _metadata_sha256(covered, embeddings.failed) != stated["metadata_sha256"]:
        raise damaged(path, "its attributes do not match their digest")


def _metadata_sha256(attributes: dict[str, Any], failed: NDArray[Any]) -> str:
    plain = {
        key: _sha256(value)
        if isinstance(value, np.ndarray)
        else value.item()
        if isinstance(value, np.generic)
        else value
        for key, value in attributes.items()
    }
    return sha256_text(canonical_json(plain | {"failed": _sha256(np.asarray(failed, dtype="<i4"))}))


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data if array.size else b"").hexdigest()
