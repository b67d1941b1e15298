"""What several rows state in the same words: normalisations and clauses of licences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathfm.backbones.row import Output, Rgb

IMAGENET: tuple[Rgb, Rgb] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION: tuple[Rgb, Rgb] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP: tuple[Rgb, Rgb] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# All that a transformer with class token and patch tokens can give.
TOKENS: tuple[Output, ...] = ("cls", "cls+mean", "mean")

AT_HALF_MICRON: dict[str, Any] = {"mpp": 0.5, "resize_px": 224}

NC_ND = "CC-BY-NC-ND-4.0"
NC_ND_CLAUSE = "non-commercial use with credit; what is adapted from the weights may not be shared"
# as the pages of Mahmood's laboratory, of Paige (Virchow2), of Bioptimus and of MUSK have it
OUTPUTS_CLAUSE = (
    "non-commercial academic research with credit; its page counts models trained on its outputs, and datasets made from"
    " them, among the derivatives, whose commercial use is prohibited without prior approval"
)
NC_CLAUSE = "no commercial use; of embeddings and heads the terms on its page decide"
