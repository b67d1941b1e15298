from __future__ import annotations

import dataclasses
import json
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tinymodels import Weighted, from_folder, random_tiles
from torch import nn

from pathfm.backbones import BACKBONES, Backbone, build_architecture, load_backbone, register_backbone
from pathfm.backbones.authors import Keep
from pathfm.backbones.huggingface import transformers_embedding
from pathfm.backbones.network import build_network, forward, pool_tokens, state_shapes_sha256, with_model_facts
from pathfm.backbones.transform import to_input
from pathfm.errors import BackboneError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

# Millions of parameters, tokens before the patches and tokens in all of a 224 px input, from the models' pages.
PUBLISHED = {
    "uni": (303.35, 1, 197),
    "uni2-h": (681.39, 9, 265),
    "virchow": (631.23, 1, 257),
    "virchow2": (631.24, 5, 261),
    "gigapath": (1134.95, 1, 197),
    "h-optimus-0": (1134.77, 5, 261),
    "h-optimus-1": (1134.77, 5, 261),
    "h0-mini": (85.74, 5, 261),
    "lunit-vits16": (21.67, 1, 197),
    "lunit-vits8": (21.67, 1, 785),
    "kaiko-vitb16": (85.80, 1, 197),
    "kaiko-vitb8": (85.81, 1, 785),
    "kaiko-vitl14": (304.37, 5, 261),
    "mstar": (303.35, 1, 197),
    "gpfm": (303.23, 1, 257),
    "midnight-12k": (1134.77, 1, 257),
    "phikon": (85.80, 1, 197),
    "phikon-v2": (303.35, 1, 197),
}
REMOTE = [name for name, row in BACKBONES.items() if row.library == "remote"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_builds_the_network_that_its_makers_published(name: str) -> None:
    millions, prefix, tokens = PUBLISHED[name]
    row = BACKBONES[name]
    with torch.device("meta"), torch.inference_mode():
        model: Any = build_architecture(row).eval()
        images = torch.empty(2, 3, 224, 224)
        features = model.forward_features(images) if row.library == "timm" else model(images).last_hidden_state
        assert forward(model, images, row).shape == (2, row.dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)
    assert features.shape[1] == tokens
    assert row.prefix_tokens == prefix
    assert with_model_facts(row, model) == row


@pytest.mark.parametrize(("argument", "usual"), [("mlp_ratio", 4.0), ("no_embed_class", False)])
def test_arguments_that_a_name_does_not_tell_decide_the_shapes(argument: str, usual: object) -> None:
    row = BACKBONES["uni2-h"]
    with torch.device("meta"):
        other = build_architecture(dataclasses.replace(row, arch_kwargs={**row.arch_kwargs, argument: usual}))
        assert state_shapes_sha256(build_architecture(row))[:8] == row.shapes_sha8
    assert state_shapes_sha256(other)[:8] != row.shapes_sha8


def test_variants_of_a_network_are_parts_of_one_another() -> None:
    torch.manual_seed(0)
    row = Backbone(
        name="t",
        source="hf-hub:a/b",
        arch="test_vit2",
        prefix_tokens=3,
        arch_kwargs={"reg_tokens": 2, "class_token": True},
    )
    model = build_architecture(row).eval()
    with torch.inference_mode():
        images = torch.rand(2, 3, 64, 64)
        both, cls, mean = (
            forward(model, images, dataclasses.replace(row, output=output)) for output in ("cls+mean", "cls", "mean")
        )
        tokens = model.forward_features(images)  # type: ignore[operator]
    assert tokens.shape[1] == 3 + 16
    assert torch.equal(both, torch.cat([cls, mean], dim=1))
    assert torch.allclose(mean, tokens[:, 3:].mean(1))


def test_resnet50_ends_after_its_third_stage() -> None:
    with torch.device("meta"):
        model = build_architecture(BACKBONES["resnet50"]).eval()
        assert forward(model, torch.empty(2, 3, 224, 224), BACKBONES["resnet50"]).shape == (2, 1024)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(8.54, rel=0.001)


def test_a_row_that_miscounts_registers_is_refused() -> None:
    with torch.device("meta"):
        model = build_architecture(BACKBONES["h0-mini"])
    wrong = dataclasses.replace(BACKBONES["h0-mini"], prefix_tokens=1)
    with pytest.raises(BackboneError, match="5 tokens before the patches"):
        with_model_facts(wrong, model)


@given(prefix=st.integers(1, 9), patches=st.integers(1, 20))
def test_class_token_and_registers_are_never_in_a_mean(prefix: int, patches: int) -> None:
    tokens = torch.randn(2, prefix + patches, 4)
    planted = tokens.clone()
    planted[:, :prefix] = 1e6
    assert torch.equal(pool_tokens(tokens, "mean", prefix), pool_tokens(planted, "mean", prefix))
    both = pool_tokens(planted, "cls+mean", prefix)
    assert torch.equal(both[:, :4], planted[:, 0])
    assert torch.allclose(both[:, 4:], tokens[:, prefix:].mean(1))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}}]
)
def test_a_bare_file_of_weights_is_loaded_by_what_its_row_says(wrap: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=0, img_size=64)
    torch.save(wrap(model.state_dict()), tmp_path / "ours.pth")
    row = Backbone(
        name="bare",
        source=f"local-dir:{tmp_path}",
        weights_file="ours.pth",
        arch="test_vit",
        arch_kwargs={"img_size": 64},
        prefix_tokens=1,
        dim=64,
    )
    loaded = build_network(row)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    with pytest.raises(BackboneError, match=r"pos_embed of \(1, 17, 64\), its row makes it \(1, 26, 64\)"):
        build_network(dataclasses.replace(row, arch_kwargs={"img_size": 80}))
    torch.save({"weights": Weighted()}, tmp_path / "ours.pth")
    with pytest.raises(BackboneError):
        build_network(row)


