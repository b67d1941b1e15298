"""Whether a row can be: caught where it is registered, in one line, instead of where it fails."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any, get_args

from pathfm.backbones.row import Library, Output, Precision
from pathfm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pathfm.backbones.row import Backbone

_SOURCES = {
    "python": ("python:",),
    "timm": ("hf-hub:", "local-dir:"),
    "transformers": ("hf-hub:", "local-dir:"),
    "package": ("hf-hub:", "local-dir:"),
    "remote": ("hf-hub:", "https:"),
}


def require_sound(row: Backbone) -> None:
    """Refuses a row that says what no backbone has.

    Raises:
        InputError: names the backbone, the field, what it says and what is wanted.
    """
    for key, wanted in _wrong(row):
        message = f"backbone {row.name!r} cannot be: its {key} is {getattr(row, key)!r}, and should be {wanted}"
        raise InputError(message)


def _wrong(row: Backbone) -> Iterator[tuple[str, str]]:
    """Each field that is wrong, and what it should be."""
    if not row.name or any(c in row.name for c in ":@/\\") or row.name.strip() != row.name:
        yield "name", "letters, digits and dashes"
    if any(alias != alias.lower() or not alias or ":" in alias or "@" in alias for alias in row.aliases):
        yield "aliases", "names in lower case"
    if row.library not in get_args(Library):
        yield "library", _one_of(get_args(Library))
    elif not row.source.startswith(_SOURCES[row.library]):
        yield "source", _one_of([f"{start}..." for start in _SOURCES[row.library]])
    if row.library == "package" and not _names_a_function(row.build):
        yield "build", "module:function of a module that is installed"
    if row.weights_file.startswith("/") or ".." in row.weights_file.split("/") or "\\" in row.weights_file:
        yield "weights_file", "the name of a file beside its config.json"
    if row.precision not in get_args(Precision):
        yield "precision", _one_of(get_args(Precision))
    yield from _wrong_output(row)
    yield from _wrong_input(row)


def _wrong_output(row: Backbone) -> Iterator[tuple[str, str]]:
    known = get_args(Output)
    if row.output not in known:
        yield "output", _one_of(known)
    if not set(row.outputs) <= set(known) or (row.outputs and row.output not in row.outputs):
        yield "outputs", f"some of {', '.join(known)}, {row.output} among them"
    if row.dim is not None and (type(row.dim) is not int or row.dim < 1):
        yield "dim", "a whole number above 0, or left out"
    elif row.output == "cls+mean" and row.dim is not None and row.dim % 2:
        yield "dim", "even, for the class token and the mean of the patches are of one width"
    if type(row.prefix_tokens) is not int or row.prefix_tokens < ("cls" in row.output and row.library != "python"):
        yield "prefix_tokens", "the number of class and register tokens, so 1 or more where there is a class token"


def _wrong_input(row: Backbone) -> Iterator[tuple[str, str]]:
    for key in ("size_px", "resize_px", "crop_px", "least_px"):
        value = getattr(row, key)
        if value is not None and (type(value) is not int or value < 1):
            yield key, "a whole number of pixels above 0"
    there = row.resize_px or row.size_px
    if row.crop_px is not None and there is not None and row.crop_px > there:
        yield "crop_px", f"at most the {there} px that there are to cut from"
    if row.mpp is not None and not 0.05 <= row.mpp <= 5:
        yield "mpp", "microns per pixel, between 0.05 and 5"
    if any(not 0.05 <= mpp <= 5 for mpp in row.other_mpp):
        yield "other_mpp", "microns per pixel, between 0.05 and 5"
    if row.interpolation not in ("bicubic", "bilinear"):
        yield "interpolation", _one_of(("bicubic", "bilinear"))
    if row.mean_std is not None and not _is_mean_std(row.mean_std):
        yield "mean_std", "three numbers and three above 0, such as ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"


def _is_mean_std(given: Any) -> bool:
    if len(given) != 2 or any(len(values) != 3 for values in given):
        return False
    return all(math.isfinite(value) for values in given for value in values) and min(given[1]) > 0


def _names_a_function(place: str) -> bool:
    module, _, name = place.partition(":")
    try:
        return bool(module and name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"
