"""`pathfm backbones`: the table of backbones, the card of one, and whether one is what its row says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pathfm.backbones.find import find_backbone
from pathfm.backbones.network import python_class
from pathfm.backbones.rows import ELSEWHERE, VARIANTS
from pathfm.backbones.table import known_backbones
from pathfm.backbones.weights import weights_available
from pathfm.errors import BackboneError, InputError
from pathfm.progress import logger

if TYPE_CHECKING:
    from pathfm.backbones.row import Backbone

_GATED = {True: "yes", False: "no", None: "unknown"}
_OUTPUTS = {
    "cls": "the class token",
    "mean": "the mean of the patch tokens",
    "cls+mean": "the class token beside the mean of the patch tokens",
    "pooled": "what the network itself pools",
    "layer3": "the mean over the map after the third stage",
}


def backbones(name: str | None = None, check: str | None = None) -> pd.DataFrame:
    """The table of backbones, one row each: name, dim, tile, output, licence, gated, available, source.

    `available` says whether it can be used without network: built in, or its weights are here; "no" where its authors'
    code would have to run. Nothing is fetched or loaded, unless `check` asks for it.

    Args:
        name: the card of this backbone instead, fact and value: all that its row says; "virchow2:cls" is a variant.
        check: hold this backbone against its row, as the tests do with those of the table: what, wanted, found, passed.

    Raises:
        UnknownNameError: no such backbone.
        InputError: both were asked for, or the user's own file cannot be used.
        BackboneError: a check failed; the table of checks is logged before.
    """
    if name is not None and check is not None:
        message = "--name shows the card of a backbone and --check checks one; ask for one of them at a time"
        raise InputError(message)
    if check is not None:
        return _checked(check)
    return _table() if name is None else pd.DataFrame(card(find_backbone(name)), columns=["fact", "value"])


def card(row: Backbone) -> list[tuple[str, str]]:
    """All that a row says, in words: fact and value; what it does not say is left out."""
    base = base_name(row)
    meant = [entry for entry in ELSEWHERE if entry[1] == base or base_name(find_backbone(entry[2])) == base]
    facts = (
        ("name", row.name),
        ("also called", ", ".join(aliases_of(row))),
        ("elsewhere", "; ".join(f"{theirs!r} of {toolkit} is {ours!r} here" for toolkit, theirs, ours in meant)),
        ("paper", row.citation),
        ("embedding", f"{_dim(row)} numbers: {_OUTPUTS[row.output]}"),
        ("variants", ", ".join(f"{base}:{one}" for one in row.outputs if one != row.output)),
        ("tile", row.tile),
        ("transform", transform_words(row)),
        ("tokens before the patches", str(row.prefix_tokens or "")),
        ("network", " ".join(part for part in (row.library, row.arch) if part)),
        ("arguments", ", ".join(f"{key}={value}" for key, value in row.arch_kwargs.items())),
        ("parameters", f"{row.n_params / 1e6:.2f} million" if row.n_params else ""),
        ("shapes of its state", row.shapes_sha8),
        ("precision on a GPU", row.precision),
        ("licence", row.licence),
        ("of what is made with it", row.derivatives),
        ("gated", _GATED[row.gated]),
        ("source", row.source),
        ("revision", row.revision if row.repo else ""),
        ("sha256 of its weights", row.weights_sha256),
        ("page", row.page),
        ("available here", _available(row)),
        ("how to get it", how_to_get(row)),
    )
    return [(fact, value) for fact, value in facts if value]


def transform_words(row: Backbone) -> str:
    """The way from the pixels of a tile to the input of a network, in words."""
    steps = []
    if row.resize_px is not None:
        steps.append(f"resize to {row.resize_px} px, {row.interpolation}, antialiased")
    if row.crop_px is not None and row.crop_px != (row.resize_px or row.size_px):
        steps.append(f"cut out the {row.crop_px} px in the middle")
    steps.append("divide by 255")
    if row.mean_std is not None:
        mean, deviation = (" ".join(f"{value:g}" for value in values) for values in row.mean_std)
        steps.append(f"subtract {mean}, divide by {deviation}")
    return "; ".join(steps)


def how_to_get(row: Backbone) -> str:
    """What somebody has to do who wants to use it."""
    if row.library == "python":
        return "it is built in" if row.source.startswith("python:pathfm.") else f"install what {row.source} names"
    if row.library == "remote":
        return "embed the tiles with its authors' own code, then `pathfm import` the features"
    steps = [f"run `{row.install}`"] if row.install else []
    if row.library == "transformers":
        steps.append("run `pip install 'pathfm[hf]'`")
    if row.repo is None:
        return "; ".join([*steps, "its weights lie in the folder that is its source"])
    if row.gated is not False:
        asked = "" if row.gated else ", if it asks you to,"
        steps.append(f"accept the terms at {row.page}{asked} and run `hf auth login`")
    return "; ".join([*steps, "its weights are fetched when it is first used"])


def aliases_of(row: Backbone) -> list[str]:
    """What other toolkits call just this variant."""
    return [
        *(row.aliases if row.name == base_name(row) else ()),
        *(a for a, meant in VARIANTS.items() if meant == row.name),
    ]


def base_name(row: Backbone) -> str:
    """The name without output and revision."""
    return (
        row.name
        if row.name.startswith(("hf-hub:", "local-dir:", "timm/"))
        else row.name.partition("@")[0].partition(":")[0]
    )


def _table() -> pd.DataFrame:
    rows = [
        {
            "name": row.name,
            "dim": _dim(row),
            "tile": row.tile,
            "output": row.output,
            "licence": row.licence,
            "gated": _GATED[row.gated],
            "available": _available(row),
            "source": row.source,
        }
        for row in known_backbones().values()
    ]
    return pd.DataFrame(rows)


def _checked(name: str) -> pd.DataFrame:
    from pathfm.backbones.conformance import check_backbone

    checks = check_backbone(name)
    words = {True: "yes", False: "NO", None: "not looked at"}
    table = pd.DataFrame(
        [(one.what, str(one.wanted), str(one.found), words[one.passed]) for one in checks],
        columns=["what", "wanted", "found", "passed"],
    )
    failed = [one for one in checks if one.passed is False]
    if failed:
        for one in checks:
            logger.info("%s: wanted %s, found %s: %s", one.what, one.wanted, one.found, words[one.passed])
        named = "; ".join(f"{one.what} (wanted {one.wanted}, found {one.found})" for one in failed)
        message = f"backbone {name} is not what its row says: {named}; correct the row, or the weights"
        raise BackboneError(message)
    return table


def _dim(row: Backbone) -> int | str:
    if row.dim is not None:
        return row.dim
    return int(python_class(row).dim) if row.library == "python" else "unknown"


def _available(row: Backbone) -> str:
    return "yes" if row.library != "remote" and weights_available(row) else "no"
