"""The settings of a training: fields, help texts and command-line options are one and the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pathfm.errors import InputError

_WIDEST = 1 << 16  # no head is wider; a typing error would ask for terabytes
Schedule = Literal["cosine", "one-cycle", "constant"]
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
_SHAPE = ("hidden", "attention", "dropout")  # settings that are keywords of every head
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a head is trained."""

    epochs: int = 50
    """Most passes over the training slides; early stopping ends sooner."""
    lr: float = 3e-4
    """Highest learning rate of AdamW."""
    schedule: Schedule = "cosine"
    """How the rate changes: cosine falls to 0 over the epochs; one-cycle rises in the first 30 % of the steps, then falls."""
    weight_decay: float = 1e-5
    """Weight decay of AdamW."""
    clip: float | None = None
    """Longest gradient of a step; a longer one is shortened to it."""
    ema: float = 0.0
    """Share of the old in the running mean of the weights that is scored and kept, such as 0.99; 0 keeps the weights themselves."""
    dropout: float = 0.25
    """Share of the hidden layer dropped in training."""
    hidden: int = 512
    """Width of the layer after the embedding."""
    attention: int = 256
    """Width of the attention branches."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """Options of the head's own, by name; docs/heads.md lists them."""
    batch_size: int | None = None
    """Slides a step; by default 1, and for a Cox model, which compares them, a quarter of those it learns from, 2 to 32."""
    bag_size: int | None = None
    """Most instances of a bag that a step draws; all where not given. The log says what share of them that is."""
    balanced_sampling: bool = False
    """Draw the slides of an epoch so that the classes come equally often, in place of class weights."""
    class_weights: bool = True
    """Weigh each slide by the inverse frequency of its class."""
    patience: int = 10
    """Epochs without a lower loss on the stopping patients before training stops."""
    min_epochs: int = 10
    """First epoch that may be kept or stopped at: on few stopping patients the loss often rises before it falls."""
    stop_share: float = 0.2
    """Share of the training patients kept aside to decide when to stop; 0 trains all epochs on all of them."""
    precision: Literal[32, "bf16", 16] = 32
    """Of the matrix products; bf16 and 16 save time on accelerators made for them, not on most CPUs."""
    seed: int = 0
    """Of the weights, the order of the slides, the dropout and the splits; the same seed gives the same model on a CPU."""
    order_seed: int | None = None
    """Of the order of the slides, the dropout and the instances drawn, by default seed; repeats share that of the first."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes an accelerator where there is one."""
    devices: int = 1
    """Accelerators that share each step, or on a CPU processes; each takes batch_size slides."""
    keep: Literal["auto", "disk", "memory", "device"] = "auto"
    """Where the bags lie between the epochs; auto takes the fastest place that they fill at most by half."""
    together: Literal["auto", "always", "never"] = "auto"
    """Whether the folds of a cross-validation are trained in one pass over the bags; auto where that is faster."""
    loggers: list[LoggerName] = field(default_factory=lambda: ["csv", "tensorboard"])
    """Where losses and rate go: csv, tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            given = getattr(self, name)
            _require(name, repr(given), _fits(given, kind), _worded(kind))
        shared = sorted(set(_SHAPE) & set(self.head_options))
        if shared:
            message = f"--training.head_options names {shared[0]}, an option of all heads; pass --training.{shared[0]}"
            raise InputError(message)
        for name in ("epochs", "hidden", "attention", "patience", "min_epochs", "devices"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("batch_size", "bag_size"):
            given = getattr(self, name)
            _require(name, given, given is None or given >= 1, "1 or more")
        for name in ("hidden", "attention"):
            _require(name, getattr(self, name), getattr(self, name) <= _WIDEST, f"at most {_WIDEST}")
        _require("lr", self.lr, 0 < self.lr <= 1, "above 0, up to 1")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _require("clip", self.clip, self.clip is None or 0 < self.clip < math.inf, "above 0")
        _require("ema", self.ema, 0 <= self.ema < 1, "from 0 to below 1")
        _require("dropout", self.dropout, 0 <= self.dropout < 1, "from 0 to below 1")
        _require("stop_share", self.stop_share, 0 <= self.stop_share <= 0.5, "from 0 to 0.5")
        for name in ("seed", "order_seed"):
            given = getattr(self, name)
            _require(name, given, given is None or 0 <= given < 2**32, "from 0 to 4294967295")

    @property
    def seed_of_steps(self) -> int:
        """What seeds each step: trainings that share it, and their settings but for the seed, can share their steps."""
        return self.seed if self.order_seed is None else self.order_seed

    def head_kwargs(self) -> dict[str, Any]:
        """The keywords of `build_head`."""
        return {name: getattr(self, name) for name in _SHAPE} | self.head_options


@cache
def _kinds() -> dict[str, Any]:
    """The type of each field."""
    return get_type_hints(TrainSettings)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field, which nobody but a command line has looked at yet."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in parts)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one) for one in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def _worded(kind: Any) -> str:
    """A type of a field in words."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, parts))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_worded, parts))
    if get_origin(kind) is list:
        return f"a list of {_worded(parts[0])}"
    return "options by name" if get_origin(kind) is dict else _WORDS[kind]


def _require(name: str, value: float | str | None, holds: bool, rule: str) -> None:
    if not holds:
        message = f"--training.{name} is {value}; it must be {rule}"
        raise InputError(message)
