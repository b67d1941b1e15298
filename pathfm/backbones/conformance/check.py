"""What a check of a backbone found, and the errors that are findings about it rather than faults of the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathfm.errors import PathfmError

if TYPE_CHECKING:
    from collections.abc import Callable

# What timm, transformers and torch raise for arguments and shapes that do not fit each other.
FINDINGS = (PathfmError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True)
class Check:
    """One thing that a backbone was held against.

    Attributes:
        what: the thing, as "prefix tokens".
        wanted: what its row, or good sense, asks for.
        found: what there is; where it could not be looked at, why.
        passed: None where it could not be looked at.
    """

    what: str
    wanted: str
    found: str
    passed: bool | None


def looked(what: str, wanted: str, look: Callable[[], tuple[str, bool | None]]) -> Check:
    """The check that `look` makes, which gives `found` and `passed`; an error of what is checked is a finding."""
    try:
        return Check(what, wanted, *look())
    except FINDINGS as error:
        return Check(what, wanted, said(error), passed=False)


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
