"""What probes may learn from, and what their figures say, on embeddings whose truth is known."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathfm import probes
from pathfm.errors import InputError
from pathfm.probejudge import judge
from pathfm.probeplot import draw_probe
from pathfm.probes import PROBES, STRENGTHS, predict
from pathfm.probescores import Predicted, difference, figures
from pathfm.probetasks import LABEL, NEW_SITES, SITE, Task, label_task, new_sites_task, site_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.metrics import Figure
    from pathfm.probes import Probe
    from pathfm.probetasks import Integers

DIM = 8


def planted(
    patients: int = 24,
    tiles: int = 6,
    label: float = 0.0,
    site: float = 0.0,
    patient: float = 0.0,
    seed: int = 0,
    sites: int = 2,
    dim: int = DIM,
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Tiles and their embeddings: noise of deviation 1, moved by so much for the label, the site and the patient.

    Labels and sites are dealt to patients at random but evenly, each apart from the other.
    """
    rng = np.random.default_rng(seed)
    labels, places = rng.permutation(patients) % 2, rng.permutation(patients) % sites
    whose = np.repeat(np.arange(patients), tiles)
    directions = rng.normal(size=(2 + sites, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = rng.normal(size=(len(whose), dim)) + patient * rng.normal(size=(patients, dim))[whose]
    features += label * directions[labels[whose]] + site * directions[2 + places[whose]]
    table = pd.DataFrame(
        {
            "label": [f"class {labels[one]}" for one in whose],
            "site": [f"site {places[one]}" for one in whose],
            "patient": [f"patient {one:03d}" for one in whose],
        }
    )
    return table, features


def accuracy(task: Task, features: NDArray[Any], probe: Probe, seed: int = 0) -> Figure:
    return figures(task, predict(task, features, probe, seed=seed), seed).balanced_accuracy


def width(figure: Figure) -> float:
    assert figure["low"] is not None
    assert figure["high"] is not None
    return figure["high"] - figure["low"]


TILES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 3)), min_size=8, max_size=60)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=TILES, folds=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_patient_is_never_on_both_sides_and_a_tile_in_one_test(
    rows: list[tuple[int, int, int]], folds: int, seed: int
) -> None:
    """Patients here have tiles of several labels and sites, and some tiles have no site."""
    table = pd.DataFrame([{"patient": f"p{p}", "label": f"c{c}", "site": f"s{s}" if s else ""} for p, c, s in rows])
    features = np.random.default_rng(seed).normal(size=(len(table), 2))
    tasks = [site_task(table, folds, seed), new_sites_task(table)]
    counts = table.groupby("label")["patient"].nunique()
    if len(counts) < 2 or counts.min() < folds:
        with pytest.raises(InputError):
            label_task(table, folds, seed)
    else:
        with suppress(InputError):  # all patients of a class in one fold
            tasks.append(label_task(table, folds, seed))
    for task in tasks:
        assert bool(task.splits) != bool(task.why_not)
        tested = np.concatenate([np.zeros(0, np.int64), *(test for _, test in task.splits)])
        assert len(tested) == len(np.unique(tested))
        names = table["patient"].to_numpy()[task.rows]
        for train, test in task.splits:
            assert not set(names[train]) & set(names[test])
            assert set(task.truth[train]) == set(range(len(task.classes)))
        with pytest.MonkeyPatch.context() as few:
            few.setattr(probes, "STRENGTHS", STRENGTHS[2:4])
            for probe in PROBES if task.splits else ():
                answers = predict(task, features, probe, 3).answers
                assert (np.flatnonzero(answers >= 0) == np.sort(tested)).all()
                assert figures(task, Predicted(answers)).balanced_accuracy["value"] is not None
        if task.name == LABEL:
            assert len(tested) == len(table)
        if task.name == NEW_SITES:
            sites = table["site"].to_numpy()[task.rows]
            assert all(not set(sites[train]) & set(sites[test]) for train, test in task.splits)


