from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from conftest import EmbeddingsCohort, planted_embeddings

from pathfm.cohort import read_cohort
from pathfm.crossval import crossval
from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import LeakageError
from pathfm.evaluate import evaluate
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.leakage import SHAPE, require_no_leak, require_unseen
from pathfm.model import read_model
from pathfm.reference import reference_of
from pathfm.settings import TrainSettings
from pathfm.tables import misfit
from pathfm.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., EmbeddingsCohort]

QUICK = TrainSettings(epochs=1, hidden=4, attention=2, device="cpu", stop_share=0)


def hashed(cohort: EmbeddingsCohort) -> EmbeddingsCohort:
    """The same with a hash in each file, no two of which are alike."""
    rng = np.random.default_rng(len(cohort.frame()))
    for slide_id, value in zip(cohort.frame()["slide_id"], rng.integers(0, 1 << 63, 99), strict=False):
        one = read_embeddings(cohort.file(slide_id))
        write_embeddings(cohort.file(slide_id), replace(one, thumbnail_hash=f"{value:016x}"))
    return cohort


def plant_copy(cohort: EmbeddingsCohort, name: str, source: EmbeddingsCohort, of: str) -> None:
    """Makes one slide look like another that was compressed again: other bytes, nearly the same picture."""
    one = read_embeddings(source.file(of))
    noise = np.random.default_rng(0).normal(0, 0.02, one.features.shape)
    copy = replace(
        one,
        slide_id=name,
        slide_digest=f"sha256:{name}",
        features=(one.features + noise).astype(np.float16),
        thumbnail_hash=f"{int(one.thumbnail_hash, 16) ^ 5:016x}",
    )
    write_embeddings(cohort.file(name), copy)


def joined(cohort: EmbeddingsCohort, unit: Any = "slide") -> LabelledSlides:
    return labelled_slides(read_cohort(cohort.table), [cohort.embeddings], "cancer", unit=unit)


