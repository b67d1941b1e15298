"""The settings of a training: fields, help texts and command-line options are one and the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pathfm.errors import InputError

_WIDEST = 1 << 16  # no head is wider; a typing error would ask for terabytes


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a head is trained."""

    epochs: int = 50
    """Most passes over the training slides; early stopping ends sooner."""
    lr: float = 3e-4
    """Learning rate of AdamW at the start; it falls to 0 along a cosine over the epochs."""
    weight_decay: float = 1e-5
    """Weight decay of AdamW."""
    dropout: float = 0.25
    """Share of the hidden layer dropped in training."""
    hidden: int = 512
    """Width of the layer after the embedding."""
    attention: int = 256
    """Width of the attention branches."""
    batch_size: int = 1
    """Slides a step; each is taken whole."""
    patience: int = 10
    """Epochs without a lower loss on the stopping patients before training stops."""
    min_epochs: int = 10
    """First epoch that may be kept or stopped at: on few stopping patients the loss often rises before it falls."""
    stop_share: float = 0.2
    """Share of the training patients kept aside to decide when to stop; 0 trains all epochs on all of them."""
    class_weights: bool = True
    """Weigh each slide by the inverse frequency of its class."""
    seed: int = 0
    """Of the weights, the order of the slides, the dropout and the splits; the same seed gives the same model on a CPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes an accelerator where there is one."""

    def __post_init__(self) -> None:
        for name in ("epochs", "hidden", "attention", "batch_size", "patience", "min_epochs"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("hidden", "attention"):
            _require(name, getattr(self, name), getattr(self, name) <= _WIDEST, f"at most {_WIDEST}")
        _require("lr", self.lr, 0 < self.lr <= 1, "above 0, up to 1")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _require("dropout", self.dropout, 0 <= self.dropout < 1, "from 0 to below 1")
        _require("stop_share", self.stop_share, 0 <= self.stop_share <= 0.5, "from 0 to 0.5")
        _require("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")

    def head_kwargs(self) -> dict[str, Any]:
        """The keywords of `build_head`."""
        return {"hidden": self.hidden, "attention": self.attention, "dropout": self.dropout}


def _require(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        message = f"--training.{name} is {value}; it must be {rule}"
        raise InputError(message)
