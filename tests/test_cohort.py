from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pathfm.cohort import read_cohort
from pathfm.errors import CohortError, LeakageError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path


def table(folder: Path, text: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_table_and_other_columns_are_kept(tmp_path: Path) -> None:
    cohort = read_cohort(
        table(tmp_path, "slide_id,patient_id,path,mpp,cancer,age\ns1,p1,slides/s1.svs,0.5,1,61\ns2,p2,,,0,\n")
    )
    assert cohort.table["path"].tolist() == [tmp_path / "slides/s1.svs", None]
    assert cohort.table["mpp"].tolist()[0] == 0.5
    assert cohort.table["age"].tolist() == ["61", ""]
    assert cohort.labels("cancer").to_dict() == {"s1": "1", "s2": "0"}


@pytest.mark.parametrize("header", ["case_id,slide_id,label", "PATIENT,FILENAME,label", "patient_id,slide_id,label"])
def test_the_headers_of_clam_and_stamp_are_understood(tmp_path: Path, header: str) -> None:
    cohort = read_cohort(table(tmp_path, f"{header}\np1,s1.svs,a\np1,TCGA-1.2.3,b\n"))
    assert cohort.patients().to_dict() == {"s1": "p1", "TCGA-1.2.3": "p1"}


def test_labels_that_a_spreadsheet_turned_into_floats_are_one_class(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,patient_id,grade\na,1,1.0\nb,2,10\nc,3,1\nd,4,\ne,5,2\n"))
    assert cohort.classes("grade") == ["1", "2", "10"]
    assert cohort.labels("grade")["d"] == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slide_id,patient_id\na,1\nb,2\na,3\n", "rows 2, 4"),
        ("slide_id,patient_id\n,1\n", "slide_id is empty in row 2"),
        ("slide_id,patient_id\na,\n", "patient_id is empty in row 2"),
        ("slide_id,patient_id,mpp\na,1,fine\n", "mpp is no number in row 2"),
        ("slide_id,patient_id,split\na,1,holdout\n", "use train, val or test"),
        ("slide,patient_id\na,1\n", "lacks the column slide_id"),
        ("slide_id,patient_id\n", "add one row a slide"),
        ("", "save it as UTF-8 CSV"),
        ("slide_id,patient_id,cancer\na,1,1\nb,2,1,\n", "row 3 has 4 cells, the header 3"),
        ("slide_id,case_id,PATIENT\na,1,1\n", "two columns patient_id"),
        ("slide_id,patient_id,site, site\na,1,x,y\n", "two columns site"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_rows_and_the_remedy(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CohortError, match=says):
        read_cohort(table(tmp_path, text))


def test_cells_that_say_that_nothing_is_known_are_no_class(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,patient_id,cancer\na,1,0\nb,2,1.00\nc,3,NA\nd,4,nan\ne,5,none\n"))
    assert cohort.labels("cancer").tolist() == ["0", "1", "", "", "none"]
    assert cohort.classes("cancer") == ["0", "1", "none"]


def test_blanks_around_a_site_make_no_second_site(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,patient_id,site\na,1,north \nb,2,north\n"))
    assert set(cohort.table["site"]) == {"north"}


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no cohort table at .*no\.csv"):
        read_cohort(tmp_path / "no.csv")


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeakageError, match="patient p1"):
        read_cohort(table(tmp_path, "slide_id,patient_id,split\na,p1,train\nb,p1,test\nc,p2,test\n"))


def test_an_unknown_label_lists_near_columns(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,patient_id,cancer,organ,diagnosis\na,1,1,lung,x\n"))
    with pytest.raises(UnknownNameError, match="near: cancer"):
        cohort.labels("cancr")


def test_a_label_column_without_a_single_value_is_an_error(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,patient_id,cancer\na,1,\nb,2,\n"))
    with pytest.raises(CohortError, match="empty in every row"):
        cohort.labels("cancer")
