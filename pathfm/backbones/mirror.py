"""A folder of repositories as the hub has them, such as a disk that an institution shares: <mirror>/owner/repo/files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathfm.backbones.row import Backbone

VARIABLE = "PATHFM_WEIGHTS"
REPO = re.compile(r"(?!.*(--|\.\.))[a-zA-Z0-9_][a-zA-Z0-9_.-]*/[a-zA-Z0-9_][a-zA-Z0-9_.-]*")
"""The name of a repository on the hub; as a path it leads nowhere else."""
# Where `hf download --local-dir` notes from which commit a file is, in the first of three lines.
_NOTES = Path(".cache", "huggingface", "download")


def mirror() -> Path | None:
    """The folder that the environment variable PATHFM_WEIGHTS names, None where it names none."""
    value = os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def mirrored(row: Backbone) -> Path | None:
    """The folder of a row's repository in the mirror; None where there is none."""
    folder, repo = mirror(), str(row.repo)
    return folder / repo if folder and REPO.fullmatch(repo) and (folder / repo).is_dir() else None


def noted_commit(folder: Path, name: str) -> str:
    """The commit of the hub that a file of a mirrored repository is said to come from; "" where nothing says so."""
    try:
        line = note_of(folder, name).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""
    return line if re.fullmatch("[0-9a-f]{40}", line) else ""


def note_of(folder: Path, name: str) -> Path:
    """Where it is noted from which commit a file of a mirrored repository comes."""
    return folder / _NOTES / f"{name}.metadata"
