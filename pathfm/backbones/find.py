"""Names to rows: the table, or a row made from the configuration that lies beside somebody's weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from pathfm.backbones.network import python_class
from pathfm.backbones.table import BACKBONES, IMAGENET, Backbone, Rgb, known_backbone
from pathfm.backbones.weights import CONFIG, weights_available, weights_folder
from pathfm.errors import BackboneError

_SOURCES = ("hf-hub:", "local-dir:")


def find_backbone(name: str) -> Backbone:
    """The row of a name; for a source it is made from the config.json there, which is fetched if need be.

    Such a row accepts any tile, resized whole to the model's input, and its licence is what the configuration states.

    Raises:
        UnknownNameError: neither in the table nor a source.
        WeightsMissingError: its config.json cannot be had.
        BackboneError: its config.json is none of timm's.
    """
    source = f"hf-hub:{name}" if name.startswith("timm/") else name
    if not source.startswith(_SOURCES):
        return known_backbone(name)
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:")).expanduser().resolve()
        return _row_from_config(Backbone(name=f"local-dir:{folder.name}", source=f"local-dir:{folder}"))
    repo, _, revision = source.partition("@")
    return _row_from_config(Backbone(name=name, source=repo, revision=revision or "main"))


def backbones() -> pd.DataFrame:
    """The table of backbones, one row each: name, dim, tile, output, licence, gated, available, source.

    `available` says whether it can be used without network: built in, or its weights lie in the Hugging Face cache.
    Nothing is fetched or loaded.
    """
    gated = {True: "yes", False: "no", None: "unknown"}
    rows = [
        {
            "name": row.name,
            "dim": row.dim or python_class(row).dim,
            "tile": row.tile,
            "output": row.output,
            "licence": row.licence,
            "gated": gated[row.gated],
            "available": "yes" if weights_available(row) else "no",
            "source": row.source,
        }
        for row in BACKBONES.values()
    ]
    return pd.DataFrame(rows)


def _row_from_config(row: Backbone) -> Backbone:
    """Fills a row from the timm configuration at its source."""
    config = _config(row)
    facts = {**config, **config.get("pretrained_cfg", {})}  # older files have one level
    if "architecture" not in config:
        message = f"{row.source} has a {CONFIG} without 'architecture', so it is no timm model; register a row for it"
        raise BackboneError(message)
    mean, deviation = (tuple(facts.get(key, default)) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    return replace(
        row,
        arch=config["architecture"],
        output="pooled",
        resize_px=int(facts.get("input_size", (3, 224, 224))[-1]),
        interpolation="bilinear" if facts.get("interpolation") == "bilinear" else "bicubic",
        mean_std=(cast("Rgb", mean), cast("Rgb", deviation)),
        licence=str(facts.get("license") or "unknown"),
    )


def _config(row: Backbone) -> dict[str, Any]:
    path = weights_folder(row, config_only=True) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{path} is no JSON ({error}); fetch it again"
        raise BackboneError(message) from error
    return config if isinstance(config, dict) else {}
