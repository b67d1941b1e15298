"""pathfm: from a folder of whole-slide images and a table of labels to a slide-level model that can be questioned.

Each station is a module with the command's function in it: `from pathfm.extract import extract`. docs/design.md draws them.
"""

from __future__ import annotations

from pathfm.version import __version__

__all__ = ["__version__"]
