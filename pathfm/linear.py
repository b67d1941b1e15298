"""The linear models of the controls: of the same kind as the target, trained on some rows and scored on the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline

from pathfm.errors import InputError
from pathfm.targets import Classes, MultiLabel, Regression

if TYPE_CHECKING:
    from pathfm.targets import Scores, Target, Truth


class Known(NamedTuple):
    """What a control knows of each row, (n, columns), and what makes numbers of it."""

    features: NDArray[Any]
    transformer: Any


Learner = Callable[[Known, "Truth", NDArray[np.bool_]], "Scores"]
"""From what is known, the truth, and which rows to train on, to the scores of the others."""


def learner(target: Target) -> Learner | None:
    """Of classes and of each of several labels a logistic regression (L2, C = 1, classes balanced), of a number a ridge.

    None where the kind of target has none.
    """
    if isinstance(target, Classes):
        return _of_classes
    if isinstance(target, MultiLabel):
        return _of_labels
    return _of_numbers if isinstance(target, Regression) else None


def out_of_fold_scores(learn: Learner, known: Known, target: Target, truth: Truth, folds: NDArray[Any]) -> Scores | str:
    """The scores of each fold by a model trained on the others, float64 (n, k); or why there are none.

    Args:
        learn: as `learner` gives it.
        known: of each row.
        target: what the truth is of.
        truth: float32 (n, width), without NaN.
        folds: of each row, (n,).
    """
    scores = np.empty((len(truth), len(target.names)))
    for fold in np.unique(folds):
        scored = folds == fold
        try:
            target.require(truth[~scored])
        except InputError:
            what = "a class has no slide" if target.counts(truth) else "too few different slides are"
            return f"without fold {fold} {what} left to train the control on"
        scores[scored] = learn(known, truth, ~scored)
    return scores


def _of_classes(known: Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, _logistic()).fit(known.features[train], truth[train, 0].astype(int))
    return np.asarray(model.predict_proba(known.features[~train]))


def _of_labels(known: Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, MultiOutputClassifier(_logistic()))
    model.fit(known.features[train], truth[train].astype(int))
    return np.stack([one[:, 1] for one in model.predict_proba(known.features[~train])], axis=1)


def _of_numbers(known: Known, truth: Truth, train: NDArray[np.bool_]) -> Scores:
    model = make_pipeline(known.transformer, Ridge()).fit(known.features[train], truth[train].astype(np.float64))
    return np.asarray(model.predict(known.features[~train])).reshape(-1, 1)


def _logistic() -> LogisticRegression:
    # balanced: a fold rich in one class leaves a training set poor in it, and scores pooled over folds would rank by that
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
