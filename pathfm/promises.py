"""What is chosen on the out-of-fold predictions of a cross-validation: honest decisions of each fold, and what is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pathfm.freezing import cross_fitted, freeze
from pathfm.outoffold import all_repeats, mean_of_repeats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from pathfm.appraisal import Asked
    from pathfm.frozen import Frozen
    from pathfm.labelled import LabelledSlides
    from pathfm.targets import Target

    Tables = dict[str, pd.DataFrame]


class Promised(NamedTuple):
    """Of each target by its name.

    Attributes:
        predictions: the mean over the repeats, each fold decided by what was chosen on the others.
        rows: the rows of all repeats below each other, decided likewise.
        of_folds: what decided each fold of `predictions`; without targets of which nothing was asked.
        of_repeats: of each repeat what decided its folds.
        frozen: what goes with the model that is handed on, chosen on all rows.
    """

    predictions: Tables
    rows: Tables
    of_folds: dict[str, dict[int, Frozen]]
    of_repeats: list[dict[str, dict[int, Frozen]]]
    frozen: dict[str, Frozen]


def promised(
    slides: LabelledSlides,
    scored: Sequence[Mapping[str, pd.DataFrame]],
    asked: Asked,
    able: Sequence[Target],
    where: str,
) -> Promised:
    """Chooses what was asked for, on predictions of models that had not seen the patients.

    Args:
        slides: the cohort.
        scored: of each repeat the out-of-fold predictions as the models have them.
        asked: what to choose.
        able: the targets of which something can be chosen.
        where: how the patients were held out, in words.

    Raises:
        InputError: rows on which nothing can be chosen.
    """
    raw, repeats = mean_of_repeats(slides.task, scored), [dict(tables) for tables in scored]
    predictions, of_folds, frozen = dict(raw), {}, {}
    of_repeats: list[dict[str, dict[int, Frozen]]] = [{} for _ in repeats]
    for target in able:
        name, how = target.name, (target, slides.unit, asked.rule, asked.claims)
        for repeat, tables in enumerate(repeats):
            tables[name], of_repeats[repeat][name] = cross_fitted(tables[name], *how)
        predictions[name], of_folds[name] = repeats[0][name], of_repeats[0][name]
        if len(repeats) > 1:
            predictions[name], of_folds[name] = cross_fitted(raw[name], *how)
        frozen[name] = freeze(raw[name], *how, f"out-of-fold predictions, {where}")
    return Promised(predictions, all_repeats(slides.task, repeats), of_folds, of_repeats, frozen)
