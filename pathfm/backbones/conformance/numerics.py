"""Checks of what a network computes: embeddings that depend on their image alone, in every precision."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pathfm.backbones.conformance.check import FINDINGS, Check, looked, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pathfm.backbones.conformance.trial import Trial
    from pathfm.backbones.row import Precision

# Of an embedding's largest value: float32 sums in another order. It is what storing that value as float16 rounds off.
BATCH_TOLERANCE = 5e-4
# What 40 layers leave of an embedding's direction. float16 has 11 bits, and is held to what the engines are held to;
# bfloat16 has 8.
LEAST_COSINE: dict[Precision, float] = {"float16": 0.999, "bfloat16": 0.99}
# Of `Trial.images` those with texture: of two flat ones a network may make the same.
_TEXTURED = [0, 1, 2, 3, 7]
_IN_HALF = [0, 7]  # slow on a CPU


def numeric_checks(trial: Trial) -> Iterator[Check]:
    """Runs eight images through the network, together, in another order, one by one, and in other precisions."""
    dim = trial.row.dim
    try:
        images = trial.images()
        whole = trial.embed(images)
    except FINDINGS as error:
        yield Check("forward", "runs", said(error), passed=False)
        return
    right = whole.shape == (len(images), dim or whole.shape[1]) and bool(whole.isfinite().all())
    yield Check("forward", f"8 x {dim or 'any'}, finite", f"{tuple(whole.shape)}; {trial.scale}", right)
    yield looked("same image again", "the same bit by bit", partial(_repeated, trial, images))
    yield looked(
        "other images", f"further apart than {4 * BATCH_TOLERANCE:g} of the largest value", partial(_apart, whole)
    )
    within = f"off by {BATCH_TOLERANCE:g} of the largest value or less"
    yield looked("batch of 1 and of 8", within, partial(_alone, trial, images, whole))
    yield looked("order in a batch", within, partial(_reversed, trial, images, whole))
    for precision, least in LEAST_COSINE.items():
        wanted = f"cosine of {least} or more to float32, finite"
        yield looked(precision, wanted, partial(_rounded, trial, images, whole, precision))


def _repeated(trial: Trial, images: Tensor) -> tuple[str, bool]:
    same = torch.equal(trial.embed(images[:2]), trial.embed(images[:2]))
    return "the same" if same else "another: something in it is random", same


def _apart(whole: Tensor) -> tuple[str, bool]:
    """Without this the agreement of batches and of precisions would say nothing."""
    textured = whole[_TEXTURED]
    nearest = min(_difference(one, other) for i, one in enumerate(textured) for other in textured[:i])
    return f"{nearest:.2g}", nearest > 4 * BATCH_TOLERANCE


def _alone(trial: Trial, images: Tensor, whole: Tensor) -> tuple[str, bool]:
    return _within(torch.cat([trial.embed(image[None]) for image in images]), whole)


def _reversed(trial: Trial, images: Tensor, whole: Tensor) -> tuple[str, bool]:
    return _within(trial.embed(images.flip(0)).flip(0), whole)


def _within(given: Tensor, whole: Tensor) -> tuple[str, bool]:
    off = max(_difference(one, other) for one, other in zip(given, whole, strict=True))
    # written so that what is not a number fails
    return f"{off:.2g}, cosine {_cosine(given, whole):.7f}", off <= BATCH_TOLERANCE


def _rounded(trial: Trial, images: Tensor, whole: Tensor, precision: Precision) -> tuple[str, bool | None]:
    try:
        given = trial.embed(images[_IN_HALF], precision)
    except RuntimeError as error:  # such as an operation that a device has not in this type
        return f"does not run on {trial.device}: {said(error)}", None
    cosine = _cosine(given, whole[_IN_HALF])
    return f"{cosine:.6f}; {trial.scale}", cosine >= LEAST_COSINE[precision] and bool(given.isfinite().all())


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def _cosine(given: Tensor, wanted: Tensor) -> float:
    return float(functional.cosine_similarity(given.double(), wanted.double()).min())
