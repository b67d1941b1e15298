"""Weights that were saved come back strictly, the way that a row's own weights are loaded."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from pathfm.backbones.conformance.check import Check, looked
from pathfm.backbones.conformance.trial import random_network, reduced
from pathfm.backbones.network import build_network
from pathfm.backbones.weights import CONFIG, WEIGHTS, state_sha256, weights_available

if TYPE_CHECKING:
    from torch import nn

    from pathfm.backbones.conformance.trial import Size
    from pathfm.backbones.row import Backbone

_MOST_LAYERS = 2  # all are loaded alike


def weights_check(row: Backbone, blueprint: nn.Module, size: Size) -> Check:
    """Saves the architecture of a row with random weights in a folder for a moment, and loads it from there.

    Args:
        row: of any library; only what timm and transformers build is saved.
        blueprint: its network, which may be on the meta device.
        size: of the network; at most two layers are built.
    """
    wanted = "the same after they were saved and loaded"
    if row.library in ("python", "package"):
        return Check("weights", wanted, "not in a folder that pathfm loads", passed=None)
    if weights_available(row):
        return Check("weights", wanted, "not looked at: its own are here, and loaded strictly", passed=None)
    return looked("weights", wanted, lambda: _round_trip(row, blueprint, size))


def _round_trip(row: Backbone, blueprint: nn.Module, size: Size) -> tuple[str, bool]:
    smaller, words = reduced(row, blueprint, replace(size, layers=min(size.layers or _MOST_LAYERS, _MOST_LAYERS)))
    saved = state_sha256(random_network(smaller))
    with tempfile.TemporaryDirectory(prefix="pathfm-") as folder:
        # published weights are those of the whole network, also where a row leaves out its end
        whole = replace(smaller, output="pooled") if row.output == "layer3" else smaller
        save_as_published(random_network(whole), whole, Path(folder))
        back = state_sha256(build_network(replace(smaller, source=f"local-dir:{folder}", weights_sha256="")))
    return f"sha256 {back[:8]}, saved {saved[:8]}; {words}", back == saved


def save_as_published(model: nn.Module, row: Backbone, folder: Path) -> None:
    """Writes a network as its makers would: a configuration, and the weights in the file that the row names.

    The configuration of a timm model is the least that there can be, and says nothing of the size of its input, for what
    it leaves open must not change the weights.
    """
    network: Any = model
    if row.library == "transformers":
        network.save_pretrained(folder)
        return
    (folder / CONFIG).write_text(json.dumps({"architecture": row.arch, "num_classes": 0}), encoding="utf-8")
    file = folder / (row.weights_file or WEIGHTS[0])
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    else:
        torch.save(model.state_dict(), file)
