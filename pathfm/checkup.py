"""Whether a slide is fit for use, in one line: it opens, has a scale, and can be read in its corners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm.errors import SlideError
from pathfm.reading import opened

if TYPE_CHECKING:
    from pathfm.slide import Slide
    from pathfm.sources import SlideSource

_CORNER_PX = 64


def check_slide(source: SlideSource) -> str:
    """`ok`, or that corners are unreadable, and the facts.

    Raises:
        SlideError: it cannot be used; the reason is typed.
    """
    with opened(source) as slide:
        corners = _readable_corners(slide)
        return (
            f"{'ok' if corners == 4 else 'corners unreadable'}  {slide.vendor}  {slide.mpp:g} mpp ({slide.mpp_source})  "
            f"{slide.size_px0[0]} x {slide.size_px0[1]} px  levels {', '.join(f'{d:g}' for d in slide.level_downsamples)}  "
            f"read by {slide.reader_for(slide.mpp)}  {corners}/4 corners readable"
        )


def _readable_corners(slide: Slide) -> int:
    width, height = slide.size_px0
    readable = 0
    for x_px0 in (0, max(0, width - _CORNER_PX)):
        for y_px0 in (0, max(0, height - _CORNER_PX)):
            try:
                slide.read_tile(x_px0, y_px0, min(_CORNER_PX, width, height), slide.mpp)
                readable += 1
            except SlideError:
                continue
    return readable
