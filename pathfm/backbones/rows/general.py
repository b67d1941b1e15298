"""Backbones that nobody made for pathology: the control without weights, and networks of natural images."""

from __future__ import annotations

from pathfm.backbones.row import Backbone
from pathfm.backbones.rows.shared import IMAGENET, TOKENS

_RESNET = "He et al., Deep residual learning for image recognition, CVPR 2016, arXiv:1512.03385"
_GEMMA_KEYS = {"key_mapping": {r"^model\.vision_tower\.": ""}}

GENERAL = (
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
        aliases=("resnet50_trunc", "resnet50-trunc"),
        source="hf-hub:timm/resnet50.tv_in1k",
        revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        weights_sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        arch="resnet50",
        n_params=8_543_296,
        shapes_sha8="b6cc64af",
        output="layer3",
        dim=1024,
        size_px=256,
        resize_px=224,
        interpolation="bilinear",
        mean_std=IMAGENET,
        licence="BSD-3-Clause",
        gated=False,
        citation=_RESNET,
    ),
    Backbone(
        name="resnet50-full",
        source="hf-hub:timm/resnet50.tv_in1k",
        revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        weights_sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        arch="resnet50",
        n_params=23_508_032,
        shapes_sha8="8d26041d",
        output="pooled",
        dim=2048,
        size_px=256,
        resize_px=224,
        interpolation="bilinear",
        mean_std=IMAGENET,
        licence="BSD-3-Clause",
        gated=False,
        citation=_RESNET,
    ),
    Backbone(
        name="dinov2-vitb14",
        source="hf-hub:timm/vit_base_patch14_dinov2.lvd142m",
        revision="4685c99dabffe5affac90bd99dbffd25801ae58d",
        weights_sha256="55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
        arch="vit_base_patch14_dinov2",
        arch_kwargs={"img_size": 518, "dynamic_img_size": True},
        n_params=86_579_712,
        shapes_sha8="4a6cf344",
        outputs=TOKENS,
        prefix_tokens=1,
        dim=768,
        size_px=224,
        resize_px=224,
        mean_std=IMAGENET,
        precision="float16",
        licence="Apache-2.0",
        gated=False,
        citation="Oquab et al., DINOv2: Learning robust visual features without supervision, TMLR 2024, arXiv:2304.07193",
    ),
    # Patches of 16 px, 3 x 3 of them pooled to a token, on tiles enlarged to 768 px as its image processor does it;
    # which is why it states no mean and deviation either: the network scales its input itself.
    Backbone(
        name="gemma4-e4b",
        source="hf-hub:google/gemma-4-E4B",
        revision="411aa17b749aa952df1359d2dcea73917a544d9a",
        weights_sha256="43fb96cec3045b72852c787540300dc5b258634b7a025f7c80355ac0788b9651",
        library="transformers",
        arch="Gemma4VisionModel",
        load_kwargs=_GEMMA_KEYS,
        n_params=167_364_608,
        output="mean",
        dim=768,
        size_px=224,
        resize_px=768,
        precision="bfloat16",
        licence="Apache-2.0",
        gated=False,
    ),
)
