from __future__ import annotations

import dataclasses
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pathfm.backbones import (
    BACKBONES,
    Backbone,
    backbones,
    build_architecture,
    find_backbone,
    load_backbone,
    register_backbone,
    require_tiles,
    resolve_device,
)
from pathfm.backbones.network import forward, pool_tokens, with_model_facts
from pathfm.backbones.transform import to_input
from pathfm.errors import (
    BackboneError,
    InputError,
    MissingExtraError,
    TileSpecMismatchError,
    UnknownNameError,
    WeightsMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

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
}


class Weighted(nn.Module):
    """A backbone of the user's own."""

    VERSION = 3
    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 5) * self.scale


class FakeHub(BaseHTTPRequestHandler):
    """Answers like the Hugging Face hub: owner/tiny has the files of a folder, owner/gated is gated, others are unknown."""

    folder: ClassVar[Path]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> bytes:
        _, owner, name, _, _, file = self.path.split("/", 5)
        path = self.folder / file
        if f"{owner}/{name}" == "owner/gated":
            return self._refuse(403, "GatedRepo")
        if f"{owner}/{name}" != "owner/tiny":
            return self._refuse(404, "RepoNotFound")
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        body = path.read_bytes()
        self.send_response(200)
        for key, value in {"ETag": f'"{hash(body):x}"', "X-Repo-Commit": "a" * 40, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        return body

    def _refuse(self, status: int, code: str) -> bytes:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return b""


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=7).eval()
    return model


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny: nn.Module) -> Path:
    return save_tiny(tmp_path / "tiny", tiny)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def hub(cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handler = type("Handler", (FakeHub,), {"folder": tiny_folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield
        server.shutdown()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_builds_the_network_that_its_makers_published(name: str) -> None:
    millions, prefix, tokens = PUBLISHED[name]
    row = BACKBONES[name]
    with torch.device("meta"):
        model = build_architecture(row).eval()
        images = torch.empty(2, 3, 224, 224)
        features = model.forward_features(images)  # type: ignore[operator]
        assert forward(model, images, row).shape == (2, row.dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)
    assert features.shape[1] == tokens
    assert row.prefix_tokens == prefix
    assert with_model_facts(row, model) == row


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


def test_gigapath_sees_the_centre_of_its_tile_at_the_same_scale() -> None:
    tiles = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    images = to_input(tiles, BACKBONES["gigapath"])
    frame = torch.full_like(tiles, 255)
    frame[:, 16:240, 16:240] = tiles[:, 16:240, 16:240]
    mean, deviation = (torch.tensor(values) for values in BACKBONES["gigapath"].mean_std or ())
    expected = (tiles[:, 16:240, 16:240].float() / 255 - mean) / deviation
    assert torch.equal(images, to_input(frame, BACKBONES["gigapath"]))
    assert torch.allclose(images, expected.permute(0, 3, 1, 2), atol=1e-6)


def test_uni_sees_its_whole_tile() -> None:
    tiles = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    marked = tiles.clone()
    marked[:, 0, 0] = 255
    assert to_input(tiles, BACKBONES["uni"]).shape == (1, 3, 224, 224)
    assert not torch.equal(to_input(tiles, BACKBONES["uni"]), to_input(marked, BACKBONES["uni"]))


@pytest.mark.parametrize(("interpolation", "ties"), [("bicubic", 0.002), ("bilinear", 0.1)])
@pytest.mark.parametrize("size_px", [160, 256, 512])
def test_resizing_is_that_of_pillow(interpolation: Any, ties: float, size_px: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    row = Backbone(name="r", source="", resize_px=224, interpolation=interpolation)
    kernel = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), kernel), dtype=float)
    ours = to_input(torch.from_numpy(pixels)[None], row)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - expected).max() < 2.5  # a tie may tip the other way in both passes
    assert np.mean(np.abs(ours - expected) > 0.5) < ties


@pytest.mark.parametrize(("size_px", "mpp"), [(224, 0.5), (256, 0.25), (256, 0.506)])
def test_tiles_that_a_backbone_was_not_made_for_are_refused_with_both_named(size_px: int, mpp: float) -> None:
    with pytest.raises(TileSpecMismatchError) as caught:
        require_tiles(BACKBONES["uni"], size_px, mpp)
    for words in ("256 px @ 0.5 mpp", f"{size_px} px @ {mpp:g} mpp", "--tiles.allow_mismatch true"):
        assert words in str(caught.value)
    require_tiles(BACKBONES["uni"], size_px, mpp, allow_mismatch=True)


