from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pathfm.errors import InputError
from pathfm.folds import assign_folds

CLASSES = ["benign", "low", "high"]


@st.composite
def cohorts(draw: st.DrawFn) -> pd.DataFrame:
    """Patients of up to 12 sites, some with slides in two of them, some without a label."""
    n_sites = draw(st.integers(3, 12))
    patients = draw(
        st.lists(
            st.tuples(st.integers(0, n_sites - 1), st.integers(-1, 2), st.booleans()), min_size=n_sites, max_size=40
        )
    )
    rows = []
    for number, (site, stratum, moved) in enumerate(patients):
        rows.append((f"{number}-a", f"p{number}", f"site {site}", stratum))
        if moved and number % 5 == 0:
            rows.append((f"{number}-b", f"p{number}", f"site {(site + 1) % n_sites}", stratum))
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "stratum"]).set_index("slide_id")


def _dealt(rows: pd.DataFrame, folds: int, seed: int) -> pd.Series[int]:
    try:
        return assign_folds(rows, folds, seed, CLASSES, "site")
    except InputError:  # it has too few sites, or one class; other tests say what is said then
        assume(False)
        raise


@given(rows=cohorts(), folds=st.integers(2, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_no_site_and_no_patient_has_two_folds_no_fold_is_empty_and_each_leaves_every_class_to_learn_from(
    rows: pd.DataFrame, folds: int, seed: int
) -> None:
    fold_of = _dealt(rows, folds, seed)
    assert list(fold_of.index) == list(rows.index)
    assert set(fold_of) == set(range(folds))
    assert fold_of.groupby(rows["site"]).nunique().max() == 1
    assert fold_of.groupby(rows["patient_id"]).nunique().max() == 1
    classes = set(rows["stratum"]) - {-1}
    for fold in range(folds):
        assert set(rows["stratum"][fold_of != fold]) - {-1} == classes


@given(rows=cohorts(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=6)
def test_the_same_seed_gives_the_same_folds_in_whatever_order_the_rows_stand(rows: pd.DataFrame, seed: int) -> None:
    fold_of = _dealt(rows, 3, seed)
    again = assign_folds(rows.sample(frac=1, random_state=seed), 3, seed, CLASSES, "site")
    assert again.to_dict() == fold_of.to_dict()


def test_no_other_deal_is_more_even() -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        sites = np.repeat(np.arange(7), rng.integers(1, 9, 7))
        strata = rng.integers(0, 2, len(sites))
        counts = np.array([[np.sum(strata[sites == s] == c) for c in (0, 1)] for s in range(7)])
        if (counts > 0).sum(axis=0).min() < 2:
            continue
        rows = pd.DataFrame(
            {"patient_id": [f"p{i}" for i in range(len(sites))], "site": sites.astype(str), "stratum": strata}
        )
        fold_of = assign_folds(rows, 3, seed, CLASSES, "site")
        dealt = np.array([fold_of[(sites == s)].iloc[0] for s in range(7)])
        best = min(
            _unevenness(counts, np.array(deal))
            for deal in itertools.product(range(3), repeat=7)
            if len(set(deal)) == 3 and _leaves_every_class(counts, np.array(deal))
        )
        assert _unevenness(counts, dealt) <= best + 0.02  # the square is followed by its tangents


def _unevenness(counts: np.ndarray, deal: np.ndarray) -> float:
    held = np.array([counts[deal == fold].sum(axis=0) for fold in range(3)])
    return float(((held * 3 / counts.sum(axis=0) - 1) ** 2).sum())


def _leaves_every_class(counts: np.ndarray, deal: np.ndarray) -> bool:
    return all(counts[deal != fold].sum(axis=0).all() for fold in range(3))


def test_another_seed_gives_other_folds() -> None:
    rows = _sites([6] * 12)
    first, second = (assign_folds(rows, 3, seed, CLASSES, "site") for seed in (0, 1))
    assert pd.crosstab(first, second).gt(0).sum().sum() > 3  # not the same folds under other numbers
    assert pd.crosstab(first, rows["stratum"]).eq(12).all().all()


def test_fewer_sites_than_folds_names_the_largest_usable_number() -> None:
    with pytest.raises(InputError, match=r"--folds 5 is more than there are sites \(4; .*\); use --folds 4"):
        assign_folds(_sites([6] * 4), 5, 0, CLASSES, "site")
    joined = _sites([6] * 4)
    joined.loc["s0-moved"] = ["p0-0", "site 1", 0]
    with pytest.raises(InputError, match=r"sites \(3; sites that share a patient are one\); use --folds 3"):
        assign_folds(joined, 5, 0, CLASSES, "site")
    with pytest.raises(InputError, match=r"sites \(1; .*\); use --split patient"):
        assign_folds(_sites([6]), 2, 0, CLASSES, "site")


def test_a_slide_without_site_is_named() -> None:
    rows = _sites([4] * 3)
    rows.loc["s1-0", "site"] = ""
    with pytest.raises(
        InputError, match="the column site filled; it is empty for s1-0; fill it, or use --split patient"
    ):
        assign_folds(rows, 3, 0, CLASSES, "site")


def test_a_class_of_one_site_is_named() -> None:
    rows = _sites([4] * 3)
    rows.loc[rows["site"] == "site 2", "stratum"] = 2
    with pytest.raises(InputError, match="class 'high' are of one site"):
        assign_folds(rows, 3, 0, CLASSES, "site")


def test_classes_that_no_deal_can_leave_to_learn_from_are_said() -> None:
    pairs = [("site 0", 0), ("site 1", 0), ("site 1", 1), ("site 2", 1), ("site 0", 2), ("site 2", 2)]
    rows = pd.DataFrame([(f"p{i}", *pair) for i, pair in enumerate(pairs)], columns=["patient_id", "site", "stratum"])
    with pytest.raises(InputError, match="cannot be dealt to 2 folds"):
        assign_folds(rows, 2, 0, CLASSES, "site")
    assert set(assign_folds(rows, 3, 0, CLASSES, "site")) == {0, 1, 2}


def test_many_sites_are_dealt_evenly() -> None:
    rng = np.random.default_rng(1)
    rows = _sites([int(n) for n in rng.integers(1, 30, 40)])
    rows["stratum"] = rng.integers(0, 2, len(rows))
    counts = pd.crosstab(assign_folds(rows, 5, 0, CLASSES, "site"), rows["stratum"])
    assert (counts / counts.mean() - 1).abs().max().max() < 0.05


def _sites(sizes: list[int]) -> pd.DataFrame:
    """Sites of so many patients, half of them of class 0, half of class 1."""
    rows = [(f"s{s}-{k}", f"p{s}-{k}", f"site {s}", k % 2) for s, size in enumerate(sizes) for k in range(size)]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "stratum"]).set_index("slide_id")
