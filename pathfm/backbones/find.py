"""Names to rows: the table and its variants, or a row made from the configuration that lies beside somebody's weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from pathfm.backbones.row import Backbone, Rgb
from pathfm.backbones.rows.shared import IMAGENET
from pathfm.backbones.table import known_backbone, variant_of
from pathfm.backbones.timm_models import arguments_of_config, read_config
from pathfm.backbones.weights import CONFIG
from pathfm.errors import BackboneError, InputError

_SOURCES = ("hf-hub:", "local-dir:")
_VARIANT = re.compile(r"(?P<name>[^:@]*)(?::(?P<output>[^:@]*))?(?:@(?P<revision>[^:@]*))?")


def find_backbone(name: str) -> Backbone:
    """The row of a name.

    A name of the table or of the user's own file, in whatever case, or that of another toolkit; behind it ":cls" for
    another of its outputs and "@v9" for another revision of its repository. The row's name is then the same whatever
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
        row = with_output(row, output.lower())
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
    if re.fullmatch("[0-9a-f]{7,39}", revision):
        message = (
            f"{row.name}@{revision} looks like a part of a commit, which the hub does not take; write all 40 digits"
        )
        raise InputError(message)
    if revision == row.revision:
        return row
    # the pin is that of the row's own revision
    return replace(row, name=f"{row.name}@{revision}", revision=revision, weights_sha256="")


def _row_from_config(row: Backbone) -> Backbone:
    """Fills a row from the timm configuration at its source."""
    config = read_config(row)
    inner = config.get("pretrained_cfg", {})  # older files have one level
    if not isinstance(inner, dict):
        raise _odd(row, "pretrained_cfg", inner, "an object")
    facts = {**config, **inner}
    mean, deviation = (_rgb(row, facts, key, default) for key, default in zip(("mean", "std"), IMAGENET, strict=True))
    arguments = arguments_of_config(config)
    return replace(
        row,
        arch=config["architecture"],
        arch_kwargs=arguments,
        output="pooled",
        resize_px=_width(row, facts, arguments.get("img_size")),
        interpolation=_filter(row, facts.get("interpolation", "bicubic")),
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


def _width(row: Backbone, facts: dict[str, Any], stated: Any) -> int:
    """Of the input that the network is made for, whatever it was trained on."""
    trained = _side(row, "input_size", facts.get("input_size", [3, 224, 224]))
    if stated is None:
        return trained
    return _side(row, "img_size", [3, stated, stated] if type(stated) is int else [3, *stated])


def _side(row: Backbone, key: str, size: Any) -> int:
    whole = isinstance(size, list) and len(size) == 3 and all(type(value) is int and value > 0 for value in size)
    if not whole or size[1] != size[2]:
        raise _odd(row, key, size, "channels, height and width of a square")
    return cast("int", size[2])


def _filter(row: Backbone, name: object) -> Literal["bicubic", "bilinear"]:
    if name not in ("bicubic", "bilinear"):
        raise _odd(row, "interpolation", name, "bicubic or bilinear")
    return name


def _odd(row: Backbone, key: str, value: object, wanted: str) -> BackboneError:
    message = f"{row.source} has a {CONFIG} whose {key!r} is {json.dumps(value)[:80]} and not {wanted}; fetch it again"
    return BackboneError(message)
