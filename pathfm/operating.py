"""Operating points: the rule that a user states, and the threshold that it chooses on the rows that it may see."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pathfm.errors import InputError

if TYPE_CHECKING:
    from pathfm.metrics import Booleans, Floats, Integers

GRAMMAR = "specificity>=0.95, sensitivity>=0.9, cost:10/1 (a missed one to a false alarm) or youden"
"""What `parse_rule` reads, in examples."""
_NUMBER = r"(\d{0,20}\.?\d{1,20})"  # bounded, so that no text holds one that is not written again as it was read
_BOUND = re.compile(rf"(specificity|sensitivity)\s*>=\s*{_NUMBER}")
_COST = re.compile(rf"cost\s*:\s*{_NUMBER}\s*/\s*{_NUMBER}")
_LONGEST = 80  # of a text that is shown because it is no rule


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen.

    Attributes:
        kind: what is held to, or weighed.
        bound: of a specificity or sensitivity the least share, above 0 and at most 1.
        missed: what a missed one costs, in the unit of `alarm`.
        alarm: what a false alarm costs.
    """

    kind: Literal["specificity", "sensitivity", "cost", "youden"]
    bound: float = 0.0
    missed: float = 1.0
    alarm: float = 1.0

    def __str__(self) -> str:
        """As `parse_rule` reads it."""
        if self.kind == "cost":
            return f"cost:{_plain(self.missed)}/{_plain(self.alarm)}"
        return self.kind if self.kind == "youden" else f"{self.kind}>={_plain(self.bound)}"


class Choice(NamedTuple):
    """What a rule came to.

    Attributes:
        threshold: a row is positive where its score is this or higher.
        notes: what to say of it, in sentences without a full stop; () where the rule was met with something to spare.
    """

    threshold: float
    notes: tuple[str, ...]


def parse_rule(text: str) -> Rule:
    """The rule that a text states: `specificity>=0.95`, `sensitivity>=0.9`, `cost:10/1` or `youden`.

    Raises:
        InputError: another text, or a share or cost that is none; the message holds the grammar.
    """
    words = text.strip().lower()
    bound, cost = _BOUND.fullmatch(words), _COST.fullmatch(words)
    if words == "youden":
        return Rule("youden")
    if bound and 0 < float(bound[2]) <= 1:
        return Rule("specificity" if bound[1] == "specificity" else "sensitivity", float(bound[2]))
    if cost and min(float(cost[1]), float(cost[2])) > 0:
        return Rule("cost", missed=float(cost[1]), alarm=float(cost[2]))
    message = f"--operating-point {text[:_LONGEST]!r} is no rule; write {GRAMMAR}, shares above 0 and at most 1"
    raise InputError(message)


def choose(rule: Rule, positive: Booleans, score: Floats, prevalence: float | None = None) -> Choice:
    """The threshold of a rule: the middle between the lowest score that is called positive and the next lower one.

    Any threshold between two neighbouring scores decides the same here, and equal scores are never cut apart. A bound is
    held with one to spare: k of the n rows that it is about must be right with k / (n + 1) at the bound or above, for that
    is the mean share of right ones among new rows that could have changed places with these (a new one falls between any
    two with equal chances, as in Vovk, Gammerman, Shafer, Algorithmic learning in a random world, 2005). Where n is too
    small for that, all of them must be. Of the cuts that hold a specificity the one of the highest sensitivity is taken,
    and of equals the highest, which is the safe side of it; of those that hold a sensitivity the one of the highest
    specificity, and of equals the lowest. A cost, or Youden's index (sensitivity + specificity - 1; Cancer 3:32, 1950), is
    the best there is, and of equals the lowest cut, which misses fewer. To call everybody positive is a threshold of 0,
    to call nobody one above every score.

    Args:
        rule: what is asked.
        positive: bool (n,), of the rows that it is chosen on.
        score: float64 (n,) from 0 to 1, their scores, without NaN.
        prevalence: share of positive rows where the model is to be used, by which costs are weighed; None for the share
            among these rows.

    Raises:
        InputError: no row is positive, or every one: any threshold would do.
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        lacking = "with it" if not n_positive else "without it"
        message = f"nobody {lacking} among the {len(positive)} to choose a threshold on; label more of them"
        raise InputError(message)
    levels = np.unique(score)
    true, false = _at_or_above(levels, score[positive]), _at_or_above(levels, score[~positive])
    cut = _best(rule, true, false, prevalence)
    notes = _notes(rule, int(true[cut]), int(false[cut]), n_positive, n_negative)
    return Choice(_threshold(levels, cut), tuple(notes))


def _plain(number: float) -> str:
    """All digits that tell a number from its neighbours, without an exponent."""
    return np.format_float_positional(number, trim="-")


def _at_or_above(levels: Floats, score: Floats) -> Integers:
    """How many scores are at least each level, int64 (levels + 1,); the last is 0, above all."""
    below = np.searchsorted(np.sort(score), levels, side="left")
    return np.asarray(np.r_[len(score) - below, 0], dtype=np.int64)


def _best(rule: Rule, true: Integers, false: Integers, prevalence: float | None) -> int:
    """The place of the cut; the rows at or above each are the true and the false positives, all of them at the first."""
    n_positive, n_negative = int(true[0]), int(false[0])
    right, spared = true / n_positive, 1 - false / n_negative
    if rule.kind == "specificity":  # as counts: a share of 0.95 has no exact float
        held = n_negative - false >= _least(rule.bound, n_negative)
        return int(np.lexsort((spared, right, held))[-1])
    if rule.kind == "sensitivity":
        held = true >= _least(rule.bound, n_positive)
        return int(np.lexsort((right, spared, held))[-1])
    if rule.kind == "youden":
        return int(np.argmax(true * n_negative - false * n_positive))
    share = n_positive / (n_positive + n_negative) if prevalence is None else prevalence
    cost = rule.missed * share * (1 - right) + rule.alarm * (1 - share) * (1 - spared)
    return int(np.flatnonzero(cost <= cost.min() * (1 + 1e-9))[0])


def _least(share: float, n: int) -> int:
    """The smallest count k of n for which k / (n + 1) is this share, or n where there is none."""
    return min(n, math.ceil(share * (n + 1) * (1 - 1e-12)))


def _threshold(levels: Floats, cut: int) -> float:
    if cut == 0:
        return 0.0
    low, high = float(levels[cut - 1]), 1.0 if cut == len(levels) else float(levels[cut])
    if low >= high:  # a score of 1 that is not called positive
        return float(np.nextafter(low, np.inf))
    middle = (low + high) / 2
    return high if middle <= low else middle  # neighbours among floats have nothing between them


def _notes(rule: Rule, true: int, false: int, n_positive: int, n_negative: int) -> list[str]:
    notes = []
    if not true:
        notes.append(f"{rule} comes to calling nobody positive: the scores set none of the {n_positive} with it apart")
    elif false == n_negative:
        notes.append(
            f"{rule} comes to calling everybody positive: the scores spare none of the {n_negative} without it"
        )
    n, which = (n_negative, "without it") if rule.kind == "specificity" else (n_positive, "with it")
    if rule.kind in ("specificity", "sensitivity") and rule.bound * (n + 1) > n * (1 + 1e-12):
        takes = (
            f"which takes {math.ceil(rule.bound / (1 - rule.bound) - 1e-9):,}" if rule.bound < 1 else "nor with more"
        )
        notes.append(
            f"{rule} cannot be expected of others with {n} {which}, {takes}: the threshold has all of them right"
        )
    return notes