def test_tiles_that_fit_pass() -> None:
    require_tiles(BACKBONES["uni"], 256, 0.504)
    require_tiles(BACKBONES["virchow2"], 224, 2.0)
    require_tiles(BACKBONES["colour"], 77, 3.3)
    require_tiles(BACKBONES["resnet50"], 256, 1.7)


def test_a_tile_smaller_than_a_backbone_can_take_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(TileSpecMismatchError, match="32 px or more"):
        require_tiles(BACKBONES["colour"], 16, 0.5, allow_mismatch=True)


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"virchow2.*hf-hub:owner/name"):
        find_backbone("virchov2")


@pytest.mark.usefixtures("registered")
def test_a_backbone_of_ones_own_is_registered_with_one_call_and_only_once() -> None:
    row = Backbone(name="mine", source=f"python:{__name__}:Weighted", library="python", output="pooled")
    register_backbone(row)
    loaded = load_backbone("mine", "cpu")
    tiles = np.full((2, 32, 32, 3), 255, dtype=np.uint8)
    assert np.array_equal(loaded.embed(tiles), np.full((2, 5), 2.0, dtype=np.float16))
    assert (loaded.row.dim, loaded.identity["revision"]) == (5, "3")
    with pytest.raises(InputError, match="registered already"):
        register_backbone(row)
    with pytest.raises(InputError, match="cannot be named"):
        register_backbone(dataclasses.replace(row, name="hf-hub:a/b"))


@pytest.mark.usefixtures("registered")
def test_a_class_that_cannot_be_imported_is_named() -> None:
    register_backbone(Backbone(name="gone", source="python:no.such.module:Net", library="python"))
    with pytest.raises(BackboneError, match=r"no\.such\.module:Net"):
        load_backbone("gone", "cpu")


def test_a_local_folder_gives_what_its_model_gives(tiny: nn.Module, tiny_folder: Path) -> None:
    loaded = load_backbone(f"local-dir:{tiny_folder}", "cpu")
    tiles = random_tiles(3, 160)
    with torch.inference_mode():
        images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        expected = tiny.forward_head(tiny.forward_features(images), pre_logits=True)  # type: ignore[operator]
    assert np.allclose(loaded.embed(tiles), expected, atol=2e-3)
    assert (loaded.row.dim, loaded.row.resize_px, loaded.row.mpp, loaded.row.licence) == (64, 160, None, "apache-2.0")
    assert load_file(tiny_folder / "model.safetensors").keys() == loaded.model.state_dict().keys()


def test_position_embeddings_are_not_resampled_where_the_configuration_leaves_the_size_open(
    tiny: nn.Module, tiny_folder: Path
) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    del config["model_args"], config["pretrained_cfg"]["fixed_input_size"]
    (tiny_folder / "config.json").write_text(json.dumps(config))
    model = load_backbone(f"local-dir:{tiny_folder}", "cpu").model
    assert torch.equal(model.pos_embed, tiny.pos_embed)  # type: ignore[arg-type]


