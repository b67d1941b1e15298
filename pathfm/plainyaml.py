"""YAML that anybody may have written: no aliases, no key twice, and no depths that keep a parser busy for hours."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 20
_OPENS = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSES = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def yaml_values(text: str) -> Any:
    """What a document says, as JSON types and dates.

    Raises:
        yaml.YAMLError: no YAML, or not plain, as `require_plain` has it.
    """
    require_plain(text)
    return yaml.safe_load(text)


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
    count; and more than 20 levels, of which kilobytes take minutes.

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
        return
    below = node.value if node.id == "sequence" else [value for _, value in node.value]
    names = [] if node.id == "sequence" else [key.value if key.id == "scalar" else "" for key, _ in node.value]
    odd = next((name for name in names if names.count(name) > 1 or name in ("", "<<")), None)
    if odd is not None:
        message = f"the key {odd} stands twice" if odd not in ("", "<<") else "a key is no plain word"
        raise yaml.YAMLError(message)
    for one in below:
        _require_different_keys(one)
