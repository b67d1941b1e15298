"""Networks for pathology that were trained with images and text; of these the image half."""

from __future__ import annotations

from typing import Any

from pathfm.backbones.row import Backbone
from pathfm.backbones.rows.shared import AT_HALF_MICRON, CLIP, IMAGENET, INCEPTION, NC_ND, OUTPUTS_CLAUSE

_MUSK: dict[str, Any] = {
    "source": "hf-hub:xiangjx/musk",
    "revision": "de1ffed28608c197d2903f6fa42b491a3fbf0fb8",
    "weights_sha256": "83d9f2429ec3f04fc3bdc4bc6d8e6c78035ea196fdce9fe05d76ea0e8cad0375",
    "library": "package",
    "weights_file": "model.safetensors",
    "arch": "musk_large_patch16_384",
    "install": "pip install fairscale git+https://github.com/lilab-stanford/MUSK",
    "output": "pooled",
    "size_px": 384,
    "mpp": 0.5,
    "other_mpp": (0.25, 1.0),
    "resize_px": 384,
    "crop_px": 384,
    "mean_std": INCEPTION,
    "precision": "float16",
    "licence": NC_ND,
    "derivatives": OUTPUTS_CLAUSE,
    "gated": True,
    "citation": "Xiang et al., A vision-language foundation model for precision oncology, Nature 2025,"
    " doi:10.1038/s41586-024-08378-w",
}

LANGUAGE = (
    Backbone(
        name="plip",
        source="hf-hub:vinid/plip",
        revision="67ade53ddd32195868f422585f72698ef5d15094",
        weights_sha256="98a7f8d2a1f4a8fc8f6dedb3a16ff7efbe02a7ef67c93904c80bca9767c69630",
        library="transformers",
        arch="CLIPVisionModelWithProjection",
        arch_kwargs={"patch_size": 32},
        n_params=87_849_216,
        output="pooled",
        dim=512,
        size_px=224,
        mean_std=CLIP,
        licence="unknown",
        derivatives="its page states no licence; other toolkits say non-commercial, its setup.py MIT",
        gated=False,
        citation="Huang et al., A visual-language foundation model for pathology image analysis using medical Twitter,"
        " Nature Medicine 2023, doi:10.1038/s41591-023-02504-3",
        **AT_HALF_MICRON,
    ),
    Backbone(
        name="conch",
        aliases=("conch_v1", "mahmood-conch"),
        source="hf-hub:MahmoodLab/conch",
        revision="f9ca9f877171a28ade80228fb195ac5d79003357",
        weights_sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
        library="package",
        weights_file="pytorch_model.bin",
        arch="conch_ViT-B-16",
        build="pathfm.backbones.authors:conch",
        install="pip install git+https://github.com/mahmoodlab/CONCH",
        output="pooled",
        dim=512,
        size_px=512,
        mpp=0.5,
        resize_px=448,
        crop_px=448,
        mean_std=CLIP,
        licence=NC_ND,
        derivatives=OUTPUTS_CLAUSE,
        gated=True,
        citation="Lu et al., A visual-language foundation model for computational pathology, Nature Medicine 2024,"
        " doi:10.1038/s41591-024-02856-4",
    ),
    # as its README has it for multiple-instance learning: the tile at two scales, side by side
    Backbone(name="musk", build="pathfm.backbones.authors:musk", dim=2048, **_MUSK),
    Backbone(name="musk-single-scale", build="pathfm.backbones.authors:musk_single_scale", dim=1024, **_MUSK),
    Backbone(
        name="keep",
        source="hf-hub:Astaxanthin/KEEP",
        library="package",
        weights_file="model.safetensors",
        arch="vit_large_patch16_224",
        build="pathfm.backbones.authors:keep",
        output="pooled",
        dim=768,
        size_px=256,
        crop_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence="MIT",
        gated=False,
        citation="Zhou et al., A knowledge-enhanced pathology vision-language foundation model for cancer diagnosis, 2024,"
        " arXiv:2412.13126",
        **AT_HALF_MICRON,
    ),
)
