"""Names to rows: the table, or a row made from the configuration that lies beside somebody's weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from pathfm.backbones.network import python_class
from pathfm.backbones.row import Backbone, Rgb
from pathfm.backbones.table import BACKBONES, IMAGENET, known_backbone
from pathfm.backbones.weights import CONFIG, weights_available, weights_folder
from pathfm.errors import BackboneError

_SOURCES = ("hf-hub:", "local-dir:")


def find_backbone(name: str) -> Backbone:
    """The row of a name; for a source it is made from the config.json there, which is fetched if need be.

    Such a row accepts any tile, resized whole to the model's input, and its licence is what the configuration states.

    Raises:
        UnknownNameError: neither in the table nor a source.
        WeightsMissingError: its config.json cannot be had.
        BackboneError: its config.json is none of timm's, or says what no model has.
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
    inner = config.get("pretrained_cfg", {})  # older files have one level
    if not isinstance(inner, dict):
        raise _odd(row, "pretrained_cfg", inner, "an object")
    facts = {**config, **inner}
    if not isinstance(config.get("architecture"), str):
        message = f"{row.source} has a {CONFIG} without 'architecture', so it is no timm model; register a row for it"
        raise BackboneError(message)
    mean, deviation = (_rgb(row, facts, key, default) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    return replace(
        row,
        arch=config["architecture"],
        output="pooled",
        resize_px=_width(row, facts.get("input_size", [3, 224, 224])),
        interpolation="bilinear" if facts.get("interpolation") == "bilinear" else "bicubic",
        mean_std=(mean, deviation),
        licence=str(facts.get("license") or "unknown"),
    )


def _rgb(row: Backbone, facts: dict[str, Any], key: str, default: Rgb) -> Rgb:
    """Three finite numbers; those of a deviation, which divides, above 0."""
    values = facts.get(key, list(default))
    numbers = isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)
    if not numbers or not all(abs(value) < math.inf and (key == "mean" or value > 0) for value in values):
        raise _odd(row, key, values, "three numbers" if key == "mean" else "three numbers above 0")
    return cast("Rgb", tuple(values))


def _width(row: Backbone, size: object) -> int:
    if not isinstance(size, list) or len(size) != 3 or not all(type(value) is int and value > 0 for value in size):
        raise _odd(row, "input_size", size, "channels, height and width")
    return cast("int", size[-1])


def _odd(row: Backbone, key: str, value: object, wanted: str) -> BackboneError:
    message = f"{row.source} has a {CONFIG} whose {key!r} is {json.dumps(value)[:80]} and not {wanted}; fetch it again"
    return BackboneError(message)


def _config(row: Backbone) -> dict[str, Any]:
    path = weights_folder(row, config_only=True) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{path} is no JSON ({error}); fetch it again"
        raise BackboneError(message) from error
    return config if isinstance(config, dict) else {}
