"""Controls beside the model: how far mean tissue colour alone, or the site alone, would get over the same folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pathfm.cohortfigures import by_patient, is_scored, scored_slides
from pathfm.errors import InputError
from pathfm.metrics import Figure, Scored, difference, figures
from pathfm.targets import Classes, MultiLabel, Regression
from pathfm.words import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.targets import Scores, Target, Truth

CONFOUNDED = "confounded, or not excluded"
NOT_SEEN = "not seen"
NOT_TESTED = "not tested"
CONTROL_AUROC = 0.7

_PLAIN_NAMES = {"mean_colour": "the mean colour of the tissue", "site": "the site"}
_WHAT_IT_MEANS = {
    "mean_colour": "may have learned stain and scanner instead of disease",
    "site": "may have learned where a slide was made instead of disease",
}


def controls(
    predictions: pd.DataFrame,
    mean_rgb: Mapping[str, NDArray[np.floating[Any]]],
    site: Mapping[str, str],
    target: Target,
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

    Args:
        predictions: a predictions table with the columns slide_id, patient_id, fold, label and `target.names`; where it
            has a column `repeat`, figures and differences are means over the repeats, each with its folds.
        mean_rgb: slide_id to the mean colour of its tissue tiles, float (3,); NaN or absent where not known.
        site: slide_id to its site; "" or absent where not known.
        target: what was asked.
        seed: of the resampling, that of the model's figures.
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
    return {"controls": blocks, "confounded": _verdict(blocks)}


class _Known(NamedTuple):
    """What a control knows of each row, (n, columns), and what makes numbers of it."""

    features: NDArray[Any]
    transformer: Any


def _repeats(predictions: pd.DataFrame, target: Target) -> list[pd.DataFrame]:
    """Of each repeat the rows that all of them score, in one order."""
    rows = predictions[is_scored(predictions, target)]
    parts = [part for _, part in rows.groupby("repeat")] if "repeat" in rows and len(rows) else [rows]
    ids = parts[0]["slide_id"]
    for part in parts[1:]:
        ids = ids[ids.isin(part["slide_id"])]
    return [part.set_index("slide_id").loc[ids].reset_index() for part in parts]


def _colours(colours: Sequence[NDArray[np.floating[Any]] | None]) -> _Known | str:
    known = [colour is not None and bool(np.isfinite(colour).all()) for colour in colours]
    if not all(known):
        return f"{known.count(False)} of {len(known)} slides have no mean colour in their embeddings file (imported?)"
    return _Known(np.array(colours, dtype=np.float64).reshape(len(colours), 3), StandardScaler())


def _sites(sites: Sequence[str], repeats: Sequence[pd.DataFrame]) -> _Known | str:
    if not any(sites):
        return "the cohort states no site (column 'site')"
    if len(set(sites)) == 1:
        return f"all slides come from one site ({sites[0]})"
    stated = np.array(sites, dtype=object) != ""
    if not any((part["fold"][stated].groupby(np.array(sites)[stated]).nunique() > 1).any() for part in repeats):
        return "no site is in two folds, so nothing is known of the sites of the fold that is scored"
    return _Known(np.array(sites, dtype=object).reshape(-1, 1), OneHotEncoder(handle_unknown="ignore"))


def _control(name: str, known: _Known, repeats: Sequence[pd.DataFrame], target: Target, seed: int) -> dict[str, Any]:
    learn = _learner(target)
    if learn is None:
        return _unavailable(f"there is no control for a target of the kind {target.kind}")
    models, of_control = [], []
    for rows in repeats:
        slides, folds = scored_slides(rows, target), rows["fold"].to_numpy()
        scores = np.empty_like(slides.scores)
        for fold in np.unique(folds):
            scored = folds == fold
            try:
                target.require(slides.truth[~scored])
            except InputError:
                what = "a class has no slide" if target.counts(slides.truth) else "too few different slides are"
                return _unavailable(f"without fold {fold} {what} left to train the control on")
            scores[scored] = learn(known, slides.truth, ~scored)
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


_Learner = Callable[[_Known, "Truth", NDArray[np.bool_]], "Scores"]
"""From what is known, the truth, and which rows to train on, to the scores of the others."""


def _learner(target: Target) -> _Learner | None:
    if isinstance(target, Classes):
        return _of_classes
    if isinstance(target, MultiLabel):
        return _of_labels
    return _of_numbers if isinstance(target, Regression) else None


def _of_classes(known: _Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, _logistic()).fit(known.features[train], truth[train, 0].astype(int))
    return np.asarray(model.predict_proba(known.features[~train]))


def _of_labels(known: _Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, MultiOutputClassifier(_logistic()))
    model.fit(known.features[train], truth[train].astype(int))
    return np.stack([one[:, 1] for one in model.predict_proba(known.features[~train])], axis=1)


def _of_numbers(known: _Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, Ridge()).fit(known.features[train], truth[train].astype(np.float64))
    return np.asarray(model.predict(known.features[~train])).reshape(-1, 1)


def _logistic() -> LogisticRegression:
    # balanced: a fold rich in one class leaves a training set poor in it, and scores pooled over folds would rank by that
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)


def _unavailable(why: str) -> dict[str, Any]:
    return {"available": False, "why": why}


def _why(name: str, figure: str, reached: Figure, better: Figure, *, too_high: bool) -> str:
    what = f"{_PLAIN_NAMES[name]} alone reaches a patient-level {figure} of {_text(reached)}"
    if too_high:
        return f"{what}, so the model {_WHAT_IT_MEANS[name]}"
    if better["low"] is not None and better["low"] > 0:
        return f"{what}, and the model is better by {_text(better)}"
    return f"{what}, and the model is not shown to be better: the difference is {_text(better)}"


def _verdict(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    tested = [name for name, block in blocks.items() if block["available"]]
    against = [name for name in tested if blocks[name]["confounded"]]
    verdict = CONFOUNDED if against else NOT_SEEN if tested else NOT_TESTED
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


def _text(figure: Figure) -> str:
    value, low, high = (f"{figure[key]:.2f}".replace("-", "\u2212") for key in ("value", "low", "high"))
    return f"{value} (95 % interval {low} to {high})"
