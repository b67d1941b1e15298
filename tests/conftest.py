"""Data that several test files share; everything is generated, nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from pathfm.embeddings import Embeddings, embeddings_folder_name, write_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Small matrices on few cores, and several test processes at a time: threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPE: dict[str, Any] = {
    "backbone": {"name": "planted", "licence": "Apache-2.0"},
    "tiles": {"size_px": 256, "stride_px": 256, "mpp": 0.5},
}


@dataclass
class EmbeddingsCohort:
    """A generated cohort: its table, its embeddings root, and the recipe of all its files."""

    table: Path
    embeddings: Path
    recipe: dict[str, Any] = field(default_factory=lambda: RECIPE)

    @property
    def folder(self) -> Path:
        return self.embeddings / embeddings_folder_name(self.recipe)

    def file(self, slide_id: str) -> Path:
        return self.folder / f"{slide_id}.h5"

    def frame(self) -> pd.DataFrame:
        return pd.read_csv(self.table, dtype=str, keep_default_na=False)

    def rewrite(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self.table, index=False)


def planted_embeddings(
    slide_id: str, target: int, n: int = 30, dim: int = 8, recipe: dict[str, Any] | None = None, seed: int = 0
) -> Embeddings:
    """Noise, and in a fifth of the tiles a shift of feature `target`, unless the class is 0: a lesion to find."""
    digits = int(hashlib.sha256(f"{slide_id}{seed}".encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng(digits)
    features = rng.normal(size=(n, dim))
    if target:
        features[: max(1, n // 5) if n else 0, target] += 4
    return Embeddings(
        slide_id=slide_id,
        slide_digest="sha256:" + hashlib.sha256(slide_id.encode()).hexdigest(),
        slide_size_px0=(max(1, n) * 256, 256),
        mpp=0.5,
        mpp_source="metadata",
        tile_extent_px0=256.0,
        tissue_sha256="",
        recipe=recipe or RECIPE,
        versions={},
        features=features.astype(np.float16),
        coords=np.stack([np.arange(n) * 256, np.zeros(n)], axis=1).astype(np.int32),
        failed=np.zeros((0, 2), dtype=np.int32),
        mean_rgb=rng.uniform(150, 220, size=3).astype(np.float32) if n else np.full(3, np.nan, dtype=np.float32),
    )


@pytest.fixture
def embeddings_cohort(tmp_path: Path) -> Callable[..., EmbeddingsCohort]:
    """A factory: `embeddings_cohort(patients=12, slides=1, classes=2)` writes a cohort whose label is learnable.

    Patient `p03`'s class is 3 modulo the classes; its slides are `p03-0`, `p03-1`; sites alternate in pairs of patients.
    """

    def make(
        patients: int = 12,
        slides: int = 1,
        classes: int = 2,
        name: str = "cohort",
        prefix: str = "p",
        **more: Any,
    ) -> EmbeddingsCohort:
        cohort = EmbeddingsCohort(tmp_path / f"{name}.csv", tmp_path / f"{name}-embeddings", more.get("recipe", RECIPE))
        rows = []
        for patient in range(patients):
            for slide in range(slides):
                slide_id = f"{prefix}{patient:02d}-{slide}"
                target = patient % classes
                write_embeddings(cohort.file(slide_id), planted_embeddings(slide_id, target, **more))
                rows.append(
                    {
                        "slide_id": slide_id,
                        "patient_id": f"{prefix}{patient:02d}",
                        "site": "north" if patient // 2 % 2 else "south",
                        "cancer": str(target),
                    }
                )
        cohort.rewrite(pd.DataFrame(rows))
        return cohort

    return make
