"""TRIPOD+AI: what the files of a study say of each item; what only people know is left to them, and nothing is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pathfm.phrases import capital, figure_name, named_figures
from pathfm.tripoditems import ITEMS
from pathfm.words import gives, interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.report_data import ReportData
    from pathfm.tripoditems import Item

Status = Literal["filled", "in part", "stated", "authors", "not applicable"]
STATUS_WORDS: dict[Status, str] = {
    "filled": "from the data",
    "in part": "in part; the rest to be filled by the authors",
    "stated": "stated by the authors",
    "authors": "to be filled by the authors",
    "not applicable": "not applicable",
}


class Answer(NamedTuple):
    """What is said of an item: who said it, and what."""

    status: Status
    text: str


def tripod_table(data: ReportData, stated: Mapping[str, str], card: Mapping[str, str]) -> list[tuple[Item, Answer]]:
    """Every item with its answer.

    Args:
        data: what the report is on.
        stated: by the number of an item what the authors said of it; stands before what the data say.
        card: the texts of the model card, for the items that ask the same.
    """
    known = _of_sources(data, card) | _of_methods(data) | _of_analysis(data) | _of_results(data) | _of_use(data, card)
    return [(item, _answer(known.get(item.number), stated.get(item.number))) for item in ITEMS]


def _answer(known: Answer | None, stated: str | None) -> Answer:
    if stated is None:
        return known or Answer("authors", "")
    beside = f"\nFrom the data: {known.text}" if known and known.status in ("filled", "in part") else ""
    return Answer("stated", stated + beside)


def _of_sources(data: ReportData, card: Mapping[str, str]) -> dict[str, Answer]:
    """What it is, and of whom."""
    metrics, cohort = data.metrics, data.cohort
    done = "Development and internal validation" if metrics["folds"] else "Evaluation"
    sites = f"{cohort['n_sites']} sites" if cohort["n_sites"] else "Sites not stated"
    source = f"; source: {'; '.join(cohort['credits'])}" if cohort["credits"] else ""
    slides = f"{cohort['n_slides']} slides of {cohort['n_patients']} patients in {cohort['name']}{source}."
    known = {"Patients": "patients", "Use": "intended_use", "Users": "intended_users"}
    users = [f"{what}: {card[key]}" for what, key in known.items() if key in card]
    return {
        "1": Answer("in part", f"{done} of a deep-learning model of “{data.target.name}” from whole-slide images."),
        "2": Answer("in part", "The summary in plain words on the first page."),
        "3b": Answer("stated", "\n".join(users)) if users else Answer("authors", ""),
        "4": Answer("in part", f"{done}, by {metrics['protocol']}."),
        "5a": Answer("in part", slides),
        "6a": Answer("in part", f"{sites}; the section on the cohort has their counts."),
    }


def _of_methods(data: ReportData) -> dict[str, Answer]:
    """What was done to the data, and what is predicted from what."""
    tiles, left_out = data.recipe.get("tiles", {}), len(data.metrics["left_out"])
    names = [one["name"] for one in (data.model or {}).get("covariates") or []]
    beside = f"; beside the slide {', '.join(names)} of the cohort table" if names else ""
    horizon = " Time to the event; of risks only the order counts." if data.target.kind in ("cox", "hazards") else ""
    cut = f"{tiles.get('size_px', '?')} px at exactly {tiles.get('mpp', '?')} microns per pixel"
    return {
        "7": Answer(
            "filled",
            f"Tissue was found on each slide and cut into tiles of {cut}; the recipe stands under “How it was made”."
            f" {data.cohort['n_failed_tiles']} tiles could not be read and were left out.",
        ),
        "8a": Answer("in part", f"“{data.target.name}” as the cohort table states it: {gives(data.target)}.{horizon}"),
        "9a": Answer("filled", f"All tiles with tissue, none chosen by hand{beside}."),
        "9b": Answer("filled", f"Embeddings of the tiles by {', '.join(backbones_of(data))}{beside}."),
        "9c": Answer("not applicable", "No person assesses a predictor: tissue and embeddings are computed."),
        "11": Answer(
            "filled",
            f"{left_out} slides without label, tissue or embeddings took no part and are listed; no label and no tile was"
            " imputed.",
        ),
    }


def backbones_of(data: ReportData) -> list[str]:
    """The names of the backbones of a recipe, several where embeddings are read side by side."""
    parts = data.recipe.get("joined") or [data.recipe]
    return [str(part.get("backbone", {}).get("name", "an unknown backbone")) for part in parts]


def _of_analysis(data: ReportData) -> dict[str, Answer]:
    """How it was split, built and measured."""
    metrics = data.metrics
    measures = ", ".join(figure_name(data.target, metrics, key) for key in metrics["figures"])
    intervals = metrics["interval"] or "none could be computed"
    settings = data.model["training"].get("settings", {}) if data.model else {}
    weighed = data.target.kind == "classes" and settings.get("class_weights")
    updated, threshold = _chosen(data)
    return {
        "12a": Answer("filled", f"{capital(metrics['protocol'])}; no patient is on both sides."),
        "12b": Answer(
            "filled", "Embeddings of frozen backbones as they are; the head makes one answer of those of a slide."
        ),
        "12c": Answer("filled" if data.model else "in part", _built(data)),
        "12d": _clusters(data),
        "12e": Answer(
            "filled", f"{measures}, with 95 % intervals ({intervals}); of probabilities calibration and net benefit."
        ),
        "12f": Answer("not applicable", f"The model was not updated when it was evaluated.{updated}"),
        "12g": Answer("filled", "By pathfm predict or evaluate, from the slide, its tiles and the frozen model."),
        "13": Answer("filled", "Slides weigh in the loss by the inverse frequency of their class.")
        if weighed
        else Answer("authors", ""),
        "14": Answer(
            "in part",
            "Figures by subgroup." if metrics["subgroups"] else "No subgroups were asked for (--claims.subgroups).",
        ),
        "15": Answer("filled", f"{capital(gives(data.target))}.{threshold}"),
    }


def _chosen(data: ReportData) -> tuple[str, str]:
    """The sentences on calibration and threshold, each "" or after a space."""
    calibration, points = data.metrics["calibration"], data.metrics["operating_points"]
    method = calibration["method"] if calibration else "none"
    updated = f" Before that its scores were calibrated ({method}) on development patients." if method != "none" else ""
    if points is None or points["rule"] is None:
        return updated, " No threshold was chosen."
    return updated, f" Threshold by the rule {points['rule']}, chosen on development patients and frozen."


def _built(data: ReportData) -> str:
    if data.model is None:
        return "A head over embeddings of tiles; no model was handed to this report (--model)."
    heads, training = data.model["heads"], data.model["training"]
    settings = {
        name: value for name, value in training.get("settings", {}).items() if isinstance(value, (int, float, str))
    }
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    several = f" ({len(heads)} members)" if len(heads) > 1 else ""
    return f"{heads[0]['name']}{several}, trained for {training['epochs']} epochs: {told}."


def _clusters(data: ReportData) -> Answer:
    site = data.metrics["controls"].get("site", {"available": False, "why": "it was not asked for"})
    if not site["available"]:
        return Answer("in part", f"No control for the site: {site['why']}.")
    return Answer("filled", f"By a control that knows the site alone: {site['why']}.")


def _of_results(data: ReportData) -> dict[str, Answer]:
    """Who took part, and what was found."""
    metrics, cohort = data.metrics, data.cohort
    block = metrics["patient"]
    counts = ", ".join(f"{name}: {n}" for name, n in block["n_by_class"].items()) if block else "none scored"
    figures = "; ".join(f"{name}: {interval(figure)}" for name, figure in named_figures(data.target, metrics))
    scored = f"{metrics['n_patients']} patients scored ({counts})"
    one_cohort = Answer("not applicable", "Development and evaluation are of one cohort.") if metrics["folds"] else None
    trained = (
        f"{len(data.model['training']['patients'])} patients trained on for the final model, " if data.model else ""
    )
    weights = f"The model directory: weights sha256 {data.model['weights_sha256']}." if data.model else ""
    return {
        "16": one_cohort or Answer("authors", ""),
        "20a": Answer(
            "filled",
            f"{cohort['n_patients']} patients in the table, {scored}; left-out slides are listed with the reason.",
        ),
        "20b": Answer("in part", "Counts by class, site and scale stand in the section on the cohort."),
        "20c": one_cohort or _compared(data),
        "21": Answer("filled", f"{trained}{scored}."),
        "22": Answer("filled", weights) if weights else Answer("authors", ""),
        "23a": Answer("filled", figures) if figures else Answer("authors", "No figure could be computed."),
        "23b": _by_cluster(data),
        "24": Answer("not applicable", "The model was not updated when it was evaluated."),
    }


def _compared(data: ReportData) -> Answer:
    block = data.metrics["shift"]
    return Answer("in part", block["sentence"]) if block else Answer("authors", "")


def _by_cluster(data: ReportData) -> Answer:
    columns = list(data.metrics["subgroups"]["columns"]) if data.metrics["subgroups"] else []
    if columns:
        return Answer("filled", f"By {', '.join(columns)}, in the section on subgroups.")
    return Answer("authors", "")


def _of_use(data: ReportData, card: Mapping[str, str]) -> dict[str, Answer]:
    """What it is not good for, and what comes next."""
    limits = [card["limits"]] if "limits" in card else []
    again = "To be tested on patients of other hospitals (pathfm evaluate)." if data.metrics["folds"] else ""
    return {
        "26": Answer(
            "in part", "\n".join([*limits, "“What it cannot say” on the first page, and the warnings there."])
        ),
        "27a": Answer(
            "filled",
            "A slide that cannot be read, states no scale or has no tissue is refused with the reason, and nothing is made up"
            " in its place; tiles that cannot be read are counted.",
        ),
        "27b": Answer("in part", "Users choose the slides; a heatmap takes a pathologist to read."),
        "27c": Answer("in part", again) if again else Answer("authors", ""),
    }
