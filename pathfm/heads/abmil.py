"""Attention-based MIL: Ilse, Tomczak and Welling (2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from pathfm.heads.gated import AttentionBody, gain_over_mean
from pathfm.heads.packed import Bags, HeadOutput
from pathfm.heads.pooling import Pooling

if TYPE_CHECKING:
    from pathfm.heads.layers import HeadShape


class GatedAttention(Pooling):
    """Attention-based MIL with gating.

    An instance x becomes h = relu(Wx); its attention is softmax over the bag of w'(tanh(Vh) * sigmoid(Uh)); the bag is
    the attention-weighted sum of h. A bag of 0 instances is the zero vector, so its logits are the classifier's bias.
    """

    paper = "Ilse, Tomczak and Welling (2018), Attention-based deep multiple instance learning, equations 7 and 9"
    attention: ClassVar[Literal["none", "one", "each output"]] = "one"
    gated: ClassVar[bool] = True

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.body = AttentionBody(dim, shape, gated=self.gated)
        self.classifier = nn.Linear(shape.hidden, n_outputs)

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c) and attention (sum_n, 1)."""
        attended = self.body(bags)
        return HeadOutput(self.classifier(attended.pooled.squeeze(1)), attended.attention)


class Attention(GatedAttention):
    """Attention-based MIL without gating: softmax over the bag of w'tanh(Vh)."""

    paper = "Ilse, Tomczak and Welling (2018), Attention-based deep multiple instance learning, equations 7 and 8"
    gated = False


class MultiBranchGatedAttention(Pooling):
    """Attention-based MIL with gating and a branch of attention for each output.

    The branches share h, V and U; each has its w, its attended sum and one linear layer from that to its logit.
    """

    paper = (
        "Ilse, Tomczak and Welling (2018), equations 7 and 9, with the branches of Lu et al. (2021), "
        "Data-efficient and weakly supervised computational pathology on whole-slide images"
    )
    attention: ClassVar[Literal["none", "one", "each output"]] = "each output"

    def __init__(self, dim: int, n_outputs: int, shape: HeadShape) -> None:
        super().__init__()
        self.body = AttentionBody(dim, shape, n_outputs)
        self.classifier = nn.Linear(shape.hidden, n_outputs)  # row c reads the sum of branch c

    def forward(self, bags: Bags) -> HeadOutput:
        """Logits (b, c), attention (sum_n, c), and in evaluation the gain (b, c, c)."""
        attended = self.body(bags)
        logits = (attended.pooled * self.classifier.weight).sum(dim=2) + self.classifier.bias
        if self.training:
            return HeadOutput(logits, attended.attention)
        gain = gain_over_mean(attended, self.classifier.weight, bags.lengths.tolist())
        return HeadOutput(logits, attended.attention, gain)
