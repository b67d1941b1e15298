"""Tuning: settings chosen on inner folds, and the figures of models that were chosen so on patients nobody looked at."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pathfm.cohort import read_cohort
from pathfm.cohortfigures import scored_patients
from pathfm.controls import controls
from pathfm.crossval import split_warnings
from pathfm.datamodule import batch_size
from pathfm.errors import InputError
from pathfm.files import write_text
from pathfm.fit import Rows, fingerprint
from pathfm.folds import Split  # noqa: TC001 - the command line reads the annotation
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.leakage import require_no_leak
from pathfm.outoffold import (
    Folding,
    fold_column,
    fold_facts,
    fold_job,
    fold_warnings,
    mean_embeddings,
    out_of_fold,
)
from pathfm.patients import Unit  # noqa: TC001 - the command line reads the annotation
from pathfm.privacy import private_run
from pathfm.reference import reference_of
from pathfm.results import drop_results, metrics_document, summary, write_results, write_table
from pathfm.settings import TrainSettings
from pathfm.space import SPACE, Candidate, Space
from pathfm.train import fit_models, heed_licences
from pathfm.trials import Tried, best_of, search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.together import Job


@dataclass(frozen=True)
class Tuned:
    """What `tune` leaves behind; prints as a few lines.

    Attributes:
        folder: holds predictions.csv, metrics.json, folds.csv, folds/<k>/, tune.csv, best.yaml and searches/.
        predictions: of each target the scores of every labelled bag by the model tuned without its patient.
        metrics: of each target metrics.json: how well a model does that is tuned so.
        trials: tune.csv: every trial of every search, with the column picked.
        best: the head and the settings that the search over all patients picked.
    """

    folder: Path
    predictions: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]
    trials: pd.DataFrame
    best: Candidate

    def __str__(self) -> str:
        lines = [*map(summary, self.metrics.values()), f"results: {self.folder}"]
        return "\n".join([*lines, f"the settings picked over all patients: {self.folder / 'best.yaml'}"])


class _Cut(NamedTuple):
    """Folds of some rows.

    Attributes:
        fold_of: the fold of each row of the table, missing for the others.
        jobs: the training of each fold as it is given, its folder relative to that of a trial.
    """

    fold_of: pd.Series[int]
    jobs: list[Job]


@dataclass(frozen=True)
class _Search:
    """What the searches of a command share."""

    slides: LabelledSlides
    space: Space
    inner: Folding
    trials: int
    out: Path

    def cut(self, among: pd.Series[bool]) -> _Cut:
        """The folds of a search that sees some rows alone."""
        fold_of = fold_column(self.slides, self.inner, self.space.given.settings.seed, among, "--inner_folds")
        return _cut(self.slides, fold_of, self.inner.folds, self.space.given.settings)

    def over(self, cut: _Cut, name: str, what: str) -> list[Tried]:
        """The trials of a search over the folds of a cut."""
        slides, given = self.slides, self.space.given
        rows = Rows(slides.rows(cut.fold_of.notna()), [])
        seen = fingerprint(slides.bags(), rows, slides.task, given.head, given.settings)

        def evaluate(candidate: Candidate, folder: Path) -> float | None:
            settings = replace(candidate.settings, loggers=[])
            jobs = [
                job._replace(settings=settings, folder=folder / job.folder, what=f"{what}, inner {job.what}")
                for job in cut.jobs
            ]
            return _main_figure(slides, out_of_fold(slides, cut.fold_of, fit_models(slides, jobs, candidate.head)))

        wanted = f"{seen} {self.inner} {[int(fold) for fold in cut.fold_of.dropna()]}"
        seed, folder = given.settings.seed, self.out / "searches" / name
        return search(folder, wanted, self.space, self.trials, seed, evaluate, what)


def tune(
    cohort: Path,
    embeddings: list[Path],
    label: str,
    out: Path,
    space: dict[str, Any] | None = None,
    trials: int = 30,
    inner_folds: int = 4,
    folds: int = 5,
    head: str = "gated-abmil",
    unit: Unit = "slide",
    covariates: list[str] | None = None,
    split: Split = "patient",
    training: TrainSettings = TrainSettings(),
    require_license: Literal["permissive"] | None = None,
    pseudonymise: Path | None = None,
) -> Tuned:
    """Looks for good settings, and says how well a model does whose settings were found so.

    For every fold a search over inner folds of the other folds' patients picks settings, by the main figure over all of
    them, each scored by a model that has not seen it; a model trained with these scores the fold. So no patient has a part
    in choosing the model that scores it, and the figures are those of the whole procedure. A last search over all
    patients picks the settings of best.yaml, a config for crossval and run; that they fit these patients better than
    others is why its own figure is not among those said. In all (folds + 1) x trials x inner_folds trainings. Killed and
    run again it goes on.

    Args:
        cohort: the cohort table, CSV.
        embeddings: the folder that extract wrote, or one recipe folder in it; of several the head reads them side by side.
        label: the label column, or COLUMN:KIND; of several the mean of their main figures is looked at.
        out: gets predictions.csv, metrics.json, folds.csv, folds/, tune.csv, best.yaml and searches/.
        space: what is looked for: by its name a setting of the training, head, or head_options.NAME, with {low, high}, on
            a logarithmic scale with log: true, or a list of choices. Where not given, what configs/tune.yaml has.
        trials: settings tried in each search; the first are those of `head` and `training`.
        inner_folds: folds of a search.
        folds: folds of the figures.
        head: a name of `pathfm heads`, where the space has none.
        unit: what is scored at a time: a slide, or a patient by all its slides.
        covariates: columns of the cohort table, such as age, that the head takes into account.
        split: what folds, inner ones too, do not share: a patient, or a site and so a patient too.
        training: what the space does not name.
        require_license: permissive refuses embeddings whose backbone restricts what is trained on them, or does not say.
        pseudonymise: the key file that extract was given; ids in what is written are then keyed hashes.

    Raises:
        InputError: the cohort, the folds, the space or the settings cannot be used.
        EmbeddingsError: damaged files, several recipes, or folders that are not of the same tiles.
        LicenceError: a licence that `require_license` does not allow.
        MissingExtraError: Optuna is not installed.
    """
    _require_trials(trials)
    candidates = Space(SPACE if space is None else space, Candidate(head, training))
    with private_run(pseudonymise, out, embeddings, cohort=cohort) as names:
        table = read_cohort(cohort, names)
        slides = labelled_slides(table, embeddings, label, unit=unit, covariates=covariates or ())
        heed_licences(slides, require_license)
        for candidate in candidates.at_ends("batch_size"):
            batch_size(slides.task, candidate.settings, len(slides.usable))
        searching = _Search(slides, candidates, Folding(inner_folds, split), trials, out)
        tuned = _nested(searching, Folding(folds, split), split_warnings(table.stated))
        config = {"label": label, "folds": folds, "head": tuned.best.head, "unit": unit, "split": split}
        config |= {"covariates": covariates} if covariates else {}
        text = yaml.safe_dump(config | {"training": asdict(tuned.best.settings)}, sort_keys=False)
        write_text(
            out / "best.yaml", f"# Found by pathfm tune; for pathfm crossval or run, as --config best.yaml\n{text}"
        )
        return tuned


def _nested(searching: _Search, folding: Folding, warnings: Sequence[str]) -> Tuned:
    slides, out, given = searching.slides, searching.out, searching.space.given
    fold_of = fold_column(slides, folding, given.settings.seed)
    outer = _cut(slides, fold_of, folding.folds, given.settings)
    others = [(fold_of != fold).fillna(value=False).astype(bool) for fold in range(folding.folds)]
    everyone = pd.Series(data=True, index=slides.table.index)
    *inner, last = [searching.cut(among) for among in (*others, everyone)]  # all of them, before the first training
    everybody = pd.Series(data=True, index=slides.table.index)
    leakage = require_no_leak(slides, [fold_of], reference_of(slides, everybody), folding.split)
    _drop_others(out, folding)
    searched, models = {}, []
    write_table(out / "folds.csv", slides.table[["slide_id", "patient_id", "label"]].assign(fold=fold_of))
    for fold, (cut, job) in enumerate(zip(inner, outer.jobs, strict=True)):
        tried = searched[f"fold-{fold}"] = searching.over(cut, f"fold-{fold}", job.what)
        head, settings = searching.space.candidate(tried[best_of(tried)].values)
        models += fit_models(slides, [job._replace(settings=settings, folder=out / "folds" / job.folder)], head)
    predictions, means = out_of_fold(slides, fold_of, models), mean_embeddings(slides)
    metrics = {
        target.name: metrics_document(
            predictions[target.name],
            target=target,
            unit=slides.unit,
            protocol=f"{folding}, settings picked for each fold out of {searching.trials} on {searching.inner.folds}"
            " inner folds of its training patients",
            left_out=slides.left_out,
            controls=controls(predictions[target.name], slides.mean_rgb, slides.sites, target, means),
            blocks={"leakage": leakage},
            folds=fold_facts(slides, fold_of, models),
            warnings=[*warnings, *fold_warnings(slides, [fold_of], folding, models)],
        )
        for target in slides.task.targets
    }
    write_results(out, {name: (predictions[name], metrics[name]) for name in metrics})
    tried = searched["all"] = searching.over(last, "all", "all patients")
    table = _table(searched, given)
    write_table(out / "tune.csv", table)
    return Tuned(out, predictions, metrics, table, searching.space.candidate(tried[best_of(tried)].values))


def _cut(slides: LabelledSlides, fold_of: pd.Series[int], folds: int, settings: TrainSettings) -> _Cut:
    """The trainings of folds, each of which has something to learn from.

    Raises:
        InputError: one has not.
    """
    jobs = [fold_job(slides, fold_of, fold, settings, Path(), "fold") for fold in range(folds)]
    for job in jobs:
        slides.task.require(slides.bags().truth[list(job.rows.learn)].numpy())
    return _Cut(fold_of, jobs)


def _drop_others(out: Path, folding: Folding) -> None:
    """Removes what another command, or a run with more folds, has left: nobody is to take it for a part of this one.

    What stays is taken by its fingerprint. The settings that were found and the figures go first, for they are written last.
    """
    for name in ("best.yaml", "tune.csv"):
        (out / name).unlink(missing_ok=True)
    drop_results(out)
    more = [path for path in out.glob("folds/*") if path.name.isdigit() and int(path.name) >= folding.folds]
    named = {"all", *(f"fold-{fold}" for fold in range(folding.folds))}
    more += [path.parent for path in out.glob("searches/*/search.json") if path.parent.name not in named]
    more += [path for path in out.glob("repeats/*") if path.name.isdigit()]
    more += [path.parent for path in out.glob("ensemble/model.json")]
    for folder in more:
        shutil.rmtree(folder)


def _main_figure(slides: LabelledSlides, predictions: dict[str, pd.DataFrame]) -> float | None:
    """The main figure by patient, the mean over the targets; None where one cannot be computed."""
    values = []
    for target in slides.task.targets:
        patients = scored_patients(predictions[target.name], target)
        metric = next(iter(target.metrics.values()))
        values.append(float(metric(patients.truth, patients.scores, np.ones((1, len(patients.truth))))[0]))
    return mean(values) if all(map(math.isfinite, values)) else None


def _table(searched: dict[str, list[Tried]], given: Candidate) -> pd.DataFrame:
    """One row a trial: search, trial, picked, value, why, and what it drew."""
    rows = [
        {"search": name, "trial": number, "picked": number == best_of(tried), "value": one.value, "why": one.why}
        | {"head": given.head}
        | one.values
        for name, tried in searched.items()
        for number, one in enumerate(tried)
    ]
    return pd.DataFrame(rows)


def _require_trials(trials: int) -> None:
    if trials < 1:
        message = f"--trials is {trials}; it must be 1 or more"
        raise InputError(message)
