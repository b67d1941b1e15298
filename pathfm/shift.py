"""How far a slide is from those that a model was made from: in its embedding, its stain and its scale.

Three distances of a slide to its nearest slides of the reference, each held against those of the reference's own slides,
whose whole patient is left out for it, so that both are of slides whose patient the others do not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pathfm.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.reference import Reference

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

FEWEST, FEWEST_PATIENTS = 20, 10
"""Slides of the reference, and their patients, below which nothing is said; of a measure those of whom it is known."""
FLAGGED = 0.05
"""Share of slides like those of the reference that are flagged all the same."""
SAME_SCALE = 0.02
"""Difference of the logarithms of two scales, 2 %, below which scans count as of one scale: their last digits vary."""
MEASURES = ("embedding", "colour", "mpp")
_COLUMNS = {"embedding": "ood", "colour": "colour", "mpp": "mpp"}
_WORDS = {"embedding": "its tissue", "colour": "its stain", "mpp": "its scale"}
_NEAREST = 5
_LEAST_STD = 1e-6  # as of the heads: what varies less must not be blown up
_LEAST_SHARE = 0.1  # of the deviation of all slides, that without a patient may fall to
# What the spread of a distance counts as at least, where all slides of the reference are alike.
_LEAST_SPREAD = {"embedding": 1e-9, "colour": 1e-9, "mpp": SAME_SCALE}
_MOST_LEFT_OUT = 500  # patients whose slides the others are held against; more say nothing new
_BLOCK = 256
_ROUNDING = 1e-9  # two slides of one scale are as far, whatever floats make of it


@dataclass(frozen=True)
class _Distances:
    """Of each measure the distances of the reference's own slides, and of new ones; NaN where not known."""

    own: dict[str, Floats]
    new: dict[str, Floats]


def shift_of(reference: Reference | None, slides: Reference) -> pd.DataFrame:
    """How far each of some new slides is from those of the reference.

    A slide is flagged where the largest of its three distances, each in units of how it spreads over the reference, is
    beyond that of all but 5 % of the reference: p = (1 + reference slides as far) / (1 + reference slides) <= 0.05, a
    conformal p-value (Vovk, Gammerman, Shafer 2005), so that no more than 5 % of slides that are exchangeable with those
    of the reference are flagged. The embedding's distance is the mean to its 5 nearest after each number is divided by
    its deviation (k-NN: Sun et al. 2022, arXiv 2204.06507); that of the stain is the same of the optical density of the
    mean colour; that of the scale is the same of the logarithm of the microns per pixel.

    Args:
        reference: slides that the model was made from, None where it has none.
        slides: new slides, of embeddings of the same recipe.

    Returns:
        One row a slide: slide_id, patient_id; ood (of the embedding), colour and mpp, 1 - p of each distance, which is the
        share of the reference's slides that are nearer, NaN where not known; flagged; why, in words, "" where it is not
        flagged. Where `not_available` has a reason nothing is known and nothing flagged.

    Raises:
        ModelError: the reference is of embeddings of another width.
    """
    table = pd.DataFrame({"slide_id": list(slides.slide_ids), "patient_id": list(slides.patient_ids)})
    if reference is None or not_available(reference) or not len(slides):
        nothing = np.full(len(slides), np.nan)
        shares = dict.fromkeys(_COLUMNS.values(), nothing)
        return table.assign(**shares, flagged=np.zeros(len(slides), bool), why=[""] * len(slides))
    distances = _distances(reference, slides)
    own, new = (_in_spreads(distances.own, of) for of in (distances.own, distances.new))
    flagged = _p_values(_furthest(own), _furthest(new)) <= FLAGGED
    p_values = {name: _p_values(distances.own[name], distances.new[name]) for name in MEASURES}
    return table.assign(
        **{_COLUMNS[name]: 1 - p for name, p in p_values.items()},
        flagged=flagged,
        why=[_why(row, new, p_values) if is_flagged else "" for row, is_flagged in enumerate(flagged)],
    )


def not_available(reference: Reference | None) -> str:
    """Why nothing can be said of shift, "" where something can."""
    if reference is None:
        return "the model has no reference.safetensors, which holds the slides it was made from"
    n, n_patients = len(reference), len(set(reference.patients))
    if n < FEWEST or n_patients < FEWEST_PATIENTS:
        return (
            f"the model was made from {n} slides of {n_patients} patients, and what is usual takes at least {FEWEST} of"
            f" {FEWEST_PATIENTS}"
        )
    return ""


def optical_density(mean_rgb: NDArray[np.float32]) -> Floats:
    """Of colours in 0-255, float64 of the same shape: -log10(c / 255) a channel, in which stain adds up (Beer, Lambert)."""
    return np.asarray(-np.log10(np.maximum(mean_rgb.astype(np.float64), 1.0) / 255.0))


def values_of(slides: Reference) -> dict[str, Floats]:
    """Of each measure the numbers of each slide, float64 (n, columns); NaN where not known."""
    return {
        "embedding": slides.embeddings.astype(np.float64),
        "colour": optical_density(slides.mean_rgb),
        "mpp": np.log(slides.mpp)[:, None],
    }


def require_one_width(reference: Reference, slides: Reference) -> None:
    """Refuses a reference of other embeddings than the slides have.

    Raises:
        ModelError: both widths.
    """
    widths = [one.embeddings.shape[1] for one in (reference, slides)]
    if widths[0] != widths[1]:
        message = f"the model's reference is of embeddings of width {widths[0]}, these have {widths[1]}; train the model again"
        raise ModelError(message)


