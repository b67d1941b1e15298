"""What is frozen into a model on the road from cross-validation to prediction, through the commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from conftest import EmbeddingsCohort

from pathfm.claims import Claims
from pathfm.crossval import CrossValidation, crossval
from pathfm.embeddings import read_embeddings
from pathfm.errors import InputError, ModelError, UnknownNameError
from pathfm.evaluate import evaluate
from pathfm.model import read_model
from pathfm.predict import predict
from pathfm.scoring import score_bag
from pathfm.settings import TrainSettings
from pathfm.train import train

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=4, hidden=16, attention=8, lr=1e-2, device="cpu")
ALL = Claims(calibration="temperature", coverage=0.8, prevalence=0.1)


def _crossval(cohort: EmbeddingsCohort, **more: Any) -> CrossValidation:
    out = cohort.table.parent / "cv"
    how = {"operating_point": "specificity>=0.8", "claims": ALL} | more
    return crossval(cohort.table, [cohort.embeddings], "cancer", out, 3, training=QUICK, **how)


def _bytes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".json", ".safetensors")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_frozen_threshold_goes_the_whole_road_and_nothing_moves_it(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=24, slides=2)
    model = _crossval(cohort).folder / "ensemble"
    before, thresholds = _bytes(model), read_model(model).frozen["cancer"].thresholds["1"]  # type: ignore[index]
    other = embeddings_cohort(patients=12, slides=2, name="other", prefix="q")
    frame = other.frame()
    frame["cancer"] = np.where(frame["cancer"] == "1", "0", "1")  # labels that would ask for another threshold
    other.rewrite(frame)
    said = evaluate(model, other.table, [other.embeddings], tmp_path / "evaluation").metrics["cancer"]
    rows = predict(model, tmp_path / "out", embeddings=[other.embeddings], cohort=other.table)["cancer"]
    assert said["operating_points"]["outcomes"]["1"]["slide"]["threshold"] == thresholds["slide"]
    assert said["operating_points"]["outcomes"]["1"]["patient"]["threshold"] == thresholds["patient"]
    assert list(rows["decision"]) == ["positive" if p >= thresholds["slide"] else "negative" for p in rows["prob_1"]]
    patients = pd.read_csv(tmp_path / "out" / "patients.csv")
    assert len(patients) == 12
    assert list(patients["decision"]) == [
        "positive" if p >= thresholds["patient"] else "negative" for p in patients["prob_1"]
    ]
    assert set(rows["stage"]) == {"development"}
    assert _bytes(model) == before


def test_a_threshold_that_is_edited_in_the_model_is_refused(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=24)
    model = _crossval(cohort).folder / "ensemble"
    described = json.loads((model / "model.json").read_text())
    described["frozen"]["cancer"]["thresholds"]["1"]["slide"] += 0.01
    (model / "model.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="an operating point cannot be moved"):
        predict(model, tmp_path / "out", embeddings=[cohort.embeddings])


@pytest.mark.parametrize("key", ["targets", "unit", "covariates"])
def test_what_a_frozen_threshold_refers_to_cannot_be_edited_either(embeddings_cohort: Make, key: str) -> None:
    model = _crossval(embeddings_cohort(patients=24)).folder / "ensemble"
    described = json.loads((model / "model.json").read_text())
    if key == "targets":  # the positive class becomes the other one, and 1 - p is still above the threshold of p
        for one in (described, *described["heads"]):
            one["targets"][0]["classes"].reverse()
    elif key == "unit":
        described["unit"] = "patient"
    else:
        described["covariates"] = [{"name": "age", "levels": []}]
    (model / "model.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="an operating point cannot be moved"):
        read_model(model)


def test_the_model_of_a_fold_says_of_its_slides_what_the_predictions_say(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=24)
    result = _crossval(cohort)
    for row in result.predictions["cancer"].to_dict("records")[::5]:
        model = read_model(result.folder / "folds" / str(row["fold"]))
        assert row["patient_id"] not in model.training["patients"]
        score = score_bag(model, [read_embeddings(cohort.file(row["slide_id"]))])
        assert score.scores[0] == pytest.approx([row["prob_0"], row["prob_1"]], abs=1e-9)


def test_what_decides_a_fold_does_not_know_its_labels(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=24)
    result = _crossval(cohort)
    for fold in range(3):
        frozen = read_model(result.folder / "folds" / str(fold)).frozen
        assert frozen is not None
        assert frozen["cancer"].n_patients == 16  # those of the two other folds


def test_a_run_again_leaves_every_model_as_it_is_and_one_without_a_point_takes_it_out(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=24)
    result = _crossval(cohort)
    before = _bytes(result.folder)
    assert _bytes(_crossval(cohort).folder) == before
    plain = _crossval(cohort, operating_point=None, claims=Claims())
    assert read_model(plain.folder / "ensemble").frozen is None
    assert read_model(plain.folder / "folds" / "0").frozen is None
    assert "decision" not in plain.predictions["cancer"]
    assert not (plain.folder / "patients.csv").exists()
    assert plain.metrics["cancer"]["operating_points"] is None


def test_repeats_are_decided_by_their_own_folds(embeddings_cohort: Make) -> None:
    result = _crossval(embeddings_cohort(patients=24), repeats=2)
    assert set(result.rows["cancer"]["decision"]) <= {"positive", "negative"}
    point = result.metrics["cancer"]["operating_points"]["outcomes"]["1"]["patient"]
    assert point["tp"] + point["fn"] == 12
    assert point["threshold"] is None


def test_a_screening_asks_several_types_as_one(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=48, classes=4)
    result = _crossval(cohort, claims=Claims(negative="0", rare=["3"]))
    block = result.metrics["cancer"]["screening"]
    assert [one["name"] for one in block["types"]] == ["1", "2", "3"]
    assert block["any"]["n"] == 36
    assert block["strata"]["rare"]["n"] == 12
    other = embeddings_cohort(patients=16, classes=4, name="other", prefix="q")
    metrics = evaluate(result.folder / "ensemble", other.table, [other.embeddings], tmp_path / "e").metrics["cancer"]
    assert metrics["screening"]["any"]["at_point"]["threshold"] is not None
    assert set(metrics["operating_points"]["outcomes"]) == {"any"}


def test_train_freezes_what_its_val_rows_say(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=30)
    frame = cohort.frame()
    frame["split"] = ["train", "train", "val", "val", "test", "test"] * 5
    cohort.rewrite(frame)
    trained = train(
        cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", training=QUICK, operating_point="youden"
    )
    frozen = read_model(tmp_path / "model").frozen
    assert frozen is not None
    assert frozen["cancer"].n_patients == 10
    assert "val rows" in frozen["cancer"].chosen_on
    assert trained.metrics["cancer"]["operating_points"]["outcomes"]["1"]["patient"]["tp"] <= 5


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"operating_point": "specificity>95"}, InputError, "specificity>=0.95"),
        ({"claims": Claims(negative="benign")}, InputError, "no target of more than two classes"),
        ({"claims": Claims(subgroups=["sex"])}, UnknownNameError, "sex"),
    ],
)
def test_what_cannot_be_frozen_is_said_before_anything_is_trained(
    embeddings_cohort: Make, how: dict[str, Any], error: type[Exception], message: str
) -> None:
    cohort = embeddings_cohort(patients=12)
    with pytest.raises(error, match=message):
        _crossval(cohort, **how)
    assert not list(cohort.table.parent.glob("cv/folds/*"))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 95.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        Claims(coverage=share)
    with pytest.raises(InputError, match="between 0 and 1"):
        Claims(prevalence=share)
