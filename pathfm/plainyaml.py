"""YAML that anybody may have written: no aliases, no key twice, and no depths that keep a parser busy for hours."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 200_000
_DEEPEST = 20
_LONGEST_NUMBER = 100
_OPENS = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSES = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def read_text(path: Path) -> str:
    """The text of a YAML file, of which no more is read than a person writes.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no UTF-8.
        yaml.YAMLError: it is larger than 200,000 bytes.
    """
    with path.open("rb") as file:
        found = file.read(_MAX_BYTES + 1)
    if len(found) > _MAX_BYTES:
        message = f"it is larger than {_MAX_BYTES:,} bytes"
        raise yaml.YAMLError(message)
    return found.decode("utf-8-sig")


def yaml_values(text: str) -> Any:
    """What a document says, as JSON types and dates.

    Raises:
        yaml.YAMLError: no YAML, not plain, as `require_plain` has it, or a value that is not of the type that it states.
    """
    require_plain(text)
    try:
        return yaml.safe_load(text)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:  # `!!int ""` and such
        message = f"a value is not of the type that it states ({error})"
        raise yaml.YAMLError(message) from error


def yaml_texts(text: str) -> Any:
    """What a document says, with every value as the text that stands there: `no`, `1.0` and dates are left alone.

    Raises:
        yaml.YAMLError: no YAML, or not plain, as `require_plain` has it.
    """
    require_plain(text)
    return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text of everything, and no objects


def require_plain(text: str) -> None:
    """Refuses what reads otherwise than it looks, or costs more than it looks.

    Aliases, a few of which stand for more values than fit into memory; a key that stands twice, of which the last would
    count; more than 20 levels, of which kilobytes take minutes; and whole numbers of more than 100 digits.

    Raises:
        yaml.YAMLError: what stands there, or it is no YAML.
    """
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, _OPENS) - isinstance(token, _CLOSES)
        if isinstance(token, yaml.AliasToken):
            message = "an alias (*) is not read here, write out what it stands for"
            raise yaml.YAMLError(message)
        if depth > _DEEPEST:
            message = f"it has more than {_DEEPEST} levels"
            raise yaml.YAMLError(message)
    _require_different_keys(yaml.compose(text))


def _require_different_keys(node: Any) -> None:
    if node is None or node.id == "scalar":
        _require_short(node)
        return
    below = node.value if node.id == "sequence" else [value for _, value in node.value]
    names = [] if node.id == "sequence" else [key.value if key.id == "scalar" else "" for key, _ in node.value]
    counts = Counter(names)
    odd = next((name for name in names if counts[name] > 1 or name in ("", "<<")), None)
    if odd is not None:
        message = f"the key {odd} stands twice" if odd not in ("", "<<") else "a key is no plain word"
        raise yaml.YAMLError(message)
    for one in below:
        _require_different_keys(one)


def _require_short(scalar: Any) -> None:
    """No number that takes minutes to read, or cannot be written down again."""
    if scalar is not None and scalar.tag == "tag:yaml.org,2002:int" and len(scalar.value) > _LONGEST_NUMBER:
        message = f"a number has more than {_LONGEST_NUMBER} digits"
        raise yaml.YAMLError(message)
