"""Heads: from the embeddings of a bag to its logits, and to where the head looked.

A head sees packed bags, has no BatchNorm and carries nothing from one bag to the next, so a bag gets the same logits
alone as in company. To add one: write a class like `mean.MeanPooling` and name it in `table.HEADS`.
"""

from pathfm.heads.head import Head, build_head, require_head
from pathfm.heads.layers import FirstLinear, HeadShape, Moments, moments
from pathfm.heads.packed import Bags, Criterion, HeadOutput, pack
from pathfm.heads.pooling import Pooling
from pathfm.heads.table import HEADS

__all__ = [
    "HEADS",
    "Bags",
    "Criterion",
    "FirstLinear",
    "Head",
    "HeadOutput",
    "HeadShape",
    "Moments",
    "Pooling",
    "build_head",
    "moments",
    "pack",
    "require_head",
]
