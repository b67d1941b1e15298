"""What a model says of bags: the score of one, with where the model looked, and the tables of many (predictions.csv)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pathfm.embeddings import Embeddings, require_recipe
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsStaleError, ModelError
from pathfm.frozen import apply_frozen, patient_table
from pathfm.heads import Bags, pack
from pathfm.joined import read_joined
from pathfm.patients import NO_EMBEDDINGS, NO_TISSUE, slides_of_bag
from pathfm.progress import progress
from pathfm.targets import Classes, Ordinal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.heads import HeadOutput
    from pathfm.model import Model
    from pathfm.targets import Scores, Target


@dataclass(frozen=True)
class BagScore:
    """What a model says of one bag.

    Attributes:
        scores: of each target float64 (k,) in the order of its `names`; [] where there is nothing to score.
        shown: of each target where the model looked, as `attention` gives it.
        reason: "" or why there is no score: "no_tissue", "no_embeddings".
    """

    scores: list[NDArray[np.float64]]
    shown: list[NDArray[np.float32] | None]
    reason: str

    def attention(self, which: int = 0) -> NDArray[np.float32] | None:
        """Where the model looked for a target, float32 (n,) of sum 1 over the instances of the bag, in their order.

        Of a head with a branch an output it is the mean over the branches, each weighted by how far its looking there,
        instead of at all instances alike, moves the decision: of classes the log-odds of the predicted one, to which the
        branches of the others count as well, else the logit of the output that shows the bag. Of an ensemble it is the
        mean. None for heads without attention, and where there is no score.
        """
        return self.shown[which] if self.shown else None


def score_bag(model: Model, slides: Sequence[Embeddings], covariates: NDArray[np.float32] | None = None) -> BagScore:
    """Scores one bag on the CPU, calibrated where the model is.

    A bag without tiles gets no score, though a head could be made to name one.

    Args:
        model: the model.
        slides: of the bag, one below the other.
        covariates: float32 (m,), as the model's covariates encode the cells of the bag, NaN for what is not known; None
            where it reads none.

    Raises:
        EmbeddingsStaleError: the embeddings were made with another recipe than the model's.
        EmbeddingsDamagedError: an embedding is not finite.
        ModelError: a score is not finite.
        ValueError: other covariates than the model reads.
    """
    raw, frozen = _raw_score(model, slides, covariates), model.frozen or {}
    calibrations = {name: one.calibration for name, one in frozen.items() if one.calibration is not None}
    pairs = zip(model.task.targets, raw.scores, strict=False)
    scores = [calibrations[t.name].apply(t, one[None])[0] if t.name in calibrations else one for t, one in pairs]
    return replace(raw, scores=scores)


def score_tables(model: Model, rows: pd.DataFrame, place: Literal["fold", "split"]) -> dict[str, pd.DataFrame]:
    """The predictions of a model, a table for each target: one row a bag, in the order given.

    Args:
        model: scores every bag that has tiles.
        rows: columns slide_id, patient_id, files (of each slide a tuple of embeddings files, one a cache; or None) and
            `place`; where there are any, `labels` (a dict of texts by the name of the target) and `covariates` (float32).
        place: the column that says on which side of a split a bag stood.

    Returns:
        By the name of the target: columns slide_id, patient_id, `place`, label, predicted, those of `Target.names`,
        n_tiles, reason, and what is frozen with the model decides of the row, as `frozen.apply_frozen` has it; without
        a score predicted is "", the scores are NaN and reason is "no_tissue" or "no_embeddings".

    Raises:
        EmbeddingsError: a file that is damaged, of another recipe, or of another slide than its row; or files of a slide
            that are not of the same tiles.
    """
    found = [_scored(model, row) for row in progress(rows.to_dict("records"), "score")]
    return {target.name: _table(model, which, rows, place, found) for which, target in enumerate(model.task.targets)}


def require_slide(path: Path, embeddings: Embeddings, slide_id: str) -> None:
    """Refuses embeddings of another slide than the one they are taken for, as after a file was renamed.

    Raises:
        EmbeddingsStaleError: the message names both.
    """
    if embeddings.slide_id != slide_id:
        message = f"{path} holds slide {embeddings.slide_id}, not {slide_id}; give the file its slide's name, or extract again"
        raise EmbeddingsStaleError(path, message)


def patient_tables(predictions: Mapping[str, pd.DataFrame], model: Model) -> dict[str, pd.DataFrame]:
    """Of each target of which something is frozen what is decided of patients, where a bag is not one already."""
    frozen = (model.frozen or {}) if model.unit == "slide" else {}
    targets = {target.name: target for target in model.task.targets}
    return {name: patient_table(predictions[name], targets[name], one) for name, one in frozen.items()}


def _raw_score(model: Model, slides: Sequence[Embeddings], covariates: NDArray[np.float32] | None) -> BagScore:
    """What the heads say, before what is frozen."""
    wanted, given = model.covariates.width if model.covariates else 0, 0 if covariates is None else len(covariates)
    if given != wanted:
        message = f"the model reads {wanted} numbers beside the slides of a bag, {given} were given"
        raise ValueError(message)
    parts = [_features(model, one) for one in slides]
    if not sum(map(len, parts)):
        return BagScore([], [], NO_TISSUE)
    row = None if covariates is None else torch.from_numpy(np.asarray(covariates, np.float32))[None]
    bags = pack([torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))], row)
    members = [_scores_of_member(model, place, bags) for place in range(len(model.heads))]
    scores = [np.mean(rows, axis=0) for rows in zip(*(scores for scores, _ in members), strict=True)]
    if not all(np.isfinite(one).all() for one in scores):  # finite weights can be too large, or divide by zero
        message = f"the model's score of {slides[0].slide_id} is no finite number; train the model again"
        raise ModelError(message)
    shown = [_shown(model, which, one, [output for _, output in members]) for which, one in enumerate(scores)]
    return BagScore([one[0] for one in scores], shown, "")


def _features(model: Model, embeddings: Embeddings) -> NDArray[np.float32]:
    path = Path(f"{embeddings.slide_id}.h5")
    require_recipe(path, embeddings.recipe, model.recipe)
    features = np.asarray(embeddings.features, dtype=np.float32)
    if not np.isfinite(features).all():
        message = f"{path} holds embeddings that are not finite; extract the slide again with --precision float32"
        raise EmbeddingsDamagedError(path, message)
    return features


def _scores_of_member(model: Model, place: int, bags: Bags) -> tuple[list[Scores], HeadOutput]:
    with torch.inference_mode():
        output: HeadOutput = model.heads[place](bags)
    return model.tasks[place].scores(output.logits), output


def _shown(model: Model, which: int, scores: Scores, outputs: Sequence[HeadOutput]) -> NDArray[np.float32] | None:
    """The mean attention of those heads that have one, of several branches as they weigh in the decision."""
    first, target = model.task.first_output(which), model.task.targets[which]
    direction = np.zeros(model.task.n_outputs)
    direction[first : first + target.n_outputs] = _direction(target, scores)
    columns = [
        one.attention.numpy() @ _weights(one, direction, first + int(target.branch(scores)[0]))
        for one in outputs
        if one.attention is not None
    ]
    return np.asarray(np.mean(columns, axis=0), dtype=np.float32) if columns else None


def _weights(output: HeadOutput, direction: NDArray[np.float64], branch: int) -> NDArray[np.float64]:
    """Of each column of attention what it counts, float64 (a,) of sum 1; of branches none of which weighs, `branch` alone."""
    if output.attention is None or output.attention.shape[1] == 1:
        return np.ones(1)
    alone: NDArray[np.float64] = np.eye(output.attention.shape[1])[branch]
    weights: NDArray[np.float64] = (
        0 * alone if output.gain is None else np.abs(output.gain[0].double().numpy() @ direction)
    )
    if not weights.sum() > 0:
        return alone
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _direction(target: Target, scores: Scores) -> NDArray[np.float64]:
    """How the decision moves with each logit of a target, float64 (n_outputs,).

    Of classes that is the gradient of the log-odds of the most probable one, z_p - log sum exp of the others: 1 for its
    logit, and for the others minus their shares among themselves. Otherwise the logit that shows the bag decides alone.
    """
    at = int(target.branch(scores)[0])
    decides: NDArray[np.float64] = np.eye(target.n_outputs)[at]
    if not isinstance(target, Classes) or isinstance(target, Ordinal):  # of an order each logit is a threshold
        return decides
    others = np.where(decides > 0, 0.0, scores[0])
    others = others if others.sum() > 0 else 1 - decides
    shares: NDArray[np.float64] = decides - others / others.sum()
    return shares


def _scored(model: Model, row: dict[Any, Any]) -> tuple[BagScore, int]:
    """The score of a bag, and its tiles."""
    files = row["files"]
    if not files:
        return BagScore([], [], NO_EMBEDDINGS), 0
    slides = [read_joined(one, model.recipe) for one in files]
    for one, path, slide_id in zip(slides, files, slides_of_bag(row["slide_id"], model.unit), strict=True):
        require_slide(path[0], one, slide_id)
    covariates = row.get("covariates") if model.covariates else None
    return _raw_score(model, slides, covariates), sum(len(one.features) for one in slides)


def _table(
    model: Model, which: int, rows: pd.DataFrame, place: str, found: Sequence[tuple[BagScore, int]]
) -> pd.DataFrame:
    target = model.task.targets[which]
    scores = np.full((len(found), len(target.names)), np.nan)
    known = np.array([not score.reason for score, _ in found], dtype=bool)
    if known.any():
        scores[known] = [score.scores[which] for score, _ in found if not score.reason]
    predicted = np.full(len(found), "", dtype=object)
    predicted[known] = target.predicted(scores[known])
    labels: list[dict[str, str]] = list(rows["labels"]) if "labels" in rows else [{}] * len(rows)
    table = rows[["slide_id", "patient_id", place]].reset_index(drop=True)
    table = table.assign(
        label=[one.get(target.name, "") for one in labels],
        predicted=predicted,
        **{name: scores[:, column] for column, name in enumerate(target.names)},
        n_tiles=[n_tiles for _, n_tiles in found],
        reason=[score.reason for score, _ in found],
    )
    frozen = (model.frozen or {}).get(target.name)
    return table if frozen is None else apply_frozen(frozen, table, target, model.unit)
