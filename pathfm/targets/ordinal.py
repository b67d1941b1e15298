"""Classes in an order, such as grades: learned and read as the thresholds between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pathfm.errors import CohortError
from pathfm.metrics import binary_auroc, confusion, mean_recall, ratio
from pathfm.targets.classes import Classes
from pathfm.targets.target import known, warn_of_spellings

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import Floats, Metric
    from pathfm.targets.target import Outcomes, Scores, Truth


@dataclass(frozen=True)
class Ordinal(Classes):
    """One class out of several in an order, lowest first, by conditional thresholds.

    CORN: Shi, Cao, Raschka, Deep neural networks for rank-consistent ordinal regression based on conditional
    probabilities, arXiv:2111.08851 (2021). Logit k says how probable a class above k is where it is not below k, so the
    probabilities of being above k are their running products (equation 5) and never rise with k.
    """

    kind: ClassVar[str] = "ordinal"
    chance: ClassVar[float] = 0.0

    @property
    def n_outputs(self) -> int:
        """One logit a threshold between classes."""
        return len(self.classes) - 1

    @property
    def metrics(self) -> dict[str, Metric]:
        """At the median class but for the AUROC, which is the mean over the thresholds."""
        return {
            "quadratic_kappa": quadratic_kappa,
            "balanced_accuracy": median_recall,
            "mean_steps": mean_steps,
            "auroc": threshold_auroc,
        }

    @classmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """The distinct cells are the classes, in the order of the numbers in them: 1, 2, 3 or G1, G2, G3 or 0, 1+, 2+.

        Raises:
            CohortError: a cell without a number, whose place in the order nobody can tell.
        """
        texts = cells[name]
        for slide_id, text in texts[texts != ""].items():
            if not _NUMBER.search(text):
                message = (
                    f"slide {slide_id}: {name} is {text!r}, which has no number that says its place in the order;"
                    " write 1, 2, 3, or leave it empty"
                )
                raise CohortError(message)
        target = cls(name, tuple(sorted(set(texts) - {""}, key=_place)))
        warn_of_spellings(name, target.classes)
        return target, target.of_texts(list(texts))

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """The sum of the binary cross-entropies of the thresholds that a bag is asked at: those up to its own class.

        Equation 7 of the paper divides the sum over a batch by the number of such thresholds in it. Here that division
        is left out: it is the same for all batches but for luck, and in a batch of one bag it would weigh the bags of a
        threshold differently. The loss is then the negative log-likelihood of the class.
        """
        labelled = known(truth)
        codes = torch.where(labelled, truth[:, 0].nan_to_num(), 0)[:, None]
        thresholds = torch.arange(self.n_outputs, device=logits.device)
        each = functional.binary_cross_entropy_with_logits(logits, (codes > thresholds).to(logits), reduction="none")
        losses = torch.where(codes >= thresholds, each, 0.0).sum(dim=1)
        if balance is not None:
            losses = losses * balance[codes[:, 0].long()]
        return torch.where(labelled, losses, 0.0)

    def scores(self, logits: Tensor) -> Scores:
        """The differences between the running products."""
        above = torch.cumprod(torch.sigmoid(logits.double()), dim=1)
        ends = torch.ones((len(above), 1), dtype=torch.float64)
        return torch.cat([ends, above], 1).sub(torch.cat([above, 0 * ends], 1)).numpy()

    def predicted(self, scores: Scores) -> list[str]:
        """The median class."""
        return [self.classes[index] for index in median_class(scores)]

    def outcomes(self, truth: Truth, scores: Scores) -> Outcomes:
        """Whether it is each class but the lowest, or above."""
        above = _above(scores)
        return {
            f"at least {name}": (truth[:, 0] > index, above[:, index]) for index, name in enumerate(self.classes[1:])
        }

    def branch(self, scores: Scores) -> NDArray[np.int64]:
        """That of the last threshold that was passed; the first where none was."""
        return np.maximum(median_class(scores) - 1, 0)


def median_class(scores: Scores) -> NDArray[np.int64]:
    """The first class at which the running sum of the probabilities reaches a half, int64 (n,)."""
    return np.asarray((np.cumsum(scores, axis=1) >= 0.5 - 1e-12).argmax(axis=1), dtype=np.int64)


def quadratic_kappa(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 70:213, 1968) of the median class; a `Metric`.

    1 less the mean squared steps over those of the same margins without any agreement but by chance.
    """
    matrix = _confusion(truth, scores, weights)
    n_classes = matrix.shape[1]
    squares = np.square(np.arange(n_classes)[:, None] - np.arange(n_classes)).astype(np.float64)
    by_chance = np.einsum("bi,bj,ij->b", matrix.sum(axis=2), matrix.sum(axis=1), squares)
    return 1 - ratio((matrix * squares).sum(axis=(1, 2)) * matrix.sum(axis=(1, 2)), by_chance)


def median_recall(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Mean recall over the classes at the median class; NaN where a class has no row. A `Metric`."""
    return mean_recall(_confusion(truth, scores, weights))


def mean_steps(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """Mean absolute error of the median class, in steps from class to class. A `Metric`; the lower the better."""
    return ratio(weights @ np.abs(truth[:, 0] - median_class(scores)).astype(np.float64), weights.sum(axis=1))


def threshold_auroc(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """The mean over the thresholds of the AUROC of being above; NaN where a side has no row. A `Metric`."""
    above = _above(scores)
    each = [binary_auroc(truth[:, 0] > k, above[:, k], weights) for k in range(above.shape[1])]
    return np.asarray(np.mean(each, axis=0), dtype=np.float64)


def _above(scores: Scores) -> Scores:
    """How probable a class above each but the last is, float64 (n, c - 1)."""
    return np.cumsum(scores[:, :0:-1], axis=1)[:, ::-1]


def _confusion(truth: Truth, scores: Scores, weights: Floats) -> Floats:
    return confusion(truth[:, 0], median_class(scores), scores.shape[1], weights)


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _place(text: str) -> tuple[list[float], str]:
    """A number alone with its sign, otherwise the numbers in the text from left to right."""
    try:
        return [float(text)], text
    except ValueError:
        return [float(number) for number in _NUMBER.findall(text)], text
