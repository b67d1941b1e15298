"""The table of backbones: rows of facts, no code. A model is added here, or from outside with `register_backbone`."""

from __future__ import annotations

from typing import Any

from pathfm.backbones.row import Backbone, Rgb
from pathfm.errors import InputError, UnknownNameError

IMAGENET: tuple[Rgb, Rgb] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION: tuple[Rgb, Rgb] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
H_OPTIMUS: tuple[Rgb, Rgb] = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
LUNIT: tuple[Rgb, Rgb] = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)


BACKBONES: dict[str, Backbone] = {}


def register_backbone(row: Backbone) -> None:
    """Adds a backbone under its name, for this process.

    A variant of a known one is `dataclasses.replace(BACKBONES["virchow2"], name="virchow2-cls", output="cls", dim=1280)`.

    Raises:
        InputError: the name is taken, or looks like a source ("hf-hub:...", a path).
    """
    if row.name in BACKBONES:
        message = f"a backbone named {row.name!r} is registered already; give the new one another name"
        raise InputError(message)
    if not row.name or any(c in row.name for c in ":/\\"):
        message = f"a backbone cannot be named {row.name!r}; use letters, digits and dashes"
        raise InputError(message)
    BACKBONES[row.name] = row


def known_backbone(name: str) -> Backbone:
    """The row of a name in the table.

    Raises:
        UnknownNameError: lists the near names.
    """
    if name not in BACKBONES:
        remedy = "pathfm backbones lists them; any timm model is taken as hf-hub:owner/name or local-dir:/folder"
        kind = "backbone"
        raise UnknownNameError(kind, name, BACKBONES, remedy)
    return BACKBONES[name]


_VIT_H: dict[str, Any] = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
}
_VIT_L: dict[str, Any] = {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True}
_UNI2: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
    "dynamic_img_size": True,
}
_GIGAPATH: dict[str, Any] = {
    "img_size": 224,
    "in_chans": 3,
    "patch_size": 16,  # the architecture's name says 14
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
    "dynamic_img_size": True,
}
_H_OPTIMUS: dict[str, Any] = {"img_size": 224, "global_pool": "token", "init_values": 1e-5, "dynamic_img_size": False}
_H0_MINI: dict[str, Any] = {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334}

_AT_HALF_MICRON: dict[str, Any] = {"mpp": 0.5, "resize_px": 224}
_KAIKO: dict[str, Any] = {
    "arch_kwargs": {"dynamic_img_size": True},
    "prefix_tokens": 1,
    "size_px": 256,
    "crop_px": 224,
    "mean_std": INCEPTION,
    "licence": "kaiko-non-commercial",
    "gated": False,
    **_AT_HALF_MICRON,
}
_KAIKO_REPO = "hf-hub:1aurent/{}.kaiko_ai_towards_large_pathology_fms"
_NON_COMMERCIAL = "CC-BY-NC-ND-4.0"

