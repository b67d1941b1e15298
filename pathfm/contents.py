"""What an embeddings file holds, as a type and as attributes of the file; docs/embeddings-file.md specifies it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.errors import EmbeddingsDamagedError
from pathfm.files import canonical_json, sha256_text
from pathfm.guarded import damaged
from pathfm.licences import Licence, licences_in_recipe, licences_of, unknown_licences
from pathfm.thumbnailhash import UNKNOWN_HASH, is_thumbnail_hash
from pathfm.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = "pathfm-embeddings"
FORMAT_VERSION = 3

_MOST_LICENCE_CHARACTERS = 1 << 20


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
        licences: of the backbone, as it was known when the file was written; not part of the recipe, so that a corrected
            line makes no file stale. Where none is given, what the recipe of an older file says, else "unknown".
        thumbnail_hash: what the whole scan looks like, as `thumbnailhash.thumbnail_hash` has it: 16 hex digits, or ""
            where it is not known, as of an imported file and of one written before there was such a hash.
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
    licences: tuple[Licence, ...] = ()
    thumbnail_hash: str = UNKNOWN_HASH

    def __post_init__(self) -> None:
        """Leaves no embeddings without a licence: one that is not stated restricts."""
        if not self.licences:
            object.__setattr__(self, "licences", licences_in_recipe(self.recipe))

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


def attributes_of(e: Embeddings, features_sha256: str) -> dict[str, Any]:
    """All attributes of the root, `complete` last; the digest of the features is given, for they need not be there."""
    attributes = {
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
        "licences": canonical_json([one.facts() for one in e.licences]),
        "versions": canonical_json(e.versions),
        "n_failed": len(e.failed),
        "mean_rgb": np.asarray(e.mean_rgb, dtype="<f4"),
        "features_sha256": features_sha256,
        "coords_sha256": sha256_of(np.asarray(e.coords, dtype="<i4")),
    }
    if e.thumbnail_hash != UNKNOWN_HASH:
        attributes["thumbnail_hash"] = e.thumbnail_hash
    return attributes | {"metadata_sha256": metadata_sha256(attributes, e.failed), "complete": True}


def dataset_attributes_of(e: Embeddings) -> dict[str, dict[str, Any]]:
    """What TRIDENT, Patho-Bench and TITAN scripts look for; rounded as they expect, the exact values are root attributes."""
    tiles = e.recipe["tiles"]
    coords = {
        "patch_size": int(tiles["size_px"]),
        "patch_size_level0": round(e.tile_extent_px0),
        "level0_magnification": max(1, round(10 / e.mpp)),
        "target_magnification": max(1, round(10 / tiles["mpp"])),
        "overlap": int(tiles["size_px"] - tiles["stride_px"]),
        "name": e.slide_id,
        "level0_width": int(e.slide_size_px0[0]),
        "level0_height": int(e.slide_size_px0[1]),
    }
    features = {"name": e.slide_id, "encoder": str(e.recipe["backbone"]["name"])}
    return {"features": features, "coords": coords}


def embeddings_of(path: Path, attributes: dict[str, Any], data: dict[str, NDArray[Any]]) -> Embeddings:
    """The embeddings that the attributes and datasets of a file make up.

    Raises:
        EmbeddingsDamagedError: they do not fit each other, or no slide and no recipe of ours has such.
    """
    n = len(data["features"])
    if n and not data["features"].shape[1]:
        raise damaged(path, "has embeddings of no numbers")
    if data["coords"].shape != (n, 2) or data["failed"].shape != (attributes["n_failed"], 2):
        raise damaged(path, "features, coords and failed do not fit each other")
    _require_sane(path, attributes, data["coords"])
    recipe = json.loads(attributes["recipe"])
    return Embeddings(
        slide_id=str(attributes["slide_id"]),
        slide_digest=_slide_digest(attributes),
        slide_size_px0=(int(attributes["slide_width_px0"]), int(attributes["slide_height_px0"])),
        mpp=float(attributes["mpp"]),
        mpp_source=str(attributes["mpp_source"]),
        tile_extent_px0=float(attributes["tile_extent_px0"]),
        tissue_sha256=str(attributes["tissue_sha256"]),
        recipe=recipe,
        versions=json.loads(attributes["versions"]),
        features=data["features"],
        coords=data["coords"],
        failed=data["failed"],
        mean_rgb=np.asarray(attributes["mean_rgb"], dtype=np.float32),
        licences=_licences(path, attributes, recipe),
        thumbnail_hash=_thumbnail_hash(path, attributes),
    )


def require_ours(path: Path, attributes: dict[str, Any]) -> None:
    """Refuses a file of another format, of a later version, or that is not complete.

    Raises:
        EmbeddingsDamagedError: what is wrong with it.
    """
    if attributes.get("format") != FORMAT:
        raise damaged(path, f"is not a pathfm embeddings file (attribute 'format' is not {FORMAT!r})")
    if not 1 <= int(attributes["format_version"]) <= FORMAT_VERSION:
        raise EmbeddingsDamagedError(
            path,
            f"{path} has format version {attributes['format_version']}, this pathfm reads up to {FORMAT_VERSION}; upgrade pathfm",
        )
    if not attributes.get("complete", False):
        raise damaged(path, "is not complete")


def metadata_sha256(attributes: dict[str, Any], failed: NDArray[Any]) -> str:
    """Digest of the root's attributes, those that follow it left out, and of `failed`."""
    covered = {key: value for key, value in attributes.items() if key not in ("metadata_sha256", "complete")}
    plain = {
        key: sha256_of(value)
        if isinstance(value, np.ndarray)
        else value.item()
        if isinstance(value, np.generic)
        else value
        for key, value in covered.items()
    }
    return sha256_text(canonical_json(plain | {"failed": sha256_of(np.asarray(failed, dtype="<i4"))}))


