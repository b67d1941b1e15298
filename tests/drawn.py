"""A small study whose slides are plain pictures: cross-validated, with a final model, ready for heatmaps and a report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from pathfm.crossval import crossval
from pathfm.embeddings import Embeddings, embeddings_folder_name, write_embeddings
from pathfm.handon import refit
from pathfm.settings import TrainSettings
from pathfm.slidefiles import slide_digest

if TYPE_CHECKING:
    from pathlib import Path

SIZE_PX0, TILE_PX0, MPP = (384, 256), 64, 0.5
RECIPE: dict[str, Any] = {
    "backbone": {"name": "planted", "licence": "Apache-2.0"},
    "tiles": {"size_px": 32, "mpp": 1.0, "stride_px": 32, "min_tissue": 0.5},
}
SETTINGS = TrainSettings(epochs=4, hidden=16, attention=8, stop_share=0.0, device="cpu")


@dataclass
class Study:
    """Where its parts lie."""

    root: Path
    cohort: Path
    embeddings: Path
    crossval: Path
    model: Path

    def file(self, slide_id: str) -> Path:
        return self.embeddings / embeddings_folder_name(RECIPE) / f"{slide_id}.h5"

    def only(self, *slide_ids: str) -> Path:
        """A cohort table of some of its slides: drawing is what takes time."""
        table = pd.read_csv(self.cohort, dtype=str, keep_default_na=False)
        path = self.root / f"only-{len(slide_ids)}.csv"
        table[table["slide_id"].isin(slide_ids)].to_csv(path, index=False)
        return path


def make_study(root: Path, slide_ids: list[str], classes: int = 2, head: str = "gated-abmil") -> Study:
    """One slide a patient, classes in turn; the last slide has no label."""
    study = Study(root, root / "cohort.csv", root / "embeddings", root / "crossval", root / "model")
    rows = []
    for index, slide_id in enumerate(slide_ids):
        target = index % classes
        write_picture(root / "slides" / f"{index}.png", index)
        digest = slide_digest(root / "slides" / f"{index}.png")
        write_embeddings(study.file(slide_id), embeddings_of(slide_id, target, digest))
        label = str(target) if index < len(slide_ids) - 1 else ""
        rows.append({"slide_id": slide_id, "patient_id": f"p{index}", "cancer": label, "path": f"slides/{index}.png"})
        rows[-1] |= {"site": "north" if index % 4 < 2 else "south", "mpp": str(MPP)}
    pd.DataFrame(rows).to_csv(study.cohort, index=False)
    done = crossval(study.cohort, [study.embeddings], "cancer", study.crossval, 2, head, training=SETTINGS)
    refit(study.cohort, [study.embeddings], "cancer", study.model, done.epochs, head, training=SETTINGS)
    return study


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(120, 250, (*SIZE_PX0[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def embeddings_of(slide_id: str, target: int, digest: str = "") -> Embeddings:
    """A grid of tiles over the picture; a fifth of those of a positive have a shifted feature."""
    rng = np.random.default_rng(int(hashlib.sha256(slide_id.encode()).hexdigest()[:8], 16))
    x, y = np.meshgrid(np.arange(0, SIZE_PX0[0], TILE_PX0), np.arange(0, SIZE_PX0[1], TILE_PX0))
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    features = rng.normal(size=(len(coords), 6))
    if target:
        features[:5, target] += 4
    return Embeddings(
        slide_id=slide_id,
        slide_digest=digest,
        slide_size_px0=SIZE_PX0,
        mpp=MPP,
        mpp_source="cohort",
        tile_extent_px0=float(TILE_PX0),
        tissue_sha256="",
        recipe=RECIPE,
        versions={"openslide": "4.0.0"},
        features=features.astype(np.float16),
        coords=coords,
        failed=np.zeros((0, 2), dtype=np.int32),
        mean_rgb=rng.uniform(150, 220, size=3).astype(np.float32),
    )
