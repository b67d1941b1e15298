"""The table of backbones: the rows of facts in `rows`, what a program registers, and what a user's file adds."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from pathfm.backbones.own import VARIABLE, own_rows
from pathfm.backbones.rows import ROWS, VARIANTS
from pathfm.backbones.sound import require_sound
from pathfm.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from pathfm.backbones.row import Backbone

BACKBONES: dict[str, Backbone] = {row.name: row for row in ROWS}


def register_backbone(row: Backbone) -> None:
    """Adds a backbone under its name, for this process; `dataclasses.replace` makes one from a row of the table.

    Raises:
        InputError: the name or an alias is taken, the name looks like a source ("hf-hub:...", a path), or what the row
            says cannot be; it says which field and why.
    """
    require_sound(row)
    if any(row.aliases == other.aliases for other in BACKBONES.values()):
        row = replace(row, aliases=())  # made from another row, whose names it does not take over
    _require_free(row, BACKBONES)
    BACKBONES[row.name] = row


def known_backbones() -> dict[str, Backbone]:
    """All rows by name: the table, and the entries of the YAML file that PATHFM_BACKBONES names, read anew.

    Raises:
        InputError: that file cannot be used; it says which entry and key.
    """
    known = dict(BACKBONES)
    for row in own_rows():
        try:
            _require_free(row, known)
        except InputError as error:
            message = f"{os.environ.get(VARIABLE)} ({VARIABLE}): {error}"
            raise InputError(message) from error
        known[row.name] = row
    return known


def known_backbone(name: str) -> Backbone:
    """The row of a name, in whatever case, or of the name that another toolkit has for it: "uni_v2" is "uni2-h".

    A name of another toolkit that means another variant than ours gives a name with a colon, see `find_backbone`.

    Raises:
        UnknownNameError: lists the near names.
        InputError: the user's own file cannot be used.
    """
    return _found(name, known_backbones())


def variant_of(alias: str) -> str | None:
    """The name of a variant, such as "midnight-12k:cls", that another toolkit calls so; None where it is none."""
    return VARIANTS.get(alias.lower())


def _found(name: str, known: dict[str, Backbone]) -> Backbone:
    if name in known:
        return known[name]
    lower = {key: row for row in known.values() for key in (*row.aliases, row.name.lower())}
    if name.lower() in lower:
        return lower[name.lower()]
    remedy = "pathfm backbones lists them; any timm model is taken as hf-hub:owner/name or local-dir:/folder"
    kind = "backbone"
    raise UnknownNameError(kind, name, {*known, *lower, *VARIANTS}, remedy)


def _require_free(row: Backbone, known: dict[str, Backbone]) -> None:
    taken = {
        **VARIANTS,
        **{key: other.name for other in known.values() for key in (other.name.lower(), *other.aliases)},
    }
    for name in (row.name.lower(), *row.aliases):
        if name in taken:
            message = f"a backbone named {name!r} is registered already ({taken[name]}); give the new one another name"
            raise InputError(message)
