"""What a predictions table is worth: the figures of a target by slide and by patient, and the caveats to go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pathfm.delong import delong, delong_difference
from pathfm.metrics import FEW_PATIENTS, RESAMPLES, Figure, Scored, difference, figures
from pathfm.patients import BETWEEN
from pathfm.words import words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.delong import Paired
    from pathfm.metrics import Booleans, Floats, Integers
    from pathfm.patients import Unit
    from pathfm.targets import Scores, Target, Truth


def cohort_figures(predictions: pd.DataFrame, target: Target, unit: Unit = "slide", seed: int = 0) -> dict[str, Any]:
    """The blocks "slide", "patient", "interval" and "warnings" of metrics.json.

    The figures are those of `target.metrics`, of survival over the pairs of patients of one fold. Of slides those count
    that have a label and a score, of patients those of `patient_rows` that have both.
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
    (repeated,) = _aligned([predictions], target)
    slides = [scored_slides(one, target) for one in repeated]
    patients = [scored_patients(one, target) for one in repeated]
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
    one, other = ([scored_patients(rows, target) for rows in part] for part in _aligned([first, second], target))
    return difference(one, other, next(iter(target.metrics.values())), seed)


def paired_delong(first: pd.DataFrame, second: pd.DataFrame, target: Target) -> Paired | None:
    """DeLong's difference of the AUROC by patient of two predictions, and its p value; None unless one question is asked.

    Args:
        first: as `paired_difference` takes it.
        second: another of the same cohort and label.
        target: what both were asked.
    """
    one, other = (
        _one_question([scored_patients(rows, target) for rows in part], target)
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


def scored_patients(predictions: pd.DataFrame, target: Target) -> Scored:
    """The patients of `patient_rows` that have a known label and every score, one row each, sorted by name."""
    return by_patient(scored_slides(patient_rows(predictions, target), target), target)


def patient_rows(predictions: pd.DataFrame, target: Target) -> pd.DataFrame:
    """One row a patient, a predictions table like that of a model of patients, in the order of their first slides.

    Whatever is said of patients, figures or decisions, is said of these rows. The scores are the means over all slides
    that have scores, whether labelled or not: nobody knows labels where a model is used, so a mean over the labelled
    slides alone would be a figure of something that cannot be done. The label is `Target.of_patient` of all labelled
    slides, whether scored or not: a slide that could not be read makes nobody healthy. slide_id holds the slides with ";"
    between, n_tiles is their sum. A slide of a patient that nobody knows ("") is a patient of its own. A patient without
    a scored slide has no scores, and the reason of the first slide.

    Args:
        predictions: rows of slides, or of patients, which come back one for one; each slide once.
        target: what was asked.
    """
    own = [str(patient) or (place,) for place, patient in enumerate(predictions["patient_id"])]
    codes, _ = pd.factorize(pd.Series(own, dtype=object))
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(codes) else []
    scores, truth = _scores(predictions, target), _truth(predictions, target)
    means = np.array([_mean(scores[at]) for at in groups]).reshape(-1, len(target.names))
    slides = [str(one) for one in predictions["slide_id"]]
    rows = predictions.iloc[[at[0] for at in groups]].reset_index(drop=True)
    joined: dict[str, Any] = {
        "slide_id": [BETWEEN.join(slides[place] for place in at) for at in groups],
        "label": target.texts(np.array([target.of_patient(truth[at]) for at in groups]).reshape(-1, target.width)),
    }
    if "n_tiles" in predictions:
        tiles = np.asarray(predictions["n_tiles"])
        joined["n_tiles"] = [int(tiles[at].astype(np.int64).sum()) for at in groups]
    if "reason" in predictions:
        reasons = list(predictions["reason"])
        joined["reason"] = [min((reasons[place] for place in at), key=bool) for at in groups]
    return rescored(rows.assign(**joined), target, means)


def rescored(table: pd.DataFrame, target: Target, scores: Scores) -> pd.DataFrame:
    """A predictions table with other scores, float64 (n, k), and the column `predicted` that goes with them."""
    known = np.isfinite(scores).all(axis=1)
    predicted = np.full(len(table), "", dtype=object)
    predicted[known] = target.predicted(scores[known])
    columns = {name: scores[:, place] for place, name in enumerate(target.names)}
    return table.assign(predicted=predicted, **columns)


def is_scored(predictions: pd.DataFrame, target: Target) -> Booleans:
    """Which rows have a label that the target knows and every score, bool (n,)."""
    return np.asarray(_has_scores(predictions, target) & _has_label(predictions, target), dtype=bool)


def by_patient(slides: Scored, target: Target) -> Scored:
    """One row a patient: the means of its slides' scores, and the label that they make together."""
    count = np.bincount(slides.patients, minlength=len(slides.strata))
    sums = np.zeros((len(slides.strata), slides.scores.shape[1]))
    np.add.at(sums, slides.patients, slides.scores)
    everyone = np.arange(len(slides.strata), dtype=np.int64)
    truth = _of_patients(slides.truth, slides.patients, target)
    return Scored(truth, sums / count[:, None], everyone, slides.strata, slides.names)


def _aligned(tables: Sequence[pd.DataFrame], target: Target) -> list[list[pd.DataFrame]]:
    """Of each table its repeats, all with the same rows in the same order; scores and labels stay where every one has them."""
    parts = [
        [part for _, part in table.groupby("repeat")] if "repeat" in table and len(table) else [table]
        for table in tables
    ]
    indexed = [[part.set_index("slide_id") for part in repeats] for repeats in parts]
    slides = indexed[0][0].index
    for part in (one for repeats in indexed for one in repeats):
        slides = slides[slides.isin(part.index)]
    same = [[part.loc[slides].reset_index() for part in repeats] for repeats in indexed]
    every = [part for repeats in same for part in repeats]
    known = np.logical_and.reduce([_has_scores(part, target) for part in every])
    labelled = np.logical_and.reduce([_has_label(part, target) for part in every])
    return [[_blanked(part, target, known, labelled) for part in repeats] for repeats in same]


def _blanked(rows: pd.DataFrame, target: Target, known: Booleans, labelled: Booleans) -> pd.DataFrame:
    """Rows without the scores, and without the labels, of those that are not among these, bool (n,) each."""
    scores = {name: rows[name].where(known) for name in target.names}
    return rows.assign(label=rows["label"].where(labelled, ""), **scores)


def _has_scores(rows: pd.DataFrame, target: Target) -> Booleans:
    return np.asarray(np.isfinite(_scores(rows, target)).all(axis=1), dtype=bool)


def _has_label(rows: pd.DataFrame, target: Target) -> Booleans:
    return np.asarray(~np.isnan(_truth(rows, target)).any(axis=1), dtype=bool)


def _mean(scores: Scores) -> Floats:
    known = scores[np.isfinite(scores).all(axis=1)]
    return np.asarray(known.mean(axis=0) if len(known) else np.full(scores.shape[1], np.nan))


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
    text_of = dict(zip(patients.names, target.texts(patients.truth), strict=True))
    said = [text_of[slides.names[patient]] for patient in slides.patients]
    mixed = np.unique(slides.patients[(slides.truth != target.of_texts(said)).any(axis=1)])
    if not len(mixed):
        return []
    names = ", ".join(f"{slides.names[i]} as {text_of[slides.names[i]]}" for i in mixed[:5])
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
