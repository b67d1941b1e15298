from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pathfm.errors import ModelError
from pathfm.stage import Check, Stage, read_stage, write_stage

if TYPE_CHECKING:
    from pathlib import Path

CHECK = Check("silent", "cross-validation", "patients", "at least 20, found 24", met=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text("{}")
    return tmp_path


def stamp(model: Path, stage: Stage = "silent", *checks: Check) -> dict[str, Any]:
    write_stage(model, stage, "c" * 64, checks or [CHECK], ["coverage_low"])
    found: dict[str, Any] = json.loads((model / "stage.json").read_text())
    return found


def test_a_model_that_no_gate_has_seen_is_in_development(model: Path) -> None:
    found = read_stage(model)
    assert (found.stage, found.criteria_sha256, found.when) == ("development", "", "")
    assert "pathfm gate" in found.reasons[0]
    assert str(found).startswith("stage: development, not for use on patients (no release gate")


def test_a_stamp_reads_back_with_its_reasons(model: Path) -> None:
    stamp(model)
    found = read_stage(model)
    assert (found.stage, found.criteria_sha256) == ("silent", "c" * 64)
    assert found.reasons == (
        "silent, cross-validation: patients ok: at least 20, found 24",
        "not checked, for the criteria leave it out: coverage_low",
    )
    assert str(found) == f"stage: silent, given {found.when[:10]} by criteria cccccccc"


def test_a_refused_model_says_what_failed(model: Path) -> None:
    stamp(model, "development", CHECK, CHECK._replace(criterion="controls", line="site speaks against it", met=False))
    found = read_stage(model)
    assert found.stage == "development"
    assert found.reasons[0] == "silent, cross-validation: controls FAILED: site speaks against it"


def test_a_stamp_lapses_when_the_model_changes_and_holds_again_for_the_one_it_was_of(model: Path) -> None:
    stamp(model)
    (model / "model.json").write_text('{"weights_sha256": "other"}')
    assert read_stage(model).stage == "development"
    assert "the model has changed" in read_stage(model).reasons[0]
    (model / "model.json").write_text("{}")
    assert read_stage(model).stage == "silent"


@pytest.mark.parametrize(
    "change", [{"stage": "assisted"}, {"checked": []}, {"criteria_sha256": "d" * 64}, {"when": "2020-01-01"}]
)
def test_a_stamp_that_was_edited_by_hand_does_not_hold(model: Path, change: dict[str, Any]) -> None:
    (model / "stage.json").write_text(json.dumps(stamp(model) | change))
    assert read_stage(model).stage == "development"
    assert "was changed after it was written" in read_stage(model).reasons[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"format": "pathfm-stage", "format_version": 1}', b"[" * 100_000, b'{"stage": NaN}'],
)
def test_a_stamp_that_is_none_gives_no_stage_and_names_no_folder(model: Path, content: bytes) -> None:
    (model / "stage.json").write_bytes(content)
    found = read_stage(model)
    assert found.stage == "development"
    assert "stage.json" in found.reasons[0]
    assert str(model) not in found.reasons[0]


def test_a_stage_that_nobody_knows_is_refused(model: Path) -> None:
    (model / "stage.json").write_text(json.dumps(stamp(model) | {"stage": "cleared"}))
    assert read_stage(model).stage == "development"


def test_a_folder_without_a_model_has_no_stage(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model\.json"):
        read_stage(tmp_path)
