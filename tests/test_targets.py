"""The kinds of targets: what all of them keep to, and what the cells of each may say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm.cohort import read_cohort
from pathfm.errors import CohortError, InputError, UnknownNameError
from pathfm.targets import KINDS, Hazards, MultiLabel, Ordinal, Regression, Survival, Target, Task, read_task

if TYPE_CHECKING:
    from pathlib import Path

# a kind that is new needs a row here, and the tests below hold it to what all keep to
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "classes": st.sampled_from(["adeno", "squamous", "other", ""]),
    "ordinal": st.sampled_from(["1", "2", "3", "10", ""]),
    "multilabel": st.sampled_from(["a", "b;a", "a; c", "none", "-", "b;c;d", ""]),
    "regression": st.floats(-1e6, 1e6, width=32).map(str) | st.just(""),
    "cox": st.tuples(
        st.floats(0.125, 1e4, width=32).map(str) | st.just(""), st.sampled_from(["0", "1", "Dead", "alive"])
    ),
    "hazards": st.tuples(st.integers(1, 30).map(str) | st.just(""), st.sampled_from(["0", "1", "true", "no", ""])),
}
FIXED: dict[str, list[Any]] = {
    "classes": ["adeno", "squamous"],
    "ordinal": ["1", "2", "3"],
    "multilabel": ["a;b", "none"],
    "regression": ["1", "2.5"],
    "cox": [("1", "1"), ("2", "0"), ("3", "1")],
    "hazards": [("1", "1"), ("2", "0"), ("3", "1"), ("9", "1")],
}


def read(kind: str, cells: list[Any]) -> tuple[Target, Any]:
    """The target of these cells, fitted to them, and their truth."""
    survival = issubclass(KINDS[kind], Survival)
    frame = pd.DataFrame(cells, columns=["time", "event"] if survival else ["grade"])
    frame.index = pd.Index([f"s{i}" for i in range(len(cells))], name="slide_id")
    target, truth = KINDS[kind].read("time/event" if survival else "grade", frame)
    return target.fitted(truth), truth


def drawn(kind: str, data: st.DataObject) -> tuple[Target, Any]:
    return read(kind, FIXED[kind] + data.draw(st.lists(CELLS[kind], max_size=30)))


every_kind = pytest.mark.parametrize("kind", sorted(KINDS))
quick = settings(max_examples=12, deadline=None)


def test_every_kind_has_cells_to_be_tested_with() -> None:
    assert set(CELLS) == set(FIXED) == set(KINDS)


@every_kind
@quick
@given(data=st.data())
def test_truth_is_written_as_text_that_reads_back_the_same(kind: str, data: st.DataObject) -> None:
    target, truth = drawn(kind, data)
    assert truth.dtype == np.float32
    assert truth.shape[1] == target.width
    texts = target.texts(truth)
    assert [text == "" for text in texts] == np.isnan(truth).any(axis=1).tolist()
    np.testing.assert_array_equal(target.of_texts(texts), truth)
    assert np.isnan(target.of_texts(["", "what is this"])).all()


@every_kind
@quick
@given(data=st.data())
def test_facts_are_json_that_makes_the_same_target(kind: str, data: st.DataObject) -> None:
    target, _ = drawn(kind, data)
    facts = json.loads(json.dumps(Task((target,)).facts(), allow_nan=False))
    assert Task.of_facts(facts) == Task((target,))


@every_kind
@quick
@given(data=st.data(), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 100.0, 1e30]))
def test_scores_of_any_logits_are_finite_and_in_their_range(
    kind: str, data: st.DataObject, seed: int, scale: float
) -> None:
    target, _ = drawn(kind, data)
    logits = scale * torch.randn(5, target.n_outputs, generator=torch.Generator().manual_seed(seed))
    (scores,) = Task((target,)).scores(logits.requires_grad_())
    assert scores.shape == (5, len(target.names))
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    for name, column in zip(target.names, scores.T, strict=True):
        assert not name.startswith("prob_") or ((column >= 0) & (column <= 1)).all()
    predicted, branch = target.predicted(scores), target.branch(scores)
    assert len(predicted) == 5
    assert all(isinstance(text, str) and text for text in predicted)
    assert ((branch >= 0) & (branch < target.n_outputs)).all()


@every_kind
@quick
@given(data=st.data(), few=st.integers(0, 3), seed=st.integers(0, 1000))
def test_rows_can_judge_a_model_where_their_loss_depends_on_what_it_says(
    kind: str, data: st.DataObject, few: int, seed: int
) -> None:
    target, truth = drawn(kind, data)
    unlabelled = np.full((1, target.width), np.nan, np.float32)
    some = np.concatenate([np.random.default_rng(seed).permutation(truth)[:few], unlabelled])
    logits = torch.randn(len(some), target.n_outputs, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    target.losses(logits, torch.from_numpy(some)).sum().backward()
    assert logits.grad is not None
    assert target.can_judge(some) == bool(logits.grad.abs().sum() > 0)


@every_kind
@quick
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_bag_without_a_label_costs_nothing_and_pulls_at_nothing(kind: str, data: st.DataObject, seed: int) -> None:
    target, truth = drawn(kind, data)
    truth = np.concatenate([np.full((2, target.width), np.nan, np.float32), truth])
    logits = torch.randn(len(truth), target.n_outputs, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    for balance in (None, target.balance(truth)):
        losses = target.losses(logits, torch.from_numpy(truth), balance)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        missing = torch.from_numpy(np.isnan(truth).any(axis=1))
        assert losses.shape == (len(truth),)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert (losses[missing] == 0).all()
        assert (gradient[missing] == 0).all()
        assert (losses >= 0).all()
        assert gradient.abs().sum() > 0


@every_kind
@quick
@given(data=st.data(), seed=st.integers(0, 1000))
def test_losses_go_with_their_bags_in_any_order(kind: str, data: st.DataObject, seed: int) -> None:
    target, truth = drawn(kind, data)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(truth), target.n_outputs, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(truth), generator=generator)
    losses = target.losses(logits, torch.from_numpy(truth))
    again = target.losses(logits[order], torch.from_numpy(truth)[order])
    np.testing.assert_allclose(again.numpy(), losses[order].numpy())


@every_kind
@quick
@given(data=st.data())
def test_losses_are_those_of_stacked_heads_one_by_one(kind: str, data: st.DataObject) -> None:
    target, truth = drawn(kind, data)
    logits = torch.randn(3, len(truth), target.n_outputs, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(truth)
    together = torch.func.vmap(lambda some: target.losses(some, rows))(logits)
    apart = torch.stack([target.losses(some, rows) for some in logits])
    np.testing.assert_allclose(together.numpy(), apart.numpy(), rtol=1e-5)


@every_kind
def test_losses_stay_on_the_device_of_their_bags(kind: str) -> None:
    target, truth = read(kind, FIXED[kind])
    weights = target.balance(truth)
    # nothing is computed on the device "meta", and nothing mixes with it
    balance = None if weights is None else weights.to("meta")
    rows, logits = (torch.empty(len(truth), n, device="meta") for n in (target.width, target.n_outputs))
    assert target.losses(logits, rows, balance).device.type == "meta"


@every_kind
def test_descending_the_loss_brings_the_main_figure_to_its_best(kind: str) -> None:
    target, truth = read(kind, FIXED[kind] * 4)
    rows = torch.from_numpy(truth)
    logits = torch.zeros(len(truth), target.n_outputs)
    for _ in range(100):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(target.losses(logits, rows, target.balance(truth)).sum(), logits)
        logits = logits.detach() - 0.5 * gradient
    (scores,) = Task((target,)).scores(logits)
    main = next(iter(target.metrics.values()))
    weights = np.ones((1, len(truth)))
    assert main(truth, scores, weights)[0] > 0.95
    assert main(truth, np.roll(scores, 1, axis=0), weights)[0] < 0.95
    assert all(0 <= score <= 1 for _, asked in target.outcomes(truth, scores).values() for score in asked)


@every_kind
@quick
@given(data=st.data())
def test_strata_are_numbered_from_0_without_gaps_where_they_are_cuts(kind: str, data: st.DataObject) -> None:
    target, truth = drawn(kind, data)
    strata = target.strata(truth)
    assert strata.dtype == np.int64
    np.testing.assert_array_equal(strata < 0, np.isnan(truth).any(axis=1))
    if target.groups:
        assert strata.max() < len(target.groups)
        assert sum(target.counts(truth).values()) == (strata >= 0).sum()
    else:
        assert set(strata) - {-1} == set(range(strata.max() + 1))
    order = np.random.default_rng(0).permutation(len(truth))
    np.testing.assert_array_equal(target.strata(truth[order]), strata[order])


@every_kind
@quick
@given(data=st.data())
def test_a_patient_has_one_label_that_does_not_depend_on_the_order_of_the_slides(
    kind: str, data: st.DataObject
) -> None:
    target, truth = drawn(kind, data)
    found = target.of_patient(truth)
    assert found.shape == (target.width,)
    assert not np.isnan(found).any()
    np.testing.assert_allclose(target.of_patient(truth[::-1]), found, rtol=1e-6)
    np.testing.assert_array_equal(target.of_patient(truth[:1]), truth[0])


@every_kind
def test_training_rows_without_a_label_are_refused_and_those_of_the_cells_are_not(kind: str) -> None:
    target, truth = read(kind, FIXED[kind])
    target.require(truth)
    with pytest.raises(InputError, match="slides to learn from"):
        target.require(np.full_like(truth, np.nan))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"cox"}))  # of which nothing has to be known
@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"classes": ["a"], "labels": [], "mean": None, "cuts": [1]},
        {"classes": ["a", "a"], "labels": ["a", "a"], "mean": float("nan"), "std": 1, "cuts": [3, 2, 1]},
        {"classes": "ab", "labels": "ab", "mean": 0, "std": 0, "cuts": [1, 2, float("inf")]},
        {"classes": [1, 2], "labels": [1, 2], "mean": True, "std": 1, "cuts": "123"},
        {"classes": ["", "a"], "labels": ["a;b"], "mean": 0, "std": -1, "cuts": [-1, 1, 2]},
        {"classes": 1, "labels": 1, "mean": 10**400, "std": 1, "cuts": [1, 2, 10**400]},
    ],
)
def test_facts_that_make_no_sense_are_refused_by_their_key(kind: str, facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="key '"):
        Task.of_facts([{"name": "a", "kind": kind} | facts])


@pytest.mark.parametrize(
    "facts",
    [
        [],
        [{"kind": "cox"}],
        [{"name": 1, "kind": "cox"}],
        [{"name": "a", "kind": "wish"}],
        [{"name": "a", "kind": ["cox"]}],
    ],
)
def test_targets_that_nobody_knows_are_refused(facts: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="key '"):
        Task.of_facts(facts)


@pytest.mark.parametrize(
    ("kind", "cell", "said"),
    [
        ("ordinal", "high", "no number that says its place"),
        ("multilabel", "a;none", "semicolons between"),
        ("multilabel", ";", "semicolons between"),
        ("regression", "many", "write a number with a point"),
        ("regression", "1,5", "write a number with a point"),
        ("regression", "inf", "write a number with a point"),
        ("regression", "1e60", "write a number with a point"),
        ("cox", ("0", "1"), "write a time above 0"),
        ("cox", ("-3", "1"), "write a time above 0"),
        ("cox", ("1e-46", "1"), "write a time above 0"),
        ("cox", ("3", "1:LIVING"), "1 for the event and 0 for none"),
        ("hazards", ("3 months", "1"), "write a time above 0"),
        ("hazards", ("3", "2"), "1 for the event and 0 for none"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused_by_its_slide_and_column(kind: str, cell: Any, said: str) -> None:
    with pytest.raises(CohortError, match=said) as caught:
        read(kind, [*FIXED[kind], cell])
    assert f"slide s{len(FIXED[kind])}:" in str(caught.value)
    assert any(column in str(caught.value) for column in ("grade", "time", "event"))


def test_ordinal_classes_stand_in_the_order_of_the_numbers_in_them() -> None:
    def order(*cells: str) -> tuple[str, ...]:
        target, _ = read("ordinal", list(cells))
        assert isinstance(target, Ordinal)
        return target.classes

    assert order("10", "9", "-1") == ("-1", "9", "10")
    assert order("G3", "G1", "G2", "") == ("G1", "G2", "G3")
    assert order("3+", "0", "1+", "2+") == ("0", "1+", "2+", "3+")
    assert order("4+3", "3+4", "3+3") == ("3+3", "3+4", "4+3")
    assert order("pT2", "pT10", "pT1b", "pT1a") == ("pT1a", "pT1b", "pT2", "pT10")


def test_labels_are_told_apart_from_none_and_from_nothing_known() -> None:
    target, truth = read("multilabel", ["b; a", "None", "", "a;"])
    assert isinstance(target, MultiLabel)
    assert target.labels == ("a", "b")
    np.testing.assert_array_equal(truth, np.array([[1, 1], [0, 0], [np.nan, np.nan], [1, 0]], np.float32))
    assert target.texts(truth) == ["a;b", "none", "", "a"]
    with pytest.raises(InputError, match="names no label"):
        read("multilabel", ["none", "-", ""])


def test_a_rare_label_is_a_stratum_of_its_own_so_that_folds_share_it() -> None:
    target, truth = read("multilabel", ["a"] * 60 + ["a;b"] * 12 + ["none"] * 20 + ["a;c"] * 3)
    strata = target.strata(truth)
    assert len(set(strata)) == 3
    assert len(set(strata[60:72])) == 1
    assert strata[0] == strata[-1] != strata[60]  # too few to be dealt out by themselves


def test_survival_is_written_with_a_plus_where_nobody_saw_the_event() -> None:
    target, truth = read("cox", [("34.5", "dead"), ("12", "Alive"), ("", "1"), ("3", "")])
    assert target.texts(truth) == ["34.5", "12+", "", ""]
    assert target.columns == ("time", "event")


def test_events_are_read_as_cbioportal_writes_them() -> None:
    _, truth = read(
        "cox", [("1", "1:DECEASED"), ("2", "0:LIVING"), ("3", "1:Recurred/Progressed"), ("4", "0:Censored")]
    )
    assert truth[:, 1].tolist() == [1, 0, 1, 0]


def test_a_patient_with_several_records_of_survival_has_the_longest() -> None:
    target, truth = read("cox", [("5", "0"), ("9", "0"), ("9", "1"), ("7", "1")])
    assert target.of_patient(truth).tolist() == [9, 1]


def test_strata_of_survival_are_events_and_times() -> None:
    target, truth = read("hazards", [(str(i + 1), str(i % 2)) for i in range(80)])
    strata = target.strata(truth)
    groups = [set(truth[strata == k, 1]) for k in range(strata.max() + 1)]
    assert len(groups) == 6
    assert all(len(events) == 1 for events in groups)
    few = target.strata(truth[:12])
    assert len(set(few)) == 2


def test_a_number_is_learned_in_standard_deviations_and_written_in_its_unit() -> None:
    target, _ = read("regression", ["100", "300", ""])
    assert isinstance(target, Regression)
    assert (target.mean, target.std) == (200, 100)
    assert target.scores(torch.tensor([[1.0], [0.0]])).tolist() == [[300], [200]]
    assert target.losses(torch.tensor([[0.0]]), torch.tensor([[300.0]])).item() == pytest.approx(0.5)
    assert Regression("x").fitted(np.full((3, 1), 7, np.float32)).std == 1


def test_the_risk_of_hazards_falls_with_the_chance_to_pass() -> None:
    risks = Hazards("t/e").scores(torch.tensor([[0.0] * 4, [1.0, 0, 0, 0], [-50.0] * 4, [50.0] * 4]))[:, 0]
    assert risks[1] > risks[0]
    assert risks[2] == pytest.approx(-4)
    assert risks[3] == pytest.approx(0)


def cohort_of(tmp_path: Path) -> Any:
    lines = ["slide_id,patient_id,er,grade,found,ki67,os_months,os_event,odd:name,odd-name"]
    lines += [
        f"s{i},p{i},{'+-'[i % 2]},{i % 3},{'none' if i % 2 else 'x;y'},{i}.5,{i + 1},{i % 2},{i % 2},{i % 2}"
        for i in range(8)
    ]
    lines.append("s8,p8,,,,,,,,")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(tmp_path / "cohort.csv")


def test_a_label_asks_for_several_kinds_at_once(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path)
    label = "er, grade:ordinal,found:multilabel,ki67:regression,os_months/os_event:cox"
    task, truth = read_task(cohort, label)
    assert [target.kind for target in task.targets] == ["classes", "ordinal", "multilabel", "regression", "cox"]
    assert task.label == "er,grade,found,ki67,os_months/os_event"
    assert truth.shape == (9, task.width) == (9, 7)
    assert np.isnan(truth[8]).all()
    assert not np.isnan(truth[:8]).any()
    assert task.n_outputs == 2 + 2 + 2 + 1 + 1
    assert task.targets[-1].folder == "os_months-os_event"
    scores = task.scores(torch.zeros(3, task.n_outputs))
    assert [one.shape[1] for one in scores] == [2, 3, 2, 1, 1]
    fitted = task.fitted(truth)
    assert fitted.targets[3] == Regression("ki67", 4.0, pytest.approx(np.arange(8).std()))
    assert read_task(cohort, "odd:name")[0].targets[0].kind == "classes"
    assert read_task(cohort, "os_months / os_event:cox")[0].label == "os_months/os_event"


@pytest.mark.parametrize(
    ("label", "error", "said"),
    [
        ("er:wish", UnknownNameError, "kind of target 'wish'"),
        ("os_months:cox", InputError, "TIME_COLUMN/EVENT_COLUMN:cox"),
        ("os_months/os_event/er:hazards", InputError, "TIME_COLUMN/EVENT_COLUMN:hazards; a column with / in its name"),
        ("os_months/os_months:cox", InputError, "TIME_COLUMN/EVENT_COLUMN:cox"),
        ("os_months/ :cox", InputError, "TIME_COLUMN/EVENT_COLUMN:cox"),
        ("/os_event:hazards", InputError, "TIME_COLUMN/EVENT_COLUMN:hazards"),
        ("os_months/nothing:cox", UnknownNameError, "'nothing'"),
        ("os_months/os_event", UnknownNameError, "os_months/os_event"),
        ("er,er:ordinal", InputError, "no number"),
        ("ki67:regression,ki67", InputError, "ki67 and ki67.* one name"),
        ("er,odd:name,odd-name", InputError, "odd-name and odd:name|odd:name and odd-name"),
    ],
)
def test_a_label_that_cannot_be_is_refused(tmp_path: Path, label: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_task(cohort_of(tmp_path), label)


@pytest.mark.parametrize(
    ("kind", "cells", "said"),
    [
        ("classes", ["TRUE", "True", "FALSE", "02", "2"], ["TRUE and True", "02 and 2"]),
        ("ordinal", ["1", "2", "02"], ["02 and 2"]),
        ("multilabel", ["a;B", "b"], ["B and b"]),
        ("classes", ["adeno", "other", "2", "1"], []),
    ],
)
def test_names_that_differ_in_spelling_alone_are_said_once(
    kind: str, cells: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    read(kind, cells)
    assert len(caplog.records) == bool(said)
    assert all(pair in caplog.text for pair in said)


def test_a_cohort_is_read_with_the_targets_of_a_model_of_which_it_may_lack_some(tmp_path: Path) -> None:
    task, _ = read_task(cohort_of(tmp_path), "er,found:multilabel,os_months/os_event:hazards")
    lines = ["slide_id,patient_id,status,found,time,event,nothing"]
    lines += ["a,p1,,none,,,", "b,p2,,none,,,", "c,p3,,,,,"]
    (tmp_path / "other.csv").write_text("\n".join(lines))
    other = read_cohort(tmp_path / "other.csv")
    found, truth = read_task(other, "status,found:multilabel,time/event:hazards", task)
    assert found.label == "status,found,time/event"
    assert found.targets[0].groups == ["+", "-"]
    assert np.isnan(truth[:, [0, 3, 4]]).all()
    np.testing.assert_array_equal(truth[:, 1:3], [[0, 0], [0, 0], [np.nan, np.nan]])
    with pytest.raises(CohortError, match="columns 'status', 'nothing', 'time/event' are empty in every row"):
        read_task(other, "status,nothing:multilabel,time/event:hazards", task)


@pytest.mark.parametrize(
    ("kind", "cells", "said"),
    [
        ("classes", ["adeno", "new"], "holds new, the model knows adeno, squamous"),
        ("ordinal", ["1", "4"], "holds 4, the model knows 1, 2, 3"),
        ("multilabel", ["a;c", "none"], "holds a;c, the model knows a, b"),
        ("multilabel", ["a;none"], "slide s0: .*semicolons between"),
        ("regression", ["1", "many"], "slide s1: .*write a number"),
        ("cox", [("1", "maybe")], "slide s0: .*1 for the event"),
        ("hazards", [("-1", "1")], "slide s0: .*write a time above 0"),
    ],
)
def test_cells_that_say_what_a_model_does_not_know_are_refused(kind: str, cells: list[Any], said: str) -> None:
    target, _ = read(kind, FIXED[kind])
    frame = pd.DataFrame(cells, columns=["time", "event"] if isinstance(target, Survival) else ["grade"])
    frame.index = pd.Index([f"s{i}" for i in range(len(cells))], name="slide_id")
    with pytest.raises(CohortError, match=said):
        target.of_cells(target.name, frame)
