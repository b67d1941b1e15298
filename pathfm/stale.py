"""Whether the embeddings files of a slide still hold, and what becomes of those that do not."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pathfm.embeddings import read_embeddings, recipe_differences
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsError, MppError, SlideError
from pathfm.progress import logger
from pathfm.reading import has_changed, identify
from pathfm.slidefiles import digest_kind

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.reading import Reading
    from pathfm.sources import SlideSource

_WITHDRAWING = ("tissue outline", "corrupt tile")  # as is every refusal of a scale


class SlideNow:
    """A slide as it is now, for the files of several backbones to be held against.

    It is looked at when that is first needed, and then remembered: its digest may mean to read all of it.
    """

    def __init__(self, source: SlideSource, how: Reading) -> None:
        self._source, self._how = source, how
        self._identity = functools.cache(lambda kind: identify(source, replace(how, digest=kind)))

    def why_stale(self, recipe: dict[str, Any], path: Path) -> str | None:
        """Why a file is not what an extraction would write for this slide; None when it is, and is proven whole.

        A slide is compared by the kind of digest that its file has: to ask for another kind makes no file again.

        Raises:
            SlideError: the slide cannot be read, or is too coarse for the tiles.
        """
        try:
            found = read_embeddings(path)
        except FileNotFoundError:
            return "it is not there"
        except EmbeddingsDamagedError as error:
            return f"its file is damaged: {error.message.partition(';')[0]}"
        differences = recipe_differences(found.recipe, recipe)
        if not differences:
            for key, value in self._identity(digest_kind(found.slide_digest)).items():
                if getattr(found, key) != value:
                    differences.append(f"{key} is {getattr(found, key)}, wanted {value}")
        n_failed, n_tiles = len(found.failed), len(found.failed) + len(found.coords)
        if n_failed > self._how.max_failed_share * n_tiles:
            differences.append(f"{n_failed} of its {n_tiles} tiles failed")
        return "; ".join(differences) or None

    def taken_back(self, recipe: dict[str, Any], path: Path) -> bool:
        """Whether a file that was set aside holds again, as after a wrong flag was put right; it then has its name back.

        Raises:
            SlideError: as by `why_stale`.
        """
        aside = _aside(path)
        if path.exists() or not aside.exists() or self.why_stale(recipe, aside) is not None:
            return False
        aside.replace(path)
        logger.info("%s: its embeddings that were set aside hold again", self._source.slide_id)
        return True


def set_aside_if_withdrawn(source: SlideSource, how: Reading, path: Path, error: SlideError) -> None:
    """Renames the file of a slide that now cannot be used, so that nobody trains on it.

    Only where the slide has changed since, or its scale, its outline or its tiles are what is refused: a slide that
    just cannot be read may be back tomorrow, and keeps its file.
    """
    withdrawn = isinstance(error, MppError) or error.reason in _WITHDRAWING
    if path.exists() and (withdrawn or _has_changed(source, how, path)):
        path.replace(_aside(path))
        logger.warning(
            "%s: its older embeddings no longer hold and were renamed to %s.stale", source.slide_id, path.name
        )


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Tells whether a file was written anew."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.stale")


def _has_changed(source: SlideSource, how: Reading, path: Path) -> bool:
    try:
        digest = read_embeddings(path).slide_digest
        return has_changed(source, digest, how.workers, how.limits)
    except (OSError, SlideError, EmbeddingsError):
        return False  # what cannot be read now need not have changed; damaged embeddings are refused anyway
