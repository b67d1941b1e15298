"""Tissue and grid of every slide without a backbone, to look at before hours are spent: the command `tile`."""

from __future__ import annotations

import io
from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pathfm.errors import InputError, SlideError, SlidesFailedError
from pathfm.failures import Failure, write_failures
from pathfm.files import read_json, write_atomically, write_json, write_text
from pathfm.isolation import Limits, cancelled_after, isolated, usual_workers
from pathfm.outlines import tissue_of, tissue_to_geojson
from pathfm.privacy import private_run
from pathfm.progress import logger, progress
from pathfm.reading import opened
from pathfm.sources import SlideSource, find_slides
from pathfm.tiles import Tiles, TileSpec, tile_slide
from pathfm.tissue import TissueMask, TissueSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pathfm.slide import Slide

_SIZE_PX, _MPP = 224, 0.5  # what most backbones take
_LONGEST_PX = 1600
_STRIP_PX = 44
# Okabe and Ito (2008): told apart under the common colour blindnesses, and from pink and purple.
_CONTOUR_RGB, _GRID_RGB = (0, 114, 178), (0, 158, 115)
_COLUMNS = ("slide_id", "mpp", "mpp_source", "tissue_mm2", "n_tiles", "note")


def tile(
    slides: list[Path],
    out: Path,
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    outlines: Path | None = None,
    mpp_override: float | None = None,
    limits: Limits = Limits(),
    pseudonymise: Path | None = None,
) -> pd.DataFrame:
    """Finds the tissue of each slide, lays the grid, and draws both.

    Writes to `out`: `<slide_id>.png` (the slide with the tissue's contour in blue and the kept tiles in green),
    `<slide_id>.geojson` (the tissue, for QuPath), `tiles.csv` and `failures.csv`. A GeoJSON that is already there is
    never overwritten, for it may have been edited by hand: one that differs from the tissue of this run is kept with a
    warning. Pass `out` as `outlines` to use it, or delete it to get the found tissue again.

    Args:
        slides: a folder, slide files, or a cohort table.
        out: the folder to write to.
        tiles: how the slides are cut; 224 pixels at 0.5 mpp where not given.
        tissue: how tissue is found.
        outlines: a folder of `<slide_id>.geojson` drawn or edited by hand; they stand in for the tissue found.
        mpp_override: microns per pixel of level 0 for slides that state none or a wrong one.
        limits: what a process that reads a slide may take.
        pseudonymise: a key file, made where it is missing; slides are then called by keyed hashes of their ids.

    Returns:
        What tiles.csv holds: slide_id, mpp, mpp_source, tissue_mm2, n_tiles, note; one row a slide that could be used.

    Raises:
        InputError: no slides, no such folder of outlines, or an `out` where a picture would overwrite one of the slides.
        SlidesFailedError: at the end, when slides could not be used; the others are done.
    """
    with private_run(pseudonymise, out, slides=slides, outlines=outlines) as names:
        if outlines is not None and not outlines.is_dir():
            message = f"no folder at {outlines}; pass --outlines a folder with <slide_id>.geojson files"
            raise InputError(message)
        sources = find_slides(slides, mpp_override, names)
        _require_slides_apart(sources, out)
        spec = tiles.resolved(_SIZE_PX, _MPP)
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        how = (out, spec, tissue, outlines)
        calls = {
            one: isolated(one.path, limits.for_whole_slide(), usual_workers(), _one_slide, one, *how) for one in sources
        }
        with cancelled_after(calls.values()):
            for source, call in progress(calls.items(), "tile"):
                try:
                    rows.append(call.result())
                except SlideError as error:
                    failures.append(Failure.of(source.slide_id, error))
        table = pd.DataFrame(rows, columns=_COLUMNS)
        write_text(out / "tiles.csv", table.to_csv(index=False))
        write_failures(out / "failures.csv", failures)
        if failures:
            raise SlidesFailedError(len(failures), len(sources), out / "failures.csv")
        return table


def _require_slides_apart(sources: list[SlideSource], out: Path) -> None:
    """A plain image can be a slide, and in the folder of the pictures it has the name of its own picture."""
    originals = {source.path.resolve() for source in sources}
    for path in (out / f"{source.slide_id}{suffix}" for source in sources for suffix in (".png", ".geojson")):
        if path.resolve() in originals:
            message = f"{path} is one of the slides and would be overwritten; pass another folder to --out"
            raise InputError(message)


