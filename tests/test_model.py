from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import RECIPE
from safetensors.torch import load_file, save

from pathfm.embeddings import recipe_sha256
from pathfm.errors import ModelError
from pathfm.files import sha256_file
from pathfm.heads import HEADS, build_head, pack
from pathfm.licences import Licence
from pathfm.model import Model, read_description, read_model, write_model

if TYPE_CHECKING:
    from pathlib import Path


LICENCE = Licence("uni", "CC-BY-NC-ND-4.0").facts()
TRAINING: dict[str, Any] = {"fingerprint": "f", "epochs": 3, "patients": ["p1"], "slides": {"s1": "ab"}}


def _model(head: str = "gated-abmil", n_classes: int = 2) -> Model:
    torch.manual_seed(0)
    built = build_head(head, 8, n_classes, hidden=16, attention=8)
    built.standardiser.fit([torch.randn(20, 8) + 4])
    return Model(
        head=built.eval(),
        label="cancer",
        classes=[str(i) for i in range(n_classes)],
        recipe=RECIPE,
        training=TRAINING,
        figures={"patient": {"auroc": None}},
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
    assert torch.equal(model.head(bags).logits, back.head(bags).logits)
    for name in ("label", "classes", "recipe", "training", "figures", "licences"):
        assert getattr(back, name) == getattr(model, name)
    assert not back.head.training


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


def test_a_model_of_the_first_format_keeps_its_licence(folder: Path) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text()) | {"format_version": 1}
    del described["licences"]
    path.write_text(json.dumps(described))
    with pytest.raises(ModelError, match="lacks the key 'licence'"):
        read_model(folder)
    path.write_text(json.dumps(described | {"licence": {"backbone": "uni", "licence": "CC-BY-NC-ND-4.0"}}))
    assert read_model(folder).licences == (Licence("uni", "CC-BY-NC-ND-4.0"),)
    assert read_description(folder)["licences"] == [Licence("uni", "CC-BY-NC-ND-4.0").facts()]


@pytest.mark.parametrize(
    "key",
    ["head", "label", "classes", "dim", "recipe", "recipe_sha256", "licences", "training", "figures", "weights_sha256"],
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
        ({"format_version": 3}, "reads up to 2; upgrade pathfm"),
        ({"licences": {}}, "key 'licences' holds dict"),
        ({"licences": ["MIT"]}, r"key 'licences\.0' holds str"),
        ({"licences": [LICENCE | {"licence": 5}]}, r"key 'licences\.0\.licence' holds int"),
        ({"licences": [LICENCE | {"page": "a\nb"}]}, "key 'licences' cannot be read"),
        ({"licences": [LICENCE] * 65}, "key 'licences' cannot be read"),
        ({"recipe": {"joined": [5]}}, r"key 'recipe\.joined\.0' holds int"),
        ({"dim": "8"}, "key 'dim' holds str"),
        ({"dim": 9}, "does not fit the head"),
        ({"dim": 10**12}, "does not fit the head"),
        ({"dim": 10**30}, "key 'head.kwargs' or 'dim' does not fit the head"),
        ({"dim": -1}, "key 'dim' is not a width"),
        ({"dim": 0}, "key 'dim' is not a width"),
        ({"dim": True}, "key 'dim' holds bool"),
        ({"recipe": {"x": float("nan")}}, "is not JSON"),
        ({"recipe": {"backbone": "colour"}}, "key 'recipe.backbone' holds str"),
        ({"training": TRAINING | {"patients": [["p1"]]}}, "key 'training.patients.0' holds list"),
        ({"training": TRAINING | {"slides": {"s1": 1}}}, "key 'training.slides.s1' holds int"),
        ({"training": TRAINING | {"slides": ["s1"]}}, "key 'training.slides' holds list"),
        ({"classes": ["0"]}, "key 'classes'"),
        ({"classes": ["0", "0"]}, "key 'classes'"),
        ({"classes": ["0", 1]}, "key 'classes.1' holds int"),
        ({"classes": ["0", "1", "2"]}, "does not fit the head"),
        ({"head": {"name": "abmill", "kwargs": {}}}, "key 'head.name'.*gated-abmil"),
        ({"head": {"name": "mean", "kwargs": {"hidden": 16}}}, "does not fit the head"),
        ({"head": {"name": "gated-abmil", "kwargs": {"depth": 2}}}, "key 'head.kwargs'.*depth"),
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
    write_model(tmp_path / "other", replace(_model(), head=build_head("gated-abmil", 8, 2, hidden=16, attention=8)))
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
    tensors["pooling.classifier.bias"][0] = torch.nan
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