def checked(cohort: EmbeddingsCohort, sides: Any = None, unit: Any = "slide", **more: Any) -> dict[str, Any]:
    """The block of a cohort whose rows are dealt to two folds in turn, pairs of patients together."""
    slides = joined(cohort, unit)
    folds = pd.Series(np.arange(len(slides.table)) // 2 % 2, index=slides.table.index, dtype="Int64")
    every = reference_of(slides, pd.Series(data=True, index=slides.table.index))
    return require_no_leak(slides, [folds if sides is None else sides(slides)], every, **more)


def test_a_sound_cohort_says_what_was_looked_for_and_what_was_not(embeddings_cohort: Make) -> None:
    block = checked(hashed(embeddings_cohort()))
    assert block["checked"] == ["patient", "slide digest", "near-duplicate"]
    assert [one["what"] for one in block["not_checked"]] == ["site"]
    assert misfit(json.loads(json.dumps(block)), SHAPE) == ""


def test_what_is_not_known_of_a_cohort_is_said(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort()
    for slide_id in cohort.frame()["slide_id"]:
        write_embeddings(cohort.file(slide_id), replace(planted_embeddings(slide_id, 1), slide_digest=""))
    block = checked(cohort)
    assert block["checked"] == ["patient"]
    why = {one["what"]: one["why"] for one in block["not_checked"]}
    assert "12 of 12 slides have no digest" in why["slide digest"]
    assert "12 of 12 slides have no hash of their overview" in why["near-duplicate"]
    one = read_embeddings(cohort.file("p00-0"))
    write_embeddings(cohort.file("p00-0"), replace(one, thumbnail_hash="0123456789abcdef", slide_digest="quick:1:2"))
    write_embeddings(cohort.file("p01-0"), replace(planted_embeddings("p01-0", 1), slide_digest="sha256:3"))
    some = checked(cohort)
    assert some["checked"] == ["patient", "slide digest", "near-duplicate"]
    assert any("two kinds" in one["why"] for one in some["not_checked"])


def test_a_patient_in_two_folds_is_refused_by_name(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=6, slides=2)
    assert checked(cohort)["checked"]
    with pytest.raises(
        LeakageError, match=r"the patient p00 stands on both sides of the split, with slides p00-0 \(fold 0\)"
    ):
        checked(cohort, lambda slides: pd.Series(np.arange(len(slides.table)) % 2, index=slides.table.index))


def test_a_scan_in_two_folds_is_refused(embeddings_cohort: Make) -> None:
    slides = joined(embeddings_cohort())
    digest = slides.table["slide_digests"].iloc[0]
    table = slides.table.assign(
        slide_digests=[digest if at in (0, 2) else one for at, one in enumerate(slides.table["slide_digests"])]
    )
    copied = replace(slides, table=table)
    folds = pd.Series(np.arange(len(table)) // 2 % 2, index=table.index)
    every = reference_of(slides, pd.Series(data=True, index=table.index))
    with pytest.raises(LeakageError, match=r"the scan stands on both sides .* p00-0 \(fold 0\) and p02-0 \(fold 1\)"):
        require_no_leak(copied, [folds], every)


def test_a_site_in_two_folds_is_refused_only_where_sites_are_kept_apart(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort()
    by_site = checked(cohort, split="site")  # they alternate in pairs of patients, as the folds do
    assert "site" in by_site["checked"]
    frame = cohort.frame()
    frame.loc[0, "site"] = "north"
    cohort.rewrite(frame)
    assert "site" not in checked(cohort)["checked"]
    with pytest.raises(LeakageError, match="the site north stands on both sides"):
        checked(cohort, split="site")


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_a_near_duplicate_in_two_folds_is_refused_and_in_one_it_is_not(embeddings_cohort: Make, unit: str) -> None:
    cohort = hashed(embeddings_cohort())
    plant_copy(cohort, "p01-0", cohort, "p00-0")
    assert "near-duplicate" in checked(cohort, unit=unit)["checked"]
    plant_copy(cohort, "p06-0", cohort, "p04-0")
    with pytest.raises(
        LeakageError, match=r"p04-0 \(fold 0\) and p06-0 \(fold 1\) look like one scan .* give both the same patient_id"
    ):
        checked(cohort, unit=unit)


def test_what_is_on_no_side_leaks_nowhere(embeddings_cohort: Make) -> None:
    cohort = hashed(embeddings_cohort())
    plant_copy(cohort, "p06-0", cohort, "p04-0")

    def without_last(slides: LabelledSlides) -> pd.Series[Any]:
        sides = pd.Series(np.where(np.arange(12) // 2 % 2, "train", "test"), index=slides.table.index, dtype=object)
        return sides.mask(slides.table["slide_id"] == "p06-0", "")

    assert "near-duplicate" in checked(cohort, without_last)["checked"]


def test_crossval_refuses_a_copy_under_another_patient_and_takes_it_under_the_same(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = hashed(embeddings_cohort())
    plant_copy(cohort, "p03-0", cohort, "p01-0")
    more: dict[str, Any] = {"head": "mean", "folds": 6, "training": QUICK}
    with pytest.raises(LeakageError, match=r"p01-0 \(fold \d\) and p03-0 \(fold \d\) look like one scan"):
        crossval(cohort.table, [cohort.embeddings], "cancer", tmp_path / "out", **more)
    assert not list(tmp_path.rglob("metrics.json"))
    frame = cohort.frame()
    cohort.rewrite(frame.assign(patient_id=frame["patient_id"].replace("p03", "p01")))
    done = crossval(cohort.table, [cohort.embeddings], "cancer", tmp_path / "out", **more | {"folds": 2})
    assert done.metrics["cancer"]["leakage"]["checked"] == ["patient", "slide digest", "near-duplicate"]


def test_train_refuses_a_copy_across_its_split(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = hashed(embeddings_cohort())
    frame = cohort.frame()
    cohort.rewrite(frame.assign(split=["test" if at < 4 else "train" for at in range(len(frame))]))
    words: tuple[Any, ...] = (cohort.table, [cohort.embeddings], "cancer", tmp_path / "out", "mean")
    assert "near-duplicate" in train(*words, training=QUICK).metrics["cancer"]["leakage"]["checked"]
    plant_copy(cohort, "p09-0", cohort, "p01-0")
    with pytest.raises(LeakageError, match=r"p01-0 \(test\) and p09-0 \(train\) look like one scan"):
        train(*words, training=QUICK)


def test_train_refuses_a_copy_between_its_train_and_val_rows_only_where_something_is_chosen_on_these(
    embeddings_cohort: Make, tmp_path: Path
) -> None:
    cohort = hashed(embeddings_cohort())
    frame = cohort.frame()
    cohort.rewrite(frame.assign(split=["val" if at < 4 else "train" for at in range(len(frame))]))
    plant_copy(cohort, "p09-0", cohort, "p01-0")
    words: tuple[Any, ...] = (cohort.table, [cohort.embeddings], "cancer", tmp_path / "out", "mean")
    assert "near-duplicate" in train(*words, training=QUICK).metrics["cancer"]["leakage"]["checked"]
    with pytest.raises(LeakageError, match=r"p01-0 \(val\) and p09-0 \(train\) look like one scan"):
        train(*words, training=QUICK, operating_point="youden")


def test_rows_that_were_set_aside_to_stop_on_refuse_no_run(embeddings_cohort: Make, tmp_path: Path) -> None:
    cohort = hashed(embeddings_cohort())
    for at in range(0, 12, 2):
        plant_copy(cohort, f"p{at:02d}-0", cohort, "p00-0")
    aside = replace(QUICK, stop_share=0.5)
    words: tuple[Any, ...] = (cohort.table, [cohort.embeddings], "cancer", tmp_path / "out", "mean")
    split = train(*words, training=aside, operating_point="youden").predictions["cancer"].set_index("slide_id")["split"]
    assert {split[f"p{at:02d}-0"] for at in range(0, 12, 2)} == {"train", "val"}


def test_evaluate_refuses_whatever_the_training_has_seen(
    embeddings_cohort: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pathfm")
    seen, out = hashed(embeddings_cohort()), tmp_path / "out"
    train(seen.table, [seen.embeddings], "cancer", tmp_path / "model", "mean", training=QUICK)
    other = hashed(embeddings_cohort(patients=8, name="other", prefix="q"))
    other.rewrite(other.frame().assign(site="west"))
    words: tuple[Any, ...] = (tmp_path / "model", other.table, [other.embeddings], out)
    block = evaluate(*words, split="site").metrics["cancer"]["leakage"]
    assert block == {"checked": ["patient", "slide digest", "near-duplicate", "site"], "not_checked": []}
    plant_copy(other, "q05-0", seen, "p02-0")
    with pytest.raises(LeakageError, match=r"slides that look like one of the training q05-0 \(like p02-0\)"):
        evaluate(*words)
    write_embeddings(other.file("q05-0"), planted_embeddings("q05-0", 1))
    frame = other.frame()
    other.rewrite(frame.assign(site=["north", *frame["site"][1:]]))
    assert "site" not in evaluate(*words).metrics["cancer"]["leakage"]["checked"]
    with pytest.raises(LeakageError, match="share sites north"):
        evaluate(*words, split="site")
    other.rewrite(frame.assign(patient_id=["p03", *frame["patient_id"][1:]]))
    with pytest.raises(LeakageError, match="share patients p03"):
        evaluate(*words)


def test_a_model_that_does_not_tell_of_its_slides_is_said_to(embeddings_cohort: Make, tmp_path: Path) -> None:
    seen = embeddings_cohort()
    train(seen.table, [seen.embeddings], "cancer", tmp_path / "model", "mean", training=QUICK)
    model, slides = read_model(tmp_path / "model"), joined(embeddings_cohort(patients=6, name="other", prefix="q"))
    every = reference_of(slides, pd.Series(data=True, index=slides.table.index))
    nowhere = replace(model, training={key: value for key, value in model.training.items() if key != "sites"})
    block = require_unseen(tmp_path / "c.csv", tmp_path / "model", nowhere, slides, None, every, "site")
    assert block["checked"] == ["patient", "slide digest"]
    why = " ".join(one["why"] for one in block["not_checked"])
    assert "no reference of its slides" in why
    assert "does not say from which sites" in why