@pytest.mark.parametrize("probe", PROBES)
def test_a_planted_label_is_found(probe: Probe) -> None:
    table, features = planted(label=6)
    found = accuracy(label_task(table, 4, 0), features, probe)
    assert found["low"] is not None
    assert found["low"] > 0.85


@pytest.mark.parametrize("probe", PROBES)
def test_labels_dealt_to_patients_by_chance_give_an_interval_over_chance(probe: Probe) -> None:
    """Not in every sample: of 95 % intervals some miss, and after cross-validation more of them do."""
    found = []
    for seed in range(20 if probe == "knn" else 10):
        table, features = planted(patient=1, tiles=4, seed=seed)
        found.append(accuracy(label_task(table, 4, seed), features, probe, seed))
    covering = sum((one["low"] or 0) <= 0.5 <= (one["high"] or 0) for one in found)
    print(f"{covering} of {len(found)} intervals of {probe} hold chance")
    assert covering >= 0.75 * len(found)
    assert abs(np.mean([one["value"] for one in found if one["value"] is not None]) - 0.5) < 0.07


@pytest.mark.parametrize("probe", PROBES)
def test_what_only_tells_patients_apart_is_chance_by_patient(probe: Probe) -> None:
    table, features = planted(patient=6, dim=48)
    by_patient = accuracy(label_task(table, 4, 0), features, probe)
    careless = table.assign(patient=[f"tile {row:04d}" for row in range(len(table))])
    by_tile = accuracy(label_task(careless, 4, 0), features, probe)
    assert by_patient["low"] is not None
    assert by_tile["value"] is not None
    assert by_patient["low"] < 0.5
    assert by_tile["value"] > 0.9  # the same embeddings, had patients been ignored


