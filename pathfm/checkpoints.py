"""The checkpoint that an interrupted fit goes on from."""

from __future__ import annotations

import shutil
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from pathfm.files import write_text
from pathfm.progress import logger

if TYPE_CHECKING:
    from pathlib import Path

LAST = "last"


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from; what another training left there is removed.

    Args:
        folder: of the checkpoints of one fit.
        wanted: the fingerprint of the fit; a checkpoint of another one is not gone on from.
    """
    stated, last = folder / "fingerprint.txt", folder / f"{LAST}.ckpt"
    if stated.is_file() and stated.read_text(encoding="utf-8").strip() == wanted:
        return last if last.is_file() and _is_whole(last) else None
    shutil.rmtree(folder, ignore_errors=True)
    write_text(stated, wanted + "\n")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What Lightning wrote, on the CPU; tensors and plain values only."""
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read; one that was cut off while it was written is no reason never to train again."""
    try:
        read_checkpoint(checkpoint)
    except (EOFError, OSError, RuntimeError, ValueError, UnpicklingError):
        logger.warning("%s is damaged; this training starts again", checkpoint)
        return False
    return True
