"""Bags: the embeddings of slides as a torch dataset, read where they lie and packed without padding."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pathfm.embeddings import features_sha256
from pathfm.heads import Bags, Moments, moments, pack
from pathfm.joined import Files, read_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Source = Path | tuple[Files, ...] | Tensor
"""Where the features of a bag lie, as `BagDataset` takes it."""
_BLOCK_ROWS = 256  # half a megabyte at 1,024 numbers a row, which the processor's cache holds
_MOST_MAPPED = 16_384  # bags; Linux gives a process 65,530 maps


class Bag(NamedTuple):
    """One bag, of a slide or of all slides of a patient.

    Attributes:
        features: float32 (n, dim).
        truth: float32 (width,), NaN where it has no label.
        covariates: float32 (m,), or None.
        row: its place in the dataset.
    """

    features: Tensor
    truth: Tensor
    covariates: Tensor | None
    row: int


class Batch(NamedTuple):
    """Several bags: packed, with their truth float32 (b, width), and their places in the dataset, int64 (b,)."""

    bags: Bags
    truth: Tensor
    rows: Tensor


class BagDataset(Dataset[Bag]):
    """One item a bag, in the order given.

    The features of several files of a slide stand side by side, the slides of a bag one below the other. A file is opened
    and its digests proven on first use, then its rows are memory-mapped, without a file descriptor, of which a process has
    few: what a bag costs is turning float16 into float32.
    `keep_on` has that done once and holds the result, for cohorts that fit into memory.
    Works with any torch `DataLoader` that is given `collate`, worker processes included.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        truth: NDArray[np.float32] | None = None,
        covariates: NDArray[np.float32] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Takes where the features of each bag lie.

        Args:
            sources: of each bag an embeddings file, or the slides of the bag, each with one file a cache, or the features
                themselves, float32 (n, dim).
            truth: float32 (bags, width) as `targets.read_task` has it; None for bags without labels.
            covariates: float32 (bags, m), NaN where a number is not known.
            keep: hold the features in memory.
        """
        for name, given in (("truth", truth), ("covariates", covariates)):
            if given is not None and len(given) != len(sources):
                message = f"{len(sources)} bags but {len(given)} rows of {name}"
                raise ValueError(message)
        self.sources: list[tuple[Files, ...] | Tensor] = [
            ((one,),) if isinstance(one, Path) else one for one in sources
        ]
        self.truth = torch.from_numpy(np.zeros((len(sources), 0), np.float32) if truth is None else truth)
        self.covariates = None if covariates is None else torch.from_numpy(covariates)
        self.place = torch.device("cpu") if keep else None
        self._kept: dict[int, Tensor] = {}
        self._mapped: dict[int, list[list[NDArray[np.float16]]]] = {}
        self._moments: dict[int, Moments] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Bag:
        index = range(len(self))[index]
        covariates = None if self.covariates is None else self.covariates[index]
        return Bag(self.features(index), self.truth[index], covariates, index)

    @property
    def dim(self) -> int:
        """Width of the features."""
        source = self.sources[0]
        return source.shape[1] if isinstance(source, Tensor) else sum(part.shape[1] for part in self._maps(0)[0])

    @property
    def size_bytes(self) -> int:
        """What all features take as float32; opens every file."""
        return sum(self.length(i) for i in range(len(self))) * self.dim * torch.float32.itemsize if len(self) else 0

    def keep_on(self, place: torch.device | None) -> None:
        """Has features stay on a device, the CPU being one, from their first use on; None has each use read them."""
        if place != self.place:
            self.place, self._kept = place, {}

    def length(self, index: int) -> int:
        """Instances of one bag."""
        source = self.sources[index]
        return len(source) if isinstance(source, Tensor) else sum(len(parts[0]) for parts in self._maps(index))

    def features(self, index: int) -> Tensor:
        """The features of one bag, float32 (n, dim), on the device they are kept on.

        Raises:
            EmbeddingsDamagedError: a file is damaged, or holds a number that is not finite.
            EmbeddingsStaleError: files of a slide that are not of the same tiles.
        """
        if index in self._kept:
            return self._kept[index]
        source = self.sources[index]
        features = source if isinstance(source, Tensor) else _float32(self._maps(index))
        if self.place is not None:
            features = self._kept[index] = features.to(self.place)
        return features

    def some(self, index: int, rows: NDArray[np.int64]) -> Tensor:
        """A few instances of one bag, float32 (len(rows), dim); rows ascend. Of a file no others are read."""
        source = self.sources[index]
        if self.place is not None or isinstance(source, Tensor):
            features = self.features(index)
            return features[torch.from_numpy(rows).to(features.device)]
        slides = self._maps(index)
        ends = np.cumsum([len(parts[0]) for parts in slides])
        cuts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        starts = ends - [len(parts[0]) for parts in slides]
        return _float32(
            [[part[cut - start] for part in parts] for parts, cut, start in zip(slides, cuts, starts, strict=True)]
        )

    def moments(self, index: int) -> Moments:
        """The moments of the features of one bag, computed once."""
        if index not in self._moments:
            features = self.features(index)
            # float64, which not every accelerator has
            self._moments[index] = moments(features.cpu() if features.device.type == "mps" else features)
        return self._moments[index]

    def digest(self, index: int) -> str:
        """Hex digest of the features of one bag; that of a file is proven once per state of the file."""
        source = self.sources[index]
        if isinstance(source, Tensor):
            return hashlib.sha256(source.cpu().contiguous().numpy().tobytes()).hexdigest()
        return ";".join("+".join(map(features_sha256, files)) for files in source)

    def _maps(self, index: int) -> list[list[NDArray[np.float16]]]:
        """The mapped rows of each part of each slide."""
        source = self.sources[index]
        if index not in self._mapped and not isinstance(source, Tensor):
            if len(self._mapped) >= _MOST_MAPPED:
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[index] = [[_lasting(part.features) for part in read_parts(files)] for files in source]
        return self._mapped[index]

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the files themselves: a pickled map would be a copy of the rows."""
        return self.__dict__ | {"_kept": {}, "_mapped": {}}


