"""Which model shows a slide, and the bag that it is shown in: the model of its own fold, or one for slides outside of the folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from pathfm.beside import covariates_of, require_tables, slides_to_score
from pathfm.errors import InputError, ModelError
from pathfm.joined import find_caches, slides_of
from pathfm.model import Model, read_model
from pathfm.patients import bags_of, slides_of_bag
from pathfm.results import find_results
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.covariates import Covariates

OUT_OF_FOLD = "out of fold"
FINAL_MODEL = "final model"
SEEN = "seen in training"
_OPTION = "--slides"
_REMEDY = "run pathfm crossval again, or pass --model the folder that it wrote"
_OUT_OF_FOLD_BY = "out of fold: by the model of fold {}, which has not seen this patient"
_FINAL_BY = "by the final model, which has not seen this slide"


class Choice(NamedTuple):
    """The model that shows a slide.

    Attributes:
        folder: its directory.
        model: the model.
        which: the place of the target that is shown.
        origin: "out of fold" or "final model"; "seen in training" where that had slides of the patient.
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
        InputError: several targets and none named, or no table of what the model reads.
        CohortError: a table that lacks it, or slides of a patient that do not agree in it.
        UnknownNameError: no such target.
    """
    path = folder / "folds.csv"
    if not path.is_file():
        return {}
    table = _read_folds(path)
    models: dict[Path, Model] = {}
    labels: dict[str, str] | None = None
    scored = table[table["fold"] != ""]
    beside: dict[Covariates | None, dict[str, NDArray[np.float32]]] = {}
    choices: dict[str, Choice] = {}
    for row in scored.to_dict("records"):
        fold = folder / "folds" / str(row["fold"])
        if fold not in models:
            models[fold] = read_model(fold)
        model = models[fold]
        which = which_target(model, target)
        labels = _labels(folder, model, which, table) if labels is None else labels
        bag = slides_of_bag(str(row["slide_id"]), model.unit)
        _require_unseen(fold, model, str(row["patient_id"]), bag)
        if model.covariates not in beside:
            beside[model.covariates] = _beside(model, scored, cohorts)
        by, known = _OUT_OF_FOLD_BY.format(row["fold"]), beside[model.covariates].get(bag[0])
        one = Choice(fold, model, which, OUT_OF_FOLD, by, bag, labels.get(str(row["slide_id"]), ""), known)
        choices |= dict.fromkeys(bag, one)
    return choices


def final_choices(
    folder: Path, target: str | None, cohorts: Sequence[Cohort], slide_ids: Sequence[str], embeddings: Sequence[Path]
) -> dict[str, Choice]:
    """For each slide the model of a directory, and the bag that it takes the slide in, which is that of `predict`.

    Args:
        folder: the model directory.
        target: as of `which_target`.
        cohorts: the tables that say whose the slides are and what the model reads beside them.
        slide_ids: the slides; one that no table names is a bag of its own.
        embeddings: the folders of the model's caches; of a patient the slides are a bag that lie there.

    Raises:
        InputError: several targets and none named, or no table of what the model reads.
        UnknownNameError: no such target.
        CohortError: a table that lacks what the model reads, or slides of a patient that do not agree in it.
        EmbeddingsError: the folders are not of the model's recipe.
    """
    model = read_model(folder)
    which = which_target(model, target)
    require_tables(model, cohorts, _OPTION)
    there = slides_of(find_caches(embeddings, model.recipe))
    slides = slides_to_score(model, {name: there.get(name) for name in sorted(slide_ids)}, cohorts)
    known, names = covariates_of(model, slides, cohorts), list(slides["slide_id"])
    seen = slides["patient_id"].isin(model.training["patients"]).tolist()
    bags = {names[place]: [place] for place in range(len(names))}  # also of those that no bag takes
    bags |= {names[place]: places for places in bags_of(slides, model.unit) for place in places}
    return {
        name: Choice(
            folder,
            model,
            which,
            SEEN if seen[places[0]] else FINAL_MODEL,
            _FINAL_BY,
            tuple(names[place] for place in places),
            "",
            None if known is None else known[places[0]],
        )
        for name, places in bags.items()
    }


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


def _beside(model: Model, bags: pd.DataFrame, cohorts: Sequence[Cohort]) -> dict[str, NDArray[np.float32]]:
    """What cohort tables say beside the slides of bags, by slide_id; nothing where the model reads no such thing."""
    if model.covariates is None:
        return {}
    require_tables(model, cohorts, _OPTION)
    pairs = zip(bags["slide_id"], bags["patient_id"], strict=True)
    members = [(name, patient) for bag, patient in pairs for name in slides_of_bag(bag, model.unit)]
    slides = pd.DataFrame(members, columns=["slide_id", "patient_id"])
    known = covariates_of(model, slides, cohorts)
    return {} if known is None else dict(zip(slides["slide_id"], known, strict=True))
