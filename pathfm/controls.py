"""Controls beside the model: how far mean tissue colour alone, or the site alone, would get over the same folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pathfm.metrics import (
    Figure,
    Scored,
    auroc_figure,
    by_patient,
    is_scored,
    paired_auroc_difference,
    scored_slides,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

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
    classes: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """The blocks "controls" and "confounded" of metrics.json.

    Each control is a logistic regression (L2, C = 1, classes balanced), trained on the other folds' slides and scored on
    the fold, over the slides and folds of the model. AUROCs are by patient; the difference is model minus control over
    the same resamples of patients. A control speaks against the model where its AUROC is at least 0.7, or where the lower
    bound of the difference is not above 0.

    Args:
        predictions: a predictions table with the columns slide_id, patient_id, fold, label, prob_<class>.
        mean_rgb: slide_id to the mean colour of its tissue tiles, float (3,); NaN or absent where not known.
        site: slide_id to its site; "" or absent where not known.
        classes: the classes in order.
        seed: of the resampling, that of the model's figures.
    """
    rows = predictions[is_scored(predictions, classes)].reset_index(drop=True)
    slides = scored_slides(rows, classes)
    folds = rows["fold"].to_numpy()
    slide_ids = rows["slide_id"].astype(str)
    blocks = {
        "mean_colour": _colour_control(slides, folds, [mean_rgb.get(slide) for slide in slide_ids], seed),
        "site": _site_control(slides, folds, [site.get(slide, "") for slide in slide_ids], seed),
    }
    return {"controls": blocks, "confounded": _verdict(blocks)}


def _colour_control(
    slides: Scored, folds: NDArray[Any], colours: Sequence[NDArray[np.floating[Any]] | None], seed: int
) -> dict[str, Any]:
    known = [colour is not None and bool(np.isfinite(colour).all()) for colour in colours]
    if not all(known):
        return _unavailable(
            f"{known.count(False)} of {len(known)} slides have no mean colour in their embeddings file (imported?)"
        )
    features = np.array(colours, dtype=np.float64).reshape(len(colours), 3)
    return _control("mean_colour", slides, folds, features, make_pipeline(StandardScaler(), _regression()), seed)


def _site_control(slides: Scored, folds: NDArray[Any], sites: Sequence[str], seed: int) -> dict[str, Any]:
    if not any(sites):
        return _unavailable("the cohort states no site (column 'site')")
    if len(set(sites)) == 1:
        return _unavailable(f"all slides come from one site ({sites[0]})")
    features = np.array(sites, dtype=object).reshape(-1, 1)
    return _control(
        "site", slides, folds, features, make_pipeline(OneHotEncoder(handle_unknown="ignore"), _regression()), seed
    )


def _control(
    name: str, slides: Scored, folds: NDArray[Any], features: NDArray[Any], model: Any, seed: int
) -> dict[str, Any]:
    n_classes = slides.probabilities.shape[1]
    for fold in np.unique(folds):
        if len(np.unique(slides.labels[folds != fold])) < n_classes:
            return _unavailable(f"without fold {fold} a class has no slide left to train the control on")
    probabilities = _out_of_fold(slides, folds, features, model)
    control = by_patient(Scored(slides.labels, probabilities, slides.patients, slides.strata, slides.names))
    auroc = auroc_figure(control, seed)
    difference = paired_auroc_difference(by_patient(slides), control, seed)
    if auroc["value"] is None or difference["low"] is None:
        return _unavailable("a class has no scored patient")
    return {
        "available": True,
        "auroc": auroc,
        "difference": difference,
        "confounded": auroc["value"] >= CONTROL_AUROC or not difference["low"] > 0,
        "why": _why(name, auroc, difference),
    }


def _out_of_fold(slides: Scored, folds: NDArray[Any], features: NDArray[Any], model: Any) -> NDArray[np.float64]:
    probabilities = np.empty_like(slides.probabilities)
    for fold in np.unique(folds):
        scored = folds == fold
        model.fit(features[~scored], slides.labels[~scored])
        probabilities[scored] = model.predict_proba(features[scored])
    return probabilities


def _regression() -> LogisticRegression:
    # balanced: a fold rich in one class leaves a training set poor in it, and scores pooled over folds would rank by that
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)


def _unavailable(why: str) -> dict[str, Any]:
    return {"available": False, "why": why}


def _why(name: str, auroc: Figure, difference: Figure) -> str:
    what = f"{_PLAIN_NAMES[name]} alone reaches a patient-level AUROC of {_text(auroc)}"
    if auroc["value"] is not None and auroc["value"] >= CONTROL_AUROC:
        return f"{what}, so the model {_WHAT_IT_MEANS[name]}"
    if difference["low"] is not None and difference["low"] > 0:
        return f"{what}, and the model is better by {_text(difference)}"
    return f"{what}, and the model is not shown to be better: the difference is {_text(difference)}"


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