def _distances(reference: Reference, slides: Reference) -> _Distances:
    require_one_width(reference, slides)
    patients = pd.factorize(np.array(reference.patients, dtype=object))[0].astype(np.int64)
    ours, theirs = values_of(reference), values_of(slides)
    own, new = {}, {}
    for name in MEASURES:
        least = SAME_SCALE if name == "mpp" else 0.0
        own[name], new[name] = _nearest_distances(ours[name], patients, theirs[name], least)
    return _Distances(own, new)


def _nearest_distances(ours: Floats, patients: Integers, theirs: Floats, least: float) -> tuple[Floats, Floats]:
    """Mean distances to the nearest slides of the reference: of its own, the slides of their patient left out, and of new.

    Args:
        ours: float64 (n, columns); rows with NaN are not known.
        patients: int64 (n,), whose each slide is.
        theirs: float64 (m, columns).
        least: distance below which two slides count as alike, in the unit of the columns; 0 has each column divided by
            its deviation over the reference, of its own slides without the patient.
    """
    known, asked = (np.isfinite(one).all(axis=1) for one in (ours, theirs))
    own, new = np.full(len(ours), np.nan), np.full(len(theirs), np.nan)
    if known.sum() < FEWEST or len(np.unique(patients[known])) < FEWEST_PATIENTS:
        return own, new
    centre, std = ours[known].mean(axis=0), np.ones(ours.shape[1]) if least else _std(ours[known])
    x, codes = (ours[known] - centre) / std, patients[known]
    alike = np.ones((1, x.shape[1]))
    for rows in _blocks(np.flatnonzero(asked)):
        new[rows] = _k_nearest(_squares((theirs[rows] - centre) / std, x, alike), least)
    places = np.flatnonzero(known)
    for rows in _blocks(_some_of(codes)):
        weights = alike if least else _weights_without(x, codes, codes[rows])
        squares = _squares(x[rows], x, weights)
        squares[codes[rows][:, None] == codes] = np.inf
        own[places[rows]] = _k_nearest(squares, least)
    return own, new


def _blocks(rows: Integers) -> list[Integers]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _std(x: Floats) -> Floats:
    std = x.std(axis=0)
    return np.where(std > _LEAST_STD, std, 1.0)


def _some_of(codes: Integers) -> Integers:
    """The rows of all patients, or of as many as are enough, spread evenly."""
    patients = np.unique(codes)
    places = np.linspace(0, len(patients) - 1, min(len(patients), _MOST_LEFT_OUT)).astype(np.int64)
    return np.flatnonzero(np.isin(codes, patients[places])).astype(np.int64)


def _weights_without(x: Floats, codes: Integers, left_out: Integers) -> Floats:
    """Of each patient that is left out one over the variances of the others, float64 (b, columns); those of all are 1.

    A new slide is no part of the deviation that divides it, so a slide of the reference must not be either: in many
    columns with few slides that alone would make every new slide look far.
    """
    member = np.zeros((len(left_out), len(codes)))
    member[left_out[:, None] == codes] = 1.0
    count = len(codes) - member.sum(axis=1, keepdims=True)
    total, squares = x.sum(axis=0) - member @ x, (x**2).sum(axis=0) - member @ x**2
    variance = squares / count - (total / count) ** 2
    return np.asarray(1.0 / np.maximum(variance, _LEAST_SHARE**2))


def _squares(rows: Floats, x: Floats, weights: Floats) -> Floats:
    """Squared distances of rows to all of x, float64 (b, n).

    Args:
        rows: float64 (b, columns).
        x: float64 (n, columns).
        weights: of the columns, float64 (b, columns), or (1, columns) where they are those of all rows.
    """
    weighted = weights * rows
    squares = (weighted * rows).sum(axis=1, keepdims=True) + weights @ (x**2).T - 2 * weighted @ x.T
    return np.asarray(np.maximum(squares, 0.0))


def _k_nearest(squares: Floats, least: float) -> Floats:
    """The mean of the smallest distances of each row; those below the least count as 0."""
    k = min(_NEAREST, squares.shape[1])
    nearest = np.sqrt(np.partition(squares, k - 1, axis=1)[:, :k])
    return np.asarray(np.where(nearest < least, 0.0, nearest).mean(axis=1))


def _in_spreads(own: dict[str, Floats], of: dict[str, Floats]) -> Floats:
    """Distances of each measure from the median of the reference, in its median deviations; float64 (n, measures)."""
    columns = []
    for name in MEASURES:
        known = own[name][np.isfinite(own[name])]
        if not len(known):
            columns.append(np.full(len(of[name]), np.nan))
            continue
        middle = np.median(known)
        columns.append((of[name] - middle) / max(float(np.median(np.abs(known - middle))), _LEAST_SPREAD[name]))
    return np.stack(columns, axis=1)


def _furthest(spreads: Floats) -> Floats:
    """The largest of the measures that are known; that of the embedding always is."""
    return np.asarray(np.fmax.reduce(spreads, axis=1))


def _p_values(own: Floats, new: Floats) -> Floats:
    """The share of the reference's slides, a new one itself among them, that are at least as far; NaN where not known."""
    known = np.sort(own[np.isfinite(own)])
    if not len(known):
        return np.full(len(new), np.nan)
    as_far = len(known) - np.searchsorted(known, new - _ROUNDING, side="left")
    return np.asarray(np.where(np.isfinite(new), (1 + as_far) / (1 + len(known)), np.nan))


def _why(row: int, spreads: Floats, p_values: dict[str, Floats]) -> str:
    """The measures in which it is far, the furthest first."""
    order = np.argsort(-np.nan_to_num(spreads[row], nan=-np.inf), kind="stable")
    names = [MEASURES[place] for place in order]
    far = [names[0], *(name for name in names[1:] if p_values[name][row] <= FLAGGED)]
    return f"{' and '.join(_WORDS[name] for name in far)} {'is' if len(far) == 1 else 'are'} unlike what the model was made from"
