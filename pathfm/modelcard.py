"""The model card: what a model is for, what it was made of and what it reached; what nobody stated says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.cardfile import NOT_STATED, TEXTS, Card, read_card
from pathfm.phrases import named_figures
from pathfm.plainly import STAGE_WORDS
from pathfm.tripod import backbones_of
from pathfm.words import gives, interval, model_facts, share

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pathfm.report_data import ReportData


class Section(NamedTuple):
    """A part of a card: its heading, and rows of a name and the lines that it says."""

    title: str
    rows: list[tuple[str, list[str]]]


def card_of(path: Path | None, model: Mapping[str, Any] | None) -> Card:
    """The card of a file, else that which model.json carries, else one where nothing is stated.

    Raises:
        InputError: as `read_card`.
    """
    carried = model.get("card") if model else None
    return read_card(path) if path else Card.of_facts(carried) if carried else Card()


def model_card(data: ReportData, card: Card) -> list[Section]:
    """The card of a model, in the order in which it is read.

    Args:
        data: what the report is on.
        card: what people stated.
    """
    return [
        Section("Use", _use(data, card)),
        Section("Model", _model(data)),
        Section("Data", _data(data)),
        Section("Licence", _licence(data, card)),
        Section("Figures", _figures(data)),
        Section("Limits", _limits(data, card)),
        Section("Who", [(TEXTS[key], [card.text(key)]) for key in ("owner", "contact", "reference")]),
    ]


def _use(data: ReportData, card: Card) -> list[tuple[str, list[str]]]:
    rows = [(TEXTS[key], _lines(card.text(key))) for key in ("intended_use", "intended_users", "patients")]
    learned = f"Answers other than of “{data.target.name}”: it knows {gives(data.target)} and nothing else."
    out = [
        *_lines(card.text("out_of_scope")),
        learned,
        "Slides of another preparation than it learned from, before it is tested on them.",
    ]
    return [
        *rows,
        (TEXTS["out_of_scope"], out),
        ("Stage", [str(data.stage), STAGE_WORDS[data.stage.stage], *_reasons(data)]),
    ]


def _reasons(data: ReportData) -> list[str]:
    """What a stage above development was given for; the line of the stage says why it is no higher one."""
    return list(data.stage.reasons) if data.stage.stage != "development" else []


def _lines(text: str) -> list[str]:
    return text.split("\n")


def _model(data: ReportData) -> list[tuple[str, list[str]]]:
    tiles, names = data.recipe.get("tiles", {}), ", ".join(backbones_of(data))
    cut = f"tiles of {tiles.get('size_px', '?')} px at {tiles.get('mpp', '?')} microns per pixel"
    rows = [
        ("Gives", [f"{gives(data.target)}, of {'a patient' if data.metrics['unit'] == 'patient' else 'a slide'}"]),
        ("Recipe", [f"{cut}, embedded by {names}"]),
    ]
    if data.model is None:
        return [*rows, ("Weights", ["no model was handed to this report (--model)"])]
    training = data.model["training"]
    return [
        *rows,
        *((name, [text]) for name, text in model_facts(data.model)),
        (
            "Training",
            [f"{len(training['slides'])} slides of {len(training['patients'])} patients, {training['epochs']} epochs"],
        ),
        ("Weights", [f"sha256 {data.model['weights_sha256']}"]),
        *_frozen(data, data.model),
        ("Made with", [f"pathfm {data.model['pathfm_version']}"]),
    ]


def _frozen(data: ReportData, model: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What was chosen on development patients and can no longer be moved."""
    frozen = (model.get("frozen") or {}).get(data.target.name)
    if not frozen:
        return [("Frozen with it", ["nothing: no threshold, no calibration"])]
    rule = f"operating point {frozen['rule']}" if frozen.get("rule") else "no operating point"
    kinds = [what for what in ("calibration", "conformal") if frozen.get(what)]
    told = ", ".join([rule, *({"conformal": "sets of classes for abstention"}.get(what, what) for what in kinds)])
    return [("Frozen with it", [f"{told}; chosen on {frozen['n_patients']} patients: {frozen['chosen_on']}"])]


def _data(data: ReportData) -> list[tuple[str, list[str]]]:
    cohort = data.cohort
    groups = ", ".join(
        f"{row['name']}: {row['patients']} patients ({row['slides']} slides)" for row in cohort["groups"]
    )
    sites = f"from {cohort['n_sites']} sites" if cohort["n_sites"] else f"site {NOT_STATED}"
    rows = [("Cohort", [f"{cohort['n_slides']} slides of {cohort['n_patients']} patients, {sites}", groups])]
    if cohort["credits"]:
        rows.append(("Source", cohort["credits"]))
    return rows


def _licence(data: ReportData, card: Card) -> list[tuple[str, list[str]]]:
    inherited = [str(one) for one in data.licences] or [NOT_STATED]
    return [(TEXTS["licence"], _lines(card.text("licence"))), ("Inherited from the backbone", inherited)]


def _figures(data: ReportData) -> list[tuple[str, list[str]]]:
    metrics = data.metrics
    tested = f"{metrics['protocol']}, {metrics['n_patients']} patients"
    figures = [f"{name}: {interval(figure)}" for name, figure in named_figures(data.target, metrics)]
    rows = [("Tested by", [tested]), ("By patient, 95 % interval", figures or ["no labelled patient was scored"])]
    points = metrics["operating_points"]
    decided = {name: point["patient"] for name, point in points["outcomes"].items()} if points else {}
    for name, at in decided.items():
        if at is None:
            continue
        told = [f"sensitivity {share(at['sensitivity'])}", f"specificity {share(at['specificity'])}"]
        rows.append((f"Operating point of {name}", [f"{points['rule']}", *told]))
    rows.append(("Confounding", [metrics["confounded"]["verdict"]]))
    return rows


def _limits(data: ReportData, card: Card) -> list[tuple[str, list[str]]]:
    known = ["No medical device; not for diagnosis or treatment.", *data.metrics["warnings"]]
    return [("Stated by its makers", _lines(card.text("limits"))), ("Known from the data", known)]
