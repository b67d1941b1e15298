"""The report: one self-contained HTML file that a pathologist can read, print and send."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from pathfm.cohort import read_cohort
from pathfm.errors import InputError
from pathfm.figures import data_uri
from pathfm.files import write_text
from pathfm.licences import restricted
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.report_data import gather
from pathfm.report_plots import draw_plots
from pathfm.tables import first_line
from pathfm.version import __version__
from pathfm.words import control_name, gives, model_facts, notes_on, words_of

if TYPE_CHECKING:
    from pathfm.metrics import Figure

MAX_HEATMAPS = 24
_PICTURE_PX = 1100
_JPEG_QUALITY = 80
_MINUS = "\u2212"


def report(
    out: Path,
    crossval: Path,
    embeddings: list[Path],
    cohort: Path,
    heatmaps: Path | None = None,
    failures: Path | None = None,
    model: Path | None = None,
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
        credit: a column of the cohort table that says whom to credit for the slides; its values are shown.
        target: which target the report is on, where several were learned together.
        pseudonymise: the key file that the other commands were given; ids are then keyed hashes.

    Returns:
        The file.

    Raises:
        InputError: a file is missing or broken, no slide was held out, several targets and none named, or `out` does not
            end in .html.
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
        shown = [row for row in data.heatmaps if row["overlay"]][:MAX_HEATMAPS]
        html = _template().render(
            data=data,
            metrics=data.metrics,
            plots=draw_plots(data.predictions, data.target, data.metrics),
            heatmaps=[row | _pictures(data.heatmap_folder, row) for row in shown],
            n_hidden_heatmaps=sum(bool(row["overlay"]) for row in data.heatmaps) - len(shown),
            not_drawn=[row for row in data.heatmaps if not row["overlay"]],
            restricted=restricted(data.licences),
            gives=gives(data.target),
            notes=notes_on(data.target),
            model_facts=model_facts(data.model) if data.model else [],
            version=__version__,
        )
        write_text(out, html)
        logger.info("report: %s", out)
        return out


def _template() -> Any:
    # escaping is on for every value: a slide may be called <script>
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"interval": interval, "number": number, "pretty": _pretty}
    environment.globals |= {"words": words_of, "control_name": control_name}
    return environment.from_string(files("pathfm").joinpath("report.html.j2").read_text(encoding="utf-8"))


def interval(figure: Figure | None) -> str:
    """A figure in words, always with its interval: "0.93 (0.71 to 1.00)"."""
    if figure is None or figure["value"] is None:
        return "not available"
    value, low, high = (number(figure["value"]), number(figure["low"]), number(figure["high"]))
    return f"{value} ({low} to {high})"


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign, "" for none."""
    return "" if value is None else f"{value:.{digits}f}".replace("-", _MINUS)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


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
