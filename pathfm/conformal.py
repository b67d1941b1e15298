"""Sets of classes that hold the true one in a promised share of each class; where a set is not one class, the model abstains."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np

from pathfm.decisions import NEGATIVE, POSITIVE
from pathfm.proportions import SHAPE as PROPORTION_SHAPE
from pathfm.proportions import proportion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.proportions import Proportion
    from pathfm.targets import Classes, Scores, Truth

BETWEEN = "|"
"""Stands between the classes of a set in the column `set`; in the name of a class a backslash stands before it."""
SHAPE = {
    "coverage": float,
    "classes": {"*": PROPORTION_SHAPE},
    **dict.fromkeys(("overall", "abstained", "right_of_rest"), PROPORTION_SHAPE),
    "empty": int,
    "several": int,
    "notes": [str],
}
"""What `conformal_block` gives, in the grammar of `tables.misfit`."""

_SPECIAL = re.compile(r"([|\\])")
_MEMBER = re.compile(r"(?:[^|\\]|\\.)+", re.DOTALL)
_ROUNDING = 1e-9  # 20 x 0.95 is 19, whatever floats make of it


@dataclass(frozen=True)
class ConformalSets:
    """Class-conditional (Mondrian) split conformal prediction.

    The set of a patient holds each class whose non-conformity 1 - p, p being the probability of that class, is at most the
    quantile of that class. For a patient of class c, exchangeable with the calibration patients of class c, the chance
    that the set holds c is at least the coverage, and below coverage + 1 / (n_c + 1) where no two scores are equal (Vovk,
    Gammerman, Shafer 2005, Algorithmic Learning in a Random World, section 4.5; Angelopoulos & Bates 2023, section 4.2).

    Attributes:
        coverage: the share that was promised, within 0 and 1.
        classes: names, in the order of the columns of the scores.
        quantiles: of each class, within 0 and 1; infinite where it had too few patients, so that it is in every set.
        counts: calibration patients of each class.
    """

    coverage: float
    classes: tuple[str, ...]
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def fit(cls, target: Classes, truth: Truth, scores: Scores, coverage: float) -> Self:
        """The quantiles of some labelled rows, which no part of the model may have learned from.

        Args:
            target: says the classes.
            truth: float32 (n, 1), the index of the class; rows of NaN do not count.
            scores: float64 (n, k), probabilities, calibrated the way those will be that are asked for sets.
            coverage: the share of each class whose set is to hold it, within 0 and 1.
        """
        strata = target.strata(truth)
        misfits = [np.sort(1 - scores[strata == index, index]) for index in range(len(target.classes))]
        counts = tuple(len(one) for one in misfits)
        return cls(coverage, target.classes, tuple(_quantile(one, coverage) for one in misfits), counts)

    @property
    def uncalibrated(self) -> list[str]:
        """The classes that had too few patients, and so are in every set."""
        return [name for name, quantile in zip(self.classes, self.quantiles, strict=True) if math.isinf(quantile)]

    def sets(self, scores: Scores) -> NDArray[np.bool_]:
        """Which classes are possible, bool (n, k), of probabilities float64 (n, k)."""
        return np.asarray(1 - scores <= np.array(self.quantiles) + _ROUNDING, dtype=bool)

    def texts(self, scores: Scores) -> list[str]:
        """The column `set`: of each row its classes with "|" between, "" for none."""
        names = [_SPECIAL.sub(r"\\\1", name) for name in self.classes]
        return [
            BETWEEN.join(name for name, is_in in zip(names, row, strict=True) if is_in) for row in self.sets(scores)
        ]

    def facts(self) -> dict[str, Any]:
        """JSON types; the quantile of a class with too few patients is None."""
        quantiles = [None if math.isinf(one) else one for one in self.quantiles]
        return {"coverage": self.coverage, "quantiles": quantiles, "counts": list(self.counts)}

    @classmethod
    def of_facts(cls, target: Classes, facts: Any) -> Self:
        """The sets of these facts, which may come from anywhere.

        Raises:
            ValueError: facts that make no sense; the key is named.
        """
        k, known = len(target.classes), facts if isinstance(facts, dict) else {}
        coverage, quantiles, counts = (known.get(key) for key in ("coverage", "quantiles", "counts"))
        if not (_is_share(coverage) and 0 < coverage < 1):
            raise _no_sense("coverage", "between 0 and 1")
        if not (
            isinstance(quantiles, list) and len(quantiles) == k and all(q is None or _is_share(q) for q in quantiles)
        ):
            raise _no_sense("quantiles", f"a list of {k} numbers from 0 to 1")
        if not (isinstance(counts, list) and len(counts) == k and all(type(n) is int and n >= 0 for n in counts)):
            raise _no_sense("counts", f"a list of {k} whole numbers")
        whole = tuple(math.inf if one is None else float(one) for one in quantiles)
        return cls(float(coverage), target.classes, whole, tuple(counts))


def conformal_block(
    table: pd.DataFrame, target: Classes, coverage: float, fitted: Sequence[ConformalSets] = ()
) -> dict[str, Any]:
    """The block "conformal" of metrics.json: whether the promise was kept, and what it cost in patients left to others.

    Args:
        table: one row a patient who has scores, columns label and `set`, and `decision` where one question was decided;
            rows whose label is no class do not count.
        target: says the classes.
        coverage: what was promised.
        fitted: the sets that the column comes from, one a fold; they say which classes had too few patients.

    Returns:
        coverage; classes, of each the share of its patients whose set holds it; overall, the same of all; abstained, the
        share whose set is not one class, of these how many are empty and how many hold several; right_of_rest, of those
        with one class the share for which it is the true one; notes.
    """
    labels = [str(one) for one in table["label"]]
    sets = [members(str(one)) for one in table["set"].fillna("")]
    rows = [(label, one) for label, one in zip(labels, sets, strict=True) if label in target.classes]
    held = {name: [label in one for label, one in rows if label == name] for name in target.classes}
    classes = {name: proportion(sum(one), len(one)) for name, one in held.items()}
    single = [label in one for label, one in rows if len(one) == 1]
    return {
        "coverage": coverage,
        "classes": classes,
        "overall": proportion(sum(map(sum, held.values())), len(rows)),
        "abstained": proportion(len(rows) - len(single), len(rows)),
        "empty": sum(not one for _, one in rows),
        "several": sum(len(one) > 1 for _, one in rows),
        "right_of_rest": proportion(sum(single), len(single)),
        "notes": [*_too_few(fitted, coverage), *_broken(classes, coverage), *_contradicted(table, target)],
    }


def members(text: str) -> list[str]:
    """The classes of a cell of the column `set`."""
    return [re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL) for name in _MEMBER.findall(text)]


def _too_few(fitted: Sequence[ConformalSets], coverage: float) -> list[str]:
    names = sorted({name for one in fitted for name in one.uncalibrated})
    if not names:
        return []
    needed = math.ceil(coverage / (1 - coverage) - _ROUNDING)
    return [
        f"fewer than {needed} patients of class {', '.join(names)} to calibrate on: it is in every set, so the model"
        " abstains wherever another class is possible"
    ]


def _broken(classes: Mapping[str, Proportion], coverage: float) -> list[str]:
    """Promises that these patients speak against."""
    return [
        f"the sets hold class {name} in {share['k']} of its {share['n']} patients, fewer than the {100 * coverage:g} % that were"
        " promised allow: these patients differ from those that the sets were calibrated on; calibrate on patients of"
        " this site"
        for name, share in classes.items()
        if share["exact_high"] is not None and share["exact_high"] < coverage
    ]


def _contradicted(table: pd.DataFrame, target: Classes) -> list[str]:
    """Patients whose decision says otherwise than the one class of their set, where one question alone is decided.

    Its negative is the first class: of two the last is positive, and of a screening `decisions.negative_first` saw to it.
    """
    if "decision" not in table:
        return []
    known = table[table["label"].astype(str).isin(target.classes) & table["decision"].isin([POSITIVE, NEGATIVE])]
    sets = [members(str(one)) for one in known["set"].fillna("")]
    pairs = [(said, one[0]) for said, one in zip(known["decision"], sets, strict=True) if len(one) == 1]
    n = sum((said == NEGATIVE) != (name == target.classes[0]) for said, name in pairs)
    if not n:
        return []
    return [
        f"in {n} of {len(pairs)} patients whose set is one class the decision says otherwise, for it is by the operating point"
        " and the set by its coverage: show both, and leave these patients to a pathologist"
    ]


def _quantile(misfits: NDArray[np.float64], coverage: float) -> float:
    """The k-th smallest with k = ceil((n + 1) coverage), infinite where k is above n."""
    rank = math.ceil((len(misfits) + 1) * coverage - _ROUNDING)
    return float(misfits[rank - 1]) if rank <= len(misfits) else math.inf


def _is_share(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= 1


def _no_sense(key: str, wanted: str) -> ValueError:
    return ValueError(f"key 'conformal.{key}' is not {wanted}")
