"""The cohort table joined with its embeddings: the slides that a model can learn from, and why the others cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pathfm.bags import BagDataset
from pathfm.covariates import Covariates
from pathfm.errors import CohortError, InputError
from pathfm.patients import BETWEEN, NO_LABEL, Unit, bags_of, require_agreement, require_unit
from pathfm.proven import prove
from pathfm.targets import Task, Truth, read_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.licences import Licence
    from pathfm.proven import Proven


class LeftOut(NamedTuple):
    """A slide of the cohort that no model learned from, and the reason: "no_label", "no_tissue", "no_embeddings"."""

    slide_id: str
    reason: str


class Labels(NamedTuple):
    """What a cohort says of the slides whose bag has a label.

    Attributes:
        task: the targets, not fitted.
        rows: those slides of the cohort's table: slide_id, patient_id, site, split.
        truth: float32 (n, width), aligned with the rows; of a patient's slides what is known of the patient.
        covariates: what joins the head, None for nothing.
        values: the encoded covariates, float32 (n, m).
    """

    task: Task
    rows: pd.DataFrame
    truth: Truth
    covariates: Covariates | None
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LabelledSlides:
    """The bags of a cohort that have a label: its slides, or its patients, in the cohort's order.

    Attributes:
        table: one row a bag, columns slide_id (of a patient those of its slides with ";" between), patient_id, sites (a
            tuple of those of its slides, each once, "" where not known), split, files (a tuple of slides, each a tuple of
            embeddings files, one a cache; None where there are none), n_tiles, slide_digests (a tuple, "" where not
            known), reason ("" where the bag can be learned from), label (text; of several targets with ";" between),
            labels (a dict of the text of each target by its name, "" where it has none) and covariates (float32 (m,), or
            None).
        task: the targets, not fitted.
        truth: float32 (n, width), aligned with the rows of the table; NaN where a target has no label.
        covariates: what of the cohort table joins the head, None for nothing.
        unit: what a bag is of.
        recipe: the one recipe of the embeddings; of several caches `joined_recipe`.
        licences: of the backbones, each once.
        mean_rgb: slide_id of a row to the mean colour of its tissue tiles, float32 (3,); as the first cache says.
        left_out: slides that no model learns from.
    """

    table: pd.DataFrame
    task: Task
    truth: Truth
    covariates: Covariates | None
    unit: Unit
    recipe: dict[str, Any]
    licences: tuple[Licence, ...]
    mean_rgb: dict[str, NDArray[np.float32]]
    left_out: list[LeftOut]

    @property
    def usable(self) -> pd.DataFrame:
        """The rows that can be learned from and scored."""
        return self.table[self.table["reason"] == ""]

    @property
    def sites(self) -> dict[str, str]:
        """slide_id to site, "" where unknown; of a patient with slides of several sites these with ";" between."""
        return dict(zip(self.table["slide_id"], self.table["sites"].map(BETWEEN.join), strict=True))

    @property
    def covariate_values(self) -> NDArray[np.float32] | None:
        """The encoded covariates, float32 (n, m), aligned with the rows of the table; None without."""
        return None if self.covariates is None else np.stack(list(self.table["covariates"]))

    def bags(self) -> BagDataset:
        """The bags of the usable rows, in their order: one dataset for all that a command does, so that it is read once."""
        return self._bags

    def rows(self, chosen: pd.Series[bool]) -> list[int]:
        """The places in `bags` of those rows of the table that are chosen and usable."""
        usable = (self.table["reason"] == "").to_numpy()
        return [int(row) for row in np.flatnonzero(chosen.to_numpy(dtype=bool)[usable])]

    @cached_property
    def _bags(self) -> BagDataset:
        usable = (self.table["reason"] == "").to_numpy()
        values = self.covariate_values
        return BagDataset(list(self.usable["files"]), self.truth[usable], None if values is None else values[usable])


def labelled_slides(
    cohort: Cohort,
    folders: Sequence[Path],
    label: str,
    like: dict[str, Any] | None = None,
    *,
    unit: Unit = "slide",
    covariates: Sequence[str] | Covariates = (),
    asked: Task | None = None,
) -> LabelledSlides:
    """Joins the labelled rows of a cohort with the embeddings below some folders, proving each file.

    A row without a label for any target is left out, of patients one none of whose slides has any; so is a slide without
    tissue, and one that failures.csv says could not be extracted. Embeddings of slides that the cohort does not name are
    let be.

    Args:
        cohort: the slides and their labels.
        folders: one a cache; the features of several stand side by side in this order.
        label: the targets, as `read_task` has them.
        like: the recipe of a model, in whose order the features then stand.
        unit: what a bag is of; the slides of a patient have to agree in labels and covariates.
        covariates: columns that join the head, or those of a model.
        asked: the task of a model, as `read_task` takes it; None to learn it from the cells.

    Raises:
        CohortError: a labelled slide that has no embeddings and is not known to have failed, nothing to learn from, or
            slides of one patient that do not agree.
        UnknownNameError: no such column, kind of target or unit.
        EmbeddingsError: damaged files, several recipes, a file that holds another slide than its name says, or caches
            that are not of the same tiles.
        LeakageError: one scan stands under two patients.
        LicenceError: a model is to be made of files that state more licences than one can pass on.
    """
    task, rows, truth, joined, values = read_labels(cohort, label, unit, covariates, asked)
    proven = prove(cohort, rows, folders, like)
    bags = bags_of(proven.table, unit)
    firsts = [places[0] for places in bags]
    table = _merged(proven.table, bags, _labels(task, truth[firsts]), values[firsts] if joined else None)
    found = LabelledSlides(
        table=table,
        task=task,
        truth=truth[firsts],
        covariates=joined,
        unit=unit,
        recipe=proven.recipe,
        licences=proven.licences,
        mean_rgb=_mean_rgb(table, bags, proven),
        left_out=_left_out(cohort.table["slide_id"].drop(rows.index), proven.table),
    )
    _require_something(cohort, found)
    return found


def read_labels(
    cohort: Cohort,
    label: str,
    unit: Unit,
    covariates: Sequence[str] | Covariates = (),
    asked: Task | None = None,
) -> Labels:
    """What a cohort says of the slides whose bag has a label; their embeddings need not be there yet.

    Args:
        cohort: the slides and their labels.
        label: the targets, as `read_task` has them.
        unit: what a bag is of.
        covariates: columns that join the head, or those of a model.
        asked: the task of a model, as `read_task` takes it; None to learn it from the cells.

    Raises:
        InputError: what of these cannot be, as `labelled_slides` has it.
    """
    require_unit(unit)
    task, truth = read_task(cohort, label, asked)
    labelled = _is_labelled(task, truth, cohort.table["patient_id"] if unit == "patient" else cohort.table["slide_id"])
    joined, values = _covariates(cohort, task, covariates)
    truth, values = truth[labelled], values[labelled]
    rows = cohort.table.loc[labelled, ["slide_id", "patient_id", "site", "split"]]
    if unit == "patient":
        _require_agreement(cohort, _labels(task, truth), joined, rows)
        truth, values = (_of_patients(one, rows["patient_id"]) for one in (truth, values))
    return Labels(task, rows, truth, joined, values)


def _is_labelled(task: Task, truth: Truth, bags: pd.Series[str]) -> NDArray[np.bool_]:
    """Of each row whether its bag has a label: of a patient one slide that says it says it of all, as in `predict`."""
    named = pd.Series([any(texts.values()) for texts in _labels(task, truth)], index=bags.index, dtype=bool)
    return named.groupby(bags).transform("any").to_numpy(dtype=bool)


def _labels(task: Task, truth: Truth) -> list[dict[str, str]]:
    """Of each row the text of each target by its name."""
    names = [target.name for target in task.targets]
    texts = [target.texts(part) for target, part in zip(task.targets, task.truths(truth), strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*texts, strict=True)]


def _covariates(
    cohort: Cohort, task: Task, asked: Sequence[str] | Covariates
) -> tuple[Covariates | None, NDArray[np.float32]]:
    """What joins the head, and its numbers of every row of the cohort."""
    if not asked:
        return None, np.empty((len(cohort.table), 0), np.float32)
    covariates = asked if isinstance(asked, Covariates) else Covariates.read(cohort, asked)
    known = {column for target in task.targets for column in target.columns} & {one.name for one in covariates.columns}
    if known:
        message = f"--covariates names {', '.join(sorted(known))}, which is what the model is to say; leave it out"
        raise InputError(message)
    return covariates, covariates.encode(covariates.cells(cohort))


def _require_agreement(
    cohort: Cohort, labels: Sequence[dict[str, str]], covariates: Covariates | None, rows: pd.DataFrame
) -> None:
    patients = rows.set_index("slide_id")["patient_id"]
    require_agreement(cohort.source, pd.DataFrame(labels, index=patients.index), patients)
    if covariates:
        require_agreement(cohort.source, covariates.cells(cohort).loc[patients.index], patients)


def _of_patients(values: NDArray[np.float32], patients: pd.Series[str]) -> NDArray[np.float32]:
    """Of each slide what is known of its patient, whose slides agree; NaN where nothing is."""
    codes, names = pd.factorize(patients)
    known = np.full((len(names), values.shape[1]), np.nan, np.float32)
    np.fmax.at(known, codes, values)
    return known[codes]


def _merged(
    slides: pd.DataFrame,
    bags: Sequence[Sequence[int]],
    labels: Sequence[dict[str, str]],
    covariates: NDArray[np.float32] | None,
) -> pd.DataFrame:
    """One row a bag. A patient is of all sites, and in the first split, that its slides name."""
    columns = {name: list(slides[name]) for name in slides}
    of_bags = {name: [[values[place] for place in places] for places in bags] for name, values in columns.items()}
    table = pd.DataFrame(
        {
            "slide_id": [BETWEEN.join(names) for names in of_bags["slide_id"]],
            "patient_id": [patients[0] for patients in of_bags["patient_id"]],
            "split": [next(filter(None, splits), "") for splits in of_bags["split"]],
            "n_tiles": list(map(sum, of_bags["n_tiles"])),
            "reason": [reasons[0] for reasons in of_bags["reason"]],
        }
    )
    files = [tuple(files) if all(files) else None for files in of_bags["files"]]
    digests = list(map(tuple, of_bags["slide_digest"]))
    sites = [tuple(sorted(set(sites))) for sites in of_bags["site"]]
    return table.assign(
        files=_column(files, table),
        sites=_column(sites, table),
        slide_digests=_column(digests, table),
        label=[BETWEEN.join(texts.values()) for texts in labels],
        labels=_column(labels, table),
        covariates=_column([None] * len(bags) if covariates is None else list(covariates), table),
    )


def _mean_rgb(table: pd.DataFrame, bags: Sequence[Sequence[int]], proven: Proven) -> dict[str, NDArray[np.float32]]:
    """Of each bag with tissue, each slide counting by its tiles."""
    found = {}
    for name, places in zip(table["slide_id"], bags, strict=True):
        members = proven.table.iloc[list(places)]
        if members["n_tiles"].sum():
            colours = [proven.opened[slide_id][0].mean_rgb for slide_id in members["slide_id"]]
            found[name] = np.average(colours, axis=0, weights=members["n_tiles"]).astype(np.float32)
    return found


def _column(values: Sequence[Any], table: pd.DataFrame) -> pd.Series[Any]:
    """Values of any kind as a column of the table."""
    return pd.Series(values, index=table.index, dtype=object)


def _left_out(unlabelled: Iterable[str], slides: pd.DataFrame) -> list[LeftOut]:
    rows = slides[slides["reason"] != ""]
    named = [LeftOut(*pair) for pair in zip(rows["slide_id"], rows["reason"], strict=True)]
    return [LeftOut(str(slide_id), NO_LABEL) for slide_id in unlabelled] + named


def _require_something(cohort: Cohort, slides: LabelledSlides) -> None:
    if slides.usable.empty:
        message = (
            f"none of the {len(slides.table)} labelled slides of {cohort.source} has embeddings with tissue;"
            " run pathfm extract, and see its failures.csv"
        )
        raise CohortError(message)