def test_the_digest_is_that_of_the_weights_and_not_of_their_file(tmp_path: Path, tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    first = load_backbone(f"local-dir:{tiny_folder}", "cpu").identity["weights_sha256"]
    (tiny_folder / "model.safetensors").unlink()
    torch.save(weights, tiny_folder / "pytorch_model.bin")
    assert load_backbone(f"local-dir:{tiny_folder}", "cpu").identity["weights_sha256"] == first
    weights["cls_token"][0, 0, 0] += 1e-3
    save_file(weights, tiny_folder / "model.safetensors")
    assert load_backbone(f"local-dir:{tiny_folder}", "cpu").identity["weights_sha256"] != first


def test_an_identity_is_json_and_says_what_decides_an_embedding(tiny_folder: Path) -> None:
    identity = load_backbone(f"local-dir:{tiny_folder}", "cpu").identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["transform"] == {
        "resize_px": 160,
        "crop_px": None,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert {key: identity[key] for key in ("name", "precision", "dim", "licence")} == {
        "name": "local-dir:tiny",
        "precision": "float32",
        "dim": 64,
        "licence": "apache-2.0",
    }


def test_weights_that_lack_a_layer_are_refused(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    del weights["blocks.0.attn.qkv.weight"]
    save_file(weights, tiny_folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"blocks\.0\.attn\.qkv\.weight"):
        load_backbone(f"local-dir:{tiny_folder}", "cpu")


def test_damaged_weights_are_refused_in_one_line(tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError) as caught:
        load_backbone(f"local-dir:{tiny_folder}", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_says_what_it_lacks(tiny_folder: Path, missing: str) -> None:
    (tiny_folder / missing).unlink()
    with pytest.raises(WeightsMissingError, match=missing):
        load_backbone(f"local-dir:{tiny_folder}", "cpu")


def test_a_configuration_of_another_library_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match="no timm model"):
        load_backbone(f"local-dir:{tiny_folder}", "cpu")


@pytest.mark.parametrize(
    "odd",
    [
        {"architecture": 5},
        {"architecture": None},
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"input_size": 5}},
        {"pretrained_cfg": {"input_size": []}},
        {"pretrained_cfg": {"input_size": [3, 160, "160"]}},
        {"pretrained_cfg": {"mean": 1}},
        {"pretrained_cfg": {"mean": ["a", "b", "c"]}},
        {"pretrained_cfg": {"mean": [0.5, 0.5]}},
        {"pretrained_cfg": {"std": [0.5, 0, 0.5]}},
    ],
    ids=json.dumps,
)
def test_a_configuration_that_says_what_no_model_has_is_refused_in_one_line(
    odd: dict[str, Any], tiny_folder: Path
) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(BackboneError, match=r"config\.json") as caught:
        find_backbone(f"local-dir:{tiny_folder}")
    assert "\n" not in str(caught.value)


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    weights["norm.weight"] *= 1e6
    save_file(weights, tiny_folder / "model.safetensors")
    with pytest.raises(BackboneError, match="not finite in float16"):
        load_backbone(f"local-dir:{tiny_folder}", "cpu").embed(random_tiles(1, 160))


def test_no_tiles_give_no_embeddings(tiny_folder: Path) -> None:
    embeddings = load_backbone(f"local-dir:{tiny_folder}", "cpu").embed(np.empty((0, 160, 160, 3), dtype=np.uint8))
    assert (embeddings.shape, embeddings.dtype) == ((0, 64), np.float16)


def test_an_embedding_does_not_depend_on_its_neighbours(tiny_folder: Path) -> None:
    loaded = load_backbone(f"local-dir:{tiny_folder}", "cpu")
    tiles = random_tiles(5, 160)
    one_by_one = np.concatenate([loaded.embed(tile[None]) for tile in tiles])
    assert np.allclose(loaded.embed(tiles), one_by_one, atol=2e-3)
    assert not np.allclose(one_by_one[0], one_by_one[1], atol=2e-3)


def test_half_precision_is_close_and_says_so(tiny_folder: Path) -> None:
    tiles = random_tiles(2, 160)
    full = load_backbone(f"local-dir:{tiny_folder}", "cpu")
    half = load_backbone(f"local-dir:{tiny_folder}", "cpu", "bfloat16")
    assert half.identity["precision"] == "bfloat16"
    assert np.allclose(full.embed(tiles), half.embed(tiles), atol=0.1)
    assert not np.array_equal(full.embed(tiles), half.embed(tiles))


@pytest.mark.usefixtures("hub")
def test_a_hub_model_is_fetched_once_and_then_works_offline(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    tiles = random_tiles(1, 160)
    local = load_backbone(f"local-dir:{tiny_folder}", "cpu")
    fetched = load_backbone("hf-hub:owner/tiny", "cpu")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cached = load_backbone("hf-hub:owner/tiny", "cpu")
    assert np.array_equal(local.embed(tiles), fetched.embed(tiles))
    assert np.array_equal(local.embed(tiles), cached.embed(tiles))
    assert local.identity["weights_sha256"] == fetched.identity["weights_sha256"]


@pytest.mark.usefixtures("hub")
def test_a_hub_model_without_safetensors_is_loaded_without_pickle(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    (tiny_folder / "model.safetensors").unlink()
    torch.save(weights, tiny_folder / "pytorch_model.bin")
    assert load_backbone("hf-hub:owner/tiny", "cpu").row.dim == 64
    torch.save({"a": Weighted()}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        load_backbone(f"local-dir:{tiny_folder}", "cpu")


@pytest.mark.usefixtures("hub", "registered")
def test_a_gated_model_says_where_to_accept_its_licence() -> None:
    with pytest.raises(WeightsMissingError) as caught:
        load_backbone("hf-hub:owner/gated", "cpu")
    for words in ("https://huggingface.co/owner/gated", "hf auth login", "HF_TOKEN"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_repository_that_does_not_exist_is_named() -> None:
    with pytest.raises(WeightsMissingError, match="no repository owner/nothing"):
        load_backbone("hf-hub:owner/nothing", "cpu")
    with pytest.raises(WeightsMissingError, match="hf-hub:owner/name"):
        load_backbone("hf-hub:", "cpu")


@pytest.mark.usefixtures("hub")
def test_a_repository_without_weights_says_what_was_looked_for(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(WeightsMissingError, match=r"model\.safetensors or pytorch_model\.bin"):
        load_backbone("hf-hub:owner/tiny", "cpu")


@pytest.mark.parametrize("name", ["uni", "resnet50", "timm/some_model", "hf-hub:owner/name"])
def test_offline_the_repository_and_the_cache_are_named(name: str, offline: Path) -> None:
    repo = BACKBONES[name].repo if name in BACKBONES else name.removeprefix("hf-hub:")
    with pytest.raises(WeightsMissingError) as caught:
        load_backbone(name, "cpu")
    for words in (f"hf download {repo}", str(offline), "HF_HUB_OFFLINE"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_a_gated_model_still_says_where_its_licence_is(offline: Path) -> None:
    assert not offline.exists()
    with pytest.raises(
        WeightsMissingError, match=r"accept the licence at https://huggingface\.co/MahmoodLab/UNI first"
    ):
        load_backbone("uni", "cpu")


def test_a_transformers_model_without_transformers_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pathfm\[hf\]'"):
        load_backbone("phikon", "cpu")


@pytest.mark.usefixtures("registered")
def test_a_transformers_model_gives_its_class_token_and_its_patches(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    row = dataclasses.replace(BACKBONES["phikon"], name="tiny", source=f"local-dir:{tmp_path}", dim=64, resize_px=32)
    register_backbone(dataclasses.replace(row, output="cls+mean"))
    tiles = random_tiles(2, 32)
    with torch.inference_mode():
        tokens = model(pixel_values=to_input(torch.from_numpy(tiles), row)).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).half().numpy()
    assert np.allclose(load_backbone("tiny", "cpu").embed(tiles), expected, atol=2e-3)


def test_the_table_lists_every_backbone_without_network(offline: Path) -> None:
    table = backbones().set_index("name")
    assert set(table.index) == set(BACKBONES)
    assert table.loc["colour", "available"] == "yes"
    assert table.loc["uni", ["dim", "tile", "licence", "gated", "available"]].to_list() == [
        1024,
        "256 px @ 0.5 mpp",
        "CC-BY-NC-ND-4.0",
        "yes",
        "no",
    ]
    assert table.loc["mstar", "licence"] == "unknown"
    assert not offline.exists()


@pytest.mark.usefixtures("hub", "registered")
def test_the_table_sees_weights_in_the_cache() -> None:
    row = dataclasses.replace(BACKBONES["uni"], name="tiny", source="hf-hub:owner/tiny", arch_kwargs={}, dim=64)
    register_backbone(row)
    load_backbone("hf-hub:owner/tiny", "cpu")
    from pathfm.backbones.weights import weights_available

    assert weights_available(row)
    assert not weights_available(BACKBONES["uni"])


def test_a_device_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="--device auto, or one of cpu"):
        resolve_device("abacus")


@pytest.mark.parametrize("device", ["cpu:x", "cpu:", "cpu:-1", "cpu:0:1", "cpu:99999999999999"])
def test_a_device_whose_number_is_none_is_refused(device: str) -> None:
    assert resolve_device("cpu:0").type == "cpu"
    with pytest.raises(InputError, match=f"no device '{device}' .*--device cpu"):
        resolve_device(device)


def save_tiny(folder: Path, model: nn.Module) -> Path:
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def random_tiles(count: int, size_px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
