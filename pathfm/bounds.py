"""What a criteria file may declare as a bound, each kind a function that takes what stands there or says what must."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pathfm.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

CONTROLS = ("mean_colour", "site", "permuted_labels")
LEAKS = ("patient", "slide digest", "near-duplicate", "site")


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = "a whole number of 1 or more"
        raise ValueError(message)
    return value


def _share(value: Any) -> float:
    if not (_is_number(value) and 0 <= value <= 1):
        message = "a share from 0 to 1"
        raise ValueError(message)
    return float(value)


def _range(value: Any) -> tuple[float, float]:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]):
        message = "two numbers, the lower first, such as [0.5, 2]"
        raise ValueError(message)
    return float(value[0]), float(value[1])


def _numbers(value: Any) -> dict[str, float]:
    sound = isinstance(value, dict) and value and all(isinstance(k, str) and _is_number(v) for k, v in value.items())
    if not sound:
        message = "names with a number each, such as {auroc: 0.8}"
        raise ValueError(message)
    return {name: float(number) for name, number in value.items()}


def _names_of(kind: str, known: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
            message = f"a list of some of {', '.join(known)}"
            raise ValueError(message)
        for name in value:
            if name not in known:
                raise UnknownNameError(kind, name, known, "correct the criteria file")
        return tuple(dict.fromkeys(value))

    return read


def _yes(value: Any) -> bool:
    if value is not True:
        message = "true; leave the line out where it need not hold"
        raise ValueError(message)
    return True


BOUNDS: dict[str, Callable[[Any], Any]] = {
    "count": _count,
    "share": _share,
    "range": _range,
    "numbers": _numbers,
    "controls": _names_of("control", CONTROLS),
    "leaks": _names_of("leakage check", LEAKS),
    "yes": _yes,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
