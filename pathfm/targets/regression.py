"""A number, such as an expression or a score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from pathfm.errors import CohortError, InputError
from pathfm.metrics import ratio
from pathfm.targets.facts import finite_numbers
from pathfm.targets.numbers import number_of, plain, quantile_groups
from pathfm.targets.target import Target, known

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import Floats, Metric
    from pathfm.targets.target import Scores, Truth

_GROUPS = 4


@dataclass(frozen=True)
class Regression(Target):
    """A number, in the unit of its column; truth is (n, 1).

    The logit is the number less the mean of the training rows, in their standard deviations, and the loss is that of
    Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35:73 (1964), which a few wild
    numbers pull less than a square.

    Attributes:
        mean: of the training rows.
        std: of the training rows, above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    kind: ClassVar[str] = "regression"
    chance: ClassVar[float] = 0.0
    of_several: ClassVar[str] = "their mean"

    @property
    def width(self) -> int:
        """The number."""
        return 1

    @property
    def n_outputs(self) -> int:
        """One."""
        return 1

    @property
    def names(self) -> list[str]:
        """Value, in the unit of the column."""
        return ["value"]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Errors are in the unit of the column."""
        return {
            "pearson_r": pearson_r,
            "spearman_r": spearman_r,
            "mean_absolute_error": mean_absolute_error,
            "root_mean_squared_error": root_mean_squared_error,
            "r2": r2,
        }

    @classmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """Each cell is a number with a point."""
        truth = np.full((len(cells), 1), np.nan, dtype=np.float32)
        for row, (slide_id, text) in zip(truth, cells[name].items(), strict=True):
            if text:
                row[0] = number_of(text)
                if np.isnan(row[0]):
                    message = f"slide {slide_id}: {name} is {text!r}; write a number with a point, or leave it empty"
                    raise CohortError(message)
        return cls(name), truth

    def texts(self, truth: Truth) -> list[str]:
        """The number, with as many digits as tell it from its neighbours."""
        return [plain(value) for value in truth[:, 0]]

    def of_texts(self, texts: Sequence[str]) -> Truth:
        """The number."""
        return np.array([[number_of(text)] for text in texts], dtype=np.float32).reshape(-1, 1)

    def fitted(self, truth: Truth) -> Self:
        """The mean and the standard deviation of the training rows."""
        rows = truth[~np.isnan(truth[:, 0]), 0].astype(np.float64)
        return replace(self, mean=float(rows.mean()), std=float(rows.std()) or 1.0) if len(rows) else self

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """Huber's loss, in standard deviations: half the square up to 1, then straight."""
        labelled = known(truth)
        asked = torch.where(labelled, (truth[:, 0].nan_to_num() - self.mean) / self.std, 0.0)
        losses = functional.huber_loss(logits[:, 0], asked.to(logits), reduction="none")
        return torch.where(labelled, losses, 0.0)

    def scores(self, logits: Tensor) -> Scores:
        """The number."""
        return (logits.double() * self.std + self.mean).numpy()

    def predicted(self, scores: Scores) -> list[str]:
        """The number, to six digits."""
        return [f"{value:.6g}" for value in scores[:, 0]]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """Quarters of the rows; fewer groups where there are fewer than 10 rows for each."""
        return quantile_groups(truth[:, 0], _GROUPS)

    def of_patient(self, truth: Truth) -> Truth:
        """The mean."""
        rows = truth[~np.isnan(truth[:, 0])]
        return np.asarray(rows.mean(axis=0, dtype=np.float64) if len(rows) else truth[0], dtype=np.float32)

    def require(self, truth: Truth) -> None:
        """Two different numbers."""
        if len(np.unique(truth[~np.isnan(truth)])) < 2:
            message = (
                f"the slides to learn from hold no two different numbers of {self.name}; label more of them, or see the"
                " column split and --folds"
            )
            raise InputError(message)

    def facts(self) -> dict[str, Any]:
        """What turns logits into the unit of the column."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """Two finite numbers, the second above 0."""
        mean, std = (finite_numbers([facts.get(key)], key)[0] for key in ("mean", "std"))
        if not std > 0:
            message = "key 'std' is not above 0"
            raise ValueError(message)
        return cls(name, mean, std)


def pearson_r(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Pearson's correlation; a `Metric`."""
    return _correlation(truth[:, 0].astype(np.float64), scores[:, 0], weights)


def spearman_r(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Spearman's correlation, that of the ranks, ties taking their mean; a `Metric`.

    A row that stands several times in a resample stands in its ranks as often, as if it had been written so often.
    """
    return _correlation(_ranks(truth[:, 0], weights), _ranks(scores[:, 0], weights), weights)


def mean_absolute_error(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """A `Metric`; the lower the better."""
    return ratio(weights @ np.abs(_errors(truth, scores)), weights.sum(axis=1))


def root_mean_squared_error(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """A `Metric`; the lower the better."""
    return np.sqrt(ratio(weights @ np.square(_errors(truth, scores)), weights.sum(axis=1)))


def r2(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """1 less the mean squared error over the variance of the truth, below 0 for worse than its mean; a `Metric`."""
    values = truth[:, 0].astype(np.float64)
    spread = _spread(_centred(values, weights), weights, values)
    return 1 - ratio(weights @ np.square(_errors(truth, scores)), spread)


def _errors(truth: Truth, scores: Scores) -> Floats:
    return np.asarray(scores[:, 0] - truth[:, 0], dtype=np.float64)


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Of values (n,) or (b, n); NaN where one of them does not vary."""
    from_a, from_b = _centred(a, weights), _centred(b, weights)
    spread = np.sqrt(_spread(from_a, weights, a)) * np.sqrt(_spread(from_b, weights, b))
    return np.clip(ratio((weights * from_a * from_b).sum(axis=1), spread), -1, 1)


def _centred(values: Floats, weights: Floats) -> Floats:
    """Values (n,) or (b, n) less their mean in each resample, (b, n)."""
    return values - ratio((weights * values).sum(axis=1, keepdims=True), weights.sum(axis=1, keepdims=True))


def _spread(centred: Floats, weights: Floats, values: Floats) -> Floats:
    """Sum of squares of each resample, float64 (b,); 0 where it is but the rounding of values that are all one."""
    squares = (weights * np.square(centred)).sum(axis=1)
    rounding = weights.sum(axis=1) * np.square(1e-12 * np.abs(values).max(initial=0))
    return np.where(squares > rounding, squares, 0.0)


def _ranks(values: NDArray[np.floating[Any]], weights: Floats) -> Floats:
    """Mean rank of each row among the rows as often as the weights say, float64 (b, n)."""
    place = rankdata(values, method="dense").astype(np.int64) - 1
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, place]
