from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pathfm.errors import InputError
from pathfm.folds import assign_folds, carve_stopping, strata_of
from pathfm.targets import Classes, Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

Cohort = tuple[dict[str, str], dict[str, int]]
CLASSES = ["benign", "low", "high", "metastatic"]


def _rows(patients: dict[str, str], targets: dict[str, int]) -> pd.DataFrame:
    """What `assign_folds` takes."""
    columns = {"patient_id": [patients[one] for one in targets], "stratum": list(targets.values())}
    return pd.DataFrame(columns, index=list(targets))


def _assign(patients: dict[str, str], targets: dict[str, int], folds: int, seed: int) -> pd.Series[int]:
    return assign_folds(_rows(patients, targets), folds, seed, CLASSES)


@st.composite
def cohorts(draw: st.DrawFn, max_classes: int = 4) -> Cohort:
    """Patients of 2 to 4 classes with 1 to 4 slides each, of one class a patient."""
    n_classes = draw(st.integers(2, max_classes))
    counts = draw(st.lists(st.integers(2, 12), min_size=n_classes, max_size=n_classes))
    patients, targets = {}, {}
    for target, count in enumerate(counts):
        for number in range(count):
            for slide in range(draw(st.integers(1, 4))):
                patients[f"{target}-{number}-{slide}"] = f"{target}-{number}"
                targets[f"{target}-{number}-{slide}"] = target
    return patients, targets


@st.composite
def mixed_cohorts(draw: st.DrawFn) -> Cohort:
    """Two classes, each patient with slides of one or of both."""
    kinds = draw(st.lists(st.sampled_from([(0,), (1,), (0, 1)]), min_size=4, max_size=30))
    patients, targets = {}, {}
    for number, kind in enumerate(kinds):
        for target in kind:
            patients[f"{number}-{target}"] = str(number)
            targets[f"{number}-{target}"] = target
    return patients, targets


def _smallest(cohort: Cohort) -> int:
    patients, targets = cohort
    return min(len({patients[s] for s in targets if targets[s] == c}) for c in set(targets.values()))


