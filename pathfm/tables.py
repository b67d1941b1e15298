"""Tables and documents that one command writes for another, read back as if a stranger had written them."""

from __future__ import annotations

import csv
import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from pathfm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_MISSING = ("na", "n/a", "nan", "null")


def read_table(path: Path, columns: Iterable[str], remedy: str) -> pd.DataFrame:
    """A CSV table of ours as text, "" where a cell is empty; other columns than those asked for are kept.

    Args:
        path: the file, UTF-8 with a header row.
        columns: what it must have.
        remedy: what now, for the messages.

    Raises:
        InputError: missing, empty, not UTF-8, rows of different lengths, or without one of the columns.
    """
    header, *rows = _cells(path, remedy) or [[]]
    missing = [name for name in columns if name not in header]
    if not header or missing:
        what = f"lacks the column {', '.join(missing)}" if header else "is empty"
        raise _unusable(path, what, remedy)
    if len(set(header)) < len(header):
        raise _unusable(path, "names a column twice", remedy)
    odd = next((index for index, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if odd is not None:
        raise _unusable(path, f"has {len(rows[odd - 2])} cells in row {odd}, its header {len(header)}", remedy)
    return pd.DataFrame(rows, columns=header, dtype=str)


def read_document(path: Path, name: str, version: int, shape: Any, remedy: str) -> dict[str, Any]:
    """A JSON document of ours; NaN, which is no JSON, is refused.

    Args:
        path: the file.
        name: what its key `format` says.
        version: the highest `format_version` that is understood.
        shape: what it holds, as `misfit` has it.
        remedy: what now, for the messages.

    Raises:
        InputError: missing, not JSON, of another format or a newer version, or of another shape; the key is named.
    """
    document = _json(path, remedy)
    what = misfit(document, {"format": name, "format_version": int})
    if what:
        raise _unusable(path, what, remedy)
    if document["format_version"] > version:
        message = (
            f"{path} has format_version {document['format_version']}, this pathfm reads up to {version}; upgrade pathfm"
        )
        raise InputError(message)
    what = misfit(document, shape)
    if what:
        raise _unusable(path, what, remedy)
    return dict(document)


def known_text(cells: pd.Series[str]) -> pd.Series[str]:
    """Cells without the space around them; "" where they are empty, or NA, N/A, NaN or null."""
    text = cells.str.strip()
    return text.mask(text.str.lower().isin(_MISSING), "")


def misfit(value: Any, shape: Any, key: str = "") -> str:
    """How a JSON value differs from a shape, "" where it fits.

    Args:
        value: the value.
        shape: a type; a value that it must equal, such as None; [shape of every item]; {key: shape}, where a key that
            ends in "?" may be absent and "*" stands for any; or a tuple of shapes, one of which must fit. A float may be
            written as an int, and neither is a bool or infinite.
        key: where it stands, with dots.
    """
    if isinstance(shape, tuple):
        found = [misfit(value, one, key) for one in shape]
        return "" if "" in found else found[0]
    if isinstance(shape, dict) and isinstance(value, dict):
        return _misfit_of_keys(value, shape, f"{key}." if key else "")
    if isinstance(shape, list) and isinstance(value, list):
        found = [misfit(item, shape[0], f"{key}.{index}") for index, item in enumerate(value)]
        return next(filter(None, found), "")
    if isinstance(shape, type | dict | list):
        wanted = shape if isinstance(shape, type) else type(shape)
        return "" if _is_a(value, wanted) else f"key {key!r} holds {type(value).__name__}" if key else "is no object"
    return "" if value == shape and type(value) is type(shape) else f"key {key!r} is not {shape!r}"


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a message of one line; its name where it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _misfit_of_keys(value: dict[str, Any], shape: dict[str, Any], prefix: str) -> str:
    for name, wanted in shape.items():
        plain = name.removesuffix("?")
        keys = [*value] if name == "*" else [plain]
        if name == plain != "*" and name not in value:
            return f"lacks the key {prefix + name!r}"
        for one in keys:
            what = misfit(value[one], wanted, prefix + one) if one in value else ""
            if what:
                return what
    return ""


def _is_a(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, int if kind is int else (int, float))


def _cells(path: Path, remedy: str) -> Sequence[list[str]]:
    _require_file(path, remedy)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file, strict=True) if row]
    except (csv.Error, ValueError, OSError) as error:
        raise _unusable(path, f"cannot be read as a table ({first_line(error)})", remedy) from error


def _json(path: Path, remedy: str) -> Any:
    _require_file(path, remedy)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError, OSError) as error:
        raise _unusable(path, f"is not JSON ({first_line(error)})", remedy) from error


def _refuse_constant(name: str) -> NoReturn:
    message = f"it holds {name}"
    raise ValueError(message)


def _require_file(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise _unusable(path, "does not exist", remedy)


def _unusable(path: Path, what: str, remedy: str) -> InputError:
    return InputError(f"{path} {what}; {remedy}")
