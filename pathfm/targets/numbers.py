"""Numbers in the cells of a cohort table: read, written, and cut into groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = float(np.finfo(np.float32).max)
_ROWS_OF_GROUP = 10


def number_of(text: str) -> float:
    """The finite float32 that a cell writes; NaN for anything else."""
    try:
        value = float(text) if text.isascii() and "_" not in text else np.nan
    except ValueError:
        return np.nan
    return value if abs(value) < _LARGEST else np.nan


def plain(value: np.float32) -> str:
    """A float32 in the fewest digits that it reads back from, without a point where it is whole; "" for NaN."""
    return "" if np.isnan(value) else str(value).removesuffix(".0")


def cuts_of(values: NDArray[np.float32], n_groups: int) -> NDArray[np.float64]:
    """The n_groups - 1 quantiles that cut values, at least one, into groups of equal size, rising; none for no values."""
    shares = np.arange(1, n_groups) / n_groups
    return np.quantile(values.astype(np.float64), shares) if len(values) else np.zeros(0)


def quantile_groups(values: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Groups of about as many rows each, int64 (n,) from 0; fewer than `most` where some would hold under 10; -1 for NaN."""
    labelled = ~np.isnan(values)
    n_groups = int(np.clip(labelled.sum() // _ROWS_OF_GROUP, 1, most))
    groups = np.full(len(values), -1, dtype=np.int64)
    found = np.searchsorted(cuts_of(values[labelled], n_groups), values[labelled], side="right")
    groups[labelled] = np.unique(found, return_inverse=True)[1]  # without groups that nobody is in
    return groups
