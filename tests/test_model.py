from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import RECIPE, planted_embeddings
from safetensors.torch import load_file, save

from pathfm.embeddings import recipe_sha256
from pathfm.errors import ModelError
from pathfm.files import sha256_file
from pathfm.heads import HEADS, Head, build_head, moments, pack
from pathfm.licences import Licence
from pathfm.model import Model, ensemble, read_model, write_model
from pathfm.scoring import score_bag
from pathfm.targets import Classes, Regression, Task

if TYPE_CHECKING:
    from pathlib import Path


LICENCE = Licence("uni", "CC-BY-NC-ND-4.0").facts()
TARGETS: list[dict[str, Any]] = [{"name": "cancer", "kind": "classes", "classes": ["0", "1"]}]
HEAD: dict[str, Any] = {"name": "gated-abmil", "kwargs": {"hidden": 16, "attention": 8}, "targets": TARGETS}
AGE = {"name": "age", "levels": []}
TRAINING: dict[str, Any] = {"fingerprint": "f", "epochs": 3, "patients": ["p1"], "slides": {"s1": "ab"}, "sites": []}


def _model(head: str = "gated-abmil", n_classes: int = 2) -> Model:
    torch.manual_seed(0)
    built = build_head(head, 8, n_classes, hidden=16, attention=8)
    built.standardise([moments(torch.randn(20, 8) + 4)])
    return Model(
        heads=(built.eval(),),
        task=Task((Classes("cancer", tuple(str(i) for i in range(n_classes))),)),
        recipe=RECIPE,
        training=TRAINING,
        figures={"cancer": {"patient": {"auroc": None}}},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", _model())
    return tmp_path / "model"


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_model_read_back_says_the_same_and_says_it_of_every_slide(tmp_path: Path, head: str) -> None:
    model, bags = _model(head, n_classes=3), pack([torch.randn(5, 8), torch.randn(0, 8)])
    write_model(tmp_path, model)
    back = read_model(tmp_path)
    (one,), (other,) = model.heads, back.heads
    assert torch.equal(one(bags).logits, other(bags).logits)
    for name in ("label", "task", "tasks", "unit", "covariates", "recipe", "training", "figures", "licences"):
        assert getattr(back, name) == getattr(model, name)
    assert not other.training


def test_a_model_written_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_model(tmp_path / "a", _model())
    write_model(tmp_path / "b", read_model(tmp_path / "a"))
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_licences_travel_and_are_unknown_where_none_is_stated(tmp_path: Path) -> None:
    restricted = Licence("virchow2", "CC-BY-NC-ND-4.0", "non-commercial, no derivatives", "https://example.org/v2")
    model = replace(_model(), licences=(restricted, Licence("mine", "MIT")))
    write_model(tmp_path / "both", model)
    assert read_model(tmp_path / "both").licences == model.licences
    bare = Model(**{f.name: getattr(model, f.name) for f in fields(model)} | {"recipe": {"tiles": {}}, "licences": ()})
    write_model(tmp_path / "bare", bare)
    assert [one["licence"] for one in json.loads((tmp_path / "bare" / "model.json").read_text())["licences"]] == [
        "unknown"
    ]


def test_a_joined_recipe_without_licences_counts_every_backbone_as_unknown() -> None:
    joined = {"backbone": {"name": "a+b"}, "joined": [{"backbone": {"name": "a"}}, {"backbone": {"name": "b"}}]}
    parts = {f.name: getattr(_model(), f.name) for f in fields(Model)}
    assert Model(**parts | {"recipe": joined, "licences": ()}).licences == (Licence("a"), Licence("b"))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_model_of_an_older_format_is_to_be_trained_again(folder: Path, version: int) -> None:
    _edit(folder, format_version=version)
    with pytest.raises(
        ModelError, match=f"format_version {version}, which this pathfm does not read; train the model again"
    ):
        read_model(folder)


@pytest.mark.parametrize(
    "key",
    [
        "heads",
        "targets",
        "unit",
        "covariates",
        "dim",
        "recipe",
        "recipe_sha256",
        "licences",
        "training",
        "figures",
        "weights_sha256",
    ],
)
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text())
    del described[key]
    path.write_text(json.dumps(described))
    with pytest.raises(ModelError, match=rf"lacks the key '{key}"):
        read_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "zip"}, "key 'format'"),
        ({"format_version": 5}, "reads up to 4; upgrade pathfm"),
        ({"licences": {}}, "key 'licences' holds dict"),
        ({"licences": ["MIT"]}, r"key 'licences\.0' holds str"),
        ({"licences": [LICENCE | {"licence": 5}]}, r"key 'licences\.0\.licence' holds int"),
        ({"licences": [LICENCE | {"page": "a\nb"}]}, "key 'licences' cannot be read"),
        ({"licences": [LICENCE] * 65}, "key 'licences' cannot be read"),
        ({"recipe": {"joined": [5]}}, r"key 'recipe\.joined\.0' holds int"),
        ({"dim": "8"}, "key 'dim' holds str"),
        ({"dim": 9}, "does not fit the head"),
        ({"dim": 10**12}, "does not fit the head"),
        ({"dim": 10**30}, "key 'heads.kwargs' or 'dim' does not fit the head"),
        ({"dim": -1}, "key 'dim' is not a width"),
        ({"dim": 0}, "key 'dim' is not a width"),
        ({"dim": True}, "key 'dim' holds bool"),
        ({"recipe": {"x": float("nan")}}, "is not JSON"),
        ({"recipe": {"backbone": "colour"}}, "key 'recipe.backbone' holds str"),
        ({"training": TRAINING | {"patients": [["p1"]]}}, "key 'training.patients.0' holds list"),
        ({"training": TRAINING | {"slides": {"s1": 1}}}, "key 'training.slides.s1' holds int"),
        ({"training": TRAINING | {"slides": ["s1"]}}, "key 'training.slides' holds list"),
        ({"targets": []}, "key 'targets'"),
        ({"targets": TARGETS * 2}, "key 'targets'"),
        ({"targets": [TARGETS[0] | {"classes": ["0"]}]}, "key 'classes'"),
        ({"targets": [TARGETS[0] | {"classes": ["0", 1]}]}, "key 'classes'"),
        ({"targets": [TARGETS[0] | {"kind": "os.system"}]}, "key 'kind'.*os.system"),
        ({"targets": [TARGETS[0] | {"kind": ["classes"]}]}, r"key 'targets\.0\.kind' holds list"),
        ({"targets": [TARGETS[0] | {"classes": ["0", "1", "2"]}]}, "key 'heads' has other targets"),
        ({"heads": [HEAD | {"targets": [TARGETS[0] | {"name": "other"}]}]}, "key 'heads' has other targets"),
        ({"unit": "tile"}, "key 'unit'"),
        ({"unit": ["slide"]}, "key 'unit'"),
        ({"covariates": []}, "key 'covariates'"),
        ({"covariates": [AGE, AGE]}, "key 'covariates'"),
        ({"covariates": [AGE]}, r"tensor '0\.covariates.* does not fit the head"),
        ({"covariates": [AGE | {"levels": ["a"]}]}, "key 'levels' of the covariate 'age'"),
        ({"covariates": [AGE | {"levels": ["a", "a"]}]}, "key 'levels' of the covariate 'age'"),
        ({"covariates": [AGE | {"levels": [str(i) for i in range(10**4)]}]}, "key 'levels' of the covariate 'age'"),
        ({"covariates": [AGE | {"name": str(i)} for i in range(10**4)]}, "key 'covariates'"),
        ({"covariates": [AGE | {"levels": "ab"}]}, r"key 'covariates\.0\.levels' holds str"),
        ({"heads": []}, "key 'heads' is not a list of 1 to 256"),
        ({"heads": [HEAD] * 257}, "key 'heads' is not a list of 1 to 256"),
        ({"heads": [HEAD] * 2}, r"tensor '1\..* does not fit the head"),
        ({"heads": HEAD}, "key 'heads' holds dict"),
        ({"heads": [HEAD | {"name": "abmill"}]}, "key 'heads'.*gated-abmil"),
        ({"heads": [HEAD | {"name": "mean", "kwargs": {"hidden": 16}}]}, "does not fit the head"),
        ({"heads": [HEAD | {"kwargs": {"depth": 2}}]}, "key 'heads'.*depth"),
        ({"heads": [HEAD | {"kwargs": {"hidden": "16"}}]}, "does not fit the head.*hidden"),
        ({"heads": [HEAD | {"kwargs": {"hidden": 16.5}}]}, "does not fit the head.*hidden"),
        ({"heads": [HEAD | {"kwargs": {"hidden": [16]}}]}, r"key 'heads\.0\.kwargs\.hidden' holds list"),
        ({"heads": [HEAD | {"kwargs": {"hidden": 1 << 40}}]}, "key 'heads.kwargs.hidden'"),
        ({"heads": [HEAD | {"name": "transformer", "kwargs": {"layers": 10**9}}]}, "key 'heads.kwargs.layers'"),
        ({"recipe": {"backbone": {"name": "other"}}}, "key 'recipe_sha256'"),
        ({"training": {"epochs": 3}}, "lacks the key 'training.fingerprint'"),
    ],
)
def test_a_description_that_does_not_hold_is_an_error_that_names_the_key(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    _edit(folder, **change)
    with pytest.raises(ModelError, match=message) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["[" * 100_000, '{"a":' * 950 + "1" + "}" * 950, '{"a": 1e999}', "9" * 5000])
