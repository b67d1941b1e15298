"""A backbone that is ready to embed tiles, and says exactly what it is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from pathfm.backbones.find import find_backbone
from pathfm.backbones.network import build_network, forward, with_model_facts
from pathfm.backbones.transform import to_input, transform_facts
from pathfm.backbones.weights import state_sha256
from pathfm.errors import BackboneError, InputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from pathfm.backbones.table import Backbone

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights, ready on a device.

    Attributes:
        row: what it is and expects; `dim` is filled.
        model: the network, in eval mode.
        device: where it runs.
        precision: of its matrix products; an embedding is float16 whatever it is.
        identity: what a recipe says of it, JSON types: name, source, weights_sha256, output, transform, licence, ...
    """

    row: Backbone
    model: nn.Module
    device: torch.device
    precision: Precision
    identity: dict[str, Any]

    @torch.inference_mode()
    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """The embeddings of tiles, row by row.

        Args:
            tiles: uint8 (b, size_px, size_px, 3), RGB, at the mpp that the backbone expects.

        Returns:
            float16 (b, dim), finite.

        Raises:
            BackboneError: an embedding is not finite, or has another length than `dim`.
        """
        if not len(tiles):
            return np.empty((0, self.row.dim or 0), dtype=np.float16)
        images = to_input(torch.from_numpy(np.require(tiles, requirements=["C", "W"])).to(self.device), self.row)
        if _is_convolutional(self.row, self.device):
            images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            embeddings = forward(self.model, images, self.row)
        return self._checked(embeddings.half().cpu().numpy())

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def _checked(self, embeddings: NDArray[np.float16]) -> NDArray[np.float16]:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.row.dim:
            message = (
                f"backbone {self.row.name} gave embeddings of shape {embeddings.shape[1:]},"
                f" its row says {self.row.dim}; correct the row"
            )
            raise BackboneError(message)
        if not np.isfinite(embeddings).all():
            message = (
                f"backbone {self.row.name} gave embeddings that are not finite in float16, computed in {self.precision};"
                " pass --precision float32, and check the weights if it stays"
            )
            raise BackboneError(message)
        return embeddings


def load_backbone(name: str, device: str = "auto", precision: Precision = "float32") -> LoadedBackbone:
    """Loads a backbone with its weights.

    Args:
        name: a name of the table, "hf-hub:owner/name", "timm/name" (the same on the hub) or "local-dir:/folder".
        device: "auto" takes cuda, else mps, else cpu.
        precision: of its matrix products.

    Raises:
        UnknownNameError: no such name.
        WeightsMissingError: gated, offline or absent weights.
        MissingExtraError: it is a transformers model and transformers is not installed.
        BackboneError: the weights do not fit the architecture, or what it gives is not what its row says.
        InputError: no such device.
    """
    where = resolve_device(device)
    named = find_backbone(name)
    model = build_network(named)
    row = with_model_facts(named, model)
    identity = _identity(row, model, precision)
    model = model.to(where)
    if _is_convolutional(row, where):
        model.to(memory_format=torch.channels_last)
    return LoadedBackbone(row, model, where, precision, identity)


def resolve_device(device: str) -> torch.device:
    """The device of a name; "auto" is cuda, else mps, else cpu.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(kind, False):
        here = ", ".join(name for name, is_there in present.items() if is_there)
        message = f"no device {device!r} on this machine; pass --device auto, or one of {here}"
        raise InputError(message)
    return _numbered(device, kind)


def _numbered(device: str, kind: str) -> torch.device:
    """The device of "cpu", "cuda" or "cuda:1", whose number must be one of those here."""
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if device not in (kind, *(f"{kind}:{number}" for number in range(count))):
        message = f"no device {device!r} on this machine; pass --device {kind}, or {kind}:0 to {kind}:{count - 1}"
        raise InputError(message)
    return torch.device(device)


def _is_convolutional(row: Backbone, device: torch.device) -> bool:
    """Whether channels-last memory pays: convolutions on a CPU."""
    return device.type == "cpu" and row.output == "layer3"


def _identity(row: Backbone, model: nn.Module, precision: Precision) -> dict[str, Any]:
    revision = str(getattr(model, "VERSION", row.revision)) if row.library == "python" else row.revision
    return {
        "name": row.name,
        # where a folder lies on this machine is nobody else's business, and no part of what an embedding is
        "source": row.name if row.source.startswith("local-dir:") else row.source,
        "revision": revision,
        "weights_sha256": state_sha256(model),
        "output": row.output,
        "prefix_tokens": row.prefix_tokens,
        "dim": row.dim,
        "transform": transform_facts(row),
        "precision": precision,
        "licence": row.licence,
    }
