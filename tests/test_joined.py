"""Several caches of the same tiles as one: side by side in a bag, in a model, and all the way from slides to a score."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, EmbeddingsCohort, planted_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm.backbones import BACKBONES, Backbone, register_backbone
from pathfm.bags import BagDataset
from pathfm.cli import main
from pathfm.cohort import read_cohort
from pathfm.crossval import crossval
from pathfm.embeddings import read_embeddings, write_embeddings
from pathfm.errors import (
    CohortError,
    EmbeddingsDamagedError,
    EmbeddingsStaleError,
    InputError,
    LeakageError,
    LicenceError,
    SeveralRecipesError,
)
from pathfm.evaluate import evaluate
from pathfm.failures import Failure, write_failures
from pathfm.fit import Rows, fingerprint
from pathfm.heatmap import heatmap
from pathfm.joined import Files, find_caches, joined_recipe, parts_of, read_joined
from pathfm.labelled import labelled_slides
from pathfm.licences import Licence
from pathfm.model import read_model
from pathfm.predict import predict
from pathfm.settings import TrainSettings
from pathfm.study import run
from pathfm.synthetic import SCANNERS, GeneratedSlide, write_slide
from pathfm.targets import Classes, Task
from pathfm.tiles import TileSpec
from pathfm.train import train

Make = Callable[..., EmbeddingsCohort]
QUICK = TrainSettings(epochs=3, hidden=16, attention=8, lr=1e-2, device="cpu")
OTHER: dict[str, Any] = {"backbone": {"name": "sown", "licence": "CC-BY-NC-ND-4.0"}, "tiles": RECIPE["tiles"]}
BOTH = joined_recipe([RECIPE, OTHER])

POSITIVE = np.ones((1, 1), np.float32)


class Two:
    """The same slides embedded by two backbones, 8 and 5 numbers wide, in one cache root."""

    def __init__(self, make: Make, **more: Any) -> None:
        self.first = make(**more)
        self.second = make(recipe=OTHER, dim=5, seed=1, **more)
        self.table, self.root = self.first.table, self.first.table.parent
        self.folders = [self.first.folder, self.second.folder]

    def files(self, slide_id: str) -> Files:
        return self.first.file(slide_id), self.second.file(slide_id)

    def rewrite_second(self, slide_id: str, /, **changes: Any) -> None:
        path = self.second.file(slide_id)
        write_embeddings(path, replace(read_embeddings(path), **changes))

    def train(self, out: str = "model", **more: Any) -> Path:
        train(self.table, self.folders, "cancer", self.root / out, training=QUICK, **more)
        return self.root / out


@pytest.fixture
def two(embeddings_cohort: Make) -> Two:
    return Two(embeddings_cohort, patients=8)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 600), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.permutations(range(2)))
def test_a_bag_is_the_features_of_its_files_side_by_side(n: int, widths: list[int], order: list[int]) -> None:
    """Also with no tile, one tile, and more rows than are turned at a time; in whatever order the slides are."""
    with TemporaryDirectory() as scratch:
        slides, wanted = [], []
        for slide in range(2):
            parts = []
            for which, width in enumerate(widths):
                recipe = RECIPE | {"backbone": {"name": f"b{which}"}}
                one = planted_embeddings(f"s{slide}", 0, n=n + slide, dim=width, recipe=recipe, seed=which)
                write_embeddings(Path(scratch, str(which), f"s{slide}.h5"), one)
                parts.append(one.features)
            slides.append(tuple(Path(scratch, str(which), f"s{slide}.h5") for which in range(len(widths))))
            wanted.append(np.concatenate(parts, axis=1))
        dataset = BagDataset([(slides[i],) for i in order])
        for at, i in enumerate(order):
            found = dataset[at].features
            assert found.is_contiguous()
            np.testing.assert_array_equal(found.numpy(), wanted[i].astype(np.float32))
            joined = read_joined(slides[i])
            np.testing.assert_array_equal(joined.features, wanted[i])
            assert joined.features.dtype == np.float16
            assert [part["backbone"]["name"] for part in parts_of(joined.recipe)] == [
                f"b{k}" for k in range(len(widths))
            ]


def test_one_file_is_read_as_it_ever_was(two: Two) -> None:
    (path, _) = two.files("p01-0")
    alone, in_a_tuple = BagDataset([path], POSITIVE), BagDataset([((path,),)], POSITIVE)
    assert torch.equal(alone[0].features, in_a_tuple[0].features)
    assert _fingerprint(alone) == _fingerprint(in_a_tuple)
    joined = read_joined((path,))
    assert isinstance(joined.features, np.memmap)
    assert joined.recipe == RECIPE


def test_what_a_training_depends_on_is_all_files_and_their_order(two: Two) -> None:
    first, second = two.files("p01-0")
    sets = [BagDataset([(files,)], POSITIVE) for files in ((first,), (second,), (first, second), (second, first))]
    sets.append(BagDataset([((first,), (second,))], POSITIVE))
    assert len({_fingerprint(one) for one in sets}) == 5


def test_joined_bags_are_kept_and_cross_to_a_worker_without_their_rows(two: Two) -> None:
    dataset = BagDataset([(two.files("p01-0"),)], POSITIVE, keep=True)
    assert dataset[0].features is dataset[0].features
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[0].features, dataset[0].features)


def _fingerprint(bags: BagDataset) -> str:
    return fingerprint(bags, Rows([0], []), Task((Classes("cancer", ("0", "1")),)), "mean", QUICK)


def _moved(two: Two) -> dict[str, Any]:
    return {"coords": read_embeddings(two.second.file("p03-0")).coords[::-1]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (_moved, r"their tiles differ \(30 and 30\)"),
        (lambda _: {"failed": np.array([[7, 7]], np.int32)}, r"failed \(0 and 1\); delete \S+/sown-\w+/p03-0\.h5, then extract"),
        (lambda _: {"slide_digest": "sha256:" + 64 * "0"}, r"made from different files \(sha256:\w{8} and sha256:0{8}\)"),
        (lambda _: {"slide_size_px0": (9999, 9999)}, "made from different files"),
        (lambda _: {"mpp": 0.25}, r"scales differ \(0\.5 and 0\.25 microns"),
        (lambda _: {"tile_extent_px0": 512.0}, "scales differ"),
        (lambda _: {"slide_id": "p04-0"}, "the second file is of slide p04-0"),
    ],
)  # fmt: skip
def test_files_of_other_tiles_are_refused_with_slide_folders_difference_and_remedy(
    two: Two, changes: Callable[[Two], dict[str, Any]], says: str
) -> None:
    two.rewrite_second("p03-0", **changes(two))
    line = rf"slide p03-0: \S*{two.folders[0].name} and \S*{two.folders[1].name} cannot be joined, .*{says}.*--backbone planted,sown"
    with pytest.raises(EmbeddingsStaleError, match=line):
        labelled_slides(read_cohort(two.table), two.folders, "cancer")
    with pytest.raises(EmbeddingsStaleError, match=line):
        BagDataset([(two.files("p03-0"),)])[0]
    with pytest.raises(EmbeddingsStaleError, match=line):
        read_joined(two.files("p03-0"))


@pytest.mark.parametrize("digest", ["", "quick:1234:" + 64 * "0"])
def test_digests_that_are_of_another_kind_or_not_known_are_no_difference(two: Two, digest: str) -> None:
    """As where one cache was made with --digest quick, or imported without the slides."""
    two.rewrite_second("p03-0", slide_digest=digest, **({} if digest else {"slide_size_px0": (0, 0)}))
    first, second = two.files("p03-0")
    known = read_embeddings(first)
    for files, wanted in (((first, second), known.slide_digest), ((second, first), digest or known.slide_digest)):
        joined = read_joined(files)
        assert joined.slide_digest == wanted
        assert joined.slide_size_px0 == known.slide_size_px0
    for folders in (two.folders, two.folders[::-1]):
        slides = labelled_slides(read_cohort(two.table), folders, "cancer")
        assert all(digest for digests in slides.table["slide_digests"] for digest in digests)


def test_a_file_that_is_not_proven_is_not_opened_to_find_the_recipe_of_its_cache(two: Two) -> None:
    path = two.second.file("p00-0")  # the first of its cache
    data = bytearray(path.read_bytes())
    data[data.index(read_embeddings(path).features.tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(EmbeddingsDamagedError, match=r"p00-0\.h5"):
        find_caches(two.folders)


def test_more_licences_than_a_model_passes_on_are_refused_before_it_is_trained(two: Two) -> None:
    two.rewrite_second("p03-0", licences=tuple(Licence(f"b{k}") for k in range(63)))
    with pytest.raises(LicenceError, match=r"sown-\w+ state 65 different licences, and a model passes on 64 at most"):
        two.train()
    assert not (two.root / "model").exists()
    two.rewrite_second("p03-0", licences=tuple(Licence(f"b{k}") for k in range(62)))
    assert len(read_model(two.train()).licences) == 64


def test_caches_of_other_tiles_or_of_one_backbone_twice_are_refused(two: Two, embeddings_cohort: Make) -> None:
    coarse = RECIPE["tiles"] | {"mpp": 1.0}
    other = embeddings_cohort(patients=8, recipe={"backbone": {"name": "coarse"}, "tiles": coarse})
    with pytest.raises(
        EmbeddingsStaleError, match=r"coarse-\w+ cannot be joined with \S+: tiles\.mpp is 1\.0, wanted 0\.5"
    ):
        find_caches([*two.folders, other.folder])
    with pytest.raises(InputError, match=r"both hold embeddings of sown; pass --embeddings one folder a backbone"):
        find_caches([*two.folders, two.folders[1]])
    with pytest.raises(InputError, match="names no folder"):
        find_caches([])
    with pytest.raises(SeveralRecipesError, match="pass --embeddings one of them, or several to join them"):
        find_caches([two.folders[0].parent])


def test_a_slide_that_one_cache_lacks_is_missing_and_the_cache_is_named(two: Two) -> None:
    two.second.file("p03-0").unlink()
    with pytest.raises(CohortError, match=r"sown-\w+ has no embeddings of 1 labelled slides .*p03-0 \(rows 5\)"):
        labelled_slides(read_cohort(two.table), two.folders, "cancer")
    failure = Failure("p03-0", "p03-0.svs", "truncated", "it ends early")
    write_failures(two.folders[1].parent / "failures.csv", [failure])
    slides = labelled_slides(read_cohort(two.table), two.folders, "cancer")
    assert [tuple(one) for one in slides.left_out] == [("p03-0", "no_embeddings")]


def test_a_slide_that_one_cache_lacks_gets_no_score_and_that_is_said(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    model = two.train()
    two.second.file("p03-0").unlink()
    table = predict(model, two.root / "out", embeddings=two.folders)["cancer"].set_index("slide_id")
    assert table.loc["p03-0", "reason"] == "no_embeddings"
    assert (table.drop("p03-0")["reason"] == "").all()
    assert f"{two.folders[1]} has no embeddings of 1 slides that another folder has, such as p03-0" in caplog.text


def test_the_slides_of_a_cohort_are_those_of_all_caches_and_the_colour_that_of_the_first(two: Two) -> None:
    two.rewrite_second("p01-0", mean_rgb=np.full(3, 7, np.float32))
    slides = labelled_slides(read_cohort(two.table), two.folders, "cancer")
    assert slides.recipe == BOTH
    assert slides.bags().dim == 13
    assert list(slides.table["files"]) == [(two.files(name),) for name in slides.table["slide_id"]]
    np.testing.assert_array_equal(slides.mean_rgb["p01-0"], read_embeddings(two.first.file("p01-0")).mean_rgb)
    assert slides.licences == (Licence("planted", "Apache-2.0"), Licence("sown", "CC-BY-NC-ND-4.0"))


def test_a_model_says_what_it_reads_and_scores_the_same_in_whatever_order_it_is_given(two: Two) -> None:
    model = two.train()
    read = read_model(model)
    assert read.recipe == BOTH
    assert read.heads[0].dim == 13
    assert [one.backbone for one in read.licences] == ["planted", "sown"]
    ways = [two.folders, two.folders[::-1]]
    tables = [predict(model, two.root / f"out-{k}", embeddings=way)["cancer"] for k, way in enumerate(ways)]
    pd.testing.assert_frame_equal(*tables)
    trained = pd.read_csv(model / "predictions.csv").set_index("slide_id")["prob_1"]
    assert tables[1].set_index("slide_id")["prob_1"].to_dict() == trained.to_dict()
    assert set(tables[0]["split"]) == {"seen"}


def test_what_a_second_backbone_knows_reaches_the_head(embeddings_cohort: Make) -> None:
    """The lesion shows in the embeddings of the second alone."""
    two = Two(embeddings_cohort, patients=16)
    for name in two.first.frame()["slide_id"]:
        write_embeddings(two.first.file(name), planted_embeddings(name, 0))
    learn = replace(QUICK, epochs=12)
    alone, joined = (
        crossval(two.table, folders, "cancer", two.root / f"cv{k}", 2, training=learn).metrics["cancer"]["patient"]
        for k, folders in enumerate([two.folders[:1], two.folders])
    )
    assert joined["auroc"]["value"] > 0.9 > alone["auroc"]["value"]


def test_folders_that_are_not_those_of_the_model_are_named(two: Two, embeddings_cohort: Make) -> None:
    joined, out = two.train(), two.root / "out"
    train(two.table, two.folders[:1], "cancer", two.root / "plain", training=QUICK)
    more = embeddings_cohort(patients=8, recipe=OTHER | {"backbone": {"name": "reaped"}})
    newer = embeddings_cohort(patients=8, recipe=OTHER | {"backbone": OTHER["backbone"] | {"revision": "2"}})
    for folders, says in [
        (two.folders[:1], r"no folder holds the embeddings of sown that the model reads; .*each of planted, sown"),
        ([two.folders[0], more.folder], r"no folder holds the embeddings of sown that the model reads; "),
        ([two.folders[0], newer.folder], r"reads: in \S+ backbone\.revision is 2, wanted absent; pass"),
        ([*two.folders, more.folder], rf"reads no embeddings like those of \S*{more.folder.name}"),
    ]:
        with pytest.raises(EmbeddingsStaleError, match=says):
            predict(joined, out, embeddings=folders)
        with pytest.raises(EmbeddingsStaleError, match=says):
            evaluate(joined, two.table, folders, out)
    with pytest.raises(EmbeddingsStaleError, match="reads no embeddings like those of"):
        predict(two.root / "plain", out, embeddings=two.folders)
    with pytest.raises(EmbeddingsStaleError, match=r"backbone\.name is sown, wanted planted"):
        predict(two.root / "plain", out, embeddings=two.folders[1:])


def test_a_file_of_another_recipe_than_its_folder_is_named(two: Two) -> None:
    model = two.train()
    two.rewrite_second("p02-0", recipe=OTHER | {"backbone": OTHER["backbone"] | {"revision": "2"}})
    with pytest.raises(
        EmbeddingsStaleError, match=r"sown-\w+/p02-0\.h5 was made with another recipe: backbone\.revision"
    ):
        predict(model, two.root / "out", embeddings=two.folders)
    with pytest.raises(
        EmbeddingsStaleError, match=r"sown-\w+/p02-0\.h5 was made with another recipe: backbone\.revision"
    ):
        two.train("again")


def test_a_frozen_model_is_evaluated_on_two_caches_and_knows_its_own_scans(two: Two, embeddings_cohort: Make) -> None:
    model = two.train()
    with pytest.raises(LeakageError):
        evaluate(model, two.table, two.folders, two.root / "same")
    fresh = Two(embeddings_cohort, patients=6, name="fresh", prefix="q")
    ways = [evaluate(model, fresh.table, way, two.root / "out") for way in (fresh.folders, fresh.folders[::-1])]
    looks = [way.metrics["cancer"].pop("ledger")["looks"] for way in ways]
    assert looks == [1, 2]
    assert ways[0].metrics == ways[1].metrics
    assert ways[0].metrics["cancer"]["n_slides"] == 6


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_a_restriction_is_said_once_or_refused_before_anything_is_trained(
    two: Two, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = two.root / "out"
    words = [command, "--cohort", str(two.table), "--label", "cancer", "--out", str(out), "--training.epochs", "1"]
    words += ["--folds", "2"] if command == "crossval" else []
    folders = [str(folder) for folder in two.folders]
    assert main([*words, "--embeddings", *folders, "--require-license", "permissive"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"refuses training on planted\+sown: .*sown.*CC-BY-NC-ND-4.0", said)
    assert not list(out.rglob("*.safetensors"))
    assert main([*words, "--embeddings", *folders]) == 0
    assert capsys.readouterr().err.count("inherits their terms") == 1
    assert main([*words, f"--embeddings={folders[0]}", "--require-license=permissive"]) == 0
    assert "inherits" not in capsys.readouterr().err


class Sown(torch.nn.Module):
    """The mean colour of a tile, and how it varies."""

    dim = 6

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([tiles.mean(dim=(2, 3)), tiles.std(dim=(2, 3))], dim=1)


@pytest.fixture
def sown() -> Iterator[str]:
    row = Backbone(name="sown", source="python:test_joined:Sown", library="python", dim=6, licence="CC-BY-NC-ND-4.0")
    register_backbone(row)
    yield "sown"
    del BACKBONES["sown"]


def test_a_study_goes_from_slides_through_two_backbones_to_one_head_and_back(
    tmp_path: Path, sown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pathfm")
    names = [f"s{k}" for k in range(4)]
    for k, name in enumerate(names):
        write_slide(GeneratedSlide(name, SCANNERS[k % 2], 0.5, seed=k, lesion=k < 2, side_um=400), tmp_path)
    rows = [{"slide_id": n, "patient_id": n, "path": f"slides/{n}.tiff", "cancer": int(n < "s2")} for n in names]
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    more = {"tiles": TileSpec(size_px=64, mpp=1.0), "training": QUICK, "device": "cpu", "folds": 2, "top_tiles": 1}
    cohort, out = tmp_path / "cohort.csv", tmp_path / "out"
    for device in ("cpu", "cpu,cpu"):
        with pytest.raises(LicenceError, match=r"refuses a study with colour, sown: .*sown.*CC-BY-NC-ND"):
            run(cohort, "cancer", out, f"colour,{sown}", require_license="permissive", **more | {"device": device})
    assert not list(out.rglob("*.h5"))
    run(cohort, "cancer", out, f"colour,{sown}", **more)
    assert caplog.text.count("inherits their terms") == 1

    model = read_model(out / "model")
    assert [part["backbone"]["name"] for part in parts_of(model.recipe)] == ["colour", "sown"]
    report, said = (out / "report.html").read_text(), (out / "pathfm.log").read_text()
    assert "<dd>colour+sown</dd>" in report
    assert "CC-BY-NC-ND-4.0" in report
    assert all(f"{name}-" in said for name in ("colour", "sown"))
    assert len(list((out / "heatmaps").glob("s?.png"))) == 4

    caches = [next((out / "embeddings").glob(f"{name}-*")) for name in ("sown", "colour")]
    from_files = predict(out / "model", tmp_path / "a", embeddings=caches)["cancer"]
    from_slides = predict(out / "model", tmp_path / "b", slides=[cohort], device="cpu")["cancer"]
    assert from_files["prob_1"].notna().all()
    assert from_slides["prob_1"].tolist() == from_files["prob_1"].tolist()
    again = heatmap(out / "crossval", [cohort], caches, out / "heatmaps", out / "model", top_tiles=1)
    assert (again["why"] == "").all()

    train(cohort, caches, "cancer", tmp_path / "swapped", training=QUICK)
    folds = pd.read_csv(out / "crossval" / "folds.csv", dtype=str)
    folds.assign(fold=folds["fold"].mask(folds["slide_id"] == "s3", "")).to_csv(out / "crossval" / "folds.csv")
    pd.DataFrame(rows[2:]).to_csv(tmp_path / "two.csv", index=False)
    drawn = heatmap(out / "crossval", [tmp_path / "two.csv"], caches, tmp_path / "c", tmp_path / "swapped", top_tiles=1)
    assert drawn[["origin", "why"]].to_numpy().tolist() == [["out of fold", ""], ["seen in training", ""]]
