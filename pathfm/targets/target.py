"""The interface of a target: what a column of the cohort table asks a head to say."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathfm.errors import CohortError
from pathfm.progress import logger
from pathfm.targets.numbers import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from pathfm.metrics import Metric

Truth = NDArray[np.float32]
"""Float32 (n, width), a row a bag, as the kind of target has it; a row of NaN has no label."""
Scores = NDArray[np.float64]
"""Float64 (n, k), a row a bag: what is written of it, as `Target.names` calls the columns."""
Outcomes = dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""By name, of each row whether something is so, bool (n,), and what it is scored with, float64 (n,)."""

_LONGEST = 80  # of a folder's name, which file systems bound


@dataclass(frozen=True)
class Target(ABC):
    """What a model is asked to say of a bag; its subclasses are the rows of `KINDS`.

    Attributes:
        name: how the user called it, without the kind: `grade`, or `os_months/os_event`.
    """

    name: str

    kind: ClassVar[str]
    """Its row in `KINDS`."""
    chance: ClassVar[float]
    """What the main figure is without knowledge."""
    of_several: ClassVar[str] = "the highest of them"
    """What `of_patient` makes of labels that differ, in words."""
    gives_probabilities: ClassVar[bool] = False
    """Whether its scores are probabilities, each in a column prob_<name>."""
    compares: ClassVar[bool] = False
    """Whether its loss compares the bags of a step, so that one alone says nothing."""

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return folder_name(self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the cohort table that hold it."""
        return (self.name,)

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a row of truth."""

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Logits that it takes of a head."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Columns of predictions.csv that hold the scores, such as prob_<class>."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Its figures by name; first the main one, by which models are compared, the higher the better and 1 at best."""

    @property
    def groups(self) -> list[str]:
        """Names of the strata that `strata` counts, for tables; none where these are cuts of a number."""
        return []

    @classmethod
    @abstractmethod
    def read(cls, name: str, cells: pd.DataFrame) -> tuple[Self, Truth]:
        """The target of some columns, and the truth of each row.

        Args:
            name: how the user called it.
            cells: its columns as text, index slide_id, "" where empty.

        Raises:
            CohortError: a cell that is not what this kind holds; the row is named by its slide_id.
            InputError: nothing to learn, such as one class only where the kind needs two.
        """

    def of_cells(self, name: str, cells: pd.DataFrame) -> Truth:
        """The truth of another cohort's rows, of which unlike by `read` nothing is learned.

        Args:
            name: how the user calls the target there.
            cells: as of `read`.

        Raises:
            CohortError: a cell that says something else than this target knows.
        """
        return type(self).read(name, cells)[1]

    @abstractmethod
    def texts(self, truth: Truth) -> list[str]:
        """The truth as the column `label` of predictions.csv writes it; "" for NaN."""

    @abstractmethod
    def of_texts(self, texts: Sequence[str]) -> Truth:
        """The reverse of `texts`; NaN for "" and for what this target does not know."""

    def fitted(self, truth: Truth) -> Self:
        """The target with what has to be learned from the training rows, such as the mean of a number."""
        return self

    def balance(self, truth: Truth) -> Tensor | None:
        """Weights that make the classes of the training rows count alike, as `losses` takes them; None without classes."""
        return None

    @abstractmethod
    def losses(self, logits: Tensor, truth: Tensor, balance: Tensor | None = None) -> Tensor:
        """The loss of each bag, float32 (b,), whose mean is the loss of the batch; 0 for a bag without a label.

        Args:
            logits: float (b, n_outputs).
            truth: float32 (b, width).
            balance: what `balance` gave for the training rows.
        """

    def can_judge(self, truth: Truth) -> bool:
        """Whether the loss of these rows depends on what a model says of them; without a label it does not."""
        return bool((~np.isnan(truth)).any())

    @abstractmethod
    def scores(self, logits: Tensor) -> Scores:
        """What is written of bags, from logits float64 (b, n_outputs)."""

    def comparable(self, scores: Scores, folds: NDArray[np.int64]) -> Scores:
        """The scores as `metrics` take them, from those of rows that the models of several folds scored.

        Args:
            scores: float64 (n, k).
            folds: of each row, int64 (n,); all 0 where one model scored them.
        """
        return scores

    @abstractmethod
    def predicted(self, scores: Scores) -> list[str]:
        """The column `predicted` of predictions.csv."""

    @abstractmethod
    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """What folds and resampling are balanced over, int64 (n,) from 0; -1 without a label."""

    def counts(self, truth: Truth) -> dict[str, int]:
        """How many rows there are of what the figures need rows of, by name; the rows of each group."""
        strata = self.strata(truth)
        found = np.bincount(strata[strata >= 0], minlength=len(self.groups))
        return {name: int(count) for name, count in zip(self.groups, found, strict=False)}

    def outcomes(self, truth: Truth, scores: Scores) -> Outcomes:
        """The yes/no questions that the scores answer with a probability, for ROC and calibration curves.

        Args:
            truth: labelled rows.
            scores: of these rows.
        """
        return {}

    def of_patient(self, truth: Truth) -> Truth:
        """One row of the truth of a patient's slides, (width,): `of_several` of them."""
        found: Truth = np.fmax.reduce(truth, axis=0)
        return found

    def branch(self, scores: Scores) -> NDArray[np.int64]:
        """Of a head with one branch of attention an output, the output that shows a bag, int64 (n,)."""
        return np.zeros(len(scores), dtype=np.int64)

    @abstractmethod
    def require(self, truth: Truth) -> None:
        """Refuses training rows from which it cannot be learned.

        Raises:
            InputError: what is missing.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """All that decides how logits are read, JSON types; without kind and name."""

    @classmethod
    @abstractmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Self:
        """The target of these facts, which may come from anywhere.

        Raises:
            ValueError: facts that make no sense; the key is named.
        """


def known(truth: Tensor) -> Tensor:
    """Which rows have a label, bool (b,)."""
    return ~torch.isnan(truth).any(dim=1)


def require_known(name: str, texts: Sequence[str], truth: Truth, names: Sequence[str]) -> None:
    """Refuses cells that a target of some names read nothing from.

    Raises:
        CohortError: what they say, and the names.
    """
    unknown = sorted({text for text, row in zip(texts, truth, strict=True) if text and np.isnan(row).all()})
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        message = (
            f"column {name!r} holds {shown}, the model knows {', '.join(names)};"
            " rename the labels, empty them, or pass another --label"
        )
        raise CohortError(message)


def warn_of_spellings(name: str, names: Sequence[str]) -> None:
    """Logs names that one word or one number was probably meant by, such as TRUE and True, or 02 and 2."""
    alike: dict[str | float, list[str]] = {}
    for one in names:
        number = number_of(one)
        alike.setdefault(one.casefold() if np.isnan(number) else number, []).append(one)
    found = [" and ".join(spellings) for spellings in alike.values() if len(spellings) > 1]
    if found:
        logger.warning(
            "column %r holds %s, which are learned as different; write them alike if they are the same",
            name,
            ", ".join(found),
        )


def folder_name(name: str) -> str:
    """The name of a target as that of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:_LONGEST] or "target"
