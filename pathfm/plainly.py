"""What a model can and cannot say, in sentences for a clinician: all from its figures, and no claim without its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.decisions import ANY
from pathfm.frequencies import frequencies
from pathfm.metrics import FEW_PATIENTS
from pathfm.proportions import claim_note
from pathfm.words import condition, control_name, number, percent, percent_interval, share, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.stage import Stage, StageStamp
    from pathfm.targets import Target

    Metrics = Mapping[str, Any]

STAGE_WORDS: dict[Stage, str] = {
    "development": "for research on stored slides; not to be used for any patient",
    "silent": "may run beside routine work, its output kept from those who decide",
    "assisted": "may be shown to a pathologist, who decides and answers for the decision",
}
_MOST_OUTCOMES = 3
_MOST_REASONS = 3
_PERMUTED = "permuted_labels"
_OVER_QUESTIONS = ("auroc", "average_precision")
_GUESSED = 0.5  # the AUROC of a guess
_NO_WIDTH = "; with so few patients that the interval has no width the true value may well be lower"
_LED_BY = "Whether it is led by the {}"
_LED = {_PERMUTED: "Whether something besides the labels leads across folds"}
_CALIBRATED = {"slope": 1.0, "intercept": 0.0}
_WIDEST_SLOPE = 1.0  # such as from 0.5, twice too extreme, to 1.5
_FEW_CALIBRATED = 50  # patients
_MOST_P = 0.1  # of a weakest group that is named among the first sentences


class Plain(NamedTuple):
    """A summary in plain sentences.

    Attributes:
        alarm: why the figures are not to be taken at their word, "" where nothing speaks against it.
        can: what it was shown to do, each with its interval.
        cannot: what it was not shown to do, what was not tested, and what nobody can tell.
        rests_on: how many patients, and how they were held out.
        stage: what it may be used for, and why it is there.
    """

    alarm: str
    can: list[str]
    cannot: list[str]
    rests_on: list[str]
    stage: str


def plain_summary(target: Target, metrics: Metrics, stamp: StageStamp) -> Plain:
    """What the figures of a target allow to say.

    Args:
        target: what was predicted.
        metrics: its metrics document, with every block of `results.BLOCKS`, None where it is not known.
        stamp: the stage of the model.
    """
    ranks, unranked = _ranking(target, metrics)
    calibrated, uncalibrated = _probabilities(target, metrics)
    strata, unproven = _strata(metrics)
    return Plain(
        alarm=_alarm(metrics),
        can=[*ranks, *_decisions(target, metrics), *strata, *_origin(metrics), *calibrated, *_abstention(metrics)],
        cannot=[
            *unranked,
            *unproven,
            *_bounds(metrics),
            *uncalibrated,
            *_undecided(target, metrics),
            *_untested(metrics),
            *_elsewhere(metrics),
        ],
        rests_on=_rests_on(target, metrics),
        stage=_stage(stamp),
    )


def named_figures(target: Target, metrics: Metrics) -> list[tuple[str, Mapping[str, Any]]]:
    """The figures by patient, each under its name, the one that counts first: of a screening the AUROC of any."""
    block = metrics["patient"]
    rows = [(figure_name(target, metrics, key), block[key]) for key in metrics["figures"]] if block else []
    if not metrics["screening"]:
        return rows
    return [(f"{words_of('auroc').name} of {condition(target, ANY)}", metrics["screening"]["any"]["auroc"]), *rows]


def figure_name(target: Target, metrics: Metrics, key: str) -> str:
    """The name of a figure; one that is a mean over questions says so."""
    name = words_of(key).name
    if key in _OVER_QUESTIONS and target.kind == "classes" and len(target.groups) > 2:
        return f"{name}, mean over one class against the rest"
    if key in _OVER_QUESTIONS and target.kind == "multilabel" and metrics["screening"]:
        return f"{name}, mean over the labels"
    return name


def _alarm(metrics: Metrics) -> str:
    named = metrics["confounded"]["controls"]
    leading = [control_name(name) for name in named if name != _PERMUTED]
    lines = []
    if leading:
        lines.append(f"Confounded, or not excluded: {' and '.join(leading)}. What leads here may not be disease.")
    if _PERMUTED in named:
        lines.append(
            "Even labels dealt out at random could be learned: something besides the labels leads across folds."
        )
    if lines:
        return " ".join([*lines, "Do not take the figures below for recognition of disease."])
    if metrics["confounded"]["verdict"] == "not tested":
        return "Confounding was not tested: what leads here may be the site or the stain and not disease."
    return ""


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
    return f"Its patient-level {words.name} ({words.meaning}) is {_with_interval(figure)}; {words.scale}."


def _of_pairs(figure: Mapping[str, Any]) -> str:
    value, low, high = (_of_hundred(figure[key]) for key in ("value", "low", "high"))
    return f"in about {value} (95 % interval {low} to {high}){_NO_WIDTH if figure['low'] == figure['high'] else ''}"


def _of_hundred(value: float) -> int:
    """Pairs of 100, rounded as the table rounds; certain of all or of none only where the figure is."""
    hundredths = round(100 * float(f"{value:.2f}"))
    return min(max(hundredths, int(value > 0)), 100 - int(value < 1))


def _with_interval(figure: Mapping[str, Any]) -> str:
    return f"{number(figure['value'])} (95 % interval {number(figure['low'])} to {number(figure['high'])})"


def _points(metrics: Metrics) -> list[tuple[str, Mapping[str, Any]]]:
    """The first few questions that were decided, each with its operating point by patient."""
    outcomes = metrics["operating_points"]["outcomes"] if metrics["operating_points"] else {}
    return [(name, point["patient"]) for name, point in outcomes.items() if point["patient"]][:_MOST_OUTCOMES]


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
        figure, what = block["auroc"], f"{name} cancers ({_counted(block['n'], 'patient')})"
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
    if not any(name.startswith("prob_") for name in target.names):
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
        told = f"slope {_with_interval(one['slope'])}, intercept {_with_interval(one['intercept'])}, 1 and 0 at best"
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
    return [_sentence(line) for line in lines]


def _undecided(target: Target, metrics: Metrics) -> list[str]:
    """What is not known for want of an operating point, or of a prevalence."""
    if not _points(metrics):
        asked = any(name.startswith("prob_") for name in target.names)
        return ["How many it would find and how many it would miss: no operating point was chosen."] if asked else []
    if metrics["prevalence"] is not None:
        return []
    return [
        "How likely disease is in a flagged patient: that depends on how common it is where the model is used, and no"
        " prevalence was stated."
    ]


def _untested(metrics: Metrics) -> list[str]:
    """Groups that are weaker than by chance, shift, and controls that could not be had."""
    missing = {name: block["why"] for name, block in metrics["controls"].items() if not block["available"]}
    lines = [
        f"{_LED.get(name, _LED_BY).format(control_name(name))}: not tested, {why}." for name, why in missing.items()
    ]
    if len(lines) > 1 and len(set(missing.values())) == 1:
        lines = [f"Whether something else than disease leads: not tested, {next(iter(missing.values()))}."]
    groups = metrics["subgroups"]
    for column, block in groups["columns"].items() if groups else ():
        worst = next((row for row in block["rows"] if row["value"] == block["worst"]), None)
        if worst and worst["figure"]["value"] is not None and block["p"] is not None and block["p"] <= _MOST_P:
            name = words_of(groups["figure"]).name
            lines.append(
                f"It is weakest where {column} is {worst['value']}: {name} {_with_interval(worst['figure'])}, {worst['n']} patients."
            )
    if metrics["shift"] and metrics["shift"]["alarm"]:
        lines.append(_sentence(metrics["shift"]["sentence"]))
    return lines


def _elsewhere(metrics: Metrics) -> list[str]:
    looks = metrics["ledger"]["looks"] if metrics["ledger"] else 1
    seen = [f"These patients were looked at {looks} times: the best of several looks flatters."] if looks > 1 else []
    tested = "It was tested on patients of the cohort that it learned from. " if metrics["folds"] else ""
    return [
        *seen,
        f"{tested}How it does in another hospital, with another scanner or stain, nobody knows before it is tested there.",
        "Why it says what it says: attention shows where it looked, not a reason.",
    ]


def _rests_on(target: Target, metrics: Metrics) -> list[str]:
    protocol, left_out = metrics["protocol"], len(metrics["left_out"])
    lines = [
        f"{_counted(metrics['n_patients'], 'patient')}{_counts(target, metrics['patient'])} with {_counted(metrics['n_slides'], 'slide')}.",
        _sentence(protocol),
    ]
    return [*lines, f"{_counted(left_out, 'slide')} of the cohort took no part."] if left_out else lines


def _counts(target: Target, block: Mapping[str, Any] | None) -> str:
    if not block or not block["n_by_class"]:
        return ""
    counts = block["n_by_class"]
    if len(target.groups) == 2 and list(counts) == target.groups:
        without, having = counts.values()
        return f" ({having} with {condition(target, target.groups[1])}, {without} without)"
    return f" ({', '.join(f'{name}: {n}' for name, n in counts.items())})"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _stage(stamp: StageStamp) -> str:
    said = f"{_sentence(stamp.stage)[:-1]}: {STAGE_WORDS[stamp.stage]}."
    if stamp.stage == "development":
        return " ".join([said, *map(_sentence, stamp.reasons[:_MOST_REASONS])])
    return f"{said} Given on {stamp.when[:10]} by the criteria {stamp.criteria_sha256[:8]}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
