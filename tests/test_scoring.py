from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings
from sklearn.metrics import roc_auc_score

from pathfm.covariates import Covariate, Covariates
from pathfm.embeddings import write_embeddings
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsStaleError, InputError, ModelError, UnknownNameError
from pathfm.heads import Head, build_head, pack
from pathfm.model import Model
from pathfm.results import (
    find_results,
    metrics_document,
    no_controls,
    read_metrics,
    read_predictions,
    target_of,
    write_results,
    write_table,
)
from pathfm.scoring import score_bag, score_tables
from pathfm.targets import Classes, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.embeddings import Embeddings

HEADER = b"slide_id,patient_id,label,predicted,reason,prob_0,prob_1\n"


def _model(head: str = "gated-abmil", n_classes: int = 2) -> Model:
    torch.manual_seed(0)
    return Model(
        heads=(build_head(head, 8, n_classes, hidden=16, attention=8).eval(),),
        task=Task((Classes("cancer", tuple(str(i) for i in range(n_classes))),)),
        recipe=RECIPE,
        training={},
    )


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("n", [1, 30])
def test_a_score_has_probabilities_that_sum_to_one_and_attention_of_every_tile(n_classes: int, n: int) -> None:
    score = score_bag(_model(n_classes=n_classes), [planted_embeddings("s", 1, n=n)])
    (probabilities,), attention = score.scores, score.attention()
    assert probabilities.shape == (n_classes,)
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert attention is not None
    assert attention.shape == (n,)
    assert attention.dtype == np.float32
    assert attention.sum() == pytest.approx(1, abs=1e-5)
    assert score.reason == ""


def test_a_head_without_attention_scores_without_attention() -> None:
    score = score_bag(_model("mean"), [planted_embeddings("s", 1)])
    assert score.attention() is None
    assert len(score.scores) == 1


def test_a_slide_without_tissue_gets_no_score_but_a_reason() -> None:
    score = score_bag(_model(), [planted_embeddings("s", 1, n=0)])
    assert (score.scores, score.attention(), score.reason) == ([], None, "no_tissue")


def test_embeddings_of_another_recipe_are_refused() -> None:
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"size_px": 224}}
    with pytest.raises(EmbeddingsStaleError, match=r"tiles\.size_px is 224, wanted 256"):
        score_bag(_model(), [planted_embeddings("s", 1, recipe=other)])


def test_an_embedding_that_is_not_finite_is_refused() -> None:
    good = planted_embeddings("s", 1)
    features = good.features.copy()
    features[0, 0] = np.nan
    with pytest.raises(EmbeddingsDamagedError, match="not finite"):
        score_bag(_model(), [replace(good, features=features)])


def test_weights_that_are_finite_and_say_no_number_are_refused() -> None:
    model = _model("mean")
    model.heads[0].get_buffer("pooling.hidden.std").zero_()
    with pytest.raises(ModelError, match="score of s is no finite number"):
        score_bag(model, [planted_embeddings("s", 1)])


def test_a_bag_of_several_slides_is_scored_and_shown_as_one() -> None:
    first, second = planted_embeddings("a", 1, n=7), planted_embeddings("b", 1, n=5)
    both = replace(first, features=np.concatenate([first.features, second.features]))
    score, expected = score_bag(_model(), [first, second]), score_bag(_model(), [both])
    assert score.scores[0].tolist() == expected.scores[0].tolist()
    attention, as_one = score.attention(), expected.attention()
    assert attention is not None
    assert as_one is not None
    assert attention.tolist() == as_one.tolist()
    nothing = planted_embeddings("c", 0, n=0)
    assert (
        score_bag(_model(), [nothing, first, nothing]).scores[0].tolist()
        == score_bag(_model(), [first]).scores[0].tolist()
    )


def test_covariates_are_asked_for_by_a_model_that_reads_them_and_nan_adds_nothing() -> None:
    covariates = Covariates((Covariate("age"),))
    head = build_head("mean", 8, 2, 1, hidden=16).eval()
    torch.nn.init.ones_(head.get_parameter("covariates.linear.weight"))
    model, bag = replace(_model("mean"), heads=(head,), covariates=covariates), [planted_embeddings("s", 1)]
    without = replace(_model("mean"), heads=(head,))
    with pytest.raises(ValueError, match="reads 1 numbers beside the slides of a bag, 0 were given"):
        score_bag(model, bag)
    with pytest.raises(ValueError, match="reads 0 numbers beside the slides of a bag, 1 were given"):
        score_bag(without, bag, np.zeros(1, np.float32))
    unknown = score_bag(model, bag, np.array([np.nan], np.float32))
    assert unknown.scores[0].tolist() == score_bag(without, bag).scores[0].tolist()
    torch.nn.init.zeros_(head.get_parameter("covariates.linear.weight")[:1])
    known = score_bag(model, bag, np.array([3], np.float32))
    assert known.scores[0][1] > unknown.scores[0][1]


