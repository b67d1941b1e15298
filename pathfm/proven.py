"""The slides of a cohort joined with their embeddings: every file proven and opened, and why the others cannot be used."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pathfm.embeddings import Embeddings, require_one_recipe
from pathfm.errors import CohortError, EmbeddingsStaleError, LeakageError, LicenceError
from pathfm.joined import Cache, Files, facts_of, find_caches, joined_recipe, read_parts
from pathfm.licences import MOST_LICENCES
from pathfm.patients import NO_EMBEDDINGS, NO_TISSUE
from pathfm.progress import logger, progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pathfm.cohort import Cohort
    from pathfm.licences import Licence

_NAMED = 5


class Proven(NamedTuple):
    """Slides whose files were read.

    Attributes:
        table: one row a slide, columns slide_id, patient_id, site, split, files (a tuple, one a cache, or None), n_tiles,
            slide_digest, reason ("" where it has tiles).
        opened: slide_id to its embeddings, one a cache, without their rows: a map holds a file descriptor, of which a
            process has few.
        recipe: the one recipe of the embeddings; of several caches `joined_recipe`. {} where nothing was opened.
        licences: of the backbones, each once.
    """

    table: pd.DataFrame
    opened: dict[str, list[Embeddings]]
    recipe: dict[str, Any]
    licences: tuple[Licence, ...]


def prove(cohort: Cohort, slides: pd.DataFrame, folders: Sequence[Path], like: dict[str, Any] | None) -> Proven:
    """Joins some rows of a cohort with the embeddings below some folders.

    Args:
        cohort: of the rows, for messages.
        slides: the rows, columns slide_id, patient_id, site, split.
        folders: one a cache; the features of several stand side by side in this order.
        like: the recipe of a model, in whose order they then stand; None where a model is to be made.

    Raises:
        CohortError: a slide that has no embeddings and is not known to have failed.
        EmbeddingsError: damaged files, several recipes, a file that holds another slide than its name says, or caches
            that are not of the same tiles.
        LeakageError: one scan stands under two patients.
        LicenceError: a model is to be made of files that state more licences than one can pass on.
    """
    caches = find_caches(folders, like)
    files = [_files_of(slide_id, caches) for slide_id in slides["slide_id"]]
    slides = slides.assign(files=pd.Series(files, index=slides.index, dtype=object))
    for cache in caches:
        _require_known(cohort, slides, cache)
        _say_ignored(set(cache.files) - set(cohort.table["slide_id"]), cache.folder)
    opened, n_tiles = _open(slides)
    table = _describe(slides, opened, n_tiles).reset_index(drop=True)
    licences = tuple(dict.fromkeys(one for parts in opened.values() for part in parts for one in part.licences))
    proven = Proven(table, opened, _one_recipe(caches, opened), licences)
    if like is None and (table["reason"] == "").any():
        _require_few_licences(licences, folders)
    _require_one_patient_a_scan(cohort, table)
    return proven


def failed_slides(folder: Path) -> set[str]:
    """The slide_ids that the failures.csv of an embeddings folder, or of the root it lies in, names."""
    named: set[str] = set()
    for path in (folder / "failures.csv", folder.parent / "failures.csv"):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                named |= {row.get("slide_id", "") for row in csv.DictReader(file)}
    return named - {""}


def name_some(names: Iterable[str]) -> str:
    """The first few names and how many more there are, for a message of one line."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def _files_of(slide_id: str, caches: Sequence[Cache]) -> Files | None:
    found = [cache.files[slide_id] for cache in caches if slide_id in cache.files]
    return tuple(found) if len(found) == len(caches) else None


def _require_known(cohort: Cohort, table: pd.DataFrame, cache: Cache) -> None:
    missing = set(table["slide_id"]) - set(cache.files) - failed_slides(cache.folder)
    if missing:
        rows = cohort.table.index[cohort.table["slide_id"].isin(missing)]
        message = (
            f"{cache.folder} has no embeddings of {len(missing)} labelled slides of {cohort.source}: {name_some(missing)}"
            f" (rows {name_some(str(int(row) + 2) for row in rows)}); run pathfm extract for them, or take their rows out"
        )
        raise CohortError(message)


