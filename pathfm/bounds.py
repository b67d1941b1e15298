"""What a criteria file may declare as a bound, each kind a function that takes what stands there or says what must."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pathfm.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

CONTROLS = ("mean_colour", "site", "permuted_labels")
LEAKS = ("patient", "slide digest", "near-duplicate", "site")
ERRORS = ("mean_steps", "mean_absolute_error", "root_mean_squared_error")
"""The figures that can be above 1; of all others 1 is the best."""


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


def _shares(value: Any) -> dict[str, float]:
    return _at_most_one(_numbers(value), ())


def _figures(value: Any) -> dict[str, float]:
    return _at_most_one(_numbers(value), ERRORS)


def _at_most_one(bounds: dict[str, float], but: tuple[str, ...]) -> dict[str, float]:
    """A bound of 70 is a slip for 0.7, and no figure would ever reach it."""
    above = [name for name, number in bounds.items() if number > 1 and name not in but]
    if above:
        message = f"at most 1 for {above[0]}, such as {{{above[0]}: 0.8}}"
        raise ValueError(message)
    return bounds


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
    "figures": _figures,
    "shares": _shares,
    "controls": _names_of("control", CONTROLS),
    "leaks": _names_of("leakage check", LEAKS),
    "yes": _yes,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
