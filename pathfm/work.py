"""What is done to every slide of a run, with which backbones, and what came of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones import Engine, LoadedBackbone, Precision, load_backbone
from pathfm.embeddings import embeddings_folder_name, recipe_differences
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pathfm.reading import Reading


@dataclass(frozen=True, kw_only=True)
class BackboneWork:
    """What is done with one of the backbones of a run; picklable.

    Attributes:
        name: what it is loaded by.
        precision: of its matrix products, as resolved for the recipe.
        recipe: what its files will say; the backbone found by the worker has to be the one in it.
    """

    name: str
    precision: Precision
    recipe: dict[str, Any]

    def folder(self, out: Path) -> Path:
        """Where its files are in a cache."""
        return out / embeddings_folder_name(self.recipe)


@dataclass(frozen=True, kw_only=True)
class ExtractWork:
    """What is done to every slide of a run; picklable, so that it can be sent to another process or machine.

    Attributes:
        parts: what differs from backbone to backbone, at least one; all look at the same tiles.
        device: where they run; "auto" is decided where the work is done.
        engine: what runs them.
        reading: how slides are read.
        batch_size: tiles in a forward pass.
    """

    parts: tuple[BackboneWork, ...]
    device: str
    engine: Engine
    reading: Reading
    batch_size: int

    def folders(self, out: Path) -> tuple[Path, ...]:
        """Where the files are in a cache, backbone by backbone."""
        return tuple(part.folder(out) for part in self.parts)

    def files(self, out: Path, slide_id: str) -> tuple[Path, ...]:
        """The files of a slide in a cache, backbone by backbone."""
        return tuple(folder / f"{slide_id}.h5" for folder in self.folders(out))


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What came of one slide.

    Attributes:
        slide_id: the slide.
        n_tiles: tiles with an embedding.
        n_failed: tiles that could not be read.
        tissue_mm2: area of its tissue.
        reader: what decoded its tiles.
        seconds: how long it was embedded.
        backbones: whose files were written, where the run has several; () where it has one.
        left: those whose files another process is writing; look again later.
    """

    slide_id: str
    n_tiles: int
    n_failed: int
    tissue_mm2: float
    reader: str
    seconds: float
    backbones: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line for the log."""
        done = f"done by {' and '.join(self.backbones)}" if self.backbones else "done"
        if self.n_tiles + self.n_failed == 0:
            why = (
                "no tissue" if self.tissue_mm2 == 0 else f"no tile with enough of its {self.tissue_mm2:.2g} mm2 tissue"
            )
            return f"{self.slide_id}: {done}, {why}; written with 0 tiles"
        failed = f" ({self.n_failed} unreadable)" if self.n_failed else ""
        rate = self.n_tiles / max(self.seconds, 1e-9)
        area = f"{self.tissue_mm2:.3g} mm2 tissue"
        return (
            f"{self.slide_id}: {done}, {self.n_tiles} tiles{failed}, {area}, read by {self.reader}, {rate:.1f} tiles/s"
        )


_Key = tuple[str, str, Precision, Engine]
_loaded: dict[_Key, LoadedBackbone] = {}


def loaded_afresh(
    names: Sequence[str], device: str, precisions: Sequence[Precision | None], engine: Engine
) -> tuple[LoadedBackbone, ...]:
    """Loads backbones and keeps them as those of this process; afresh, so that changed weights are seen by a new run."""
    forget_backbones()
    for name, precision in zip(names, precisions, strict=True):
        backbone = load_backbone(name, device, precision, engine)
        _loaded[name, device, backbone.precision, engine] = backbone
    return tuple(_loaded.values())


def forget_backbones() -> None:
    """Lets go of the backbones of this process, and of their memory on a GPU."""
    _loaded.clear()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


def backbones_of(work: ExtractWork) -> tuple[LoadedBackbone, ...]:
    """The backbones of some work, in its order; those of this process where they are that.

    Raises:
        BackboneError: one cannot be loaded, or is not the one of its recipe.
    """
    keys: list[_Key] = [(part.name, work.device, part.precision, work.engine) for part in work.parts]
    if not _loaded.keys() >= set(keys):
        loaded_afresh(
            [part.name for part in work.parts], work.device, [part.precision for part in work.parts], work.engine
        )
    backbones = tuple(_loaded[key] for key in keys)
    for backbone, part in zip(backbones, work.parts, strict=True):
        differences = recipe_differences(backbone.identity, part.recipe["backbone"], "backbone.")
        if differences:
            message = (
                f"the backbone here is not that of the recipe: {'; '.join(differences[:3])}; install the same weights"
            )
            raise BackboneError(message)
    return backbones