def test_weights_with_the_names_of_dinov2_fit_the_network_of_openmidnight(tmp_path: Path) -> None:
    row = BACKBONES["openmidnight"]
    small = {"embed_dim": 48, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model: Any = timm.create_model(row.arch, num_classes=0, **{**row.arch_kwargs, **small})
    state = {key: tensor for key, tensor in model.state_dict().items() if "reg_token" not in key}
    state["register_tokens"], state["mask_token"] = model.reg_token, torch.zeros(1, 48)
    # theirs has a place for the class token, where ours has added it
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), model.pos_embed], dim=1)
    renamed = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor for key, tensor in state.items()}
    torch.save(renamed, tmp_path / row.weights_file)
    here = from_folder(row, tmp_path, arch_kwargs={**row.arch_kwargs, **small}, dim=48)
    loaded: Any = build_network(here)
    with torch.inference_mode():
        images = torch.rand(1, 3, 224, 224)
        assert torch.equal(loaded.forward_features(images), model.eval().forward_features(images))


def test_position_embeddings_of_another_size_are_refused_and_not_resampled(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    row = Backbone(
        name="t",
        source=f"local-dir:{tmp_path}",
        arch="test_vit",
        prefix_tokens=1,
        dim=64,
        weights_file="model.safetensors",
    )
    with pytest.raises(BackboneError, match=r"pos_embed of \(1, 17, 64\)"):
        build_network(row)


def test_a_transformers_model_without_transformers_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pathfm\[hf\]'"):
        load_backbone("phikon", "cpu")


@pytest.mark.usefixtures("registered")
def test_a_transformers_model_gives_its_class_token_and_its_patches(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    row = from_folder(BACKBONES["phikon"], tmp_path, name="tiny", dim=64, resize_px=32, output="cls+mean")
    register_backbone(row)
    tiles = random_tiles(2, 32)
    with torch.inference_mode():
        tokens = model(pixel_values=to_input(torch.from_numpy(tiles), row)).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).half().numpy()
    assert np.allclose(load_backbone("tiny", "cpu").embed(tiles), expected, atol=2e-3)
    with pytest.raises(BackboneError, match="64 dimensions and 1 tokens before the patches, its row says 64 and 5"):
        with_model_facts(dataclasses.replace(row, prefix_tokens=5), model)


def test_plip_is_the_image_half_of_a_clip_model_with_its_projection(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 32, "patch_size": 16}
    )
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    capfd.readouterr()
    row = from_folder(BACKBONES["plip"], tmp_path, arch_kwargs={})
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        given = forward(build_network(row), images, row)
        wanted = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output)
    assert given.shape == (2, 512)
    assert torch.allclose(given, wanted, atol=1e-6)
    assert capfd.readouterr().err == ""  # nothing of the text half, which is left where it is


