"""What a model says of slides: one score, the table of many (predictions.csv), and the document of their figures (metrics.json)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from pathfm.embeddings import Embeddings, require_recipe
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsStaleError, InputError
from pathfm.files import write_text
from pathfm.heads import pack
from pathfm.joined import read_joined
from pathfm.labelled import NO_EMBEDDINGS, NO_TISSUE, LeftOut
from pathfm.metrics import cohort_figures, is_scored
from pathfm.progress import progress
from pathfm.tables import read_document, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pathfm.model import Model

_FIGURES = ("auroc", "balanced_accuracy", "f1")
_FORMAT, _FORMAT_VERSION = "pathfm-metrics", 1
_NUMBER = (float, None)
_FIGURE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_BLOCK = dict.fromkeys(_FIGURES, _FIGURE) | {"n": int, "n_by_class": {"*": int}}
_TESTED = {"available": True, "auroc": _FIGURE, "difference": _FIGURE, "confounded": bool, "why": str}
_FOLD = dict.fromkeys(("fold", "n_train_patients", "n_stop_patients", "n_scored_patients", "epochs"), int)
_SHAPE = {
    "label": str,
    "classes": [str],
    "protocol": str,
    "n_slides": int,
    "n_patients": int,
    "left_out": [{"slide_id": str, "reason": str}],
    "slide": (_BLOCK, None),
    "patient": (_BLOCK, None),
    "interval": (str, None),
    "controls": {"*": (_TESTED, {"available": False, "why": str})},
    "confounded": {"verdict": str, "controls": [str]},
    "folds": [_FOLD | {"stopped_early": bool}],
    "warnings": [str],
    "lesion?": ({"attention_auroc": (_FIGURE, float, None)}, None),
}


class SlideScore(NamedTuple):
    """What a model says of one slide.

    Attributes:
        probabilities: float64 (c,) in the order of the model's classes, sums to 1; None where there is nothing to score.
        attention: float32 (n,), sums to 1 over the tiles, in their order; None for a head without attention.
        reason: "" or why there is no score: "no_tissue".
    """

    probabilities: NDArray[np.float64] | None
    attention: NDArray[np.float32] | None
    reason: str


def score_slide(model: Model, embeddings: Embeddings) -> SlideScore:
    """Scores one slide on the CPU. A slide without tiles gets no score, though a head could be made to name one.

    Raises:
        EmbeddingsStaleError: the embeddings were made with another recipe than the model's.
        EmbeddingsDamagedError: an embedding is not finite.
    """
    path = Path(f"{embeddings.slide_id}.h5")
    require_recipe(path, embeddings.recipe, model.recipe)
    features = np.asarray(embeddings.features, dtype=np.float32)
    if not len(features):
        return SlideScore(None, None, NO_TISSUE)
    if not np.isfinite(features).all():
        message = f"{path} holds embeddings that are not finite; extract the slide again with --precision float32"
        raise EmbeddingsDamagedError(path, message)
    with torch.inference_mode():
        output = model.head(pack([torch.from_numpy(features)]))
    probabilities = torch.softmax(output.logits[0].double(), dim=0).numpy()
    if output.attention is None:
        return SlideScore(probabilities, None, "")
    # a head with one branch a class is shown by the branch of the class it predicts
    branch = int(probabilities.argmax()) if output.attention.shape[1] > 1 else 0
    return SlideScore(probabilities, output.attention[:, branch].numpy(), "")


def score_table(model: Model, slides: pd.DataFrame, place: Literal["fold", "split"]) -> pd.DataFrame:
    """The predictions of a model: one row a slide, in the order given.

    Args:
        model: scores every slide that has tiles.
        slides: columns slide_id, patient_id, label, files (a tuple of embeddings files, one a cache, or None) and `place`.
        place: the column that says on which side of a split a slide stood.

    Returns:
        Columns slide_id, patient_id, `place`, label, predicted, prob_<class> for each class, n_tiles, reason; without a
        score predicted is "", the probabilities are NaN and reason is "no_tissue" or "no_embeddings".

    Raises:
        EmbeddingsError: a file that is damaged, of another recipe, or of another slide than its row; or files of a slide
            that are not of the same tiles.
    """
    rows = []
    for slide in progress(slides.to_dict("records"), "score"):
        score, n_tiles = SlideScore(None, None, NO_EMBEDDINGS), 0
        if slide["files"]:
            embeddings = read_joined(slide["files"], model.recipe)
            require_slide(slide["files"][0], embeddings, slide["slide_id"])
            score, n_tiles = score_slide(model, embeddings), len(embeddings.features)
        known = {name: slide[name] for name in ("slide_id", "patient_id", place, "label")}
        rows.append(known | _columns(model.classes, score) | {"n_tiles": n_tiles, "reason": score.reason})
    return pd.DataFrame(rows)


def require_slide(path: Path, embeddings: Embeddings, slide_id: str) -> None:
    """Refuses embeddings of another slide than the one they are taken for, as after a file was renamed.

    Raises:
        EmbeddingsStaleError: the message names both.
    """
    if embeddings.slide_id != slide_id:
        message = f"{path} holds slide {embeddings.slide_id}, not {slide_id}; give the file its slide's name, or extract again"
        raise EmbeddingsStaleError(path, message)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically; NaN is an empty cell, floats read back exactly."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_predictions(path: Path, classes: Sequence[str], remedy: str) -> pd.DataFrame:
    """A predictions table: ids, labels and folds as text ("" where empty), probabilities as numbers (NaN where empty).

    Raises:
        InputError: missing, broken, of other columns, or a probability that is none; the message ends in the remedy.
    """
    names = [f"prob_{name}" for name in classes]
    table = read_table(path, ("slide_id", "patient_id", "label", "predicted", "reason", *names), remedy)
    for name in names:
        text, table[name] = table[name], pd.to_numeric(table[name], errors="coerce").astype(float)
        if ((text != "") & ~table[name].between(0, 1)).any():
            message = f"{path} holds something else than probabilities in the column {name}; {remedy}"
            raise InputError(message)
    return table


def read_metrics(path: Path, remedy: str) -> dict[str, Any]:
    """metrics.json as `metrics_document` made it.

    Raises:
        InputError: missing, broken, or no metrics.json; the key is named and the message ends in the remedy.
    """
    return read_document(path, _FORMAT, _FORMAT_VERSION, _SHAPE, remedy)


def metrics_document(
    predictions: pd.DataFrame,
    *,
    label: str,
    classes: Sequence[str],
    protocol: str,
    left_out: Sequence[LeftOut],
    controls: Mapping[str, Any],
    folds: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """metrics.json of predictions for slides that the model had not seen; figures are null where there are none.

    Args:
        predictions: a predictions table, of held-out slides only.
        label: the label column.
        classes: in order.
        protocol: how the slides were held out, in words.
        left_out: slides of the cohort that were not used, with the reason.
        controls: the blocks "controls" and "confounded".
        folds: what each fold was fitted on.
        warnings: come before those of the figures.
    """
    scored = predictions[is_scored(predictions, classes)] if len(predictions) else predictions
    figures: dict[str, Any] = {"slide": None, "patient": None, "interval": None, "warnings": []}
    if len(scored):
        figures = cohort_figures(predictions, classes)
    return {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "label": label,
        "classes": list(classes),
        "protocol": protocol,
        "n_slides": len(scored),
        "n_patients": int(scored["patient_id"].nunique()) if len(scored) else 0,
        "left_out": [one._asdict() for one in left_out],
        "slide": figures["slide"],
        "patient": figures["patient"],
        "interval": figures["interval"],
        **controls,
        "folds": list(folds),
        "warnings": [*warnings, *figures["warnings"]],
    }


def no_controls(why: str) -> dict[str, Any]:
    """The blocks "controls" and "confounded" where the controls cannot be fitted."""
    absent = {"available": False, "why": why}
    sentence = f"Confounding was not tested: {why}."
    return {
        "controls": {"mean_colour": absent, "site": absent},
        "confounded": {"verdict": "not tested", "controls": [], "sentence": sentence},
    }


def summary(metrics: Mapping[str, Any]) -> str:
    """A metrics document in a few lines for a terminal: figures by patient with intervals, confounding, warnings."""
    lines = [
        f"{metrics['label']}, {metrics['protocol']}: {metrics['n_slides']} slides of {metrics['n_patients']} patients"
    ]
    for unit in ("patient", "slide"):
        block = metrics[unit]
        if block:
            figures = ", ".join(f"{name.replace('_', ' ')} {_text(block[name])}" for name in _FIGURES)
            lines.append(f"by {unit}: {figures}")
    lines.append(metrics["confounded"]["sentence"])
    lines += [f"warning: {warning}" for warning in metrics["warnings"]]
    if metrics["left_out"]:
        lines.append(f"left out: {len(metrics['left_out'])} slides, see metrics.json")
    return "\n".join(lines)


def _columns(classes: Sequence[str], score: SlideScore) -> dict[str, Any]:
    if score.probabilities is None:
        return {"predicted": ""} | {f"prob_{name}": np.nan for name in classes}
    probabilities = {f"prob_{name}": float(p) for name, p in zip(classes, score.probabilities, strict=True)}
    return {"predicted": classes[int(score.probabilities.argmax())]} | probabilities


def _text(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "not computable"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
