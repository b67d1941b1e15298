"""failures.csv: the slides that a run could not use, each with its typed reason."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathfm.files import write_text
from pathfm.scrub import withheld

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.errors import SlideError

COLUMNS = ("slide_id", "path", "reason", "message")


@dataclass(frozen=True)
class Failure:
    """A slide that a run could not use.

    Attributes:
        slide_id: the slide's name in the run.
        path: its file, as the run was given it; "" under --pseudonymise.
        reason: a word of `errors.Reason`, to count by.
        message: the whole line: what, where, what now.
    """

    slide_id: str
    path: str
    reason: str
    message: str

    @classmethod
    def of(cls, slide_id: str, error: SlideError) -> Failure:
        """The failure that an error tells of; without the path, and without it in the message, where that is withheld."""
        path = str(error.path)
        return cls(slide_id, path if withheld(path) == path else "", error.reason, withheld(error.message))


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Writes failures.csv, in the order given; a run without failures leaves the header alone, so no old list survives.

    Raises:
        DiskFullError: there is no space.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((f.slide_id, f.path, f.reason, f.message) for f in failures)
    write_text(path, text.getvalue())