def sha256_of(array: NDArray[Any]) -> str:
    """Hex digest of the bytes of an array, row by row."""
    return hashlib.sha256(np.ascontiguousarray(array).data if array.size else b"").hexdigest()


def _slide_digest(attributes: dict[str, Any]) -> str:
    """Version 1 had the bare sha256 under another name."""
    if attributes["format_version"] == 1:
        return f"sha256:{attributes['slide_sha256']}" if attributes["slide_sha256"] else ""
    return str(attributes["slide_digest"])


def _licences(path: Path, attributes: dict[str, Any], recipe: dict[str, Any]) -> tuple[Licence, ...]:
    """Versions 1 and 2 had the licence as a key of the recipe; in a later one that key says nothing."""
    if attributes["format_version"] < 3:
        return ()
    text = attributes["licences"]
    if not isinstance(text, str) or len(text) > _MOST_LICENCE_CHARACTERS:
        raise damaged(path, f"has licences that are no text of up to {_MOST_LICENCE_CHARACTERS} characters")
    try:
        return licences_of(json.loads(text)) or unknown_licences(recipe)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"has licences that cannot be ({error})") from error


def _thumbnail_hash(path: Path, attributes: dict[str, Any]) -> str:
    """A file need not have one."""
    stated = attributes.get("thumbnail_hash", UNKNOWN_HASH)
    if not is_thumbnail_hash(stated):
        raise damaged(path, "states a thumbnail_hash that is not 16 hex digits")
    return str(stated)


def _require_sane(path: Path, attributes: dict[str, Any], coords: NDArray[np.int32]) -> None:
    """Refuses metadata that no slide and no recipe of ours has."""
    recipe = json.loads(attributes["recipe"])
    if not isinstance(recipe, dict) or recipe_sha256(recipe) != attributes["recipe_sha256"]:
        raise damaged(path, "recipe_sha256 does not match its recipe")
    parts = [recipe.get("backbone"), recipe.get("tiles"), json.loads(attributes["versions"])]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(recipe["backbone"].get("name"), str):
        raise damaged(path, "has a recipe without backbone and tiles")
    if "joined" in recipe:
        raise damaged(path, "has the recipe of several backbones, but a file is of one")
    size = (int(attributes["slide_width_px0"]), int(attributes["slide_height_px0"]))
    known = size != (0, 0)
    if np.shape(attributes["mean_rgb"]) != (3,) or not 0 < float(attributes["mpp"]) < np.inf:
        raise damaged(path, "states a mean_rgb or an mpp that cannot be")
    if known and min(size) <= 0:
        raise damaged(path, "states a size that cannot be")
    if len(coords) and (coords.min() < 0 or (known and (coords >= size).any())):
        raise damaged(path, "has tiles outside of its slide")
