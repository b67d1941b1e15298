"""Judging backbones: how well their frozen embeddings tell labels apart, and how much of the site they carry."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

from pathfm.backbones import Backbone, LoadedBackbone, Precision, find_backbone, load_backbone
from pathfm.errors import InputError, SlidesFailedError
from pathfm.failures import write_failures
from pathfm.figures import png_bytes
from pathfm.files import sha256_text, write_atomically, write_json, write_text
from pathfm.imagelist import find_tile_images
from pathfm.isolation import Limits, usual_workers
from pathfm.licences import restricted
from pathfm.metrics import RESAMPLES
from pathfm.privacy import private_run
from pathfm.probejudge import judge
from pathfm.probeplot import draw_probe
from pathfm.probetasks import tasks_of
from pathfm.progress import logger
from pathfm.slide import Reader  # noqa: TC001 - the command line reads the annotation
from pathfm.slidesample import Sampling
from pathfm.sources import find_slides
from pathfm.tilefeatures import embed_units
from pathfm.tileimages import tiles_of_images
from pathfm.tiles import TileSpec
from pathfm.tilesamples import slide_facts, tiles_of_slides
from pathfm.tissue import TissueSpec
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pathfm.failures import Failure
    from pathfm.privacy import Pseudonyms
    from pathfm.probejudge import Judged
    from pathfm.tilefeatures import LabelledTiles

_FORMAT = 1
_RESULTS = ("probe.csv", "differences.csv", "probe.png", "probe.json", "tiles.csv", "failures.csv")


def probe(
    out: Path,
    backbone: str = "colour",
    images: Path | None = None,
    slides: list[Path] | None = None,
    annotations: Path | None = None,
    label: str | None = None,
    classes: list[str] | None = None,
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    max_tiles: int = 200,
    folds: int = 5,
    neighbours: int = 20,
    seed: int = 0,
    mpp_override: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    reader: Reader = "auto",
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> pd.DataFrame:
    """Judges backbones by kNN and a linear probe on labelled tiles, split by patient, and by how well they tell the site.

    Writes to `out`: probe.csv (what is returned), differences.csv (backbone against backbone), probe.png, probe.json
    (settings, choices, warnings, licences), tiles.csv (which tiles, in which fold), failures.csv, and features/, from
    which the next run takes what is there. The figures of an earlier run are taken away as soon as the settings make
    sense. docs/probe.md says how to read them.

    Args:
        out: the folder to write to.
        backbone: one or several, with commas between: names of `pathfm backbones`, hf-hub:owner/name, timm/name or
            local-dir:/folder.
        images: tile images: a folder that holds one folder a label, or a table (.csv) with the columns path and label,
            and patient_id and site where they are known; a folder may hold such a table, tiles.csv.
        slides: folders, slide files or cohort tables (.csv) to take tiles from, instead of images.
        annotations: a folder of <slide_id>.geojson; the classes of their areas, as QuPath names them, are the labels.
        label: the column of the cohort that labels all tiles of a slide, instead of annotations; or that of the table of
            images, "label" where not given.
        classes: only these labels; all where not given.
        tiles: the tiles of slides: what is not given each backbone decides for itself, around the same centres. Of
            images, tiles.mpp states their mpp.
        tissue: how tissue is found in slides that have one label.
        max_tiles: most tiles of a slide and label; where there are more, a sample by the seed.
        folds: parts that are scored in turn; a patient is in one of them.
        neighbours: k of the kNN; at most as many as the smallest class has tiles to learn from.
        seed: of the sample, the splits and the intervals.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps.
        precision: of the backbones' matrix products; on a GPU what their makers say, else float32, where not given.
        batch_size: tiles in a forward pass.
        workers: processes that read tiles; as many as there are cores, up to 16, where not given.
        reader: what decodes slides: auto, openslide or cucim.
        limits: what a process that reads may take.
        pseudonymise: a key file, made where it is missing; slides, tiles and patients are then called by keyed hashes.

    Returns:
        One row a backbone, probe (knn, linear) and target (label, site, label on new sites): balanced_accuracy with its
        95 % interval low to high by patient, chance, by_label (how well the label alone tells the site), macro_f1,
        counts, and in note why there is no figure.

    Raises:
        SlidesFailedError: at the very end, where slides or images could not be used; the figures are of the others.
        InputError: tiles that cannot be told apart, such as a class with fewer patients than folds, or one image under
            two labels.
        UnknownNameError: a label, a column or a backbone that nobody knows.
        LeakageError: one image, or scan, under two patients.
        BackboneError: a backbone that cannot be loaded, before any work on others; or that is not made for such tiles.
    """
    reading = usual_workers() if workers is None else workers
    _require_numbers(seed, max_tiles=max_tiles, neighbours=neighbours, batch_size=batch_size, workers=reading)
    _require_one_way(images, slides, annotations, label)
    asked = None if classes is None else tuple(classes)
    how = Sampling((), tissue, annotations, asked, max_tiles, seed, reading, limits, reader, batch_size)
    given = _named(backbone)
    with private_run(pseudonymise, out, images=images, slides=slides, annotations=annotations) as names:
        for name in _RESULTS:
            (out / name).unlink(missing_ok=True)
        looked_at, notes = _source(images, slides, label, mpp_override, names, tiles, how)
        ready = _checked(given, device, precision)
        labelled = looked_at([one.row for one in ready])
        write_failures(out / "failures.csv", labelled.failures)
        tasks_of(labelled.table, folds, seed)  # before hours of embedding
        features, failures = _embedded(labelled, ready, out / "features")
        write_failures(out / "failures.csv", failures)
        judged = judge(labelled.table, features, folds, neighbours, seed)
        judged.notes[:0] = [*notes, *labelled.notes, *_absent(classes, judged)]
        settings: dict[str, Any] = {"label": label, "classes": classes, "max_tiles": max_tiles, "folds": folds}
        settings |= {"neighbours": neighbours, "seed": seed, "tiles": asdict(tiles), "tissue": asdict(tissue)}
        _write(out, judged, ready, settings)
        if failures:
            what = "tile images" if images is not None else "slides"
            logger.info(
                "%s holds what came of the others:\n%s", out / "probe.csv", judged.results.to_string(index=False)
            )
            raise SlidesFailedError(len({one.slide_id for one in failures}), labelled.total, out / "failures.csv", what)
        return judged.results


def _source(
    images: Path | None,
    slides: list[Path] | None,
    label: str | None,
    mpp_override: float | None,
    names: Pseudonyms | None,
    spec: TileSpec,
    how: Sampling,
) -> tuple[Callable[[list[Backbone]], LabelledTiles], list[str]]:
    """What gives the tiles once the backbones are known; and notes."""
    if images is not None:
        found, notes = find_tile_images(images, label, names)
        return partial(tiles_of_images, found, spec=spec, how=how), notes
    sources = find_slides(slides or [], mpp_override, names)
    facts = slide_facts(slides or [], label, names)
    return partial(tiles_of_slides, sources, facts, spec=spec, how=how), []


def _absent(classes: list[str] | None, judged: Judged) -> list[str]:
    absent = [name for name in classes or () if name not in set(judged.tiles["label"])]
    return [f"no tile is left of {', '.join(absent)}, which --classes asks for"] if absent else []


@dataclass(frozen=True, eq=False)
class _Ready:
    """A backbone that was loaded once, so that it can be, and is loaded again when it is its turn."""

    name: str
    row: Backbone
    identity: dict[str, Any]
    load: Callable[[], LoadedBackbone]


def _named(backbone: str) -> dict[str, str]:
    """What backbones are called in the result, by the names that were given; a typing error in any is said at once."""
    given = [name.strip() for name in backbone.split(",") if name.strip()]
    twice = next((name for name, count in Counter(given).items() if count > 1), None)
    if not given or twice:
        message = f"--backbone names {f'{twice} twice' if twice else 'none'}; give each once, with commas between"
        raise InputError(message)
    shown = {name: find_backbone(name).name for name in given}
    counts = Counter(shown.values())
    return {name: own if counts[own] == 1 else name for name, own in shown.items()}


def _checked(given: dict[str, str], device: str, precision: Precision | None) -> list[_Ready]:
    """Loads every backbone, one at a time; a single one stays."""
    return [_once(name, shown, device, precision, stays=len(given) == 1) for name, shown in given.items()]


def _once(name: str, shown: str, device: str, precision: Precision | None, *, stays: bool) -> _Ready:
    """A call of its own: what it loaded is freed when it ends, before the next is loaded."""
    loaded = load_backbone(name, device, precision)
    load = partial(_itself, loaded) if stays else partial(load_backbone, name, device, precision)
    return _Ready(shown, loaded.row, loaded.identity, load)


def _itself(loaded: LoadedBackbone) -> LoadedBackbone:
    return loaded


def _embedded(
    labelled: LabelledTiles, ready: Sequence[_Ready], folder: Path
) -> tuple[dict[str, NDArray[np.float16]], list[Failure]]:
    """The embeddings by each backbone, NaN for tiles that one of them did not get; and all that failed, each once."""
    features, failures = {}, list(labelled.failures)
    for one in ready:
        features[one.name], failed = embed_units(labelled.units(one.row), one.identity, one.load, folder)
        failures += failed
    return features, list(dict.fromkeys(failures))


def _write(out: Path, judged: Judged, ready: Sequence[_Ready], settings: dict[str, Any]) -> None:
    licences = [one.row.terms for one in ready]
    for line in [*judged.notes, *(str(licence) for licence in restricted(licences))]:
        logger.warning("%s", line)
    write_text(out / "probe.csv", judged.results.to_csv(index=False))
    write_text(out / "differences.csv", judged.differences.to_csv(index=False))
    shown = judged.tiles[["tile", "label", "patient_id", "site", "fold"]]
    write_text(out / "tiles.csv", shown.to_csv(index=False))
    by = "patient" if judged.tiles["patient"].str.startswith("patient ").all() else "file"
    document = {
        "format": "pathfm-probe",
        "format_version": _FORMAT,
        "pathfm_version": __version__,
        "interval": (
            f"95 %, percentiles of a bootstrap by {by}, stratified by class, {RESAMPLES} resamples, seed {settings['seed']}"
        ),
        "settings": settings,
        "tiles_sha256": sha256_text(shown.to_csv(index=False)),
        "backbones": [one.identity for one in ready],
        "licences": [licence.facts() for licence in licences],
        "classes": judged.classes,
        "scored_sites": judged.scored_sites,
        "chosen": judged.chosen,
        "notes": judged.notes,
    }
    write_json(out / "probe.json", document)
    count = f"{len(judged.tiles)} tiles of {judged.tiles['patient'].nunique()} {by}s"
    unknown = "; where patients are not known, a file is taken for one" if by == "file" else ""
    caption = [f"{count}, bars: 95 % intervals by {by}{unknown}"]
    write_atomically(out / "probe.png", png_bytes(draw_probe(judged.results, caption)))


def _require_one_way(
    images: Path | None, slides: list[Path] | None, annotations: Path | None, label: str | None
) -> None:
    if (images is None) == (slides is None):
        message = "pass either --images, a folder of labelled tiles, or --slides, to take tiles from"
        raise InputError(message)
    if images is not None and annotations is not None:
        message = "--annotations label tiles of slides; pass --slides with them, or --images alone"
        raise InputError(message)
    if slides is not None and (annotations is None) == (label is None):
        message = "pass either --annotations, a folder of <slide_id>.geojson, or --label, a column of the cohort table"
        raise InputError(message)
    if annotations is not None and not annotations.is_dir():
        message = f"no folder at {annotations}; pass --annotations a folder with one <slide_id>.geojson a slide"
        raise InputError(message)


def _require_numbers(seed: int, **numbers: int) -> None:
    if not 0 <= seed < 2**32:
        message = f"--seed is {seed}; give a whole number from 0 to 4294967295"
        raise InputError(message)
    for name, value in numbers.items():
        if value < 1:
            message = f"--{name} is {value}; give 1 or more"
            raise InputError(message)
