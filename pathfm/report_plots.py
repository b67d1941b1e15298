"""The plots of a report, by what is predicted: curves of probabilities, or numbers over the true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm.cohortfigures import by_patient, scored_slides
from pathfm.curves import reliability, roc_band
from pathfm.figures import data_uri, draw_calibration, draw_forest, draw_predicted, draw_roc, draw_scores, svg_bytes
from pathfm.words import control_name, words_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

    from pathfm.metrics import Figure, Scored
    from pathfm.targets import Target
    from pathfm.targets.target import Outcomes


def draw_plots(predictions: pd.DataFrame, target: Target, metrics: dict[str, Any]) -> dict[str, str]:
    """The plots of a target as data addresses, by name; none where the main figure could not be computed.

    Probabilities have a ROC curve, calibration, and scores by what is true; a number is drawn over the true one; a risk
    has no plot yet. Beside the controls all have their main figure.

    Args:
        predictions: a predictions table, of held-out rows.
        target: what was predicted.
        metrics: its metrics document.
    """
    main = metrics["figures"][0]
    if not metrics["patient"] or metrics["patient"][main]["value"] is None:
        return {}
    patients = by_patient(scored_slides(predictions, target), target)
    outcomes = target.outcomes(patients.truth, patients.scores)
    drawings = {"forest": _forest(metrics, main, target.chance)}
    if outcomes:
        named = {f"{target.name} {name}": outcome for name, outcome in outcomes.items()}
        bands = {name: roc_band(*outcome, patients) for name, outcome in named.items()}
        drawings |= {
            "roc": draw_roc({name: band for name, band in bands.items() if band}),
            "calibration": draw_calibration({name: reliability(*outcome) for name, outcome in named.items()}),
            "scores": _scores(patients, target, outcomes),
        }
    elif target.kind == "regression":
        true, predicted = patients.truth[:, 0].astype(float), patients.scores[:, 0]
        drawings["predicted"] = draw_predicted(true, predicted, target.name)
    return {name: data_uri(svg_bytes(drawing), "image/svg+xml") for name, drawing in drawings.items()}


def _scores(patients: Scored, target: Target, outcomes: Outcomes) -> Drawing:
    """Of two classes the probability of the positive one, of more that of the true one, of each label that of having it."""
    if target.width > 1:
        rows = {
            f"{target.name} {name}: {said}": probability[positive == has]
            for name, (positive, probability) in outcomes.items()
            for said, has in (("yes", True), ("no", False))
        }
        return draw_scores(rows, "probability of the label, one mark a patient")
    groups, codes = target.groups, patients.truth[:, 0]
    columns = [1, 1] if len(groups) == 2 else range(len(groups))
    rows = {
        f"{target.name} {group}": patients.scores[codes == code, column]
        for code, (group, column) in enumerate(zip(groups, columns, strict=True))
    }
    what = f"{target.name} {groups[1]}" if len(groups) == 2 else "the true class"
    return draw_scores(rows, f"probability of {what}, one mark a patient")


def _forest(metrics: dict[str, Any], main: str, chance: float) -> Drawing:
    rows: list[tuple[str, Figure]] = [("the model", metrics["patient"][main])]
    rows += [
        (f"{control_name(name)} alone", block[main])
        for name, block in metrics["controls"].items()
        if block["available"]
    ]
    return draw_forest(rows, chance, f"patient-level {words_of(main).name} (95 % interval)")