def _say_ignored(names: set[str], folder: Path) -> None:
    if names:
        logger.info("%s: %d files of slides that the cohort does not name are not used", folder, len(names))


def _open(table: pd.DataFrame) -> tuple[dict[str, list[Embeddings]], dict[str, int]]:
    """Proves and opens every file; what it says without its rows, and how many these are."""
    opened: dict[str, list[Embeddings]] = {}
    n_tiles: dict[str, int] = {}
    pairs = [(slide_id, files) for slide_id, files in zip(table["slide_id"], table["files"], strict=True) if files]
    for slide_id, files in progress(pairs, "prove embeddings"):
        parts = read_parts(files)
        opened[slide_id], n_tiles[slide_id] = list(map(_without_rows, parts)), len(parts[0].features)
        for path, one in zip(files, parts, strict=True):
            if one.slide_id != slide_id:
                message = f"{path} holds slide {one.slide_id}; give the file its slide's name, or extract again"
                raise EmbeddingsStaleError(path, message)
    _require_one_width(pairs, opened)
    return opened, n_tiles


def _without_rows(embeddings: Embeddings) -> Embeddings:
    width = embeddings.features.shape[1]
    none = np.empty((0, 2), np.int32)
    return replace(embeddings, features=np.empty((0, width), np.float16), coords=none, failed=none)


def _require_one_width(pairs: Sequence[tuple[str, Files]], opened: dict[str, list[Embeddings]]) -> None:
    """Of each cache."""
    widths = {slide_id: [one.features.shape[1] for one in parts] for slide_id, parts in opened.items()}
    first_id, first_files = pairs[0] if pairs else ("", ())
    for slide_id, files in pairs:
        for path, width, first_path, first in zip(files, widths[slide_id], first_files, widths[first_id], strict=True):
            if width != first:
                message = (
                    f"{path} has embeddings of width {width}, {first_path} of {first};"
                    " delete the wrong one and run pathfm extract again"
                )
                raise EmbeddingsStaleError(path, message)


def _one_recipe(caches: Sequence[Cache], opened: dict[str, list[Embeddings]]) -> dict[str, Any]:
    """The one that the files of each cache share, joined; {} where nothing was opened."""
    if not opened:
        return {}
    return joined_recipe(
        [
            require_one_recipe((cache.files[slide_id], parts[which]) for slide_id, parts in opened.items())
            for which, cache in enumerate(caches)
        ]
    )


def _describe(slides: pd.DataFrame, opened: dict[str, list[Embeddings]], n_tiles: dict[str, int]) -> pd.DataFrame:
    tiles = [n_tiles.get(slide_id, 0) for slide_id in slides["slide_id"]]
    reasons = [
        NO_EMBEDDINGS if slide_id not in opened else NO_TISSUE if n == 0 else ""
        for slide_id, n in zip(slides["slide_id"], tiles, strict=True)
    ]
    digests = [facts_of(opened[name]).slide_digest if name in opened else "" for name in slides["slide_id"]]
    return slides.assign(n_tiles=tiles, slide_digest=digests, reason=reasons)


def _require_few_licences(licences: Sequence[Licence], folders: Sequence[Path]) -> None:
    """A model with more could not be read, which has to show before it is trained."""
    if len(licences) > MOST_LICENCES:
        message = (
            f"the files in {' and '.join(map(str, folders))} state {len(licences)} different licences, and a model passes on"
            f" {MOST_LICENCES} at most; extract or import them again with one version of pathfm"
        )
        raise LicenceError(message)


def _require_one_patient_a_scan(cohort: Cohort, table: pd.DataFrame) -> None:
    known = table[table["slide_digest"] != ""]
    patients = known.groupby("slide_digest")["patient_id"].nunique()
    copied = known[known["slide_digest"].isin(patients.index[patients > 1])]
    if len(copied):
        first = copied[copied["slide_digest"] == copied["slide_digest"].iloc[0]]
        message = (
            f"{cohort.source}: {name_some(first['slide_id'])} are the same scan under the patients"
            f" {name_some(set(first['patient_id']))}; keep one row, or give them one patient_id"
        )
        raise LeakageError(message)
