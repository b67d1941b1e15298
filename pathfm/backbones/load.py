"""A backbone that is ready to embed tiles, and says exactly what it is."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones.engines import Embedder, started
from pathfm.backbones.find import find_backbone
from pathfm.backbones.huggingface import file_tensors
from pathfm.backbones.memory import channels_last_pays, keep_activations_mapped
from pathfm.backbones.network import architecture_facts, build_network, with_model_facts
from pathfm.backbones.pending import Pending, sent
from pathfm.backbones.timm_models import with_architecture
from pathfm.backbones.transform import to_input, transform_facts
from pathfm.backbones.weights import resolved_revision, state_sha256, tensors_sha256
from pathfm.errors import BackboneError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pathfm.backbones.engines import Engine, Forward
    from pathfm.backbones.row import Backbone, Precision

_MOST_IN_FLIGHT = 2  # one computes, the next is copied


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights, ready on a device.

    Attributes:
        row: what it is and expects; `dim` is filled.
        model: the network, in eval mode.
        device: where it runs.
        precision: of its matrix products; an embedding is float16 whatever it is.
        identity: what a recipe says of it, JSON types, and only what decides an embedding: name, source, weights_sha256,
            output, transform, ... Its licence is `row.terms`.
        revision: commit of the hub that its weights are from, as far as that is known; "" where they are not from there.
            For the record, like the engine.
        engine: what runs it, with its version where that is not torch's: "torch", "compile", "openvino 2026.4.1". For
            the record; the embeddings are the same, so it is no part of the identity.
        run: the network as the engine runs it: float32 images (b, 3, h, w) to float (b, dim).
    """

    row: Backbone
    model: nn.Module
    device: torch.device
    precision: Precision
    identity: dict[str, Any]
    revision: str
    engine: str
    run: Forward = field(repr=False)
    _in_flight: deque[Pending] = field(default_factory=deque, repr=False)

    def sent(self, tiles: NDArray[np.uint8]) -> Tensor:
        """Tiles on its device, to be submitted to several backbones there: they cross once.

        Args:
            tiles: as of `submit`; on a CPU they must not be overwritten before they are submitted.

        Raises:
            BackboneError: the device has no memory left.
        """
        with self._named_errors():
            return sent(tiles, self.device)

    @torch.inference_mode()
    def submit(self, tiles: NDArray[np.uint8] | Tensor) -> Pending:
        """Begins to embed tiles; on a GPU it returns at once, unless two batches are under way already.

        Args:
            tiles: uint8 (b, size_px, size_px, 3), RGB, at the mpp that the backbone expects; a tensor is on its device,
                as by `sent`. An array may be overwritten as soon as this returns.

        Returns:
            What will have the embeddings, row by row.

        Raises:
            BackboneError: it does not run, as where a device has no memory left.
        """
        if not len(tiles):
            return Pending(torch.empty(0, self.row.dim or 0), self.row, self.precision)
        while len(self._in_flight) >= _MOST_IN_FLIGHT:
            self._in_flight.popleft().wait()
        with self._named_errors():
            here = tiles if isinstance(tiles, torch.Tensor) else sent(tiles, self.device)
            embeddings = self.run(to_input(here, self.row))
        pending = Pending(embeddings, self.row, self.precision)
        if not pending.done():
            self._in_flight.append(pending)
        return pending

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """The embeddings of tiles, row by row.

        Args:
            tiles: uint8 (b, size_px, size_px, 3), RGB, at the mpp that the backbone expects.

        Returns:
            float16 (b, dim), finite.

        Raises:
            BackboneError: an embedding is not finite, or has another length than `dim`.
        """
        return self.submit(tiles).result()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # such as no memory left on a GPU
            said = " ".join(str(error).split())[:300]
            message = (
                f"backbone {self.row.name} does not run on {self.device} by {self.engine} ({said});"
                " pass a smaller --batch_size, or another --engine"
            )
            raise BackboneError(message) from error


def load_backbone(
    name: str, device: str = "auto", precision: Precision | None = None, engine: Engine = "torch"
) -> LoadedBackbone:
    """Loads a backbone with its weights.

    On a CPU with Linux and glibc this has the whole process keep freed memory from then on, see
    `keep_activations_mapped`.

    Args:
        name: a name of the table, "hf-hub:owner/name", "timm/name" (the same on the hub) or "local-dir:/folder".
        device: "auto" takes cuda, else mps, else cpu.
        precision: of its matrix products; None takes the row's own on cuda, float32 elsewhere.
        engine: what runs it; see `started`.

    Raises:
        UnknownNameError: no such name.
        WeightsMissingError: gated, offline or absent weights.
        MissingExtraError: what it needs is not installed: transformers for one of its models, or the engine.
        BackboneError: the weights do not fit the architecture, what it gives is not what its row says, or the engine
            cannot run it or gives other embeddings than plain torch.
        InputError: no such device, or none for this engine.
    """
    where = resolve_device(device)
    named = with_architecture(find_backbone(name))
    model = build_network(named)
    if where.type == "cpu" and any(True for _ in model.parameters()):
        keep_activations_mapped()
    row = with_model_facts(named, model)
    if precision is None:
        precision = row.precision if where.type == "cuda" else "float32"
    identity = _identity(row, model, precision)
    model = model.to(where)
    if channels_last_pays(model, where):
        model.to(memory_format=torch.channels_last)
    run, engine_name = started(engine, Embedder(model, row, where, precision))
    return LoadedBackbone(row, model, where, precision, identity, resolved_revision(row), engine_name, run)


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


def _identity(row: Backbone, model: nn.Module, precision: Precision) -> dict[str, Any]:
    """What decides an embedding. Where weights lay is no part of it, nor under which commit: their digest is."""
    return {
        "name": row.name.partition("@")[0] if row.repo else row.name,
        "source": row.name if row.source.startswith("local-dir:") else row.source,
        "architecture": architecture_facts(row, model),
        "version": str(getattr(model, "VERSION", "")) if row.library == "python" else "",
        "weights_sha256": _weights_sha256(row, model),
        "output": row.output,
        "prefix_tokens": row.prefix_tokens,
        "dim": row.dim,
        "transform": transform_facts(row),
        "precision": precision,
    }


def _weights_sha256(row: Backbone, model: nn.Module) -> str:
    """The same whatever file the weights came from; transformers renames tensors from version to version, files do not."""
    return tensors_sha256(file_tensors(row)) if row.library == "transformers" else state_sha256(model)
