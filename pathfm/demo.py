"""The demo: a generated cohort with known truth, taken the whole way, and how well the truth was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from pathfm.claims import Claims
from pathfm.embeddings import Embeddings, find_embeddings, read_embeddings
from pathfm.errors import SlidesFailedError
from pathfm.files import read_json, write_json
from pathfm.metrics import Figure, Scored, auroc, figures
from pathfm.model import read_model
from pathfm.progress import logger
from pathfm.results import summary
from pathfm.scoring import score_bag
from pathfm.settings import TrainSettings
from pathfm.study import run, write_report
from pathfm.synthetic import LABEL, generate_cohort
from pathfm.tiles import TileSpec
from pathfm.version import __version__

TILES = TileSpec(size_px=128, mpp=0.5)
POINT, CLAIMS = "specificity>=0.9", Claims(calibration="temperature", coverage=0.8, subgroups=["age"])
TRAINING = TrainSettings(epochs=40, hidden=64, attention=32, lr=1e-3)
_IN_LESION = 0.5


@dataclass(frozen=True)
class Demo:
    """What `demo` leaves behind; prints as a few lines.

    Attributes:
        folder: holds cohort/ (slides and truth) and what `run` writes.
        metrics: metrics.json with the block "lesion" beside the figures.
    """

    folder: Path
    metrics: dict[str, Any]

    def __str__(self) -> str:
        figure = self.metrics["lesion"]["attention_auroc"]
        found = f"attention finds the lesion: AUROC over tiles {figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
        return f"{summary(self.metrics)}\n{found}\nreport: {self.folder / 'report.html'}"


def demo(out: Path = Path("demo"), seed: int = 0) -> Demo:
    """Generates a cohort of slides and takes it the whole way: embeddings, cross-validation, model, heatmaps, report.

    One file of the cohort is damaged on purpose; it is listed in failures.csv and in the report, and the demo goes on.

    Args:
        out: the folder for everything; run again, only what has changed is done.
        seed: of the cohort and of the training.
    """
    cohort = _generated(out / "cohort", seed)
    try:
        how = TrainSettings(**(vars(TRAINING) | {"seed": seed}))
        run(cohort, LABEL, out, tiles=TILES, training=how, operating_point=POINT, claims=CLAIMS)
    except SlidesFailedError as error:
        logger.info("%s: the demo damages one on purpose", error)
    metrics = read_json(out / "crossval" / "metrics.json")
    embeddings = next(iter(find_embeddings(out / "embeddings").values())).parent
    metrics["lesion"] = {"attention_auroc": lesion_figure(out, embeddings), "slides": "positives, out of fold"}
    write_json(out / "crossval" / "metrics.json", metrics)
    write_report(cohort, [embeddings], out)
    return Demo(out, metrics)


def lesion_figure(out: Path, embeddings: Path) -> Figure:
    """How well out-of-fold attention tells the lesion's tiles from the others: AUROC over the tiles of positive slides.

    A tile belongs to the lesion where half of it or more does. Attention is taken relative to its slide's average, so
    that slides can be pooled; the interval is by patient.
    """
    folds = pd.read_csv(out / "crossval" / "folds.csv", dtype=str)
    lesions, attentions, patients = [], [], []
    for row in folds[(folds["label"] == "1") & folds["fold"].notna()].itertuples():
        path = embeddings / f"{row.slide_id}.h5"
        if not path.exists():  # the damaged one
            continue
        bag = read_embeddings(path)
        attention = score_bag(read_model(out / "crossval" / "folds" / str(row.fold)), [bag]).attention()
        if attention is not None:
            lesions.append(_in_lesion(bag, out / "cohort" / "truth" / f"{row.slide_id}.geojson"))
            attentions.append(attention * len(attention))
            patients.append(np.full(len(attention), row.patient_id))
    codes, names = pd.factorize(np.concatenate(patients))
    pooled = np.concatenate(attentions).astype(np.float64)
    strata = np.zeros(len(names), dtype=np.int64)
    scores = np.stack([-pooled, pooled], axis=1)
    truth = np.concatenate(lesions).astype(np.float32)[:, None]
    tiles = Scored(truth, scores, codes.astype(np.int64), strata, tuple(names))
    return figures([tiles], {"auroc": auroc})["auroc"]


def _in_lesion(bag: Embeddings, truth: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    features = json.loads(truth.read_text(encoding="utf-8"))["features"]
    named = [f for f in features if f["properties"]["classification"]["name"] == "Lesion"]
    lesion = shapely.union_all([shapely.geometry.shape(f["geometry"]) for f in named])
    x, y = bag.coords[:, 0].astype(float), bag.coords[:, 1].astype(float)
    squares = shapely.box(x, y, x + bag.tile_extent_px0, y + bag.tile_extent_px0)
    inside: np.ndarray[Any, np.dtype[np.bool_]] = (
        shapely.area(shapely.intersection(squares, lesion)) >= _IN_LESION * bag.tile_extent_px0**2
    )
    return inside


def _generated(folder: Path, seed: int) -> Path:
    """The cohort of this seed; one that is there is taken as it is."""
    made, wanted = folder / "generated.json", {"seed": seed, "pathfm_version": __version__}
    if made.exists() and read_json(made) == wanted:
        logger.info("generate: taken from %s", folder)
        return folder / "cohort.csv"
    made.unlink(missing_ok=True)
    cohort = generate_cohort(folder, seed)
    write_json(made, wanted)
    return cohort
