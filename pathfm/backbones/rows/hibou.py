"""The networks of Hibou, whose own code transformers has made superfluous."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm.backbones.row import Backbone
from pathfm.backbones.rows.shared import AT_HALF_MICRON, TOKENS

if TYPE_CHECKING:
    from pathfm.backbones.row import Rgb

_NORM: tuple[Rgb, Rgb] = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)

# Their own classes, published as code of the repository, name the parts of the network as transformers does.
HIBOU = tuple(
    Backbone(
        name=f"hibou-{size}",
        aliases=(f"hibou_{size}", f"pathology/histai_hibou_{size}"),
        source=f"hf-hub:histai/{repo}",
        revision=revision,
        weights_sha256=sha256,
        library="transformers",
        arch="Dinov2WithRegistersModel",
        arch_kwargs={
            "hidden_size": dim,
            "num_hidden_layers": depth,
            "num_attention_heads": dim // 64,
            "image_size": 224,
            "patch_size": 14,
            "use_swiglu_ffn": True,
            "num_register_tokens": 4,
        },
        n_params=n_params,
        outputs=TOKENS,
        prefix_tokens=5,
        dim=dim,
        size_px=224,
        crop_px=224,
        mean_std=_NORM,
        licence="Apache-2.0",
        gated=True,
        citation="Nechaev et al., Hibou: A family of foundational vision transformers for pathology, 2024, arXiv:2406.05074",
        **AT_HALF_MICRON,
    )
    for size, repo, dim, depth, n_params, revision, sha256 in (
        (
            "b",
            "hibou-b",
            768,
            12,
            85_741_056,
            "7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c",
            "2121db3cac83bc9abf13a458a37b0740e2ce725609ff8d4b8e6b6c56c30c3ab6",
        ),
        ("l", "hibou-L", 1024, 24, 303_659_264, "main", ""),
    )
)
