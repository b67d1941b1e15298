"""The control without a label: what a linear model reaches over the same folds when labels are dealt out at random.

A negative control of the whole arrangement (Ojala and Garriga, JMLR 11, 2010, test 1): of labels that mean nothing
nothing can be learned, so the figure has to be chance. Where it is above, the rows tell more across the folds than their
labels, as do scores whose level goes with the share of a class in a fold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathfm.cohortfigures import by_patient, scored_slides
from pathfm.linear import Known, learner, out_of_fold_scores
from pathfm.metrics import UNKNOWN, Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.metrics import Metric, Scored
    from pathfm.targets import Target

PERMUTATIONS = 20
_COMPONENTS = 32  # of the embeddings, which keeps twenty trainings a fold to seconds


def permuted_labels(
    repeats: Sequence[pd.DataFrame], embeddings: NDArray[np.float64], target: Target, metric: Metric, seed: int = 0
) -> Figure | str:
    """The mean figure by patient over 20 permutations with its 95 % interval of Student's t; or why there is none.

    The labels are permuted between the patients of each fold, so that each fold keeps as many of each class: permuted over
    all, a fold rich in a class would leave a training set poor in it, which alone pulls an AUROC below 0.5. All slides of
    a patient get the label of one other patient. The model sees the first 32 principal components of the mean embeddings.

    Args:
        repeats: as `controls` has them: the same scored rows with the folds of each repeat, which take turns.
        embeddings: of each row, float64 (n, dim).
        target: what was asked.
        metric: its main figure.
        seed: of the permutations.
    """
    learn = learner(target)
    if learn is None:
        return f"there is no control for a target of the kind {target.kind}"
    if (embeddings == embeddings[:1]).all():
        return "the mean embeddings of the slides are all the same"
    n_components = min(_COMPONENTS, len(embeddings) - 1, embeddings.shape[1])
    reduced = make_pipeline(StandardScaler(), PCA(n_components, random_state=0)).fit_transform(embeddings)
    known, generator = Known(reduced, StandardScaler()), np.random.default_rng(seed)
    reached = []
    for permutation in range(PERMUTATIONS):
        rows = repeats[permutation % len(repeats)]
        folds = rows["fold"].to_numpy()
        slides = _permuted(scored_slides(rows, target), folds, target, generator)
        scores = out_of_fold_scores(learn, known, target, slides.truth, folds)
        if isinstance(scores, str):
            return scores
        patients = by_patient(replace(slides, scores=scores), target)
        reached.append(float(metric(patients.truth, patients.scores, np.ones((1, len(patients.truth))))[0]))
    return _mean(np.array(reached))


def _permuted(slides: Scored, folds: NDArray[Any], target: Target, generator: np.random.Generator) -> Scored:
    """The rows, each with the label of another patient of its fold."""
    of_patients = by_patient(slides, target).truth
    fold_of = folds[np.unique(slides.patients, return_index=True)[1]]
    donors = np.arange(len(of_patients))
    for fold in np.unique(fold_of):
        members = np.flatnonzero(fold_of == fold)
        donors[members] = generator.permutation(members)
    return replace(slides, truth=of_patients[donors][slides.patients])


def _mean(reached: NDArray[np.float64]) -> Figure:
    if not np.isfinite(reached).all():
        return UNKNOWN
    mean, error = float(reached.mean()), float(reached.std(ddof=1) / np.sqrt(len(reached)))
    reach = float(stats.t.ppf(0.975, len(reached) - 1)) * error
    return Figure(value=mean, low=mean - reach, high=mean + reach)
