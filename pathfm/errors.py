"""Everything that can go wrong, in one tree; each error says what, where and what now.

    PathfmError
    ├── InputError                  an argument, a config or a table that cannot be used
    │   ├── UnknownNameError        a backbone, head, column or option nobody knows; near ones are listed
    │   ├── CohortError             the cohort table
    │   ├── LeakageError            a patient on both sides of a split
    │   └── MissingExtraError       an optional part that is not installed (also ImportError)
    ├── SlideError                  one slide; carries a typed reason for failures.csv
    │   ├── SlideUnreadableError    it does not open
    │   ├── MppError                its scale is missing, absurd, contradicted, or too coarse for the request
    │   └── TileUnreadableError     one region cannot be decoded
    ├── BackboneError               a backbone that cannot be used as asked
    │   ├── WeightsMissingError     gated, offline or absent weights
    │   ├── WeightsDamagedError     weights, or a bundle of them, that are not what they were said to be
    │   └── TileSpecMismatchError   a tile spec that the backbone was not made for
    ├── EmbeddingsError             one embeddings file or folder
    │   ├── EmbeddingsDamagedError  incomplete, corrupt or hostile
    │   ├── EmbeddingsStaleError    made with another recipe or from another slide
    │   ├── EmbeddingsBusyError     another process is writing it
    │   └── SeveralRecipesError     a folder that mixes recipes
    ├── ModelError                  a model directory that is not one
    ├── LicenceError                a licence that does not allow what was asked for
    ├── StageRefusedError           a model that does not meet the criteria of a release stage
    ├── SlidesFailedError           a run that ended, but not with every slide
    └── DiskFullError               no space left; what was finished is kept

Only `pathfm.cli` turns these into one line and an exit code.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Reason = Literal[
    "unreadable",
    "truncated",
    "unsupported",
    "permission",
    "empty file",
    "no mpp",
    "absurd mpp",
    "contradicted mpp",
    "upsampling",
    "corrupt tile",
    "timeout",
    "crash",
    "memory",
    "no tissue",
    "tissue outline",
    "features",
    "changed",
    "embeddings",
]


class PathfmError(Exception):
    """The root: catch this one to catch all that pathfm raises on purpose."""


class InputError(PathfmError):
    """An argument, a config or a table that cannot be used; the message names it and the remedy."""


class UnknownNameError(InputError):
    """A name that is not in its table.

    Attributes:
        kind: what was named, such as "backbone".
        name: the name as given.
        near: known names that look like it, best first; all of them when none does.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        self.kind, self.name = kind, name
        names = sorted(known)
        self.near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
        hint = (
            f"near: {', '.join(self.near)}" if len(self.near) < len(names) else f"known: {', '.join(names) or 'none'}"
        )
        super().__init__(f"unknown {kind} {name!r}; {hint}" + (f"; {remedy}" if remedy else ""))


class CohortError(InputError):
    """A cohort table that cannot be used; the message names the table and the rows."""


class LeakageError(InputError):
    """A patient or a slide that stands on both sides of a split."""


class MissingExtraError(InputError, ImportError):
    """An optional part that is not installed; the message is the pip line."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra '{extra}': pip install 'pathfm[{extra}]'")


class SlideError(PathfmError):
    """One slide that cannot be used.

    Attributes:
        path: the slide.
        reason: the typed reason that failures.csv and the report show.
    """

    def __init__(self, path: Path, reason: Reason, message: str) -> None:
        self.path, self.reason, self.message = path, reason, message
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[Path, Reason, str]]:
        """Pickles whole, so that it can cross a process boundary."""
        return type(self), (self.path, self.reason, self.message)


class SlideUnreadableError(SlideError):
    """A slide that does not open."""


class MppError(SlideError):
    """A slide whose microns per pixel are missing, absurd, contradicted or too coarse for the request."""


class TileUnreadableError(SlideError):
    """A region that cannot be decoded, even from a fresh handle."""


class BackboneError(PathfmError):
    """A backbone that cannot be used as asked."""


class WeightsMissingError(BackboneError):
    """Weights that are gated, absent from the offline cache, or not where they were said to be."""


class WeightsDamagedError(BackboneError):
    """Weights, or a bundle of them, whose bytes are not those that were stated."""


class TileSpecMismatchError(BackboneError):
    """A tile size or mpp that the backbone was not made for."""


class EmbeddingsError(PathfmError):
    """An embeddings file or folder that cannot be used.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, path: Path, message: str) -> None:
        self.path, self.message = path, message
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Pickles whole, so that it can cross a process boundary."""
        return type(self), (self.path, self.message)


class EmbeddingsDamagedError(EmbeddingsError):
    """A file that is incomplete, corrupt, or built in a way that a cache never is."""


class EmbeddingsStaleError(EmbeddingsError):
    """A file made with another recipe, or from a slide that has changed since."""


class EmbeddingsBusyError(EmbeddingsError):
    """A file that another process is writing."""


class SeveralRecipesError(EmbeddingsError):
    """A folder that holds embeddings of several recipes where one is needed."""


class ModelError(PathfmError):
    """A model directory that is missing, damaged, or does not fit the data."""


class LicenceError(PathfmError):
    """A backbone whose licence restricts, or does not state, what may be done with what is trained on it."""


class StageRefusedError(PathfmError):
    """A model that does not meet the criteria of the stage that it was to reach.

    Attributes:
        wanted: the stage.
        given: the one that it was stamped with instead.
        failed: of each criterion that is not met what was wanted and what was found; the message has but their names.
    """

    def __init__(self, wanted: str, given: str, failed: Iterable[object], names: Iterable[str]) -> None:
        self.wanted, self.given, self.failed = wanted, given, [str(one) for one in failed]
        super().__init__(f"stage {wanted} is refused, the model is stamped {given}; not met: {', '.join(names)}")


class SlidesFailedError(PathfmError):
    """A run that ended with some slides failed; the others are done.

    Attributes:
        failed: number of slides that failed.
        total: number of slides asked for.
        failures_csv: the table that lists them with their reasons.
    """

    def __init__(self, failed: int, total: int, failures_csv: Path, what: str = "slides") -> None:
        self.failed, self.total, self.failures_csv = failed, total, failures_csv
        super().__init__(
            f"{failed} of {total} {what} failed, the others are done; {failures_csv} lists them with their reasons"
        )


class DiskFullError(PathfmError):
    """No space left on the device; finished files are kept and the same command resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"no space left to write {path}; free some and run the same command again, finished files are kept"
        )

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Pickles whole, so that it can cross a process boundary."""
        return type(self), (self.path,)