def test_gemma_is_the_vision_tower_inside_the_whole_model(tmp_path: Path) -> None:
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    vision = transformers.Gemma4VisionConfig(
        **small, num_key_value_heads=2, position_embedding_size=64, standardize=True
    )
    torch.manual_seed(0)
    tower = transformers.Gemma4VisionModel(vision).eval()
    for tensor in tower.state_dict().values():
        tensor.normal_(std=0.2)
    state = {f"model.vision_tower.{key}": tensor.clone() for key, tensor in tower.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vision_config": vision.to_dict()}))
    row = from_folder(BACKBONES["gemma4-e4b"], tmp_path, dim=32)
    images = torch.rand(2, 3, 96, 96)
    # as its image processor cuts an image: patches in rows, colours last
    patches = images.reshape(2, 3, 6, 16, 6, 16).permute(0, 2, 4, 3, 5, 1).reshape(2, 36, 768)
    places = torch.stack([torch.arange(6).repeat(6), torch.arange(6).repeat_interleave(6)], dim=1).expand(2, -1, -1)
    with torch.inference_mode():
        given = transformers_embedding(build_network(row), images, row)
        tokens = tower(pixel_values=patches, pixel_position_ids=places).last_hidden_state
    assert torch.allclose(given, tokens.reshape(2, 4, 32).mean(1), atol=1e-6)


def test_a_model_class_that_transformers_does_not_have_is_named() -> None:
    row = dataclasses.replace(BACKBONES["phikon"], arch="ViTModell")
    with pytest.raises(BackboneError, match=f"ViTModell, which transformers {transformers.__version__} does not have"):
        build_architecture(row)
    with pytest.raises(BackboneError, match="pipeline"):
        build_architecture(dataclasses.replace(row, arch="pipeline"))


@pytest.mark.parametrize("name", REMOTE)
def test_what_is_published_as_code_alone_is_not_run_and_says_what_to_do(name: str) -> None:
    with pytest.raises(BackboneError, match="`pathfm import` the features"):
        load_backbone(name, "cpu")
    with pytest.raises(BackboneError, match="no architecture"):
        build_architecture(BACKBONES[name])


@pytest.mark.parametrize("name", ["conch", "musk", "musk-single-scale"])
def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("conch", "conch.open_clip_custom", "musk"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackboneError) as caught:
        load_backbone(name, "cpu")
    assert str(caught.value).endswith(f"run: {BACKBONES[name].install}")


@pytest.mark.usefixtures("registered")
def test_a_package_is_asked_for_what_its_authors_advise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(nn.Module):
        def encode_image(self, image: torch.Tensor, *, proj_contrast: bool, normalize: bool) -> torch.Tensor:
            assert (proj_contrast, normalize) == (False, False)
            return image.mean(dim=(2, 3)).repeat(1, 171)[:, :512]

    seen: list[tuple[str, str]] = []
    package = types.ModuleType("conch.open_clip_custom")
    package.create_model_from_pretrained = lambda *given: (seen.append(given), (Theirs(), None))[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "conch", types.ModuleType("conch"))
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", package)
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    register_backbone(from_folder(BACKBONES["conch"], tmp_path, name="c"))
    assert load_backbone("c", "cpu").embed(random_tiles(2, 512)).shape == (2, 512)
    assert seen == [("conch_ViT-B-16", str(tmp_path / "pytorch_model.bin"))]


@pytest.mark.usefixtures("registered")
def test_keep_is_its_image_half_with_the_names_that_its_library_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 48, "depth": 1, "num_heads": 2}
    network = Keep(32, **small).eval()
    state = {key.replace(".gamma", ".weight"): tensor for key, tensor in network.state_dict().items()}
    save_file(
        {**state, "text.embeddings": torch.zeros(3), "logit_scale": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    row = from_folder(BACKBONES["keep"], tmp_path, name="k", dim=32, arch_kwargs=small)
    register_backbone(row)
    tiles = random_tiles(2, 256)
    with torch.inference_mode():
        wanted = network(to_input(torch.from_numpy(tiles), row))
    given = load_backbone("k", "cpu").embed(tiles)
    assert np.allclose(given, wanted, atol=2e-3)
    assert np.allclose(np.linalg.norm(given.astype(np.float32), axis=1), 1, atol=1e-3)
