"""Hibou's networks by transformers' own classes: its authors' names for the parts, and the equations of its network."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from pathfm.backbones import BACKBONES, load_backbone, register_backbone
from pathfm.backbones.transform import to_input

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS, INNER = 64, 2, 4, 176  # the inner width of its SwiGLU: two thirds of 4 * 64, up to a multiple of 8
CONFIG = {
    "architectures": ["HibouModel"],
    "auto_map": {"AutoModel": "modeling_hibou.HibouModel"},
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": 224,
    "patch_size": 14,
    "use_swiglu_ffn": True,
    "mlp_ratio": 4,
    "num_register_tokens": 4,
    "layer_norm_eps": 1e-6,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights as its repository names them."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 257, WIDTH),
        "embeddings.register_tokens": (1, 4, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in range(DEPTH):
        block = {
            **{f"attention.attention.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")},
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.weights_in": (2 * INNER, WIDTH),
            "mlp.weights_out": (WIDTH, INNER),
        }
        at = f"encoder.layer.{layer}."
        shapes |= {f"{at}{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"{at}{name}.bias": shape[:1] for name, shape in block.items()}
        shapes |= {f"{at}norm{n}.{kind}": (WIDTH,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{at}layer_scale{n}.lambda1": (WIDTH,) for n in (1, 2)}
    random = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_weights_as_its_authors_name_them_give_what_its_equations_give(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))
    row = replace(
        BACKBONES["hibou-b"],
        name="small-hibou",
        aliases=(),
        source=f"local-dir:{folder}",
        revision="main",
        weights_sha256="",
        dim=WIDTH,
        n_params=None,
        arch_kwargs={"hidden_size": WIDTH, "use_swiglu_ffn": True, "num_register_tokens": 4},
    )
    register_backbone(row)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    given = load_backbone("small-hibou", "cpu").embed(tiles).astype(np.float32)
    from safetensors.torch import load_file

    wanted = class_token(to_input(torch.from_numpy(tiles), row), load_file(folder / "model.safetensors")).numpy()
    assert np.abs(given - wanted).max() < 2e-3  # float16


def class_token(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """DINOv2 with registers (Darcet et al., ICLR 2024, arXiv:2309.16588), float (b, WIDTH)."""
    count = len(images)
    projection = "embeddings.patch_embeddings.projection"
    patches = functional.conv2d(images, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=14)
    tokens = torch.cat([state["embeddings.cls_token"].expand(count, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + state["embeddings.position_embeddings"]
    registers = state["embeddings.register_tokens"].expand(count, -1, -1)
    tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for layer in range(DEPTH):
        tokens = _block(
            tokens, {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"encoder.layer.{layer}.")}
        )
    return functional.layer_norm(tokens, (WIDTH,), state["layernorm.weight"], state["layernorm.bias"], 1e-6)[:, 0]


def _block(tokens: Tensor, part: dict[str, Tensor]) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, part[f"{name}.weight"], part[f"{name}.bias"])

    def norm(name: str) -> Tensor:
        return functional.layer_norm(tokens, (WIDTH,), part[f"{name}.weight"], part[f"{name}.bias"], 1e-6)

    parts = [linear(f"attention.attention.{name}", norm("norm1")) for name in ("query", "key", "value")]
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in parts)
    weights = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
    tokens = tokens + part["layer_scale1.lambda1"] * linear(
        "attention.output.dense", (weights @ value).transpose(1, 2).flatten(2)
    )
    gate, up = linear("mlp.weights_in", norm("norm2")).chunk(2, dim=-1)
    return tokens + part["layer_scale2.lambda1"] * linear("mlp.weights_out", functional.silu(gate) * up)
