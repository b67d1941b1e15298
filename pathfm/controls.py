"""Controls beside the model: how far mean tissue colour, the site, or labels that mean nothing would get over the same folds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pathfm.cohortfigures import by_patient, is_scored, scored_patients, scored_slides
from pathfm.linear import Known, learner, out_of_fold_scores
from pathfm.metrics import Figure, Scored, difference, figures
from pathfm.permuted import permuted_labels
from pathfm.phrases import with_interval
from pathfm.words import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.targets import Target

CONFOUNDED = "confounded, or not excluded"
NOT_SEEN = "not seen"
NOT_TESTED = "not tested"
CONTROL_AUROC = 0.7

_PLAIN_NAMES = {
    "mean_colour": "the mean colour of the tissue",
    "site": "the site",
    "permuted_labels": "whether labels dealt out at random can be learned",
}
_WHAT_IT_MEANS = {
    "mean_colour": "may have learned stain and scanner instead of disease",
    "site": "may have learned where a slide was made instead of disease",
}


def controls(
    predictions: pd.DataFrame,
    mean_rgb: Mapping[str, NDArray[np.floating[Any]]],
    site: Mapping[str, str],
    target: Target,
    embeddings: Mapping[str, NDArray[np.floating[Any]]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The blocks "controls" and "confounded" of metrics.json.

    Each control is a linear model of the same kind as the target, trained on the other folds' rows and scored on the
    fold, over the rows and folds of the model: of classes and of each of several labels a logistic regression (L2, C = 1,
    classes balanced), of a number a ridge regression. Its figure is the target's main one by patient; the difference is
    model minus control over the same resamples of patients. A control speaks against the model where the lower bound of
    the difference is not above 0, and also where the figure is an AUROC of at least 0.7; no such bound is known for the
    figures of other kinds. Of survival there are no controls, and none of the site where no site is in two folds, for of
    one that it has not learned from it can say nothing.

    The third control, `permuted_labels`, asks whether the folds themselves are sound: see `permuted`. It speaks against the
    model where its interval lies above chance; that it does not says nothing of colour or site.

    Args:
        predictions: a predictions table with the columns slide_id, patient_id, fold, label and `target.names`; where it
            has a column `repeat`, figures and differences are means over the repeats, each with its folds.
        mean_rgb: slide_id to the mean colour of its tissue tiles, float (3,); NaN or absent where not known.
        site: slide_id to its site; "" or absent where not known.
        target: what was asked.
        embeddings: slide_id to the mean of its embeddings, float (dim,); None where these are not at hand.
        seed: of the resampling, that of the model's figures, and of the permutations.
    """
    repeats = _repeats(predictions, target)
    ids = repeats[0]["slide_id"].astype(str)
    known = {
        "mean_colour": _colours([mean_rgb.get(one) for one in ids]),
        "site": _sites([site.get(one, "") for one in ids], repeats),
    }
    blocks = {
        name: _unavailable(what) if isinstance(what, str) else _control(name, what, repeats, target, seed)
        for name, what in known.items()
    }
    blocks["permuted_labels"] = _permuted(repeats, target, embeddings or {}, seed)
    return {"controls": blocks, "confounded": _verdict(blocks)}


def _repeats(predictions: pd.DataFrame, target: Target) -> list[pd.DataFrame]:
    """Of each repeat the rows that all of them score, in one order."""
    rows = predictions[is_scored(predictions, target)]
    parts = [part for _, part in rows.groupby("repeat")] if "repeat" in rows and len(rows) else [rows]
    ids = parts[0]["slide_id"]
    for part in parts[1:]:
        ids = ids[ids.isin(part["slide_id"])]
    return [part.set_index("slide_id").loc[ids].reset_index() for part in parts]


def _colours(colours: Sequence[NDArray[np.floating[Any]] | None]) -> Known | str:
    known = [colour is not None and bool(np.isfinite(colour).all()) for colour in colours]
    if not all(known):
        return f"{known.count(False)} of {len(known)} slides have no mean colour in their embeddings file (imported?)"
    return Known(np.array(colours, dtype=np.float64).reshape(len(colours), 3), StandardScaler())


def _sites(sites: Sequence[str], repeats: Sequence[pd.DataFrame]) -> Known | str:
    if not any(sites):
        return "the cohort states no site (column 'site')"
    if len(set(sites)) == 1:
        return f"all slides come from one site ({sites[0]})"
    stated = np.array(sites, dtype=object) != ""
    if not any((part["fold"][stated].groupby(np.array(sites)[stated]).nunique() > 1).any() for part in repeats):
        return "no site is in two folds, so nothing is known of the sites of the fold that is scored"
    return Known(np.array(sites, dtype=object).reshape(-1, 1), OneHotEncoder(handle_unknown="ignore"))


