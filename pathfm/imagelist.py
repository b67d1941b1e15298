"""Which tile images there are, in folders or in a table, and what their labels are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pandas as pd

from pathfm.errors import InputError
from pathfm.tables import known_text, read_table

if TYPE_CHECKING:
    from pathlib import Path

    from pathfm.privacy import Pseudonyms

TABLE = "tiles.csv"
"""A table of this name in the folder of the tiles says what the names of its folders cannot: patients and sites."""

_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff"])


def find_tile_images(
    source: Path, label: str | None = None, names: Pseudonyms | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """The tile images of a folder or of a table.

    A folder holds one folder a label with .png, .jpg or .tif files, or a table `tiles.csv`. A table (.csv) has the
    columns path (relative to it) and label, and may have patient_id and site; a row without a label is left out. NA,
    N/A, NaN and null count as empty, as in a cohort.

    Args:
        source: the folder or the table.
        label: the column of the labels, "label" where not given.
        names: gives pseudonyms in place of the names of files and patients.

    Returns:
        One row a tile: tile (its name), path, label, patient_id and site ("" unknown), sorted by tile; and what was left
        out, in words.

    Raises:
        InputError: no such folder, no tiles, a table that cannot be used, one file twice, or a label without a table.
    """
    table = source / TABLE if (source / TABLE).is_file() else source
    if table.suffix.lower() == ".csv":
        found, notes = _of_table(table, label or "label")
    elif label is not None:
        message = f"--label {label} is a column, and {source} has no table; pass --images a table, or leave --label out"
        raise InputError(message)
    else:
        found, notes = _of_folder(source)
    if names is not None:
        found = _renamed(found, names)
    _require_once(found)
    return found.sort_values("tile", ignore_index=True), notes


def _of_folder(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    if not folder.is_dir():
        message = f"no folder at {folder}; pass --images a folder with one folder a label, or a table (.csv)"
        raise InputError(message)
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = {path.name: _images_in(path) for path in inside if path.is_dir()}
    rows = [
        {"tile": f"{label}/{path.name}", "path": path, "label": label}
        for label, (images, _) in found.items()
        for path in images
    ]
    if not rows:
        message = f"no tiles in {folder}; it must hold one folder a label, with .png, .jpg or .tif files, or {TABLE}"
        raise InputError(message)
    loose = sum(path.suffix.lower() in _SUFFIXES for path in inside if not path.is_dir())
    others = sum(count for _, count in found.values())
    empty = [label for label, (images, _) in found.items() if not images]
    notes = {
        "images beside the folders of labels have no label and are left out": loose,
        "files in the folders of labels are no .png, .jpg or .tif and are left out": others,
        f"folders hold no image, and are no labels: {', '.join(empty[:5])}": len(empty),
    }
    said = [f"{count} {what}" for what, count in notes.items() if count]
    return pd.DataFrame(rows).assign(patient_id="", site=""), said


def _images_in(folder: Path) -> tuple[list[Path], int]:
    """The images of a label, and how many other files there are."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    deeper = [path for path in inside if path.is_dir()]
    if deeper:
        message = (
            f"{folder} holds the folder {deeper[0].name}; tiles lie in one folder a label, else pass --images a table"
        )
        raise InputError(message)
    images = [path for path in inside if path.suffix.lower() in _SUFFIXES]
    return images, len(inside) - len(images)


def _of_table(path: Path, label: str) -> tuple[pd.DataFrame, list[str]]:
    remedy = "give it the columns path and label, and patient_id and site where they are known"
    table = read_table(path, ["path", label], remedy)
    if label in ("path", "patient_id", "site"):
        message = f"--label {label} is no column of labels; pass another"
        raise InputError(message)
    table["path"] = table["path"].str.strip()
    for column in (label, "patient_id", "site"):
        table[column] = known_text(table[column]) if column in table else ""
    rows = table[table[label] != ""]
    if rows.empty or (rows["path"] == "").any():
        what = "has no row with a label" if rows.empty else "has rows without a path"
        message = f"{path} {what}; {remedy}"
        raise InputError(message)
    paths = [path.parent.absolute() / one for one in rows["path"]]
    known = {"tile": rows["path"], "label": rows[label], "patient_id": rows["patient_id"], "site": rows["site"]}
    bare = len(table) - len(rows)
    return pd.DataFrame(known).assign(path=paths), [f"{bare} rows without a label are left out"] if bare else []


def _renamed(found: pd.DataFrame, names: Pseudonyms) -> pd.DataFrame:
    """The tiles under pseudonyms, which are to be said in place of all that they were known by."""
    shown = [names.slide(tile) for tile in found["tile"]]
    for folder in {path.parent for path in found["path"]}:
        names.scrubber.learn_folder(folder, "the folder of a tile")
    for path, tile, pseudonym in zip(found["path"], found["tile"], shown, strict=True):
        names.scrubber.learn_file(path, pseudonym)
        for word in (path.stem, tile):
            names.scrubber.learn(word, pseudonym)
    patients = [names.patient(one) if one else "" for one in found["patient_id"]]
    return found.assign(tile=shown, patient_id=patients)


def _require_once(found: pd.DataFrame) -> None:
    """Refuses one file under two names: links and detours are followed."""
    files = found["path"].map(os.path.realpath)
    twice = found["tile"][files == files[files.duplicated()].iloc[0]] if files.duplicated().any() else ()
    if len(twice):
        message = f"{' and '.join(twice[:2])} are one file; name it once"
        raise InputError(message)
