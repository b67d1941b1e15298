"""The heads there are: a new one is a class like its neighbours and a row here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm.heads.abmil import Attention, GatedAttention, MultiBranchGatedAttention
from pathfm.heads.clam import ClamMB, ClamSB
from pathfm.heads.dsmil import DSMIL
from pathfm.heads.dtfd import DTFD
from pathfm.heads.maximum import MaxPooling
from pathfm.heads.mean import MeanPooling
from pathfm.heads.perceiver import Perceiver
from pathfm.heads.transformer import Transformer
from pathfm.heads.transmil import TransMIL

if TYPE_CHECKING:
    from pathfm.heads.pooling import Pooling

HEADS: dict[str, type[Pooling]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "abmil": Attention,
    "gated-abmil": GatedAttention,
    "gated-abmil-mb": MultiBranchGatedAttention,
    "clam-sb": ClamSB,
    "clam-mb": ClamMB,
    "dsmil": DSMIL,
    "transmil": TransMIL,
    "dtfd": DTFD,
    "transformer": Transformer,
    "perceiver": Perceiver,
}
