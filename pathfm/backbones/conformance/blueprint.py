"""Checks of a network at full depth without computing: its parameters, its input, its tokens, its embedding."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones.conformance.check import FINDINGS, Check, looked, said
from pathfm.backbones.conformance.planted import layout
from pathfm.backbones.conformance.trial import Size, input_px, reduced
from pathfm.backbones.network import build_architecture, build_network, state_shapes_sha256
from pathfm.backbones.weights import weights_available
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pathfm.backbones.conformance.planted import Layout
    from pathfm.backbones.row import Backbone


def drawn(row: Backbone) -> nn.Module:
    """The whole network of a row: without memory where its architecture is known, else loaded from what is here.

    Raises:
        BackboneError: pathfm cannot build it here.
        MissingExtraError: what it needs is not installed.
    """
    if _known(row):
        with torch.device("meta") if row.library != "python" else nullcontext():
            return build_architecture(row).eval()
    if not weights_available(row):
        why = "of its repository, which pathfm does not run" if row.library == "remote" else "of its authors' package"
        message = f"not looked at: it is built by code {why}"
        raise BackboneError(message if row.library in ("remote", "package") else "its weights are not on this machine")
    return build_network(row)


def blueprint_checks(row: Backbone, blueprint: nn.Module) -> Iterator[Check]:
    """Checks of what `drawn` gave, and of the tokens that come of an input of its real width."""
    yield _stated("parameters", row.n_params, sum(parameter.numel() for parameter in blueprint.parameters()))
    yield _stated("shapes", row.shapes_sha8, state_shapes_sha256(blueprint)[:8] if blueprint.state_dict() else "")
    width_px = input_px(row)
    yield looked("input", f"{width_px} px", lambda: _input_width(row, blueprint))
    try:
        found = _tokens(row, blueprint)
    except FINDINGS as error:
        yield Check("forward", f"takes {width_px} px", said(error), passed=False)
        return
    yield _stated("dimension", row.dim, found.dim)
    yield _prefix(row, found)


def _known(row: Backbone) -> bool:
    """Whether the row says all of the architecture; of a folder its configuration may say more than the row has."""
    return row.library == "python" or (
        row.library in ("timm", "transformers")
        and bool(row.arch)
        and not (row.n_params is None and weights_available(row))
    )


def _tokens(row: Backbone, blueprint: nn.Module) -> Layout:
    """What the network makes of two images of its real width; every layer gives as many tokens, so one is enough."""
    if _known(row) and row.library != "python":
        shallow, _ = reduced(row, blueprint, Size(layers=1))
        with torch.device("meta"):
            blueprint = build_architecture(shallow).eval()
    device = next((parameter.device for parameter in blueprint.parameters()), torch.device("cpu"))
    return layout(blueprint, torch.zeros(2, 3, input_px(row), input_px(row), device=device), row)


def _stated(what: str, wanted: object, found: object) -> Check:
    """A fact that a row states, or could state."""
    if wanted in (None, ""):
        return Check(what, "not stated", str(found) or "none", passed=None)
    return Check(what, str(wanted), str(found), wanted == found)


def _prefix(row: Backbone, found: Layout) -> Check:
    if found.prefix is None:
        ends = f"{found.tokens} tokens, which are no patches" if found.tokens else "no sequence of tokens"
        return Check("prefix tokens", str(row.prefix_tokens), ends, passed=None if row.prefix_tokens == 0 else False)
    counted = f"{found.prefix}, before {found.patches} patches"
    if row.output == "pooled" and row.prefix_tokens == 0:
        return Check("prefix tokens", "not stated, for the network pools itself", counted, passed=None)
    return Check("prefix tokens", str(row.prefix_tokens), counted, found.prefix == row.prefix_tokens)


def _input_width(row: Backbone, blueprint: nn.Module) -> tuple[str, bool | None]:
    """What the architecture was built for; where its row states the width, a wider input is a crop that was forgotten."""
    network: Any = blueprint
    config, patches = getattr(network, "config", None), getattr(network, "patch_embed", None)
    made_for = getattr(config, "image_size", None) or (getattr(patches, "img_size", None) or (None,))[0]
    if made_for is None:
        return "made for any width", True
    return f"made for {made_for} px", input_px(row) <= made_for or "img_size" not in row.arch_kwargs
