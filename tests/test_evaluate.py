from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings

from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsStaleError, InputError, LeakageError, UnknownNameError
from pathfm.evaluate import evaluate
from pathfm.ledger import ledger_of
from pathfm.privacy import make_key, private_run
from pathfm.settings import TrainSettings
from pathfm.train import train

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=8, hidden=16, attention=8, lr=1e-2, device="cpu", stop_share=0)


@pytest.fixture
def model(embeddings_cohort: Make, tmp_path: Path) -> Path:
    cohort = embeddings_cohort(patients=16, name="development")
    train(cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", training=QUICK)
    return tmp_path / "model"


def test_a_frozen_model_is_scored_on_patients_it_has_not_seen(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    before = (model / "model.json").read_bytes()
    result = evaluate(model, other.table, [other.embeddings], model.parent / "out")
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["protocol"] == "external evaluation"
    assert metrics["patient"]["auroc"]["value"] > 0.9
    assert metrics["patient"]["auroc"]["low"] is not None
    assert metrics["confounded"]["verdict"] == "not tested"
    assert set(pd.read_csv(result.folder / "predictions.csv")["split"]) == {"external"}
    assert (model / "model.json").read_bytes() == before
    assert "by patient: auroc" in str(result)


def test_a_patient_of_the_training_is_refused_by_name(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    frame = other.frame()
    frame.loc[4, "patient_id"] = "p03"
    other.rewrite(frame)
    with pytest.raises(LeakageError, match="share patients p03"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")
    assert not (model.parent / "out").exists()


def test_a_scan_of_the_training_is_refused_under_whatever_name(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    copied = replace(planted_embeddings("q02-0", 0), slide_digest=planted_embeddings("p07-0", 0).slide_digest)
    write_embeddings(other.file("q02-0"), copied)
    with pytest.raises(LeakageError, match="share slides q02-0"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")


def test_scans_without_a_digest_are_known_by_their_name(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    frame = other.frame()
    frame.loc[0, "slide_id"] = "p05-0"
    other.rewrite(frame)
    write_embeddings(other.file("p05-0"), replace(planted_embeddings("p05-0", 1), slide_digest=""))
    with pytest.raises(LeakageError, match="share slides p05-0"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")


def test_embeddings_of_another_recipe_name_the_key(embeddings_cohort: Make, model: Path) -> None:
    recipe = RECIPE | {"backbone": {"name": "other", "licence": "Apache-2.0"}}
    other = embeddings_cohort(patients=4, name="other", prefix="q", recipe=recipe)
    with pytest.raises(EmbeddingsStaleError, match=r"backbone\.name is other, wanted planted"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")


def test_a_class_that_the_model_does_not_know_is_named(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=6, classes=3, name="other", prefix="q")
    with pytest.raises(InputError, match="holds 2, the model knows 0, 1"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")


def test_the_label_may_be_named_otherwise(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    other.rewrite(other.frame().rename(columns={"cancer": "tumour"}))
    with pytest.raises(UnknownNameError, match="tumour"):
        evaluate(model, other.table, [other.embeddings], model.parent / "out")
    result = evaluate(model, other.table, [other.embeddings], model.parent / "out", label="tumour")
    assert result.metrics["cancer"]["target"] == {"name": "cancer", "kind": "classes", "classes": ["0", "1"]}
    assert result.metrics["cancer"]["patient"]["auroc"]["value"] > 0.9


def test_a_cohort_may_be_labelled_for_one_of_several_targets(embeddings_cohort: Make, tmp_path: Path) -> None:
    def labelled(name: str, prefix: str, found: str) -> EmbeddingsCohort:
        made = embeddings_cohort(patients=12, name=name, prefix=prefix)
        frame = made.frame()
        made.rewrite(
            frame.assign(found=[found or ("a" if label == "1" else "none") for label in frame["cancer"]], t="5")
        )
        return made

    cohort = labelled("development", "p", "")
    label, out = "cancer,found:multilabel,t/cancer:cox", tmp_path / "out"
    train(cohort.table, [cohort.embeddings], label, tmp_path / "model", training=QUICK)
    other = labelled("other", "q", "none")
    other.rewrite(other.frame().assign(t=""))
    metrics = evaluate(tmp_path / "model", other.table, [other.embeddings], out).metrics
    assert metrics["cancer"]["patient"]["auroc"]["value"] > 0.9
    assert metrics["found"]["patient"]["n_by_class"] == {"a": 0}
    assert metrics["found"]["patient"]["auroc"]["value"] is None
    assert metrics["t/cancer"]["patient"] is None
    assert metrics["found"]["warnings"]
    assert metrics["t/cancer"]["n_slides"] == 0


def test_a_cohort_of_one_class_has_no_auroc_and_says_why(embeddings_cohort: Make, model: Path) -> None:
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    other.rewrite(other.frame().query("cancer == '1'"))
    metrics = evaluate(model, other.table, [other.embeddings], model.parent / "out").metrics["cancer"]
    assert metrics["patient"]["auroc"]["value"] is None
    assert metrics["warnings"]


def test_slides_that_had_no_digest_in_training_are_known_by_their_name(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = embeddings_cohort(patients=8, name="development")
    write_embeddings(cohort.file("p05-0"), replace(planted_embeddings("p05-0", 1), slide_digest=""))
    train(cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", training=QUICK)
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    frame = other.frame()
    frame.loc[0, "slide_id"] = "p05-0"
    other.rewrite(frame)
    write_embeddings(other.file("p05-0"), planted_embeddings("p05-0", 1))
    with pytest.raises(LeakageError, match="share slides p05-0"):
        evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "out")


def test_slides_whose_digest_is_of_another_kind_are_known_by_their_name(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=8, name="development")
    train(cohort.table, [cohort.embeddings], "cancer", tmp_path / "model", training=QUICK)
    other = embeddings_cohort(patients=12, name="other", prefix="q")
    frame = other.frame()
    frame.loc[0, "slide_id"] = "p05-0"
    other.rewrite(frame)
    for slide_id in frame["slide_id"]:
        one = replace(planted_embeddings(slide_id, 1), slide_digest=f"quick:1:{slide_id}")
        write_embeddings(other.file(slide_id), one)
    with pytest.raises(LeakageError, match="share slides p05-0"):
        evaluate(tmp_path / "model", other.table, [other.embeddings], tmp_path / "out")


@pytest.mark.parametrize("given", [None, "hospital/ann-smith.csv"])
def test_a_ledger_that_cannot_be_used_is_not_named_under_pseudonyms(
    embeddings_cohort: Make, tmp_path: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = embeddings_cohort(patients=16, name="ann-smith")
    key = tmp_path / "keys" / "key"
    key.parent.mkdir()
    make_key(key)
    with private_run(key, cohort.embeddings.with_name("pseudonyms")) as names:
        assert names is not None
        hidden = EmbeddingsCohort(cohort.table, cohort.embeddings.with_name("pseudonyms"), RECIPE)
        for slide_id in cohort.frame()["slide_id"]:
            one = read_embeddings(cohort.file(slide_id))
            write_embeddings(hidden.file(names.slide(slide_id)), replace(one, slide_id=names.slide(slide_id)))
    cohort.rewrite(cohort.frame().assign(split=["train"] * 10 + ["test"] * 6))
    place = tmp_path / given if given else ledger_of(cohort.table)
    place.parent.mkdir(exist_ok=True)
    place.write_text("this is no ledger\n")
    monkeypatch.chdir(tmp_path)
    words: dict[str, Any] = {"ledger": place.relative_to(tmp_path) if given else None, "pseudonymise": key}
    table = cohort.table.relative_to(tmp_path)
    with pytest.raises(InputError, match="no ledger of pathfm") as caught:
        train(table, [hidden.embeddings], "cancer", tmp_path / "model", training=QUICK, **words)
    cohort.rewrite(cohort.frame().iloc[10:])
    with pytest.raises(InputError, match="no ledger of pathfm") as again:
        evaluate(tmp_path / "model", table, [hidden.embeddings], tmp_path / "out", **words)
    assert "smith" not in f"{caught.value} {again.value}"
