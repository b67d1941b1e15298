"""Several caches of the same tiles as one: the recipe of embeddings that stand side by side."""

from __future__ import annotations

from typing import Any


def joined_recipe(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe of embeddings side by side, in this order; that of one cache is its own.

    Args:
        recipes: of the caches; their tiles and tissue are the same.
    """
    if len(recipes) == 1:
        return recipes[0]
    name = "+".join(str(recipe["backbone"]["name"]) for recipe in recipes)
    return {"backbone": {"name": name}, "tiles": recipes[0]["tiles"], "joined": recipes}


def parts_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipes of the caches that a recipe stands for: those joined in it, or itself alone."""
    joined: list[dict[str, Any]] = recipe.get("joined", [recipe])
    return joined
