"""The leakage guard: what may not stand on both sides of a split, nor in the training of a model and in its test.

A patient, a scan by its digest, two scans that look like one, and a site where the split keeps sites apart. What is found
stops the run. What could not be looked for is said in the block "leakage" of metrics.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pathfm.errors import LeakageError
from pathfm.nearduplicates import LEAST_SLIDES, near_duplicates, without_hash
from pathfm.patients import slides_of_bag
from pathfm.progress import logger
from pathfm.proven import name_some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pathfm.folds import Split
    from pathfm.labelled import LabelledSlides
    from pathfm.model import Model
    from pathfm.nearduplicates import Pair
    from pathfm.patients import Unit
    from pathfm.reference import Reference

SHAPE = {"checked": [str], "not_checked": [{"what": str, "why": str}]}
"""Of the block "leakage" of metrics.json, in the grammar of `tables.misfit`."""
PATIENT, DIGEST, NEAR_DUPLICATE, SITE = "patient", "slide digest", "near-duplicate", "site"
_SITE_UNASKED = "the split is by patient, so a site may stand on both sides"


def require_no_leak(
    slides: LabelledSlides, sides: Sequence[pd.Series[Any]], reference: Reference, split: Split = "patient"
) -> dict[str, Any]:
    """Refuses a cohort of which something stands on both sides of a cut; the block "leakage" of metrics.json.

    Args:
        slides: the cohort.
        sides: of each cut, such as of each repeat of a cross-validation, the side of each row of the table: its fold, or
            "train", "val" or "test"; a missing one and "" are no side.
        reference: the usable slides of the cohort.
        split: "site" where the cut is to keep sites apart.

    Raises:
        LeakageError: what stands on both sides, by name, and what to do.
    """
    table, pairs = _by_slide(slides), near_duplicates(reference)
    for side in sides:
        of_bag = dict(zip(slides.table["slide_id"], side, strict=True))
        placed = table.assign(side=[of_bag[bag] for bag in table["bag"]])
        placed = placed[placed["side"].notna()]
        placed = placed[placed["side"] != ""]
        _require_one_side(placed, "patient_id", "patient", "a patient stands on one side only: give its rows one split")
        _require_one_side(placed, "slide_digest", "scan", "keep one row of it, or give its rows one patient_id")
        if split == "site":
            each = placed.explode("sites").rename(columns={"sites": "site"})
            _require_one_side(each, "site", "site", "--split site keeps sites apart: put its patients into one split")
        _require_apart(dict(zip(placed["slide_id"], placed["side"], strict=True)), pairs)
    by_patient = [_Blind(SITE, _SITE_UNASKED, entirely=True)] if split != "site" else []
    return _block([*_blind_digests(_digests(slides)), *_blind_pairs(reference), *by_patient])


def require_unseen(
    source: Path,
    folder: Path,
    model: Model,
    slides: LabelledSlides,
    seen: Reference | None,
    reference: Reference,
    split: Split = "patient",
) -> dict[str, Any]:
    """Refuses a cohort of which the training of a model has seen something; the block "leakage" of metrics.json.

    Patients are known by id, scans by digest, or by slide_id where the file then or now states none, or one of another
    kind.

    Args:
        source: the cohort table, for the message.
        folder: the model directory, for the message.
        model: the model.
        slides: the cohort.
        seen: the reference of the model, None where it has none.
        reference: the usable slides of the cohort.
        split: "site" where sites of the training may not be in the cohort either.

    Raises:
        LeakageError: what both share, by name.
    """
    table = _by_slide(slides)
    same = _seen_slides(table, model.training["slides"])
    pairs = [] if seen is None else near_duplicates(seen, reference)
    shared = {
        "patients": set(table["patient_id"]) & set(model.training["patients"]),
        "slides": set(table["slide_id"][same]),
        "slides that look like one of the training": {f"{pair.second} (like {pair.first})" for pair in pairs},
    }
    sites = set(model.training.get("sites", []))
    if split == "site":
        shared["sites"] = {site for sites_of in table["sites"] for site in sites_of if site} & sites
    found = [f"{what} {name_some(names)}" for what, names in shared.items() if names]
    if found:
        message = (
            f"{source} and the training of {folder} share {' and '.join(found)}; remove these rows,"
            " figures on what a model has seen say nothing"
        )
        raise LeakageError(message)
    return _block([*_blind_to(model, _digests(slides), seen, split), *_blind_pairs(reference, seen)])


class _Blind(NamedTuple):
    """What could not be looked for, as "not_checked" says it; of only some slides where it was looked for in others."""

    what: str
    why: str
    entirely: bool = False


def _block(blind: Iterable[_Blind]) -> dict[str, Any]:
    blind = list(dict.fromkeys(blind))
    never = {one.what for one in blind if one.entirely}
    return {
        "checked": [what for what in (PATIENT, DIGEST, NEAR_DUPLICATE, SITE) if what not in never],
        "not_checked": [{"what": one.what, "why": one.why} for one in blind],
    }


def cuts_of(split: pd.Series[str], stated: pd.Series[str], *, freezes: bool) -> list[pd.Series[str]]:
    """What may not be shared by the sides of a training, for `require_no_leak`.

    Rows to stop on have been seen like those to learn from. Where something is frozen, it is chosen on them as on unseen
    ones, and they are a side of their own. That is asked of val rows that a table states alone: those that were set
    aside are no choice of the user's, who could not move them.

    Args:
        split: of each row "train", "val", "test" or "", as `splits.split_of` has it.
        stated: the same as the cohort table says it, all "" where it does not.
        freezes: whether something is chosen on the val rows.
    """
    return [split.replace({"val": "train"}), *([stated] if freezes else [])]


def scans_of(bags: pd.DataFrame, unit: Unit) -> dict[str, str]:
    """Of each slide of some bags its digest, "" where it has none.

    Args:
        bags: rows of `LabelledSlides.table`.
        unit: what a bag is.
    """
    pairs = zip(bags["slide_id"], bags["slide_digests"], strict=True)
    return {name: one for bag, its in pairs for name, one in zip(slides_of_bag(bag, unit), its, strict=True)}


def _by_slide(slides: LabelledSlides) -> pd.DataFrame:
    """One row a slide: bag, slide_id, patient_id, slide_digest and sites, which are those of all slides of its bag."""
    rows = [
        (bag, slide_id, patient, digest, sites)
        for bag, patient, digests, sites in slides.table[
            ["slide_id", "patient_id", "slide_digests", "sites"]
        ].itertuples(index=False)
        for slide_id, digest in zip(slides_of_bag(bag, slides.unit), digests, strict=True)
    ]
    return pd.DataFrame(rows, columns=["bag", "slide_id", "patient_id", "slide_digest", "sites"])


def _require_one_side(placed: pd.DataFrame, column: str, what: str, remedy: str) -> None:
    """Refuses what a column names on two sides; "" names nothing."""
    known = placed[placed[column] != ""]
    both = known.groupby(column)["side"].nunique()
    shared = sorted(both.index[both > 1])
    if shared:
        rows = known[known[column] == shared[0]].drop_duplicates("side")
        where = " and ".join(
            f"{slide} ({_side(side)})" for slide, side in zip(rows["slide_id"], rows["side"], strict=True)
        )
        name = f" {shared[0]}" if what != "scan" else ""
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        message = f"the {what}{name} stands on both sides of the split, with slides {where}{more}; {remedy}"
        raise LeakageError(message)


def _require_apart(side_of: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
    """Refuses two slides on two sides that look like one scan."""
    across = [
        pair
        for pair in pairs
        if pair.first in side_of and pair.second in side_of and side_of[pair.first] != side_of[pair.second]
    ]
    if across:
        pair = across[0]
        more = f", and {len(across) - 1} more pairs" if len(across) > 1 else ""
        message = (
            f"{pair.first} ({_side(side_of[pair.first])}) and {pair.second} ({_side(side_of[pair.second])}) look like one"
            f" scan on both sides of the split ({pair.bits} of 63 bits of their overviews differ, their embeddings have a"
            f" cosine of {pair.cosine:.3f}){more}; give both the same patient_id, or drop one of them"
        )
        raise LeakageError(message)


def _side(side: Any) -> str:
    return side if isinstance(side, str) else f"fold {int(side)}"


def _seen_slides(table: pd.DataFrame, seen: Mapping[str, str]) -> pd.Series[bool]:
    """Of each slide whether the training had it."""
    digests = set(seen.values()) - {""}
    nameless = [slide_id for slide_id, digest in seen.items() if not digest]
    same = table["slide_digest"].isin(digests) | table["slide_id"].isin(nameless)
    same |= (table["slide_digest"] == "") & table["slide_id"].isin(seen)
    pairs = zip(table["slide_id"], table["slide_digest"], strict=True)
    of_another_kind = np.array([_kind(seen.get(slide_id, digest)) != _kind(digest) for slide_id, digest in pairs], bool)
    found: pd.Series[bool] = same | of_another_kind
    return found


def _kind(digest: str) -> str:
    """What a digest can be compared with, "" for none."""
    return digest.partition(":")[0]


def _digests(slides: LabelledSlides) -> list[str]:
    """Of the slides that are learned from or scored; one that failed has none and cannot leak."""
    return list(scans_of(slides.usable, slides.unit).values())


def _blind_digests(digests: Sequence[str]) -> list[_Blind]:
    lacking = sum(not digest for digest in digests)
    kinds = {_kind(digest) for digest in digests} - {""}
    blind = []
    if lacking:
        why = f"{lacking} of {len(digests)} slides have no digest (imported embeddings)"
        blind.append(_Blind(DIGEST, why, lacking == len(digests)))
    if len(kinds) > 1:
        blind.append(_Blind(DIGEST, f"digests of two kinds cannot be compared ({' and '.join(sorted(kinds))})"))
    return blind


def _blind_pairs(reference: Reference, seen: Reference | None = None) -> list[_Blind]:
    """Of the slides at hand, and of those of a model."""
    lacking, total = without_hash(reference), len(reference.slide_ids)
    others = 0 if seen is None else len(seen.slide_ids)
    blind = []
    if total + others < LEAST_SLIDES:
        return [
            _Blind(NEAR_DUPLICATE, f"there are fewer than {LEAST_SLIDES} slides to tell what is alike", entirely=True)
        ]
    if lacking:
        why = f"{lacking} of {total} slides have no hash of their overview (imported, or extracted by an older pathfm)"
        blind.append(_Blind(NEAR_DUPLICATE, why, lacking == total))
    if seen is not None and without_hash(seen):
        why = f"{without_hash(seen)} of {others} slides of the training have no hash of their overview"
        blind.append(_Blind(NEAR_DUPLICATE, why, without_hash(seen) == others))
    return blind


def _blind_to(model: Model, digests: Sequence[str], seen: Reference | None, split: Split) -> list[_Blind]:
    """What a model does not tell of its training, or a cohort of its slides."""
    blind = _blind_digests(digests)
    ours, theirs = ({_kind(one) for one in some} - {""} for some in (digests, model.training["slides"].values()))
    if ours and theirs and ours != theirs:
        logger.warning("digests of two kinds cannot be compared: a scan under another slide_id would not be noticed")
        blind.append(_Blind(DIGEST, "the training has digests of another kind", not ours & theirs))
    if seen is None:
        blind.append(_Blind(NEAR_DUPLICATE, "the model has no reference of its slides", entirely=True))
    if split != "site":
        blind.append(_Blind(SITE, _SITE_UNASKED, entirely=True))
    elif not any(model.training.get("sites", [])):
        blind.append(_Blind(SITE, "the model does not say from which sites its slides were", entirely=True))
    return blind