def _one_slide(
    source: SlideSource, out: Path, spec: TileSpec, tissue: TissueSpec, outlines: Path | None
) -> dict[str, Any]:
    with opened(source) as slide:
        mask = tissue_of(slide, tissue, outlines, source.original_id)
        tiles = tile_slide(slide, mask, spec)
        outline = tissue_to_geojson(mask, slide)
        picture = _png(_picture(slide, mask, tiles))
        row = {
            "slide_id": slide.slide_id,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "tissue_mm2": round(mask.area_mm2, 3),
            "n_tiles": len(tiles),
            "note": _note(slide, mask, tiles),
        }
    _write_outline(out / f"{source.slide_id}.geojson", outline, mask, outlines)
    write_atomically(out / f"{source.slide_id}.png", picture)
    return row


def _write_outline(path: Path, value: dict[str, Any], mask: TissueMask, outlines: Path | None) -> None:
    if mask.source == "outline" and outlines is not None and outlines.resolve() == path.parent.resolve():
        return
    if not path.exists():
        write_json(path, value)
    elif not _holds(path, value):
        logger.warning(
            "%s differs from the tissue of this run and is kept; pass --outlines %s to use it, or delete it to get the"
            " found tissue again",
            path,
            path.parent,
        )


def _holds(path: Path, value: dict[str, Any]) -> bool:
    try:
        return bool(read_json(path) == value)
    except (OSError, ValueError, RecursionError):
        return False


def _note(slide: Slide, mask: TissueMask, tiles: Tiles) -> str:
    """What somebody who reads the table should know of this slide."""
    notes = ["tissue by outline"] if mask.source == "outline" else []
    if slide.mpp_stated is not None and slide.mpp_source != "metadata":
        notes.append(f"the slide states {slide.mpp_stated:g} mpp")
    if slide.mpp > 1.005 * tiles.mpp:
        notes.append(f"tiles {100 * (slide.mpp / tiles.mpp - 1):.0f} % finer than the scan")
    if min(slide.size_px0) < tiles.extent_px0:
        notes.append("smaller than a tile")
    elif not mask.mask.any():
        notes.append("no tissue")
    elif not len(tiles):
        notes.append("no tile holds enough tissue")
    return "; ".join(notes)


def _picture(slide: Slide, mask: TissueMask, tiles: Tiles) -> Image.Image:
    """The slide small, with the grid, the contour above it, and a strip with a scale bar."""
    mpp = max(slide.mpp, max(slide.size_px0) * slide.mpp / _LONGEST_PX)
    pixels = np.array(slide.read_overview(mpp)[0])
    _draw_grid(pixels, tiles, slide.mpp / mpp)
    _draw_contours(pixels, mask, mask.mpp / mpp)
    text = (
        f"{slide.slide_id}\n{len(tiles)} tiles of {tiles.size_px} px at {tiles.mpp:g} mpp,"
        f" {mask.area_mm2:.2f} mm2 of tissue"
    )
    return _with_strip(pixels, mpp, text)


def _draw_grid(pixels: NDArray[np.uint8], tiles: Tiles, scale: float) -> None:
    corners = np.rint(tiles.coords * scale).astype(int)
    ends = np.rint((tiles.coords + tiles.extent_px0) * scale).astype(int)
    for (left, top), (right, bottom) in zip(corners.tolist(), ends.tolist(), strict=True):
        cv2.rectangle(pixels, (left, top), (right - 1, bottom - 1), _GRID_RGB, 1)


def _draw_contours(pixels: NDArray[np.uint8], mask: TissueMask, scale: float) -> None:
    height, width = (max(1, round(side * scale)) for side in mask.mask.shape)
    enlarged = cv2.resize(mask.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(pixels, contours, -1, _CONTOUR_RGB, 2)


def _with_strip(pixels: NDArray[np.uint8], mpp: float, text: str) -> Image.Image:
    height, width = pixels.shape[:2]
    picture = Image.new("RGB", (max(width, 420), height + _STRIP_PX), "white")
    picture.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((6, height + 6), text, "black", ImageFont.load_default(13))
    length_um = _round_length(picture.width / 6 * mpp)
    right, base = picture.width - 8, height + _STRIP_PX - 8
    draw.rectangle((right - length_um / mpp, base - 5, right, base), "black")
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    draw.text((right, base - 8), label, "black", ImageFont.load_default(13), anchor="rb")
    return picture


def _round_length(longest_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is no longer."""
    power = 10.0 ** np.floor(np.log10(longest_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest_um))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
