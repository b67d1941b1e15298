"""Slides to embeddings files: find tissue, cut tiles, embed them, write one proven file a slide; run again to go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.backbones import Engine, Precision, find_backbone, require_tiles
from pathfm.devices import FAILURES, devices_of, extract_slides
from pathfm.embed import extract_slide
from pathfm.embed_cohort import ExtractResult
from pathfm.embeddings import embeddings_folder_name, recipe_differences
from pathfm.errors import EmbeddingsStaleError, InputError, SlidesFailedError
from pathfm.isolation import Limits, usual_workers
from pathfm.privacy import private_run
from pathfm.progress import log_to
from pathfm.reading import Reading
from pathfm.recipe import recipe_for, settings_of
from pathfm.slide import Reader  # noqa: TC001 - the command line reads the annotation
from pathfm.slidefiles import DigestKind  # noqa: TC001 - the command line reads the annotation
from pathfm.sources import find_slides
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec
from pathfm.work import ExtractWork, loaded_backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.privacy import Pseudonyms

__all__ = [
    "ExtractResult",
    "ExtractWork",
    "extract",
    "extract_like",
    "extract_slide",
    "extract_slides",
    "plan_extraction",
]


def extract(
    slides: list[Path],
    out: Path,
    backbone: str = "colour",
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    outlines: Path | None = None,
    mpp_override: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    engine: Engine = "torch",
    batch_size: int = 32,
    workers: int | None = None,
    reader: Reader = "auto",
    digest: DigestKind = "sha256",
    max_failed_share: float = 0.005,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> ExtractResult:
    """Embeds every slide into `<out>/<backbone>-<recipe8>/<slide_id>.h5` and lists those that failed in `<out>/failures.csv`.

    A file that is there is left alone only when it is whole and says the same slide, scale, tissue and recipe. Stop it
    however you like: the same command goes on inside the slide, and several may work on one folder at a time.

    Args:
        slides: folders, slide files or cohort tables (.csv).
        out: the folder for the embeddings.
        backbone: a name of `pathfm backbones`, hf-hub:owner/name, timm/name or local-dir:/folder.
        tiles: how a slide is cut.
        tissue: how tissue is found.
        outlines: a folder of <slide_id>.geojson in place of found tissue; a slide without one has its tissue found.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps; on several GPUs cuda:0,cuda:1 or cuda:all.
        precision: of the backbone's matrix products; on a GPU what its makers say, else float32, where not given.
            Embeddings are stored as float16.
        engine: what runs the backbone: torch; compile (torch.compile); or openvino, for a CPU and with the extra of that
            name. The last two are checked against torch when they are loaded.
        batch_size: tiles in a forward pass.
        workers: processes that read tiles; as many as there are cores, up to 16 a device, where not given.
        reader: what decodes slides: auto takes JPEG tiles from the file where that gives OpenSlide's pixels exactly, else
            OpenSlide; openslide; or cucim, where that is installed and gives them too.
        digest: what a slide is known by, to notice that it changed: sha256 reads every byte; quick (its size and
            OpenSlide's quickhash) does not, and misses a change of the same size in the pixels of a large level.
        max_failed_share: a slide is refused where more of its tiles than this cannot be read.
        limits: what a process that reads may take.
        pseudonymise: a key file, made where it is missing; ids of slides become keyed hashes in all that is written and
            said.

    Raises:
        SlidesFailedError: at the very end, when some slides failed.
        InputError: slides, outlines or a number that cannot be used.
        BackboneError: a backbone that cannot be loaded, or is not made for such tiles.
        DiskFullError: no space; what was finished is kept.
    """
    with private_run(pseudonymise, out, slides=slides, outlines=outlines) as names:
        sources = find_slides(slides, mpp_override, names)
        with log_to(out / "pathfm-extract.log"):
            reading = (workers, reader, digest, max_failed_share, limits)
            work = plan_extraction(backbone, tiles, tissue, outlines, device, precision, engine, batch_size, *reading)
            result = extract_slides(sources, work, out)
        if result.failed:
            raise SlidesFailedError(len(result.failed), len(sources), out / FAILURES)
        return result


def extract_like(
    recipe: dict[str, Any],
    slides: Sequence[Path],
    out: Path,
    outlines: Path | None = None,
    mpp_override: float | None = None,
    device: str = "auto",
    backbone: str | None = None,
    names: Pseudonyms | None = None,
    limits: Limits = Limits(),
    *,
    allow_upsampling: bool = False,
) -> ExtractResult:
    """Embeds slides exactly as a recipe says, such as that of a model; slides that fail are in the result.

    Whether a slide's tissue is found or outlined by hand is its own affair, as in any run with outlines.

    Args:
        recipe: the recipe, from embeddings or a model.
        slides: folders, slide files or cohort tables.
        out: the folder for the embeddings.
        outlines: a folder of <slide_id>.geojson in place of found tissue.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: as in `extract`.
        backbone: where the backbone lies here, for a recipe made with a model from a folder (local-dir:/folder).
        names: gives pseudonyms in place of the ids.
        limits: what a process that reads may take.
        allow_upsampling: also slides that are more than 10 % coarser than the recipe's tiles.

    Raises:
        EmbeddingsStaleError: the weights here, or this version of pathfm, give another recipe; the keys are named.
        InputError: slides that cannot be used, or a recipe that pathfm never wrote.
        BackboneError: the backbone cannot be loaded.
    """
    settings_of(recipe)  # refuses before slides are looked for, as the slides do before a backbone is loaded
    sources = find_slides(list(slides), mpp_override, names)
    work = plan_like(recipe, outlines, device, backbone, limits, allow_upsampling=allow_upsampling)
    return extract_slides(sources, work, out)


def plan_like(
    recipe: dict[str, Any],
    outlines: Path | None = None,
    device: str = "auto",
    backbone: str | None = None,
    limits: Limits = Limits(),
    *,
    allow_upsampling: bool = False,
) -> ExtractWork:
    """The work that gives embeddings of a recipe; arguments and errors as of `extract_like`."""
    settings = settings_of(recipe)
    name = backbone or settings.backbone
    if backbone is None and name.startswith("local-dir:"):
        message = f"the embeddings were made with {name}; pass --backbone local-dir:/folder, where that lies here"
        raise InputError(message)
    tiles = replace(settings.tiles, allow_upsampling=allow_upsampling)
    work = plan_extraction(name, tiles, settings.tissue, outlines, device, settings.precision, limits=limits)
    tissue_here = work.recipe["tissue"] | {"method": recipe["tissue"]["method"]}
    differing = recipe_differences(work.recipe | {"tissue": tissue_here}, recipe)
    if differing:
        message = (
            f"slides cannot be embedded here as the recipe says: {'; '.join(differing[:3])};"
            " install the same weights and the pathfm version that made it"
        )
        raise EmbeddingsStaleError(Path(embeddings_folder_name(recipe)), message)
    return replace(work, recipe=recipe)


def plan_extraction(
    backbone: str,
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    outlines: Path | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    engine: Engine = "torch",
    batch_size: int = 32,
    workers: int | None = None,
    reader: Reader = "auto",
    digest: DigestKind = "sha256",
    max_failed_share: float = 0.005,
    limits: Limits = Limits(),
) -> ExtractWork:
    """Loads the backbone and settles everything that is the same for all slides, recipe included; picklable.

    Raises:
        BackboneError: the backbone cannot be loaded, or was not made for such tiles.
        InputError: no such device or folder of outlines, or a number out of range.
    """
    if not 0 <= max_failed_share <= 1:
        message = f"--max_failed_share is {max_failed_share:g}; give a share from 0 to 1"
        raise InputError(message)
    _require_at_least_one("batch_size", batch_size)
    _require_at_least_one("workers", 1 if workers is None else workers)
    if outlines is not None and not outlines.is_dir():
        message = f"no folder at {outlines}; pass --outlines a folder with one <slide_id>.geojson a slide"
        raise InputError(message)
    row = find_backbone(backbone)
    resolved = tiles.resolved(row.default_size_px, row.default_mpp)
    require_tiles(row, resolved.size_px or 0, resolved.mpp or 0, allow_mismatch=tiles.allow_mismatch)
    devices = devices_of(device)
    loaded = loaded_backbone(backbone, devices[0], precision, engine)
    return ExtractWork(
        backbone=backbone,
        device=device,
        precision=loaded.precision,
        engine=engine,
        reading=Reading(
            tiles=resolved,
            tissue=tissue,
            outlines=outlines,
            digest=digest,
            max_failed_share=max_failed_share,
            workers=usual_workers(len(devices)) if workers is None else workers,
            limits=limits,
            reader=reader,
        ),
        recipe=recipe_for(loaded.identity, resolved, tissue, outlines=outlines is not None),
        batch_size=batch_size,
    )


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        message = f"--{name} is {value}; give 1 or more"
        raise InputError(message)
