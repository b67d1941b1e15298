from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pyramids import waves, write_pyramid

from pathfm.errors import CohortError, InputError, SlideUnreadableError
from pathfm.sources import SlideSource, find_slides

REAL = os.environ.get("PATHFM_TEST_SLIDES")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three slides at two depths, among what lies about in a real folder."""
    for name in ("b.tiff", "a.svs", "deep/er/c.TIF", ".hidden.tiff", ".trash/d.tiff"):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pyramid(path, waves(70, 70, 0.5), 0.5)
    (tmp_path / "slides" / "notes.txt").write_text("x")
    Image.new("RGB", (9, 9)).save(tmp_path / "slides" / "b.png")
    return tmp_path / "slides"


def cohort(folder: Path, *rows: str) -> Path:
    table = folder.parent / "cohort.csv"
    table.write_text("\n".join(["slide_id,patient_id,path,mpp", *rows]) + "\n")
    return table


def ids(slides: list[SlideSource]) -> list[str]:
    return [slide.slide_id for slide in slides]


def test_a_folder_is_searched_to_any_depth_in_order_without_hidden_files_and_thumbnails(folder: Path) -> None:
    slides = find_slides([folder])
    assert ids(slides) == ["a", "b", "c"]
    assert [s.path for s in slides] == [folder / "a.svs", folder / "b.tiff", folder / "deep/er/c.TIF"]
    assert all(s.mpp_override is None for s in slides)


def test_plain_images_count_where_no_slide_is(tmp_path: Path) -> None:
    for name in ("x.png", "y.JPG"):
        Image.new("RGB", (90, 90)).save(tmp_path / name, "png")
    assert ids(find_slides([tmp_path], 0.5)) == ["x", "y"]


def test_named_files_are_taken_as_they_are(folder: Path) -> None:
    slides = find_slides([folder / "b.png", folder / "a.svs"], 0.25)
    assert [(s.slide_id, s.mpp_override, s.mpp_source) for s in slides] == [
        ("b", 0.25, "override"),
        ("a", 0.25, "override"),
    ]


def test_a_cohorts_mpp_wins_over_the_flag_and_its_paths_are_relative_to_it(folder: Path) -> None:
    table = cohort(folder, "one,p1,slides/a.svs,0.4", "two,p2,slides/b.tiff,")
    slides = find_slides([table], 0.25)
    assert [(s.slide_id, s.mpp_override, s.mpp_source) for s in slides] == [
        ("one", 0.4, "cohort"),
        ("two", 0.25, "override"),
    ]
    with slides[0].open() as slide:
        assert (slide.slide_id, slide.mpp, slide.mpp_source, slide.mpp_stated) == (
            "one",
            0.4,
            "cohort",
            pytest.approx(0.5),
        )
    with find_slides([table])[1].open() as slide:
        assert (slide.slide_id, slide.mpp_source) == ("two", "metadata")


def test_a_slide_given_twice_is_one_and_the_cohorts_row_counts(folder: Path) -> None:
    table = cohort(folder, "one,p1,slides/a.svs,0.4")
    for sources in ([folder, table], [table, folder], [table, folder, folder / "b.tiff"]):
        assert ids(find_slides(sources)) == ["one", "b", "c"]


def test_a_file_that_the_cohort_names_and_nobody_has_fails_alone(folder: Path) -> None:
    slides = find_slides([cohort(folder, "gone,p1,slides/gone.svs,", "one,p2,slides/a.svs,")])
    assert ids(slides) == ["gone", "one"]
    with pytest.raises(SlideUnreadableError, match="does not exist"):
        slides[0].open()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["one,p1,,"], "path is empty in row 2"),
        (["one,p1,slides/a.svs,", "two,p1,,"], "path is empty in row 3"),
        (["one,p1,slides/a.svs,", "two,p2,slides/a.svs,"], "one and two have the same path"),
    ],
)
def test_cohort_rows_that_lead_to_no_slide_are_named(folder: Path, rows: list[str], said: str) -> None:
    with pytest.raises(CohortError, match=said):
        find_slides([cohort(folder, *rows)])


@pytest.mark.parametrize("mpp", ["28", "0.001"])
def test_an_absurd_mpp_of_the_cohort_is_refused_with_its_slide(folder: Path, mpp: str) -> None:
    with pytest.raises(InputError, match=r"mpp .* of one is outside"):
        find_slides([cohort(folder, f"one,p1,slides/a.svs,{mpp}")])


@pytest.mark.parametrize("slide_id", [".one", "..", "a\\b"])
def test_an_id_that_would_leave_the_output_folder_is_refused(folder: Path, slide_id: str) -> None:
    with pytest.raises(InputError, match="is no file name"):
        find_slides([cohort(folder, f"{slide_id},p1,slides/a.svs,")])


def test_a_name_that_no_output_file_can_have_is_refused_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 204 bytes, over 200"):
        find_slides([write_pyramid(tmp_path / ("ä" * 102 + ".tiff"), waves(70, 70, 0.5))])
    latin = tmp_path / "latin"
    latin.mkdir()
    try:
        Path(os.fsdecode(bytes(latin) + b"/gr\xfcn.svs")).write_bytes(b"x")
    except OSError:
        pytest.skip("this disk takes UTF-8 names alone")
    with pytest.raises(InputError, match=r"gr\\udcfcn\.svs is not UTF-8"):
        find_slides([latin])


def test_linked_folders_are_searched_and_loops_end(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    write_pyramid(folder.parent / "elsewhere" / "far.tiff", waves(70, 70, 0.5))
    (folder / "link").symlink_to(folder.parent / "elsewhere", target_is_directory=True)
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "adeep").symlink_to(folder / "deep", target_is_directory=True)
    slides = find_slides([folder])
    assert ids(slides) == ["a", "b", "c", "far"]
    assert [s.path for s in slides[2:]] == [folder / "deep/er/c.TIF", folder / "link/far.tiff"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named_and_the_others_count(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "deep").chmod(0)
    with caplog.at_level(logging.WARNING):
        slides = find_slides([folder])
    (folder / "deep").chmod(0o755)
    assert ids(slides) == ["a", "b"]
    assert f"{folder / 'deep'} cannot be searched" in caplog.text


def test_an_index_that_cannot_be_read_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("scan.vms", "other.tif"):
        (tmp_path / name).write_bytes(b"II*\0")

    def refuse(*_args: object, **_kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root, who runs this in a container, may read everything
    assert ids(find_slides([tmp_path])) == ["other", "scan"]
    assert "scan.vms: its files cannot be listed (Permission denied)" in caplog.text


def test_two_slides_of_one_name_are_refused_and_both_named(folder: Path) -> None:
    (folder / "again").mkdir()
    shutil.copy(folder / "a.svs", folder / "again" / "a.tiff")
    with pytest.raises(InputError, match=r"a\.svs and .*again/a\.tiff"):
        find_slides([folder])


def test_nothing_to_find_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(InputError, match="no slides in"):
        find_slides([tmp_path])
    with pytest.raises(InputError, match="no file or folder at"):
        find_slides([tmp_path / "typo"])
    with pytest.raises(InputError, match="no slides given"):
        find_slides([])
    with pytest.raises(InputError, match="--mpp-override"):
        find_slides([tmp_path], 50.0)


def test_files_that_an_index_names_are_no_slides_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "scan.vms").write_text("[Virtual Microscope Specimen]\nImageFile=scan.tif\nMapFile=map.tif\n")
    for name in ("scan.tif", "map.tif", "other.tif"):
        (tmp_path / name).write_bytes(b"II*\0")
    assert ids(find_slides([tmp_path])) == ["other", "scan"]


def test_a_source_crosses_a_process_boundary(folder: Path) -> None:
    source = SlideSource("one", folder / "a.svs", 0.5, "cohort")
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.skipif(not REAL, reason="PATHFM_TEST_SLIDES is not set")
def test_the_files_of_a_real_dicom_series_are_one_slide(tmp_path: Path) -> None:
    shutil.copy(Path(str(REAL)) / "hostile/boxes_0.dcm", tmp_path / "boxes_0.dcm")
    shutil.copy(Path(str(REAL)) / "hostile/boxes_0.dcm", tmp_path / "boxes_1.dcm")
    assert ids(find_slides([tmp_path])) == ["boxes_0"]
    assert find_slides([tmp_path / "boxes_1.dcm"]) == find_slides([tmp_path])
