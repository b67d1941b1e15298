"""Networks that their authors publish as code alone, which pathfm does not run: known, so that features can be imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathfm.backbones.row import Backbone
from pathfm.backbones.rows.shared import AT_HALF_MICRON, IMAGENET, NC_ND, OUTPUTS_CLAUSE

if TYPE_CHECKING:
    from pathfm.backbones.row import Rgb

_GENBIO: tuple[Rgb, Rgb] = (0.697, 0.575, 0.728), (0.188, 0.240, 0.187)
_RUDOLF: tuple[Rgb, Rgb] = (0.7072, 0.5787, 0.7036), (0.2119, 0.2301, 0.1775)
_COPYLEFT = "what is derived from the weights may only be shared under the same licence"
# 10x: one micron a pixel
_CTRANSPATH: dict[str, Any] = {
    "library": "remote",
    "output": "pooled",
    "dim": 768,
    "size_px": 256,
    "mpp": 1.0,
    "resize_px": 224,
    "interpolation": "bilinear",
    "mean_std": IMAGENET,
    "derivatives": _COPYLEFT,
    "gated": False,
}

_RUDOLFS = tuple(
    Backbone(
        name=name,
        source=f"hf-hub:Aignostics/{repo}",
        library="remote",
        outputs=("cls", "cls+mean"),
        prefix_tokens=9,
        dim=dim,
        size_px=224,
        other_mpp=(0.25, 1.0, 2.0),
        mean_std=_RUDOLF,
        **AT_HALF_MICRON,
    )
    for name, repo, dim in (
        ("rudolfv2", "RudolfV-2", 1536),
        ("rudolfv2-b", "RudolfV-2-B", 768),
        ("rudolfv2-s", "RudolfV-2-S", 384),
    )
)

UNBUILT = (
    Backbone(
        name="ctranspath",
        source="https://github.com/Xiyue-Wang/TransPath",
        licence="GPL-3.0",
        citation="Wang et al., Transformer-based unsupervised contrastive learning for histopathological image classification,"
        " Medical Image Analysis 2022, doi:10.1016/j.media.2022.102559",
        **_CTRANSPATH,
    ),
    Backbone(
        name="chief-ctranspath",
        source="https://github.com/hms-dbmi/CHIEF",
        licence="AGPL-3.0",
        citation="Wang et al., A pathology foundation model for cancer diagnosis and prognosis prediction, Nature 2024,"
        " doi:10.1038/s41586-024-07894-z",
        **_CTRANSPATH,
    ),
    Backbone(
        name="conch-v1.5",
        aliases=("conch_v15", "conchv15", "conchv1_5", "conch1_5", "mahmood-conch1_5"),
        source="hf-hub:MahmoodLab/conchv1_5",
        library="remote",
        output="pooled",
        dim=768,
        size_px=512,
        mpp=0.5,
        resize_px=448,
        crop_px=448,
        mean_std=IMAGENET,
        precision="float16",
        licence=NC_ND,
        derivatives=OUTPUTS_CLAUSE,
        gated=True,
        citation="Ding et al., Multimodal whole slide foundation model for pathology, Nature Medicine 2025,"
        " doi:10.1038/s41591-025-03982-3",
    ),
    *_RUDOLFS,
    Backbone(
        name="genbio-pathfm",
        aliases=("genbio_pathfm",),
        source="hf-hub:genbio-ai/genbio-pathfm",
        library="remote",
        output="pooled",  # the class tokens of the three colour channels, each seen on its own
        dim=4608,
        size_px=224,
        mean_std=_GENBIO,
        licence="GenBio AI Community License",
        derivatives="on the terms of its page",
        gated=None,
        **AT_HALF_MICRON,
    ),
)
