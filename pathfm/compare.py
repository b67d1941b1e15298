"""Comparison: heads and backbones over one cohort, on the same folds and seeds, with paired intervals to choose by."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from pathfm.appraisal import Asked
from pathfm.cohort import read_cohort
from pathfm.cohortfigures import paired_delong, paired_difference
from pathfm.crossval import CrossValidation, cross_validate, split_warnings
from pathfm.errors import InputError
from pathfm.files import read_json, write_json
from pathfm.folds import Split  # noqa: TC001 - the command line reads the annotation
from pathfm.grid import named_backbones, named_heads, reference_of, shared_slides
from pathfm.heads import HEADS
from pathfm.heads.options import require_options
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.outoffold import Folding
from pathfm.patients import Unit  # noqa: TC001 - the command line reads the annotation
from pathfm.privacy import private_run
from pathfm.progress import logger
from pathfm.results import write_table
from pathfm.settings import TrainSettings
from pathfm.subgroups import subgroup_columns
from pathfm.train import heed_licences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.cohort import Cohort
    from pathfm.delong import Paired
    from pathfm.metrics import Figure
    from pathfm.targets import Target, Task

_NUMBERS = ("value", "low", "high")


class Cell(NamedTuple):
    """One head on one backbone, or on several side by side.

    Attributes:
        backbone: as the user named it.
        head: a row of `heads.HEADS`.
        figure: the main figure by patient, with its interval.
        difference: figure minus that of the reference, over the same resamples of patients.
        delong: the same difference by DeLong, and its p value; None where the figure is no AUROC of one question.
        parameters: numbers of one model.
        seconds: that training and scoring took, when they were done, and the first head of a backbone the reading of its
            bags too; None where they were done in several runs, or by another command.
    """

    backbone: str
    head: str
    figure: Figure
    difference: Figure
    delong: Paired | None
    parameters: int
    seconds: float | None

    @property
    def name(self) -> str:
        """As `--reference` takes it."""
        return f"{self.backbone}/{self.head}"


@dataclass(frozen=True)
class Comparison:
    """What `compare` leaves behind; prints as a table and its notes.

    Attributes:
        folder: holds compare.csv, compare.json and <backbone>/<head>/, each as crossval writes it.
        target: what was asked.
        figure: name of the main figure.
        reference: the cell that the others are compared with, as <backbone>/<head>.
        cells: in the order asked for.
        notes: what the table does not say.
    """

    folder: Path
    target: str
    figure: str
    reference: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: compare.csv."""
        return pd.DataFrame([_row(cell, self.figure) for cell in self.cells])

    def __str__(self) -> str:
        name = self.figure.replace("_", " ")
        head = ["backbone", "head", name, f"minus {self.reference}", "p (DeLong)", "parameters", "seconds"]
        rows = [
            [c.backbone, c.head, _text(c.figure), _text(c.difference), _p(c), f"{c.parameters:,}", _whole(c.seconds)]
            for c in self.cells
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join([f"{self.target}, by patient", *lines, *self.notes, f"results: {self.folder}"])


def compare(
    cohort: Path,
    embeddings: Path,
    label: str,
    out: Path,
    heads: str = "gated-abmil,mean",
    backbones: str | None = None,
    reference: str | None = None,
    target: str | None = None,
    folds: int = 5,
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    split: Split = "patient",
    repeats: int = 1,
    training: TrainSettings = TrainSettings(),
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> Comparison:
    """Cross-validates every head on every backbone with the same folds and seeds, and compares each with a reference.

    The reference is declared before, not picked among the results: the first head on the first backbone, or the one
    named. Intervals are of patients drawn anew, the same for both sides of a difference; they hold no luck of training,
    which `repeats` makes smaller. A slide that some backbone failed on or found without tissue is left out of all cells; one
    that was never extracted is an error. Each cell is a folder as crossval writes it, and one that is done is taken as it is.

    Args:
        cohort: the cohort table, CSV.
        embeddings: the folder that extract wrote, with a folder <backbone>-<recipe> for each backbone.
        label: the label column, or COLUMN:KIND; several with commas between them are learned together.
        out: gets compare.csv, compare.json and <backbone>/<head>/ for each cell.
        heads: names of `pathfm heads` with commas between them.
        backbones: backbones of the embeddings, or names of their folders, with commas between them; x+y reads two side by
            side. All that are found, where not given.
        reference: what the others are compared with, as BACKBONE/HEAD; the first of each where not given.
        target: of several targets the one that is compared.
        folds: number of folds.
        unit: what is scored at a time: a slide, or a patient by all its slides.
        covariates: columns of the cohort table, such as age, that the heads take into account.
        split: what folds do not share: a patient, or a site and so a patient too.
        repeats: how often all is done, each time with folds and weights of the next seed; figures are means over the
            repeats.
        training: how the heads are trained.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort, the folds, the settings or the names cannot be used.
        EmbeddingsError: damaged files, or folders that are not of the same tiles where they are read side by side.
        LicenceError: a licence that `require_license` does not allow.
    """
    named = named_heads(heads)
    for head in named:
        require_options(head, HEADS[head], training.head_options)
    found = named_backbones(embeddings, backbones)
    pairs = [(backbone, head) for backbone in found for head in named]
    compared_with = reference_of(reference, pairs)
    folders = sorted({folder for parts in found.values() for folder in parts})
    with private_run(pseudonymise, out, folders, cohort=cohort) as names:
        table = read_cohort(cohort, names)

        def join(rows: Cohort) -> dict[str, LabelledSlides]:
            how: dict[str, Any] = {"unit": unit, "covariates": covariates or ()}
            return {backbone: labelled_slides(rows, parts, label, **how) for backbone, parts in found.items()}

        joined = join(table)
        for slides in joined.values():
            heed_licences(slides, require_license)
        alike, notes = shared_slides(joined, table, join)
        chosen = _target(next(iter(alike.values())).task, target)
        asked = Asked(columns=subgroup_columns(table, ()))
        results: dict[str, tuple[CrossValidation, float | None]] = {}
        for backbone in found:
            slides = alike.pop(backbone)  # with which goes what the heads of a backbone have read of its bags
            for head in named:
                place = out / backbone / head
                logger.info("compare: %s on %s", head, backbone)
                with private_run(pseudonymise, place):
                    how = (Folding(folds, split, repeats), head, training, split_warnings(table.stated), asked)
                    results[f"{backbone}/{head}"] = _timed(slides, place, how)
        cells = [_cell(*pair, results, compared_with, chosen) for pair in pairs]
        figure = next(iter(chosen.metrics))
        notes += _notes(cells, compared_with)
        comparison = Comparison(out, chosen.name, figure, compared_with, tuple(cells), tuple(notes))
        write_table(out / "compare.csv", comparison.table)
        write_json(out / "compare.json", _document(comparison, results[compared_with][0]))
        return comparison


def _target(task: Task, name: str | None) -> Target:
    if name is None and len(task.targets) > 1:
        message = f"--label asks for several targets; pass --target the one to compare by, of {task.label}"
        raise InputError(message)
    return task.targets[0 if name is None else task.which(name)]


def _timed(slides: LabelledSlides, place: Path, how: tuple[Any, ...]) -> tuple[CrossValidation, float | None]:
    """The cross-validation and the seconds that it took when it was done, which may have been an earlier time."""
    before, begun = _weights(place), [*place.glob("**/checkpoints/*")]
    start_s = time.monotonic()
    result = cross_validate(slides, place, *how)
    seconds, stated = round(time.monotonic() - start_s, 3), place / "seconds.json"
    of = result.model.training["fingerprint"]
    try:
        found = read_json(stated)
        if found["fingerprint"] == of:
            known = found["seconds"]
            return result, None if known is None else float(known)
    except (OSError, ValueError, TypeError, KeyError):  # none, or a damaged one
        pass
    whole = None if begun or before & _weights(place) else seconds
    write_json(stated, {"fingerprint": of, "seconds": whole})
    return result, whole


def _weights(place: Path) -> set[tuple[Path, int]]:
    """The weights of the folds and when they were written: those that stay were not trained anew."""
    found = [*place.glob("folds/**/*.safetensors"), *place.glob("repeats/**/*.safetensors")]
    return {(path, path.stat().st_mtime_ns) for path in found}


def _cell(
    backbone: str, head: str, results: dict[str, tuple[CrossValidation, float | None]], reference: str, target: Target
) -> Cell:
    result, seconds = results[f"{backbone}/{head}"]
    figure = result.metrics[target.name]["patient"][next(iter(target.metrics))]
    both = (result.rows[target.name], results[reference][0].rows[target.name], target)
    difference, delong = paired_difference(*both), paired_delong(*both)
    parameters = sum(parameter.numel() for parameter in result.model.heads[0].parameters())
    return Cell(backbone, head, figure, difference, delong, parameters, seconds)


def _notes(cells: Sequence[Cell], reference: str) -> list[str]:
    others = [cell for cell in cells if cell.name != reference]
    alike = [cell.name for cell in others if not _apart(cell.difference)]
    notes = []
    if alike:
        notes.append(
            f"these patients cannot tell from {reference}: {', '.join(alike)} (the interval of the difference holds 0)"
        )
    if len(others) > 1:
        notes.append(
            f"each of the {len(others)} intervals is a 95 % one by itself: the more are looked at, the likelier one of them"
            " misses 0 by chance"
        )
    return notes


def _apart(difference: Figure) -> bool:
    low, high = difference["low"], difference["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def _document(comparison: Comparison, of_reference: CrossValidation) -> dict[str, Any]:
    metrics = of_reference.metrics[comparison.target]
    facts = ("target", "unit", "protocol", "n_slides", "n_patients", "interval")
    cells = [cell._asdict() | {"folder": cell.name} for cell in comparison.cells]
    return {
        "format": "pathfm-comparison",
        "format_version": 1,
        **{key: metrics[key] for key in facts},
        "figure": comparison.figure,
        "reference": comparison.reference,
        "cells": cells,
        "notes": list(comparison.notes),
    }


def _row(cell: Cell, figure: str) -> dict[str, Any]:
    named = zip(_NUMBERS, (figure, "low", "high"), strict=True)
    return (
        {"backbone": cell.backbone, "head": cell.head}
        | {name: cell.figure[key] for key, name in named}  # type: ignore[literal-required]
        | {("difference" if key == "value" else f"difference_{key}"): cell.difference[key] for key in _NUMBERS}  # type: ignore[literal-required]
        | {"p_delong": cell.delong["p"] if cell.delong else None}
        | {"parameters": cell.parameters, "seconds": cell.seconds}
    )


def _p(cell: Cell) -> str:
    p = cell.delong["p"] if cell.delong else None
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _whole(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds:.0f}"


def _text(figure: Figure) -> str:
    if figure["value"] is None or figure["low"] is None or figure["high"] is None:
        return "not computable"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
