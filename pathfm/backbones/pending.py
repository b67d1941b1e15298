"""Tiles on their way to a device and embeddings on their way back, so that a GPU computes while the CPU does other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pathfm.backbones.row import Backbone, Precision


class Pending:
    """Embeddings that may still be computed or copied back.

    Args:
        embeddings: float (b, dim), on the device that computes them.
        row: says how long an embedding is.
        precision: it was computed in; for the message.
    """

    def __init__(self, embeddings: Tensor, row: Backbone, precision: Precision) -> None:
        self._row, self._precision = row, precision
        self._copied: torch.cuda.Event | None = None
        half = embeddings.half()
        if half.device.type != "cuda":
            self._here = half.cpu()
            return
        # Only pinned memory is copied into without the CPU's waiting; the event says when all of it has come.
        self._here = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
        self._here.copy_(half, non_blocking=True)
        self._copied = torch.cuda.current_stream(half.device).record_event()

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Returns when they are here."""
        if self._copied is not None:
            self._copied.synchronize()

    def result(self) -> NDArray[np.float16]:
        """The embeddings, waited for.

        Returns:
            float16 (b, dim), finite.

        Raises:
            BackboneError: an embedding is not finite, or has another length than the row's `dim`.
        """
        self.wait()
        embeddings: NDArray[np.float16] = self._here.numpy()
        if embeddings.ndim != 2 or embeddings.shape[1] != self._row.dim:
            message = (
                f"backbone {self._row.name} gave embeddings of shape {embeddings.shape[1:]},"
                f" its row says {self._row.dim}; correct the row"
            )
            raise BackboneError(message)
        if not np.isfinite(embeddings).all():
            message = (
                f"backbone {self._row.name} gave embeddings that are not finite in float16,"
                f" computed in {self._precision}; pass --precision float32, and check the weights if it stays"
            )
            raise BackboneError(message)
        return embeddings


def sent(tiles: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Tiles on a device.

    Args:
        tiles: uint8 (b, size_px, size_px, 3).
        device: where to.

    Returns:
        uint8, the same shape. On a GPU a copy that is ready for what is started there next, while `tiles` may be
        overwritten at once; on a CPU it is `tiles` itself.
    """
    here = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
    if device.type != "cuda":
        return here.to(device)
    # torch keeps the pinned block until the copy is over, and hands it out again after that.
    return here.pin_memory().to(device, non_blocking=True)
