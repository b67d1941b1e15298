"""The recipe: everything that decides an embedding apart from the slide, as JSON; and the way back to settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from pathfm.backbones import Precision
from pathfm.errors import InputError
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec

RECIPE_FORMAT = 1
READER = {"pixels": 2, "tissue": 1, "grid": 1}
"""Versions of our own reading of pixels, finding of tissue and laying of the grid; one is raised when its numbers change."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """What to ask of `plan_extraction` to get embeddings of a recipe.

    Attributes:
        backbone: the name to load it by.
        precision: of its matrix products.
        tiles: the tile spec; a mismatch with the backbone is allowed, for whoever made the recipe allowed it.
        tissue: the tissue spec.
        outlines: whether hand-made outlines were used.
    """

    backbone: str
    precision: Precision
    tiles: TileSpec
    tissue: TissueSpec
    outlines: bool


def recipe_for(identity: dict[str, Any], tiles: TileSpec, tissue: TissueSpec, *, outlines: bool) -> dict[str, Any]:
    """The recipe of embeddings; equal settings give equal JSON, also where one says 1 and the other 1.0.

    Args:
        identity: of the loaded backbone.
        tiles: resolved, so size, mpp and stride are given.
        tissue: how tissue is found; with outlines, where a slide has none.
        outlines: whether hand-made outlines come first.
    """
    return {
        "format": RECIPE_FORMAT,
        "tiles": {
            "size_px": int(tiles.size_px or 0),
            "mpp": float(tiles.mpp or 0),
            "stride_px": int(tiles.stride_px or 0),
            "min_tissue": float(tiles.min_tissue),
        },
        "tissue": {"method": "outlines" if outlines else "chroma", **_typed(tissue)},
        "backbone": identity,
        "reader": READER,
    }


def settings_of(recipe: dict[str, Any]) -> RecipeSettings:
    """The settings that a recipe was made from, to make more embeddings like it.

    Raises:
        InputError: it is of imported embeddings, or none that pathfm wrote, such as one that was edited.
    """
    if "imported" in recipe:
        message = (
            "the embeddings were imported from another tool, so pathfm cannot make such ones from slides; embed the slides"
            " with that tool, run pathfm import with the same options, and pass its folder to --embeddings"
        )
        raise InputError(message)
    try:
        return _settings(recipe)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = " ".join(str(error).split())[:200]
        message = (
            f"the recipe is none that pathfm wrote ({type(error).__name__}: {said});"
            " copy the model or the embeddings again from where they were made"
        )
        raise InputError(message) from error


def _settings(recipe: dict[str, Any]) -> RecipeSettings:
    backbone, tissue = recipe["backbone"], dict(recipe["tissue"])
    method = tissue.pop("method")
    if not isinstance(backbone["name"], str) or backbone["precision"] not in get_args(Precision):
        message = f"no backbone has the name {backbone['name']!r} and the precision {backbone['precision']!r}"
        raise ValueError(message)
    return RecipeSettings(
        backbone=backbone["name"],
        precision=backbone["precision"],
        tiles=TileSpec(**recipe["tiles"], allow_mismatch=True),
        tissue=TissueSpec(**tissue),
        outlines=method == "outlines",
    )


def _typed(tissue: TissueSpec) -> dict[str, Any]:
    """Every parameter in the type of its default."""
    return {name: type(getattr(_DEFAULT, name))(value) for name, value in asdict(tissue).items()}


_DEFAULT = TissueSpec()
