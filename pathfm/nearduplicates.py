"""Slides that look like one scan under two names: compressed again, cropped, rescaled, turned, or scanned a second time.

Two things have to speak for it, for each alone is wrong too often. The hash of the overview (`thumbnailhash`) tells where
the tissue lies on the glass, and pieces of like shape share it. The mean embedding tells what the tissue is like, but its
cosine between different slides is often above 0.999 as it comes, so it is standardised over all slides at hand first.
docs/leakage.md says what this has been seen to catch, and what it does not catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pathfm.thumbnailhash import turned_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pathfm.reference import Reference

MOST_BITS, CLOSE_BITS = 10, 5
"""Bits of 63 that may differ between the hashes of one slide, in the best of the eight ways to lay it, and often do."""
LEAST_COSINE, LEAST_CLOSE_COSINE = 0.9, 0.5
"""Between the standardised mean embeddings of one slide; and where the hashes are close, as of a scan by another scanner."""
LEAST_SLIDES = 3
"""With fewer slides, standardised embeddings say nothing: those of two are always opposite."""
_BLOCK = 1024
_ROUNDING = 1e-6  # of a number: what varies less does not vary


class Pair(NamedTuple):
    """Two slides that are too much alike: their ids, the bits that differ, and the cosine of their embeddings."""

    first: str
    second: str
    bits: int
    cosine: float


def near_duplicates(first: Reference, second: Reference | None = None) -> list[Pair]:
    """The pairs of slides that look like one scan, the most alike first.

    Slides of which no hash is known are in no pair; `without_hash` counts them.

    Args:
        first: slides with the means of their embeddings.
        second: others of the same recipe, to be held against the first; None for pairs among the first.
    """
    others = first if second is None else second
    mine, theirs = _with_hash(first), _with_hash(others)
    pool = first.embeddings if second is None else np.concatenate([first.embeddings, second.embeddings])
    if len(pool) < LEAST_SLIDES or not len(mine) or not len(theirs):
        return []
    middle, spread = _centre_and_spread(pool)
    of_mine, of_theirs = ((one.embeddings - middle) / spread for one in (first, others))
    found = []
    for row, column, bits in _close_hashes(first, mine, others, theirs):
        if second is None and row >= column:
            continue
        cosine = _cosine(of_mine[row], of_theirs[column])
        if cosine >= (LEAST_CLOSE_COSINE if bits <= CLOSE_BITS else LEAST_COSINE):
            found.append(Pair(first.slide_ids[row], others.slide_ids[column], bits, cosine))
    return sorted(found, key=lambda pair: (pair.bits, -pair.cosine, pair.first, pair.second))


def without_hash(reference: Reference) -> int:
    """How many of the slides have no hash, so that their copies cannot be known."""
    return len(reference.slide_ids) - len(_with_hash(reference))


def _with_hash(reference: Reference) -> NDArray[np.int64]:
    return np.flatnonzero([bool(one) for one in reference.thumbnail_hashes])


def _close_hashes(
    first: Reference, mine: NDArray[np.int64], second: Reference, theirs: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """(row of the first, row of the second, bits that differ) of hashes that may be of one slide.

    Only the second is turned: what is left of a way to lay one slide is a way to lay the other.
    """
    still = turned_hashes([first.thumbnail_hashes[row] for row in mine])[:, 0]
    turned = turned_hashes([second.thumbnail_hashes[row] for row in theirs])
    for start in range(0, len(mine), _BLOCK):
        for other in range(start if first is second else 0, len(theirs), _BLOCK):
            block = still[start : start + _BLOCK, None]
            ways = [
                np.bitwise_count(block ^ turned[None, other : other + _BLOCK, way]) for way in range(turned.shape[1])
            ]
            bits = np.minimum.reduce(ways)
            for row, column in np.argwhere(bits <= MOST_BITS).tolist():
                yield int(mine[start + row]), int(theirs[other + column]), int(bits[row, column])


def _centre_and_spread(pool: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each number of an embedding its mean and deviation over the slides, float64 (dim,); 1 where all are the same."""
    middle, spread = pool.mean(axis=0, dtype=np.float64), pool.std(axis=0, dtype=np.float64)
    return middle, np.where(spread > _ROUNDING * np.abs(middle), spread, 1.0)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of two embeddings in the middle of all slides, which point nowhere, 1 where they are the same."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else float(np.array_equal(one, other))
