"""What other tools call the backbones that pathfm has rows for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pathfm.errors import UnknownNameError

if TYPE_CHECKING:
    from pathfm.backbones import Backbone

OUR_NAMES = {
    # AtlasPatch
    "virchow_v1": "virchow",
    "virchow_v2": "virchow2",
    "h0_mini": "h0-mini",
    # slideflow's classes
    "unifeatures": "uni",
    "gigapathfeatures": "gigapath",
    "virchowfeatures": "virchow",
    "virchow2features": "virchow2",
    "hoptimus0features": "h-optimus-0",
    "phikonv2features": "phikon-v2",
}
"""Only those that no row has as an alias, in lower case."""

_SOURCES = ("hf-hub:", "local-dir:", "timm/")
_VERSION = re.compile(r"v?\d.*")


def known_row(name: str) -> Backbone | None:
    """The row of a backbone by any name, of a variant too; None where pathfm knows none, or only a source of weights.

    Raises:
        InputError: a backbone that is known, but has no such output or revision.
    """
    from pathfm.backbones import find_backbone  # only here: it imports torch, and most files are read without

    if name.startswith(_SOURCES):  # its configuration would be fetched
        return None
    try:
        return find_backbone(OUR_NAMES.get(name.lower(), name))
    except UnknownNameError:
        return None


def our_name(name: str) -> str:
    """The name in pathfm of a backbone by any name; its own where pathfm knows none."""
    row = known_row(name)
    return name if row is None else row.name


def family_of(name: str) -> Backbone | None:
    """The row whose weights a name stands for, also one with a word of the user's own behind it, as virchow2-cls.

    A word that looks like a version means other weights: nothing is known of virchow-v3.

    Raises:
        InputError: as `known_row`.
    """
    from pathfm.backbones import known_backbones

    row = known_row(name)
    if row is not None:
        return row
    rows = {key: one for one in known_backbones().values() for key in (one.name.lower(), *one.aliases)}
    start = max((key for key in rows if name.lower().startswith(f"{key}-")), key=len, default=None)
    if start is None or _VERSION.fullmatch(name[len(start) + 1 :].lower()):
        return None
    return rows[start]


def base_name(name: str) -> str:
    """The name of the row, without an output and a revision behind it."""
    return re.split("[:@]", name, maxsplit=1)[0]


def folder_name(name: str) -> str:
    """The name of a backbone as part of a path."""
    return name.replace("/", "--").replace(":", "--")
