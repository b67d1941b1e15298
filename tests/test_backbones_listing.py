from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub.constants
import pytest
from tinymodels import save_tiny, tiny_model

import pathfm.backbones
from pathfm.backbones import BACKBONES, backbones, find_backbone, known_backbones, load_backbone
from pathfm.backbones.page import page_with_table
from pathfm.cli import main
from pathfm.errors import BackboneError, InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(pathfm.backbones.__file__).parents[2] / "docs"

OURS = """
- name: our-vit
  source: local-dir:tiny
  aliases: [ours]
  output: cls+mean
  outputs: [cls+mean, cls]
  prefix_tokens: 1
  dim: 128
  size_px: 160
  mpp: 0.5
  resize_px: 160
  mean_std: [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
  licence: Apache-2.0
"""


class Check(NamedTuple):
    """As conformance has it."""

    what: str
    wanted: object
    found: object
    passed: bool | None


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    path = tmp_path / "backbones.yaml"
    monkeypatch.setenv("PATHFM_BACKBONES", str(path))

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_table_lists_every_backbone_without_network(offline: Path) -> None:
    table = backbones().set_index("name")
    assert set(table.index) == set(BACKBONES)
    assert table.loc["colour", ["dim", "available"]].to_list() == [60, "yes"]
    assert table.loc["uni", ["dim", "tile", "licence", "gated", "available"]].to_list() == [
        1024,
        "256 px @ 0.5 mpp",
        "CC-BY-NC-ND-4.0",
        "yes",
        "no",
    ]
    assert table.loc["rudolfv2", "licence"] == "unknown"
    assert set(table.loc[[name for name, row in BACKBONES.items() if row.library == "remote"], "available"]) == {"no"}
    assert not offline.exists()


def test_the_table_is_plain_and_one_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(BACKBONES) + 1
    assert any(
        line.endswith("1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms") for line in lines
    )


@pytest.mark.parametrize("name", [*BACKBONES, "virchow2:cls", "midnight12k", "uni@v9"])
def test_the_card_says_what_there_is_to_know(name: str) -> None:
    card = dict(backbones(name=name).itertuples(index=False))
    row = find_backbone(name)
    assert (card["name"], card["licence"], card["source"]) == (row.name, row.licence, row.source)
    assert card["embedding"].startswith(str(row.dim or 60))
    assert all(card.values())
    assert "transform" in card
    assert "how to get it" in card


def test_the_card_of_virchow2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--name", "virchow2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "2560 numbers: the class token beside the mean of the patch tokens",
        "variants virchow2:cls, virchow2:mean",
        "'virchow2' of STAMP is 'virchow2:cls' here",
        "subtract 0.485 0.456 0.406, divide by 0.229 0.224 0.225",
        "tokens before the patches 5",
        "631.24 million",
        "counts models trained on its outputs",
        "arXiv:2408.00738",
        "accept the terms at https://huggingface.co/paige-ai/Virchow2",
    ):
        assert words in said


def test_a_card_of_nothing_lists_near_names() -> None:
    with pytest.raises(UnknownNameError, match="virchow2"):
        backbones(name="virchow3")
    with pytest.raises(InputError, match="one of them"):
        backbones(name="uni", check="uni")


def test_a_failed_check_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("dimension", 1024, 1024, passed=True), Check("weights", "fit", None, passed=None)]
    stub: Any = type(sys)("pathfm.backbones.conformance")
    stub.check_backbone = lambda _: checks
    monkeypatch.setitem(sys.modules, "pathfm.backbones.conformance", stub)
    assert backbones(check="uni")["passed"].to_list() == ["yes", "not looked at"]
    checks.append(Check("registers", "in no mean", "in the mean", passed=False))
    with pytest.raises(BackboneError, match="registers \\(wanted in no mean, found in the mean\\)"):
        backbones(check="uni")
    assert main(["backbones", "--check", "uni"]) == 2
    assert "dimension: wanted 1024, found 1024: yes" in capsys.readouterr().err


