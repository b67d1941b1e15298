"""How often 95 % intervals hold the truth, 1,000 times over; docs/statistics.md has the counts that these print."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from pathfm.calibrationfigures import brier, calibration_error, calibration_intercept, calibration_slope, mass_bins
from pathfm.delong import delong, delong_difference
from pathfm.metrics import Scored, auroc, difference, figures, of_one, unstratified
from pathfm.netbenefit import net_benefit
from pathfm.proportions import clustered_proportion, predictive_values, proportion
from pathfm.survivalcurves import kaplan_meier, log_rank

if TYPE_CHECKING:
    from pathfm.metrics import Figure

pytestmark = pytest.mark.long

RUNS = 1000
ERROR = 1.645 * np.sqrt(0.05 * 0.95 / RUNS)  # what a share of 95 % may lack by luck of 1,000 runs, one-sided
CASES = [(n, area, share) for n in (100, 400) for area in (0.75, 0.9) for share in (0.5, 0.3)]


class Count:
    """Of the runs those whose interval lay above the truth, those that lay below, and those that had none."""

    def __init__(self, what: str) -> None:
        self.what, self.runs, self.above, self.below, self.none = what, 0, 0, 0, 0

    def add(self, figure: Figure, truth: float) -> None:
        self.runs += 1
        if figure["low"] is None or figure["high"] is None:
            self.none += 1
        else:
            self.above += figure["low"] > truth + 1e-12
            self.below += figure["high"] < truth - 1e-12

    @property
    def covered(self) -> float:
        return 1 - (self.above + self.below + self.none) / self.runs

    def __str__(self) -> str:
        none = f", none {self.none}" if self.none else ""
        return f"{self.what}: {self.covered:.1%} of {self.runs} (too high {self.above}, too low {self.below}{none})"


def distance(area: float) -> float:
    """Between the means of two normal distributions of deviation 1 for a true AUROC."""
    return float(norm.ppf(area) * np.sqrt(2))


def of_rows(positive: Any, score: Any, patients: Any = None) -> Scored:
    patients = np.arange(len(score)) if patients is None else patients
    of_patients = np.zeros(patients.max() + 1, dtype=np.int64)
    of_patients[patients] = positive
    scores = np.stack([-score, score], axis=1)
    return Scored(positive[:, None].astype(np.float32), scores, patients, of_patients, ("",) * len(of_patients))


@pytest.mark.parametrize(("n", "area", "share"), CASES)
def test_delong_and_the_bootstrap_cover_an_auroc(n: int, area: float, share: float) -> None:
    generator = np.random.default_rng(0)
    positive = np.arange(n) < round(n * share)
    what = f"AUROC {area} of {n} patients, {share:.0%} positive"
    counts = {name: Count(f"{what}, {name}") for name in ("DeLong", "bootstrap")}
    for run in range(RUNS):
        score = generator.normal(size=n) + distance(area) * positive
        counts["DeLong"].add(delong(positive, score), area)
        counts["bootstrap"].add(figures([of_rows(positive, score)], {"auroc": auroc}, run)["auroc"], area)
    print(*counts.values(), sep="\n")
    assert all(0.935 <= count.covered <= 0.965 for count in counts.values())


@pytest.mark.parametrize("area", [0.75, 0.9])
def test_the_bootstrap_covers_an_auroc_of_slides_that_hang_together(area: float) -> None:
    generator = np.random.default_rng(0)
    count = Count(f"AUROC {area} of 1 to 4 slides of each of 100 patients, half of the spread a patient's, bootstrap")
    for run in range(RUNS):
        patients = np.repeat(np.arange(100), generator.integers(1, 5, 100))
        positive = patients < 50
        score = generator.normal(size=100)[patients] + generator.normal(size=len(patients))
        scored = of_rows(positive, score / np.sqrt(2) + distance(area) * positive, patients)
        count.add(figures([scored], {"auroc": auroc}, run)["auroc"], area)
    print(count)
    assert 0.935 <= count.covered <= 0.965


@pytest.mark.parametrize("n", [100, 400])
def test_delong_and_the_bootstrap_cover_the_difference_of_two_models(n: int) -> None:
    generator = np.random.default_rng(0)
    positive = np.arange(n) < n // 2
    what = f"AUROC 0.85 less 0.8 of {n} patients"
    paired, drawn, false = Count(f"{what}, DeLong"), Count(f"{what}, bootstrap"), 0
    for run in range(RUNS):
        shared = generator.normal(size=n)
        noise = [(shared + generator.normal(size=n)) / np.sqrt(2) for _ in range(3)]
        first, second, like = (one + distance(a) * positive for one, a in zip(noise, (0.85, 0.8, 0.85), strict=True))
        paired.add(delong_difference(positive, first, second)["difference"], 0.05)
        drawn.add(difference([of_rows(positive, first)], [of_rows(positive, second)], auroc, run), 0.05)
        false += (delong_difference(positive, first, like)["p"] or 0) < 0.05
    print(paired, drawn, f"{n} patients, models that are alike: DeLong's p below 0.05 in {false} of {RUNS}", sep="\n")
    assert all(0.935 <= count.covered <= 0.965 for count in (paired, drawn))
    assert 0.035 <= false / RUNS <= 0.065


def test_an_interval_of_sides_that_hardly_overlap_covers_too() -> None:
    generator = np.random.default_rng(0)
    positive = np.arange(60) < 20
    count, perfect = Count("AUROC 0.99 of 60 patients, a third positive, DeLong or by counts"), 0
    for _ in range(RUNS):
        figure = delong(positive, generator.normal(size=60) + distance(0.99) * positive)
        perfect += figure["value"] == 1
        count.add(figure, 0.99)
    print(f"{count}; {perfect} samples were of AUROC 1")
    assert perfect > 20
    assert count.covered >= 0.95 - ERROR


SHARES = [(n, p) for n in (20, 50, 100, 400) for p in (0.5, 0.8, 0.9, 0.95, 0.99)]


def test_wilson_covers_on_average_and_the_exact_interval_never_less() -> None:
    generator = np.random.default_rng(0)
    wilson, exact, truly = [], [], []
    for n, p in SHARES:
        found = [proportion(k, n) for k in range(n + 1)]
        drawn = generator.binomial(n, p, RUNS)
        chance = binom.pmf(np.arange(n + 1), n, p)
        for prefix, counted in (("", wilson), ("exact_", exact)):
            holds = np.array([one[f"{prefix}low"] <= p <= one[f"{prefix}high"] for one in found])  # type: ignore[literal-required]
            counted.append(holds[drawn].mean())
            truly += [chance @ holds] if counted is wilson else []
            assert holds[drawn].mean() == pytest.approx(chance @ holds, abs=3.3 * np.sqrt(0.06 * 0.94 / RUNS))
        print(f"share {p} of {n}: Wilson {wilson[-1]:.1%}, exact {exact[-1]:.1%} of {RUNS}")
    print(f"mean over these: Wilson {np.mean(wilson):.1%}, exact {np.mean(exact):.1%}")
    assert 0.945 <= np.mean(wilson) <= 0.965
    assert min(truly) == pytest.approx(
        0.9106, abs=1e-4
    )  # 0.99 of 50: known, and what the exact interval is beside it for
    assert min(exact) >= 0.95 - ERROR


@pytest.mark.parametrize("p", [0.8, 0.95])
def test_a_share_of_slides_that_hang_together_covers(p: float) -> None:
    generator = np.random.default_rng(0)
    count = Count(f"share {p} of 1 to 4 slides of each of 100 patients, half of the spread a patient's")
    for run in range(RUNS):
        patients = np.repeat(np.arange(100), generator.integers(1, 5, 100))
        drawn = (generator.normal(size=100)[patients] + generator.normal(size=len(patients))) / np.sqrt(2)
        everyone = np.ones(len(patients), dtype=bool)
        scored = unstratified(of_rows(everyone, drawn, patients))
        share = clustered_proportion(drawn < norm.ppf(p), everyone, scored, run)
        count.add({name: share[name] for name in ("value", "low", "high")}, p)  # type: ignore[literal-required]
    print(count)
    assert 0.93 <= count.covered <= 0.97


@pytest.mark.parametrize(
    ("hits", "correct", "n_positive", "n_negative", "prevalence"),
    [(0.9, 0.95, 50, 100, 0.1), (0.9, 0.99, 50, 100, 0.01), (0.95, 0.99, 100, 400, 0.05), (0.7, 0.9, 200, 200, 0.3)],
)
def test_predictive_values_at_another_prevalence_cover(
    hits: float, correct: float, n_positive: int, n_negative: int, prevalence: float
) -> None:
    generator = np.random.default_rng(0)
    share = cache(proportion)
    yes, false = hits * prevalence, (1 - correct) * (1 - prevalence)
    no, missed = correct * (1 - prevalence), (1 - hits) * prevalence
    true = {"ppv": yes / (yes + false), "npv": no / (no + missed)}
    what = f"sensitivity {hits} of {n_positive}, specificity {correct} of {n_negative}, prevalence {prevalence}"
    counts = {name: Count(f"{what}, {name.upper()}") for name in true}
    for _ in range(RUNS):
        k, misses = (int(generator.binomial(n, p)) for n, p in ((n_positive, hits), (n_negative, correct)))
        found = predictive_values(share(k, n_positive), share(misses, n_negative), prevalence)
        for name, count in counts.items():
            count.add(found[name], true[name])  # type: ignore[literal-required]
    print(*counts.values(), sep="\n")
    assert all(0.93 <= count.covered <= 0.98 for count in counts.values())


def probable(generator: Any, n: int, slope: float) -> tuple[Any, Any, Any]:
    """Of patients whether they are positive, what is said of them, and how probable they truly are."""
    x = generator.normal(0, 1.5, n)
    true = expit(slope * x + 0.3)
    return generator.random(n) < true, expit(x), true


@pytest.mark.parametrize("n", [100, 400])
def test_the_figures_of_calibration_cover(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.metrics.RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    many = probable(np.random.default_rng(1), 2_000_000, 0.7)
    asked = {"brier": brier, "slope": calibration_slope, "intercept": calibration_intercept}
    whole = np.ones((1, len(many[0])))
    true = {name: float(metric(*many[:2], whole)[0]) for name, metric in asked.items()}
    counts = {name: Count(f"{name} of {n} patients") for name in asked}
    runs = RUNS if n == 100 else 300
    for run in range(runs):
        positive, said, _ = probable(generator, n, 0.7)
        rows = unstratified(of_rows(positive, said))
        rows = Scored(rows.truth, said[:, None], rows.patients, rows.strata, rows.names)
        for name, figure in figures([rows], {key: of_one(metric) for key, metric in asked.items()}, run).items():
            counts[name].add(figure, true[name])
    print(*counts.values(), sep="\n")
    assert all(0.92 <= count.covered <= 0.975 for count in counts.values())


@pytest.mark.parametrize("slope", [1.0, 0.5])
@pytest.mark.parametrize("n", [100, 400])
def test_the_calibration_error_covers_also_where_there_is_none(n: int, slope: float) -> None:
    generator = np.random.default_rng(0)
    said_of = "probabilities that are right" if slope == 1 else "too extreme probabilities"
    count = Count(f"calibration error of {n} patients, {said_of}")
    for run in range(RUNS):
        x = generator.normal(0, 1.5, n)
        said, true = expit(x), expit(slope * x)
        rows = of_rows(generator.random(n) < true, said)
        rows = Scored(rows.truth, said[:, None], rows.patients, np.zeros(n, dtype=np.int64), rows.names)
        error = np.abs(np.bincount(mass_bins(said), weights=said - true)).sum() / n
        count.add(calibration_error(rows, run), float(error))
    print(count)
    assert count.covered >= 0.95 - ERROR


def test_the_band_of_a_decision_curve_covers() -> None:
    generator = np.random.default_rng(0)
    thresholds = np.array([0.2, 0.4, 0.6])
    _, said, true = probable(np.random.default_rng(1), 2_000_000, 0.7)
    odds = thresholds / (1 - thresholds)
    worth = [np.mean((said >= at) * (true - one * (1 - true))) for at, one in zip(thresholds, odds, strict=True)]
    counts = [Count(f"net benefit of 200 patients at {at}") for at in thresholds]
    for run in range(RUNS):
        positive, score, _ = probable(generator, 200, 0.7)
        curve = net_benefit(positive, score, of_rows(positive, score), thresholds, seed=run)
        assert curve is not None
        for index, count in enumerate(counts):
            low, high = float(curve.low[index]), float(curve.high[index])
            count.add({"value": None, "low": low, "high": high}, worth[index])
    print(*counts, sep="\n")
    assert all(0.93 <= count.covered <= 0.97 for count in counts)


def test_the_band_of_survival_covers_and_log_rank_is_as_often_wrong_as_it_says() -> None:
    generator = np.random.default_rng(0)
    count, false = Count("survival at the median, 100 patients, a third censored"), {2: 0, 3: 0}
    for _ in range(RUNS):
        time, until = generator.exponential(1, 100), generator.exponential(2, 100)
        event, seen = time <= until, np.minimum(time, until)
        curve = kaplan_meier(seen, event)
        assert curve is not None
        at = np.searchsorted(curve.time, np.log(2), side="right") - 1
        count.add({"value": None, "low": float(curve.low[at]), "high": float(curve.high[at])}, 0.5)
        for groups in false:
            false[groups] += (log_rank(seen, event, np.arange(100) % groups) or 0) < 0.05
    print(count, f"log-rank of groups that are alike: p below 0.05 in {false} of {RUNS}", sep="\n")
    assert 0.935 <= count.covered <= 0.965
    assert all(0.035 <= wrong / RUNS <= 0.065 for wrong in false.values())
