"""What a heatmap shows of one slide, drawn by a function of picklable arguments, in a process that the slide may crash."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pathfm.errors import EmbeddingsStaleError
from pathfm.figures import png_bytes
from pathfm.overlay import draw_gallery, draw_heatmap, relative
from pathfm.progress import logger
from pathfm.reading import opened
from pathfm.slidefiles import slide_changed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pathfm.embeddings import Embeddings
    from pathfm.slide import Slide
    from pathfm.sources import SlideSource


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is drawn over a slide.

    Attributes:
        digest: of the slide, "" where that is not known.
        size_px0: (width, height) of the slide that the tiles were cut from; (0, 0) where that is not known.
        mpp: microns per pixel of its level 0.
        coords: int32 (n, 2), (x, y) of each tile's top-left corner in level-0 pixels.
        extent_px0: width of a tile in level-0 pixels.
        tile_px: width of a tile in pixels.
        tile_mpp: microns per pixel of a tile.
        attention: float32 (n,), of each tile; sums to 1 over the bag.
        n_bag: tiles of the bag, which may hold other slides of the patient.
        title: above the picture.
        top_tiles: how many the gallery shows.
    """

    digest: str
    size_px0: tuple[int, int]
    mpp: float
    coords: NDArray[np.int32]
    extent_px0: float
    tile_px: int
    tile_mpp: float
    attention: NDArray[np.float32]
    n_bag: int
    title: str
    top_tiles: int

    @classmethod
    def of(cls, embeddings: Embeddings, attention: NDArray[np.float32], n_bag: int, title: str, top_tiles: int) -> View:
        """The view of a model's attention over the tiles of a file."""
        tiles = embeddings.recipe["tiles"]
        return cls(
            digest=embeddings.slide_digest,
            size_px0=embeddings.slide_size_px0,
            mpp=embeddings.mpp,
            coords=np.array(embeddings.coords),
            extent_px0=embeddings.tile_extent_px0,
            tile_px=tiles["size_px"],
            tile_mpp=tiles["mpp"],
            attention=attention,
            n_bag=n_bag,
            title=title,
            top_tiles=top_tiles,
        )


class Pictures(NamedTuple):
    """PNG files as bytes: the attention over the slide, and its top tiles."""

    overlay: bytes
    gallery: bytes


def draw_pictures(source: SlideSource, file: Path, view: View) -> Pictures:
    """Draws the overlay and the gallery.

    Args:
        source: the slide.
        file: its embeddings file, for messages.
        view: what is drawn.

    Raises:
        SlideError: the slide cannot be read.
        EmbeddingsStaleError: it is not the one that the tiles were cut from.
    """
    with opened(replace(source, mpp_override=view.mpp, mpp_source="override")) as slide:
        _require_same_slide(slide, view, file)
        drawing = draw_heatmap(slide, view.coords, view.extent_px0, view.attention, view.title, view.n_bag)
        overlay = png_bytes(drawing)
        top = np.argsort(-view.attention, kind="stable")[: view.top_tiles]
        images = [slide.read_tile(int(x), int(y), view.tile_px, view.tile_mpp) for x, y in view.coords[top]]
    caption = f"{source.slide_id}: the {len(top)} tiles with the highest attention"
    gallery = draw_gallery(images, relative(view.attention, view.n_bag)[top].tolist(), view.tile_mpp, caption)
    return Pictures(overlay, png_bytes(gallery, dpi=110))


def _require_same_slide(slide: Slide, view: View, file: Path) -> None:
    if view.size_px0 == (0, 0):
        if (view.coords >= slide.size_px0).any():
            message = f"{file} has tiles outside of {slide.path}; pass --slides the slides that it was made from"
            raise EmbeddingsStaleError(file, message)
        logger.warning(
            "%s: its imported embeddings do not say the slide's size; drawn by its name alone", slide.slide_id
        )
    elif slide.size_px0 != view.size_px0:
        message = (
            f"{file} was made from a slide of {view.size_px0[0]} x {view.size_px0[1]} pixels, "
            f"{slide.path} has {slide.size_px0[0]} x {slide.size_px0[1]}; extract again, or pass --slides the same slides"
        )
        raise EmbeddingsStaleError(file, message)
    elif view.digest and slide_changed(slide.path, view.digest):
        message = (
            f"{slide.path} has changed since {file} was made from it; extract again, or pass --slides the same slides"
        )
        raise EmbeddingsStaleError(file, message)
