from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings

from pathfm.embeddings import write_embeddings
from pathfm.errors import EmbeddingsDamagedError, EmbeddingsStaleError, InputError
from pathfm.heads import build_head
from pathfm.model import Model
from pathfm.scoring import metrics_document, no_controls, read_predictions, score_slide, score_table, write_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


HEADER = b"slide_id,patient_id,label,predicted,reason,prob_0,prob_1\n"


def _model(head: str = "gated-abmil", n_classes: int = 2) -> Model:
    torch.manual_seed(0)
    return Model(
        head=build_head(head, 8, n_classes, hidden=16, attention=8).eval(),
        label="cancer",
        classes=[str(i) for i in range(n_classes)],
        recipe=RECIPE,
        training={},
    )


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("n", [1, 30])
def test_a_score_has_probabilities_that_sum_to_one_and_attention_of_every_tile(n_classes: int, n: int) -> None:
    score = score_slide(_model(n_classes=n_classes), planted_embeddings("s", 1, n=n))
    assert score.probabilities is not None
    assert score.probabilities.shape == (n_classes,)
    assert score.probabilities.dtype == np.float64
    assert score.probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert score.attention is not None
    assert score.attention.shape == (n,)
    assert score.attention.sum() == pytest.approx(1, abs=1e-5)
    assert score.reason == ""


def test_a_head_without_attention_scores_without_attention() -> None:
    score = score_slide(_model("mean"), planted_embeddings("s", 1))
    assert score.attention is None
    assert score.probabilities is not None


def test_a_slide_without_tissue_gets_no_score_but_a_reason() -> None:
    assert score_slide(_model(), planted_embeddings("s", 1, n=0)) == (None, None, "no_tissue")


def test_embeddings_of_another_recipe_are_refused() -> None:
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"size_px": 224}}
    with pytest.raises(EmbeddingsStaleError, match=r"tiles\.size_px is 224, wanted 256"):
        score_slide(_model(), planted_embeddings("s", 1, recipe=other))


def test_an_embedding_that_is_not_finite_is_refused() -> None:
    good = planted_embeddings("s", 1)
    features = good.features.copy()
    features[0, 0] = np.nan
    with pytest.raises(EmbeddingsDamagedError, match="not finite"):
        score_slide(_model(), replace(good, features=features))


def test_the_table_keeps_the_order_and_leaves_scores_empty_where_there_are_none(
    embeddings_cohort: Callable[..., EmbeddingsCohort], tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=3)
    rows = cohort.frame().assign(label="0", fold=1, files=[(cohort.file("p00-0"),), None, (cohort.file("p02-0"),)])
    table = score_table(_model(), rows.iloc[::-1], "fold")
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
    rows = pd.DataFrame([{"slide_id": "renamed", "patient_id": "p", "label": "", "split": "new", "files": (path,)}])
    with pytest.raises(EmbeddingsStaleError, match=r"renamed\.h5 holds slide s, not renamed"):
        score_table(_model(), rows, "split")


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
        read_predictions(path, ["0", "1"], "run it again")
    assert "\n" not in str(caught.value)


def test_predictions_read_back_as_they_were_written(tmp_path: Path) -> None:
    probabilities = np.array([1 / 3, np.nan, 1e-9])
    text = {"slide_id": ["a,b", 'c"d', "NA"], "patient_id": ["1", "2.0", "x"], "label": ["0", "", "1"]}
    text |= {"predicted": ["0", "", "1"], "reason": ["", "no_tissue", ""]}
    write_table(tmp_path / "predictions.csv", pd.DataFrame(text).assign(prob_1=probabilities))
    back = read_predictions(tmp_path / "predictions.csv", ["1"], "")
    assert {name: back[name].tolist() for name in text} == text
    np.testing.assert_array_equal(back["prob_1"], probabilities)


def test_without_held_out_slides_a_document_has_no_figures() -> None:
    empty = pd.DataFrame(columns=["slide_id", "patient_id", "fold", "label", "prob_0", "prob_1"])
    document = metrics_document(
        empty,
        label="cancer",
        classes=["0", "1"],
        protocol="none held out",
        left_out=[],
        controls=no_controls("there is nothing to test"),
        warnings=["nobody was held out"],
    )
    assert (document["slide"], document["patient"], document["n_slides"]) == (None, None, 0)
    assert document["confounded"]["verdict"] == "not tested"
    assert document["warnings"] == ["nobody was held out"]
