"""The plots of a report, by what is predicted: curves of probabilities, survival by risk, or numbers over the true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.cohortfigures import scored_patients
from pathfm.curves import precision_recall_band, reliability, roc_band
from pathfm.decisions import Outcome, Screening, asked, outcomes_of
from pathfm.figures import (
    data_uri,
    draw_calibration,
    draw_forest,
    draw_net_benefit,
    draw_precision_recall,
    draw_predicted,
    draw_roc,
    draw_scores,
    draw_survival,
    svg_bytes,
)
from pathfm.netbenefit import net_benefit
from pathfm.phrases import figure_name
from pathfm.survivalcurves import kaplan_meier, log_rank
from pathfm.words import condition, control_name, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure as Drawing
    from numpy.typing import NDArray

    from pathfm.metrics import Figure, Scored
    from pathfm.targets import Target

MOST_CURVES = 6
"""Questions whose curves are drawn into one plot; the most frequent, where there are more."""
_MOST_GROUPS = 40
_RISKS = ("lower risk", "higher risk")


def draw_plots(predictions: pd.DataFrame, target: Target, metrics: dict[str, Any]) -> dict[str, str]:
    """The plots of a target as data addresses, by name; none where the main figure could not be computed.

    Of a yes/no question with probabilities: roc, precision_recall, calibration, net_benefit and scores; of a screening by a
    score that is no probability without calibration and net_benefit; of a number `predicted`; of a risk `survival`. Of
    all `forest`, the controls beside the model, and with subgroups `subgroups`.

    Args:
        predictions: a predictions table, of held-out rows.
        target: what was predicted.
        metrics: its metrics document.
    """
    main = metrics["figures"][0]
    if not metrics["patient"] or metrics["patient"][main]["value"] is None:
        return {}
    patients = scored_patients(predictions, target)
    drawings = {"forest": _controls(metrics, main, target), **_subgroups(metrics, main, target.chance)}
    outcomes = _asked(target, metrics, patients)
    if outcomes:
        scores = _scores(outcomes, patients, target, line_at(target, metrics))
        drawings |= _curves(outcomes, patients, target, metrics) | {"scores": scores}
    elif target.kind == "regression":
        true, predicted = patients.truth[:, 0].astype(float), patients.scores[:, 0]
        drawings["predicted"] = draw_predicted(true, predicted, target.name)
    elif target.kind in ("cox", "hazards"):
        drawings |= _survival(patients, target)
    return {name: data_uri(svg_bytes(drawing), "image/svg+xml") for name, drawing in drawings.items()}


def risk_test(predictions: pd.DataFrame, target: Target) -> dict[str, Any] | None:
    """The log-rank test between the halves of lower and higher risk: p, and patients and events of each; None of others."""
    if target.kind not in ("cox", "hazards"):
        return None
    patients = scored_patients(predictions, target)
    time, event, group = _risk_groups(patients)
    rows = [
        {"name": name, "n": int((group == at).sum()), "events": int(event[group == at].sum())}
        for at, name in enumerate(_RISKS)
    ]
    return {"p": log_rank(time, event, group), "groups": rows}


def n_questions(target: Target, metrics: Mapping[str, Any]) -> int:
    """How many yes/no questions the scores answer, of which `MOST_CURVES` are drawn."""
    return len(asked(target, _screening(metrics)))


def line_at(target: Target, metrics: Mapping[str, Any]) -> float | None:
    """Where the plot of the scores has its line: the frozen threshold; 0.5 where none was chosen and the figures are at that.

    None where no one line holds for all marks: each fold has a threshold of its own, or several questions are drawn.
    """
    block = metrics["operating_points"]
    if block is None or block["rule"] is None:
        halved = target.kind == "multilabel" or (target.kind == "classes" and len(target.groups) == 2)
        return 0.5 if halved and not metrics["screening"] else None
    points = [levels["patient"] for levels in block["outcomes"].values()]
    at = points[0]["threshold"] if len(points) == n_questions(target, metrics) == 1 and points[0] else None
    return None if at is None else float(at)


def _screening(metrics: Mapping[str, Any]) -> Screening | None:
    block = metrics["screening"]
    rare = tuple(row["name"] for row in block["types"] if row["stratum"] == "rare") if block else ()
    return Screening(block["negative"], rare) if block else None


def _asked(target: Target, metrics: Mapping[str, Any], patients: Scored) -> list[Outcome]:
    """The questions whose curves are drawn."""
    outcomes = outcomes_of(target, _screening(metrics), patients)
    frequent = {one.name for one in sorted(outcomes, key=lambda one: -int(one.positive.sum()))[:MOST_CURVES]}
    return [one for one in outcomes if one.name in frequent]


def _curves(
    outcomes: list[Outcome], patients: Scored, target: Target, metrics: Mapping[str, Any]
) -> dict[str, Drawing]:
    named = {condition(target, one.name): (one.positive, one.score) for one in outcomes}
    bands = {name: roc_band(*one, patients) for name, one in named.items()}
    precise = {name: precision_recall_band(*one, patients) for name, one in named.items()}
    drawings = {
        "roc": draw_roc({name: band for name, band in bands.items() if band}),
        "precision_recall": draw_precision_recall({name: band for name, band in precise.items() if band}),
    }
    if metrics["screening"] and target.kind == "multilabel":  # the largest of several probabilities is none
        return drawings
    # at the share of this cohort: the probabilities hold for it, and not for a stated prevalence
    worth = {name: net_benefit(*one, patients) for name, one in named.items()}
    return drawings | {
        "calibration": draw_calibration({name: reliability(*one) for name, one in named.items()}),
        "net_benefit": draw_net_benefit({name: curve for name, curve in worth.items() if curve}),
    }


def _scores(outcomes: list[Outcome], patients: Scored, target: Target, at: float | None) -> Drawing:
    """Of one question its score in both groups, of several classes the probability of the true one, of labels of each."""
    if len(outcomes) > 1 and target.width == 1:
        codes = patients.truth[:, 0]
        of_class = {
            f"{target.name} {name}": patients.scores[codes == code, code] for code, name in enumerate(target.groups)
        }
        return draw_scores(of_class, "probability of the true class, one mark a patient", at)
    rows = {
        f"{'' if has else 'not '}{condition(target, one.name)}": one.score[one.positive == has]
        for one in outcomes
        for has in (True, False)
    }
    what = condition(target, outcomes[0].name) if len(outcomes) == 1 else "it"
    return draw_scores(rows, f"score for {what}, one mark a patient", at)


def _controls(metrics: Mapping[str, Any], main: str, target: Target) -> Drawing:
    rows: list[tuple[str, Figure]] = [("the model", metrics["patient"][main])]
    rows += [(control_name(name), block[main]) for name, block in metrics["controls"].items() if block["available"]]
    return draw_forest(rows, target.chance, f"patient-level {figure_name(target, metrics, main)} (95 % interval)")


def _subgroups(metrics: Mapping[str, Any], main: str, chance: float) -> dict[str, Drawing]:
    """The main figure of every group that has one, below that of all patients."""
    block = metrics["subgroups"]
    rows: list[tuple[str, Figure]] = [
        (f"{column} {row['value']} (n = {row['n']})", row["figure"])
        for column, groups in (block["columns"] if block else {}).items()
        for row in groups["rows"]
        if row["figure"]["value"] is not None
    ]
    whole = metrics["screening"]["any"]["auroc"] if metrics["screening"] else metrics["patient"][main]
    everybody: tuple[str, Figure] = (f"all patients (n = {metrics['patient']['n']})", whole)
    label = f"patient-level {words_of(block['figure'] if block else main).name} (95 % interval)"
    return {"subgroups": draw_forest([everybody, *rows[:_MOST_GROUPS]], chance, label)} if rows else {}


def _survival(patients: Scored, target: Target) -> dict[str, Drawing]:
    time, event, group = _risk_groups(patients)
    curves = {
        f"{name} (n = {int((group == at).sum())})": kaplan_meier(time[group == at], event[group == at])
        for at, name in enumerate(_RISKS)
    }
    drawn = {name: curve for name, curve in curves.items() if curve}
    return {"survival": draw_survival(drawn, target.columns[0])} if drawn else {}


def _risk_groups(patients: Scored) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Time, event, and whether the risk is above the median of the patients of the fold: risks of two models do not compare."""
    group = np.zeros(len(patients.truth), dtype=np.int64)
    for fold in np.unique(patients.scores[:, 1]):
        rows = patients.scores[:, 1] == fold
        group[rows] = patients.scores[rows, 0] > np.median(patients.scores[rows, 0])
    return patients.truth[:, 0].astype(np.float64), patients.truth[:, 1] == 1, group
