"""Covariates: what the cohort table knows of a slide beside the picture, such as age, sex or site of biopsy, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from pathfm.errors import CohortError, InputError
from pathfm.progress import logger
from pathfm.targets.numbers import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.cohort import Cohort

MOST_LEVELS = 32
"""Categories of a column; one with more is an id or free text, of which a head learns patients by heart."""
_MOST_COLUMNS = 256


class Covariate(NamedTuple):
    """A column of the cohort table, and its categories in order; () for a number."""

    name: str
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Covariates:
    """Columns of the cohort table that join the head, and how their cells become numbers.

    A number stays as it is, for the head standardises it; a category becomes one number for each of its levels, 1 or 0.
    What is not known is NaN, which adds nothing to what the head says.

    Attributes:
        columns: in the order given.
    """

    columns: tuple[Covariate, ...]

    @classmethod
    def read(cls, cohort: Cohort, names: Sequence[str]) -> Self:
        """The covariates of these names: numbers where every cell that is not empty is one, categories otherwise.

        Args:
            cohort: the table.
            names: its columns; several may stand in one text with commas between.

        Raises:
            UnknownNameError: no such column.
            InputError: a name twice.
            CohortError: a column that is empty in every row, has one value only, or too many categories.
        """
        names = [word.strip() for one in names for word in ([one] if one in cohort.stated else one.split(","))]
        if len(set(names)) < len(names):
            message = f"--covariates names a column twice: {', '.join(names)}; keep one"
            raise InputError(message)
        cells = cohort.cells(names, "covariates")
        return cls(tuple(_column(cohort, name, sorted(set(cells[name]) - {""})) for name in names))

    @property
    def names(self) -> list[str]:
        """Of the numbers: a column's own, and column=level for each level."""
        return [f"{name}={level}" if level else name for name, levels in self.columns for level in levels or ("",)]

    @property
    def width(self) -> int:
        """How many numbers."""
        return len(self.names)

    def cells(self, cohort: Cohort) -> pd.DataFrame:
        """The cells of these columns as text, indexed by slide_id.

        Raises:
            CohortError: the table lacks one of them.
        """
        lacking = [one.name for one in self.columns if one.name not in cohort.stated]
        if lacking:
            message = (
                f"{cohort.source} lacks the column {' and '.join(lacking)}, which the model reads beside the slides;"
                " add it, cells that are not known may be empty"
            )
            raise CohortError(message)
        return cohort.cells([one.name for one in self.columns], "covariates")

    def encode(self, cells: pd.DataFrame) -> NDArray[np.float32]:
        """The numbers of such cells, float32 (n, width). A category nobody knows counts as not known, and is warned of.

        Raises:
            CohortError: a cell that is no number in a column of numbers; its row is named.
        """
        parts = [
            _categories(one, cells[one.name]) if one.levels else _numbers(one, cells[one.name]) for one in self.columns
        ]
        return np.concatenate(parts, axis=1)

    def facts(self) -> list[dict[str, Any]]:
        """As JSON; `of_facts` reads it."""
        return [{"name": name, "levels": list(levels)} for name, levels in self.columns]

    @classmethod
    def of_facts(cls, facts: Sequence[dict[str, Any]]) -> Self:
        """The covariates of such facts, which may come from anywhere: objects with a text `name` and texts `levels`.

        Raises:
            ValueError: none, or too many, of one name, or levels that are no different texts; the key is named.
        """
        columns = tuple(Covariate(one["name"], tuple(one["levels"])) for one in facts)
        if not 0 < len({one.name for one in columns}) == len(columns) <= _MOST_COLUMNS:
            message = f"key 'covariates' is not a list of up to {_MOST_COLUMNS} columns of different names"
            raise ValueError(message)
        for name, levels in columns:
            if len(levels) > MOST_LEVELS or "" in levels or len(set(levels)) < len(levels) or len(levels) == 1:
                message = f"key 'levels' of the covariate {name!r} is not a list of 2 to {MOST_LEVELS} different texts"
                raise ValueError(message)
        return cls(columns)


def _column(cohort: Cohort, name: str, known: Sequence[str]) -> Covariate:
    if len(known) < 2:
        what = "is empty in every row" if not known else f"holds nothing but {known[0]!r}"
        message = f"{cohort.source}: column {name!r} {what}; leave it out of --covariates, or fill it"
        raise CohortError(message)
    if not any(math.isnan(number_of(text)) for text in known):
        return Covariate(name)
    if len(known) > MOST_LEVELS:
        message = (
            f"{cohort.source}: column {name!r} holds {len(known)} different texts; a covariate has numbers alone, or"
            f" {MOST_LEVELS} categories at most: group them, or write the cells that are no numbers as empty"
        )
        raise CohortError(message)
    return Covariate(name, tuple(known))


def _numbers(column: Covariate, cells: pd.Series[str]) -> NDArray[np.float32]:
    values = [number_of(text) for text in cells]
    odd = next((at for at, value in enumerate(values) if math.isnan(value) and cells.iloc[at]), None)
    if odd is not None:
        message = (
            f"column {column.name!r} holds {cells.iloc[odd]!r} for slide {cells.index[odd]}, and is a number elsewhere;"
            " write one, with a point, or leave it empty"
        )
        raise CohortError(message)
    return np.array(values, dtype=np.float32).reshape(-1, 1)


def _categories(column: Covariate, cells: pd.Series[str]) -> NDArray[np.float32]:
    unknown = sorted(set(cells) - {"", *column.levels})
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        logger.warning(
            "column %r holds %s%s, of which the model knows nothing (it knows %s): taken as not known",
            column.name,
            ", ".join(unknown[:5]),
            more,
            ", ".join(column.levels),
        )
    encoded = np.array([[text == level for level in column.levels] for text in cells], dtype=np.float32)
    encoded = encoded.reshape(-1, len(column.levels))
    encoded[~cells.isin(column.levels).to_numpy()] = np.nan
    return encoded
