from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest
from runs import ended, start

from pathfm import ledger
from pathfm.errors import DiskFullError, InputError
from pathfm.tables import misfit

if TYPE_CHECKING:
    from pathlib import Path

SET, MODEL = "a" * 64, "b" * 64


def looks_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_look_counts_and_models_count_once(tmp_path: Path) -> None:
    path = ledger.ledger_of(tmp_path / "external.csv")
    assert path == tmp_path / "external.ledger.csv"
    first = ledger.record_look(path, SET, MODEL, "evaluate", 12)
    assert first | {"first": ""} == {
        "looks": 1,
        "models": 1,
        "test_set": "a" * 8,
        "first": "",
        "file": "external.ledger.csv",
    }
    assert first["first"] == looks_of(path)[0]["date"][:10]
    ledger.record_look(path, "c" * 64, MODEL, "evaluate", 5)
    ledger.record_look(path, SET, MODEL, "evaluate", 12)
    third = ledger.record_look(path, SET, "d" * 64, "evaluate", 12)
    assert (third["looks"], third["models"]) == (3, 2)
    assert misfit(json.loads(json.dumps(third)), ledger.SHAPE) == ""
    assert [row["n_slides"] for row in looks_of(path)] == ["12", "5", "12", "12"]


def test_a_ledger_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger.csv"
    before = b""
    for _ in range(3):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
        after = path.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after


def test_a_test_set_is_its_scans_whatever_they_are_called_and_in_whatever_order() -> None:
    known = ledger.set_sha256({"s1": "sha256:1", "s2": "sha256:2"})
    assert known == ledger.set_sha256({"b": "sha256:2", "a": "sha256:1"})
    assert known != ledger.set_sha256({"s1": "sha256:1"})
    assert known != ledger.set_sha256({"s1": "sha256:1", "s2": ""})
    assert ledger.set_sha256({"s1": ""}) != ledger.set_sha256({"s2": ""})
    assert len(known) == 64


def look_often(path: Path, model: str, times: int) -> int:
    for _ in range(times):
        ledger.record_look(path, SET, model, "evaluate", 3)
    return 0


def test_two_processes_that_look_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger.csv"
    others = [start(tmp_path / f"said-{model}", look_often, path, model * 64, 40) for model in "ef"]
    look_often(path, MODEL, 40)
    assert [ended(one) for one in others] == [0, 0]
    rows = looks_of(path)
    assert sorted(row["model_sha256"][0] for row in rows) == ["b"] * 40 + ["e"] * 40 + ["f"] * 40
    assert ledger.record_look(path, SET, MODEL, "evaluate", 3)["looks"] == 121


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/a\.ledger\.csv cannot be written .*pass --ledger"):
        ledger.record_look(tmp_path / "nowhere" / "a.ledger.csv", SET, MODEL, "evaluate", 1)
    with pytest.raises(InputError, match="pass --ledger"):
        ledger.record_look(tmp_path, SET, MODEL, "evaluate", 1)


@pytest.mark.parametrize(
    "content", [b"slide_id,patient_id\ns1,p1\n", b"\xff\xfe\n", b"\n"], ids=["table", "bytes", "line"]
)
def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ledger.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no ledger of pathfm"):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
    assert path.read_bytes() == content


def test_a_line_that_was_cut_is_no_look_and_spoils_none(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger.csv"
    ledger.record_look(path, SET, MODEL, "evaluate", 1)
    with path.open("a") as file:
        file.write(f"2026-01-01,{SET}")
    assert ledger.record_look(path, SET, MODEL, "evaluate", 1)["looks"] == 2
    assert ledger.record_look(path, SET, MODEL, "evaluate", 1)["looks"] == 3


def test_a_torn_line_is_replaced_and_one_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger.csv"
    ledger.record_look(path, SET, MODEL, "evaluate", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:100])
    ledger.record_look(path, SET, MODEL, "evaluate", 1)
    assert path.read_bytes().startswith(whole)
    assert [row["test_set_sha256"] for row in looks_of(path)] == [SET] * 2
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as some editors leave it
    assert ledger.record_look(path, SET, MODEL, "evaluate", 1)["looks"] == 3
    assert len(looks_of(path)) == 3


@pytest.mark.parametrize("line", ["2026-01-01,abc", "", "x" * 200_000, "x" * 200_000 + ",a,b,c,1,2", "a,b,c,d,1,2,3"])
def test_a_line_that_is_no_look_is_named_and_nothing_is_added(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.ledger.csv"
    for _ in range(2):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
    lines = path.read_text().splitlines()
    content = "\n".join([*lines[:2], line, *lines[2:], ""])
    path.write_text(content)
    with pytest.raises(InputError, match=r"something else than a look in line 3; .*pass --ledger"):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
    assert path.read_text() == content


def test_a_quote_that_is_never_closed_hides_no_look(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger.csv"
    for _ in range(3):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\r\n".join([header, f'"{first}', *rest, ""]))  # as another editor ends its lines
    assert ledger.record_look(path, SET, MODEL, "evaluate", 1)["looks"] == 4


def test_a_full_disk_adds_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ledger.csv"
    ledger.record_look(path, SET, MODEL, "evaluate", 1)
    before, write_all = path.read_bytes(), ledger.write_all

    def full(descriptor: int, data: bytes) -> None:
        write_all(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger, "write_all", full)
    with pytest.raises(DiskFullError):
        ledger.record_look(path, SET, MODEL, "evaluate", 1)
    assert path.read_bytes() == before


def test_the_block_can_hide_what_the_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / "ann-smith.ledger.csv"
    block = ledger.record_look(path, SET, MODEL, "evaluate", 1, shown="the ledger beside the cohort table")
    assert "smith" not in json.dumps(block)
    assert "smith" not in path.read_text()