def test_each_of_several_targets_has_its_scores_and_the_attention_of_its_own_branches() -> None:
    torch.manual_seed(1)
    task = Task((Classes("er", ("neg", "pos")), Classes("grade", ("1", "2", "3"))))
    head = build_head("clam-mb", 8, 5, hidden=16, attention=8).eval()
    model = Model(heads=(head,), task=task, recipe=RECIPE, training={})
    bag = planted_embeddings("s", 1)
    with torch.inference_mode():
        output = head(pack([torch.from_numpy(bag.features.astype(np.float32))]))
    assert output.attention is not None
    score = score_bag(model, [bag])
    for which, mine in enumerate((slice(0, 2), slice(2, 5))):
        logits = output.logits[0, mine]
        np.testing.assert_allclose(score.scores[which], torch.softmax(logits, 0).numpy(), rtol=1e-5)
        weights = effects(head, bag, mine)
        shown = score.attention(which)
        np.testing.assert_allclose(shown, output.attention[:, mine].numpy() @ weights, rtol=1e-4)


def effects(head: Head, bag: Embeddings, mine: slice) -> NDArray[np.float64]:
    """How far the log-odds of the predicted class move, to first order, where a branch alone looks at all tiles alike."""
    features = torch.from_numpy(bag.features.astype(np.float32))
    with torch.inference_mode():
        attended, weight, logits = head.pooling.body(pack([features])), head.pooling.classifier.weight, None
        logits = ((attended.pooled[0] * weight).sum(1) + head.pooling.classifier.bias)[mine].double().requires_grad_()
        alike = ((attended.hidden.mean(0) * weight).sum(1) + head.pooling.classifier.bias)[mine].double()
    logits = logits.detach().clone().requires_grad_()
    best = int(logits.argmax())
    others = torch.cat([logits[:best], logits[best + 1 :]])
    (gradient,) = torch.autograd.grad(logits[best] - others.logsumexp(0), logits)
    moved = (gradient * (logits.detach() - alike)).abs().numpy()
    return np.asarray(moved / moved.sum())


@pytest.mark.parametrize("head", ["gated-abmil-mb", "clam-mb", "dsmil"])
def test_what_is_shown_is_what_the_decision_came_from_whichever_branch_found_it(head: str) -> None:
    torch.manual_seed(2)  # of both heads with two branches the positive one idles, and localises at 0.01
    task = Task((Classes("cancer", ("0", "1")),))
    rng = np.random.default_rng(2)
    bags = rng.normal(size=(60, 150, 8)).astype(np.float32)
    bags[1::2, :4, 0] += 6  # the needles
    learned = build_head(head, 8, 2, hidden=16, attention=8, dropout=0.0)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-2)
    for _ in range(4):
        for at in range(40):
            criterion = task.criterion(torch.tensor([[float(at % 2)]]))
            optimizer.zero_grad()
            learned.losses(pack([torch.from_numpy(bags[at])]), criterion).sum().backward()
            optimizer.step()
    model = Model(heads=(learned.eval(),), task=task, recipe=RECIPE, training={})
    found = []
    for at in range(41, 60, 2):
        score = score_bag(model, [replace(planted_embeddings("s", 1, n=150), features=bags[at].astype(np.float16))])
        attention = score.attention()
        assert attention is not None
        assert score.scores[0][1] > 0.5
        assert attention.dtype == np.float32
        assert attention.min() >= 0
        assert attention.sum() == pytest.approx(1, abs=1e-5)
        found.append(roc_auc_score(np.arange(150) < 4, attention))
    assert np.mean(found) > 0.95


