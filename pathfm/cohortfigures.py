"""What a predictions table is worth: the figures of a target by slide and by patient, and the caveats to go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.delong import delong, delong_difference
from pathfm.metrics import FEW_PATIENTS, RESAMPLES, Figure, Scored, difference, figures
from pathfm.words import words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.delong import Paired
    from pathfm.metrics import Booleans, Floats, Integers
    from pathfm.patients import Unit
    from pathfm.targets import Scores, Target, Truth


def cohort_figures(predictions: pd.DataFrame, target: Target, unit: Unit = "slide", seed: int = 0) -> dict[str, Any]:
    """The blocks "slide", "patient", "interval" and "warnings" of metrics.json.

    The figures are those of `target.metrics`, of survival over the pairs of patients of one fold. The scores of a patient
    are the means over its slides, its label is that of `target.of_patient`. Rows without a label or a score are left out.
    A figure that cannot be computed is null and a warning says why. Patients of a target with one yes/no question have
    "auroc_delong" beside the AUROC, whose interval does not come from resamples.

    Args:
        predictions: a predictions table: columns slide_id, patient_id, label and `target.names`; fold, where each fold
            was scored by a model of its own; where it has a column `repeat`, every slide stands in it once a repeat, and
            figures are means over the repeats.
        target: what was asked.
        unit: what a row is; of patients there is no block "slide".
        seed: of the resampling.
    """
    (slides,) = _aligned([predictions], target)
    patients = [by_patient(one, target) for one in slides]
    by_class = ", stratified by class" if target.groups else ""
    repeats = f", mean over {len(slides)} repeats" if len(slides) > 1 else ""
    of_patients = _block(patients, target, seed) | _delong(patients, target)
    return {
        "slide": _block(slides, target, seed) if unit == "slide" else None,
        "patient": of_patients,
        "interval": f"95 % BCa bootstrap by patient{by_class}, {RESAMPLES} resamples, seed {seed}{repeats}",
        "warnings": _warnings(slides[0], patients[0], of_patients, target),
    }


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, target: Target, seed: int = 0) -> Figure:
    """The main figure by patient of the first predictions minus that of the second, over the rows that both score.

    Args:
        first: a predictions table as `cohort_figures` takes it.
        second: another of the same cohort and label.
        target: what both were asked.
        seed: of the resampling, which draws the same patients for both.
    """
    one, other = ([by_patient(slides, target) for slides in part] for part in _aligned([first, second], target))
    return difference(one, other, next(iter(target.metrics.values())), seed)


def paired_delong(first: pd.DataFrame, second: pd.DataFrame, target: Target) -> Paired | None:
    """DeLong's difference of the AUROC by patient of two predictions, and its p value; None unless one question is asked.

    Args:
        first: as `paired_difference` takes it.
        second: another of the same cohort and label.
        target: what both were asked.
    """
    one, other = (
        _one_question([by_patient(slides, target) for slides in part], target)
        for part in _aligned([first, second], target)
    )
    return None if one is None or other is None else delong_difference(one[0], one[1], other[1])


def scored_slides(predictions: pd.DataFrame, target: Target) -> Scored:
    """The rows of a predictions table that have a known label and every score, in the table's order.

    Its scores are those that the target's metrics take: `Target.comparable` of the column fold, where there is one.
    """
    rows = predictions[is_scored(predictions, target)]
    truth = _truth(rows, target)
    codes, names = pd.factorize(rows["patient_id"].astype(str), sort=True)
    patients = codes.astype(np.int64)
    folds = pd.factorize(rows["fold"] if "fold" in rows else np.zeros(len(rows)))[0].astype(np.int64)
    scores = target.comparable(_scores(rows, target), folds)
    return Scored(truth, scores, patients, _strata(truth, patients, target), tuple(names))


def is_scored(predictions: pd.DataFrame, target: Target) -> Booleans:
    """Which rows have a label that the target knows and every score, bool (n,)."""
    finite = np.isfinite(_scores(predictions, target)).all(axis=1)
    return np.asarray(finite & ~np.isnan(_truth(predictions, target)).any(axis=1), dtype=bool)


def by_patient(slides: Scored, target: Target) -> Scored:
    """One row a patient: the means of its slides' scores, and the label that they make together."""
    count = np.bincount(slides.patients, minlength=len(slides.strata))
    sums = np.zeros((len(slides.strata), slides.scores.shape[1]))
    np.add.at(sums, slides.patients, slides.scores)
    everyone = np.arange(len(slides.strata), dtype=np.int64)
    truth = _of_patients(slides.truth, slides.patients, target)
    return Scored(truth, sums / count[:, None], everyone, slides.strata, slides.names)


