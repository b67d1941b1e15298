"""The time until an event, which is only known to be longer for those whom nobody followed so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from pathfm.errors import CohortError, InputError
from pathfm.metrics import ratio
from pathfm.targets.numbers import number_of, plain, quantile_groups
from pathfm.targets.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import Floats, Metric
    from pathfm.targets.target import Scores, Truth

EVENTS = {
    **dict.fromkeys(("1", "true", "yes", "dead", "deceased"), 1.0),
    **dict.fromkeys(("0", "false", "no", "alive", "living"), 0.0),
}
"""What the cells of the event column may say, in any case, and what of it is an event; cBioPortal writes 1:DECEASED."""
_GROUPS = 3
_BLOCK = 4_000_000  # pairs compared at a time: 32 MB


class Survival(Target):
    """Time and event; its subclasses say how they are learned.

    The name is TIME/EVENT, two columns. Truth is (n, 2): the time above 0, and 1 for the event, 0 for the end of
    observation (censored). Of `risk` only the order means something: the higher, the sooner.
    """

    chance: ClassVar[float] = 0.5
    of_several: ClassVar[str] = "that of the longest time"

    @property
    def columns(self) -> tuple[str, ...]:
        """The time, the event."""
        return tuple(self.name.split("/"))

    @property
    def width(self) -> int:
        """Time and event."""
        return 2

    @property
    def names(self) -> list[str]:
        """Risk."""
        return ["risk"]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Harrell's, over the pairs of one fold."""
        return {"c_index": c_index}

    @classmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """A row where one of both is empty has no label."""
        truth = np.full((len(cells), 2), np.nan, dtype=np.float32)
        time, event = cells.columns
        for row, (slide_id, texts) in zip(truth, cells.iterrows(), strict=True):
            found = np.array([number_of(texts[time]), _event(texts[event])], dtype=np.float32)
            if texts[time] and not found[0] > 0:
                message = f"slide {slide_id}: {time} is {texts[time]!r}; write a time above 0, or leave it empty"
                raise CohortError(message)
            if texts[event] and np.isnan(found[1]):
                message = (
                    f"slide {slide_id}: {event} is {texts[event]!r}; write 1 for the event and 0 for none so far"
                    f" ({', '.join(EVENTS)} are known), or leave it empty"
                )
                raise CohortError(message)
            if texts[time] and texts[event]:
                row[:] = found
        return cls(name), truth

    def texts(self, truth: Truth) -> list[str]:
        """The time, followed by + where there was no event."""
        return [plain(time) + ("+" if event == 0 and not np.isnan(time) else "") for time, event in truth]

    def of_texts(self, texts: Sequence[str]) -> Truth:
        """Time and event."""
        truth = np.array(
            [[number_of(text.removesuffix("+")), not text.endswith("+")] for text in texts], dtype=np.float32
        ).reshape(-1, 2)
        truth[~(truth[:, 0] > 0)] = np.nan
        return truth

    def comparable(self, scores: Scores, folds: NDArray[np.int64]) -> Scores:
        """The risk, and the fold beside it: risks of two models have neither a zero nor a unit in common."""
        return np.column_stack([scores, folds])

    def predicted(self, scores: Scores) -> list[str]:
        """The risk, to four digits."""
        return [f"{risk:.4g}" for risk in scores[:, 0]]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """Thirds of the times of those with the event, then of those without; fewer where these would be under 10 rows."""
        groups = np.full(len(truth), -1, dtype=np.int64)
        for event in (1, 0):
            found = quantile_groups(np.where(truth[:, 1] == event, truth[:, 0], np.nan).astype(np.float32), _GROUPS)
            groups = np.where(found >= 0, found + groups.max(initial=-1) + 1, groups)
        return groups

    def counts(self, truth: Truth) -> dict[str, int]:
        """The events, which carry what there is to learn and to measure."""
        return {"event": int(np.nansum(truth[:, 1]))}

    def of_patient(self, truth: Truth) -> Truth:
        """The row of the longest time; of equal ones that with the event."""
        rows = truth[~np.isnan(truth).any(axis=1)]
        longest: Truth = rows[np.lexsort((rows[:, 1], rows[:, 0]))[-1]] if len(rows) else truth[0]
        return longest

    def require(self, truth: Truth) -> None:
        """At least two events."""
        events = self.counts(truth)["event"]
        if events < 2:
            message = (
                f"the slides to learn from hold {events or 'no'} event{'s' * (events != 1)} of {self.name}, and 2 are the least;"
                " see the column split and --folds"
            )
            raise InputError(message)


def _event(text: str) -> float:
    """1 for the event, 0 for none, NaN for a cell that says neither; 1:RECURRED says 1, and 1:LIVING nothing."""
    word = text.lower()
    digit, colon, said = word.partition(":")
    if colon and digit in ("0", "1"):
        return EVENTS[digit] if EVENTS.get(said.strip(), EVENTS[digit]) == EVENTS[digit] else np.nan
    return EVENTS.get(word, np.nan)


def c_index(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Harrell's concordance; a `Metric`.

    Harrell, Califf, Pryor, Lee, Rosati, Evaluating the yield of medical tests, JAMA 247:2543 (1982): of the pairs of
    which it is known who had the event first, the share in which that one has the higher risk, equal risks counted half.
    Of equal times a pair counts where one had the event and the other, who was well then, had not. Where the scores have a
    second column, pairs are of rows that are alike in it (`Survival.comparable`), and those of all folds are counted
    together.
    """
    in_order, known = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(scores[:, 1:], axis=0):
        rows = (scores[:, 1:] == fold).all(axis=1)
        right, pairs = _concordance(truth[rows], scores[rows, 0], weights[:, rows])
        in_order, known = in_order + right, known + pairs
    return ratio(in_order, known)


def _concordance(truth: Truth, risk: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The pairs in the right order, ties counted half, and all that are known, both float64 (b,)."""
    time, event = truth.T
    sooner = np.flatnonzero(event == 1)
    in_order, known = np.zeros(len(weights)), np.zeros(len(weights))
    for rows in np.array_split(sooner, -(-len(sooner) * len(truth) // _BLOCK) or 1):
        later = (time[rows, None] < time) | ((time[rows, None] == time) & (event == 0))
        right = np.where(risk[rows, None] > risk, 1.0, np.where(risk[rows, None] == risk, 0.5, 0.0))
        known += (weights[:, rows] * (weights @ later.T.astype(np.float64))).sum(axis=1)
        in_order += (weights[:, rows] * (weights @ (later * right).T)).sum(axis=1)
    return in_order, known
