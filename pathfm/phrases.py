"""Phrases for the figures of a metrics document: the name that each is shown under, its value, counts and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm.decisions import ANY
from pathfm.words import condition, number, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.targets import Target

_OVER_QUESTIONS = ("auroc", "average_precision")


def named_figures(target: Target, metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The figures by patient, each under its name, the one that counts first: of a screening the AUROC of any."""
    block = metrics["patient"]
    rows = [(figure_name(target, metrics, key), block[key]) for key in metrics["figures"]] if block else []
    if not metrics["screening"]:
        return rows
    return [(f"{words_of('auroc').name} of {condition(target, ANY)}", metrics["screening"]["any"]["auroc"]), *rows]


def figure_name(target: Target, metrics: Mapping[str, Any], key: str) -> str:
    """The name of a figure; one that is a mean over questions says so."""
    name = words_of(key).name
    if key in _OVER_QUESTIONS and target.kind == "classes" and len(target.groups) > 2:
        return f"{name}, mean over one class against the rest"
    if key in _OVER_QUESTIONS and target.kind == "multilabel" and metrics["screening"]:
        return f"{name}, mean over the labels"
    return name


def with_interval(figure: Mapping[str, Any]) -> str:
    """The value of a figure that has one, as a sentence tells it: "0.93 (95 % interval 0.88 to 0.97)"."""
    return f"{number(figure['value'])} (95 % interval {number(figure['low'])} to {number(figure['high'])})"


def counted(n: int, what: str) -> str:
    """How many of what: "1 patient", "9 patients"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def sentence(text: str) -> str:
    """A note as a sentence: with a capital, and a full stop where nothing else ends it."""
    return capital(text) + ("" if text.endswith((".", "!", "?")) else ".")


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]
