"""Bags: the embeddings of slides as a torch dataset, read where they lie and packed without padding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pathfm.heads import Bags, pack
from pathfm.joined import Files, read_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UNLABELLED = -1
_BLOCK_ROWS = 256  # half a megabyte at 1,024 numbers a row, which the processor's cache holds


class Bag(NamedTuple):
    """One slide: features float32 (n, dim), and its class as an index, `UNLABELLED` where there is none."""

    features: Tensor
    label: int


class Batch(NamedTuple):
    """Several slides: packed bags, and labels int64 (b,)."""

    bags: Bags
    labels: Tensor


class BagDataset(Dataset[Bag]):
    """One item a slide, in the order of the files; of a slide with several files the features stand side by side.

    A file is opened and its digests proven on first use, then its rows are memory-mapped: what a bag costs is turning
    float16 into float32. `keep` does that once and holds the result, for cohorts that fit into memory several times.
    Works with any torch `DataLoader` that is given `collate`, worker processes included.
    """

    def __init__(
        self, files: Sequence[Path | Files], labels: Sequence[int] | None = None, *, keep: bool = False
    ) -> None:
        if labels is not None and len(labels) != len(files):
            message = f"{len(files)} files but {len(labels)} labels"
            raise ValueError(message)
        self.files: list[Files] = [(one,) if isinstance(one, Path) else one for one in files]
        self.labels = [UNLABELLED] * len(files) if labels is None else [int(label) for label in labels]
        self.keep = keep
        self._kept: dict[int, Tensor] = {}
        self._mapped: dict[int, list[NDArray[np.float16]]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Bag:
        return Bag(self.features(range(len(self))[index]), self.labels[index])

    def features(self, index: int) -> Tensor:
        """The features of one slide, float32 (n, dim).

        Raises:
            EmbeddingsDamagedError: a file is damaged, or holds a number that is not finite.
            EmbeddingsStaleError: files of the slide that are not of the same tiles.
        """
        if index in self._kept:
            return self._kept[index]
        if index not in self._mapped:
            self._mapped[index] = [part.features for part in read_parts(self.files[index])]
        features = _float32(self._mapped[index])
        if self.keep:
            self._kept[index] = features
        return features

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the files themselves: a pickled map would be a copy of the rows."""
        return self.__dict__ | {"_kept": {}, "_mapped": {}}


def collate(bags: Sequence[Bag]) -> Batch:
    """Packs bags of any lengths; the `collate_fn` of a `DataLoader`."""
    return Batch(pack([bag.features for bag in bags]), torch.tensor([bag.label for bag in bags], dtype=torch.int64))


def _float32(parts: Sequence[NDArray[np.float16]]) -> Tensor:
    """Rows side by side as float32. The conversion is torch's, a tenth of numpy's time, and the memory is numpy's.

    torch takes no memory that may not be written, as that of the map, hence the block between; there the rows of several
    files are laid side by side. numpy asks the system for large pages, torch does not, and on a CPU the faults of small
    ones cost several times the conversion.
    """
    n, widths = len(parts[0]), [part.shape[1] for part in parts]
    features = torch.from_numpy(np.empty((n, sum(widths)), np.float32))
    block = torch.empty((_BLOCK_ROWS, sum(widths)), dtype=torch.float16)
    columns = np.split(block.numpy(), np.cumsum(widths)[:-1], axis=1)
    for start in range(0, n, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, n)
        for part, some in zip(parts, columns, strict=True):
            np.copyto(some[: stop - start], part[start:stop])
        features[start:stop] = block[: stop - start]
    return features
