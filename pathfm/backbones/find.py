"""Names to rows: the table and its variants, or a row made from the configuration that lies beside somebody's weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pathfm.backbones.row import Backbone, Rgb
from pathfm.backbones.rows.shared import IMAGENET
from pathfm.backbones.table import known_backbone, variant_of
from pathfm.backbones.weights import CONFIG, weights_folder
from pathfm.errors import BackboneError, InputError

_SOURCES = ("hf-hub:", "local-dir:")
_VARIANT = re.compile(r"(?P<name>[^:@]*)(?::(?P<output>[^:@]*))?(?:@(?P<revision>[^:@]*))?")


def find_backbone(name: str) -> Backbone:
    """The row of a name.

    A name of the table or of the user's own file, in whatever case, or that of another toolkit; behind it ":cls" for
    another of its outputs and "@0f6d29f" for another revision of its repository. The row's name is then the same whatever
    it was called: "virchow2" for "Virchow2:cls+mean", "midnight-12k:cls" for TRIDENT's "midnight12k".

    For a source ("hf-hub:owner/name", "timm/name", "local-dir:/folder") the row is made from the config.json there,
    which is fetched if need be. Such a row accepts any tile, resized whole to the model's input, and its licence is what
    the configuration states.

    Raises:
        UnknownNameError: neither known nor a source.
        InputError: the backbone has no such output or no revisions, or the user's own file cannot be used.
        WeightsMissingError: its config.json cannot be had.
        BackboneError: its config.json is none of timm's, or says what no model has.
    """
    source = f"hf-hub:{name}" if name.startswith("timm/") else name
    if not source.startswith(_SOURCES):
        return _named(name)
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:")).expanduser().resolve()
        return _row_from_config(Backbone(name=f"local-dir:{folder.name}", source=f"local-dir:{folder}"))
    repo, _, revision = source.partition("@")
    return _row_from_config(Backbone(name=name, source=repo, revision=revision or "main"))


def _named(name: str) -> Backbone:
    parts = _VARIANT.fullmatch(name)
    if parts is None:
        return known_backbone(name)  # which it is not
    base, output, revision = parts["name"], parts["output"], parts["revision"]
    if meant := variant_of(base):
        base, theirs = meant.split(":")
        output = theirs if output is None else output
    row = known_backbone(base)
    if output is not None:
        row = with_output(row, output)
    return row if revision is None else _at_revision(row, revision)


def with_output(row: Backbone, output: str) -> Backbone:
    """The variant of a row that gives another output, with the dimension that follows from it."""
    known = row.outputs or (row.output,)
    if output not in known:
        message = f"backbone {row.name} has no output {output!r}; its outputs are {', '.join(known)}, as {row.name}:{known[-1]}"
        raise InputError(message)
    if output == row.output:
        return row
    halves = {"cls+mean": 2}
    dim = row.dim and row.dim // halves.get(row.output, 1) * halves.get(output, 1)
    return replace(row, name=f"{row.name}:{output}", output=output, dim=dim)


def _at_revision(row: Backbone, revision: str) -> Backbone:
    if row.repo is None or not revision:
        message = (
            f"backbone {row.name} has no revision {revision!r}; write a branch, a tag or a commit after the @"
            if row.repo
            else f"backbone {row.name} is no repository of the hub, so it has no revisions; leave out @{revision}"
        )
        raise InputError(message)
    if revision == row.revision:
        return row
    # the pin is that of the row's own revision
    return replace(row, name=f"{row.name}@{revision}", revision=revision, weights_sha256="")


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