def test_fewer_patients_give_a_wider_interval() -> None:
    widths = []
    for patients in (48, 8):
        of_some = [planted(patients, tiles=96 // patients, label=2, patient=1.5, seed=seed) for seed in range(8)]
        found = [accuracy(label_task(table, 4, 0), features, "knn") for table, features in of_some]
        widths.append(np.mean([width(one) for one in found]))
    assert widths[1] > 1.4 * widths[0]


def test_copies_of_tiles_do_not_make_an_interval_narrower() -> None:
    table, features = planted(12, label=1.5, patient=1)
    task = label_task(table, 4, 0)
    once = predict(task, features, "knn")
    nine = replace(
        task, truth=np.repeat(task.truth, 9), patients=np.repeat(task.patients, 9), groups=np.repeat(task.groups, 9)
    )
    copied = figures(nine, Predicted(np.repeat(once.answers, 9), (), 0))
    assert figures(task, once).balanced_accuracy == copied.balanced_accuracy
    assert figures(task, once).macro_f1["low"] == pytest.approx(copied.macro_f1["low"])


@pytest.mark.parametrize("probe", PROBES)
def test_a_planted_site_is_found_and_an_absent_one_is_not(probe: Probe) -> None:
    values = []
    for shift in (6.0, 0.0):
        table, features = planted(site=shift, patient=0.5)
        values.append(accuracy(site_task(table, 4, 0), features, probe))
    assert values[0]["low"] is not None
    assert values[0]["low"] > 0.85
    assert (values[1]["low"] or 0) <= 0.5 <= (values[1]["high"] or 0)


def leaning(seed: int, patients: int = 32, many: int = 12, tiles: int = 5) -> tuple[pd.DataFrame, Integers]:
    """Two sites; `many` of sixteen patients of the one have class 1, and as many of the other have class 0."""
    rng = np.random.default_rng(seed)
    sites, labels = np.arange(patients) % 2, np.empty(patients, np.int64)
    for site, count in ((0, many), (1, patients // 2 - many)):
        labels[sites == site] = rng.permutation(patients // 2) < count
    whose = np.repeat(np.arange(patients), tiles)
    table = pd.DataFrame(
        {
            "label": [f"class {labels[one]}" for one in whose],
            "site": [f"site {sites[one]}" for one in whose],
            "patient": [f"patient {one:02d}" for one in whose],
        }
    )
    return table, labels[whose]


@pytest.mark.parametrize("probe", PROBES)
def test_on_new_sites_labels_that_lean_to_sites_and_embeddings_of_nothing_give_chance(probe: Probe) -> None:
    """Pooled over sites the recalls would lie far below it: what is learned at one site is the other's reverse."""
    values, pooled = [], []
    for seed in range(24 if probe == "knn" else 6):
        table, _ = leaning(seed)
        rng = np.random.default_rng(100 + seed)
        features = rng.normal(size=(len(table), 8)) + 0.7 * np.repeat(rng.normal(size=(32, 8)), 5, axis=0)
        task = new_sites_task(table)
        predicted = predict(task, features, probe)
        values.append(figures(task, predicted).balanced_accuracy["value"])
        pooled.append(balanced_accuracy_score(task.truth, predicted.answers))
        of_sites = [balanced_accuracy_score(task.truth[test], predicted.answers[test]) for _, test in task.splits]
        assert values[-1] == pytest.approx(np.mean(of_sites))
    assert abs(np.mean(values) - 0.5) < 0.05
    assert np.mean(pooled) < 0.46


def test_of_a_new_site_the_classes_count_that_it_has() -> None:
    sites = {"a": "xyz", "b": "xy", "c": "xyz", "d": "x"}
    rows = [
        {"label": label, "site": site, "patient": f"{site}{label}{number}"}
        for site, labels in sites.items()
        for label in labels
        for number in range(3)
    ]
    task = new_sites_task(pd.DataFrame(rows))
    assert task.scored == ("a", "b", "c")
    assert task.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert any("1 sites have one label" in note and note.endswith(": d") for note in task.notes)
    always_x = Predicted(np.where(np.isin(task.groups, [0, 1, 2]), 0, -1))
    found = figures(task, always_x)
    assert found.balanced_accuracy["value"] == pytest.approx(task.chance)
    assert found.dropped == 0


def test_a_site_that_the_label_alone_tells_is_said_so() -> None:
    table, labels = leaning(0, many=14)
    table = table.assign(tile=table["patient"])
    features = np.random.default_rng(0).normal(size=(len(table), 8))
    features[:, 0] += 6 * labels  # the label, and nothing of the site
    leans = judge(table, {"one": features}, 4, 20, 0)
    site = leans.results[leans.results["target"] == SITE]
    assert set(site["by_label"]) == {0.875}
    assert (site["balanced_accuracy"] > 0.7).all()
    assert (site["balanced_accuracy"] < 0.9).all()
    assert any("the label alone tells the site at 0.88 (chance 0.50)" in note for note in leans.notes)
    assert leans.results[leans.results["target"] != SITE]["by_label"].isna().all()
    assert leans.scored_sites == ["site 0", "site 1"]
    even = judge(leaning(0, many=8)[0], {"one": features}, 4, 20, 0)
    assert not any("label alone" in note for note in even.notes)
    drawing = draw_probe(leans.results, [])
    lines = [[line.get_label() for line in axes.lines] for axes in drawing.axes]
    assert len(lines[1]) == len(lines[0]) - 4 + 1  # four of the legend, and one line more


def test_the_number_of_classes_decides_chance() -> None:
    table, _ = planted(patients=24, sites=4)
    assert (label_task(table, 4, 0).chance, site_task(table, 4, 0).chance) == (0.5, 0.25)


def test_sites_of_one_patient_are_left_out_and_folds_follow_the_smallest_site() -> None:
    table, _ = planted(patients=12)
    names = table["patient"]
    few = table["site"].mask(names == "patient 000", "alone").mask(names.isin(["patient 001", "patient 002"]), "pair")
    task = site_task(table.assign(site=few), 4, 0)
    assert task.classes == ("pair", "site 0", "site 1")
    assert len(task.splits) == 2
    assert "alone 1" in site_task(table.assign(site="big").assign(site=few.where(few == "alone", "big")), 4, 0).why_not
    assert any(note.startswith("1 sites of one patient") and note.endswith(": alone") for note in task.notes)
    some = table["site"].mask(names == "patient 000", "")
    assert "6 tiles have no site and are left out" in site_task(table.assign(site=some), 4, 0).notes
    for task in (site_task(table.assign(site=""), 4, 0), new_sites_task(table.assign(site=""))):
        assert task.why_not == "no site is stated"


def test_new_sites_are_scored_where_labels_do_not_go_with_sites() -> None:
    table, features = planted(label=6, site=2)
    task = new_sites_task(table)
    assert len(task.splits) == 2
    assert (accuracy(task, features, "linear")["value"] or 0) > 0.8
    confounded = new_sites_task(table.assign(site=table["label"].str.replace("class", "site")))
    assert (confounded.splits, confounded.why_not.partition(":")[0]) == ((), "labels go with sites")


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    table, features = planted(30, tiles=4, label=1)
    table["label"] = rng.choice(["a", "b", "c"], len(table))
    task = label_task(table, 5, 0)
    predicted = predict(task, features, "knn")
    found = figures(task, predicted)
    expected = balanced_accuracy_score(task.truth, predicted.answers)
    assert found.balanced_accuracy["value"] == pytest.approx(expected)
    assert found.macro_f1["value"] == pytest.approx(f1_score(task.truth, predicted.answers, average="macro"))


def by_hand(task: Task, features: NDArray[np.float64], probe: Probe) -> tuple[list[float], NDArray[np.int64]]:
    """What was chosen and answered, by plain scikit-learn and numpy."""
    chosen, answers = [], np.full(len(task.rows), -1)
    for train, test in task.splits:
        truth = task.truth[train]
        if probe == "knn":
            unit = features / np.linalg.norm(features, axis=1, keepdims=True)
            chosen.append(float(min(20, np.bincount(truth).min())))
            for row in test:
                cosines = unit[train] @ unit[row]
                nearest = np.argsort(-cosines)[: int(chosen[-1])]
                answers[row] = np.bincount(truth[nearest], np.exp(cosines[nearest] / 0.07)).argmax()
            continue
        models = [
            make_pipeline(StandardScaler(), LogisticRegression(C=one, class_weight="balanced", max_iter=9999))
            for one in STRENGTHS
        ]
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        splits = list(inner.split(features[train], truth, task.patients[train]))
        within = [cross_val_predict(one, features[train], truth, cv=splits) for one in models]
        best = int(np.argmax([balanced_accuracy_score(truth, one) for one in within]))
        chosen.append(STRENGTHS[best])
        answers[test] = models[best].fit(features[train], truth).predict(features[test])
    return chosen, answers


@pytest.mark.parametrize("probe", PROBES)
def test_answers_are_those_of_plain_scikit_learn(probe: Probe) -> None:
    """Of classes of unequal size, and of patients whose embeddings have unequal length and spread."""
    table, features = planted(30, tiles=5, label=1.5, patient=0.5, seed=3)
    number = table["patient"].str[-3:].astype(int)
    table = table.assign(label=table["label"].where((table["label"] == "class 0") | (number % 3 == 0), "class 0"))
    features = (
        features * np.exp(np.random.default_rng(0).normal(size=30))[number][:, None] + 0.1 * number.to_numpy()[:, None]
    )
    task = label_task(table, 4, 0)
    predicted = predict(task, features.astype(np.float32), probe)
    chosen, answers = by_hand(task, features.astype(np.float32).astype(np.float64), probe)
    assert list(predicted.chosen) == chosen
    assert (predicted.answers == answers).all()
    assert len(np.unique(answers)) == 2


def test_where_an_inner_split_lacks_a_class_nothing_is_chosen_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They score no tile of some class, so no C is better than another there."""
    table, features = planted(12)

    def lopsided(truth: Integers, *_: object) -> list[tuple[Integers, Integers]]:
        zeros, ones = np.flatnonzero(truth == 0), np.flatnonzero(truth == 1)
        return [(zeros, ones), (np.concatenate([zeros[::2], ones]), zeros[1::2])]

    task = label_task(table, 4, 0)
    monkeypatch.setattr(probes, "stratified", lopsided)
    predicted = predict(task, features, "linear")
    assert (predicted.chosen, predicted.at_edge) == ((0.01,) * 4, 0)


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    """One patient alone has the rare class; without her a tile that is taken for it is no F1 of 0."""
    truth = np.array([0, 0, 1, 1] + [1, 1] * 5)
    patients = np.array([0] * 4 + [one for one in range(1, 6) for _ in range(2)])
    everyone = np.arange(len(truth))
    task = Task(LABEL, everyone, ("a", "b"), truth, patients, 0 * truth, ((everyone, everyone),))
    answers = truth.copy()
    answers[-1] = 0
    found = figures(task, Predicted(answers))
    assert 0.25 < found.dropped / 2000 < 0.45  # (5/6) ** 6 is 0.33
    assert (found.macro_f1["low"] or 0) > 0.5


def test_a_difference_is_paired() -> None:
    table, features = planted(label=2, patient=1)
    task = label_task(table, 4, 0)
    one, other = predict(task, features, "knn"), predict(task, features, "linear")
    assert difference(task, one, one) == {"value": 0.0, "low": 0.0, "high": 0.0}
    there, back = difference(task, one, other), difference(task, other, one)
    assert there["value"] == pytest.approx(-(back["value"] or 0))
    alone = [figures(task, predicted).balanced_accuracy for predicted in (one, other)]
    assert there["value"] == pytest.approx((alone[0]["value"] or 0) - (alone[1]["value"] or 0))
    near = np.where(np.arange(len(one.answers)) % 40 == 0, 1 - one.answers, one.answers)
    assert width(difference(task, one, Predicted(near))) < 0.4 * width(alone[0])  # unpaired: 1.4 times as wide


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_is_chosen_by_the_scored_tiles(probe: Probe) -> None:
    table, features = planted(label=2, patient=1)
    task = label_task(table, 4, 0)
    chosen = predict(task, features, probe).chosen
    train, test = task.splits[0]
    spoilt, truth = features.copy(), task.truth.copy()
    spoilt[test] = 1e3
    truth[test] = 0
    alone = replace(task, splits=((train, test),), truth=truth)
    again = predict(alone, spoilt, probe)
    assert again.chosen == chosen[:1]
    assert set(chosen) <= (set(STRENGTHS) if probe == "linear" else {20.0})


def test_there_are_no_more_neighbours_than_the_smallest_class_has_tiles() -> None:
    table, features = planted(8, tiles=2)
    assert set(predict(label_task(table, 4, 0), features, "knn").chosen) == {6}


def test_a_class_of_few_patients_is_named() -> None:
    table, _ = planted(12)
    rare = table.assign(label=table["label"].mask(table["patient"].isin(["patient 003", "patient 004"]), "rare"))
    with pytest.raises(InputError, match="class 'rare' has tiles of 2 patients, fewer than --folds 4; use --folds 2"):
        label_task(rare, 4, 0)
    with pytest.raises(InputError, match=r"all tiles have one label \(one\)"):
        label_task(table.assign(label="one"), 4, 0)


def test_backbones_are_judged_over_the_tiles_that_all_of_them_have() -> None:
    table, features = planted(label=4)
    table = table.assign(tile=[f"t{row}" for row in range(len(table))])
    holed = features.copy()
    holed[5] = np.nan
    both = judge(table, {"one": features, "other": holed}, 4, 20, 0)
    assert set(both.results["n_tiles"]) == {len(table) - 1}
    assert "t5" not in set(both.tiles["tile"])
    assert list(both.results["backbone"].unique()) == ["one", "other"]
    assert len(both.results) == 2 * len(PROBES) * 3
    assert set(both.differences["target"]) == {LABEL, SITE, NEW_SITES}
    kept = np.arange(len(table)) != 5
    alone = judge(table[kept].reset_index(drop=True), {"one": features[kept]}, 4, 20, 0)
    mine = both.results[both.results["backbone"] == "one"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.results, mine)  # a figure does not depend on the company
