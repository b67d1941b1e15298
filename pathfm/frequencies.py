"""Natural frequencies: what an operating point would do among a round number of patients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pathfm.words import percent

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENOUGH = 10  # patients with the condition among those that are spoken of
_MOST = 1_000_000


def frequencies(point: Mapping[str, Any], prevalence: float, what: str) -> str:
    """What an operating point would do among a round number of patients, with ranges; "" where it is not known.

    The ends of a range are those of the intervals of sensitivity and specificity, rounded outward.

    Args:
        point: its counts and shares, as `operating.operating_block` has them.
        prevalence: the share of patients with the condition.
        what: the condition, in words.
    """
    if point["sensitivity"]["value"] is None or point["specificity"]["value"] is None:
        return ""
    everyone = 1000
    while everyone * prevalence < _ENOUGH and everyone < _MOST:
        everyone *= 10
    ill = round(everyone * prevalence)
    found, missed = _of(ill, point["sensitivity"]), _of(ill, _rest(point["sensitivity"]))
    false = _of(everyone - ill, _rest(point["specificity"]))
    return (
        f"Of {everyone:,} patients like these, {ill:,} of them with {what} (a stated prevalence of {percent(prevalence)} %),"
        f" it would flag {found} of the {ill:,} and miss {missed}; of the {everyone - ill:,} without, it would flag {false}"
        " by mistake (ranges: 95 % intervals)."
    )


def _of(n: int, proportion: Mapping[str, Any]) -> str:
    value, low, high = (n * proportion[key] for key in ("value", "low", "high"))
    return f"{round(value):,} ({math.floor(low + 1e-9):,} to {math.ceil(high - 1e-9):,})"


def _rest(proportion: Mapping[str, Any]) -> dict[str, float]:
    return {"value": 1 - proportion["value"], "low": 1 - proportion["high"], "high": 1 - proportion["low"]}
