from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from pathfm.curves import reliability, roc_band
from pathfm.metrics import Scored


def test_reliability_bins_hold_equal_mass_and_wilson_intervals_enclose_the_share() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(103)
    bins = reliability(generator.random(103) < probability, probability)
    assert len(bins) == 10
    assert sum(b.n for b in bins) == 103
    assert max(b.n for b in bins) - min(b.n for b in bins) <= 1
    assert all(b.low <= b.observed <= b.high and b.low < b.high for b in bins)
    assert len(reliability(np.array([True, False, True]), np.array([0.1, 0.2, 0.3]))) == 1
    assert reliability(np.zeros(0, bool), np.zeros(0)) == []
    assert [b.n for b in reliability(np.arange(60) < 20, np.repeat([0.1, 0.6], 30))] == [
        30,
        30,
    ]  # equal ones go together


def test_roc_band_follows_scikit_learns_curve_and_encloses_it() -> None:
    generator = np.random.default_rng(10)
    labels = np.tile([0, 1], 40)
    score = np.round(generator.random(80) * 0.7 + 0.3 * labels, 1)  # with ties
    probabilities = np.stack([1 - score, score], axis=1)
    scored = Scored(labels[:, None].astype(np.float32), probabilities, np.arange(80), labels, ("",) * 80)
    band = roc_band(labels == 1, score, scored)
    assert band is not None
    fpr, tpr, _ = roc_curve(labels, probabilities[:, 1], drop_intermediate=False)
    inside = (band.fpr > 0) & (band.fpr < 1)
    assert band.tpr[inside] == pytest.approx(np.interp(band.fpr, fpr, tpr)[inside])
    assert np.mean((band.low <= band.tpr + 1e-9) & (band.tpr <= band.high + 1e-9)) > 0.95


def _of_patients(positive: np.ndarray, score: np.ndarray) -> Scored:
    n = len(score)
    strata = np.zeros(n, dtype=np.int64)  # one label of several: the resampling is not stratified by it
    return Scored(positive[:, None].astype(np.float32), score[:, None], np.arange(n), strata, ("",) * n)


def test_resamples_without_a_rare_label_do_not_pull_the_band_down() -> None:
    score = np.random.default_rng(0).random(60) * 0.8
    positive = np.arange(60) < 3
    score[positive] = 0.9
    band = roc_band(positive, score, _of_patients(positive, score))
    assert band is not None
    assert (band.tpr == 1).all()
    assert (band.low == 1).all()


@pytest.mark.parametrize("positive", [np.ones(9, bool), np.zeros(9, bool)])
def test_there_is_no_curve_where_the_rows_lack_a_side(positive: np.ndarray) -> None:
    score = np.random.default_rng(0).random(9)
    assert roc_band(positive, score, _of_patients(positive, score)) is None