_ROWS = (
    Backbone(
        name="colour",
        source="python:pathfm.backbones.colour:ColourTexture",
        library="python",
        output="pooled",
        least_px=32,
        licence="Apache-2.0",
        gated=False,
    ),
    Backbone(
        name="resnet50",
        source="hf-hub:timm/resnet50.tv_in1k",
        arch="resnet50",
        output="layer3",
        dim=1024,
        size_px=256,
        resize_px=224,
        mean_std=IMAGENET,
        licence="BSD-3-Clause",
        gated=False,
    ),
    Backbone(
        name="dinov2-vitb14",
        source="hf-hub:timm/vit_base_patch14_dinov2.lvd142m",
        arch="vit_base_patch14_dinov2",
        arch_kwargs={"dynamic_img_size": True},
        prefix_tokens=1,
        dim=768,
        size_px=224,
        resize_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence="Apache-2.0",
        gated=False,
    ),
    Backbone(
        name="uni",
        source="hf-hub:MahmoodLab/UNI",
        arch="vit_large_patch16_224",
        arch_kwargs=_VIT_L,
        prefix_tokens=1,
        dim=1024,
        size_px=256,
        crop_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence=_NON_COMMERCIAL,
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        arch="vit_giant_patch14_224",
        arch_kwargs=_UNI2,
        swiglu=True,
        prefix_tokens=9,
        dim=1536,
        size_px=256,
        crop_px=224,
        mean_std=IMAGENET,
        precision="bfloat16",
        licence=f"{_NON_COMMERCIAL}; its terms cover models trained on its embeddings",
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="virchow",
        source="hf-hub:paige-ai/Virchow",
        arch="vit_huge_patch14_224",
        arch_kwargs=_VIT_H,
        swiglu=True,
        output="cls+mean",
        prefix_tokens=1,
        dim=2560,
        size_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence="Apache-2.0",
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="virchow2",
        source="hf-hub:paige-ai/Virchow2",
        arch="vit_huge_patch14_224",
        arch_kwargs={**_VIT_H, "reg_tokens": 4},
        swiglu=True,
        output="cls+mean",
        prefix_tokens=5,
        dim=2560,
        size_px=224,
        other_mpp=(0.25, 1.0, 2.0),
        mean_std=IMAGENET,
        precision="float16",
        licence=_NON_COMMERCIAL,
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="gigapath",
        source="hf-hub:prov-gigapath/prov-gigapath",
        arch="vit_giant_patch14_dinov2",
        arch_kwargs=_GIGAPATH,
        prefix_tokens=1,
        dim=1536,
        size_px=256,
        mpp=0.5,
        resize_px=256,  # not 224: that would show it 0.57 mpp
        crop_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence="Apache-2.0; its page says research only",
        gated=True,
    ),
    Backbone(
        name="h-optimus-0",
        source="hf-hub:bioptimus/H-optimus-0",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs=_H_OPTIMUS,
        prefix_tokens=5,
        dim=1536,
        size_px=224,
        mean_std=H_OPTIMUS,
        precision="float16",
        licence="Apache-2.0",
        gated=None,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="h-optimus-1",
        source="hf-hub:bioptimus/H-optimus-1",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs=_H_OPTIMUS,
        prefix_tokens=5,
        dim=1536,
        size_px=224,
        mean_std=H_OPTIMUS,
        precision="float16",
        licence=_NON_COMMERCIAL,
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="h0-mini",
        source="hf-hub:bioptimus/H0-mini",
        arch="vit_base_patch14_reg4_dinov2",
        arch_kwargs=_H0_MINI,
        swiglu=True,
        output="cls+mean",
        prefix_tokens=5,
        dim=1536,
        size_px=224,
        crop_px=224,
        mean_std=H_OPTIMUS,
        precision="float16",
        licence=_NON_COMMERCIAL,
        gated=True,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="mstar",
        source="hf-hub:Wangyh/mSTAR",
        arch="vit_large_patch16_224",
        arch_kwargs=_VIT_L,
        prefix_tokens=1,
        dim=1024,
        size_px=256,
        mean_std=IMAGENET,
        gated=True,
        **_AT_HALF_MICRON,
    ),
    *(
        Backbone(
            name=f"lunit-vits{patch}",
            source=f"hf-hub:1aurent/vit_small_patch{patch}_224.lunit_dino",
            arch=f"vit_small_patch{patch}_224.dino",
            prefix_tokens=1,
            dim=384,
            size_px=224,
            mean_std=LUNIT,
            licence="Lunit non-commercial",
            gated=False,
            **_AT_HALF_MICRON,
        )
        for patch in (16, 8)
    ),
    *(
        Backbone(name=name, source=_KAIKO_REPO.format(repo), arch=arch, dim=dim, **{**_KAIKO, "prefix_tokens": prefix})
        for name, repo, arch, dim, prefix in (
            ("kaiko-vits16", "vit_small_patch16_224", "vit_small_patch16_224", 384, 1),
            ("kaiko-vits8", "vit_small_patch8_224", "vit_small_patch8_224", 384, 1),
            ("kaiko-vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 768, 1),
            ("kaiko-vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 768, 1),
            ("kaiko-vitl14", "vit_large_patch14_reg4_224", "vit_large_patch14_reg4_dinov2", 1024, 5),
        )
    ),
    Backbone(
        name="phikon",
        source="hf-hub:owkin/phikon",
        library="transformers",
        arch_kwargs={"add_pooling_layer": False},
        prefix_tokens=1,
        dim=768,
        size_px=224,
        mean_std=IMAGENET,
        licence="Owkin non-commercial",
        gated=False,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="phikon-v2",
        source="hf-hub:owkin/phikon-v2",
        library="transformers",
        prefix_tokens=1,
        dim=1024,
        size_px=224,
        crop_px=224,
        mean_std=IMAGENET,
        licence="Owkin non-commercial",
        gated=False,
        **_AT_HALF_MICRON,
    ),
    Backbone(
        name="midnight-12k",
        source="hf-hub:kaiko-ai/midnight",
        library="transformers",
        output="cls+mean",
        prefix_tokens=1,
        dim=3072,
        size_px=224,
        other_mpp=(0.25, 1.0, 2.0),
        crop_px=224,
        mean_std=INCEPTION,
        precision="float16",
        licence="MIT",
        gated=None,
        **_AT_HALF_MICRON,
    ),
)

for _row in _ROWS:
    register_backbone(_row)
