"""Any number of labels out of several at once, such as findings or mutations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pathfm.cohort import sort_classes
from pathfm.errors import CohortError, InputError
from pathfm.metrics import binary_auroc, binary_average_precision, ratio
from pathfm.targets.facts import different_names
from pathfm.targets.target import Target, known, require_known, warn_of_spellings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import BinaryMetric, Booleans, Floats, Metric
    from pathfm.targets.target import Outcomes, Scores, Truth

NONE = ("none", "-")
"""Words, in any case, that say that a slide has none of the labels; an empty cell says that nothing is known."""
_FEW = 10  # rows; strata of fewer join the largest


@dataclass(frozen=True)
class MultiLabel(Target):
    """Any of several labels, each by a sigmoid over a logit of its own.

    Truth is 1 for each label that a row has and 0 for the others, (n, labels); a cell names all labels of a slide, `a;b`.
    """

    labels: tuple[str, ...]

    kind: ClassVar[str] = "multilabel"
    chance: ClassVar[float] = 0.5
    gives_probabilities: ClassVar[bool] = True
    of_several: ClassVar[str] = "all of them together"

    @property
    def width(self) -> int:
        """One number a label."""
        return len(self.labels)

    @property
    def n_outputs(self) -> int:
        """One logit a label."""
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """prob_<label> for each label; each lies between 0 and 1 by itself."""
        return [f"prob_{name}" for name in self.labels]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Means over the labels that there are rows with and without of, F1 at 0.5; then the AUROC of each label."""
        means: dict[str, Metric] = {
            "auroc": partial(mean_over_labels, binary_auroc),
            "average_precision": partial(mean_over_labels, binary_average_precision),
            "f1": partial(mean_over_labels, binary_f1),
        }
        return means | {f"auroc_{name}": partial(label_auroc, k) for k, name in enumerate(self.labels)}

    @classmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """The distinct parts of the cells between semicolons are the labels.

        Raises:
            CohortError: a cell that names a label and none, or nothing between its semicolons.
        """
        target = cls(name, tuple(sort_classes(_found(name, cells) - {NONE[0]})))
        if not target.labels:
            message = f"column {name!r} names no label in any row; write the labels of a slide with semicolons between"
            raise InputError(message)
        warn_of_spellings(name, target.labels)
        return target, target.of_texts(list(cells[name]))

    def of_cells(self, name: str, cells: pd.DataFrame) -> Truth:
        """1 for each label of a cell, of those that there are here; all rows may have none."""
        _found(name, cells)
        texts = list(cells[name])
        truth = self.of_texts(texts)
        require_known(name, texts, truth, self.labels)
        return truth

    def texts(self, truth: Truth) -> list[str]:
        """The labels in their order, or none."""
        return ["" if np.isnan(row).any() else self._text(row > 0) for row in truth]

    def of_texts(self, texts: Sequence[str]) -> Truth:
        """1 for each label of a cell; NaN where one of them is not known."""
        truth = np.full((len(texts), len(self.labels)), np.nan, dtype=np.float32)
        for row, text in zip(truth, texts, strict=True):
            parts = _parts(text)
            if parts and parts <= {*self.labels, NONE[0]}:
                row[:] = [name in parts for name in self.labels]
        return truth

    def balance(self, truth: Truth) -> Tensor | None:
        """Weights of 0 and of 1 of each label, float32 (2, labels): inverse frequencies of mean 1 over the rows."""
        rows = torch.from_numpy(truth[~np.isnan(truth).any(axis=1)])
        counts = torch.stack([(rows == 0).sum(dim=0), (rows == 1).sum(dim=0)])
        both = (counts > 0).all(dim=0)
        return torch.where(both, len(rows) / (2 * counts.clamp(min=1)), 1.0)

    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """Binary cross-entropy, mean over the labels."""
        labelled = known(truth)
        asked = torch.where(labelled[:, None], truth.nan_to_num(), 0.0)
        each = functional.binary_cross_entropy_with_logits(logits, asked.to(logits), reduction="none")
        if balance is not None:
            each = each * torch.where(asked > 0, balance[1], balance[0])
        return torch.where(labelled, each.mean(dim=1), 0.0)

    def scores(self, logits: Tensor) -> Scores:
        """The sigmoids."""
        return torch.sigmoid(logits.double()).numpy()

    def predicted(self, scores: Scores) -> list[str]:
        """The labels of a half or more."""
        return [self._text(row >= 0.5) for row in scores]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """The rarest label of each row, so that folds share the rare ones; strata of few rows join the largest."""
        labelled = ~np.isnan(truth).any(axis=1)
        rows = truth[labelled]
        # a last column of all rows: the stratum of those without a label
        has = np.column_stack([rows > 0, np.ones(len(rows), dtype=bool)])
        rarest = np.where(has, has.sum(axis=0), len(rows) + 1).argmin(axis=1)
        counts = np.bincount(rarest, minlength=has.shape[1])
        kept = np.where(counts[rarest] >= _FEW, rarest, counts.argmax())
        strata = np.full(len(truth), -1, dtype=np.int64)
        strata[labelled] = np.unique(kept, return_inverse=True)[1]
        return strata

    def counts(self, truth: Truth) -> dict[str, int]:
        """How many rows have each label."""
        return {name: int(np.nansum(truth[:, k])) for k, name in enumerate(self.labels)}

    def outcomes(self, truth: Truth, scores: Scores) -> Outcomes:
        """Each label."""
        return {name: (truth[:, k] > 0, scores[:, k]) for k, name in enumerate(self.labels)}

    def branch(self, scores: Scores) -> NDArray[np.int64]:
        """That of the most probable label."""
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)

    def require(self, truth: Truth) -> None:
        """Every label needs a row that has it and one that has not."""
        rows = truth[~np.isnan(truth).any(axis=1)]
        for name, share in zip(self.labels, rows.mean(axis=0) if len(rows) else np.zeros(self.width), strict=True):
            if share in (0, 1):
                message = (
                    f"of the slides to learn from {'none' if share == 0 else 'every one'} has {name} in {self.name};"
                    " label more of them, take that label out of the column, or see the column split and --folds"
                )
                raise InputError(message)

    def facts(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": list(self.labels)}

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """One or more different names, as a cell could hold them."""
        labels = different_names(facts, "labels", 1)
        if any(_parts(label) != {label} or label == NONE[0] for label in labels):
            message = "key 'labels' holds a name that no cell could"
            raise ValueError(message)
        return cls(name, labels)

    def _text(self, row: Booleans) -> str:
        return ";".join(name for name, has in zip(self.labels, row, strict=True) if has) or NONE[0]


def mean_over_labels(metric: BinaryMetric, truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """The mean of the figure of each label over those that there are rows with and without of; a `Metric`.

    NaN in a resample in which one of these has no such rows, and where there are none.
    """
    there = [k for k in range(truth.shape[1]) if len(np.unique(truth[:, k])) > 1]
    each = [metric(truth[:, k] > 0, scores[:, k], weights) for k in there]
    return np.asarray(np.mean(each, axis=0) if each else np.full(len(weights), np.nan), dtype=np.float64)


def label_auroc(which: int, truth: Truth, scores: Scores, weights: Floats) -> Floats:
    """The AUROC of one label; a `Metric`."""
    return binary_auroc(truth[:, which] > 0, scores[:, which], weights)


def binary_f1(positive: Booleans, score: Floats, weights: Floats) -> Floats:
    """F1 at a half, float64 (b,); NaN where no row is positive."""
    said = score >= 0.5
    true = weights @ positive.astype(np.float64)
    found = ratio(2 * (weights @ (positive & said).astype(np.float64)), true + weights @ said.astype(np.float64))
    return np.where(true == 0, np.nan, found)


def _found(name: str, cells: pd.DataFrame) -> set[str]:
    """The labels that cells name, and the word for none.

    Raises:
        CohortError: as `MultiLabel.read`.
    """
    texts, found = cells[name], set()
    for slide_id, text in texts[texts != ""].items():
        parts = _parts(text)
        if not parts or (len(parts) > 1 and NONE[0] in parts):
            message = (
                f"slide {slide_id}: {name} is {text!r}; write the labels with semicolons between, 'none' where it has"
                " none of them, or leave it empty where that is not known"
            )
            raise CohortError(message)
        found |= parts
    return found


def _parts(text: str) -> set[str]:
    parts = {part.strip() for part in text.split(";")} - {""}
    return {NONE[0] if part.lower() in NONE else part for part in parts}
