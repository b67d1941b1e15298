from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings

from pathfm.cli import main
from pathfm.cohort import Cohort, read_cohort
from pathfm.compare import Comparison, compare
from pathfm.crossval import crossval
from pathfm.embeddings import write_embeddings
from pathfm.errors import CohortError, EmbeddingsDamagedError, InputError, UnknownNameError
from pathfm.grid import named_backbones, reference_of, shared_slides
from pathfm.labelled import LabelledSlides, labelled_slides
from pathfm.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=4, hidden=16, attention=8, lr=1e-2, device="cpu")


def _recipe(name: str, size_px: int = 256) -> dict[str, Any]:
    return {"backbone": {"name": name, "licence": "Apache-2.0"}, "tiles": RECIPE["tiles"] | {"size_px": size_px}}


@pytest.fixture
def two(embeddings_cohort: Make) -> EmbeddingsCohort:
    """A cohort with embeddings of the backbones alpha and beta below one root; those of beta are noise."""
    embeddings_cohort(patients=12, recipe=_recipe("alpha"))
    cohort = embeddings_cohort(patients=12, recipe=_recipe("beta"), seed=1)
    for slide in cohort.frame()["slide_id"]:
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 0, recipe=_recipe("beta"), seed=1))
    return cohort


def _compare(cohort: EmbeddingsCohort, heads: str = "gated-abmil,mean", **more: Any) -> Comparison:
    how = {"folds": 2, "training": QUICK} | more
    return compare(cohort.table, cohort.embeddings, "cancer", cohort.table.parent / "compared", heads, **how)


def test_each_cell_is_the_cross_validation_of_that_head_alone_on_the_same_folds(two: EmbeddingsCohort) -> None:
    result = _compare(two, "gated-abmil,mean")
    assert [cell.name for cell in result.cells] == ["alpha/gated-abmil", "alpha/mean", "beta/gated-abmil", "beta/mean"]
    alpha = next(two.embeddings.glob("alpha-*"))
    alone = crossval(two.table, [alpha], "cancer", two.table.parent / "alone", 2, "mean", training=QUICK)
    cell = result.cells[1]
    assert cell.figure == alone.metrics["cancer"]["patient"]["auroc"]
    for name in ("predictions.csv", "metrics.json", "folds.csv"):
        assert (result.folder / "alpha/mean" / name).read_bytes() == (alone.folder / name).read_bytes()
    folds = {(result.folder / cell.name / "folds.csv").read_text() for cell in result.cells}
    assert len(folds) == 1


def test_a_cell_is_no_different_from_itself_and_a_difference_turned_round_has_the_other_sign(
    two: EmbeddingsCohort,
) -> None:
    result = _compare(two, "mean", reference="alpha/mean")
    alpha, beta = result.cells
    assert set(alpha.difference.values()) == {0.0}
    assert beta.difference["high"] is not None
    assert beta.difference["value"] == pytest.approx(beta.figure["value"] - alpha.figure["value"])
    turned = _compare(two, "mean", reference="beta/mean")
    assert turned.reference == "beta/mean"
    assert turned.cells[0].difference["low"] == pytest.approx(-beta.difference["high"])
    assert turned.cells[1].difference["value"] == 0


