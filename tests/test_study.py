"""A study from the command line: all of it, again, with something changed, and with slides that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from pathfm.cli import main
from pathfm.errors import InputError, SlidesFailedError
from pathfm.model import read_model
from pathfm.settings import TrainSettings
from pathfm.study import run
from pathfm.synthetic import SCANNERS, GeneratedSlide, write_slide
from pathfm.tiles import TileSpec

if TYPE_CHECKING:
    from pathlib import Path

TILES = TileSpec(size_px=64, mpp=1.0)
TRAINING = TrainSettings(epochs=2, hidden=8, attention=4)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Six patients with a slide each, half of them with a lesion."""
    rows = []
    for k in range(6):
        slide = GeneratedSlide(f"s{k}", SCANNERS[k % 2], 0.5, seed=k, lesion=k < 3, side_um=500)
        write_slide(slide, tmp_path / "data")
        rows.append(
            {"slide_id": slide.slide_id, "patient_id": f"p{k}", "path": f"slides/s{k}.tiff", "cancer": int(k < 3)}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "cohort.csv", index=False)
    return tmp_path / "data" / "cohort.csv"


def study(cohort: Path, out: Path, **more: Any) -> dict[str, Any]:
    run(
        cohort,
        **{"label": "cancer", "out": out, "tiles": TILES, "training": TRAINING, "folds": 2, "device": "cpu"} | more,
    )
    return json.loads((out / "crossval" / "metrics.json").read_text())


def times(out: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob(pattern))}


def test_a_study_run_again_does_only_what_has_changed(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = study(cohort, out)
    kept = {pattern: times(out, pattern) for pattern in ("embeddings/*/*.h5", "**/*.safetensors", "heatmaps/*.png")}
    assert all(kept.values())
    assert study(cohort, out) == first
    assert {pattern: times(out, pattern) for pattern in kept} == kept

    study(cohort, out, training=replace(TRAINING, epochs=3), final="ensemble")
    assert times(out, "embeddings/*/*.h5") == kept["embeddings/*/*.h5"]
    assert times(out, "**/*.safetensors") != kept["**/*.safetensors"]
    assert times(out, "heatmaps/*.png") != kept["heatmaps/*.png"]
    handed_on = read_model(out / "model")
    assert (len(handed_on.heads), handed_on.training) == (2, read_model(out / "crossval" / "ensemble").training)


@pytest.mark.long
def test_several_targets_by_site_in_patients_have_a_report_each(cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort)
    table.assign(site=["a", "b", "c"] * 2, age=[50, 61, 47, "", 70, 66], grade=[1, 2, 1, 2, 1, 2]).to_csv(
        cohort, index=False
    )
    more = {"split": "site", "repeats": 2, "unit": "patient", "covariates": ["age"], "label": "cancer,grade:ordinal"}
    result = run(cohort, **{"out": tmp_path / "out", "tiles": TILES, "training": TRAINING, "folds": 2} | more)
    assert set(result.metrics) == {"cancer", "grade"}
    for name in ("cancer", "grade"):
        assert name in (tmp_path / "out" / f"report-{name}.html").read_text()
        assert list((tmp_path / "out" / "heatmaps" / name).glob("*.png"))
    print(f"{len(result.reports)} reports; {result}")


@pytest.mark.long
def test_another_recipe_in_the_same_folder_is_not_mixed_with_the_first(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study(cohort, out)
    study(cohort, out, tiles=replace(TILES, mpp=2.0))
    assert len(list((out / "embeddings").glob("*/"))) == 2
    assert json.loads((out / "model" / "model.json").read_text())["recipe"]["tiles"]["mpp"] == 2.0


def test_slides_that_cannot_be_used_are_listed_and_the_rest_of_the_study_is_done(cohort: Path, tmp_path: Path) -> None:
    (cohort.parent / "slides" / "s5.tiff").write_bytes(b"")
    with pytest.raises(SlidesFailedError, match="1 of 6"):
        study(cohort, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["reason"].tolist() == ["empty file"]
    assert "empty file" in (tmp_path / "out" / "report.html").read_text()
    assert np.isnan(pd.read_csv(tmp_path / "out/crossval/predictions.csv").set_index("slide_id").loc["s5", "prob_1"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A cohort whose slides nobody has come to look for yet."""
    ids = [f"s{k}" for k in range(6)]
    rows = pd.DataFrame({"slide_id": ids, "patient_id": [f"p{k // 2}" for k in range(6)], "path": ids})
    rows = rows.assign(cancer=[0, 0, 1, 1, 0, 1], age=[50, 61, 47, "", 70, 66], centre="one", grade=[1, 1, 2, 2, 1, 1])
    rows.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"label": "cancr"}, "near: cancer"),
        ({"head": "gated"}, "gated-abmil"),
        ({"training": replace(TRAINING, head_options={"instance": 4}), "head": "clam-sb"}, "near: instances"),
        ({"training": replace(TRAINING, precision=16, device="cpu")}, "precision 16 needs a cuda device"),
        ({"folds": 5}, "use --folds 2"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"split": "site"}, "the column site filled"),
        ({"unit": "case"}, "unknown unit 'case'"),
        ({"unit": "patient"}, "the slides of patient p2 hold 0 and 1 in the column 'cancer'"),
        ({"unit": "patient", "label": "grade", "covariates": ["age"]}, "p0 hold 50 and 61 in the column 'age'"),
        ({"covariates": ["stage"]}, "unknown covariates column 'stage'"),
        ({"covariates": ["age,cancer"]}, "--covariates names cancer, which is what the model is to say"),
        ({"covariates": ["age", "age"]}, "--covariates names a column twice"),
        ({"covariates": ["centre"]}, "holds nothing but 'one'"),
    ],
)
def test_what_cannot_be_trained_shows_before_anything_is_extracted(
    table: Path, tmp_path: Path, setting: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        study(table, tmp_path / "out", **setting)
    assert not (tmp_path / "out").exists()


def test_covariates_may_stand_in_one_text_as_crossval_takes_them(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s0"):  # the slides are not there: all that is known before is in order
        study(table, tmp_path / "out", covariates=["age,grade"])


def test_the_command_takes_a_config_writes_it_down_resolved_and_runs_from_that(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(
        "label: cancer\nfolds: 2\ntiles: {size_px: 64, mpp: 1.0}\ntraining: {epochs: 2, hidden: 8, attention: 4}\ndevice: cpu\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["run", "--config", str(config), "--cohort", str(cohort), "--out", str(first)]) == 0
    resolved = (first / "pathfm-run.yaml").read_text()
    assert "min_tissue: 0.5" in resolved
    assert main(["run", "--config", str(first / "pathfm-run.yaml"), "--out", str(second)]) == 0
    assert (first / "crossval/predictions.csv").read_text() == (second / "crossval/predictions.csv").read_text()
    assert "report: " in capsys.readouterr().out


def test_a_study_without_a_usable_slide_ends_in_one_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (cohort.parent / "slides").iterdir():
        path.write_bytes(b"rubbish")
    words = ["run", "--cohort", str(cohort), "--label", "cancer", "--folds", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "none of the 6 slides" in capsys.readouterr().err
