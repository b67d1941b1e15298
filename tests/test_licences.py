"""A licence on its way: from a row to the file, the model and the report, and what is said of it and refused on the way."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING

import pytest
from drawn import SETTINGS, Study, make_study
from hypothesis import given
from hypothesis import strategies as st

from pathfm.embeddings import find_embeddings, read_embeddings, write_embeddings
from pathfm.errors import LicenceError, PathfmError
from pathfm.licences import (
    Licence,
    licences_in_recipe,
    licences_of,
    require_permissive,
    restricted,
    warn_of_restrictions,
)
from pathfm.model import read_model, write_model
from pathfm.report import report
from pathfm.train import train

if TYPE_CHECKING:
    from pathlib import Path

FREE, MIT = Licence("h0", "Apache-2.0"), Licence("midnight", "MIT", page="https://example.org/m")
UNI = Licence("uni2-h", "CC-BY-NC-ND-4.0", "covers models trained on its outputs", "https://example.org/uni")
NOBODY = Licence("mine")
TEXT = st.text(st.characters(codec=None), max_size=1200)


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        (FREE, True),
        (Licence("x", "bsd-3-clause"), True),
        (UNI, False),
        (NOBODY, False),
        (Licence("x", ""), False),
        (Licence("x", "GPL-3.0"), False),
        (Licence("x", "Apache-2.0", "its page says research only"), False),
        (Licence("x", "Apache-2.0; its page says research only"), False),
        (Licence("x", "MIT-like"), False),
    ],
)
def test_only_what_is_known_to_be_free_and_has_no_further_clause_is_permissive(
    licence: Licence, permissive: bool
) -> None:
    assert licence.permissive is permissive


def test_a_restriction_is_refused_in_one_line_that_says_backbone_licence_clause_page_and_what_now() -> None:
    with pytest.raises(LicenceError) as caught:
        require_permissive(iter([FREE, UNI, NOBODY, UNI]), "training on cache/uni")
    said = str(caught.value)
    assert isinstance(caught.value, PathfmError)
    assert "\n" not in said
    for part in ("training on cache/uni", UNI.backbone, UNI.licence, UNI.derivatives, UNI.page, "pathfm backbones"):
        assert said.count(part) == 1
    assert "the licence of mine is not stated" in said
    assert "h0" not in said


def test_a_permissive_chain_is_let_through_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    require_permissive([FREE, MIT], "training")
    warn_of_restrictions([FREE, MIT])
    assert caplog.records == []
    assert restricted([FREE, MIT]) == ()


def test_several_restrictions_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_restrictions(iter([UNI, FREE, NOBODY, UNI]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().count(str(UNI)) == record.getMessage().count(str(NOBODY)) == 1
    assert "h0" not in record.getMessage()


@given(texts=st.tuples(TEXT, TEXT, TEXT, TEXT))
def test_any_text_becomes_a_line_that_is_read_back_and_can_be_written(texts: tuple[str, str, str, str]) -> None:
    licence = Licence(*texts)
    assert licences_of([licence.facts()]) == (licence,)
    for value in (*licence.facts().values(), str(licence)):
        assert value.isprintable()
        value.encode()  # raises for what UTF-8 has not


@pytest.mark.parametrize(
    "recipe", [{}, {"backbone": 5}, {"backbone": {"name": 5, "licence": []}}, {"joined": 5}, {"joined": [5]}]
)
def test_a_recipe_that_says_nothing_is_of_an_unknown_licence(recipe: dict[str, object]) -> None:
    assert licences_in_recipe(recipe) == (Licence("unknown"),)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), [f"s{i}" for i in range(7)])


def under(study: Study, *licences: Licence) -> None:
    for path in find_embeddings(study.embeddings).values():
        write_embeddings(path, replace(read_embeddings(path), licences=licences))


def page_of(study: Study, out: Path, model: Path | None = None) -> str:
    return unescape(report(out, study.crossval, [study.embeddings], study.cohort, model=model).read_text())


def test_the_report_shows_licence_clause_and_page_of_each_backbone_and_says_that_the_model_inherits_them(
    study: Study, tmp_path: Path
) -> None:
    hostile = Licence("<script>x", "<b>NC", "<img src=x onerror=alert(1)>", "javascript:alert(1)")
    write_model(tmp_path / "model", replace(read_model(study.model), licences=(UNI, hostile)))
    html = report(tmp_path / "r.html", study.crossval, [study.embeddings], study.cohort, model=tmp_path / "model")
    text = html.read_text()
    for value in (*UNI.facts().values(), "&lt;script&gt;x", "&lt;b&gt;NC", "&lt;img src=x", "javascript:alert(1)"):
        assert value in text
    assert "<script" not in text
    assert "<img src=x" not in text
    assert re.findall('href="([^#])', text) == []  # only places in the page itself
    assert "<strong>The model inherits these terms</strong>" in text
    assert "bound by the licence of uni2-h and the licence of <script>x" in unescape(text)


def test_the_report_calls_a_licence_that_nobody_states_not_stated_and_a_free_one_free(
    study: Study, tmp_path: Path
) -> None:
    free = page_of(study, tmp_path / "free.html", study.model)
    assert "Apache-2.0" in free
    assert "any use, for credit" in free
    assert "is bound by" not in free
    under(study, NOBODY)
    try:
        said = page_of(study, tmp_path / "unknown.html")
    finally:
        under(study, Licence("planted", "Apache-2.0"))
    assert "not stated" in said
    assert "allows nothing until its makers are asked" in said
    assert "is bound by the licence of mine." in said


def test_the_licence_of_the_files_reaches_the_model_and_its_report(study: Study, tmp_path: Path) -> None:
    under(study, UNI)
    try:
        train(study.cohort, [study.embeddings], "cancer", tmp_path / "model", training=SETTINGS)
        assert read_model(tmp_path / "model").licences == (UNI,)
        assert UNI.derivatives in page_of(study, tmp_path / "r.html", tmp_path / "model")
    finally:
        under(study, Licence("planted", "Apache-2.0"))