def test_the_table_is_printed_and_written_with_what_it_does_not_say(
    two: EmbeddingsCohort, capsys: pytest.CaptureFixture[str]
) -> None:
    out = two.table.parent / "compared"
    words = ["--cohort", str(two.table), "--embeddings", str(two.embeddings), "--label", "cancer", "--out", str(out)]
    quick = ["--training.epochs", "2", "--training.hidden", "8", "--training.device", "cpu", "--folds", "2"]
    assert main(["compare", *words, *quick, "--heads", "mean,max", "--backbones", "beta,alpha+beta"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:3] == ["backbone", "head", "auroc"]
    assert "minus beta/mean" in said[1]
    assert [line.split()[:2] for line in said[2:6]] == [
        ["beta", "mean"],
        ["beta", "max"],
        ["alpha+beta", "mean"],
        ["alpha+beta", "max"],
    ]
    table = pd.read_csv(out / "compare.csv")
    assert list(table.columns) == [
        *("backbone", "head", "auroc", "low", "high"),
        *("difference", "difference_low", "difference_high", "p_delong", "parameters", "seconds"),
    ]
    document = json.loads((out / "compare.json").read_text())
    assert document["reference"] == "beta/mean"
    assert [cell["folder"] for cell in document["cells"]] == [
        f"{b}/{h}" for b, h in table[["backbone", "head"]].to_numpy()
    ]
    within = table[(table["difference_low"] <= 0) & (table["difference_high"] >= 0)].iloc[1:]
    note = next(line for line in document["notes"] if "cannot tell from beta/mean" in line)
    assert all(f"{row.backbone}/{row.head}" in note for row in within.itertuples())
    assert any("each of the 3 intervals is a 95 % one by itself" in line for line in said)
    # 16 numbers in place of 8 reach the layer of 8
    assert table["parameters"].tolist()[2] - table["parameters"].tolist()[0] == 8 * 8


def test_run_again_no_cell_is_trained_and_the_same_is_said(two: EmbeddingsCohort) -> None:
    first = _compare(two, "mean", backbones="alpha")
    assert first.cells[0].seconds is not None
    written = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")}
    assert len(written) == 2 + 2  # those of the folds, of the ensemble, and its reference
    assert _compare(two, "mean", backbones="alpha") == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")} == written
    # what a part of the folds takes is not what all take
    (first.folder / "alpha/mean/seconds.json").write_text("{")
    (first.folder / "alpha/mean/folds/0/model.json").unlink()
    for _ in range(2):
        again = _compare(two, "mean", backbones="alpha")
        assert again.cells == (first.cells[0]._replace(seconds=None),)
        assert "not known" in str(again)


def test_heads_share_what_is_read_of_a_backbone(two: EmbeddingsCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    seen = []

    def cross_validate(slides: LabelledSlides, place: Path, *how: Any) -> None:
        seen.append(slides.bags())
        if len(seen) == 4:
            raise Reached

    monkeypatch.setattr("pathfm.compare.cross_validate", cross_validate)
    monkeypatch.setattr("pathfm.compare._timed", lambda slides, place, how: (cross_validate(slides, place), None))
    with pytest.raises(Reached):
        _compare(two, "mean,max")
    assert [bags is seen[0] for bags in seen] == [True, True, False, False]
    assert seen[2] is seen[3]


def test_a_slide_that_one_backbone_lacks_is_left_out_of_all_cells_and_that_is_said(two: EmbeddingsCohort) -> None:
    write_embeddings(two.file("p03-0"), planted_embeddings("p03-0", 0, n=0, recipe=_recipe("beta")))
    result = _compare(two, "mean")
    assert "not every backbone has embeddings of it with tissue: p03-0" in result.notes[0]
    for cell in result.cells:
        table = pd.read_csv(result.folder / cell.name / "predictions.csv")
        assert len(table) == 11
        assert "p03-0" not in set(table["slide_id"])
        metrics = json.loads((result.folder / cell.name / "metrics.json").read_text())
        assert [one["slide_id"] for one in metrics["left_out"]] == ["p03-0"]


def test_a_slide_that_was_never_extracted_is_an_error_and_one_that_failed_is_left_out(two: EmbeddingsCohort) -> None:
    file = two.file("p03-0")
    file.unlink()
    with pytest.raises(CohortError, match=r"no embeddings of 1 labelled slides.*p03-0.*pathfm extract"):
        _compare(two, "mean")
    (file.parent / "failures.csv").write_text("slide_id,reason\np03-0,damaged\n")
    result = _compare(two, "mean")
    assert "not every backbone has embeddings of it with tissue: p03-0" in result.notes[0]


def test_a_patient_keeps_the_slides_that_all_backbones_have(embeddings_cohort: Make) -> None:
    embeddings_cohort(patients=8, slides=2, recipe=_recipe("alpha"))
    cohort = embeddings_cohort(patients=8, slides=2, recipe=_recipe("beta"))
    for slide in ("p03-0", "p04-0", "p04-1"):
        write_embeddings(cohort.file(slide), planted_embeddings(slide, 0, n=0, recipe=_recipe("beta")))

    def join(rows: Cohort) -> dict[str, LabelledSlides]:
        folders = sorted(cohort.embeddings.iterdir())
        return {folder.name: labelled_slides(rows, [folder], "cancer", unit="patient") for folder in folders}

    table = read_cohort(cohort.table)
    shared, notes = shared_slides(join(table), table, join)
    assert "with tissue: p03-0, p04-0, p04-1" in notes[0]
    assert len(shared) == 2
    for slides in shared.values():
        bags = slides.usable.set_index("patient_id")["slide_id"]
        assert set(bags.index) == {f"p{k:02d}" for k in range(8)} - {"p04"}
        assert (bags["p03"], bags["p02"]) == ("p03-1", "p02-0;p02-1")
        assert sorted(one.slide_id for one in slides.left_out) == ["p03-0", "p04-0", "p04-1"]


def test_several_targets_are_compared_by_the_one_that_is_named(two: EmbeddingsCohort) -> None:
    two.rewrite(two.frame().assign(grade=["low", "low", "high", "high"] * 3))
    out = two.table.parent / "several"
    with pytest.raises(InputError, match="pass --target the one to compare by, of cancer,grade"):
        compare(two.table, two.embeddings, "cancer,grade", out, "mean", "alpha", folds=2, training=QUICK)
    result = compare(
        two.table, two.embeddings, "cancer,grade", out, "mean", "alpha", target="grade", folds=2, training=QUICK
    )
    stated = json.loads((out / "alpha" / "mean" / "grade" / "metrics.json").read_text())
    assert (result.target, result.cells[0].figure) == ("grade", stated["patient"]["auroc"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with folders of embeddings, by their names."""
    for name in ("alpha-0123abcd", "beta-0123abcd", "beta-4567abcd", "timm--vit-base-89abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.h5").touch()
    return tmp_path


def test_backbones_are_found_by_their_names_or_those_of_their_folders(root: Path) -> None:
    alpha, first, second, vit = (
        root / name for name in ("alpha-0123abcd", "beta-0123abcd", "beta-4567abcd", "timm--vit-base-89abcdef")
    )
    assert named_backbones(root, None) == {
        "alpha": [alpha],
        "beta-0123abcd": [first],
        "beta-4567abcd": [second],
        "timm--vit-base": [vit],
    }
    asked = "timm/vit-base, beta-4567abcd+alpha"
    assert named_backbones(root, asked) == {"timm--vit-base": [vit], "beta-4567abcd+alpha": [second, alpha]}
    assert reference_of("timm/vit-base/mean", [("alpha", "max"), ("timm--vit-base", "mean")]) == "timm--vit-base/mean"


@pytest.mark.parametrize(
    ("backbones", "error", "says"),
    [
        ("alfa", UnknownNameError, "near: alpha"),
        ("alpha,alpha", InputError, "--backbones 'alpha,alpha'"),
        ("alpha+alpha", InputError, "write each once, with [+] between them"),
        ("beta", InputError, "beta stands for several folders of .*: beta-0123abcd, beta-4567abcd; pass"),
    ],
)
def test_backbones_that_are_not_there_or_not_clear_are_one_line(
    root: Path, backbones: str, error: type[InputError], says: str
) -> None:
    with pytest.raises(error, match=says):
        named_backbones(root, backbones)


def test_heads_and_references_that_nobody_knows_are_refused_before_any_training(tmp_path: Path, root: Path) -> None:
    how = {"label": "x", "out": tmp_path / "out", "backbones": "alpha"}
    with pytest.raises(UnknownNameError, match="near: mean"):
        compare(tmp_path / "c.csv", root, **how, heads="meen")
    with pytest.raises(InputError, match="--heads 'mean,,max' has an empty name, or one twice"):
        compare(tmp_path / "c.csv", root, **how, heads="mean,,max")
    options = TrainSettings(head_options={"instances": 4})
    with pytest.raises(UnknownNameError, match="unknown option of the head mean 'instances'"):
        compare(tmp_path / "c.csv", root, **how, heads="clam-sb,mean", training=options)
    with pytest.raises(UnknownNameError, match="unknown reference 'alpha/max'"):
        compare(tmp_path / "c.csv", root, **how, heads="mean", reference="alpha/max")
    assert not (tmp_path / "out").exists()
    with pytest.raises(EmbeddingsDamagedError, match="nothing holds no folder of embeddings; pass --embeddings"):
        named_backbones(tmp_path / "nothing", None)
