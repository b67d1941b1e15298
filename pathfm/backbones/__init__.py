"""Backbones: frozen networks from a tile to an embedding, a table of them, and loading one by name."""

from __future__ import annotations

from pathfm.backbones.engines import Engine
from pathfm.backbones.find import find_backbone
from pathfm.backbones.listing import backbones
from pathfm.backbones.load import LoadedBackbone, load_backbone, resolve_device
from pathfm.backbones.network import build_architecture
from pathfm.backbones.pending import Pending
from pathfm.backbones.row import Backbone, Precision
from pathfm.backbones.table import BACKBONES, known_backbones, register_backbone
from pathfm.backbones.transform import require_tiles

__all__ = [
    "BACKBONES",
    "Backbone",
    "Engine",
    "LoadedBackbone",
    "Pending",
    "Precision",
    "backbones",
    "build_architecture",
    "find_backbone",
    "known_backbones",
    "load_backbone",
    "register_backbone",
    "require_tiles",
    "resolve_device",
]
