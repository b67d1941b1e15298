"""Unpacking: the files of a bundle into the hub's cache in the hub's own layout, or into a mirror; never over other files."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # its __init__ lists no names

from pathfm.backbones.bundle import open_bundle, prove
from pathfm.backbones.hub import COMMIT
from pathfm.backbones.mirror import note_of
from pathfm.backbones.weights import proven_sha256
from pathfm.errors import InputError, WeightsDamagedError
from pathfm.files import (
    disk_full_named,
    is_disk_full,
    make_folder,
    sweep_temporaries,
    sync_folder,
    write_blocks_atomically,
    write_text,
)
from pathfm.progress import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pathfm.backbones.bundle import Member, Packed, PackedFile

    Place = Callable[[Packed, PackedFile], Path]


def unpack_into_cache(bundle: Path, cache: Path) -> list[Packed]:
    """Proves a bundle, then puts its files where the hub's own download would have put them.

    Blobs first, then their names under the commit, and last what "main" is: a file is seen when it is whole, and the
    branch when all of it is there.

    Args:
        bundle: a folder or a tar file, from anybody.
        cache: what `hub_cache` gives.

    Raises:
        InputError: no bundle, or one that does not know from which commit its files are.
        WeightsDamagedError: the bundle is not what its manifest says, or the cache holds other files for that commit;
            nothing was written.
        DiskFullError: no space; nothing that was begun can be seen.
    """
    packed, members = open_bundle(bundle)
    for one in packed:
        if not one.commit:
            message = (
                f"{bundle} does not say from which commit of {one.repo} its files are, which the cache asks for;"
                " unpack it with --out FOLDER and set PATHFM_WEIGHTS to that folder"
            )
            raise InputError(message)
    prove(bundle, packed, members)

    def place(one: Packed, file: PackedFile) -> Path:
        return _folder(cache, one) / "snapshots" / one.commit / file.path

    _require_no_others(packed, place)
    for one in packed:
        for file in one.files:
            _put(cache, one, file, members[f"{one.repo}/{file.path}"])
    for one in packed:
        _name_commit(_folder(cache, one) / "refs", one)
    return packed


def unpack_into_mirror(bundle: Path, mirror: Path) -> list[Packed]:
    """Proves a bundle, then puts its files into a folder for PATHFM_WEIGHTS: <mirror>/owner/repo/files.

    Raises:
        InputError: no bundle.
        WeightsDamagedError: the bundle is not what its manifest says, or the mirror holds other files; nothing was
            written.
        DiskFullError: no space; what was finished is kept.
    """
    if mirror.exists() and mirror.samefile(bundle):
        message = f"--out {mirror} is the bundle itself; it can be a mirror as it is, or pass another folder"
        raise InputError(message)
    packed, members = open_bundle(bundle)
    prove(bundle, packed, members)

    def place(one: Packed, file: PackedFile) -> Path:
        return mirror / one.repo / file.path

    _require_no_others(packed, place)
    for one in packed:
        for file in one.files:
            if not place(one, file).exists():
                sweep_temporaries(place(one, file))
                write_blocks_atomically(place(one, file), members[f"{one.repo}/{file.path}"].blocks(file))
            if one.commit:
                note = f"{one.commit}\n{file.sha256}\n{time.time()}\n"
                write_text(note_of(mirror / one.repo, file.path), note)
    return packed


def _folder(cache: Path, one: Packed) -> Path:
    return cache / repo_folder_name(repo_id=one.repo, repo_type="model")


def _require_no_others(packed: list[Packed], place: Place) -> None:
    """Refuses to replace a file by another: somebody may be reading it, and one of the two is not what it says."""
    for one in packed:
        for file in one.files:
            path = place(one, file)
            if path.exists() and (path.stat().st_size != file.size or proven_sha256(path) != file.sha256):
                message = (
                    f"{path} is there already and is another file than {one.repo}/{file.path} of the bundle;"
                    " find out which of them is right, delete it if it is not that one, and unpack again"
                )
                raise WeightsDamagedError(message)


def _put(cache: Path, one: Packed, file: PackedFile, member: Member) -> None:
    """Writes a blob and names it under the commit, unless that name is there; holds the lock that a download would."""
    folder = _folder(cache, one)
    blob, name = folder / "blobs" / file.sha256, folder / "snapshots" / one.commit / file.path
    lock = cache / ".locks" / folder.name / f"{file.sha256}.lock"
    with disk_full_named(name):
        make_folder(lock.parent)
        make_folder(name.parent)
    with WeakFileLock(lock):
        if name.exists():
            return
        sweep_temporaries(blob)
        if not blob.is_file() or blob.stat().st_size != file.size or proven_sha256(blob) != file.sha256:
            write_blocks_atomically(blob, member.blocks(file))
        with disk_full_named(name):
            _link(name, blob)
            sync_folder(name.parent)


def _link(name: Path, blob: Path) -> None:
    """A relative link, so that the cache can be moved; where a disk knows no links the blob itself, as the hub does it."""
    name.unlink(missing_ok=True)  # one that leads nowhere
    try:
        name.symlink_to(os.path.relpath(blob, name.parent))
    except OSError as error:
        if is_disk_full(error):
            raise
        blob.replace(name)


def _name_commit(refs: Path, one: Packed) -> None:
    """Says which commit the branch or tag is, and "main" for other tools ask for that; what is said already stands."""
    for name in dict.fromkeys(["main"] if COMMIT.fullmatch(one.revision) else [one.revision, "main"]):
        said = (refs / name).read_text(encoding="utf-8").strip() if (refs / name).is_file() else ""
        if not said:
            write_text(refs / name, one.commit)
        elif said != one.commit and name == one.revision:
            logger.warning(
                "%s of %s is %s in this cache and stays that; for the bundle's own pass %s@%s",
                *(name, one.repo, said[:12], one.name.partition("@")[0], one.commit),
            )
