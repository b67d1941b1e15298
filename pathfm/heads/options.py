"""The keywords of a head: what there is, and refusal of values that a head cannot be made of."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pathfm.errors import InputError, UnknownNameError
from pathfm.heads.layers import HeadShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.heads.pooling import Pooling

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def own_options(kind: type[Pooling]) -> dict[str, Any]:
    """The keywords of a head's class and their defaults, without those of `HeadShape`."""
    parameters = list(inspect.signature(kind).parameters.values())[3:]  # dim, n_outputs and shape come first
    return {parameter.name: parameter.default for parameter in parameters}


def require_options(head: str, kind: type[Pooling], given: Mapping[str, Any]) -> None:
    """Refuses keywords that a head does not have, and values of another type than their defaults.

    A whole number is a size or a count, so it is 1 or more unless its default is less.

    Args:
        head: the name of the head, for messages.
        kind: its class.
        given: keyword to value, those of `HeadShape` among them.

    Raises:
        UnknownNameError: no such keyword; near ones are listed.
        InputError: a value that cannot be.
    """
    known, what = asdict(HeadShape()) | own_options(kind), f"option of the head {head}"
    for name, value in given.items():
        if name not in known:
            raise UnknownNameError(what, name, known)
        default = known[name]
        wanted = type(default)
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits and wanted in _KINDS:
            message = f"{name}, an {what}, is {value!r}, and has to be {_KINDS[wanted]}, as {default!r}"
            raise InputError(message)
        if wanted is int and value < min(1, default):
            message = f"{name}, an {what}, is {value}, and has to be {min(1, default)} or more"
            raise InputError(message)
    require_share("dropout", given.get("dropout", 0.0))


def require_share(name: str, value: float) -> None:
    """Refuses a share that is not from 0 to 1.

    Raises:
        InputError: the option and its value.
    """
    if not 0 <= value <= 1:
        message = f"option {name} is {value}, and has to be from 0 to 1"
        raise InputError(message)


def require_divisible(hidden: int, heads: int) -> None:
    """Refuses a width that heads of attention cannot share alike.

    Raises:
        InputError: both numbers.
    """
    if hidden % heads:
        message = f"hidden {hidden} cannot be split into {heads} heads of attention; pass a multiple of {heads}"
        raise InputError(message)


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a word that is none of those an option takes.

    Raises:
        UnknownNameError: they are listed.
    """
    if value not in known:
        raise UnknownNameError(name, value, known)
