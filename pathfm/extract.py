"""Slides to embeddings files: find tissue, cut tiles, embed them, write one proven file a slide and backbone; run again to go on."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

from pathfm.backbones import Engine, Precision  # noqa: TC001 - the command line reads the annotation
from pathfm.devices import FAILURES, extract_slides
from pathfm.embed import extract_slide
from pathfm.embed_cohort import ExtractResult
from pathfm.errors import SlidesFailedError
from pathfm.isolation import Limits
from pathfm.plan import plan_extraction, plan_like, settings_of_parts
from pathfm.privacy import private_run
from pathfm.progress import log_to
from pathfm.slide import Reader  # noqa: TC001 - the command line reads the annotation
from pathfm.slidefiles import DigestKind  # noqa: TC001 - the command line reads the annotation
from pathfm.sources import find_slides
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec
from pathfm.work import ExtractWork

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
    "plan_like",
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
    however you like: the same command goes on inside the slide, and several may work on one folder at a time. Several
    backbones share one pass over each slide, and leave the files that each would have left alone.

    Args:
        slides: folders, slide files or cohort tables (.csv).
        out: the folder for the embeddings.
        backbone: a name of `pathfm backbones`, hf-hub:owner/name, timm/name or local-dir:/folder; or several of the same
            tiles, as uni,virchow2: each slide is read once for all, and each has a folder of its own.
        tiles: how a slide is cut.
        tissue: how tissue is found.
        outlines: a folder of <slide_id>.geojson in place of found tissue; a slide without one has its tissue found.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps; on several GPUs cuda:0,cuda:1 or cuda:all.
        precision: of the backbones' matrix products; on a GPU what the makers of each say, else float32, where not given.
            Embeddings are stored as float16.
        engine: what runs the backbones: torch; compile (torch.compile); or openvino, for a CPU and with the extra of that
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
        InputError: slides, outlines or a number that cannot be used, a backbone twice, or several of different tiles.
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
        recipe: the recipe, from embeddings or a model; of several joined ones all are made in one pass.
        slides: folders, slide files or cohort tables.
        out: the folder for the embeddings.
        outlines: a folder of <slide_id>.geojson in place of found tissue.
        mpp_override: microns per pixel of level 0, in place of what the slides state.
        device: as in `extract`.
        backbone: where the backbone lies here, for a recipe made with a model from a folder (local-dir:/folder); for
            joined ones all of them, in any order, as uni,local-dir:/folder.
        names: gives pseudonyms in place of the ids.
        limits: what a process that reads may take.
        allow_upsampling: also slides that are more than 10 % coarser than the recipe's tiles.

    Raises:
        EmbeddingsStaleError: the weights here, or this version of pathfm, give another recipe; the keys are named.
        InputError: slides that cannot be used, or a recipe that pathfm never wrote.
        BackboneError: the backbone cannot be loaded.
    """
    settings_of_parts(recipe)  # refuses before slides are looked for, as the slides do before a backbone is loaded
    sources = find_slides(list(slides), mpp_override, names)
    work = plan_like(recipe, outlines, device, backbone, limits, allow_upsampling=allow_upsampling)
    return extract_slides(sources, work, out)
