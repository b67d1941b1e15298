"""Whether a cohort is like the one that a model was made from: an alarm whose rate of false alarms is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from pathfm.files import sha256_text
from pathfm.metrics import Scored
from pathfm.proportions import SHAPE as PROPORTION_SHAPE
from pathfm.proportions import clustered_proportion, proportion
from pathfm.shift import FLAGGED, MEASURES, SAME_SCALE, not_available, require_one_width, values_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.proportions import Proportion
    from pathfm.reference import Reference

    Floats = NDArray[np.float64]

FALSE_ALARMS = 0.05
"""Share of cohorts like the reference that raise the alarm all the same."""
FEWEST_PATIENTS = 5
"""New patients below which no alarm is looked for."""

_TEST = {"p": float, "effect": float, "alarm": bool, "n_reference": int, "n": int}
SHAPE = {
    "available": bool,
    "why": (str, None),
    "n_reference": {"slides": int, "patients": int},
    "n": {"slides": int, "patients": int},
    "flagged": (PROPORTION_SHAPE, None),
    "flag_rate": float,
    "false_alarm_rate": float,
    **dict.fromkeys(MEASURES, (_TEST, None)),
    "alarm": (bool, None),
    "sentence": str,
    "notes": [str],
}
"""What `shift_block` gives, in the grammar of `tables.misfit`."""

_PERMUTATIONS = 999
_MOST = 2000  # patients of a side that are compared: the permutations multiply a matrix of all pairs
_LEAST_STD = 1e-6
_WORDS = {"embedding": "tissue", "colour": "stain", "mpp": "scale"}


def shift_block(reference: Reference | None, slides: Reference, table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The block "shift" of metrics.json.

    Of each measure (embedding, colour, mpp) a permutation test of the energy distance between the patients of the
    reference and the new ones (Székely, Rizzo, Journal of Statistical Planning and Inference 143:1249, 2013), one slide a
    patient, since slides of one hang together. Its level is exact where the patients are exchangeable. The alarm is
    raised where one p is at most 0.05 / 3 (Bonferroni), so at most 5 % of cohorts like the reference raise it.

    Args:
        reference: the slides that the model was made from, None where it has none.
        slides: those of the cohort.
        table: `shift_of` of the two; not read where nothing is available.
        seed: of the permutations.

    Returns:
        available and why not; the numbers of both; flagged, the share of slides that `shift_of` flags, of which 5 % are to
        be expected; of each measure p, effect (0 where both are alike, 1 where they have nothing in common, the energy
        coefficient) and alarm, None where too few know it; alarm; sentence; notes.
    """
    why = not_available(reference)
    if not why and not len(slides):
        why = "none of the slides has tissue"
    if why or reference is None:
        return _absent(reference, slides, why)
    require_one_width(reference, slides)
    ours, theirs = (_one_a_patient(side) for side in (reference, slides))
    few = len(theirs) < FEWEST_PATIENTS
    tests = {name: None if few else _test(name, ours, theirs, seed) for name in MEASURES}
    alarms = [name for name, one in tests.items() if one and one["alarm"]]
    flagged = _flagged(slides, table)
    return {
        "available": True,
        "why": None,
        **_numbers(reference, slides),
        "flagged": flagged,
        "flag_rate": FLAGGED,
        "false_alarm_rate": FALSE_ALARMS,
        **tests,
        "alarm": None if few else bool(alarms),
        "sentence": _sentence(alarms, flagged, few=few),
        "notes": _notes(slides, tests, few=few),
    }


def _absent(reference: Reference | None, slides: Reference, why: str) -> dict[str, Any]:
    return {
        "available": False,
        "why": why,
        **_numbers(reference, slides),
        "flagged": None,
        "flag_rate": FLAGGED,
        "false_alarm_rate": FALSE_ALARMS,
        **dict.fromkeys(MEASURES),
        "alarm": None,
        "sentence": f"Whether the slides are like those that the model was made from was not tested: {why}.",
        "notes": [],
    }


def _numbers(reference: Reference | None, slides: Reference) -> dict[str, Any]:
    sides = {"n_reference": reference, "n": slides}
    return {
        key: {"slides": len(one) if one else 0, "patients": len(set(one.patients)) if one else 0}
        for key, one in sides.items()
    }


def _one_a_patient(slides: Reference) -> Reference:
    """One slide of each patient, and of at most so many patients, chosen by their digests: any, but always the same."""
    order = sorted(range(len(slides)), key=lambda row: sha256_text(slides.slide_ids[row]))
    patients, first = slides.patients, dict[str, int]()
    for row in order:
        first.setdefault(patients[row], row)
    return slides.at([*first.values()][:_MOST])


