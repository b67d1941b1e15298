"""The answers of a probe and what they are worth: balanced accuracy and macro F1, with intervals over resamples of patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathfm.metrics import Figure, Scored, figure_of, ratio, resamples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pathfm.probetasks import Integers, Task

    Floats = NDArray[np.float64]
    Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a probe answers, out of fold.

    Attributes:
        answers: int64 (n,), a class for each of the task's tiles; -1 for those in no test.
        chosen: for each split, the number of neighbours or C.
        unsettled: how many regressions stopped at their last iteration.
        at_edge: for how many splits the smallest or the largest C was better than its neighbour.
    """

    answers: Integers
    chosen: tuple[float, ...] = ()
    unsettled: int = 0
    at_edge: int = 0


@dataclass(frozen=True, eq=False)
class Figures:
    """What the answers to a task are worth.

    Attributes:
        balanced_accuracy: mean recall over the classes.
        macro_f1: mean F1 over the classes.
        dropped: resamples without any tile of some class, which the intervals leave out.
    """

    balanced_accuracy: Figure
    macro_f1: Figure
    dropped: int


def figures(task: Task, predicted: Predicted, seed: int = 0) -> Figures:
    """Figures over the pooled tiles of a group, the mean over groups, with 95 % intervals over resamples of patients.

    Patients are drawn with all of their tiles, within the last group and highest class that each has. Of a group the
    classes that it has tiles of count.
    """
    whole, (drawn,) = _confusions(task, [predicted], seed)
    there = whole[0].sum(axis=2) > 0
    accuracies = balanced_accuracy(drawn, there)
    return Figures(
        figure_of(balanced_accuracy(whole, there)[0], accuracies),
        figure_of(_macro_f1(whole, there)[0], _macro_f1(drawn, there)),
        int(np.isnan(accuracies).sum()),
    )


def difference(task: Task, first: Predicted, second: Predicted, seed: int = 0) -> Figure:
    """Balanced accuracy of the first minus that of the second, over the same tiles, splits and resamples of patients."""
    whole, drawn = _confusions(task, [first, second], seed)
    there = whole[0].sum(axis=2) > 0
    values = balanced_accuracy(whole, there)
    return figure_of(values[0] - values[1], balanced_accuracy(drawn[0], there) - balanced_accuracy(drawn[1], there))


def balanced_accuracy(confusions: Floats, there: Booleans) -> Floats:
    """Mean recall over the classes that are there, then over groups.

    Args:
        confusions: float64 (b, group, true, predicted).
        there: bool (group, class).

    Returns:
        float64 (b,), NaN where a class that is there has no tile.
    """
    return _mean(ratio(_hits(confusions), confusions.sum(axis=3)), there)


def _confusions(task: Task, predictions: Sequence[Predicted], seed: int) -> tuple[Floats, list[Floats]]:
    """Confusion matrices (b, group, true, predicted): of all patients, b predictions; and of the resamples, of each.

    Only tiles that every prediction has an answer for count. The resamples depend on the patients and the seed alone.
    """
    scored = np.all([one.answers >= 0 for one in predictions], axis=0)
    truth, n_classes = task.truth[scored], len(task.classes)
    names, groups = np.unique(task.groups[scored], return_inverse=True)
    codes, patients = np.unique(task.patients[scored], return_inverse=True)
    shape = (-1, len(names), n_classes, n_classes)
    strata = np.zeros(len(codes), np.int64)
    np.maximum.at(strata, patients, groups * n_classes + truth)
    each = np.zeros((len(predictions), len(codes), len(names) * n_classes**2))
    for cells, one in zip(each, predictions, strict=True):
        np.add.at(cells, (patients, (groups * n_classes + truth) * n_classes + one.answers[scored]), 1)
    nothing = np.zeros((len(codes), 0))
    everyone = Scored(nothing.astype(np.float32), nothing, np.arange(len(codes)), strata, ())
    draws: list[list[Floats]] = [[] for _ in predictions]
    for counts in resamples(everyone, seed):
        for cells, drawn in zip(each, draws, strict=True):
            drawn.append((counts @ cells).reshape(shape))
    return each.sum(axis=1).reshape(shape), [np.concatenate(drawn) for drawn in draws]


def _macro_f1(confusions: Floats, there: Booleans) -> Floats:
    """F1, float64 (b,); see `_mean`."""
    true = confusions.sum(axis=3)
    each = ratio(2 * _hits(confusions), true + confusions.sum(axis=2))
    each[true == 0] = np.nan
    return _mean(each, there)


def _mean(values: Floats, there: Booleans) -> Floats:
    """Mean over the classes that are there, bool (group, class), then over groups; NaN where one of them has no value."""
    return np.asarray((np.where(there, values, 0).sum(axis=2) / there.sum(axis=1)).mean(axis=1))


def _hits(confusions: Floats) -> Floats:
    return np.diagonal(confusions, axis1=2, axis2=3)
