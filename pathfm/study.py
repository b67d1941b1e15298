"""A whole study from one config: slides and labels to embeddings, figures, a model, heatmaps and a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from pathfm.appraisal import Asked, require_asked
from pathfm.backbones import find_backbone
from pathfm.cardfile import Card, read_card
from pathfm.claims import Claims
from pathfm.cohort import read_cohort
from pathfm.crossval import crossval, require_repeats
from pathfm.datamodule import batch_size as bags_a_step
from pathfm.errors import CohortError, SlidesFailedError
from pathfm.extract import extract_slides, plan_extraction
from pathfm.failures import Failure, write_failures
from pathfm.folds import Split, assign_folds, strata_of
from pathfm.handon import hand_on, refit
from pathfm.heads import build_head
from pathfm.heatmap import heatmap
from pathfm.isolation import Limits
from pathfm.labelled import read_labels
from pathfm.licences import require_permissive
from pathfm.outoffold import Folding, repeat_settings
from pathfm.patients import Unit  # noqa: TC001 - the command line reads the annotation
from pathfm.privacy import private_run
from pathfm.progress import log_to
from pathfm.report import report
from pathfm.results import summary
from pathfm.settings import TrainSettings
from pathfm.slide import Reader  # noqa: TC001 - the command line reads the annotation
from pathfm.slidefiles import DigestKind  # noqa: TC001 - the command line reads the annotation
from pathfm.sources import find_slides
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec
from pathfm.trainer import torch_device

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.backbones import Engine, Precision
    from pathfm.cohort import Cohort
    from pathfm.targets import Target, Task
    from pathfm.work import ExtractWork

_ANY_WIDTH = 64


@dataclass(frozen=True)
class Study:
    """What `run` leaves behind; prints as a few lines.

    Attributes:
        folder: holds embeddings/, crossval/, model/, heatmaps/, report.html (of several targets heatmaps/<target>/ and
            report-<target>.html), failures.csv and pathfm.log.
        metrics: of each target metrics.json of the cross-validation.
        reports: the reports, one a target.
    """

    folder: Path
    metrics: dict[str, dict[str, Any]]
    reports: list[Path]

    def __str__(self) -> str:
        shown = [f"report: {path}" for path in self.reports]
        return "\n".join([*map(summary, self.metrics.values()), f"model: {self.folder / 'model'}", *shown])


def run(
    cohort: Path,
    label: str,
    out: Path,
    backbone: str = "colour",
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    outlines: Path | None = None,
    mpp_override: float | None = None,
    folds: int = 5,
    head: str = "gated-abmil",
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    split: Split = "patient",
    repeats: int = 1,
    final: Literal["refit", "ensemble"] = "refit",
    training: TrainSettings = TrainSettings(),
    operating_point: str | None = None,
    claims: Claims = Claims(),
    top_tiles: int = 8,
    device: str = "auto",
    precision: Precision | None = None,
    engine: Engine = "torch",
    batch_size: int = 32,
    workers: int | None = None,
    reader: Reader = "auto",
    digest: DigestKind = "sha256",
    max_failed_share: float = 0.005,
    limits: Limits = Limits(),
    card: Path | None = None,
    credit: str | None = None,
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> Study:
    """Takes a cohort all the way; run again, it does only what has changed.

    Writes `embeddings/`, `crossval/{predictions.csv,metrics.json,folds.csv}`, `model/`, `heatmaps/` (those of labelled
    slides out of fold), `report.html`, `failures.csv` and `pathfm.log`.

    Args:
        cohort: the cohort table, CSV, with a column `path`.
        label: the label column, or COLUMN:KIND; several with commas between them are learned together.
        out: the folder for everything.
        backbone: a name of `pathfm backbones`, hf-hub:owner/name, timm/name or local-dir:/folder; of several with commas
            between them the head reads the embeddings side by side.
        tiles: how a slide is cut.
        tissue: how tissue is found.
        outlines: a folder of <slide_id>.geojson in place of found tissue.
        mpp_override: microns per pixel of level 0, in place of what the slides state; the column mpp goes before it.
        folds: folds of the cross-validation.
        head: a name of `pathfm heads`.
        unit: what is scored at a time: a slide, or a patient by all its slides.
        covariates: columns of the cohort table, such as age, that the head takes into account.
        split: what folds do not share: a patient, or a site and so a patient too.
        repeats: how often the cross-validation is done, each time with folds and weights of the next seed.
        final: the model to hand on: refit on all labelled slides for the median of the folds' epochs, or the ensemble of
            the folds' models.
        training: how the head is trained.
        operating_point: how the threshold is chosen that is frozen into the model: specificity>=0.95, sensitivity>=0.9,
            cost:10/1 or youden, as of crossval.
        claims: what else is chosen and frozen, and shown beside the figures.
        top_tiles: number of tiles in the gallery of a heatmap.
        device: where tiles are embedded: auto, cpu, cuda, cuda:1, mps.
        precision: of the backbone's matrix products, as of extract.
        engine: what runs the backbone: torch, compile or openvino, as of extract.
        batch_size: tiles in a forward pass.
        workers: processes that read tiles; one a core, up to 16 a device, where not given.
        reader: what decodes slides: auto, openslide or cucim, as of extract.
        digest: what a slide is known by: sha256, or quick, as of extract.
        max_failed_share: a slide is refused where more of its tiles than this cannot be read.
        limits: what a process that reads may take.
        card: a YAML file of what you say of the model, such as its intended use and contact (docs/report.md); it goes into
            the model and the report.
        credit: a column of the cohort table that says whom to credit for the slides; the report shows its values.
        require_license: permissive refuses, before anything is extracted, a backbone that restricts what is trained on
            its embeddings, or does not say.
        pseudonymise: a key file, made where it is missing; ids of slides and patients become keyed hashes in all that is
            written and said.

    Raises:
        SlidesFailedError: at the very end, when some slides could not be used; everything else is done.
        InputError: the cohort, the folds or the settings cannot be used.
        BackboneError: the backbone cannot be loaded, or is not made for such tiles.
        LicenceError: a licence that `require_license` does not allow.
    """
    key = pseudonymise
    with private_run(key, out, cohort=cohort, outlines=outlines) as names:
        table = read_cohort(cohort, names)
        folding = Folding(folds, split, repeats)
        task = _require_plan(table, label, folding, unit, head, training, covariates or [])
        require_asked(task.targets, Asked(operating_point, claims))
        said = read_card(card) if card else Card()
        sources = find_slides([cohort], mpp_override, names)
        with log_to(out / "pathfm.log"):
            reading = (workers, reader, digest, max_failed_share, limits)
            work = plan_extraction(backbone, tiles, tissue, outlines, device, precision, engine, batch_size, *reading)
            _require_licence(work, require_license)
            extracted = extract_slides(sources, work, out / "embeddings")
            write_failures(out / "failures.csv", [*extracted.failed, *extracted.empty])
            _require_some(table, len(sources), extracted.failed)
            folders = list(extracted.folders)
            more = (split, repeats, training, operating_point, claims, require_license, key)
            result = crossval(cohort, folders, label, out / "crossval", folds, head, unit, covariates, *more)
            if final == "refit":
                again = (head, unit, covariates, training, result.metrics, result.frozen, claims, said, key)
                refit(cohort, folders, label, out / "model", result.epochs, *again)
            else:
                hand_on(replace(result.model, card=said), out / "model")
            undrawn = None
            for target in task.targets:
                undrawn = _draw(cohort, folders, out, _several(task, target), top_tiles, limits, key) or undrawn
            reports = [write_report(cohort, folders, out, credit, key, _several(task, one)) for one in task.targets]
    if extracted.failed:
        raise SlidesFailedError(len(extracted.failed), len(sources), out / "failures.csv")
    if undrawn is not None:
        raise undrawn
    return Study(out, result.metrics, reports)


def write_report(
    cohort: Path,
    embeddings: list[Path],
    out: Path,
    credit: str | None = None,
    pseudonymise: Path | None = None,
    target: Target | None = None,
) -> Path:
    """Writes `out/report.html` from what a study has left in its folder; of one of several targets its own file."""
    return report(
        out / (f"report-{target.folder}.html" if target else "report.html"),
        out / "crossval",
        embeddings,
        cohort,
        heatmaps=_heatmaps(out, target),
        failures=out / "failures.csv",
        model=out / "model",
        target=target.name if target else None,
        credit=credit,
        pseudonymise=pseudonymise,
    )


def _several(task: Task, target: Target) -> Target | None:
    """The target, where it has to be told from others."""
    return target if len(task.targets) > 1 else None


def _heatmaps(out: Path, target: Target | None) -> Path:
    return out / "heatmaps" / target.folder if target else out / "heatmaps"


def _draw(
    cohort: Path,
    embeddings: list[Path],
    out: Path,
    target: Target | None,
    top_tiles: int,
    limits: Limits,
    pseudonymise: Path | None,
) -> SlidesFailedError | None:
    """Draws the heatmaps; what could not be drawn is told at the end, for the report lists it and is written all the same."""
    name = target.name if target else None
    drawn = _heatmaps(out, target)
    try:
        heatmap(out / "crossval", [cohort], embeddings, drawn, out / "model", name, top_tiles, limits, pseudonymise)
    except SlidesFailedError as error:
        return error
    return None


def _require_plan(
    cohort: Cohort,
    label: str,
    folding: Folding,
    unit: Unit,
    head: str,
    training: TrainSettings,
    covariates: list[str],
) -> Task:
    """What the cross-validation would refuse of table, labels, covariates, folds, head or machine, before hours of extraction."""
    require_repeats(folding)
    torch_device(training)
    task, rows, truth, joined, _ = read_labels(cohort, label, unit, covariates)
    bags_a_step(task, training, len(rows))
    first, rows = task.targets[0], rows.set_index("slide_id")
    rows = rows.assign(stratum=strata_of(first, task.truths(truth)[0], list(rows["patient_id"])))
    for repeat in range(folding.repeats):
        seed = repeat_settings(training, repeat).seed
        fold_of = assign_folds(rows, folding.folds, seed, first.groups, folding.split).to_numpy()
        for fold in range(folding.folds):
            task.require(truth[fold_of != fold])
    with torch.device("meta"):  # a wrong option of the head shows without memory for its weights
        build_head(head, _ANY_WIDTH, task.n_outputs, joined.width if joined else 0, **training.head_kwargs())
    return task


def _require_licence(work: ExtractWork, required: Literal["permissive"] | None) -> None:
    """A licence that is not allowed shows before hours of extraction."""
    if required is not None:
        names = ", ".join(part.name for part in work.parts)
        require_permissive([find_backbone(part.name).terms for part in work.parts], f"a study with {names}")


def _require_some(cohort: Cohort, total: int, failed: tuple[Failure, ...]) -> None:
    if len(failed) == total:
        message = f"none of the {total} slides of {cohort.source} could be used; the first: {failed[0].message}"
        raise CohortError(message)
