"""The cohort table joined with its embeddings: the slides that a model can learn from, and why the others cannot be used."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pathfm.embeddings import Embeddings, find_embeddings, read_embeddings, require_one_recipe
from pathfm.errors import CohortError, EmbeddingsStaleError, LeakageError
from pathfm.progress import logger, progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.cohort import Cohort

NO_LABEL, NO_TISSUE, NO_EMBEDDINGS = "no_label", "no_tissue", "no_embeddings"
_NAMED = 5


class LeftOut(NamedTuple):
    """A slide of the cohort that no model learned from, and the reason: "no_label", "no_tissue", "no_embeddings"."""

    slide_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LabelledSlides:
    """The slides of a cohort that have a label, in the cohort's order.

    Attributes:
        table: columns slide_id, patient_id, site, split, label (text), target (index into classes), path (of the
            embeddings file, or None), n_tiles, slide_digest, reason ("" where the slide can be learned from).
        label: name of the label column.
        classes: sorted; the last of two is the positive class.
        recipe: the one recipe of the embeddings.
        dim: width of an embedding.
        mean_rgb: slide_id to the mean colour of its tissue tiles, float32 (3,).
        left_out: slides that no model learns from.
    """

    table: pd.DataFrame
    label: str
    classes: list[str]
    recipe: dict[str, Any]
    dim: int
    mean_rgb: dict[str, NDArray[np.float32]]
    left_out: list[LeftOut]

    @property
    def usable(self) -> pd.DataFrame:
        """The rows that can be learned from and scored."""
        return self.table[self.table["reason"] == ""]

    @property
    def sites(self) -> dict[str, str]:
        """slide_id to site, "" where unknown."""
        return dict(zip(self.table["slide_id"], self.table["site"], strict=True))


def labelled_slides(cohort: Cohort, folder: Path, label: str) -> LabelledSlides:
    """Joins the labelled rows of a cohort with the embeddings below a folder, proving each file.

    A row without a label is left out; so is a slide without tissue, and one that failures.csv says could not be
    extracted. Embeddings of slides that the cohort does not name are let be.

    Raises:
        CohortError: a labelled slide that has no embeddings and is not known to have failed, or nothing to learn from.
        UnknownNameError: no such label column.
        EmbeddingsError: damaged files, several recipes, a file that holds another slide than its name says.
        LeakageError: one scan stands under two patients.
    """
    labels = cohort.labels(label)
    files = find_embeddings(folder)
    table = cohort.table.loc[(labels != "").to_numpy(), ["slide_id", "patient_id", "site", "split"]]
    table = table.assign(label=table["slide_id"].map(labels), path=table["slide_id"].map(files.get).astype(object))
    _require_known(cohort, table, folder)
    _say_ignored(set(files) - set(cohort.table["slide_id"]), folder)
    opened = _open(table)
    classes = cohort.classes(label)
    table = _describe(table, opened, classes).reset_index(drop=True)
    slides = LabelledSlides(
        table=table,
        label=label,
        classes=classes,
        recipe=require_one_recipe((files[slide_id], one) for slide_id, one in opened.items()),
        dim=next((one.features.shape[1] for one in opened.values()), 0),
        mean_rgb={slide_id: one.mean_rgb for slide_id, one in opened.items()},
        left_out=_left_out(labels, table),
    )
    _require_something(cohort, slides)
    _require_one_patient_a_scan(cohort, table)
    return slides


def failed_slides(folder: Path) -> set[str]:
    """The slide_ids that the failures.csv of an embeddings folder, or of the root it lies in, names."""
    named: set[str] = set()
    for path in (folder / "failures.csv", folder.parent / "failures.csv"):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                named |= {row.get("slide_id", "") for row in csv.DictReader(file)}
    return named - {""}


def name_some(names: Iterable[str]) -> str:
    """The first few names and how many more there are, for a message of one line."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def _require_known(cohort: Cohort, table: pd.DataFrame, folder: Path) -> None:
    missing = set(table["slide_id"][table["path"].isna()]) - failed_slides(folder)
    if missing:
        rows = cohort.table.index[cohort.table["slide_id"].isin(missing)]
        message = (
            f"{folder} has no embeddings of {len(missing)} labelled slides of {cohort.source}: {name_some(missing)}"
            f" (rows {name_some(str(int(row) + 2) for row in rows)}); run pathfm extract for them, or empty their label"
        )
        raise CohortError(message)


