"""Which model shows a slide, and the bag that it is shown in: the model of its own fold, or one for slides outside of the folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pathfm.errors import InputError, ModelError
from pathfm.model import Model, read_model
from pathfm.patients import BETWEEN
from pathfm.results import find_results
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.covariates import Covariates

OUT_OF_FOLD = "out of fold"
FINAL_MODEL = "final model"
SEEN = "seen in training"
_REMEDY = "run pathfm crossval again, or pass --model the folder that it wrote"
_OUT_OF_FOLD_BY = "out of fold: by the model of fold {}, which has not seen this patient"
_FINAL_BY = "by the final model, which has not seen this slide"


class Choice(NamedTuple):
    """The model that shows a slide.

    Attributes:
        folder: its directory.
        model: the model.
        which: the place of the target that is shown.
        origin: "out of fold" or "final model".
        by: the same as a part of a title.
        bag: the slides of the bag that the slide is shown in, itself among them.
        label: the label of the bag, "" where it is not known.
        covariates: float32 (m,), what the cohort says of the bag beside the slides, NaN where it says nothing; None for a
            model that reads no such thing.
    """

    folder: Path
    model: Model
    which: int
    origin: str
    by: str
    bag: tuple[str, ...]
    label: str = ""
    covariates: NDArray[np.float32] | None = None


def fold_choices(folder: Path, target: str | None, cohorts: Sequence[Cohort] = ()) -> dict[str, Choice]:
    """For each slide of a cross-validation, the model of its own fold; empty for a plain model directory.

    Args:
        folder: what crossval wrote.
        target: as of `which_target`.
        cohorts: the tables that say what the model reads beside the slides.

    Raises:
        ModelError: a folds.csv that cannot be used, or a model that has seen a patient of its own fold.
        InputError: several targets and none named.
        UnknownNameError: no such target.
    """
    path = folder / "folds.csv"
    if not path.is_file():
        return {}
    table = _read_folds(path)
    models: dict[Path, Model] = {}
    labels: dict[str, str] | None = None
    beside = _Beside(cohorts)
    choices: dict[str, Choice] = {}
    for row in table[table["fold"] != ""].to_dict("records"):
        fold = folder / "folds" / str(row["fold"])
        if fold not in models:
            models[fold] = read_model(fold)
        model = models[fold]
        which = which_target(model, target)
        labels = _labels(folder, model, which, table) if labels is None else labels
        bag = bag_of(model, str(row["slide_id"]))
        _require_unseen(fold, model, str(row["patient_id"]), bag)
        by = _OUT_OF_FOLD_BY.format(row["fold"])
        one = Choice(fold, model, which, OUT_OF_FOLD, by, bag, labels.get(str(row["slide_id"]), ""), beside(model, bag))
        choices |= dict.fromkeys(bag, one)
    return choices


def final_choices(
    folder: Path, target: str | None, cohorts: Sequence[Cohort], slide_ids: Sequence[str]
) -> dict[str, Choice]:
    """For each slide the model of a directory, and the bag that it takes the slide in.

    Args:
        folder: the model directory.
        target: as of `which_target`.
        cohorts: the tables that say whose the slides are and what the model reads beside them.
        slide_ids: the slides; one that no table names is a bag of its own.
    """
    model, beside = read_model(folder), _Beside(cohorts)
    which = which_target(model, target)
    known = {str(name): str(patient) for cohort in cohorts for name, patient in cohort.patients().items()}
    patients = {name: known.get(name, "") for name in slide_ids}
    bags: dict[str, tuple[str, ...]] = {}
    for name, patient in patients.items():
        bags[patient] = (*bags.get(patient, ()), name)
    choices = {}
    for name, patient in patients.items():
        bag = bags[patient] if model.unit == "patient" and patient else (name,)
        choices[name] = Choice(folder, model, which, FINAL_MODEL, _FINAL_BY, bag, "", beside(model, bag))
    return choices


def bag_of(model: Model, slide_id: str) -> tuple[str, ...]:
    """The slides of a row of a table of bags: the one, or those of the patient."""
    return tuple(slide_id.split(BETWEEN)) if model.unit == "patient" else (slide_id,)


def which_target(model: Model, target: str | None) -> int:
    """The place of a target by its name; of a lone one without.

    Raises:
        InputError: several and none named.
        UnknownNameError: no such target.
    """
    targets = model.task.targets
    if target is not None:
        return model.task.which(target)
    if len(targets) > 1:
        message = f"the model has several targets; pass --target {' or '.join(one.name for one in targets)}"
        raise InputError(message)
    return 0


def _read_folds(path: Path) -> pd.DataFrame:
    try:
        table = read_table(path, ("slide_id", "patient_id", "fold"), _REMEDY)
    except InputError as error:
        raise ModelError(str(error)) from error
    if not table["fold"].str.fullmatch("[0-9]{0,9}").all():
        message = f"{path} holds something else than numbers in the column fold; {_REMEDY}"
        raise ModelError(message)
    return table


def _labels(folder: Path, model: Model, which: int, folds: pd.DataFrame) -> dict[str, str]:
    """The label of each bag; where folds.csv holds those of several targets, as the predictions of the one say."""
    table = folds
    if len(model.task.targets) > 1:
        results = find_results(folder, model.task.targets[which].name, _REMEDY)
        table = read_table(results / "predictions.csv", ("slide_id", "label"), _REMEDY)
    return dict(zip(table["slide_id"], table["label"], strict=True)) if "label" in table else {}


def _require_unseen(fold: Path, model: Model, patient_id: str, bag: tuple[str, ...]) -> None:
    if patient_id in model.training["patients"] or not set(bag).isdisjoint(model.training["slides"]):
        message = f"{fold} was trained on patient {patient_id}, whom its folds.csv keeps for scoring; run pathfm crossval again"
        raise ModelError(message)


class _Beside:
    """What cohort tables say of bags beside their slides, each table read once for each set of covariates."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = cohorts
        self.read: dict[Covariates, pd.DataFrame] = {}

    def __call__(self, model: Model, bag: tuple[str, ...]) -> NDArray[np.float32] | None:
        covariates = model.covariates
        if covariates is None:
            return None
        if covariates not in self.read:
            cells = [covariates.cells(cohort) for cohort in self.cohorts]
            tables = [pd.DataFrame(covariates.encode(one), index=one.index) for one in cells]
            self.read[covariates] = pd.concat(tables or [pd.DataFrame(columns=range(covariates.width))])
        rows = self.read[covariates].reindex(list(bag)).to_numpy(dtype=np.float32)
        known: NDArray[np.float32] = np.fmax.reduce(rows, axis=0)
        return known
