"""Every kind of target goes all the way: trained on, written, read, evaluated elsewhere, predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from pathfm.errors import InputError
from pathfm.evaluate import evaluate
from pathfm.model import read_model
from pathfm.predict import predict
from pathfm.results import read_metrics, read_predictions, summary, target_of
from pathfm.settings import TrainSettings
from pathfm.targets import KINDS
from pathfm.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import EmbeddingsCohort

    Make = Callable[..., EmbeddingsCohort]

SETTINGS = TrainSettings(epochs=12, hidden=8, attention=4, lr=2e-2, device="cpu", stop_share=0, loggers=["csv"])
COLUMNS = {
    "classes": ("x", lambda t: {"x": ["no", "yes"][t]}),
    "ordinal": ("x", lambda t: {"x": ["1", "3"][t]}),
    "multilabel": ("x", lambda t: {"x": ["a", "b"][t]}),
    "regression": ("x", lambda t: {"x": str(20 + 30 * t)}),
    "cox": ("t/e", lambda t: {"t": str(30 - 20 * t), "e": "1"}),
    "hazards": ("t/e", lambda t: {"t": str(30 - 20 * t), "e": "1"}),
}


def _labelled(cohort: EmbeddingsCohort, kind: str) -> EmbeddingsCohort:
    frame, rng = cohort.frame(), np.random.default_rng(0)
    cells = pd.DataFrame([COLUMNS[kind][1](int(target)) for target in frame["cancer"]])
    for column in cells:
        if column == "t" or kind == "regression":
            cells[column] = [f"{float(cell) + rng.random():.3f}" for cell in cells[column]]
    cohort.rewrite(frame.drop(columns="cancer").join(cells))
    return cohort


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_all_the_way(embeddings_cohort: Make, tmp_path: Path, kind: str) -> None:
    name = COLUMNS[kind][0]
    here = _labelled(embeddings_cohort(patients=12), kind)
    there = _labelled(embeddings_cohort(patients=10, name="there", prefix="q"), kind)
    model = tmp_path / "model"
    train(here.table, [here.embeddings], f"{name}:{kind}", model, "mean", training=SETTINGS)
    done = evaluate(model, there.table, [there.embeddings], tmp_path / "out")
    metrics = read_metrics(tmp_path / "out/metrics.json", "")
    target = target_of(metrics)
    assert (target.kind, target.name, target.names) == (kind, name, read_model(model).task.targets[0].names)
    main = next(iter(target.metrics))
    assert metrics["figures"][0] == main
    # half of the pairs of a survival target are within a class, where nothing tells who is first
    assert metrics["patient"][main]["value"] > (0.65 if main == "c_index" else 0.8)
    assert all(f"{figure.replace('_', ' ')} " in summary(metrics) for figure in metrics["figures"])
    table = read_predictions(tmp_path / "out/predictions.csv", target, "").set_index("slide_id")
    frame = there.frame().set_index("slide_id")
    if name == "x":
        assert (target.of_texts(table["label"]) == target.of_texts(frame["x"].loc[table.index])).all()
    assert table[target.names].equals(done.predictions[name].set_index("slide_id")[target.names])
    new = predict(model, tmp_path / "new", embeddings=[there.embeddings])[name].set_index("slide_id")
    assert new[target.names].to_numpy().tolist() == table[target.names].loc[new.index].to_numpy().tolist()
    assert (new["predicted"] != "").all()


@pytest.mark.parametrize("own_split", [True, False])
def test_a_cox_model_is_not_stopped_by_patients_of_whom_none_can_be_compared(
    embeddings_cohort: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, own_split: bool
) -> None:
    caplog.set_level("INFO", "pathfm")
    cohort = embeddings_cohort(patients=12)
    frame = cohort.frame().drop(columns="cancer")
    # those with the event were all seen longest: one of them and somebody censored before say nothing
    frame["t"], frame["e"] = ["90"] * 5 + [str(10 + i) for i in range(7)], ["1"] * 5 + ["0"] * 7
    if own_split:
        frame["split"] = ["train"] * 8 + ["val"] * 4
    cohort.rewrite(frame)
    settings = replace(SETTINGS, epochs=5, min_epochs=1, patience=1, stop_share=0.2)
    model = train(cohort.table, [cohort.embeddings], "t/e:cox", tmp_path / "m", "mean", training=settings).model
    assert (model.training["epochs"], model.training["stopped_early"]) == (5, False)
    assert (model.training["n_stop_patients"], model.training["n_patients"]) == (0, 8 if own_split else 12)
    assert "nothing to compare; training runs all its epochs" in caplog.text


@pytest.mark.parametrize(("kind", "cell"), [("classes", "maybe"), ("ordinal", "2"), ("multilabel", "c")])
def test_a_label_that_the_model_was_never_taught_is_refused(
    embeddings_cohort: Make, tmp_path: Path, kind: str, cell: str
) -> None:
    here = _labelled(embeddings_cohort(patients=8), kind)
    train(
        here.table, [here.embeddings], f"x:{kind}", tmp_path / "model", "mean",
        training=TrainSettings(epochs=1, hidden=4, stop_share=0, device="cpu"),
    )  # fmt: skip
    there = _labelled(embeddings_cohort(patients=6, name="there", prefix="q"), kind)
    frame = there.frame()
    frame.loc[2, "x"] = cell
    there.rewrite(frame)
    with pytest.raises(InputError, match=rf"column 'x' holds .*{cell}.* rename the labels"):
        evaluate(tmp_path / "model", there.table, [there.embeddings], tmp_path / "out")