def _say_ignored(names: set[str], folder: Path) -> None:
    if names:
        logger.info("%s: %d files of slides that the cohort does not name are not used", folder, len(names))


def _open(table: pd.DataFrame) -> dict[str, Embeddings]:
    """Proves and opens every file; the features stay on disk."""
    opened: dict[str, Embeddings] = {}
    pairs = [(slide_id, path) for slide_id, path in zip(table["slide_id"], table["path"], strict=True) if path]
    for slide_id, path in progress(pairs, "prove embeddings"):
        opened[slide_id] = read_embeddings(path)
        if opened[slide_id].slide_id != slide_id:
            message = (
                f"{path} holds slide {opened[slide_id].slide_id}; give the file its slide's name, or extract again"
            )
            raise EmbeddingsStaleError(path, message)
    _require_one_width(pairs, opened)
    return opened


def _require_one_width(pairs: Sequence[tuple[str, Path]], opened: dict[str, Embeddings]) -> None:
    widths = {slide_id: one.features.shape[1] for slide_id, one in opened.items()}
    for slide_id, path in pairs:
        if widths[slide_id] != widths[pairs[0][0]]:
            message = (
                f"{path} has embeddings of width {widths[slide_id]}, {pairs[0][1]} of {widths[pairs[0][0]]};"
                " delete the wrong one and run pathfm extract again"
            )
            raise EmbeddingsStaleError(path, message)


def _describe(table: pd.DataFrame, opened: dict[str, Embeddings], classes: list[str]) -> pd.DataFrame:
    tiles = [len(opened[slide_id].features) if slide_id in opened else 0 for slide_id in table["slide_id"]]
    reasons = [
        NO_EMBEDDINGS if slide_id not in opened else NO_TISSUE if n == 0 else ""
        for slide_id, n in zip(table["slide_id"], tiles, strict=True)
    ]
    digests = [opened[slide_id].slide_digest if slide_id in opened else "" for slide_id in table["slide_id"]]
    targets = table["label"].map({name: index for index, name in enumerate(classes)}).astype(int)
    return table.assign(target=targets, n_tiles=tiles, slide_digest=digests, reason=reasons)


def _left_out(labels: pd.Series[str], table: pd.DataFrame) -> list[LeftOut]:
    unlabelled = [LeftOut(str(slide_id), NO_LABEL) for slide_id in labels.index[labels == ""]]
    rows = table[table["reason"] != ""]
    return unlabelled + [LeftOut(*pair) for pair in zip(rows["slide_id"], rows["reason"], strict=True)]


def _require_something(cohort: Cohort, slides: LabelledSlides) -> None:
    if slides.usable.empty:
        message = (
            f"none of the {len(slides.table)} labelled slides of {cohort.source} has embeddings with tissue;"
            " run pathfm extract, and see its failures.csv"
        )
        raise CohortError(message)


def _require_one_patient_a_scan(cohort: Cohort, table: pd.DataFrame) -> None:
    known = table[table["slide_digest"] != ""]
    patients = known.groupby("slide_digest")["patient_id"].nunique()
    copied = known[known["slide_digest"].isin(patients.index[patients > 1])]
    if len(copied):
        first = copied[copied["slide_digest"] == copied["slide_digest"].iloc[0]]
        message = (
            f"{cohort.source}: {name_some(first['slide_id'])} are the same scan under the patients"
            f" {name_some(set(first['patient_id']))}; keep one row, or give them one patient_id"
        )
        raise LeakageError(message)
