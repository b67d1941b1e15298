"""Several caches of the same tiles as one: the recipe of embeddings that stand side by side, and how they are found and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pathfm.embeddings import (
    Embeddings,
    find_embeddings,
    read_embeddings,
    recipe_differences,
    require_recipe,
)
from pathfm.errors import EmbeddingsStaleError, InputError, SeveralRecipesError
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Files = tuple[Path, ...]
"""The embeddings files of one slide, one a cache, in the order in which their features stand side by side."""


class Cache(NamedTuple):
    """Embeddings of one backbone: the folder as it was given, and slide_id to file, sorted."""

    folder: Path
    files: dict[str, Path]


def joined_recipe(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe of embeddings side by side, in this order; that of one cache is its own.

    Args:
        recipes: of the caches; their tiles and tissue are the same.
    """
    if len(recipes) == 1:
        return recipes[0]
    return {"backbone": {"name": "+".join(map(_name, recipes))}, "tiles": recipes[0]["tiles"], "joined": recipes}


def parts_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipes of the caches that a recipe stands for: those joined in it, or itself alone."""
    joined: list[dict[str, Any]] = recipe.get("joined", [recipe])
    return joined


def find_caches(folders: Sequence[Path], like: dict[str, Any] | None = None) -> list[Cache]:
    """The caches that are joined, in the order given, or in that of a recipe.

    Args:
        folders: cache roots or recipe folders, as `find_embeddings` takes them.
        like: a recipe, such as that of a model: each part of it has to be there, in any order.

    Raises:
        InputError: no folder, or a backbone twice.
        EmbeddingsDamagedError: a folder that is missing or holds no embeddings.
        SeveralRecipesError: a root with several recipe folders.
        EmbeddingsStaleError: folders of other tiles or tissue, or others than the recipe asks for.
    """
    if not folders:
        message = "--embeddings names no folder; pass the one that pathfm extract wrote, or several to join them"
        raise InputError(message)
    try:
        caches = [Cache(folder, find_embeddings(folder)) for folder in folders]
    except SeveralRecipesError as error:
        raise SeveralRecipesError(error.path, f"{error.message}, or several to join them") from None
    wanted = parts_of(like) if like is not None else []
    if len(caches) == 1 and len(wanted) <= 1:  # nothing to put in order; each file is proven where it is read
        return caches
    recipes = [read_embeddings(next(iter(cache.files.values()))).recipe for cache in caches]
    _require_joinable(caches, recipes)
    return _in_order_of(wanted, caches, recipes) if wanted else caches


def slides_of(caches: Sequence[Cache]) -> dict[str, Files | None]:
    """Of every slide in any of the caches its files, sorted by slide_id; None, and said, where one of them lacks it."""
    names = sorted({name for cache in caches for name in cache.files})
    for cache in caches:
        lacking = [name for name in names if name not in cache.files]
        if lacking:
            logger.warning(
                "%s has no embeddings of %d slides that another folder has, such as %s",
                cache.folder,
                len(lacking),
                lacking[0],
            )
    whole = set.intersection(*(set(cache.files) for cache in caches))
    return {name: tuple(cache.files[name] for cache in caches) if name in whole else None for name in names}


def read_joined(
    files: Files, like: dict[str, Any] | None = None, check: Literal["shape", "digests"] = "digests"
) -> Embeddings:
    """The embeddings of one slide, those of several files side by side in memory; one file is read as it is.

    Args:
        files: one a cache.
        like: the recipe that they have to be of, part by part.
        check: as of `read_embeddings`.

    Raises:
        EmbeddingsDamagedError: as `read_embeddings`.
        EmbeddingsStaleError: another recipe, or files that are not of the same tiles of the same slide.
    """
    parts = read_parts(files, check)
    facts = facts_of(parts)
    if like is not None:
        for file, part, wanted in zip(files, parts, parts_of(like), strict=False):  # these name the file that differs
            require_recipe(file, part.recipe, wanted)
        require_recipe(files[0], facts.recipe, like)
    if len(parts) == 1:
        return parts[0]
    return replace(facts, features=np.concatenate([part.features for part in parts], axis=1))


def read_parts(files: Files, check: Literal["shape", "digests"] = "digests") -> list[Embeddings]:
    """The files of one slide, each as it is, proven to hold the same tiles in the same order.

    Raises:
        EmbeddingsDamagedError: as `read_embeddings`.
        EmbeddingsStaleError: the slide, the two folders and what differs.
    """
    parts = [read_embeddings(file, check) for file in files]
    for file, part in zip(files[1:], parts[1:], strict=True):
        differing = next(_differences(parts[0], part), None)
        if differing:
            names = ",".join(_name(one.recipe) for one in parts)
            message = (
                f"slide {parts[0].slide_id}: {files[0].parent} and {file.parent} cannot be joined, {differing};"
                f" {_first_delete((files[0], file), (parts[0], part))}extract all with one command, --backbone {names}"
            )
            raise EmbeddingsStaleError(file, message)
    return parts


def _first_delete(files: Files, parts: tuple[Embeddings, Embeddings]) -> str:
    """Where other tiles failed, for a file with failed tiles is whole, and extract leaves it alone."""
    n_failed = [len(part.failed) for part in parts]
    if np.array_equal(parts[0].failed, parts[1].failed):
        return ""
    which = " and ".join(str(file) for file, count in zip(files, n_failed, strict=True) if count == max(n_failed))
    return f"delete {which}, then "


def facts_of(parts: Sequence[Embeddings]) -> Embeddings:
    """All that is known of the files of one slide but their features, of which it has none: float16 (0, dim).

    What they do not share, as the mean colour and versions that differ, is that of the first; digest and size of the
    slide, and what it looks like, those of the first that knows them.
    """
    return replace(
        parts[0],
        slide_digest=next((one.slide_digest for one in parts if one.slide_digest), ""),
        slide_size_px0=next((one.slide_size_px0 for one in parts if one.slide_size_px0 != (0, 0)), (0, 0)),
        thumbnail_hash=next((one.thumbnail_hash for one in parts if one.thumbnail_hash), ""),
        recipe=joined_recipe([one.recipe for one in parts]),
        versions={name: version for one in reversed(parts) for name, version in one.versions.items()},
        features=np.empty((0, sum(one.features.shape[1] for one in parts)), np.float16),
        licences=tuple(dict.fromkeys(licence for one in parts for licence in one.licences)),
    )


def _require_joinable(caches: Sequence[Cache], recipes: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple[str, ...], Cache] = {}
    for cache, recipe in zip(caches, recipes, strict=True):
        backbone = recipe["backbone"]
        key = tuple(str(backbone.get(name, "")) for name in ("name", "weights_sha256", "output"))
        if key in seen:
            message = (
                f"{seen[key].folder} and {cache.folder} both hold embeddings of {key[0]};"
                " pass --embeddings one folder a backbone"
            )
            raise InputError(message)
        seen[key] = cache
        first, this = ({key: one.get(key, {}) for key in ("tiles", "tissue")} for one in (recipes[0], recipe))
        differing = recipe_differences(this, first)
        if differing:
            names = ",".join(map(_name, recipes))
            message = (
                f"{cache.folder} cannot be joined with {caches[0].folder}: {'; '.join(differing[:3])};"
                f" extract both with one command, --backbone {names}"
            )
            raise EmbeddingsStaleError(cache.folder, message)


def _in_order_of(
    wanted: Sequence[dict[str, Any]], caches: Sequence[Cache], recipes: Sequence[dict[str, Any]]
) -> list[Cache]:
    names = ", ".join(map(_name, wanted))
    ordered = []
    for part in wanted:
        matching = [at for at, recipe in enumerate(recipes) if not recipe_differences(recipe, part)]
        if not matching:
            message = (
                f"no folder holds the embeddings of {_name(part)} that the model reads"
                f"{_nearest(part, caches, recipes)}; pass --embeddings one folder for each of {names}"
            )
            raise EmbeddingsStaleError(caches[0].folder, message)
        ordered.append(caches[matching[0]])
    spare = [cache.folder for cache in caches if cache not in ordered]
    if spare:
        message = (
            f"the model reads no embeddings like those of {spare[0]}; pass --embeddings one folder for each of {names}"
        )
        raise EmbeddingsStaleError(spare[0], message)
    return ordered


def _nearest(part: dict[str, Any], caches: Sequence[Cache], recipes: Sequence[dict[str, Any]]) -> str:
    """What is wrong with the folder of the same backbone, where there is one."""
    for cache, recipe in zip(caches, recipes, strict=True):
        if _name(recipe) == _name(part):
            return f": in {cache.folder} {'; '.join(recipe_differences(recipe, part)[:3])}"
    return ""


def _name(recipe: dict[str, Any]) -> str:
    """Of its backbone; that of a model may come from anywhere."""
    return str(recipe.get("backbone", {}).get("name", "unknown"))


def _differences(first: Embeddings, other: Embeddings) -> Iterator[str]:
    """What keeps two files from being of the same tiles of the same slide, the most telling first."""
    if first.slide_id != other.slide_id:
        yield f"the second file is of slide {other.slide_id}"
    if _are_of_other_files(first, other):
        yield f"they were made from different files ({first.slide_digest[:15]} and {other.slide_digest[:15]})"
    if first.mpp != other.mpp or first.tile_extent_px0 != other.tile_extent_px0:
        yield f"their scales differ ({first.mpp:g} and {other.mpp:g} microns per pixel)"
    if not np.array_equal(first.failed, other.failed):
        yield f"other tiles failed ({len(first.failed)} and {len(other.failed)})"
    if not np.array_equal(first.coords, other.coords):
        yield f"their tiles differ ({len(first.coords)} and {len(other.coords)})"


def _are_of_other_files(first: Embeddings, other: Embeddings) -> bool:
    """By their digests, where both are known and of one kind, and by their sizes, where both are known."""
    kinds = {one.slide_digest.partition(":")[0] for one in (first, other)}
    sizes = {first.slide_size_px0, other.slide_size_px0} - {(0, 0)}
    return len(sizes) > 1 or ("" not in kinds and len(kinds) == 1 and first.slide_digest != other.slide_digest)
