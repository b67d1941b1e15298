"""What a report says, gathered from the files that the other commands wrote; the words and the look are in templates/."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm.errors import InputError
from pathfm.joined import facts_of, find_caches, read_parts, slides_of
from pathfm.licences import Licence
from pathfm.model import read_description
from pathfm.report_cohort import cohort_facts, credits_of, truth_of
from pathfm.report_consistency import require_of_model, require_same_recipe, require_scored, require_together
from pathfm.report_rows import heatmap_rows, slide_rows, unusable_rows
from pathfm.results import find_results, read_metrics, read_predictions, target_of
from pathfm.scoring import require_slide
from pathfm.stage import StageStamp, read_stage
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pandas as pd

    from pathfm.cohort import Cohort
    from pathfm.embeddings import Embeddings
    from pathfm.targets import Target

_HELD_OUT = ("test", "external")
_REMEDY = "pass --crossval a folder that pathfm crossval wrote, or run it again"
_MAX_ROWS = 500
_UNKNOWN_STAGE = StageStamp("development", ("no model was handed to this report (--model)",), "", "")


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows apart from its pictures.

    Attributes:
        target: what was predicted.
        metrics: metrics.json of the cross-validation.
        predictions: predictions.csv; ids and labels as text, scores as numbers.
        n_repeats: of the cross-validation, over which the figures are means.
        cohort: counts, and rows for the tables by group, site and scale.
        slides: one row a slide, the first 500.
        n_rows_hidden: slides that the table leaves out.
        heatmaps: rows of heatmaps.csv, wrong ones first; `heatmap_folder` is where their pictures lie.
        heatmap_folder: that folder, None where no heatmaps were given.
        unusable: left-out and failed slides with their reasons.
        recipe: of the embeddings.
        versions: of the libraries at the time of extraction.
        model: model.json of the final model, or None.
        stage: what it may be used for; a model that is not at hand is in development.
        licences: of the backbones, each as a model or an embeddings file says it.
    """

    target: Target
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    n_repeats: int
    cohort: dict[str, Any]
    slides: list[dict[str, Any]]
    n_rows_hidden: int
    heatmaps: list[dict[str, Any]]
    heatmap_folder: Path | None
    unusable: list[dict[str, str]]
    recipe: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any] | None
    stage: StageStamp
    licences: tuple[Licence, ...]


def gather(
    crossval: Path,
    embeddings: Sequence[Path],
    cohort: Cohort,
    heatmaps: Path | None,
    failures: Path | None,
    model: Path | None,
    credit: str | None = None,
    target: str | None = None,
) -> ReportData:
    """Reads what a report needs; embeddings files are trusted here, they were proven before a model learned from them.

    Of the cohort it takes ids, site and label, and the column `credit`; what else is known of the patients stays there.

    Raises:
        InputError: a file is missing, broken, of another format, or holds no held-out slides; several targets and none
            named, or heatmaps of another one; scores of another cohort, or figures of another model.
        UnknownNameError: no such target, or no such column.
        EmbeddingsError: an embeddings folder or file that cannot be used, or of another recipe than the scores.
        ModelError: a model directory that cannot be used, or of another recipe than the scores.
    """
    results = find_results(crossval, target, _REMEDY)
    metrics = read_metrics(results / "metrics.json", _REMEDY)
    asked = target_of(metrics)
    predictions = _held_out(results, read_predictions(results / "predictions.csv", asked, _REMEDY))
    require_together(results, metrics, predictions, asked)
    require_scored(results, cohort, predictions, metrics["unit"])
    final = read_description(model) if model else None
    if model and final:
        require_of_model(results, metrics, asked, model, final)
    scorer = _scorer(crossval)
    stated = next((one["recipe"] for one in (scorer, final) if one), None)
    files = _embeddings(embeddings, set(cohort.table["slide_id"]), stated)
    recipe = require_same_recipe(crossval, model, final, stated, files.values())
    facts = {name: one for name, (_, one) in files.items()}
    truth = truth_of(cohort, asked)
    labels = dict(zip(cohort.table["slide_id"], asked.texts(truth), strict=True))
    rows = slide_rows(cohort, predictions, metrics["unit"], facts, labels, asked)
    unusable = unusable_rows(metrics, embeddings, failures)
    return ReportData(
        target=asked,
        metrics=metrics,
        predictions=predictions,
        n_repeats=_n_repeats(results),
        cohort=cohort_facts(cohort, list(facts.values()), asked, truth) | {"credits": credits_of(cohort, credit)},
        slides=rows[:_MAX_ROWS],
        n_rows_hidden=max(0, len(rows) - _MAX_ROWS),
        heatmaps=heatmap_rows(heatmaps, asked) if heatmaps else [],
        heatmap_folder=heatmaps,
        unusable=unusable,
        recipe=recipe,
        versions=next((one.versions for one in facts.values()), {}),
        model=final,
        stage=read_stage(model) if model else _UNKNOWN_STAGE,
        licences=_licences((final, scorer), facts.values()),
    )


def _n_repeats(folder: Path) -> int:
    path = folder / "repeats.csv"
    return int(read_table(path, ("repeat",), _REMEDY)["repeat"].nunique()) if path.is_file() else 1


def _held_out(folder: Path, predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of slides that their model had not seen; those of `train` also hold what it learned from."""
    if "split" not in predictions:
        return predictions
    rows = predictions[predictions["split"].isin(_HELD_OUT)]
    if rows.empty:
        message = (
            f"{folder / 'predictions.csv'} has no held-out rows (split test or external), and scores of slides that a model"
            " has seen say nothing; run pathfm crossval, or pathfm evaluate, and pass --crossval its folder"
        )
        raise InputError(message)
    return rows.reset_index(drop=True)


def _scorer(crossval: Path) -> dict[str, Any] | None:
    """What the model that gave the scores says, of several folds the first; None where none is there."""
    folders = (crossval / "folds" / "0", crossval)
    folder = next((folder for folder in folders if (folder / "model.json").is_file()), None)
    return read_description(folder) if folder else None


def _embeddings(
    folders: Sequence[Path], wanted: set[str], like: dict[str, Any] | None
) -> dict[str, tuple[Path, Embeddings]]:
    """Of each slide its file, the first of several, and what they say; without features."""
    mine = {}
    for name, its in slides_of(find_caches(folders, like)).items():
        if its and name in wanted:
            facts = facts_of(read_parts(its, "shape"))
            require_slide(its[0], facts, name)
            # a map holds a file descriptor, of which a process has few
            mine[name] = its[0], replace(facts, coords=np.array(facts.coords), failed=np.array(facts.failed))
    return mine


def _licences(models: Iterable[dict[str, Any] | None], files: Iterable[Embeddings]) -> tuple[Licence, ...]:
    """Each once, those of the models first; two that differ over one backbone are both shown."""
    of_models = [Licence.of_facts(one) for model in models if model for one in model["licences"]]
    return tuple(dict.fromkeys(of_models + [one for file in files for one in file.licences]))
