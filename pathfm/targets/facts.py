"""What model.json says of a target, proven: it may come from anywhere."""

from __future__ import annotations

import sys
from typing import Any


def different_names(facts: dict[str, Any], key: str, least: int) -> tuple[str, ...]:
    """The names under a key, at least so many and all different.

    Raises:
        ValueError: something else; the key is named.
    """
    names = facts.get(key)
    texts = isinstance(names, list) and all(isinstance(one, str) and one for one in names)
    if not isinstance(names, list) or not texts or len(names) < least or len(set(names)) < len(names):
        message = f"key {key!r} is not a list of {least} or more different names"
        raise ValueError(message)
    return tuple(names)


def finite_numbers(values: object, key: str) -> tuple[float, ...]:
    """The numbers of a list that was found under a key.

    Raises:
        ValueError: something else; the key is named.
    """
    largest = sys.float_info.max  # JSON has whole numbers beyond it, which no float can be made of
    if isinstance(values, list) and all(type(one) in (int, float) and abs(one) <= largest for one in values):
        return tuple(float(one) for one in values)
    message = f"key {key!r} holds something else than finite numbers"
    raise ValueError(message)
