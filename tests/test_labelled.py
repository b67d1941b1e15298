from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings

from pathfm.cohort import read_cohort
from pathfm.embeddings import write_embeddings
from pathfm.errors import (
    CohortError,
    EmbeddingsStaleError,
    LeakageError,
    SeveralRecipesError,
    UnknownNameError,
)
from pathfm.failures import Failure, write_failures
from pathfm.labelled import LabelledSlides, labelled_slides

Make = Callable[..., EmbeddingsCohort]


def _join(cohort: EmbeddingsCohort, label: str = "cancer") -> LabelledSlides:
    return labelled_slides(read_cohort(cohort.table), [cohort.embeddings], label)


def test_every_labelled_slide_is_joined_with_its_file_in_the_order_of_the_cohort(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4, slides=2, classes=3)
    cohort.rewrite(cohort.frame().iloc[::-1])
    slides = _join(cohort)
    assert list(slides.table["slide_id"]) == list(cohort.frame()["slide_id"])
    assert list(slides.table["files"]) == [((cohort.file(slide),),) for slide in slides.table["slide_id"]]
    assert slides.task.targets[0].groups == ["0", "1", "2"]
    assert slides.task.targets[0].texts(slides.truth) == list(slides.table["label"])
    assert slides.bags().dim == 8
    assert slides.recipe == RECIPE
    assert slides.left_out == []


def test_slides_without_label_or_tissue_are_left_out_and_listed(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=6)
    frame = cohort.frame()
    frame.loc[0, "cancer"] = ""
    cohort.rewrite(frame)
    write_embeddings(cohort.file("p02-0"), planted_embeddings("p02-0", 0, n=0))
    slides = _join(cohort)
    assert [tuple(one) for one in slides.left_out] == [("p00-0", "no_label"), ("p02-0", "no_tissue")]
    assert "p00-0" not in set(slides.table["slide_id"])
    assert set(slides.usable["slide_id"]) == {"p01-0", "p03-0", "p04-0", "p05-0"}


def test_a_slide_whose_extraction_failed_is_left_out_and_one_never_extracted_is_an_error(
    embeddings_cohort: Make,
) -> None:
    cohort = embeddings_cohort(patients=6)
    cohort.file("p03-0").unlink()
    with pytest.raises(CohortError, match=r"1 labelled slides.*p03-0 \(rows 5\); run pathfm extract"):
        _join(cohort)
    write_failures(cohort.embeddings / "failures.csv", [Failure("p03-0", "p03-0.svs", "truncated", "it ends early")])
    assert [tuple(one) for one in _join(cohort).left_out] == [("p03-0", "no_embeddings")]
    by_folder = labelled_slides(read_cohort(cohort.table), [cohort.folder], "cancer")
    assert [tuple(one) for one in by_folder.left_out] == [("p03-0", "no_embeddings")]


def test_files_of_slides_that_the_cohort_does_not_name_are_not_used(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4)
    write_embeddings(cohort.file("stranger"), planted_embeddings("stranger", 1))
    assert "stranger" not in set(_join(cohort).table["slide_id"])


def test_a_cohort_none_of_whose_slides_has_tissue_is_an_error(embeddings_cohort: Make) -> None:
    with pytest.raises(CohortError, match="none of the 4 labelled slides"):
        _join(embeddings_cohort(patients=4, n=0))


def test_a_label_that_is_no_column_lists_those_that_are(embeddings_cohort: Make) -> None:
    with pytest.raises(UnknownNameError, match=r"'cancr'.*cancer"):
        _join(embeddings_cohort(patients=2), "cancr")


def test_a_folder_that_mixes_recipes_names_the_key_that_differs(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4)
    other = RECIPE | {"tiles": RECIPE["tiles"] | {"mpp": 1.0}}
    write_embeddings(cohort.file("p02-0"), planted_embeddings("p02-0", 0, recipe=other))
    with pytest.raises(EmbeddingsStaleError, match=r"p02-0.*tiles\.mpp is 1\.0, wanted 0\.5"):
        _join(cohort)


def test_a_root_with_several_recipes_lists_them(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=2)
    write_embeddings(cohort.embeddings / "other-12345678/p00-0.h5", planted_embeddings("p00-0", 0))
    with pytest.raises(SeveralRecipesError, match="other-12345678"):
        _join(cohort)


def test_a_file_that_holds_another_slide_than_its_name_says_is_refused(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4)
    cohort.file("p01-0").rename(cohort.file("p02-0"))
    write_embeddings(cohort.file("p01-0"), planted_embeddings("p01-0", 1))
    with pytest.raises(EmbeddingsStaleError, match=r"p02-0\.h5 holds slide p01-0"):
        _join(cohort)


def test_one_scan_under_two_patients_is_a_leak_and_under_one_patient_is_not(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4, slides=2)
    first = planted_embeddings("p00-0", 0).slide_digest
    write_embeddings(cohort.file("p00-1"), replace(planted_embeddings("p00-1", 0), slide_digest=first))
    _join(cohort)
    write_embeddings(cohort.file("p02-0"), replace(planted_embeddings("p02-0", 0), slide_digest=first))
    with pytest.raises(LeakageError, match=r"p00-0, p00-1, p02-0 are the same scan under the patients p00, p02"):
        _join(cohort)


def test_scans_without_a_digest_are_not_taken_for_one_another(embeddings_cohort: Make) -> None:
    cohort = embeddings_cohort(patients=4)
    for slide in cohort.frame()["slide_id"]:
        write_embeddings(cohort.file(slide), replace(planted_embeddings(slide, 0), slide_digest=""))
    assert len(_join(cohort).usable) == 4