def _control(name: str, known: Known, repeats: Sequence[pd.DataFrame], target: Target, seed: int) -> dict[str, Any]:
    learn = learner(target)
    if learn is None:
        return _unavailable(f"there is no control for a target of the kind {target.kind}")
    models, of_control = [], []
    for rows in repeats:
        slides = scored_slides(rows, target)
        scores = out_of_fold_scores(learn, known, target, slides.truth, rows["fold"].to_numpy())
        if isinstance(scores, str):
            return _unavailable(scores)
        models.append(by_patient(slides, target))
        of_control.append(by_patient(replace(slides, scores=scores), target))
    return _judged(name, models, of_control, target, seed)


def _judged(
    name: str, models: Sequence[Scored], of_control: Sequence[Scored], target: Target, seed: int
) -> dict[str, Any]:
    main, metric = next(iter(target.metrics.items()))
    reached = figures(of_control, {main: metric}, seed)[main]
    better = difference(models, of_control, metric, seed)
    if reached["value"] is None or better["low"] is None:
        return _unavailable("the figure of the scored patients cannot be computed")
    high = main == "auroc" and reached["value"] >= CONTROL_AUROC
    return {
        "available": True,
        main: reached,
        "difference": better,
        "confounded": high or not better["low"] > 0,
        "why": _why(name, words_of(main).name, reached, better, too_high=high),
    }


def _permuted(
    repeats: Sequence[pd.DataFrame], target: Target, embeddings: Mapping[str, NDArray[np.floating[Any]]], seed: int
) -> dict[str, Any]:
    """The control without a label, in the form of the others."""
    known = [embeddings.get(one) for one in repeats[0]["slide_id"].astype(str)]
    means = [one for one in known if one is not None]
    if len(means) < len(known) or not known:
        return _unavailable(f"{len(known) - len(means)} of {len(known)} slides have no mean embedding at hand")
    main, metric = next(iter(target.metrics.items()))
    reached = permuted_labels(repeats, np.array(means, np.float64), target, metric, seed)
    if isinstance(reached, str):
        return _unavailable(reached)
    of_model = figures([scored_patients(rows, target) for rows in repeats], {main: metric}, seed)[main]
    if of_model["low"] is None or reached["value"] is None or reached["low"] is None:
        return _unavailable("the figure of the scored patients cannot be computed")
    above = reached["low"] > target.chance
    return {
        "available": True,
        main: reached,
        "difference": _less(of_model, reached["value"]),
        "confounded": above,
        "why": _why_permuted(words_of(main).name, reached, target.chance),
    }


def _less(figure: Figure, value: float) -> Figure:
    """A figure minus a number."""
    less = [None if number is None else number - value for number in (figure["value"], figure["low"], figure["high"])]
    return Figure(value=less[0], low=less[1], high=less[2])


def _unavailable(why: str) -> dict[str, Any]:
    return {"available": False, "why": why}


def _why(name: str, figure: str, reached: Figure, better: Figure, *, too_high: bool) -> str:
    what = f"{_PLAIN_NAMES[name]} alone reaches a patient-level {figure} of {with_interval(reached)}"
    if too_high:
        return f"{what}, so the model {_WHAT_IT_MEANS[name]}"
    if better["low"] is not None and better["low"] > 0:
        return f"{what}, and the model is better by {with_interval(better)}"
    return f"{what}, and the model is not shown to be better: the difference is {with_interval(better)}"


def _why_permuted(figure: str, reached: Figure, chance: float) -> str:
    what = "trained on labels dealt out at random among the patients of a fold, a linear model reaches a patient-level"
    end = f"which is chance ({chance:g}), as it should be"
    if reached["low"] is not None and reached["low"] > chance:
        end = f"above chance ({chance:g}), so something besides the label leads across the folds"
    elif reached["high"] is not None and reached["high"] < chance:
        end = f"below chance ({chance:g}), as where the folds differ in their share of a class"
    return f"{what} {figure} of {with_interval(reached)}, {end}"


def _verdict(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    tested = [name for name, block in blocks.items() if block["available"]]
    against = [name for name in tested if blocks[name]["confounded"]]
    confounders = set(tested) - {"permuted_labels"}  # which is about the folds, and clears neither colour nor site
    verdict = CONFOUNDED if against else NOT_SEEN if confounders else NOT_TESTED
    named = against or tested
    lines = [blocks[name]["why"] for name in named]
    lines += [f"{_PLAIN_NAMES[name]} was not tested: {b['why']}" for name, b in blocks.items() if not b["available"]]
    sentence = f"{_HEADLINES[verdict]}: {'; '.join(lines)}."
    return {"verdict": verdict, "controls": against, "sentence": sentence}


_HEADLINES = {
    CONFOUNDED: "Confounded, or not excluded",
    NOT_SEEN: "Confounding by the tested controls was not seen",
    NOT_TESTED: "Confounding was not tested",
}