def _test(name: str, reference: Reference, slides: Reference, seed: int) -> dict[str, Any] | None:
    """The test of one measure among the slides that know it; None where these are too few."""
    ours, theirs = (values_of(side)[name] for side in (reference, slides))
    ours, theirs = (side[np.isfinite(side).all(axis=1)] for side in (ours, theirs))
    if len(ours) < FEWEST_PATIENTS or len(theirs) < FEWEST_PATIENTS:
        return None
    p, effect = _energy_test(_distances(name, np.concatenate([ours, theirs])), len(theirs), seed)
    alarm = p <= FALSE_ALARMS / len(MEASURES)
    return {"p": p, "effect": effect, "alarm": alarm, "n_reference": len(ours), "n": len(theirs)}


def _distances(name: str, both: Floats) -> Floats:
    """Between all slides of both sides, float64 (n, n).

    Both are standardised together, so that which side a slide is of decides nothing. Scales are not: where all scans are
    alike their last digits would count.
    """
    if name == "mpp":
        apart = np.abs(both - both.T)
        return np.where(apart < SAME_SCALE, 0.0, apart)
    std = both.std(axis=0)
    scaled = (both - both.mean(axis=0)) / np.where(std > _LEAST_STD, std, np.inf)
    return np.asarray(euclidean_distances(scaled))


def _energy_test(distances: Floats, n_new: int, seed: int) -> tuple[float, float]:
    """The p-value and the energy coefficient of the last rows against the others.

    Args:
        distances: float64 (n, n) of all rows of both sides.
        n_new: how many of the last are new.
        seed: of the permutations.
    """
    n = len(distances)
    generator = np.random.default_rng(seed)
    is_new = np.zeros((1 + _PERMUTATIONS, n))
    is_new[0, n - n_new :] = 1.0
    is_new[1:] = generator.permuted(np.broadcast_to(is_new[0], (_PERMUTATIONS, n)), axis=1)
    of_rows = distances.sum(axis=1)
    within_new = np.einsum("bn,bn->b", is_new @ distances, is_new)
    across = is_new @ of_rows - within_new
    within_old = of_rows.sum() - 2 * across - within_new
    n_old = n - n_new
    between = 2 * across / (n_new * n_old)
    energy = between - within_new / n_new**2 - within_old / n_old**2
    as_large = int((energy[1:] >= energy[0] - 1e-9 * max(between[0], 1e-300)).sum())
    effect = float(np.clip(energy[0] / between[0], 0.0, 1.0)) if between[0] > 0 else 0.0
    return (1 + as_large) / (1 + _PERMUTATIONS), effect


def _flagged(slides: Reference, table: pd.DataFrame) -> Proportion:
    hit = table["flagged"].to_numpy(dtype=bool)
    names = sorted(set(slides.patients))
    if len(names) == len(hit):
        return proportion(int(hit.sum()), len(hit))
    codes = {name: code for code, name in enumerate(names)}
    patients = np.array([codes[name] for name in slides.patients], dtype=np.int64)
    alike = np.zeros(len(names), dtype=np.int64)
    nothing = np.zeros((len(hit), 1))
    scored = Scored(nothing.astype(np.float32), nothing, patients, alike, tuple(names))
    return clustered_proportion(hit, np.ones(len(hit), dtype=bool), scored)


def _sentence(alarms: list[str], flagged: Proportion, *, few: bool) -> str:
    share = f"{flagged['k']} of {flagged['n']} slides are flagged as unlike those that the model was made from"
    usual = f"{share}, where about {100 * FLAGGED:g} % are to be expected of slides like these"
    if few:
        return f"{usual}; fewer than {FEWEST_PATIENTS} patients are too few to say whether the cohort has shifted."
    if not alarms:
        return f"No shift of the cohort was seen; {usual}."
    what = " and ".join(_WORDS[name] for name in alarms)
    return (
        f"Shift: in {what} this cohort is not like the one that the model was made from, so figures and thresholds of that"
        f" one need not hold here; {usual}."
    )


def _notes(slides: Reference, tests: dict[str, dict[str, Any] | None], *, few: bool) -> list[str]:
    unknown = [] if few else [_WORDS[name] for name, one in tests.items() if one is None]
    nobody = slides.patient_ids.count("")
    notes = [f"shift was not tested in {' and '.join(unknown)}: too few slides say what it is"] if unknown else []
    if nobody:
        notes.append(
            f"the patients of {nobody} slides are not known: each counts as one of its own, which raises more false alarms"
            " where they share patients"
        )
    return notes
