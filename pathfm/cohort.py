"""The cohort table: which slide belongs to which patient, where it lies, and what is known of it."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd

from pathfm.errors import CohortError, InputError, LeakageError, UnknownNameError
from pathfm.tables import known_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.privacy import Pseudonyms

# Headers of CLAM (case_id, slide_id, label) and STAMP (PATIENT, FILENAME) are read as ours.
_ALIASES = {"case_id": "patient_id", "PATIENT": "patient_id", "FILENAME": "slide_id"}
_KNOWN = {
    "slide_id": "what a slide is called",
    "patient_id": "whose slide it is",
    "path": "where its file lies",
    "site": "where it was made, which folds and controls go by",
    "mpp": "the scale that it is given",
    "split": "which side of a split it is on",
}
SLIDE_SUFFIXES = frozenset(
    [".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".dcm", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"]
)
"""Suffixes of the formats that OpenSlide reads."""
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp"])
"""Suffixes of plain images; they state no mpp."""
_FILE_SUFFIXES = SLIDE_SUFFIXES | IMAGE_SUFFIXES | {".h5", ".pt"}
PSEUDONYMOUS = Path("the cohort table")
"""The `source` of a cohort whose ids are pseudonyms: its file may be called after somebody."""
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cohort:
    """A table with one row a slide.

    Attributes:
        source: the file it was read from, for messages and reports; no name of a file where ids are pseudonyms.
        table: columns `slide_id` and `patient_id` (text, never empty; pseudonyms where these are asked for), `path`
            (absolute `Path` or None), `site` (text, "" where empty, or NA, N/A, NaN or null), `mpp` (float, NaN not
            stated), `split` ("train", "val", "test" or ""), then every other column of the file as text ("" where
            empty). Optional columns that the file lacks are present and empty.
        stated: the names of the columns that the file has.
        original_ids: the slide_ids as the file has them, in its order, where those of the table are pseudonyms; () else.
    """

    source: Path
    table: pd.DataFrame
    stated: frozenset[str]
    original_ids: tuple[str, ...] = ()

    def cells(self, columns: Sequence[str], option: str = "label") -> pd.DataFrame:
        """Columns as text, indexed by slide_id; "" where a cell is empty, or NA, N/A, NaN or null. 1.0 is written 1.

        Args:
            columns: their names.
            option: of the command line, that named them.

        Raises:
            UnknownNameError: no such column; those of the table that are not pathfm's own are listed.
            InputError: a column that is pathfm's own.
        """
        for column in columns:
            if column in self.stated and column in _KNOWN:
                message = (
                    f"--{option} names the column {column}, which is pathfm's own ({_KNOWN[column]}); name a copy of it"
                    " otherwise if it is to be used"
                )
                raise InputError(message)
            if column not in self.stated:
                known = self.stated - set(_KNOWN)
                kind = f"{option} column"
                remedy = f"{self.source} has these columns; pass --{option} one of them"
                raise UnknownNameError(kind, column, known, remedy)
        table = self.table.set_index("slide_id")
        return pd.DataFrame({column: known_text(table[column].map(_plain_number)) for column in columns})

    def labels(self, label: str) -> pd.Series[str]:
        """The cells of a column that holds labels, as `cells` has them.

        Raises:
            UnknownNameError: no such column.
            CohortError: the column is empty in every row.
        """
        values = self.cells([label])[label]
        if not (values != "").any():
            message = f"{self.source}: column {label!r} is empty in every row; fill it, or pass another --label"
            raise CohortError(message)
        return values

    def classes(self, label: str) -> list[str]:
        """The distinct labels, sorted as numbers where all are numbers; the last of two is the positive class."""
        return sort_classes(set(self.labels(label)) - {""})

    def patients(self) -> pd.Series[str]:
        """The patient of each slide, indexed by slide_id."""
        return self.table.set_index("slide_id")["patient_id"]


def read_cohort(path: Path, names: Pseudonyms | None = None) -> Cohort:
    """Reads a CSV cohort table.

    Columns: `slide_id`, `patient_id`; optional `path` (relative to the table), `site`, `mpp`, `split`; any others are
    labels or subgroups. CLAM's `case_id` and STAMP's `PATIENT`, `FILENAME` are understood.

    Args:
        path: the table.
        names: what to call slides and patients in place of their ids; the ids then leave this function only as
            `original_ids`.

    Raises:
        CohortError: unreadable, a column missing, empty or duplicated ids (of a patient also NA, N/A, NaN or null), an
            mpp that is no number; rows are named.
        LeakageError: a patient stands in two splits.
    """
    path, shown = (path, path) if names is None else (path.absolute(), PSEUDONYMOUS)
    table = _read_csv(path)
    _require_columns(shown, table)
    table["slide_id"] = table["slide_id"].map(_slide_id)
    _require_filled(shown, table)
    original_ids = () if names is None else tuple(table["slide_id"])
    if names is not None:
        table["slide_id"] = table["slide_id"].map(names.slide)
        table["patient_id"] = table["patient_id"].map(names.patient)
    _require_unique(shown, table)
    stated = frozenset(table.columns)
    for column in _KNOWN:
        if column not in table:
            table[column] = ""
    table["path"] = pd.Series([_resolve(path, text) for text in table["path"]], index=table.index, dtype=object)
    table["mpp"] = _numbers(shown, table, "mpp")
    table["site"] = known_text(table["site"])
    table["split"] = table["split"].str.strip().str.lower()
    cohort = Cohort(shown, table, stated, original_ids)
    _require_split(cohort)
    return cohort


def sort_classes(names: set[str]) -> list[str]:
    """Class names in order: as numbers where all are numbers, as text otherwise."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = _rows_of(path)
    except FileNotFoundError as error:
        message = f"no cohort table at {path}; pass --cohort a CSV with the columns slide_id and patient_id"
        raise CohortError(message) from error
    except (csv.Error, UnicodeDecodeError, IsADirectoryError) as error:
        message = f"{path} cannot be read as a CSV table ({error}); save it as UTF-8 CSV with a header row"
        raise CohortError(message) from error
    table.columns = [str(name).strip() for name in table.columns]
    table = table.rename(columns={old: new for old, new in _ALIASES.items() if new not in table.columns})
    twice = sorted(set(table.columns[table.columns.duplicated()]))
    if twice:
        named = ", ".join(name for name in twice if name in _KNOWN) or "of one name"
        message = f"{path} has two columns {named} (case_id and PATIENT are read as patient_id); keep one"
        raise CohortError(message)
    return table


