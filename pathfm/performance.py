"""How well a model does, in sentences: what its figures show, each with its interval, and what they do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm.decisions import ANY
from pathfm.frequencies import frequencies
from pathfm.metrics import FEW_PATIENTS
from pathfm.phrases import counted, sentence, with_interval
from pathfm.proportions import claim_note
from pathfm.words import condition, percent, percent_interval, share, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.targets import Target

    Metrics = Mapping[str, Any]

_MOST_OUTCOMES = 3
_GUESSED = 0.5  # the AUROC of a guess
_NO_WIDTH = "; with so few patients that the interval has no width the true value may well be lower"
_CALIBRATED = {"slope": 1.0, "intercept": 0.0}
_WIDEST_SLOPE = 1.0  # such as from 0.5, twice too extreme, to 1.5
_FEW_CALIBRATED = 50  # patients


def performance(target: Target, metrics: Metrics) -> tuple[list[str], list[str]]:
    """Sentences on what a model was shown to do, each with its interval, and on what it was not.

    Args:
        target: what was predicted.
        metrics: its metrics document, with every block of `results.BLOCKS`, None where it is not known.
    """
    ranks, unranked = _ranking(target, metrics)
    strata, unproven = _strata(metrics)
    calibrated, uncalibrated = _probabilities(target, metrics)
    can = [*ranks, *_decisions(target, metrics), *strata, *_origin(metrics), *calibrated, *_abstention(metrics)]
    return can, [*unranked, *unproven, *_bounds(metrics), *uncalibrated, *_undecided(target, metrics)]


def _ranking(target: Target, metrics: Metrics) -> tuple[list[str], list[str]]:
    """What the main figure says, as something that it can do or, where it may be chance, cannot; of a screening that of any."""
    main = metrics["figures"][0]
    figure = metrics["patient"][main] if metrics["patient"] else None
    what = condition(target, target.groups[-1]) if len(target.groups) == 2 else "one of the classes (mean over them)"
    if metrics["screening"]:
        main, figure, what = "auroc", metrics["screening"]["any"]["auroc"], condition(target, ANY)
    if figure is None or figure["value"] is None:
        return [], [f"How good it is: the patient-level {words_of(main).name} could not be computed."]
    said = _rank_sentence(main, figure, what)
    if figure["low"] <= target.chance:
        return [], [f"It is not shown to be better than guessing. {said}"]
    return [said], []


def _rank_sentence(main: str, figure: Mapping[str, Any], what: str) -> str:
    about = _of_pairs(figure)
    if main == "auroc":
        return (
            f"Of 100 pairs of patients, one with {what} and one without, it scores the right one higher {about}. By"
            " guessing it would be 50."
        )
    if main == "c_index":
        return (
            "Of 100 pairs of patients of whom it is known who had the event first, it gives that one the higher risk"
            f" {about}. By guessing it would be 50."
        )
    words = words_of(main)
    return f"Its patient-level {words.name} ({words.meaning}) is {with_interval(figure)}; {words.scale}."


def _of_pairs(figure: Mapping[str, Any]) -> str:
    value, low, high = (_of_hundred(figure[key]) for key in ("value", "low", "high"))
    return f"in about {value} (95 % interval {low} to {high}){_NO_WIDTH if figure['low'] == figure['high'] else ''}"


def _of_hundred(value: float) -> int:
    """Pairs of 100, rounded as the table rounds; certain of all or of none only where the figure is."""
    hundredths = round(100 * float(f"{value:.2f}"))
    return min(max(hundredths, int(value > 0)), 100 - int(value < 1))


def _decisions(target: Target, metrics: Metrics) -> list[str]:
    lines = []
    for name, point in _points(metrics):
        what, rule = condition(target, name), metrics["operating_points"]["rule"]
        found, spared = point["sensitivity"], point["specificity"]
        if found["value"] is None or spared["value"] is None:
            continue
        lines.append(
            f"At the operating point ({rule}) it flags {found['k']} of {found['n']} patients with {what}"
            f" ({_percent(found)}) and leaves {spared['k']} of {spared['n']} without it unflagged ({_percent(spared)})."
        )
        if point["at_prevalence"]:
            values = point["at_prevalence"]
            lines.append(frequencies(point, values["prevalence"], what))
            lines.append(_predictive(values, what))
    return [line for line in lines if line]


def _points(metrics: Metrics) -> list[tuple[str, Mapping[str, Any]]]:
    """The first few questions that were decided, each with its operating point by patient."""
    outcomes = metrics["operating_points"]["outcomes"] if metrics["operating_points"] else {}
    return [(name, point["patient"]) for name, point in outcomes.items() if point["patient"]][:_MOST_OUTCOMES]


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{percent(figure['value'])} %, 95 % interval {percent(figure['low'])} to {percent(figure['high'])} %"


def _predictive(values: Mapping[str, Any], what: str) -> str:
    """What a flag means, and what it means to have none, at the stated prevalence."""
    if values["ppv"]["value"] is None or values["npv"]["value"] is None:
        return ""
    return (
        f"There, {percent_interval(values['ppv'])} of those that it flags have {what}, and"
        f" {percent_interval(values['npv'])} of those that it does not flag have not (95 % intervals)."
    )


def _strata(metrics: Metrics) -> tuple[list[str], list[str]]:
    """How the common and the rare ones fare each: what any reaches says nothing of the rare. Shown, and not shown."""
    can, cannot = [], []
    for name, block in (metrics["screening"] or {"strata": {}})["strata"].items():
        if block is None:
            continue
        figure, what = block["auroc"], f"{name} cancers ({counted(block['n'], 'patient')})"
        if figure["value"] is None:
            cannot.append(f"How it does on {what}: the patient-level AUROC could not be computed.")
            continue
        told = (
            f"Of 100 pairs of one patient with one of the {what} and one without cancer, it scores the right one higher"
            f" {_of_pairs(figure)}."
        )
        found = block["at_point"]["sensitivity"] if block["at_point"] else None
        if found and found["value"] is not None:
            told += f" At the operating point it flags {found['k']} of {found['n']} of them ({_percent(found)})."
        if figure["low"] <= _GUESSED:
            cannot.append(f"It is not shown to be better than guessing on {name} cancers. {told}")
        else:
            can.append(told)
    return can, cannot


def _origin(metrics: Metrics) -> list[str]:
    block = metrics["screening"]
    if not block or not block["origin"]["top1"] or block["origin"]["top1"]["value"] is None:
        return []
    right, of_all = block["origin"]["top1"], block["origin"]["top1_of_all"]
    told = f"Where it rightly flags a patient, the type it names first is the right one in {share(right)}"
    if of_all and of_all["value"] is not None:
        told += f"; of all patients with cancer, missed ones too, it flags and names {share(of_all)} rightly"
    return [f"{told} (95 % intervals)."]


def _probabilities(target: Target, metrics: Metrics) -> tuple[list[str], list[str]]:
    """Whether its numbers may be read as probabilities, of each of the first questions."""
    if not target.gives_probabilities:
        return [], []
    block = metrics["calibration"]
    outcomes = dict(list(block["outcomes"].items())[:_MOST_OUTCOMES]) if block else {}
    known = {name: one for name, one in outcomes.items() if one["slope"]["value"] is not None}
    if not known:
        return [], [
            "Its score is not shown to be a probability: of 100 patients with a score of 0.8, nobody knows whether 80 have it."
        ]
    can, cannot = [], []
    for name, one in known.items():
        told = f"slope {with_interval(one['slope'])}, intercept {with_interval(one['intercept'])}, 1 and 0 at best"
        wrong = [_miscalibrated(key, one[key]) for key, best in _CALIBRATED.items() if _excludes(one[key], best)]
        if wrong:
            cannot.append(
                f"Its probability of {condition(target, name)} is not to be taken at its word: {' and '.join(wrong)} ({told})."
            )
        elif _says_little(one):
            cannot.append(
                f"Whether its probability of {condition(target, name)} can be taken at its word: too few patients,"
                f" {one['n']} ({told})."
            )
        else:
            can.append(f"Its probability of {condition(target, name)} is not seen to be off ({told}).")
    return can, cannot


def _says_little(one: Mapping[str, Any]) -> bool:
    """An interval that holds right and badly wrong probabilities alike, or so few patients that it is none to go by."""
    width = one["slope"]["high"] - one["slope"]["low"]
    return bool(one["n"] < _FEW_CALIBRATED or width > _WIDEST_SLOPE)


def _excludes(figure: Mapping[str, Any], best: float) -> bool:
    return figure["value"] is not None and not figure["low"] <= best <= figure["high"]


def _miscalibrated(key: str, figure: Mapping[str, Any]) -> str:
    if key == "slope":
        return "too extreme" if figure["value"] < 1 else "too timid"
    return "too low on average" if figure["value"] > 0 else "too high on average"


def _abstention(metrics: Metrics) -> list[str]:
    block = metrics["conformal"]
    if not block or block["abstained"]["value"] is None:
        return []
    right = block["right_of_rest"]
    rest = f"; of the others it is right in {share(right)}" if right["value"] is not None else ""
    return [f"It abstains where it is unsure: {share(block['abstained'])} of the patients{rest} (95 % intervals)."]


def _bounds(metrics: Metrics) -> list[str]:
    """What the numbers at hand do not allow to claim; how thresholds were chosen stands in their section."""
    lines = [note for _, point in _points(metrics) if (note := claim_note(point["specificity"]))]
    others = len(metrics["operating_points"]["notes"]) - len(lines) if metrics["operating_points"] else 0
    if others > 0:
        lines.append(f"The operating point has reservations ({others}), which stand in its section")
    block = metrics["patient"]
    few = {name: n for name, n in (block["n_by_class"] if block else {}).items() if n < FEW_PATIENTS}
    if few:
        told = ", ".join(f"{name}: {n}" for name, n in few.items())
        lines.append(
            f"Too few patients ({told}) for more than a first impression: the intervals are rough and too narrow"
        )
    return [sentence(line) for line in lines]


def _undecided(target: Target, metrics: Metrics) -> list[str]:
    """What is not known for want of an operating point, or of a prevalence."""
    if not _points(metrics):
        unknown = "How many it would find and how many it would miss: no operating point was chosen."
        return [unknown] if target.gives_probabilities else []
    if metrics["prevalence"] is not None:
        return []
    return [
        "How likely disease is in a flagged patient: that depends on how common it is where the model is used, and no"
        " prevalence was stated."
    ]
