"""What a model can and cannot say, in sentences for a clinician: all from its figures, and no claim without its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.performance import performance
from pathfm.phrases import capital, counted, sentence, with_interval
from pathfm.words import condition, control_name, words_of

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
_MOST_REASONS = 3
_PERMUTED = "permuted_labels"
_LED_BY = "Whether it is led by the {}"
_LED = {_PERMUTED: "Whether something besides the labels leads across folds"}
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
    can, cannot = performance(target, metrics)
    return Plain(
        alarm=_alarm(metrics),
        can=can,
        cannot=[*cannot, *_untested(metrics), *_elsewhere(metrics)],
        rests_on=_rests_on(target, metrics),
        stage=_stage(stamp),
    )


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
                f"It is weakest where {column} is {worst['value']}: {name} {with_interval(worst['figure'])}, {worst['n']} patients."
            )
    if metrics["shift"] and metrics["shift"]["alarm"]:
        lines.append(sentence(metrics["shift"]["sentence"]))
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
        f"{counted(metrics['n_patients'], 'patient')}{_counts(target, metrics['patient'])} with {counted(metrics['n_slides'], 'slide')}.",
        sentence(protocol),
    ]
    return [*lines, f"{counted(left_out, 'slide')} of the cohort took no part."] if left_out else lines


def _counts(target: Target, block: Mapping[str, Any] | None) -> str:
    if not block or not block["n_by_class"]:
        return ""
    counts = block["n_by_class"]
    if len(target.groups) == 2 and list(counts) == target.groups:
        without, having = counts.values()
        return f" ({having} with {condition(target, target.groups[1])}, {without} without)"
    return f" ({', '.join(f'{name}: {n}' for name, n in counts.items())})"


def _stage(stamp: StageStamp) -> str:
    said = f"{capital(stamp.stage)}: {STAGE_WORDS[stamp.stage]}."
    if stamp.stage == "development":
        return " ".join([said, *map(sentence, stamp.reasons[:_MOST_REASONS])])
    return f"{said} Given on {stamp.when[:10]} by the criteria {stamp.criteria_sha256[:8]}."
