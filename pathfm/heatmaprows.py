"""heatmaps.csv: what was drawn of each slide, by which model, or why nothing was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import pandas as pd

from pathfm.errors import InputError
from pathfm.files import write_text
from pathfm.progress import logger
from pathfm.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HEATMAPS_CSV = "heatmaps.csv"


@dataclass(frozen=True, kw_only=True)
class HeatmapRow:
    """A row of heatmaps.csv: what was drawn of a slide, or why it was not."""

    slide_id: str
    """The slide."""
    overlay: str = ""
    """File name of the overlay, "" where nothing was drawn."""
    gallery: str = ""
    """File name of the top tiles."""
    geojson: str = ""
    """File name of the tiles for QuPath."""
    target: str = ""
    """What is predicted."""
    origin: str = ""
    """Whose attention it is: "out of fold", "final model", or "seen in training"."""
    predicted: str = ""
    """The most probable class, or what else is predicted."""
    probability: float | None = None
    """Its probability, where it has one."""
    label: str = ""
    """The label, "" where it is not known."""
    n_tiles: int = 0
    """Tiles of the slide."""
    top_attention: float | None = None
    """The highest attention of a tile of the slide, relative to the average tile of the bag."""
    stage: str = ""
    """What the release gate let the model be used for, "" where nothing was drawn."""
    why: str = ""
    """Why nothing was drawn."""
    fingerprint: str = ""
    """Digest of all that decides the three files."""


def read_rows(path: Path) -> dict[str, HeatmapRow]:
    """What heatmaps.csv says was drawn before, by slide_id; nothing where it cannot be used, then all is drawn again."""
    if not path.is_file():
        return {}
    names = [field.name for field in fields(HeatmapRow)]
    numbers = {"probability": float, "top_attention": float, "n_tiles": int}
    try:
        table = read_table(path, names, "all slides are drawn again")
        drawn = table.loc[table["fingerprint"] != "", names].to_dict("records")
        rows = [HeatmapRow(**{str(k): numbers.get(str(k), str)(v) for k, v in row.items()}) for row in drawn]
    except (InputError, ValueError) as error:
        logger.warning("%s", error)
        return {}
    return {row.slide_id: row for row in rows}


def write_rows(path: Path, rows: Sequence[HeatmapRow]) -> None:
    """Writes them as CSV."""
    write_text(path, table_of(rows).to_csv(index=False, lineterminator="\n"))


def table_of(rows: Sequence[HeatmapRow]) -> pd.DataFrame:
    """The rows as a table, a column each."""
    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(HeatmapRow)])
