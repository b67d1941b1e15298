"""The report: one self-contained HTML file that a pathologist can read, print and send."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pathfm.cohort import read_cohort
from pathfm.errors import InputError
from pathfm.figures import data_uri
from pathfm.files import write_text
from pathfm.frequencies import frequencies
from pathfm.licences import restricted
from pathfm.modelcard import card_of, model_card
from pathfm.phrases import figure_name, named_figures
from pathfm.plainly import plain_summary
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.report_data import gather
from pathfm.report_plots import MOST_CURVES, draw_plots, line_at, n_questions, risk_test
from pathfm.tables import first_line
from pathfm.tripod import STATUS_WORDS, tripod_table
from pathfm.version import __version__
from pathfm.words import (
    condition,
    control_name,
    gives,
    interval,
    model_facts,
    notes_on,
    number,
    percent,
    percent_interval,
    share,
    words_of,
)

if TYPE_CHECKING:
    from jinja2 import Template

    from pathfm.cardfile import Card
    from pathfm.report_data import ReportData

MAX_HEATMAPS = 24
_PICTURE_PX = 1100
_JPEG_QUALITY = 80


def report(
    out: Path,
    crossval: Path,
    embeddings: list[Path],
    cohort: Path,
    heatmaps: Path | None = None,
    failures: Path | None = None,
    model: Path | None = None,
    card: Path | None = None,
    credit: str | None = None,
    target: str | None = None,
    pseudonymise: Path | None = None,
) -> Path:
    """Writes one HTML file that needs nothing else: no network, no scripts, images inside.

    Args:
        out: the file, ending in .html.
        crossval: the folder that crossval wrote; of one that train or evaluate wrote, the held-out slides are shown.
        embeddings: the folder that extract wrote; of a model that reads several side by side all of them, in any order.
        cohort: the cohort table.
        heatmaps: the folder that heatmap wrote; at most 24 slides are shown, wrong ones first.
        failures: failures.csv; where not given, those beside the embeddings.
        model: the directory of the final model, for its digest and training.
        card: a YAML file of what only people can state: intended_use, limits, contact and others, see docs/report.md; where
            not given, what the model carries.
        credit: a column of the cohort table that says whom to credit for the slides; its values are shown.
        target: which target the report is on, where several were learned together.
        pseudonymise: the key file that the other commands were given; ids are then keyed hashes.

    Returns:
        The file.

    Raises:
        InputError: a file is missing or broken, no slide was held out, several targets and none named, scores of another
            cohort, figures of another model, or `out` does not end in .html.
        CohortError: a cohort table that cannot be used.
        EmbeddingsError: embeddings that cannot be used, or of another recipe than the scores.
        ModelError: a model that cannot be used, or of another recipe than the scores.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        message = f"--out {out} is no .html file; pass --out report.html"
        raise InputError(message)
    made_with = [crossval, *embeddings, heatmaps, failures.parent if failures else None, model]
    with private_run(pseudonymise, None, made_with, cohort=cohort) as names:
        data = gather(crossval, embeddings, read_cohort(cohort, names), heatmaps, failures, model, credit, target)
        html = _template().render(_shown(data, card_of(card, data.model)))
        write_text(out, html)
        logger.info("report: %s", out)
        return out


def _shown(data: ReportData, card: Card) -> dict[str, Any]:
    """Everything that the templates name."""
    metrics, target = data.metrics, data.target
    plots = draw_plots(data.predictions, target, metrics)
    examples = _examples(data.heatmaps)
    items = tripod_table(data, card.tripod, card.texts)
    tally = Counter(answer.status for _, answer in items)
    return {
        "data": data,
        "metrics": metrics,
        "target": target,
        "classes": target.groups,
        "main": metrics["figures"][0],
        "headline": next(iter(named_figures(target, metrics)), None),
        "names": {key: figure_name(target, metrics, key) for key in metrics["figures"]},
        "line_at": line_at(target, metrics),
        "whole": metrics["unit"] == "patient",
        "verdict": metrics["confounded"]["verdict"],
        "plain": plain_summary(target, metrics, data.stage),
        "contents": _contents(metrics, plots, maps=bool(data.heatmaps)),
        "plots": plots,
        "most_curves": MOST_CURVES,
        "hidden_curves": max(0, n_questions(target, metrics) - MOST_CURVES),
        "risks": risk_test(data.predictions, target),
        "heatmaps": [row | _pictures(data.heatmap_folder, row) for row in examples],
        "n_hidden_heatmaps": sum(bool(row["overlay"]) for row in data.heatmaps) - len(examples),
        "not_drawn": [row for row in data.heatmaps if not row["overlay"]],
        "restricted": restricted(data.licences),
        "gives": gives(target),
        "notes": notes_on(target),
        "model_facts": model_facts(data.model) if data.model else [],
        "card": model_card(data, card),
        "tripod": items,
        "tally": f"Of {len(items)} parts: {', '.join(f'{tally[one]} {said}' for one, said in STATUS_WORDS.items() if tally[one])}.",
        "status_words": STATUS_WORDS,
        "version": __version__,
    }


def _template() -> Template:
    # escaping is on for every value: a slide may be called <script>
    environment = Environment(
        loader=PackageLoader("pathfm"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = {"interval": interval, "number": number, "percent": percent, "percent_interval": percent_interval}
    environment.filters |= {**shown, "share": share, "pretty": _pretty}
    environment.globals |= {"words": words_of, "control_name": control_name, "condition": condition}
    environment.globals["frequencies"] = frequencies
    return environment.get_template("report.html.j2")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def _contents(metrics: dict[str, Any], plots: dict[str, str], *, maps: bool) -> list[tuple[str, str]]:
    """Anchor and title of the sections that are there."""
    sections = (
        ("figures", "How good it is", True),
        ("point", "Operating point", metrics["operating_points"] or "roc" in plots),
        ("screening", "Any cancer, and which", metrics["screening"]),
        ("abstention", "Abstention", metrics["conformal"]),
        ("controls", "Something else than disease?", True),
        ("subgroups", "Subgroups", metrics["subgroups"]),
        ("shift", "Shift", metrics["shift"]),
        ("attention", "Where it looked", maps),
        ("cohort", "Cohort", True),
        ("making", "How it was made", True),
        ("card", "Model card", True),
        ("tripod", "TRIPOD+AI", True),
    )
    return [(anchor, title) for anchor, title, there in sections if there]


def _examples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Heatmaps to show: of those that are wrong, unlabelled and right by turns, as many as there is room for."""
    drawn = [row for row in rows if row["overlay"]]
    kinds = [list(group) for _, group in groupby(drawn, key=itemgetter("order"))]
    by_turns = [row for turn in zip_longest(*kinds) for row in turn if row is not None]
    return sorted(by_turns[:MAX_HEATMAPS], key=itemgetter("order"))


def _pictures(folder: Path | None, row: dict[str, Any]) -> dict[str, str]:
    """Overlay and gallery as JPEG addresses, "" where a file is gone; only names inside the folder are followed."""
    paths = {key: (folder or Path()) / Path(row[key]).name for key in ("overlay", "gallery")}
    return {f"{key}_uri": _jpeg(path) if path.is_file() else "" for key, path in paths.items()}


def _jpeg(path: Path) -> str:
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        message = f"{path} cannot be read as a picture ({first_line(error)}); delete it and run pathfm heatmap again"
        raise InputError(message) from error
    small.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True, progressive=True)
    return data_uri(buffer.getvalue(), "image/jpeg")