@given(cohort=cohorts(), folds=st.integers(2, 5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_every_slide_has_one_fold_and_no_patient_has_two(cohort: Cohort, folds: int, seed: int) -> None:
    patients, targets = cohort
    assume(folds <= _smallest(cohort))
    fold_of = _assign(patients, targets, folds, seed)
    assert list(fold_of.index) == list(targets)
    assert set(fold_of) == set(range(folds))
    assert fold_of.groupby(patients).nunique().max() == 1


@given(cohort=cohorts(), folds=st.integers(2, 5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_folds_differ_by_at_most_one_patient_in_all_and_in_each_class(cohort: Cohort, folds: int, seed: int) -> None:
    patients, targets = cohort
    assume(folds <= _smallest(cohort))
    fold_of = _assign(patients, targets, folds, seed)
    for slides in (list(targets), *([s for s in targets if targets[s] == c] for c in set(targets.values()))):
        sizes = [len({patients[s] for s in slides if fold_of[s] == fold}) for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


@given(cohort=mixed_cohorts(), folds=st.integers(2, 5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_each_fold_holds_both_classes_though_patients_have_slides_of_both(
    cohort: Cohort, folds: int, seed: int
) -> None:
    patients, targets = cohort
    assume(len(set(targets.values())) == 2 and folds <= _smallest(cohort))
    fold_of = _assign(patients, targets, folds, seed)
    for fold in range(folds):
        assert {targets[s] for s in targets if fold_of[s] == fold} == {0, 1}


@given(cohort=cohorts(), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_order_of_the_rows_changes_no_fold(cohort: Cohort, seed: int) -> None:
    patients, targets = cohort
    slides = list(targets)
    random.Random(seed).shuffle(slides)
    again = _assign({s: patients[s] for s in slides}, {s: targets[s] for s in slides}, 2, seed)
    assert again.to_dict() == _assign(patients, targets, 2, seed).to_dict()


def test_another_seed_gives_other_folds() -> None:
    patients = {f"s{i}": f"p{i}" for i in range(40)}
    targets = {f"s{i}": i % 2 for i in range(40)}
    assert _assign(patients, targets, 5, 0).tolist() != _assign(patients, targets, 5, 1).tolist()


def test_more_folds_than_the_smallest_class_has_patients_names_the_largest_usable_number() -> None:
    patients = {f"s{i}": f"p{i}" for i in range(13)}
    targets = {f"s{i}": int(i < 3) for i in range(13)}
    with pytest.raises(InputError, match=r"--folds 5 .*class 'tumour' has patients \(3\); use --folds 3"):
        assign_folds(_rows(patients, targets), 5, 0, ["normal", "tumour"])
    assert set(_assign(patients, targets, 3, 0)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("targets", "folds", "message"),
    [
        ([0, 0, 0, 0], 2, "one class"),
        ([0, 0, 0, 1], 2, "cross-validation needs two patients of each class"),
        ([0, 0, 1, 1], 1, "--folds 1 leaves nothing to score"),
    ],
)
def test_cohorts_that_cannot_be_split_say_why(targets: list[int], folds: int, message: str) -> None:
    slides = [f"s{i}" for i in range(len(targets))]
    with pytest.raises(InputError, match=message):
        _assign({s: s for s in slides}, dict(zip(slides, targets, strict=True)), folds, 0)


@given(cohort=cohorts(), share=st.floats(0.05, 0.5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_stopping_patients_leave_two_of_each_class_to_learn_from_or_are_none(
    cohort: Cohort, share: float, seed: int
) -> None:
    patients, targets = cohort
    carved = carve_stopping(patients, targets, share, seed)
    for target in set(targets.values()):
        members = {patients[s] for s in targets if targets[s] == target}
        if carved:
            assert len(members & carved) >= 1
            assert len(members - carved) >= 2
            assert abs(len(members & carved) - share * len(members)) <= 1
    assert carved or _smallest(cohort) - max(1, round(share * _smallest(cohort))) < 2


@given(cohort=mixed_cohorts(), seed=st.integers(0, 99))
@settings(deadline=None)
def test_stopping_patients_hold_both_classes_though_patients_have_slides_of_both(cohort: Cohort, seed: int) -> None:
    patients, targets = cohort
    carved = carve_stopping(patients, targets, 0.2, seed)
    if carved:
        assert {targets[s] for s in targets if patients[s] in carved} == set(targets.values())
        assert {targets[s] for s in targets if patients[s] not in carved} == set(targets.values())


def test_a_share_of_nothing_carves_nobody() -> None:
    slides = [f"s{i}" for i in range(40)]
    assert carve_stopping({s: s for s in slides}, {s: i % 2 for i, s in enumerate(slides)}, 0.0, 0) == set()


@given(cohort=cohorts(max_classes=2), unlabelled=st.integers(0, 9), folds=st.integers(2, 3), seed=st.integers(0, 99))
@settings(deadline=None)
def test_patients_without_a_label_are_dealt_out_evenly_beside_the_others(
    cohort: Cohort, unlabelled: int, folds: int, seed: int
) -> None:
    patients, targets = cohort
    assume(folds <= _smallest(cohort))
    patients |= {f"none-{k}": f"none-{k}" for k in range(unlabelled)}
    targets |= {f"none-{k}": -1 for k in range(unlabelled)}
    fold_of = _assign(patients, targets, folds, seed)
    for stratum in (-1, 0, 1):
        sizes = [len({patients[s] for s in targets if targets[s] == stratum and fold_of[s] == k}) for k in range(folds)]
        assert max(sizes) - min(sizes) <= 1


def test_slides_without_a_label_leave_a_fold_with_both_classes() -> None:
    patients = {f"s{i}{j}": f"p{i}" for i in range(8) for j in "ab"}
    targets = {slide: int(patients[slide] > "p3") if slide.endswith("a") else -1 for slide in patients}
    fold_of = _assign(patients, targets, 4, 0)
    for fold in range(4):
        assert {targets[s] for s in targets if fold_of[s] == fold} == {-1, 0, 1}


def test_cuts_of_a_number_need_no_patient_of_each_in_every_fold() -> None:
    rows = _rows({f"s{i}": f"p{i}" for i in range(6)}, {f"s{i}": int(i == 0) for i in range(6)})
    assert set(assign_folds(rows, 5, 0)) == set(range(5))
    with pytest.raises(InputError, match=r"--inner_folds 7 .* labelled patients \(6\); use --inner_folds 6"):
        assign_folds(rows, 7, 0, option="--inner_folds")


def test_stopping_patients_without_a_label_are_shared_out_and_not_asked_for() -> None:
    targets = {f"s{i}": i % 3 - 1 for i in range(30)}
    carved = carve_stopping({s: s for s in targets}, targets, 0.2, 0)
    assert [sum(targets[s] == stratum for s in carved) for stratum in (-1, 0, 1)] == [2, 2, 2]
    assert carve_stopping({s: s for s in targets}, dict.fromkeys(targets, -1), 0.2, 0) == set()


def test_cuts_of_a_number_are_those_of_the_patients_however_many_slides_each_has() -> None:
    class Halves(Classes):
        """A number that is cut at its median."""

        groups = property(lambda _: [])

        def strata(self, truth: Truth) -> NDArray[np.int64]:
            return (truth[:, 0] > np.median(truth[:, 0])).astype(np.int64)

    truth = np.array([[1], [2], [3], [4], [4], [4], [4], [4]], dtype=np.float32)
    patients = ["a", "b", "c", "d", "d", "d", "d", "d"]
    assert strata_of(Halves("n", ("0", "1")), truth, patients).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert strata_of(Classes("n", ("0", "1")), np.array([[1], [np.nan]], np.float32), ["a", "a"]).tolist() == [1, -1]
