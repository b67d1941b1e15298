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
    for patch, n_params, shapes, aliases in (
        (16, 21_665_664, "a89d9812", ("pathology/lunit_vits16", "lunit_vit_small_patch16_dino")),
        (8, 21_670_272, "925a4895", ("pathology/lunit_vits8", "lunit_vit_small_patch8_dino", "lunit")),
    )
)

_KAIKOS = tuple(
    Backbone(
        name=f"kaiko-{size}",
        aliases=(f"pathology/kaiko_{size}",),
        source=_KAIKO_REPO.format(repo),
        arch=arch,
        arch_kwargs={"dynamic_img_size": True},
        n_params=n_params,
        shapes_sha8=shapes,
        outputs=TOKENS,
        prefix_tokens=prefix,
        dim=dim,
        size_px=256,
        crop_px=224,
        mean_std=INCEPTION,
        licence="kaiko-non-commercial",
        derivatives=NC_CLAUSE,
        gated=False,
        citation="kaiko.ai, Towards large-scale training of pathology foundation models, 2024, arXiv:2404.15217",
        **AT_HALF_MICRON,
    )
    for size, repo, arch, dim, prefix, n_params, shapes in (
        ("vits16", "vit_small_patch16_224", "vit_small_patch16_224", 384, 1, 21_665_664, "a89d9812"),
        ("vits8", "vit_small_patch8_224", "vit_small_patch8_224", 384, 1, 21_670_272, "925a4895"),
        ("vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 768, 1, 85_798_656, "279bdab9"),
        ("vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 768, 1, 85_807_872, "745fc2aa"),
        ("vitl14", "vit_large_patch14_reg4_224", "vit_large_patch14_reg4_dinov2", 1024, 5, 304_370_688, "362dd313"),
    )
)

SMALL = (*_LUNITS, *_KAIKOS)
