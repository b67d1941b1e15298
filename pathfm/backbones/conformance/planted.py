"""Which tokens of a network are in its embedding: huge values are planted in some, and what moves is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pathfm.backbones.conformance.check import Check, looked
from pathfm.backbones.conformance.trial import token_px
from pathfm.backbones.find import with_output
from pathfm.backbones.network import forward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pathfm.backbones.conformance.trial import Trial
    from pathfm.backbones.row import Backbone

_HUGE = 1e4
_WANTED = {
    "cls": "the class token alone",
    "mean": "all patches, no class token, no registers",
    "cls+mean": "the class token in one half, all patches in the other, no registers",
    "pooled": "no registers",
}


def planted_checks(trial: Trial) -> Iterator[Check]:
    """Which tokens are in the embedding, for every output of the row that is taken from tokens."""
    row = trial.row
    for output in dict.fromkeys((row.output, *row.outputs)):
        what, wanted = f"tokens in {output}", _WANTED.get(output, "none: the mean over a map")
        if output == row.output:
            yield looked(what, wanted, partial(_planted, trial, row))
        elif {output, row.output} <= {"cls", "mean", "cls+mean"}:
            yield looked(what, wanted, partial(_planted, trial, with_output(row, output)))
        else:
            yield Check(what, wanted, f"another network: check {row.name}:{output}", passed=None)


@dataclass(frozen=True)
class Layout:
    """The sequence of tokens that a network ends in.

    Attributes:
        dim: length of the embedding.
        tokens: in the sequence; None where the network ends in something else.
        patches: how many of them are patches of the image; None where nothing in the network cuts patches.
        last: the layer that gives the sequence.
    """

    dim: int
    tokens: int | None
    patches: int | None
    last: nn.Module | None

    @property
    def prefix(self) -> int | None:
        """Tokens before the patches; None where there is no sequence of patches."""
        if self.tokens is None or self.patches is None or self.tokens < self.patches:
            return None
        return self.tokens - self.patches


@torch.inference_mode()
def layout(model: nn.Module, images: Tensor, row: Backbone) -> Layout:
    """What a network makes of images, seen as it runs; on the meta device too.

    Args:
        model: in eval mode.
        images: float32 (b, 3, h, w) on its device.
        row: what of its output is the embedding.
    """
    tokens: int | None = None
    patches: int | None = None
    last: nn.Module | None = None

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal tokens, patches, last
        given = output[0] if isinstance(output, tuple) else output
        if not isinstance(given, Tensor):
            return
        # windows side by side: here the image becomes patches
        if isinstance(module, nn.Conv2d) and patches is None and module.kernel_size == module.stride != (1, 1):
            patches = given.shape[2] * given.shape[3]
        if given.ndim == 3 and len(given) == len(images):
            tokens, last = given.shape[1], module

    handles = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    try:
        embeddings = forward(model, images, row)
    finally:
        for handle in handles:
            handle.remove()
    side_px = token_px(model)
    if patches is None and tokens is not None and side_px is not None:  # patches that no convolution cuts
        patches = (images.shape[2] // side_px) * (images.shape[3] // side_px)
    return Layout(embeddings.shape[1], tokens, patches, last)


@torch.inference_mode()
def misplaced(model: nn.Module, images: Tensor, row: Backbone, found: Layout) -> list[str]:
    """Which tokens are in a part of the embedding where they do not belong, or are missing; [] where all is well.

    Args:
        model: in eval mode.
        images: float32 (b, 3, h, w) on its device.
        row: its output is "cls", "mean", "cls+mean" or "pooled", of which registers alone are known not to be a part.
        found: the layout of this network for images of this width. The tokens before the patches are counted there,
            not taken from the row.
    """
    prefix, tokens = found.prefix or 0, found.tokens or 0
    places = {
        "class token": slice(0, min(prefix, 1)),
        "registers": slice(1, max(prefix, 1)),
        "first patch": slice(prefix, prefix + 1),
        "last patch": slice(tokens - 1, tokens),
    }
    parts = row.output.split("+")
    untouched = forward(model, images, row).chunk(len(parts), dim=1)
    wrong, moving = [], set()
    for place, where in places.items():
        if where.start == where.stop:
            continue
        planted = _with_planted(model, images, row, found.last, where).chunk(len(parts), dim=1)
        for part, before, after in zip(parts, untouched, planted, strict=True):
            moves = not torch.equal(before, after)
            moving |= {part} if moves else set()
            if moves != _belongs(place, part) and (part != "pooled" or place == "registers"):
                wrong.append(f"{place} {'in' if moves else 'not in'} {part}")
    return wrong + [f"nothing in {part}" for part in parts if part not in moving]


def _planted(trial: Trial, row: Backbone) -> tuple[str, bool | None]:
    images = trial.images()[-1:]
    found = layout(trial.model, images, row)
    if found.prefix is None:
        return "it ends in no sequence of patch tokens", None if row.prefix_tokens == 0 else False
    wrong = misplaced(trial.model, images, row, found)
    return "; ".join(wrong) or f"so it is, of {found.prefix} + {found.patches} tokens; {trial.scale}", not wrong


def _belongs(place: str, part: str) -> bool:
    return part == {"class token": "cls", "registers": "no part"}.get(place, "mean")


def _with_planted(model: nn.Module, images: Tensor, row: Backbone, last: nn.Module | None, where: slice) -> Tensor:
    """The embedding where huge values were added to some tokens of the last layer's output."""

    def plant(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        tokens = (output[0] if isinstance(output, tuple) else output).clone()
        tokens[:, where] += _HUGE
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    handle = last.register_forward_hook(plant) if last is not None else None
    try:
        return forward(model, images, row)
    finally:
        if handle is not None:
            handle.remove()