def test_of_a_branch_that_finds_and_one_that_idles_the_first_is_shown() -> None:
    """The negative branch looks at what is positive and lowers its own logit; the positive one looks elsewhere for nothing."""
    head = build_head("gated-abmil-mb", 8, 2, hidden=2, attention=2).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.pooling.body.hidden.linear.weight[:, :2] = torch.eye(2)  # hidden: features 0 and 1
        head.pooling.body.gates.weight[:2] = torch.eye(2)
        head.pooling.body.gates.bias[2:] = 10.0
        head.pooling.body.score.weight.copy_(torch.tensor([[30.0, 0.0], [0.0, 30.0]]))
        head.pooling.classifier.weight.copy_(torch.tensor([[-5.0, 0.0], [0.0, 0.01]]))
        head.pooling.classifier.bias.copy_(torch.tensor([2.0, 0.0]))
    features = np.zeros((20, 8), np.float16)
    features[3, 0], features[11, 1] = 2, 2
    model = replace(_model(), heads=(head,))
    score = score_bag(model, [replace(planted_embeddings("s", 1, n=20), features=features)])
    attention = score.attention()
    assert score.scores[0][1] > 0.99
    assert attention is not None
    assert attention.argmax() == 3
    assert attention[11] < 0.01 < 0.9 < attention[3]
    nothing = score_bag(model, [replace(planted_embeddings("s", 1, n=20), features=0 * features)]).attention()
    assert nothing is not None
    np.testing.assert_allclose(nothing, 0.05, rtol=1e-5)  # no branch moves anything: that of the predicted class


def test_the_table_keeps_the_order_and_leaves_scores_empty_where_there_are_none(
    embeddings_cohort: Callable[..., EmbeddingsCohort], tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=3)
    rows = cohort.frame().assign(fold=1, files=[((cohort.file("p00-0"),),), None, ((cohort.file("p02-0"),),)])
    rows = rows.assign(labels=[{"cancer": "0"}] * 3)
    table = score_tables(_model(), rows.iloc[::-1], "fold")["cancer"]
    assert list(table["slide_id"]) == ["p02-0", "p01-0", "p00-0"]
    assert list(table.columns) == [
        "slide_id", "patient_id", "fold", "label", "predicted", "prob_0", "prob_1", "n_tiles", "reason",
    ]  # fmt: skip
    missing = table.iloc[1]
    assert (missing["predicted"], missing["n_tiles"], missing["reason"]) == ("", 0, "no_embeddings")
    write_table(tmp_path / "predictions.csv", table)
    line = (tmp_path / "predictions.csv").read_text().splitlines()[2]
    assert line == "p01-0,p01,1,0,,,,0,no_embeddings"
    back = pd.read_csv(tmp_path / "predictions.csv")
    assert back["prob_1"][0] == table["prob_1"][0]


def test_a_file_that_holds_another_slide_than_its_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "renamed.h5"
    write_embeddings(path, planted_embeddings("s", 1))
    rows = pd.DataFrame([{"slide_id": "renamed", "patient_id": "p", "label": "", "split": "new", "files": ((path,),)}])
    with pytest.raises(EmbeddingsStaleError, match=r"renamed\.h5 holds slide s, not renamed"):
        score_tables(_model(), rows, "split")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"slide_id,label\na,0\n", "lacks the column patient_id, predicted, reason, prob_0, prob_1"),
        (HEADER + b"a,p,0,0,,0.5\n", "has 6 cells in row 2, its header 7"),
        (HEADER + b"a,p,0,0,,0.5,high\n", "something else than probabilities in the column prob_1"),
        (HEADER + b"a,p,0,0,,0.5,nan\n", "something else than probabilities in the column prob_1"),
        (HEADER + b"\xff,p,0,0,,0.5,0.5\n", "cannot be read as a table"),
        (HEADER + b'a,p,0,0,,0.5,"0.5\n', "cannot be read as a table"),
        (HEADER.replace(b"label", b"label,label"), "names a column twice"),
    ],
)
def test_predictions_that_are_broken_are_named_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"predictions\.csv.*{message}.*; run it again") as caught:
        read_predictions(path, Classes("cancer", ("0", "1")), "run it again")
    assert "\n" not in str(caught.value)


def test_predictions_read_back_as_they_were_written(tmp_path: Path) -> None:
    probabilities, rest = np.array([1 / 3, np.nan, 1e-9]), np.array([2 / 3, np.nan, 1.0])
    text = {"slide_id": ["a,b", 'c"d', "NA"], "patient_id": ["1", "2.0", "x"], "label": ["0", "", "1"]}
    text |= {"predicted": ["0", "", "1"], "reason": ["", "no_tissue", ""]}
    write_table(tmp_path / "predictions.csv", pd.DataFrame(text).assign(prob_0=rest, prob_1=probabilities))
    back = read_predictions(tmp_path / "predictions.csv", Classes("cancer", ("0", "1")), "")
    assert {name: back[name].tolist() for name in text} == text
    np.testing.assert_array_equal(back["prob_1"], probabilities)


