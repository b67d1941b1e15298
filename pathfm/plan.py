"""What an extraction will do, settled before the first slide: backbones loaded, tiles resolved, recipes made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm.backbones import Backbone, Engine, Precision, find_backbone, require_tiles
from pathfm.devices import devices_of
from pathfm.embeddings import embeddings_folder_name, recipe_differences
from pathfm.errors import EmbeddingsStaleError, InputError
from pathfm.isolation import Limits, usual_workers
from pathfm.joined import parts_of
from pathfm.reading import Reading
from pathfm.recipe import RecipeSettings, recipe_for, settings_of
from pathfm.tiles import TileSpec
from pathfm.tissue import TissueSpec
from pathfm.work import BackboneWork, ExtractWork, loaded_afresh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.slide import Reader
    from pathfm.slidefiles import DigestKind


def plan_extraction(
    backbone: str,
    tiles: TileSpec = TileSpec(),
    tissue: TissueSpec = TissueSpec(),
    outlines: Path | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    engine: Engine = "torch",
    batch_size: int = 32,
    workers: int | None = None,
    reader: Reader = "auto",
    digest: DigestKind = "sha256",
    max_failed_share: float = 0.005,
    limits: Limits = Limits(),
) -> ExtractWork:
    """Loads the backbones and settles everything that is the same for all slides, recipes included; picklable.

    Arguments are those of `extract`.

    Raises:
        BackboneError: a backbone cannot be loaded, or was not made for such tiles.
        InputError: no such device or folder of outlines, a number out of range, a backbone twice, or several that are
            made for different tiles.
    """
    if not 0 <= max_failed_share <= 1:
        message = f"--max_failed_share is {max_failed_share:g}; give a share from 0 to 1"
        raise InputError(message)
    _require_at_least_one("batch_size", batch_size)
    _require_at_least_one("workers", 1 if workers is None else workers)
    reading = Reading(
        tiles=tiles,
        tissue=tissue,
        outlines=outlines,
        digest=digest,
        max_failed_share=max_failed_share,
        workers=_usual_workers(device) if workers is None else workers,
        limits=limits,
        reader=reader,
    )
    names = named_backbones(backbone)
    return _planned(names, [precision] * len(names), reading, device, engine, batch_size)


def plan_like(
    recipe: dict[str, Any],
    outlines: Path | None = None,
    device: str = "auto",
    backbone: str | None = None,
    limits: Limits = Limits(),
    *,
    allow_upsampling: bool = False,
) -> ExtractWork:
    """The work that gives embeddings of a recipe, or of all that are joined in it; arguments and errors as of `extract_like`."""
    settings = settings_of_parts(recipe)
    names = [one.backbone for one in settings] if backbone is None else named_backbones(backbone)
    _require_names(settings, names, backbone)
    names = _in_order_of(settings, names)
    tiles, tissue = replace(settings[0].tiles, allow_upsampling=allow_upsampling), settings[0].tissue
    reading = Reading(tiles, tissue, outlines, "sha256", 0.005, _usual_workers(device), limits)
    work = _planned(names, [one.precision for one in settings], reading, device, "torch", 32)
    parts = [_part_like(one, part, settings) for one, part in zip(parts_of(recipe), work.parts, strict=True)]
    return replace(work, parts=tuple(parts))


def settings_of_parts(recipe: dict[str, Any]) -> list[RecipeSettings]:
    """The settings of a recipe, or of each that is joined in it.

    Raises:
        InputError: it is of imported embeddings, or none that pathfm wrote, such as one that was edited.
    """
    parts = parts_of(recipe)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        message = "the recipe joins what are no recipes, so it is none that pathfm wrote; copy the model again"
        raise InputError(message)
    return [settings_of(part) for part in parts]


def named_backbones(backbone: str) -> list[str]:
    """The names in "uni,virchow2"; a local-dir: that is there may have commas in its path, and is named alone.

    Raises:
        InputError: a name between commas is empty.
    """
    if backbone.startswith("local-dir:") and Path(backbone.removeprefix("local-dir:")).expanduser().is_dir():
        return [backbone]
    names = [name.strip() for name in backbone.split(",")]
    if len(names) > 1 and "" in names:
        message = f"--backbone has an empty name between its commas: {backbone!r}; write it as uni,virchow2"
        raise InputError(message)
    return names


def _planned(
    names: Sequence[str],
    precisions: Sequence[Precision | None],
    reading: Reading,
    device: str,
    engine: Engine,
    batch_size: int,
) -> ExtractWork:
    """The work of backbones that look at the same tiles, which are resolved here."""
    if reading.outlines is not None and not reading.outlines.is_dir():
        message = f"no folder at {reading.outlines}; pass --outlines a folder with one <slide_id>.geojson a slide"
        raise InputError(message)
    rows = [find_backbone(name) for name in names]
    _require_each_once(names, [replace(row, name="", aliases=()) for row in rows])
    tiles = _tiles_for_all(rows, reading.tiles)
    loaded = loaded_afresh(names, devices_of(device)[0], precisions, engine)
    recipes = [recipe_for(one.identity, tiles, reading.tissue, outlines=reading.outlines is not None) for one in loaded]
    _require_each_once(names, recipes)
    parts = [
        BackboneWork(name=name, precision=one.precision, recipe=recipe)
        for name, one, recipe in zip(names, loaded, recipes, strict=True)
    ]
    reading = replace(reading, tiles=tiles)
    return ExtractWork(parts=tuple(parts), device=device, engine=engine, reading=reading, batch_size=batch_size)


def _tiles_for_all(rows: Sequence[Backbone], tiles: TileSpec) -> TileSpec:
    """The one tile spec of all backbones, resolved; one that takes any tile takes that of the others.

    Raises:
        InputError: what is not asked for is not the same for all.
        TileSpecMismatchError: one was not made for it; the message names which.
    """
    sizes_px = [row.size_px or row.resize_px for row in rows]
    size_px = next(filter(None, sizes_px), rows[0].default_size_px)
    mpp = next((row.mpp for row in rows if row.mpp), rows[0].default_mpp)
    resolved = [tiles.resolved(own_px or size_px, row.mpp or mpp) for row, own_px in zip(rows, sizes_px, strict=True)]
    if any(one != resolved[0] for one in resolved):
        each = ", ".join(
            f"{row.name} {one.size_px} px @ {one.mpp:g} mpp" for row, one in zip(rows, resolved, strict=True)
        )
        message = (
            f"these backbones take different tiles ({each}) and cannot share a pass over the slides; run them one after"
            " the other, or pass --tiles.size_px and --tiles.mpp that suit all"
        )
        raise InputError(message)
    for row in rows:
        require_tiles(row, resolved[0].size_px or 0, resolved[0].mpp or 0, allow_mismatch=tiles.allow_mismatch)
    return resolved[0]


def _require_each_once(names: Sequence[str], what: Sequence[object]) -> None:
    """Two names of one backbone would write the same files."""
    for at, one in enumerate(what):
        first = what.index(one)
        if first != at:
            message = f"--backbone {names[first]},{names[at]} is one backbone twice; name each once"
            raise InputError(message)


def _require_names(settings: Sequence[RecipeSettings], names: Sequence[str], backbone: str | None) -> None:
    """A backbone from a folder has to be shown, and all of several be named or none."""
    somewhere = [one.backbone.startswith("local-dir:") for one in settings]
    if len(names) != len(settings) or (backbone is None and any(somewhere)):
        made_with = " and ".join(one.backbone for one in settings)
        wanted = ["local-dir:/folder" if is_ else one.backbone for is_, one in zip(somewhere, settings, strict=True)]
        where = ", where that lies here" if any(somewhere) else ""
        message = f"the embeddings were made with {made_with}; pass --backbone {','.join(wanted)}{where}"
        raise InputError(message)


def _in_order_of(settings: Sequence[RecipeSettings], names: Sequence[str]) -> list[str]:
    """The names in the order of the settings; as they are where one is of none of them, which is then refused."""
    if len(names) == 1:
        return list(names)
    rows = {name: find_backbone(name) for name in names}
    called = {name: row.name.partition("@")[0] if row.repo else row.name for name, row in rows.items()}
    order = [one.backbone for one in settings]
    if not set(called.values()) <= set(order):
        return list(names)
    return sorted(names, key=lambda name: order.index(called[name]))


def _part_like(recipe: dict[str, Any], part: BackboneWork, settings: Sequence[RecipeSettings]) -> BackboneWork:
    """The part with the recipe as it is wanted, which it has to fulfil; but found or outlined, tissue is tissue.

    Raises:
        EmbeddingsStaleError: what is here gives another recipe; the keys are named.
    """
    tissue = part.recipe["tissue"] | {"method": recipe["tissue"]["method"]}
    differing = recipe_differences(part.recipe | {"tissue": tissue}, recipe)
    if differing:
        names = ",".join(one.backbone for one in settings)
        order = f"pass --backbone in the order {names}, or " if len(settings) > 1 else ""
        message = (
            f"slides cannot be embedded here as the recipe says: {'; '.join(differing[:3])};"
            f" {order}install the same weights and the pathfm version that made it"
        )
        raise EmbeddingsStaleError(Path(embeddings_folder_name(recipe)), message)
    return replace(part, recipe=recipe)


def _usual_workers(device: str) -> int:
    return usual_workers(len(devices_of(device)))


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        message = f"--{name} is {value}; give 1 or more"
        raise InputError(message)