def test_entries_of_a_file_are_backbones_like_others(yaml_file: Callable[[str], Path], tmp_path: Path) -> None:
    yaml_file(OURS)
    save_tiny(tmp_path / "tiny", tiny_model())
    row = find_backbone("our-vit")
    assert (row.dim, row.mean_std, row.outputs) == (128, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ("cls+mean", "cls"))
    assert row.source == f"local-dir:{tmp_path / 'tiny'}"
    assert find_backbone("Ours:cls").name == "our-vit:cls"
    assert load_backbone("our-vit:cls", "cpu").row.dim == 64
    assert backbones().set_index("name").loc["our-vit", ["dim", "available"]].to_list() == [128, "yes"]
    assert list(known_backbones())[-1] == "our-vit"
    assert "our-vit" not in BACKBONES


def test_the_file_is_read_anew_and_without_it_there_is_the_table_alone(
    yaml_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml_file("[]")
    assert len(known_backbones()) == len(BACKBONES)
    yaml_file(OURS)
    assert len(known_backbones()) == len(BACKBONES) + 1
    monkeypatch.setenv("PATHFM_BACKBONES", "")
    assert len(known_backbones()) == len(BACKBONES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: uni\n  source: hf-hub:a/b\n  prefix_tokens: 1", "'uni' is registered already"),
        (
            "- name: mine\n  aliases: [uni_v2]\n  source: hf-hub:a/b\n  prefix_tokens: 1",
            "'uni_v2' is registered already",
        ),
        (OURS + OURS, "'our-vit' is registered already"),
        ("name: mine", "no list of backbones"),
        ("- mine", "entry 1 has no name"),
        ("- name: mine", "entry 1, mine: the key 'source' is missing"),
        ("- name: mine\n  source: hf-hub:a/b\n  dimm: 3", "no key 'dimm'; near: dim"),
        ("- name: mine\n  source: hf-hub:a/b\n  dim: '3'", 'dim is "3", and should be a whole number or null'),
        ("- name: mine\n  source: hf-hub:a/b\n  dim: true", "dim is true, and should be a whole number or null"),
        ("- name: mine\n  source: hf-hub:a/b\n  gated: maybe", "should be true, false or null"),
        ("- name: mine\n  source: hf-hub:a/b\n  output: token", "should be one of cls, mean"),
        ("- name: mine\n  source: hf-hub:a/b\n  mean_std: [1, 2]", "a list of 2, each a list of 3, each a number"),
        ("- name: mine\n  source: hf-hub:a/b\n  arch_kwargs: [1]", "keys with values"),
        ("- name: mine\n  source: hf-hub:a/b\n  prefix_tokens: 0", "1 or more where there is a class token"),
        ("- name: mine\n  source: elsewhere\n  prefix_tokens: 1", "one of hf-hub:..."),
        ("- &a {name: mine}\n- *a", "an alias"),
        ("- name: !!python/object/apply:os.system [ls]", "cannot be read"),
        ("- [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_that_names_it(
    text: str, said: str, yaml_file: Callable[[str], Path]
) -> None:
    path = yaml_file(text)
    for use in (lambda: find_backbone("colour"), backbones):
        with pytest.raises(InputError) as caught:
            use()
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHFM_BACKBONES", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml \(PATHFM_BACKBONES\) cannot be read"):
        find_backbone("uni")


def test_the_page_has_the_table_that_the_rows_give() -> None:
    page = (DOCS / "backbones.md").read_text(encoding="utf-8")
    assert page_with_table(page) == page, "run `python -m pathfm.backbones.page docs/backbones.md`"
    with pytest.raises(InputError, match="no <!-- from the rows -->"):
        page_with_table("# a page")


def test_the_page_on_adding_a_backbone_does_what_it_says(tmp_path: Path) -> None:
    page = (DOCS / "adding-a-backbone.md").read_text(encoding="utf-8")
    yaml, python = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("yaml", "python"))
    save_tiny(tmp_path / "tiny", tiny_model())
    (tmp_path / "backbones.yaml").write_text(yaml[0], encoding="utf-8")
    (tmp_path / "ours.py").write_text(
        python[0] + "backbones = __import__('pathfm.backbones').backbones.backbones\nprint(backbones(name='our-vit'))",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "ours.py"],
        cwd=tmp_path,
        env={**os.environ, "PATHFM_BACKBONES": "backbones.yaml", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "3"), done.stderr
    assert "our-vit" in done.stdout
    for command in re.findall(r"pathfm (\w+)", page):
        assert command in ("extract", "backbones", "import", "Backbone"), command
