"""Pseudonyms, key files, what may be read of a slide, and silence: the parts. test_canary.py tries the whole."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import logging
import os
import pickle
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import openslide
import pandas as pd
import pytest
from canary import APERIO, COLUMNS, write_scan
from pyramids import waves, write_pyramid

import pathfm
from pathfm.cli import main
from pathfm.cohort import read_cohort
from pathfm.crossval import crossval
from pathfm.doctor import doctor
from pathfm.errors import CohortError, InputError, LeakageError, SlideUnreadableError, UnknownNameError
from pathfm.evaluate import evaluate
from pathfm.failures import Failure
from pathfm.preview import tile
from pathfm.privacy import ALLOWED_PROPERTIES, KEY_ID_FILE, Pseudonyms, allowed, make_key, private_run, read_key
from pathfm.progress import logger
from pathfm.report import report
from pathfm.scrub import Scrubber, scrubbing, withheld
from pathfm.settings import TrainSettings
from pathfm.slide import open_slide, slide_digest
from pathfm.sources import find_slides
from pathfm.train import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import EmbeddingsCohort

NAMES = Pseudonyms(bytes(range(32)))
SETTINGS = TrainSettings(epochs=2, hidden=8, attention=4, stop_share=0.0, device="cpu")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    make_key(path)
    return path


def table(path: Path, *rows: str, header: str = "slide_id,patient_id,path") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_pseudonym_is_half_of_an_hmac_under_a_key_of_its_kind() -> None:
    slides = hmac.new(NAMES.key, b"pathfm slide", hashlib.sha256).digest()
    assert NAMES.slide("S-1") == hmac.new(slides, b"S-1", hashlib.sha256).hexdigest()[:32]
    assert NAMES.slide("S-1") == Pseudonyms(NAMES.key).slide("S-1")
    assert len({NAMES.slide("S-1"), NAMES.patient("S-1"), NAMES.slide("S-2"), Pseudonyms(b"x" * 32).slide("S-1")}) == 4
    assert re.fullmatch("[0-9a-f]{32}", NAMES.patient("ä\udcff"))


def test_pseudonyms_and_slides_cross_a_process_boundary_and_do_not_show_what_they_hide(tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(NAMES))
    assert again.slide("S-1") == NAMES.slide("S-1")
    assert NAMES.key.hex() not in repr(NAMES)
    assert repr(NAMES.key) not in repr(NAMES)
    (source,) = find_slides([write_pyramid(tmp_path / "Smith.tiff", waves(70, 70, 0.5))], names=NAMES)
    assert source.original_id == "Smith"
    with pickle.loads(pickle.dumps(source)).open() as slide:
        assert slide.slide_id == NAMES.slide("Smith")


def test_a_key_file_is_made_once_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_key(tmp_path / "key")
    made = (tmp_path / "key").read_text()
    assert "keep it" in caplog.text
    assert re.fullmatch("[0-9a-f]{64}\n", made)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    make_key(tmp_path / "key")
    assert (tmp_path / "key").read_text() == made
    make_key(tmp_path / "second")
    assert read_key(tmp_path / "key") == bytes.fromhex(made) != read_key(tmp_path / "second")


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("ab" * 31, 0o600, "holds 31 bytes, fewer than 32"),
        ("", 0o600, "holds 0 bytes"),
        ("secret words, forty of them, and no hex at all", 0o600, "something else than hex"),
        ("äöü" * 30, 0o600, "something else than hex"),
        ("ab" * 32, 0o640, "may be read by others than its owner; run chmod 600"),
        ("ab" * 32, 0o604, "may be read by others"),
    ],
)
def test_a_key_file_that_is_no_secret_is_refused_without_quoting_it(
    tmp_path: Path, text: str, mode: int, says: str
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InputError, match=says) as caught:
        read_key(path)
    assert not text or text not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("where", ["out", "made", "model/inside"])
def test_a_key_among_the_results_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / where)
    for folder in (where, "link"):
        run = private_run(tmp_path / folder / "key", tmp_path / "out", [tmp_path / "made"], [tmp_path / "model"])
        with pytest.raises(InputError, match=r"lies in .* keep it elsewhere"), run:
            pass
    assert not list(tmp_path.rglob("key"))


def test_a_key_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be made"), private_run(tmp_path / "no" / "key", tmp_path / "out"):
        pass


def test_a_mistyped_key_makes_no_new_one_where_names_are_there_already(tmp_path: Path, key: Path) -> None:
    with private_run(key, tmp_path / "out"):
        pass
    assert (tmp_path / "out" / KEY_ID_FILE).read_text().strip() == Pseudonyms(read_key(key)).key_id
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    for given in ({"out": tmp_path / "out"}, {"made_with": [tmp_path / "out" / "colour-1234"]}):
        with (
            pytest.raises(InputError, match=r"no key file at .*kee; pass the one"),
            private_run(tmp_path / "kee", **given),
        ):
            pass
    assert not (tmp_path / "kee").exists()


def test_names_of_two_keys_and_true_ones_do_not_meet(tmp_path: Path, key: Path) -> None:
    make_key(tmp_path / "other")
    with private_run(key, tmp_path / "out"), private_run(key, tmp_path / "out" / "inner"):
        pass
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.h5").touch()
    for given, says in (
        ({"out": tmp_path / "out"}, "another key file"),
        ({"made_with": [tmp_path / "out"]}, "another key file"),
        ({"made_with": [tmp_path / "plain"]}, "without --pseudonymise"),
        ({"out": tmp_path / "plain"}, "made without --pseudonymise; pass a new folder"),
    ):
        with pytest.raises(InputError, match=says), private_run(tmp_path / "other", **given):
            pass


def test_a_model_of_another_key_is_used_with_a_warning(
    tmp_path: Path, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with private_run(key, tmp_path / "private"):
        pass
    (tmp_path / "plain").mkdir()
    wanted = {(key, "private"): False, (key, "plain"): True, (None, "private"): True, (None, "plain"): False}
    for (given, model), warns in wanted.items():
        caplog.clear()
        with private_run(given, models=[tmp_path / model]):
            assert ("a patient in both is not noticed" in caplog.text) == warns


class Recording(Mapping[str, str]):
    """The properties of a slide, and which of them somebody has asked for."""

    def __init__(self, properties: Mapping[str, str], read: list[str]) -> None:
        self._properties, self._read = properties, read

    def __getitem__(self, name: str) -> str:
        self._read.append(name)
        return self._properties[name]

    def __contains__(self, name: object) -> bool:
        return name in self._properties

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def __len__(self) -> int:
        raise AssertionError


def test_of_a_real_slide_only_the_allowed_properties_are_read_and_no_other_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "slides" / "a.svs", 0, dark=True)
    properties, read = openslide.OpenSlide.properties.fget, []
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["aperio.User"] == APERIO["User"]
        assert len(slide.associated_images) == 3

    def forbidden(_slide: object) -> None:
        raise AssertionError

    monkeypatch.setattr(openslide.OpenSlide, "properties", property(lambda s: Recording(properties(s), read)))
    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(forbidden))
    with open_slide(path) as slide:
        slide.read_tile(0, 0, 64, 1.0)
        slide.read_overview(8.0)
        assert (slide.mpp, slide.objective_power, slide.vendor) == (0.5, 20, "aperio")
    assert slide_digest(path, "quick").startswith("quick:")
    tile([tmp_path / "slides"], tmp_path / "out")
    assert "1 fit for use" in doctor([path])
    assert set(read) == set(ALLOWED_PROPERTIES)


def test_allowed_does_not_even_fetch_the_others() -> None:
    read: list[str] = []
    found = allowed(Recording({"aperio.User": "x", "openslide.mpp-x": "0.5", "tiff.DateTime": "y"}, read))
    assert (found, read) == ({"openslide.mpp-x": "0.5"}, ["openslide.mpp-x"])


def test_no_line_of_pathfm_names_another_property_or_an_associated_image() -> None:
    vendors = r"(openslide|aperio|tiff|hamamatsu|leica|mirax|philips|sakura|trestle|ventana|zeiss|dicom)\.[\w-]"
    asked = {}
    for path in sorted(Path(pathfm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("associated_images", "get_thumbnail", "color_profile"), path
                if node.attr.startswith("PROPERTY_NAME_"):
                    assert getattr(openslide, node.attr) in ALLOWED_PROPERTIES, path
                if node.attr == "properties":
                    asked[path.name] = asked.get(path.name, 0) + 1
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(vendors, node.value):
                assert node.value in ALLOWED_PROPERTIES, path
    assert set(asked) == {"slide.py", "slidefiles.py", "levels.py"}


def test_pillow_does_not_log_the_tags_of_a_tiff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pyramid(tmp_path / "Smith.tif", waves(70, 70, 0.5), power=20)
    with caplog.at_level(logging.DEBUG):
        from PIL import Image

        with Image.open(tmp_path / "Smith.tif") as image:
            image.load()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/data/Smith/a b.svs cannot be read", "S cannot be read"),
        ("'/data/Smith/a b.svs': no", "'S': no"),
        ("/data/Smith/a b.svs2 is another file", "F/(withheld)"),
        ("/data/Smith/unknown name.dcm; copy it\nnext line", "F/(withheld)\nnext line"),
        ("see /data/Smith", "see F"),
        ("see /data/Smithson", "see /data/Smithson"),
        ("/data/Smith/out/failures.csv lists them", "/data/Smith/out/failures.csv lists them"),
        ("a b.svs, 'O\\'Hara' and Ünal_2", "S, 'P' and P_2"),
        ('json "\\u00dcnal", ascii \\xdcnal', 'json "P", ascii \\xdcnal'),
        ("Ünalan is no word of ours", "Ünalan is no word of ours"),
        ("7 of 9", "7 of 9"),
        ("", ""),
    ],
)
def test_a_scrubber_takes_whole_words_longest_first(text: str, said: str) -> None:
    scrubber = Scrubber()
    scrubber.keep(Path("/data/Smith/out"))
    scrubber.learn_folder(Path("/data/Smith"), "F")
    scrubber.learn_file(Path("/data/Smith/a b.svs"), "S")
    for word in ("O'Hara", "O\"Hara'", "Ünal", "7"):
        scrubber.learn(word, "P")
    scrubber.learn("O\\'Hara", "P")
    assert scrubber(text) == said


def test_a_path_through_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "Smith").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "Smith")
    scrubber = Scrubber()
    scrubber.learn_file(tmp_path / "link" / "a.svs", "S")
    assert scrubber(f"{tmp_path / 'Smith' / 'a.svs'} {tmp_path / 'link' / 'a.svs'}") == "S S"


def test_the_time_to_scrub_does_not_grow_with_the_slides() -> None:
    scrubber, asked = Scrubber(), []

    class Counted(dict[str, str]):
        def __contains__(self, word: object) -> bool:
            asked.append(word)
            return super().__contains__(word)

    for number in range(5000):
        scrubber.learn(f"slide-{number:05d}", "S")
    scrubber._shown = Counted(scrubber._shown)
    assert scrubber("slide-00017 cannot be read") == "S cannot be read"
    assert len(asked) < 30


def test_logs_are_scrubbed_whoever_writes_them(caplog: pytest.LogCaptureFixture) -> None:
    scrubber = Scrubber()
    scrubber.learn("Smith", "S")
    elsewhere = logging.LogRecord("pathfm", logging.WARNING, "x.py", 1, "another process: %s", ("Smith",), None)
    with caplog.at_level(logging.DEBUG), scrubbing(scrubber):
        logger.info("of %s", Path("/a/Smith"))
        logging.getLogger("some.library").debug("%s", {"patient": "Smith"})
        logger.warning("%d is no number", "Smith")
        logger.handle(elsewhere)
        try:
            raise ValueError(*(convert("Smi" + "th") for convert in (str, Path)), 3)  # its line stands in the log
        except ValueError:
            logging.getLogger("other").exception("it says")
    assert "Smith" not in caplog.text
    assert "of /a/S" in caplog.text
    assert "another process: S" in caplog.text
    assert "S is no number" not in caplog.text
    logger.warning("Smith again")
    assert "Smith again" in caplog.text


def test_exceptions_are_scrubbed_with_all_that_they_come_from() -> None:
    scrubber = Scrubber()
    scrubber.learn("/data/Smith.svs", "S")

    def fails() -> None:
        try:
            try:
                Path("/data/Smith.svs").read_text()
            except OSError as error:
                error.add_note("when reading /data/Smith.svs")
                raise ExceptionGroup("/data/Smith.svs", [KeyError("/data/Smith.svs")]) from error
        except ExceptionGroup as error:
            path = Path("/data/Smith.svs")
            raise SlideUnreadableError(path, "unreadable", f"{path} is gone") from error

    with pytest.raises(SlideUnreadableError) as caught, scrubbing(scrubber):
        fails()
    error = caught.value
    assert (str(error), error.message, error.path) == ("S is gone", "S is gone", Path("S"))
    assert "Smith" not in repr(error.__cause__)
    cause = error.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert isinstance(cause.__cause__, OSError)
    assert (cause.__cause__.filename, cause.__cause__.filename2) == ("S", None)
    assert cause.__cause__.__notes__ == ["when reading S"]
    assert str(cause.__cause__).endswith("'S'")


def test_an_unknown_name_does_not_bring_the_known_ones_along() -> None:
    scrubber = Scrubber()
    scrubber.learn("Smith", "S")
    with pytest.raises(UnknownNameError) as caught, scrubbing(scrubber):
        raise UnknownNameError("label", "smth", ["Smith", "other"], "")
    assert caught.value.near == ["S"]
    assert "Smith" not in str(caught.value)


def test_a_failure_has_neither_path_nor_name_of_the_file_while_these_are_withheld() -> None:
    error = SlideUnreadableError(Path("/data/Smith.svs"), "unreadable", "/data/Smith.svs is gone; Smith.svs")
    assert Failure.of("x", error) == Failure("x", "/data/Smith.svs", "unreadable", error.message)
    scrubber = Scrubber()
    scrubber.learn_file(error.path, "S")
    with scrubbing(scrubber):
        assert Failure.of("x", error) == Failure("x", "", "unreadable", "S is gone; S")
        assert withheld("Smith.svs") == "S"
    assert withheld("Smith.svs") == "Smith.svs"


def test_the_ids_of_a_cohort_are_pseudonyms_before_anything_can_be_said_of_them(tmp_path: Path) -> None:
    rows = ["Smith.svs,Jane Smith,x/Smith.svs", "Jones,Jane Smith,"]
    cohort = read_cohort(table(tmp_path / "Dr House.csv", *rows), NAMES)
    assert cohort.table["slide_id"].tolist() == [NAMES.slide("Smith"), NAMES.slide("Jones")]
    assert cohort.table["patient_id"].tolist() == [NAMES.patient("Jane Smith")] * 2
    assert cohort.original_ids == ("Smith", "Jones")
    assert cohort.source == Path("the cohort table")
    assert cohort.table["path"][0] == tmp_path / "x/Smith.svs"
    assert read_cohort(tmp_path / "Dr House.csv").original_ids == ()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("slide_id,patient_id\nSmith,p\nSmith,p\n", CohortError, "stands in rows 2, 3"),
        ("Smith,Jane,7\nJones,Jim,8\n", CohortError, "lacks the column slide_id and patient_id among its 3"),
        ("slide_id,patient_id,Smith,Smith\n1,1,1,1\n", CohortError, "two columns of one name"),
        ("slide_id,patient_id,split\nx,p,Smith\n", CohortError, "split holds something unknown in row 2"),
        ("slide_id,patient_id,mpp\nx,p,Smith\n", CohortError, "mpp is no number in row 2"),
        ("slide_id,patient_id,split\nx,Smith,train\ny,Smith,test\n", LeakageError, "stands in several splits"),
        ("slide_id,patient_id\nSmith,\n", CohortError, "patient_id is empty in row 2"),
        ("slide_id,patient_id\nSmith,p,p\n", CohortError, "row 2 has 3 cells"),
        ('slide_id,patient_id\n"Smith', CohortError, "cannot be read as a CSV table"),
    ],
)
def test_a_table_that_cannot_be_used_names_rows_and_nobody(
    tmp_path: Path, text: str, error: type[CohortError], says: str
) -> None:
    (tmp_path / "cohort.csv").write_text(text)
    with pytest.raises(error, match=says) as caught:
        read_cohort(tmp_path / "cohort.csv", NAMES)
    assert "Smith" not in str(caught.value)


def test_slides_get_the_pseudonyms_of_their_cohort_also_from_a_folder(tmp_path: Path) -> None:
    for name in ("Smith", "x/Jones"):
        path = tmp_path / "slides" / f"{name}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pyramid(path, waves(70, 70, 0.5), 0.5)
    cohort = table(tmp_path / "cohort.csv", "Jane-1,Jane,slides/Smith.tiff")
    slides = find_slides([tmp_path / "slides", cohort], names=NAMES)
    assert [(s.slide_id, s.original_id, s.path.name) for s in slides] == [
        (NAMES.slide("Jane-1"), "Jane-1", "Smith.tiff"),
        (NAMES.slide("Jones"), "Jones", "Jones.tiff"),
    ]
    said = NAMES.scrubber(f"{tmp_path}/slides/Smith.tiff Smith.tiff Smith Jane-1 {tmp_path}/slides/x/other.tiff gone")
    assert said == " ".join([NAMES.slide("Jane-1")] * 4 + ["the folder of a slide/(withheld)"])


def test_an_id_that_is_no_file_name_can_have_a_pseudonym(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / ("ä" * 102 + ".tiff"), waves(70, 70, 0.5))
    assert find_slides([path], names=NAMES)[0].slide_id == NAMES.slide("ä" * 102)


def test_two_slides_of_one_name_are_refused_and_neither_is_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_pyramid(tmp_path / folder / "Smith.tiff", waves(70, 70, 0.5))
    make_key(tmp_path / "key")
    with pytest.raises(InputError, match="two slides are called") as caught:
        tile([tmp_path / "a", tmp_path / "b"], tmp_path / "out", pseudonymise=tmp_path / "key")
    assert "Smith" not in str(caught.value)
    assert str(tmp_path / "a") not in str(caught.value)


def test_outlines_are_found_by_the_pseudonym_first_and_by_the_original_id(tmp_path: Path, key: Path) -> None:
    write_scan(tmp_path / "slides" / "Smith.svs", 0, dark=True)
    names = Pseudonyms(read_key(key))
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    square = [[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]]

    def draw(name: str, size: int) -> None:
        ring = [[x * size // 256, y * size // 256] for x, y in square]
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
        (outlines / f"{name}.geojson").write_text(json.dumps(feature))

    def area(out: str) -> float:
        done = tile([tmp_path / "slides"], tmp_path / out, outlines=outlines, pseudonymise=key)
        assert done["note"][0].startswith("tissue by outline")
        return float(done["tissue_mm2"][0])

    draw("Smith", 256)
    assert area("first") == pytest.approx(0.128**2, abs=0.002)
    draw(names.slide("Smith"), 128)
    assert area("second") == pytest.approx(0.064**2, abs=0.002)


def test_what_tile_wrote_under_pseudonyms_can_be_edited_and_passed_back(tmp_path: Path, key: Path) -> None:
    write_scan(tmp_path / "slides" / "Smith.svs", 0, dark=True)
    tile([tmp_path / "slides"], tmp_path / "out", pseudonymise=key)
    (outline,) = (tmp_path / "out").glob("*.geojson")
    assert outline.stem == Pseudonyms(read_key(key)).slide("Smith")
    outline.write_text('{"type": "FeatureCollection", "features": []}')
    done = tile([tmp_path / "slides"], tmp_path / "out", outlines=tmp_path / "out", pseudonymise=key)
    assert done["tissue_mm2"].tolist() == [0]


def test_the_settings_beside_the_results_name_nobody_and_say_everything_else(tmp_path: Path, key: Path) -> None:
    write_scan(tmp_path / "Smith" / "a.svs", 0, dark=True)
    words = ["tile", "--slides", str(tmp_path / "Smith"), "--out", str(tmp_path / "out"), "--tissue.black", "60"]
    assert main([*words, "--pseudonymise", str(key)]) == 0
    text = (tmp_path / "out" / "pathfm-tile.yaml").read_text()
    assert "Smith" not in text
    assert str(key) not in text
    assert "black: 60" in text
    assert text.count("(withheld)") == 2


def test_a_cohort_with_its_true_ids_joins_a_cache_of_pseudonyms(
    embeddings_cohort: Callable[..., EmbeddingsCohort], tmp_path: Path, key: Path
) -> None:
    names = Pseudonyms(read_key(key))
    true, private = embeddings_cohort(patients=8, name="true"), embeddings_cohort(patients=0, name="private", slides=0)
    rows = true.frame()
    with private_run(key, private.embeddings):
        _renamed_cache(true, private, names)
    done = crossval(
        true.table, [private.embeddings], "cancer", tmp_path / "crossval", 2, training=SETTINGS, pseudonymise=key
    )
    assert done.predictions["cancer"]["slide_id"].tolist() == rows["slide_id"].map(names.slide).tolist()
    assert done.predictions["cancer"]["patient_id"].tolist() == rows["patient_id"].map(names.patient).tolist()
    rows.assign(source=COLUMNS["source"], credit=COLUMNS["credit"], notes="somebody").to_csv(true.table, index=False)
    page = report(
        tmp_path / "r.html", tmp_path / "crossval", [private.embeddings], true.table, pseudonymise=key, credit="notes"
    ).read_text()
    assert "Source of the slides: somebody." in page
    assert not any(word in page for word in (COLUMNS["source"], COLUMNS["credit"], "true.csv", "p03-0"))
    model = train(true.table, [private.embeddings], "cancer", tmp_path / "model", training=SETTINGS, pseudonymise=key)
    assert set(model.model.training["patients"]) == set(map(names.patient, rows["patient_id"]))
    with pytest.raises(LeakageError, match=f"share patients {min(model.model.training['patients'])}") as caught:
        evaluate(tmp_path / "model", true.table, [private.embeddings], tmp_path / "e", pseudonymise=key)
    assert "p03" not in str(caught.value)
    with pytest.raises(InputError, match="was made without --pseudonymise"):
        train(true.table, [true.embeddings], "cancer", tmp_path / "no", training=SETTINGS, pseudonymise=key)


def _renamed_cache(true: EmbeddingsCohort, private: EmbeddingsCohort, names: Pseudonyms) -> None:
    from dataclasses import replace

    from pathfm.embeddings import read_embeddings, write_embeddings

    for slide_id in true.frame()["slide_id"]:
        one = read_embeddings(true.file(slide_id))
        write_embeddings(private.file(names.slide(slide_id)), replace(one, slide_id=names.slide(slide_id)))


def test_a_report_without_a_credit_column_says_which_there_are(
    embeddings_cohort: Callable[..., EmbeddingsCohort], tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=8)
    crossval(cohort.table, [cohort.embeddings], "cancer", tmp_path / "crossval", 2, training=SETTINGS)
    with pytest.raises(UnknownNameError, match="unknown credit column 'sit'; near: site"):
        report(tmp_path / "r.html", tmp_path / "crossval", [cohort.embeddings], cohort.table, credit="sit")


@pytest.mark.parametrize("key_file", [None, "key"])
def test_without_a_key_nothing_changes_and_with_one_all_is_undone_afterwards(
    tmp_path: Path, key_file: str | None
) -> None:
    before = (logging.getLogRecordFactory(), list(logger.filters), os.umask(0o022))
    os.umask(before[2])
    with private_run(tmp_path / key_file if key_file else None, tmp_path / "out") as names:
        assert (names is None) == (key_file is None)
    with (
        nullcontext() if key_file is None else pytest.raises(CohortError),
        private_run(tmp_path / key_file if key_file else None, tmp_path / "out"),
    ):
        if key_file:
            raise CohortError
    assert (logging.getLogRecordFactory(), list(logger.filters)) == before[:2]
    assert (tmp_path / "out").exists() == (key_file is not None)


def test_pseudonyms_of_a_whole_cohort_differ() -> None:
    ids = pd.Series([f"S{n}" for n in range(10_000)])
    assert ids.map(NAMES.slide).nunique() == ids.map(NAMES.patient).nunique() == 10_000


def test_true_names_are_not_put_beside_pseudonyms(tmp_path: Path, key: Path) -> None:
    with private_run(key, tmp_path / "out"):
        pass
    with pytest.raises(InputError, match="holds pseudonyms"), private_run(None, tmp_path / "out"):
        pass
