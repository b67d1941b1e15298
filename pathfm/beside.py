"""What cohort tables say of the slides that a model is to score: whose they are, and what it reads beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pathfm.errors import InputError
from pathfm.patients import NO_EMBEDDINGS, require_agreement
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pathfm.cohort import Cohort
    from pathfm.joined import Files
    from pathfm.model import Model


def require_tables(model: Model, tables: Sequence[Cohort], option: str = "--cohort") -> None:
    """Before hours of work: what the model reads beside the slides has to be there.

    Args:
        model: says what it reads.
        tables: that were given.
        option: of the command line, that takes one.

    Raises:
        InputError: no table, and the model needs one; the columns are named.
        CohortError: a table without a column that the model reads.
    """
    if model.covariates:
        for one in tables:
            model.covariates.cells(one)
    needed = ["patient_id"] if model.unit == "patient" else []
    needed += [one.name for one in model.covariates.columns] if model.covariates else []
    if needed and not tables:
        message = (
            f"the model reads the {', '.join(needed)} of each slide; pass {option} a CSV with the columns"
            f" {', '.join(dict.fromkeys(['slide_id', 'patient_id', *needed]))}"
        )
        raise InputError(message)


def slides_to_score(model: Model, files: Mapping[str, Files | None], tables: Sequence[Cohort]) -> pd.DataFrame:
    """One row a slide, columns slide_id, patient_id ("" where no table names it), files and reason, for `bags_of`.

    Where several tables name a slide, the first of them counts. Slides that none names are warned of where the model would
    know more of them.
    """
    patients = {name: patient for one in reversed(tables) for name, patient in one.patients().items()}
    unnamed = [name for name in files if name not in patients]
    if unnamed and (model.unit == "patient" or model.covariates):
        what = "covariates are taken as not known" + (" and each is a patient" if model.unit == "patient" else "")
        logger.warning("no table names %d slides, such as %s: their %s", len(unnamed), unnamed[0], what)
    return pd.DataFrame(
        {
            "slide_id": list(files),
            "patient_id": [patients.get(name, "") for name in files],
            "files": pd.Series(list(files.values()), dtype=object),
            "reason": ["" if its_files else NO_EMBEDDINGS for its_files in files.values()],
        }
    )


def covariates_of(model: Model, slides: pd.DataFrame, tables: Sequence[Cohort]) -> NDArray[np.float32] | None:
    """The encoded covariates of each slide, or of its patient, float32 (n, m); None where the model reads none.

    Args:
        model: says which, and what a bag is of.
        slides: columns slide_id and patient_id.
        tables: at least one; of a slide that several name the first counts.

    Raises:
        CohortError: slides of one patient that say different things of it, or a table without a column.
    """
    if model.covariates is None:
        return None
    columns = [one.name for one in model.covariates.columns]
    cells = pd.concat([model.covariates.cells(one) for one in tables])
    cells = cells[~cells.index.duplicated()].reindex(slides["slide_id"], fill_value="")
    if model.unit == "patient":
        patients = pd.Series(list(slides["patient_id"]), index=cells.index)
        of_known = (patients != "").to_numpy()
        require_agreement(tables[0].source, cells[of_known], patients[of_known])
        for column in columns:
            filled = cells[column].where(cells[column] != "").groupby(patients.to_numpy()).transform("first").fillna("")
            cells[column] = filled.where(of_known, cells[column])
    return model.covariates.encode(cells)