def _aligned(tables: Sequence[pd.DataFrame], target: Target) -> list[list[Scored]]:
    """Of each table its repeats, all of them with the same rows in the same order: those that every one scores."""
    parts = [
        [part for _, part in table.groupby("repeat")] if "repeat" in table and len(table) else [table]
        for table in tables
    ]
    scored = [[part[is_scored(part, target)].set_index("slide_id") for part in repeats] for repeats in parts]
    slides = scored[0][0].index
    for part in (one for repeats in scored for one in repeats):
        slides = slides[slides.isin(part.index)]
    return [[scored_slides(part.loc[slides], target) for part in repeats] for repeats in scored]


def _truth(rows: pd.DataFrame, target: Target) -> Truth:
    """The labels as truth; of a table read back with numbers, 1, 1.0 and "1" are one label."""
    return target.of_texts([_text(label) for label in rows["label"]])


def _text(label: Any) -> str:
    if not isinstance(label, float):
        return str(label)
    if np.isnan(label):
        return ""
    return str(int(label)) if label.is_integer() else str(label)


def _scores(rows: pd.DataFrame, target: Target) -> Scores:
    columns = [pd.to_numeric(rows[name], errors="coerce") for name in target.names]
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _of_patients(truth: Truth, patients: Integers, target: Target) -> Truth:
    """The truth of each patient, float32 (p, width), from that of the slides."""
    order = np.argsort(patients, kind="stable")
    starts = np.flatnonzero(np.diff(patients[order], prepend=-1))
    parts = np.split(truth[order], starts[1:]) if len(truth) else []
    return np.array([target.of_patient(part) for part in parts], dtype=np.float32).reshape(-1, target.width)


def _strata(truth: Truth, patients: Integers, target: Target) -> Integers:
    """What the resampling is stratified by: classes, which figures need rows of, but not cuts of a number."""
    of_patients = _of_patients(truth, patients, target)
    return target.strata(of_patients) if target.groups else np.zeros(len(of_patients), dtype=np.int64)


def _block(repeats: Sequence[Scored], target: Target, seed: int) -> dict[str, Any]:
    truth = repeats[0].truth
    return {**figures(repeats, target.metrics, seed), "n": len(truth), "n_by_class": target.counts(truth)}


def _delong(repeats: Sequence[Scored], target: Target) -> dict[str, Figure]:
    asked = _one_question(repeats, target)
    return {} if asked is None else {"auroc_delong": delong(*asked)}


def _one_question(repeats: Sequence[Scored], target: Target) -> tuple[Booleans, Floats] | None:
    """Of a target whose AUROC is that of one yes/no question, which rows are positive, (n,), and scores, (repeats, n)."""
    each = [list(target.outcomes(one.truth, one.scores).values()) for one in repeats]
    if "auroc" not in target.metrics or len(each[0]) != 1:
        return None
    return each[0][0][0], np.stack([score for ((_, score),) in each])


def _warnings(slides: Scored, patients: Scored, block: dict[str, Any], target: Target) -> list[str]:
    return [*_mixed(slides, patients, target), *_thin(block, target), *_perfect(block, target)]


def _mixed(slides: Scored, patients: Scored, target: Target) -> list[str]:
    mixed = np.unique(slides.patients[(slides.truth != patients.truth[slides.patients]).any(axis=1)])
    if not len(mixed):
        return []
    texts = target.texts(patients.truth)
    names = ", ".join(f"{slides.names[i]} as {texts[i]}" for i in mixed[:5])
    more = f" and {len(mixed) - 5} more" if len(mixed) > 5 else ""
    return [f"patients with slides of different labels count as {target.of_several}: {names}{more}"]


def _thin(block: dict[str, Any], target: Target) -> list[str]:
    """Figures that are null, and classes with few in them. Percentile intervals are too narrow in small samples."""
    counts, what = block["n_by_class"], "class " if target.groups else ""
    nobody = [name for name, count in counts.items() if count == 0]
    few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW_PATIENTS]
    null = [words_of(name).name for name in target.metrics if block[name]["value"] is None]
    lines = []
    if nobody:
        lines.append(f"no scored patient of {what}{', '.join(nobody)}: figures that need one cannot be computed")
    elif null:
        lines.append(f"{', '.join(null)} cannot be computed: the scored patients or their scores are too much alike")
    if few:
        lines.append(
            f"fewer than {FEW_PATIENTS} patients of {what}{', '.join(few)}: the intervals are rough and too narrow"
        )
    if not counts and block["n"] < FEW_PATIENTS:
        lines.append(f"fewer than {FEW_PATIENTS} patients ({block['n']}): the intervals are rough and too narrow")
    return lines


def _perfect(block: dict[str, Any], target: Target) -> list[str]:
    name = next(iter(target.metrics))
    value = block[name]["value"]
    if value is None or value < 1.0:
        return []
    smallest = min(block["n_by_class"].values(), default=block["n"])
    where = " in the smallest class" if target.groups else ""
    return [
        f"the {words_of(name).name} by patient is 1, so resampling gives it an interval without width; "
        f"with {smallest} patients{where} the true value may well be lower"
    ]