def test_a_recipe_that_no_digest_can_be_taken_of_is_refused_in_one_line(folder: Path, recipe: str) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text()) | {"recipe": "HERE"}
    path.write_text(json.dumps(described).replace('"HERE"', recipe))
    with pytest.raises(ModelError, match=r"model\.json") as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_seen(folder: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", replace(_model(), heads=(build_head("gated-abmil", 8, 2, hidden=16, attention=8),)))
    (folder / "model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not match key 'weights_sha256'"):
        read_model(folder)


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_truncated_weights_are_seen_also_when_the_digest_was_adapted(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    _edit(folder, weights_sha256=sha256_file(path))
    with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
        read_model(folder)


def test_a_header_that_claims_a_huge_tensor_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    _edit(folder, weights_sha256=sha256_file(path))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_model(folder)


def test_a_weight_that_is_not_finite_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["0.pooling.classifier.bias"][0] = torch.nan
    path.write_bytes(save(tensors))
    _edit(folder, weights_sha256=sha256_file(path))
    with pytest.raises(ModelError, match=r"pooling\.classifier\.bias.*not finite"):
        read_model(folder)


def test_a_folder_without_a_model_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--model"):
        read_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_description_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"model\.json"):
        read_model(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        read_model(folder)


def test_a_licence_in_the_recipe_of_a_newer_model_says_nothing(folder: Path) -> None:
    recipe = RECIPE | {"backbone": {"name": "mine", "licence": "MIT"}}
    _edit(folder, licences=[], recipe=recipe, recipe_sha256=recipe_sha256(recipe))
    assert read_model(folder).licences == (Licence("mine"),)
    both = {"backbone": {"name": "a+b"}, "joined": [recipe, {"backbone": {"name": "b", "licence": "MIT"}}]}
    _edit(folder, licences=[], recipe=both, recipe_sha256=recipe_sha256(both))
    assert read_model(folder).licences == (Licence("mine"), Licence("b"))


def test_an_ensemble_says_the_mean_of_what_its_members_say_and_travels_whole(tmp_path: Path) -> None:
    members = [replace(_model(), heads=(_head(seed),), training=_training(seed)) for seed in range(3)]
    whole = ensemble([ensemble(members[:2]), members[2]])
    write_model(tmp_path, whole)
    back = read_model(tmp_path)
    bag = planted_embeddings("s", 1)
    each = [score_bag(one, [bag]) for one in members]
    assert len({float(one.scores[0][1]) for one in each}) == 3
    for model in (whole, back):
        score = score_bag(model, [bag])
        np.testing.assert_allclose(score.scores[0], np.mean([one.scores[0] for one in each], axis=0), rtol=1e-12)
        shown = np.mean([one.attention() for one in each], axis=0)
        np.testing.assert_allclose(score.attention(), shown, rtol=1e-6)
    assert back.training["patients"] == ["p0", "p1", "p2"]
    assert back.training["slides"] == {"s0": "0", "s1": "1", "s2": "2"}


def test_members_of_an_ensemble_say_a_number_by_their_own_mean() -> None:
    task = Task((Regression("age", mean=10.0, std=1.0),))
    other = Task((Regression("age", mean=50.0, std=2.0),))
    head = build_head("mean", 8, 1, hidden=16)
    torch.nn.init.zeros_(head.get_parameter("pooling.classifier.weight"))
    torch.nn.init.zeros_(head.get_parameter("pooling.classifier.bias"))
    models = [replace(_model(), heads=(head.eval(),), task=one, tasks=(one,)) for one in (task, other)]
    (value,) = score_bag(ensemble(models), [planted_embeddings("s", 1)]).scores
    assert value.tolist() == [30.0]


def test_models_of_different_targets_make_no_ensemble() -> None:
    with pytest.raises(ModelError, match="make no ensemble"):
        ensemble([_model(), _model(n_classes=3)])


def _head(seed: int) -> Head:
    torch.manual_seed(seed)
    return build_head("gated-abmil", 8, 2, hidden=16, attention=8).eval()


def _training(seed: int) -> dict[str, Any]:
    return TRAINING | {"patients": [f"p{seed}"], "slides": {f"s{seed}": str(seed)}}
