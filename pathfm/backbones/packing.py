"""Packing: the weights of backbones, with what says on which terms they are used, into a bundle for a machine without network."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from pathfm.backbones.bundle import MANIFEST, PACKABLE, Member, Packed, PackedFile, manifest_bytes
from pathfm.backbones.find import find_backbone
from pathfm.backbones.hub import fetch_if_there, hub_cache
from pathfm.backbones.weights import proven_sha256, resolved_revision, weights_file, weights_folder
from pathfm.errors import BackboneError, InputError
from pathfm.files import sweep_temporaries, write_atomically, write_blocks_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pathfm.backbones.row import Backbone

_TERMS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSE.pdf", "README.md")
_ARCHIVES = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst")
_RECORD_BYTES = tarfile.RECORDSIZE


def collect(name: str) -> tuple[Packed, dict[str, Path]]:
    """What a bundle says of a backbone, and where its files lie here, by "owner/repo/path"; fetches what is missing.

    Raises:
        UnknownNameError: no such backbone.
        BackboneError: it has no repository on the hub.
        WeightsMissingError: gated, offline or absent weights.
        WeightsDamagedError: they are not those that the row pins.
    """
    row = find_backbone(name)
    if row.repo is None or row.library == "remote":
        why = "pathfm does not load it" if row.repo else _why_not(row)
        message = f"{row.name} cannot be packed: {why}; leave it out"
        raise BackboneError(message)
    folder, weights = weights_folder(row), weights_file(row)
    if not PACKABLE.fullmatch(weights.name):
        message = f"{row.name} cannot be packed: a bundle takes .safetensors, .bin, .pth and .pt, not {weights.name}"
        raise BackboneError(message)
    commit = resolved_revision(row)
    if folder.is_relative_to(hub_cache()):
        for terms in _TERMS:
            fetch_if_there(row, terms, commit or row.revision)
    beside = (one for one in folder.iterdir() if one.suffix not in (".safetensors", ".bin", ".pth", ".pt"))
    files = [weights, *sorted(one for one in beside if PACKABLE.fullmatch(one.name) and one.is_file())]
    by_path = {one.relative_to(folder).as_posix(): one for one in files}
    packed = Packed(
        name=row.name,
        repo=row.repo,
        revision=row.revision,
        commit=commit,
        licence=row.licence,
        derivatives=row.derivatives,
        gated=row.gated,
        files=tuple(PackedFile(path, one.stat().st_size, proven_sha256(one)) for path, one in by_path.items()),
    )
    return packed, {f"{row.repo}/{path}": one for path, one in by_path.items()}


def write_bundle(out: Path, packed: list[Packed], files: dict[str, Path]) -> None:
    """Writes a bundle, the manifest of a folder last; files that are there already and right are left.

    Args:
        out: a tar file if it ends in .tar, else a folder.
        packed: what the manifest lists.
        files: each file by "owner/repo/path".

    Raises:
        InputError: `out` is another kind of archive, or a folder that holds something else.
        WeightsDamagedError: a file changed meanwhile.
        DiskFullError: no space; what was finished is kept, and is no bundle yet.
    """
    stated = {f"{one.repo}/{file.path}": file for one in packed for file in one.files}
    members = {name: Member(files[name], 0, stated[name].size) for name in files}
    if out.suffix == ".tar":
        write_blocks_atomically(out, _tar_blocks(manifest_bytes(packed), members, stated))
        return
    _require_own(out, files)
    (out / MANIFEST).unlink(missing_ok=True)  # what is being changed is no bundle
    for name, member in members.items():
        there = out / name
        if not (
            there.is_file() and there.stat().st_size == member.size and proven_sha256(there) == stated[name].sha256
        ):
            write_blocks_atomically(there, member.blocks(stated[name]))
    write_atomically(out / MANIFEST, manifest_bytes(packed))


def require_out(out: Path) -> None:
    """Refuses, before hours of downloads, a name that no bundle can have.

    Raises:
        InputError: another kind of archive, or a file where a folder should be.
    """
    if out.suffix in _ARCHIVES or (out.exists() and out.is_dir() == (out.suffix == ".tar")):
        message = (
            f"--out {out} is neither a folder nor a .tar file; weights do not compress, pass a new folder or NAME.tar"
        )
        raise InputError(message)


def _why_not(row: Backbone) -> str:
    if row.library == "python":
        return "it is code, and has no weights"
    return "it lies in a folder of your own, which you can copy as it is"


def _require_own(out: Path, files: dict[str, Path]) -> None:
    """Refuses a folder with files that the manifest would not list; removes what a killed pack left."""
    for name in (*files, MANIFEST):
        sweep_temporaries(out / name)
    found = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    other = [name for name in found if name not in files and name != MANIFEST]
    if other:
        message = f"{out} holds {other[0]}, which this bundle would not list; pass --out a new or empty folder"
        raise InputError(message)


def _tar_blocks(manifest: bytes, members: dict[str, Member], stated: dict[str, PackedFile]) -> Iterator[bytes]:
    """A tar file, the manifest first; equal contents give equal bytes."""
    yield _header(MANIFEST, len(manifest)) + manifest + _padding(len(manifest))
    for name, member in members.items():
        yield _header(name, member.size)
        yield from member.blocks(stated[name])
        yield _padding(member.size)
    yield bytes(_RECORD_BYTES)  # two empty blocks and more end it


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        message = f"{name} of {size} bytes does not fit into a tar file ({error}); pass --out a folder"
        raise InputError(message) from error


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