def _rows_of(path: Path) -> pd.DataFrame:
    """The cells as text. A row longer than the header would shift its columns, so it is refused."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = list(csv.reader(file, skipinitialspace=True, strict=True)) or [[]]
    if not header:
        message = "it is empty"
        raise csv.Error(message)
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            message = (
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}; put text with commas in quotes"
            )
            raise CohortError(message)
    return pd.DataFrame([row for row in rows if row], columns=pd.Index(header, dtype=object), dtype=str)


def _require_columns(path: Path, table: pd.DataFrame) -> None:
    missing = [name for name in ("slide_id", "patient_id") if name not in table.columns]
    if missing:
        # what it has instead is not said: without a header that is a patient
        message = (
            f"{path} lacks the column {' and '.join(missing)} among its {len(table.columns)}; name the columns in the first"
            " row (case_id and PATIENT are read as patient_id, FILENAME as slide_id)"
        )
        raise CohortError(message)
    if table.empty:
        message = f"{path} has a header and no rows; add one row a slide"
        raise CohortError(message)


def _require_filled(path: Path, table: pd.DataFrame) -> None:
    table["patient_id"] = known_text(table["patient_id"])
    for column in ("slide_id", "patient_id"):
        table[column] = table[column].str.strip()
        empty = table.index[table[column] == ""]
        if len(empty):
            message = f"{path}: {column} is empty in {_rows(empty)}; fill it"
            raise CohortError(message)


def _require_unique(path: Path, table: pd.DataFrame) -> None:
    twice = table.index[table["slide_id"].duplicated(keep=False)]
    if len(twice):
        message = f"{path}: slide_id {table['slide_id'][twice[0]]!r} stands in {_rows(twice)}; a slide has one row"
        raise CohortError(message)


def _require_split(cohort: Cohort) -> None:
    table = cohort.table
    wrong = table.index[~table["split"].isin(["", *_SPLITS])]
    if len(wrong):
        message = f"{cohort.source}: split holds something unknown in {_rows(wrong)}; use train, val or test"
        raise CohortError(message)
    splits = table[table["split"] != ""].groupby("patient_id")["split"].nunique()
    both = sorted(splits.index[splits > 1])
    if both:
        message = f"{cohort.source}: patient {', '.join(both[:5])} stands in several splits; give all slides of a patient one split"
        raise LeakageError(message)


def _slide_id(text: str) -> str:
    """CLAM's and STAMP's tables may hold a file name; the slide_id is its stem where the suffix says slide or cache."""
    name = PurePosixPath(text.strip())
    return name.stem if name.suffix.lower() in _FILE_SUFFIXES else name.name


def _resolve(table: Path, text: str) -> Path | None:
    # not resolve(): a link into a store of nameless files is called by the name that says its format
    return Path(os.path.abspath(table.parent / text.strip())) if text.strip() else None  # noqa: PTH100


def _numbers(path: Path, table: pd.DataFrame, column: str) -> pd.Series[float]:
    numbers = pd.to_numeric(table[column].str.strip().replace("", "nan"), errors="coerce").astype(float)
    wrong = table.index[numbers.isna() & (table[column].str.strip() != "") & (table[column].str.lower() != "nan")]
    if len(wrong):
        message = f"{path}: {column} is no number in {_rows(wrong)}; write one, with a point, or leave it empty"
        raise CohortError(message)
    return numbers


def _plain_number(text: str) -> str:
    """Makes 1.0 and 1 one class: spreadsheets add the point as soon as a cell of the column is empty."""
    whole = re.fullmatch(r"\s*(-?\d+)\.0+\s*", text)
    return str(int(whole[1])) if whole else text.strip()


def _rows(index: pd.Index[int]) -> str:
    """Rows as a spreadsheet counts them: the header is row 1."""
    numbers = ", ".join(str(int(i) + 2) for i in index[:5])
    more = f" and {len(index) - 5} more" if len(index) > 5 else ""
    return f"row{'' if len(index) == 1 else 's'} {numbers}{more}"
