"""What the cohort table knows beside the picture: how its cells become numbers, and that they are learned and travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from conftest import EmbeddingsCohort, planted_embeddings

from pathfm.cohort import Cohort, read_cohort
from pathfm.covariates import Covariate, Covariates
from pathfm.embeddings import write_embeddings
from pathfm.errors import CohortError, InputError, PathfmError, UnknownNameError
from pathfm.evaluate import evaluate
from pathfm.labelled import labelled_slides
from pathfm.model import read_model
from pathfm.predict import predict
from pathfm.settings import TrainSettings
from pathfm.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., EmbeddingsCohort]

SETTINGS = TrainSettings(epochs=12, hidden=4, attention=4, lr=0.05, device="cpu", stop_share=0, loggers=["csv"])
BOTH = Covariates((Covariate("age"), Covariate("sex", ("F", "M"))))


def _cohort(folder: Path, **columns: list[str]) -> Cohort:
    n = len(next(iter(columns.values())))
    ids = {"slide_id": [f"s{i}" for i in range(n)], "patient_id": [f"p{i}" for i in range(n)]}
    pd.DataFrame(ids | columns).to_csv(folder / "cohort.csv", index=False)
    return read_cohort(folder / "cohort.csv")


def test_numbers_stay_numbers_categories_get_one_each_and_what_is_not_known_is_missing(tmp_path: Path) -> None:
    cohort = _cohort(tmp_path, age=["61", "NA", "5e1", ""], sex=["M", "F", "", "F"], site_of_biopsy=["1", "x", "2", ""])
    read = Covariates.read(cohort, ["sex", "age", "site_of_biopsy"])
    assert read.names == ["sex=F", "sex=M", "age", "site_of_biopsy=1", "site_of_biopsy=2", "site_of_biopsy=x"]
    assert read.width == 6
    encoded, nan = read.encode(read.cells(cohort)), np.nan
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded[:, :3], [[0, 1, 61], [1, 0, nan], [nan, nan, 50], [1, 0, nan]])
    np.testing.assert_array_equal(encoded[:, 3:], [[1, 0, 0], [0, 0, 1], [0, 1, 0], [nan, nan, nan]])
    assert Covariates.of_facts(read.facts()) == read == Covariates.read(cohort, ["sex, age,site_of_biopsy"])


def test_a_category_nobody_knows_counts_as_missing_and_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = _cohort(tmp_path, age=["61", "50", "40"], sex=["D", "D", "F"])
    encoded = BOTH.encode(BOTH.cells(cohort))
    np.testing.assert_array_equal(encoded[:, 1:], [[np.nan] * 2, [np.nan] * 2, [1, 0]])
    (record,) = caplog.records
    assert "'sex' holds D, of which the model knows nothing (it knows F, M)" in record.getMessage()


def test_what_is_a_number_to_a_target_is_one_to_a_covariate_and_nothing_else_is(tmp_path: Path) -> None:
    for odd in ("1_0", "\u0661", "inf", "1e39"):
        cohort = _cohort(tmp_path, x=["5", odd])
        assert Covariates.read(cohort, ["x"]).columns == (Covariate("x", tuple(sorted(("5", odd)))),)
        with pytest.raises(CohortError, match=f"'x' holds '{odd}' for slide s1, and is a number elsewhere"):
            Covariates((Covariate("x"),)).encode(pd.DataFrame({"x": ["5", odd]}, index=["s0", "s1"]))


def test_a_word_in_a_column_of_numbers_is_refused_by_its_row(tmp_path: Path) -> None:
    cohort = _cohort(tmp_path, age=["61", "old"], sex=["F", "F"])
    with pytest.raises(CohortError, match="'age' holds 'old' for slide s1"):
        BOTH.encode(BOTH.cells(cohort))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([""] * 40, "'x' is empty in every row"),
        (["3"] * 39 + ["NA"], "'x' holds nothing but '3'"),
        ([f"id-{i}" for i in range(40)], "'x' holds 40 different texts"),
    ],
)
def test_a_column_that_can_say_nothing_or_anything_is_refused(tmp_path: Path, cells: list[str], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        Covariates.read(_cohort(tmp_path, x=cells), ["x"])


def test_columns_that_are_not_there_twice_or_what_is_asked_for_are_refused(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = _cohort(tmp_path, age=["1", "2"])
    with pytest.raises(UnknownNameError, match=r"'agee'.*age.*--covariates"):
        Covariates.read(cohort, ["agee"])
    with pytest.raises(InputError, match="twice"):
        Covariates.read(cohort, ["age", "age"])
    with pytest.raises(InputError, match="--covariates names the column site, which is pathfm's own"):
        Covariates.read(_cohort(tmp_path, site=["a", "b"]), ["site"])
    with pytest.raises(CohortError, match="lacks the column sex, which the model reads"):
        BOTH.cells(cohort)
    labelled = embeddings_cohort(patients=4, name="labelled")
    with pytest.raises(InputError, match="cancer, which is what the model is to say"):
        labelled_slides(read_cohort(labelled.table), [labelled.embeddings], "cancer", covariates=["cancer"])


@pytest.fixture
def by_age(embeddings_cohort: Make) -> Callable[..., EmbeddingsCohort]:
    """Features are noise, and the label goes by age and sex together, which for some slides is not known."""

    def make(name: str, patients: int, seed: int) -> EmbeddingsCohort:
        cohort = embeddings_cohort(patients=patients, name=name, prefix=name)
        rng = np.random.default_rng(seed)
        frame = cohort.frame()
        for slide_id in frame["slide_id"]:
            write_embeddings(cohort.file(slide_id), planted_embeddings(slide_id, 0, n=6))
        label = frame["cancer"].astype(int)
        age, sex = 50 + 12 * label + rng.normal(0, 4, patients), np.where(label, "M", "F")
        sex[rng.random(patients) < 0.1] = ""
        cohort.rewrite(frame.assign(age=age.round(1), sex=sex))
        return cohort

    return make


def test_covariates_that_decide_are_learned_and_go_with_the_model_wherever_it_goes(
    by_age: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort, other = by_age("a", 36, 0), by_age("b", 24, 1)
    cohort.rewrite(cohort.frame().assign(split=["train"] * 24 + ["test"] * 12))
    trained = train(
        cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", "mean", covariates=["age", "sex"],
        training=SETTINGS,
    )  # fmt: skip
    assert trained.metrics["cancer"]["slide"]["auroc"]["value"] >= 0.95
    assert read_model(tmp_path / "model").covariates == BOTH
    there = evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "there")
    assert there.metrics["cancer"]["slide"]["auroc"]["value"] >= 0.95
    assert caplog.text.count("of which the model knows nothing") == 0
    again = predict(tmp_path / "model", tmp_path / "new", embeddings=[other.embeddings], cohort=other.table)
    expected = there.predictions["cancer"].set_index("slide_id")["prob_1"]
    assert again["cancer"].set_index("slide_id")["prob_1"].to_dict() == expected.to_dict()
    with pytest.raises(InputError, match="reads the age, sex of each slide; pass --cohort"):
        predict(tmp_path / "model", tmp_path / "new", embeddings=[other.embeddings])
    other.rewrite(other.frame().drop(columns="age"))
    for command in (
        lambda: predict(tmp_path / "model", tmp_path / "new", embeddings=[other.embeddings], cohort=other.table),
        lambda: evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "there"),
    ):
        with pytest.raises(PathfmError, match="lacks the column age, which the model reads beside the slides"):
            command()


def test_without_its_covariates_the_same_cohort_teaches_nothing(by_age: Make, tmp_path: Path) -> None:
    cohort = by_age("a", 36, 0)
    cohort.rewrite(cohort.frame().assign(split=["train"] * 24 + ["test"] * 12))
    trained = train(cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", "mean", training=SETTINGS)
    assert trained.metrics["cancer"]["slide"]["auroc"]["value"] < 0.9
