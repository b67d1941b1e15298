"""The ledger of a test set: a line for each time that it was looked at, so that nobody has to remember how often.

Figures of a test set hold for the first model that is tried on it. Of the tenth they are too good, for the best of ten is
kept, and nothing in them shows that. The ledger is a CSV beside the cohort table that only grows. It names models and
test sets by digests, and neither patients nor slides nor folders. It guards against forgetting and not against those who
delete a line.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pathfm.errors import InputError
from pathfm.files import canonical_json, disk_full_named, sync_folder, write_all
from pathfm.progress import logger
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COLUMNS = ("date", "test_set_sha256", "model_sha256", "what", "n_slides", "pathfm_version")
SHAPE = {"looks": int, "models": int, "test_set": str, "first": str, "file": str}
"""Of the block "ledger" of metrics.json, in the grammar of `tables.misfit`."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_MOST_BYTES = 1 << 26  # a look a minute for a year has less
_LONGEST = 1000  # characters of a line; a look has 200
_REMEDY = "pass --ledger a file in a folder that you may write to, and keep it: it counts the looks at this test set"


def ledger_of(cohort: Path) -> Path:
    """Where the ledger of a cohort's slides lies: beside its table."""
    return cohort.with_name(f"{cohort.stem}.ledger.csv")


def set_sha256(slides: Mapping[str, str]) -> str:
    """Hex digest of a test set: of the sorted digests of its slides, so that neither names nor order matter.

    Args:
        slides: slide_id to the digest of the slide; "" where it is not known, and the slide_id then stands for it.
    """
    known = sorted(digest or f"id:{slide_id}" for slide_id, digest in slides.items())
    return hashlib.sha256(canonical_json(known).encode()).hexdigest()


def record_look(
    ledger: Path, test_set: str, model: str, what: str, n_slides: int, *, shown: str | None = None
) -> dict[str, Any]:
    """Adds a look at a test set to a ledger and says how many there have been; the block "ledger" of metrics.json.

    Every look counts, also that of a model that has looked before: whoever looks again may have changed something.
    Processes that look at once wait for each other, and none of them is lost.

    Args:
        ledger: the file; made where it is not there.
        test_set: as `set_sha256` has it.
        model: hex digest of what was tried, such as of model.json; of a model that is not written yet its fingerprint.
        what: the command, such as "evaluate".
        n_slides: of the test set.
        shown: what the block calls the ledger, in place of the name of its file, which may be called after somebody.

    Returns:
        {"looks": how often this test set was looked at, this time included, "models": by how many models, "test_set":
        the first 8 digits of its digest, "first": the ISO date of the first look, "file": the name of the ledger}.

    Raises:
        InputError: the ledger cannot be read or written, or is not one.
        DiskFullError: no space; nothing was added.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = dict(zip(COLUMNS, (now, test_set, model, what, str(n_slides), __version__), strict=True))
    try:
        with disk_full_named(ledger), _locked(ledger) as descriptor:
            content = _content(ledger, descriptor)
            before = _rows(ledger, content)
            _append(ledger, descriptor, content, row)
    except OSError as error:
        message = f"{ledger} cannot be written ({error.strerror}); {_REMEDY}"
        raise InputError(message) from error
    looks = [*(one for one in before if one["test_set_sha256"] == test_set), row]
    return {
        "looks": len(looks),
        "models": len({one["model_sha256"] for one in looks}),
        "test_set": test_set[:8],
        "first": min(one["date"] for one in looks)[:10],
        "file": ledger.name if shown is None else shown,
    }


@contextmanager
def _locked(ledger: Path) -> Iterator[int]:
    """The open ledger, which no other process adds to meanwhile."""
    descriptor = os.open(ledger, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system has no locks; evaluate with one process at a time", ledger.parent)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(ledger: Path, descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    if size > _MOST_BYTES:
        raise _no_ledger(ledger, f"has over {_MOST_BYTES >> 20} MiB")
    try:
        return os.pread(descriptor, size, 0).decode()
    except ValueError as error:
        raise _no_ledger(ledger, "is not UTF-8") from error


def _rows(ledger: Path, content: str) -> list[dict[str, str]]:
    """The looks before this one.

    No cell of a ledger needs quotes, so a line is a look whatever quotes somebody left in another.

    Raises:
        InputError: another header, or a line that is no look: one that was left out would not be counted.
    """
    if not content:
        return []
    *whole, last = content.split("\n")
    header, *lines = [*whole, *([] if _is_torn(last) else [last])] or [""]
    if tuple(_cells(header)) != COLUMNS:
        raise _no_ledger(ledger, f"has other columns than {', '.join(COLUMNS)}")
    for number, line in enumerate(lines, 2):
        if len(_cells(line)) != len(COLUMNS) or len(line) > _LONGEST:
            message = (
                f"{ledger} holds something else than a look in line {number}; mend the line, or move the file away and pass"
                " --ledger another one"
            )
            raise InputError(message)
    return [dict(zip(COLUMNS, _cells(line), strict=True)) for line in lines]


def _cells(line: str) -> list[str]:
    return line.removesuffix("\r").split(",")  # an editor may have ended it its own way


def _is_torn(last: str) -> bool:
    """Whether what follows the last end of a line was not written to its own, as by a machine that stopped, or is nothing."""
    return len(_cells(last)) < len(COLUMNS)


def _append(ledger: Path, descriptor: int, content: str, row: Mapping[str, str]) -> None:
    """Adds a line in one write, in place of a torn one, and takes back what of it a full disk has let through."""
    last = content.rpartition("\n")[2]
    torn = len(last.encode()) if _is_torn(last) else 0
    size = os.fstat(descriptor).st_size - torn
    if torn:
        os.ftruncate(descriptor, size)
    lines = [] if size else [",".join(COLUMNS)]
    lines.append(",".join(row[name] for name in COLUMNS))
    text = ("\n" if last and not torn else "") + "".join(f"{line}\n" for line in lines)
    try:
        write_all(descriptor, text.encode())
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    if not size:
        sync_folder(ledger.parent)


def _no_ledger(ledger: Path, what: str) -> InputError:
    message = f"{ledger} {what}, so it is no ledger of pathfm; move it away, or pass --ledger another file"
    return InputError(message)
