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
        arch="resnet50",
        n_params=8_543_296,
        shapes_sha8="b6cc64af",
        output="layer3",
        dim=1024,
        size_px=256,
        resize_px=224,
        mean_std=IMAGENET,
        licence="BSD-3-Clause",
        gated=False,
        citation=_RESNET,
    ),
    Backbone(
        name="resnet50-full",
        source="hf-hub:timm/resnet50.tv_in1k",
        arch="resnet50",
        n_params=23_508_032,
        shapes_sha8="8d26041d",
        output="pooled",
        dim=2048,
        size_px=256,
        resize_px=224,
        mean_std=IMAGENET,
        licence="BSD-3-Clause",
        gated=False,
        citation=_RESNET,
    ),
    Backbone(
        name="dinov2-vitb14",
        source="hf-hub:timm/vit_base_patch14_dinov2.lvd142m",
        arch="vit_base_patch14_dinov2",
        arch_kwargs={"dynamic_img_size": True},
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
        library="transformers",
        arch="Gemma4VisionModel",
        load_kwargs=_GEMMA_KEYS,
        n_params=167_364_608,
        shapes_sha8="b83f7e5c",
        output="mean",
        dim=768,
        size_px=224,
        resize_px=768,
        precision="bfloat16",
    ),
    Backbone(
        name="gemma4-26b",
        source="hf-hub:google/gemma-4-26B-A4B",
        library="transformers",
        arch="Gemma4VisionModel",
        # width as published; depth and heads are those of other networks of this width, and not verified
        arch_kwargs={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 72,
        },
        load_kwargs=_GEMMA_KEYS,
        n_params=569_548_080,
        shapes_sha8="32fa678e",
        output="mean",
        dim=1152,
        size_px=224,
        resize_px=768,
        precision="bfloat16",
    ),
)
