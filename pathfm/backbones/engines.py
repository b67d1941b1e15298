"""Engines: what runs a network. Whatever does, the embeddings are those of plain torch, and that is looked at first."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathfm.backbones.network import forward
from pathfm.backbones.transform import to_input
from pathfm.errors import BackboneError, InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pathfm.backbones.row import Backbone, Precision

    Forward = Callable[[Tensor], Tensor]

Engine = Literal["torch", "compile", "openvino"]

_LEAST_COSINE = 0.999
_MOST_STRETCH = 0.02
_OPENVINO_PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Embedder(nn.Module):
    """A network and what of its output is the embedding, as one module.

    Args:
        model: the network, in eval mode, on its device.
        row: says what of its output is the embedding.
        device: where it is.
        precision: of its matrix products.
    """

    def __init__(self, model: nn.Module, row: Backbone, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model, self.row, self.device, self.precision = model, row, device, precision

    def forward(self, images: Tensor) -> Tensor:
        """Float (b, dim) of float32 (b, 3, h, w), as `to_input` makes them."""
        with self._autocast():
            return forward(self.model, images, self.row)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))


@torch.inference_mode()
def started(engine: Engine, embedder: Embedder) -> tuple[Forward, str]:
    """What maps images to embeddings, and its name with its version.

    Args:
        engine: "torch" runs the network as it is, "compile" by torch.compile, "openvino" by OpenVINO, on a CPU.
        embedder: the network.

    Raises:
        InputError: the engine does not run on that device, or not a network that takes inputs of any width.
        MissingExtraError: it is not installed.
        BackboneError: it cannot run this network, or its embeddings differ from those of plain torch in float32.
    """
    if engine == "torch":
        return embedder, "torch"
    if engine == "openvino" and embedder.device.type != "cpu":
        message = f"--engine openvino runs on a CPU, not on {embedder.device}; pass --device cpu, or --engine torch"
        raise InputError(message)
    if engine == "openvino" and embedder.row.resize_px is None and embedder.row.crop_px is None:
        message = (
            f"--engine openvino needs one width of input, backbone {embedder.row.name} takes any; pass --engine torch"
        )
        raise InputError(message)
    images = to_input(check_tiles(embedder.row.default_size_px).to(embedder.device), embedder.row)
    try:
        run, name = _compiled(embedder) if engine == "compile" else _openvino(embedder, images)
        # two sizes of a batch, as a slide has them
        given = torch.cat([run(images[:4]), run(images[4:])]).float()
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        message = f"--engine {engine} cannot run backbone {embedder.row.name} ({said}); pass --engine torch"
        raise BackboneError(message) from error
    _require_equal(given, embedder, images, engine)
    return run, name


def check_tiles(width: int) -> Tensor:
    """Tiles on which an engine is held against plain torch: stained texture, noise, and flat ones; always the same.

    Returns:
        uint8 (7, width, width, 3), RGB.
    """
    generator = torch.Generator().manual_seed(0)
    glass, eosin, haematoxylin = (
        torch.tensor(rgb).view(3, 1, 1) for rgb in ((243, 241, 243), (214, 130, 178), (92, 62, 140))
    )

    def field(cells: int) -> Tensor:
        grid = torch.rand(1, 1, cells, cells, generator=generator)
        return functional.interpolate(grid, (width, width), mode="bicubic", align_corners=False)[0]

    tiles = []
    for cells in (8, 16, 28):  # nuclei from few and large to many and small
        stroma, nuclei, grain = field(4), field(cells), field(width // 2)
        tissue = torch.where(stroma > 0.4, eosin + 30 * (grain - 0.5), glass.float())
        tiles.append(torch.where(nuclei > 0.65, haematoxylin + 40 * (grain - 0.5), tissue))
    tiles.append(255 * torch.rand(3, width, width, generator=generator))
    tiles += [torch.full((3, width, width), value) for value in (255.0, 128.0, 0.0)]
    return torch.stack(tiles).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _require_equal(given: Tensor, embedder: Embedder, images: Tensor, engine: Engine) -> None:
    plain = Embedder(embedder.model, embedder.row, embedder.device, "float32")(images).float()
    if given.shape != plain.shape:
        message = (
            f"--engine {engine} gives shape {tuple(given.shape)}, plain torch {tuple(plain.shape)}; pass --engine torch"
        )
        raise BackboneError(message)
    cosine = float(functional.cosine_similarity(given.double(), plain.double()).min())
    stretch = float((given.norm(dim=1) / plain.norm(dim=1).clamp(min=1e-12) - 1).abs().max())
    # written so that what is not a number is refused
    if not (cosine >= _LEAST_COSINE and stretch <= _MOST_STRETCH):
        message = (
            f"--engine {engine} in {embedder.precision} does not give the embeddings of backbone {embedder.row.name}:"
            f" cosine {cosine:.6f} to float32 torch, {_LEAST_COSINE} is asked for, lengths off by {stretch:.2%};"
            " pass --engine torch" + ("" if embedder.precision == "float32" else ", or --precision float32")
        )
        raise BackboneError(message)


def _compiled(embedder: Embedder) -> tuple[Forward, str]:
    compiled: Forward = torch.compile(embedder)

    def run(images: Tensor) -> Tensor:
        # one program for all sizes of a batch, instead of one more for the last of a slide
        torch._dynamo.maybe_mark_dynamic(images, 0)
        return compiled(images)

    return run, "compile"


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """OpenVINO's converter changes the root logger, and with it what everybody logs."""
    level, handlers = logging.root.level, logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers


def _openvino(embedder: Embedder, images: Tensor) -> tuple[Forward, str]:
    # Its converter reports every use to its makers, unless this package is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
        from openvino import frontend
        from openvino.tools.ovc.error import Error
    except ImportError as error:
        what, extra = "--engine openvino", "openvino"
        raise MissingExtraError(what, extra) from error
    plain = Embedder(embedder.model, embedder.row, embedder.device, "float32")
    settings = {
        # left to itself it takes bfloat16 where the CPU has it
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[embedder.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # pinned, the threads of two processes would all sit on the same first cores
        "ENABLE_CPU_PINNING": False,
    }
    try:
        with _logging_as_it_is(), warnings.catch_warnings():
            # It traces, which torch calls deprecated and distrusts where Python looks at a shape; that other sizes of a
            # batch come out right is looked at in `started`. Exported programs lack the resized position embeddings
            # of most ViTs.
            warnings.simplefilter("ignore")
            converted = openvino.convert_model(plain, example_input=images, input=[-1, *images.shape[1:]])
        compiled = openvino.compile_model(converted, "CPU", settings)
    except (
        Error,
        frontend.GeneralFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    ) as error:
        raise RuntimeError(str(error)) from error  # as it calls most of its errors

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.numpy())[0])

    return run, f"openvino {openvino.__version__.partition('-')[0]}"
