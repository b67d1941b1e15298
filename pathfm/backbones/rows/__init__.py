"""The rows of the table, a file a family: facts alone, no code."""

from __future__ import annotations

from pathfm.backbones.rows.elsewhere import ELSEWHERE, VARIANTS
from pathfm.backbones.rows.general import GENERAL
from pathfm.backbones.rows.hibou import HIBOU
from pathfm.backbones.rows.language import LANGUAGE
from pathfm.backbones.rows.small import SMALL
from pathfm.backbones.rows.unbuilt import UNBUILT
from pathfm.backbones.rows.vision import VISION

ROWS = (*GENERAL, *SMALL, *VISION, *HIBOU, *LANGUAGE, *UNBUILT)

__all__ = ["ELSEWHERE", "ROWS", "VARIANTS"]
