"""What is computed is what the row says, with the tensors of the one file that was proven, or it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from tinymodels import random_tiles, save_tiny, tiny_model

from pathfm.backbones import BACKBONES, Backbone, load_backbone, register_backbone
from pathfm.backbones.network import build_network
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    State = dict[str, torch.Tensor]

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
VIT |= {"image_size": 32, "patch_size": 16}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny", tiny_model())


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def timm_row(folder: Path, **more: Any) -> Backbone:
    return Backbone(**({"name": "t", "source": f"local-dir:{folder}", "arch": "test_vit", "prefix_tokens": 1} | more))


def vit_row(folder: Path, **more: Any) -> Backbone:
    load = {"add_pooling_layer": False}
    said = {"name": "v", "source": f"local-dir:{folder}", "library": "transformers", "arch": "ViTModel"}
    return Backbone(**(said | {"load_kwargs": load, "arch_kwargs": VIT, "prefix_tokens": 1, "dim": 32} | more))


def rewrite(path: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def reconfigure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "test_vit2"},
        {"model_args": {"num_heads": 1}},
        {"model_args": {"act_layer": "relu"}},
        {"num_classes": 0, "model_args": {"num_classes": 0}},
    ],
    ids=str,
)
def test_a_row_with_an_architecture_is_built_as_it_says_whatever_lies_beside_the_weights(
    changes: dict[str, Any], timm_folder: Path
) -> None:
    register_backbone(timm_row(timm_folder))
    tiles = random_tiles(2, 160)
    wanted = load_backbone("t", "cpu")
    reconfigure(timm_folder, **changes)
    found = load_backbone("t", "cpu")
    assert found.identity == wanted.identity
    assert (found.embed(tiles) == wanted.embed(tiles)).all()


@pytest.mark.parametrize("arguments", [{"num_heads": 1}, {"act_layer": "relu"}], ids=str)
def test_the_same_weights_in_another_network_have_another_identity(
    arguments: dict[str, Any], timm_folder: Path
) -> None:
    before = load_backbone(f"local-dir:{timm_folder}", "cpu")
    reconfigure(timm_folder, model_args=arguments)
    after = load_backbone(f"local-dir:{timm_folder}", "cpu")
    tiles = random_tiles(2, 160)
    assert (before.embed(tiles) != after.embed(tiles)).any()
    assert before.identity["weights_sha256"] == after.identity["weights_sha256"]
    assert before.identity != after.identity


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 0}, {"num_classes": 7}], ids=str)
def test_a_block_that_the_file_lacks_is_refused_and_never_random(arguments: dict[str, Any], timm_folder: Path) -> None:
    rewrite(
        timm_folder / "model.safetensors",
        lambda state: {k: v for k, v in state.items() if not k.startswith("blocks.1.")},
    )
    with pytest.raises(BackboneError, match=r"blocks\.1\."):
        build_network(timm_row(timm_folder, arch_kwargs=arguments))
    with pytest.raises(BackboneError, match=r"blocks\.1\."):
        load_backbone(f"local-dir:{timm_folder}", "cpu")


def test_a_tensor_too_many_is_refused_unless_it_is_a_heads(timm_folder: Path) -> None:
    assert {"head.weight", "head.bias"} <= load_file(timm_folder / "model.safetensors").keys()
    build_network(timm_row(timm_folder))
    rewrite(timm_folder / "model.safetensors", lambda state: state | {"blocks.9.norm1.weight": torch.ones(64)})
    with pytest.raises(BackboneError, match=r"blocks\.9\.norm1\.weight"):
        build_network(timm_row(timm_folder))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"img_size": 224}, "pos_embed"), ({"img_size": 80, "patch_size": 8}, "patch_embed")],
    ids=str,
)
def test_nothing_is_resampled_to_another_input(arguments: dict[str, Any], named: str, timm_folder: Path) -> None:
    with pytest.raises(BackboneError, match=named):
        build_network(timm_row(timm_folder, arch_kwargs=arguments))


def test_a_network_of_another_size_than_its_row_says_is_refused(timm_folder: Path) -> None:
    register_backbone(timm_row(timm_folder, n_params=1000))
    with pytest.raises(BackboneError, match="its row says 1,000"):
        load_backbone("t", "cpu")


def test_the_input_is_that_of_the_network_and_not_that_of_its_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tiny(tmp_path, timm.create_model("test_vit", num_classes=0, img_size=224))
    reconfigure(tmp_path, model_args={"img_size": 224})
    assert load_backbone(f"local-dir:{tmp_path}", "cpu").row.resize_px == 224


@pytest.mark.parametrize("values", [{"interpolation": "nearest"}, {"input_size": [3, 160, 128]}], ids=str)
def test_a_configuration_that_a_tile_cannot_follow_is_refused(values: dict[str, Any], timm_folder: Path) -> None:
    config = json.loads((timm_folder / "config.json").read_text())
    reconfigure(timm_folder, pretrained_cfg=config["pretrained_cfg"] | values)
    with pytest.raises(BackboneError, match=next(iter(values))):
        load_backbone(f"local-dir:{timm_folder}", "cpu")


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 2), ("num_attention_heads", 4), ("intermediate_size", 32)]
)
def test_a_configuration_of_transformers_has_to_say_what_the_row_says(
    key: str, value: object, vit_folder: Path
) -> None:
    build_network(vit_row(vit_folder))
    reconfigure(vit_folder, **{key: value})
    with pytest.raises(BackboneError, match=f"{key} {value}, its row {VIT[key]}"):
        build_network(vit_row(vit_folder))


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", 0.1), ("hidden_act", "relu")])
def test_what_a_row_of_transformers_leaves_open_is_in_its_identity(key: str, value: object, vit_folder: Path) -> None:
    register_backbone(vit_row(vit_folder, resize_px=32))
    before = load_backbone("v", "cpu")
    reconfigure(vit_folder, **{key: value})
    after = load_backbone("v", "cpu")
    assert before.identity["weights_sha256"] == after.identity["weights_sha256"]
    assert before.identity["architecture"] | {key: value} == after.identity["architecture"]


@pytest.mark.parametrize("what", ["lacks", "has too many"])
def test_a_model_of_transformers_is_loaded_strictly(what: str, vit_folder: Path) -> None:
    name = next(key for key in load_file(vit_folder / "model.safetensors") if ".3." in key)

    def change(state: State) -> State:
        more = {name.replace(".3.", ".9."): state[name].clone()}
        return state | more if what == "has too many" else {k: v for k, v in state.items() if k != name}

    rewrite(vit_folder / "model.safetensors", change)
    with pytest.raises(BackboneError, match="lack, misfit or have too many"):
        build_network(vit_row(vit_folder))


def test_the_file_that_was_proven_is_the_one_that_is_loaded(vit_folder: Path) -> None:
    """Whatever the configuration calls the weights, and in whatever type it wants them."""
    register_backbone(vit_row(vit_folder, resize_px=32))
    wanted = load_backbone("v", "cpu")
    rewrite(vit_folder / "model.safetensors", lambda state: state)  # the same again
    other = {name: tensor + 1 for name, tensor in load_file(vit_folder / "model.safetensors").items()}
    save_file(other, vit_folder / "other.safetensors", metadata={"format": "pt"})
    reconfigure(
        vit_folder, transformers_weights="other.safetensors", dtype="float16", quantization_config={"quant_method": "x"}
    )
    found = load_backbone("v", "cpu")
    assert found.identity == wanted.identity
    tiles = random_tiles(2, 32)
    assert (found.embed(tiles) == wanted.embed(tiles)).all()


def test_a_file_that_the_row_names_is_the_one_that_is_loaded(vit_folder: Path) -> None:
    (vit_folder / "model.safetensors").rename(vit_folder / "mine.safetensors")
    build_network(vit_row(vit_folder, weights_file="mine.safetensors"))
