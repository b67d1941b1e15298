from __future__ import annotations

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tinymodels import Weighted, random_tiles, save_tiny, tiny_model

from pathfm.backbones import (
    BACKBONES,
    load_backbone,
    register_backbone,
    resolve_device,
)
from pathfm.errors import (
    BackboneError,
    InputError,
    WeightsMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn


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
    return tiny_model()


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


def test_a_local_folder_gives_what_its_model_gives(tiny: nn.Module, tiny_folder: Path) -> None:
    loaded = load_backbone(f"local-dir:{tiny_folder}", "cpu")
    tiles = random_tiles(3, 160)
    with torch.inference_mode():
        images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        expected = tiny.forward_head(tiny.forward_features(images), pre_logits=True)  # type: ignore[operator]
    assert np.allclose(loaded.embed(tiles), expected, atol=2e-3)
    assert (loaded.row.dim, loaded.row.resize_px, loaded.row.mpp, loaded.row.licence) == (64, 160, None, "apache-2.0")
    # all of the file but the head, which is never used
    names = load_file(tiny_folder / "model.safetensors").keys() - {"head.weight", "head.bias"}
    assert names == loaded.model.state_dict().keys()


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
    assert {key: identity[key] for key in ("name", "precision", "dim")} == {
        "name": "local-dir:tiny",
        "precision": "float32",
        "dim": 64,
    }
    assert "licence" not in identity


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


@pytest.mark.usefixtures("hub", "registered")
def test_the_table_sees_weights_in_the_cache() -> None:
    row = dataclasses.replace(
        BACKBONES["mstar"], name="tiny", source="hf-hub:owner/tiny", arch="", arch_kwargs={}, dim=64
    )
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
