"""Readers: what decodes the levels of a slide. OpenSlide is the measure, and others are used where they give the same."""

from __future__ import annotations

from pathfm.readers.levels import Levels, Reader

__all__ = ["Levels", "Reader"]
