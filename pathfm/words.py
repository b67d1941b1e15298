"""Figures, targets and controls in plain words, for people who have not met them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.decisions import ANY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.targets import Target


class Words(NamedTuple):
    """A figure in words: its name, what it says, and what its values mean."""

    name: str
    meaning: str
    scale: str = ""


_CHANCE_HALF = "1 is perfect, 0.5 is chance"
_CHANCE_0 = "1 is perfect, 0 is chance"
_FIGURES = {
    "auroc": Words("AUROC", "how well cases are ranked", _CHANCE_HALF),
    "average_precision": Words("average precision", "how many of those ranked high have it", "1 is perfect"),
    "balanced_accuracy": Words("balanced accuracy", "mean share of each class that is recognised", "1 is perfect"),
    "f1": Words("F1", "balance of missed and false cases", "1 is perfect"),
    "quadratic_kappa": Words("quadratic kappa", "agreement on the class, far misses weighing more", _CHANCE_0),
    "mean_steps": Words("steps off", "mean number of classes that it is off by; lower is better", "0 is perfect"),
    "pearson_r": Words("Pearson's r", "how well numbers follow the true ones along a line", _CHANCE_0),
    "spearman_r": Words("Spearman's r", "how well numbers are ranked", _CHANCE_0),
    "mean_absolute_error": Words("mean absolute error", "in the unit of the column; lower is better", "0 is perfect"),
    "root_mean_squared_error": Words(
        "root mean squared error", "the same, large errors weighing more; lower is better", "0 is perfect"
    ),
    "r2": Words("R²", "share of the spread that is explained; below 0 is worse than the mean", "1 is perfect"),
    "c_index": Words("c-index", "how well patients are ranked by risk", _CHANCE_HALF),
}
_GIVES = {
    "classes": "a probability for each class ({})",
    "ordinal": "a probability for each class, which stand in an order ({})",
    "multilabel": "a probability for each label ({})",
    "regression": "a number",
    "cox": "a risk, which ranks patients by when the event comes",
    "hazards": "a risk, which ranks patients by when the event comes",
}
_CONTROLS = {"mean_colour": "mean tissue colour", "permuted_labels": "labels dealt out anew"}
_YES = ("1", "yes", "true", "positive")
_MINUS = "\u2212"


def words_of(figure: str) -> Words:
    """The words for a figure of metrics.json; its own name where there are none."""
    if figure.startswith("auroc_"):  # of one label of several
        return Words(f"AUROC of {figure.removeprefix('auroc_')}", "the same of this label alone", _CHANCE_HALF)
    return _FIGURES.get(figure, Words(figure.replace("_", " "), ""))


def control_name(name: str) -> str:
    """The words for a control of metrics.json."""
    return _CONTROLS.get(name, name.replace("_", " "))


def condition(target: Target, outcome: str) -> str:
    """What a patient has of whom the answer to the question `outcome` is yes."""
    if outcome == ANY:
        return "any cancer"
    if target.kind == "ordinal":
        return f"{target.name} {outcome}"
    return target.name if outcome.lower() in _YES else outcome


def interval(figure: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """A figure in words, always with its interval: "0.93 (0.71 to 1.00)"."""
    if figure is None or figure["value"] is None:
        return "not available"
    value, low, high = (number(figure[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign, "" for none."""
    return "" if value is None else f"{value:.{digits}f}".replace("-", _MINUS)


def share(proportion: Mapping[str, Any] | None) -> str:
    """A share of counted cases in words, always with its interval: "46 of 50, 92 % (81 to 97 %)"."""
    if proportion is None or proportion["value"] is None:
        return "not available"
    return f"{proportion['k']} of {proportion['n']}, {percent_interval(proportion)}"


def percent_interval(figure: Mapping[str, Any] | None) -> str:
    """A share between 0 and 1 as percent with its interval: "92 % (81 to 97 %)"."""
    if figure is None or figure["value"] is None:
        return "not available"
    return f"{percent(figure['value'])} % ({percent(figure['low'])} to {percent(figure['high'])} %)"


def percent(value: float) -> str:
    """A share between 0 and 1 in hundredths; near its ends with a decimal, which is not rounded up to certainty."""
    hundredths = round(100 * value, 9)
    if hundredths in (0.0, 100.0) or 1 <= hundredths <= 99:
        return f"{hundredths:.0f}"
    return f"{(math.ceil if hundredths < 1 else math.floor)(10 * hundredths) / 10:.1f}"


def gives(target: Target) -> str:
    """What a model gives for a target."""
    names = [name.removeprefix("prob_") for name in target.names] if target.gives_probabilities else []
    return _GIVES.get(target.kind, "a score").format(", ".join(names))


def notes_on(target: Target) -> list[str]:
    """What to know of its figures, a sentence each."""
    if target.kind == "classes":
        at = " (0.5), not at a tuned threshold" if len(target.groups) == 2 else ""
        return [f"Balanced accuracy and F1 are at the most probable class{at}."]
    if target.kind == "ordinal":
        return ["The class is the median of the probabilities; AUROC is the mean over the thresholds between classes."]
    if target.kind == "multilabel":
        return ["The first figures are means over the labels; F1 is at a probability of 0.5."]
    if target.kind in ("cox", "hazards"):
        return [
            "Of a risk only the order counts; a label with + is the time that somebody was followed without the event."
        ]
    return []


def model_facts(model: dict[str, Any]) -> list[tuple[str, str]]:
    """What model.json says of its head, in rows of (what, text).

    Args:
        model: as `model.read_description` has it.
    """
    head, n_heads = model["heads"][0], len(model["heads"])
    options = ", ".join(f"{name} {value}" for name, value in head["kwargs"].items())
    rows = [("Head", f"{head['name']} ({options})" if options else head["name"])]
    if n_heads > 1:
        rows.append(("Members", f"{n_heads} heads, whose scores are averaged"))
    if len(model["targets"]) > 1:
        rows.append(("Learned together", ", ".join(one["name"] for one in model["targets"])))
    if model["covariates"]:
        rows.append(("Beside the slide it knows", ", ".join(one["name"] for one in model["covariates"])))
    return rows