def test_without_held_out_slides_a_document_has_no_figures() -> None:
    empty = pd.DataFrame(columns=["slide_id", "patient_id", "fold", "label", "prob_0", "prob_1"])
    document = metrics_document(
        empty,
        target=Classes("cancer", ("0", "1")),
        unit="slide",
        protocol="none held out",
        left_out=[],
        controls=no_controls("there is nothing to test"),
        warnings=["nobody was held out"],
    )
    assert (document["slide"], document["patient"], document["n_slides"]) == (None, None, 0)
    assert document["confounded"]["verdict"] == "not tested"
    assert document["warnings"] == ["nobody was held out"]


def _results(*names: str) -> dict[str, Any]:
    """Of each target a table and figures."""
    empty = pd.DataFrame(columns=["slide_id", "patient_id", "fold", "label", "prob_0", "prob_1"])
    facts: dict[str, Any] = {"unit": "slide", "protocol": "none", "left_out": [], "controls": no_controls("nothing")}
    return {name: (empty, metrics_document(empty, target=Classes(name, ("0", "1")), **facts)) for name in names}


def test_results_of_earlier_targets_and_repeats_are_not_found_again_and_those_of_others_stay(tmp_path: Path) -> None:
    write_results(tmp_path / "external", _results("pr"))  # of another command, and called otherwise than its target
    write_results(tmp_path, _results("er", "pr"))
    for folder in (tmp_path, tmp_path / "pr", tmp_path / "er"):
        (folder / "repeats.csv").write_text("repeat\n0\n1\n")
    (tmp_path / "er" / "heatmap.png").touch()
    write_results(tmp_path, _results("her2", "er"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/*.csv")) == [
        f"{name}/predictions.csv" for name in ("er", "external", "her2")
    ]
    with pytest.raises(UnknownNameError, match="unknown target 'pr'"):
        find_results(tmp_path, "pr", "")
    write_results(tmp_path, _results("er"))
    assert find_results(tmp_path, None, "") == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["er", "external", "metrics.json", "predictions.csv"]
    assert [path.name for path in (tmp_path / "er").iterdir()] == ["heatmap.png"]
    assert find_results(tmp_path / "external", "pr", "") == tmp_path / "external"


def test_predictions_without_labels_leave_no_figures_of_others_beside_them(tmp_path: Path) -> None:
    for names in (["er"], ["er", "pr"]):
        write_results(tmp_path, _results(*names))
        write_results(tmp_path, {name: (table, None) for name, (table, _) in _results(*names).items()})
        assert not list(tmp_path.glob("**/metrics.json"))
        assert len(list(tmp_path.glob("**/predictions.csv"))) == len(names)
        (tmp_path / "predictions.csv").unlink(missing_ok=True)


def test_results_of_several_targets_take_the_place_of_those_of_one_and_are_found_by_name(tmp_path: Path) -> None:
    write_results(tmp_path, _results("er"))
    assert find_results(tmp_path, None, "") == find_results(tmp_path, "er", "") == tmp_path
    with pytest.raises(UnknownNameError, match=r"'her2'.*er"):
        find_results(tmp_path, "her2", "")
    write_results(tmp_path, _results("er", "her2 (IHC)"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["er", "her2-IHC"]
    assert find_results(tmp_path, "her2 (IHC)", "") == tmp_path / "her2-IHC"
    with pytest.raises(InputError, match=r"several targets; pass --target one of er, her2 \(IHC\)"):
        find_results(tmp_path, None, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format_version 1, which this pathfm does not read"),
        ({"figures": ["f1"]}, "key 'figures' that is not auroc, average_precision, balanced_accuracy, f1"),
        ({"target": {"name": "er", "kind": "os.system"}}, "key 'target' that cannot be read: .*os.system"),
        ({"slide": {"n": 1, "n_by_class": {}}}, r"lacks the key 'slide\.auroc'"),
        ({"unit": "tile"}, "key 'unit'"),
        ({"controls": {"site": {"available": True}}}, r"lacks the key 'controls\.site\.auroc'"),
    ],
)
def test_figures_that_are_none_of_the_target_are_named_with_the_remedy(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    empty = pd.DataFrame(columns=["slide_id", "patient_id", "fold", "label", "prob_0", "prob_1"])
    document = metrics_document(
        empty,
        target=Classes("er", ("0", "1")),
        unit="slide",
        protocol="none",
        left_out=[],
        controls=no_controls("nothing"),
    )
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(document))
    assert target_of(read_metrics(path, "")) == Classes("er", ("0", "1"))
    path.write_text(json.dumps(document | change))
    with pytest.raises(InputError, match=rf"metrics\.json .*{message}.*; run it again"):
        read_metrics(path, "run it again")
