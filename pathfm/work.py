"""What is done to every slide of a run, with which backbone, and what came of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pathfm.backbones import Engine, LoadedBackbone, Precision, load_backbone
from pathfm.embeddings import recipe_differences
from pathfm.errors import BackboneError

if TYPE_CHECKING:
    from pathfm.reading import Reading


@dataclass(frozen=True, kw_only=True)
class ExtractWork:
    """What is done to every slide of a run; picklable, so that it can be sent to another process or machine.

    Attributes:
        backbone: the name it is loaded by.
        device: where it runs; "auto" is decided where the work is done.
        precision: of its matrix products, as resolved for the recipe.
        engine: what runs it.
        reading: how slides are read.
        recipe: what the files will say; the backbone found by the worker has to be the one in it.
        batch_size: tiles in a forward pass.
    """

    backbone: str
    device: str
    precision: Precision
    engine: Engine
    reading: Reading
    recipe: dict[str, Any]
    batch_size: int


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
    """

    slide_id: str
    n_tiles: int
    n_failed: int
    tissue_mm2: float
    reader: str
    seconds: float

    def __str__(self) -> str:
        """A line for the log."""
        if self.n_tiles + self.n_failed == 0:
            why = (
                "no tissue" if self.tissue_mm2 == 0 else f"no tile with enough of its {self.tissue_mm2:.2g} mm2 tissue"
            )
            return f"{self.slide_id}: done, {why}; written with 0 tiles"
        failed = f" ({self.n_failed} unreadable)" if self.n_failed else ""
        rate = self.n_tiles / max(self.seconds, 1e-9)
        area = f"{self.tissue_mm2:.3g} mm2 tissue"
        return f"{self.slide_id}: done, {self.n_tiles} tiles{failed}, {area}, read by {self.reader}, {rate:.1f} tiles/s"


def loaded_backbone(name: str, device: str, precision: Precision | None, engine: Engine) -> LoadedBackbone:
    """Loads a backbone afresh and keeps it as the one of this process, so that changed weights are seen by a new run."""
    backbone = load_backbone(name, device, precision, engine)
    _loaded.clear()
    _loaded[name, device, backbone.precision, engine] = backbone
    return backbone


def forget_backbone() -> None:
    """Lets go of the backbone of this process, and of its memory on a GPU."""
    _loaded.clear()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


_loaded: dict[tuple[str, str, Precision, Engine], LoadedBackbone] = {}


def backbone_of(work: ExtractWork) -> LoadedBackbone:
    """The backbone of some work, the one of this process where it is that.

    Raises:
        BackboneError: it cannot be loaded, or is not the one of the recipe.
    """
    key = (work.backbone, work.device, work.precision, work.engine)
    backbone = _loaded.get(key) or loaded_backbone(*key)
    differences = recipe_differences(backbone.identity, work.recipe["backbone"], "backbone.")
    if differences:
        message = f"the backbone here is not that of the recipe: {'; '.join(differences[:3])}; install the same weights"
        raise BackboneError(message)
    return backbone
