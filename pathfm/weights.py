"""Weights for machines without network: packed into a bundle where there is one, proven and unpacked where there is none."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the command line reads the annotation
from typing import TYPE_CHECKING

from pathfm.backbones.hub import hub_cache
from pathfm.backbones.packing import collect, require_out, write_bundle
from pathfm.backbones.unpacking import unpack_into_cache, unpack_into_mirror
from pathfm.errors import InputError
from pathfm.licences import Licence
from pathfm.progress import logger, progress

if TYPE_CHECKING:
    from pathfm.backbones.bundle import Packed


def pack_weights(names: list[str], out: Path) -> str:
    """Packs the weights of backbones into a bundle, with their licences; fetches what is not on this machine.

    Each file is listed with its size and sha256. The same command goes on where it was interrupted.

    Args:
        names: backbones, right after the command: names of the table or hf-hub:owner/name.
        out: a new folder, or a file that ends in .tar.

    Returns:
        What is in it, and what to do with it.

    Raises:
        UnknownNameError: no such backbone.
        BackboneError: one without weights on the hub.
        WeightsMissingError: gated, offline or absent weights; the message has the page and what to do there.
        WeightsDamagedError: weights that are not those that their row pins.
        InputError: no names, two commits of one repository, or an `out` that cannot be one.
    """
    if not names:
        message = "no backbones are named; write them after the command: pathfm weights pack uni virchow2 --out bundle"
        raise InputError(message)
    require_out(out)
    packed: list[Packed] = []
    files: dict[str, Path] = {}
    for name in progress(list(dict.fromkeys(names)), "fetch", "backbone"):
        one, found = collect(name)
        if any(it.name == one.name for it in packed):  # by two of its names
            continue
        other = next((it for it in packed if it.repo == one.repo and it.commit != one.commit), None)
        if other:
            message = f"{other.name} and {one.name} are two commits of {one.repo}; pack them into two bundles"
            raise InputError(message)
        packed.append(one)
        files |= found
    write_bundle(out, packed, files)
    _say_terms(packed)
    return f"{out} holds {_counted(packed)}; where there is no network: pathfm weights unpack {out}"


def unpack_weights(bundle: Path, out: Path | None = None) -> str:
    """Proves a bundle and puts its weights where every tool that uses the Hugging Face cache finds them.

    Nothing is written unless every size and sha256 is right; nothing of another content is replaced.

    Args:
        bundle: the folder or .tar file that pack wrote, right after the command.
        out: a folder to use as a mirror, in place of the cache; PATHFM_WEIGHTS then has to name it.

    Returns:
        What is there now.

    Raises:
        InputError: no bundle.
        WeightsDamagedError: it is not what its manifest says, or other files are in the place of its files.
        DiskFullError: no space; run it again when there is.
    """
    packed = unpack_into_mirror(bundle, out) if out else unpack_into_cache(bundle, hub_cache())
    _say_terms(packed)
    how = f"set PATHFM_WEIGHTS={out}" if out else "set HF_HUB_OFFLINE=1 where there is no network"
    return f"{out or hub_cache()} now has {_counted(packed)}; {how}"


def _counted(packed: list[Packed]) -> str:
    sizes = {(one.repo, file.path): file.size for one in packed for file in one.files}
    return f"{', '.join(one.name for one in packed)} ({sum(sizes.values()) / 1e9:.2f} GB)"


def _say_terms(packed: list[Packed]) -> None:
    """One line on what may not be passed on; what it means for an institution is theirs to say."""
    bound = [one for one in packed if one.gated or not Licence(one.name, one.licence, one.derivatives).permissive]
    if bound:
        said = "; ".join(
            f"{one.name}: {one.licence}{', gated' if one.gated else ''}, https://huggingface.co/{one.repo}"
            for one in bound
        )
        logger.info(f"not to be passed on outside of your institution without reading the terms: {said}")
