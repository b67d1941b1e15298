"""Small networks for pathology, open to everybody: those of Lunit and of kaiko."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm.backbones.row import Backbone
from pathfm.backbones.rows.shared import AT_HALF_MICRON, INCEPTION, NC_CLAUSE, TOKENS

if TYPE_CHECKING:
    from pathfm.backbones.row import Rgb

_LUNIT: tuple[Rgb, Rgb] = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
_KAIKO_REPO = "hf-hub:1aurent/{}.kaiko_ai_towards_large_pathology_fms"

_LUNITS = tuple(
    Backbone(
        name=f"lunit-vits{patch}",
        aliases=aliases,
        source=f"hf-hub:1aurent/vit_small_patch{patch}_224.lunit_dino",
        revision=revision,
        weights_sha256=sha256,
        arch=f"vit_small_patch{patch}_224.dino",
        n_params=n_params,
        shapes_sha8=shapes,
        outputs=TOKENS,
        prefix_tokens=1,
        dim=384,
        size_px=224,
        mean_std=_LUNIT,
        licence="Lunit non-commercial",
        derivatives=NC_CLAUSE,
        gated=False,
        citation="Kang et al., Benchmarking self-supervised learning on diverse pathology datasets, CVPR 2023, arXiv:2212.04690",
        **AT_HALF_MICRON,
    )
    for patch, n_params, shapes, revision, sha256, aliases in (
        (
            16,
            21_665_664,
            "a89d9812",
            "9ed09909d93f9d39a092d8e49717ae48f9b44e6f",
            "a19eb37d6cf038a7e8a34c7e9ec50698d02759b2f49dd799492f6ce7e4cb5937",
            ("pathology/lunit_vits16", "lunit_vit_small_patch16_dino"),
        ),
        (
            8,
            21_670_272,
            "925a4895",
            "c23bc01cfbe022bc1f2a8a9306125a07818e4eb4",
            "0b7e0236ce430064b31485bbb6f85e661dc5eca0cde709e8f04d59f1c2b23e0b",
            ("pathology/lunit_vits8", "lunit_vit_small_patch8_dino", "lunit"),
        ),
    )
)

_KAIKOS = tuple(
    Backbone(
        name=f"kaiko-{size}",
        aliases=(f"pathology/kaiko_{size}",),
        source=_KAIKO_REPO.format(repo),
        revision=revision,
        weights_sha256=sha256,
        arch=arch,
        arch_kwargs={"dynamic_img_size": True} | ({"img_size": 518} if size == "vitl14" else {}),
        n_params=n_params,
        shapes_sha8=shapes,
        outputs=TOKENS,
        prefix_tokens=prefix,
        dim=dim,
        size_px=256,
        crop_px=224,
        interpolation="bilinear",
        mean_std=INCEPTION,
        licence="kaiko-non-commercial",
        derivatives=NC_CLAUSE,
        gated=False,
        citation="kaiko.ai, Towards large-scale training of pathology foundation models, 2024, arXiv:2404.15217",
        **AT_HALF_MICRON,
    )
    for size, repo, arch, dim, prefix, n_params, shapes, revision, sha256 in (
        (
            "vits16",
            "vit_small_patch16_224",
            "vit_small_patch16_224",
            384,
            1,
            21_665_664,
            "a89d9812",
            "48560ea39969fe44b7b2ab057de01484243a7d43",
            "",
        ),
        (
            "vits8",
            "vit_small_patch8_224",
            "vit_small_patch8_224",
            384,
            1,
            21_670_272,
            "925a4895",
            "003775444da0119f90ca63e2b86e454fd06ba797",
            "",
        ),
        (
            "vitb16",
            "vit_base_patch16_224",
            "vit_base_patch16_224",
            768,
            1,
            85_798_656,
            "279bdab9",
            "797c524a94c7fdae8ea33064d0ac6966ed8956bb",
            "",
        ),
        (
            "vitb8",
            "vit_base_patch8_224",
            "vit_base_patch8_224",
            768,
            1,
            85_807_872,
            "745fc2aa",
            "a4eb74de76274a5f3fe8260841a1b07a90930f43",
            "",
        ),
        (
            "vitl14",
            "vit_large_patch14_reg4_224",
            "vit_large_patch14_reg4_dinov2",
            1024,
            5,
            304_370_688,
            "362dd313",
            "fb802e347d2c59f05207b70ad75f7df30019c188",
            "149c8b21c60a7115a17572073b09ef142411c91b5194c84a99ebba8b83f20e69",
        ),
    )
)

SMALL = (*_LUNITS, *_KAIKOS)