class SampledBags(Dataset[Bag]):
    """At most so many instances of each bag, drawn anew each epoch, and each time that an epoch asks for a bag again.

    Which ones depends on the seed, the epoch, the bag, and how often the epoch has asked for it before.
    """

    def __init__(self, bags: BagDataset, size: int, seed: int) -> None:
        """Takes what to draw from.

        Args:
            bags: the whole bags.
            size: most instances of a bag.
            seed: of the draws.
        """
        self.bags, self.size, self.seed = bags, size, seed
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Starts an epoch."""
        self._epoch, self._times = epoch, Counter[int]()

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Bag:
        index = range(len(self))[index]
        n = self.bags.length(index)
        if n <= self.size:
            return self.bags[index]
        drawn = np.random.default_rng([self.seed, self._epoch, index, self._times[index]])
        self._times[index] += 1
        rows = np.sort(drawn.choice(n, self.size, replace=False))
        covariates = None if self.bags.covariates is None else self.bags.covariates[index]
        return Bag(self.bags.some(index, rows), self.bags.truth[index], covariates, index)


def collate(bags: Sequence[Bag]) -> Batch:
    """Packs bags of any lengths; the `collate_fn` of a `DataLoader`."""
    covariates = [bag.covariates for bag in bags if bag.covariates is not None]
    return Batch(
        pack([bag.features for bag in bags], torch.stack(covariates) if covariates else None),
        torch.stack([bag.truth for bag in bags]),
        torch.tensor([bag.row for bag in bags], dtype=torch.int64),
    )


def _lasting(rows: NDArray[np.float16]) -> NDArray[np.float16]:
    """The same rows under a map that holds no file descriptor, which that of numpy holds for as long as it is there."""
    if not isinstance(rows, np.memmap):  # no rows, so there is no map
        return rows
    whole = torch.from_file(str(rows.filename), shared=False, size=rows.offset + rows.nbytes, dtype=torch.uint8)
    mapped: NDArray[np.float16] = whole.numpy()[rows.offset :].view(rows.dtype).reshape(rows.shape)
    mapped.setflags(write=False)
    return mapped


def _float32(slides: Sequence[Sequence[NDArray[np.float16]]]) -> Tensor:
    """The rows of the slides one below the other, those of the parts of a slide side by side, as float32.

    The conversion is torch's, a tenth of numpy's time, and the memory is numpy's.

    torch takes no memory that may not be written, as that of the map, hence the block between; there the rows of several
    files are laid side by side. numpy asks the system for large pages, torch does not, and on a CPU the faults of small
    ones cost several times the conversion.
    """
    widths = [part.shape[1] for part in slides[0]]
    features = torch.from_numpy(np.empty((sum(len(parts[0]) for parts in slides), sum(widths)), np.float32))
    block = torch.empty((_BLOCK_ROWS, sum(widths)), dtype=torch.float16)
    columns = np.split(block.numpy(), np.cumsum(widths)[:-1], axis=1)
    done = 0
    for parts in slides:
        for start in range(0, len(parts[0]), _BLOCK_ROWS):
            n = min(_BLOCK_ROWS, len(parts[0]) - start)
            for part, some in zip(parts, columns, strict=True):
                np.copyto(some[:n], part[start : start + n])
            features[done : done + n] = block[:n]
            done += n
    return features
