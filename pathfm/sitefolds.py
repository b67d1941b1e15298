"""Folds that keep sites apart: whole sites are dealt out so that the classes are as even as the sites allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, eye_array, hstack, kron, vstack
from scipy.sparse.csgraph import connected_components

from pathfm.errors import InputError
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NODES = 200  # of the search tree: bounds the time, and unlike a limit in seconds gives the same folds everywhere
_LUCK = 1e-3  # against the square of a share, 3 % of a fold's patients: chooses among folds that are as even
_TANGENTS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4])
_TANGENTS = np.r_[-_TANGENTS[_TANGENTS < 1], 0, _TANGENTS]  # a fold lacks at most all of its share


def deal_sites(
    table: pd.DataFrame, folds: int, seed: int, classes: Sequence[str] = (), option: str = "--folds"
) -> dict[str, int]:
    """The fold of each patient, such that no site has patients in two folds.

    Preserved-site cross-validation (Howard et al. 2021, Nat Commun 12:4423), there a quadratic programme: which site goes
    to which fold is chosen to make the share of each stratum's patients in each fold as near to 1 / folds as it can be.
    Here the squares of the deviations are followed by their tangents, which makes it an integer linear programme that
    SciPy solves; it is cut off at a fixed size of its search tree, so that a hundred sites take seconds, and 150 to 10
    folds with 4 classes up to a minute. Sites that share a patient are dealt as one.

    Args:
        table: one row a slide, or of a bag one for each of its sites; columns patient_id, site, stratum (-1 without a
            label, a stratum of its own).
        folds: at least 2.
        seed: chooses among folds that are equally even, and numbers them.
        classes: names of the strata, of each of which every fold's training side then keeps a patient; () for cuts of a
            number.
        option: what the user calls the number of folds.

    Raises:
        InputError: a slide without site, fewer sites than folds, or a class that only one site has.
    """
    _require_sites(table)
    group_of = _joined_sites(table)
    codes, strata = np.unique(table.groupby("patient_id")["stratum"].max().loc[group_of.index], return_inverse=True)
    counts = np.zeros((group_of.max() + 1, len(codes)), dtype=np.int64)
    np.add.at(counts, (group_of.to_numpy(), strata), 1)
    named = {at: classes[code] for at, code in enumerate(codes) if classes and code >= 0}
    _require_enough(counts, folds, named, option)
    logger.info("dealing %d sites to %d folds", len(counts), folds)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(counts))  # of equals the solver takes what it meets first
    fold_of = _most_even(counts[order], list(named), folds, generator)
    if fold_of is None:
        message = (
            f"the {len(counts)} sites cannot be dealt to {folds} folds that each leave every class to learn from;"
            f" use a smaller {option}, or --split patient"
        )
        raise InputError(message)
    dealt = np.empty(len(counts), dtype=np.int64)
    dealt[order] = generator.permutation(folds)[fold_of]
    return {str(patient): int(dealt[group]) for patient, group in group_of.items()}


def _most_even(
    counts: NDArray[np.int64], needed: list[int], folds: int, generator: np.random.Generator
) -> NDArray[np.int64] | None:
    """The fold of each group of sites, int (g,); None where there are no such folds.

    The variables are x (g, folds), 1 where a group goes to a fold, and q (strata, folds), to be minimised: at least the
    square of u = patients held / (patients of the stratum / folds) - 1, by way of its tangents q >= 2 t u - t^2.

    Args:
        counts: patients by group and stratum.
        needed: strata of which the other folds together have to hold a patient.
        folds: how many.
        generator: makes the prices that choose among equals.
    """
    n_groups, n_strata = counts.shape
    n_x, n_q, total = n_groups * folds, n_strata * folds, counts.sum(axis=0)
    held = kron(csr_array(counts.T), eye_array(folds), format="csr")
    slopes = 2 * _TANGENTS[:, None]
    steep = kron(csr_array(slopes), kron(csr_array(counts.T * folds / total[:, None]), eye_array(folds)))
    square = kron(csr_array(np.ones_like(slopes)), eye_array(n_q))
    bends = np.repeat(2 * _TANGENTS + _TANGENTS**2, n_q)
    once = kron(eye_array(n_groups), csr_array(np.ones((1, folds))))
    filled = kron(csr_array(np.ones((1, n_groups))), eye_array(folds))
    on_x = vstack([once, filled, held[np.isin(np.arange(n_strata), needed).repeat(folds)]])
    at_most = np.r_[np.ones(n_groups), np.full(folds, np.inf), np.repeat(total[needed] - 1, folds)]
    at_least = np.r_[np.ones(n_groups + folds), np.full(len(at_most) - n_groups - folds, -np.inf)]
    upper = np.r_[np.ones(n_x), np.full(n_q, np.inf)]
    largest = int(counts.sum(axis=1).argmax())
    upper[largest * folds + 1 : (largest + 1) * folds] = 0  # it goes to the first: folds are numbered afterwards
    result = milp(
        np.r_[generator.random(n_x) * _LUCK / n_groups, np.ones(n_q)],
        integrality=np.r_[np.ones(n_x), np.zeros(n_q)],
        bounds=Bounds(np.zeros(n_x + n_q), upper),
        constraints=[
            LinearConstraint(hstack([steep, -square]), -np.inf, bends),
            LinearConstraint(hstack([on_x, csr_array((on_x.shape[0], n_q))]), at_least, at_most),
        ],
        options={"node_limit": _NODES},
    )
    if result.x is None:
        return None
    fold_of: NDArray[np.int64] = result.x[:n_x].reshape(n_groups, folds).argmax(axis=1)
    return fold_of


def _joined_sites(table: pd.DataFrame) -> pd.Series[int]:
    """The group of each patient: sites that share a patient, directly or by way of others, are one group."""
    patients, names = pd.factorize(table["patient_id"], sort=True)
    sites, _ = pd.factorize(table["site"], sort=True)
    n = len(names) + sites.max() + 1
    shared = coo_array((np.ones(len(table)), (patients, len(names) + sites)), shape=(n, n))
    _, group = connected_components(shared, directed=False)
    return pd.Series(group[: len(names)], index=names)


def _require_sites(table: pd.DataFrame) -> None:
    without = sorted(set(table.index[table["site"] == ""]))
    if without:
        shown = ", ".join(map(str, without[:5])) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        message = f"--split site needs the column site filled; it is empty for {shown}; fill it, or use --split patient"
        raise InputError(message)


def _require_enough(counts: NDArray[np.int64], folds: int, named: dict[int, str], option: str) -> None:
    n_groups = len(counts)
    if folds > n_groups:
        remedy = f"use {option} {n_groups}, or --split patient" if n_groups > 1 else "use --split patient"
        message = (
            f"{option} {folds} is more than there are sites ({n_groups}; sites that share a patient are one); {remedy}"
        )
        raise InputError(message)
    for at, name in named.items():
        if (counts[:, at] > 0).sum() < 2:
            message = (
                f"all patients of class {name!r} are of one site, or of sites that share patients, so that without its"
                " fold there is none to learn from; use --split patient"
            )
            raise InputError(message)
