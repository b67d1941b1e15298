"""A user's own rows: the YAML file that PATHFM_BACKBONES names, so that every command knows them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from pathfm.backbones.row import Backbone
from pathfm.backbones.sound import require_sound
from pathfm.errors import InputError
from pathfm.plainyaml import yaml_values

VARIABLE = "PATHFM_BACKBONES"


def own_rows() -> list[Backbone]:
    """The rows in the file that PATHFM_BACKBONES names, in its order; none where it is not set.

    The file is a list of entries, their keys are the fields of `Backbone`. A folder in `source: local-dir:...` that is
    not absolute lies beside the file.

    Raises:
        InputError: the file cannot be read, or an entry is none; it names file, entry and key.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        return []
    path = Path(named).expanduser()
    return [_row(path, number, entry) for number, entry in enumerate(_entries(path), start=1)]


def _entries(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        entries = yaml_values(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        message = f"{path} ({VARIABLE}) cannot be read ({said}); name a YAML file in UTF-8 with a list of backbones"
        raise InputError(message) from error
    if not isinstance(entries, list):
        message = f"{path} ({VARIABLE}) is no list of backbones; begin each with '- name: ...'"
        raise InputError(message)
    return entries


def _row(path: Path, number: int, entry: Any) -> Backbone:
    where = f"{path} ({VARIABLE}), entry {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        message = f"{where} has no name; write it as '- name: ...' with the other keys below"
        raise InputError(message)
    try:
        row = Backbone(**_typed(entry))
        require_sound(row)
    except (InputError, TypeError) as error:
        message = f"{where}, {entry['name']}: {' '.join(str(error).split())[:300]}"
        raise InputError(message) from error
    folder = row.source.removeprefix("local-dir:")
    if folder == row.source:
        return row
    return dataclasses.replace(row, source=f"local-dir:{(path.parent / Path(folder).expanduser()).resolve()}")


def _typed(entry: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a row, each of its field's type.

    Raises:
        InputError: a key that is no field, one that is missing, or a value of another type.
    """
    hints = get_type_hints(Backbone)
    typed = {}
    for key, value in entry.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=2)
            message = f"there is no key {key!r}" + (f"; near: {', '.join(near)}" if near else "")
            raise InputError(message)
        typed[key] = value if get_origin(hints[key]) is dict else _tuples(value)
        if not _fits(typed[key], hints[key]):
            message = f"{key} is {json.dumps(value, default=str)[:80]}, and should be {_words(hints[key])}"
            raise InputError(message)
    if "source" not in entry:
        message = "the key 'source' is missing; write 'source: hf-hub:owner/name' or 'source: local-dir:/folder'"
        raise InputError(message)
    return typed


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field of `Backbone`; no text is a number, no number a truth."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple and parts[-1] is ...:
        return isinstance(value, tuple) and all(_fits(one, parts[0]) for one in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return type(value) in ((int, float) if hint is float else (hint,))


def _words(hint: Any) -> str:
    """A type as somebody would write it into the file."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is UnionType:
        return " or ".join(map(_words, parts))
    if origin is tuple:
        return f"a list of {'' if parts[-1] is ... else f'{len(parts)}, each '}{_words(parts[0])}"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true, false", type(None): "null"}
    return names.get(hint, "keys with values")
