"""What of a sequence of tokens is the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pathfm.backbones.row import Output


def pool_tokens(tokens: Tensor, output: Output, prefix_tokens: int) -> Tensor:
    """The embedding in a sequence of tokens.

    Args:
        tokens: float (b, t, d): the class token, the registers, then the patches.
        output: "cls", "mean" of the patches, or "cls+mean", one beside the other.
        prefix_tokens: class token and registers; no mean has them.

    Returns:
        float (b, d), or (b, 2 d) for "cls+mean".
    """
    if output == "cls":
        return tokens[:, 0]
    patches = tokens[:, prefix_tokens:].mean(dim=1)
    return patches if output == "mean" else torch.cat([tokens[:, 0], patches], dim=1)
