"""What a comparison is over: heads and backbones as the user names them, the reference, and the slides that all have."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from pathfm.errors import EmbeddingsDamagedError, InputError, UnknownNameError
from pathfm.heads import require_head
from pathfm.labelled import LeftOut
from pathfm.patients import NO_EMBEDDINGS, slides_of_bag
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pathfm.cohort import Cohort
    from pathfm.labelled import LabelledSlides

_RECIPE = re.compile(r"-[0-9a-f]{8}$")


def named_heads(heads: str) -> list[str]:
    """The heads of a text with commas between them.

    Raises:
        UnknownNameError: no such head.
        InputError: an empty name, or one twice.
    """
    named = _names("heads", heads)
    for name in named:
        require_head(name)
    return named


def named_backbones(root: Path, backbones: str | None) -> dict[str, list[Path]]:
    """Of each backbone its folders, to be read side by side, by the name that it has as part of a folder's.

    Args:
        root: what extract wrote, with folders <backbone>-<recipe>.
        backbones: names with commas between them, and + between those that are joined; None for each that is found.

    Raises:
        EmbeddingsDamagedError: a root without such folders.
        UnknownNameError: no folder of this backbone.
        InputError: an empty name, one twice, or one that stands for several folders.
    """
    there = sorted({path.parent for path in root.glob("*/*.h5") if not path.name.startswith(".")})
    if not there:
        message = f"{root} holds no folder of embeddings; pass --embeddings the folder that pathfm extract wrote"
        raise EmbeddingsDamagedError(root, message)
    if backbones is None:
        short = [_RECIPE.sub("", folder.name) for folder in there]
        return {
            name if short.count(name) == 1 else folder.name: [folder] for name, folder in zip(short, there, strict=True)
        }
    return {
        _folder_name(name): [_folder_of(part, there) for part in _names("backbones", name, "+")]
        for name in _names("backbones", backbones)
    }


def _folder_of(name: str, there: Sequence[Path]) -> Path:
    found = [one for one in there if _folder_name(name) in (one.name, _RECIPE.sub("", one.name))]
    if not found:
        known = {_RECIPE.sub("", one.name) for one in there}
        raise UnknownNameError("backbone", name, known, f"{there[0].parent} holds these; correct --backbones")
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        message = (
            f"{name} stands for several folders of {there[0].parent}: {names}; pass --backbones the one that is meant"
        )
        raise InputError(message)
    return found[0]


def _folder_name(backbone: str) -> str:
    """A backbone as extract calls it where it names a folder."""
    return backbone.replace("/", "--").replace(":", "--")


def _names(option: str, text: str, between: str = ",") -> list[str]:
    names = [name.strip() for name in text.split(between)]
    if "" in names or len(set(names)) < len(names):
        message = f"--{option} {text!r} has an empty name, or one twice; write each once, with {between} between them"
        raise InputError(message)
    return names


def reference_of(given: str | None, pairs: Sequence[tuple[str, str]]) -> str:
    """The cell to compare with, BACKBONE/HEAD: the one that is named, or the first.

    Raises:
        UnknownNameError: no such cell.
    """
    names = [f"{backbone}/{head}" for backbone, head in pairs]
    if given is None:
        return names[0]
    backbone, _, head = given.rpartition("/")
    name = f"{_folder_name(backbone)}/{head}"
    if name not in names:
        raise UnknownNameError("reference", given, names, "pass --reference one of the cells as BACKBONE/HEAD")
    return name


def shared_slides(
    joined: dict[str, LabelledSlides], cohort: Cohort, join: Callable[[Cohort], dict[str, LabelledSlides]]
) -> tuple[dict[str, LabelledSlides], list[str]]:
    """The cohort of each backbone with those slides alone that all backbones can score, and a note on the others.

    Args:
        joined: all of the cohort with each backbone.
        cohort: the cohort.
        join: what joins some of its rows, so that the bag of a patient is made of the slides that all have.

    Raises:
        InputError: there are none.
    """
    usable = [_usable_slides(slides) for slides in joined.values()]
    shared, ever = set.intersection(*usable), sorted(set.union(*usable))
    lacking = [name for name in ever if name not in shared]
    if not lacking:
        return joined, []
    if not shared:
        message = (
            f"no slide has embeddings with tissue of all of {', '.join(joined)}; extract the same slides with each"
        )
        raise InputError(message)
    named = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    note = f"left out of all cells, for not every backbone has embeddings of it with tissue: {named}"
    logger.warning("%s", note)
    alike = join(replace(cohort, table=cohort.table[~cohort.table["slide_id"].isin(lacking)]))
    more = [LeftOut(name, NO_EMBEDDINGS) for name in lacking]
    return {name: replace(slides, left_out=[*slides.left_out, *more]) for name, slides in alike.items()}, [note]


def _usable_slides(slides: LabelledSlides) -> set[str]:
    return {name for slide_id in slides.usable["slide_id"] for name in slides_of_bag(slide_id, slides.unit)}
