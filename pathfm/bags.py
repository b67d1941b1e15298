"""Bags: the embeddings of slides as a torch dataset, read where they lie and packed without padding."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pathfm.embeddings import read_embeddings
from pathfm.heads import Bags, pack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

UNLABELLED = -1


class Bag(NamedTuple):
    """One slide: features float32 (n, dim), and its class as an index, `UNLABELLED` where there is none."""

    features: Tensor
    label: int


class Batch(NamedTuple):
    """Several slides: packed bags, and labels int64 (b,)."""

    bags: Bags
    labels: Tensor


class BagDataset(Dataset[Bag]):
    """One item a slide, in the order of the files.

    A file is opened and its digests proven on first use, then its rows are memory-mapped: what a bag costs is turning
    float16 into float32. `keep` does that once and holds the result, for cohorts that fit into memory several times.
    Works with any torch `DataLoader` that is given `collate`, worker processes included.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int] | None = None, *, keep: bool = False) -> None:
        if labels is not None and len(labels) != len(files):
            message = f"{len(files)} files but {len(labels)} labels"
            raise ValueError(message)
        self.files = list(files)
        self.labels = [UNLABELLED] * len(files) if labels is None else [int(label) for label in labels]
        self.keep = keep
        self._kept: dict[int, Tensor] = {}
        self._mapped: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Bag:
        return Bag(self.features(range(len(self))[index]), self.labels[index])

    def features(self, index: int) -> Tensor:
        """The features of one slide, float32 (n, dim).

        Raises:
            EmbeddingsDamagedError: the file is damaged, or holds a number that is not finite.
        """
        if index in self._kept:
            return self._kept[index]
        if index not in self._mapped:
            self._mapped[index] = read_embeddings(self.files[index]).features
        features = torch.from_numpy(self._mapped[index].astype(np.float32))
        if self.keep:
            self._kept[index] = features
        return features

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the files themselves: a pickled map would be a copy of the rows."""
        return self.__dict__ | {"_kept": {}, "_mapped": {}}


def collate(bags: Sequence[Bag]) -> Batch:
    """Packs bags of any lengths; the `collate_fn` of a `DataLoader`."""
    return Batch(pack([bag.features for bag in bags]), torch.tensor([bag.label for bag in bags], dtype=torch.int64))


def features_sha256(path: Path) -> str:
    """Hex digest of the features of a file, hashed once per state of the file: what a training depends on."""
    state = path.stat()
    return _features_sha256(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=65536)
def _features_sha256(path: Path, mtime_ns: int, size: int, inode: int) -> str:  # the state is the key
    features = read_embeddings(path).features
    return hashlib.sha256(np.ascontiguousarray(features).data if features.size else b"").hexdigest()
