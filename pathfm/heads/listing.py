"""`pathfm heads`: the table of heads."""

from __future__ import annotations

import json

import pandas as pd
import torch

from pathfm.heads.head import build_head
from pathfm.heads.options import own_options
from pathfm.heads.table import HEADS

_DIM, _OUTPUTS = 1024, 2


def heads_table() -> pd.DataFrame:
    """The table of heads, one row each: name, attention, order, options, parameters, paper.

    `attention` says how many columns of it there are: none, one, or one for each output. `order` says whether the order
    of the tiles matters. `options` are those of the head alone with their defaults; hidden, attention and dropout are
    options of all. `parameters` are counted at embeddings of 1,024 numbers and 2 outputs.
    """
    return pd.DataFrame([_row(name) for name in HEADS])


def _row(name: str) -> dict[str, str | int]:
    kind = HEADS[name]
    with torch.random.fork_rng(devices=[]):  # under the meta device torch would load its compiler, which takes seconds
        head = build_head(name, _DIM, _OUTPUTS)
    return {
        "name": name,
        "attention": kind.attention,
        "order": "free" if kind.permutation_invariant else "matters",
        "options": " ".join(
            f"{option}={value if isinstance(value, str) else json.dumps(value)}"
            for option, value in own_options(kind).items()
        ),
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "paper": kind.paper,
    }
