"""A bundle of weights: a folder, or a .tar of one, with a manifest.json and <owner>/<repo>/<files>; read as a stranger's.

A folder is a mirror as it stands. What a manifest lists is proven against it; that it is what the makers published is
proven where a row pins the digest of its weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pathfm.backbones.mirror import REPO
from pathfm.errors import InputError, WeightsDamagedError
from pathfm.progress import progress
from pathfm.tables import first_line, misfit
from pathfm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "pathfm-weights", 1
SHAPE: dict[str, Any] = {
    "backbones": [
        {
            **dict.fromkeys(("name", "repo", "revision", "commit", "licence", "derivatives"), str),
            "gated": (bool, None),
            "files": [{"path": str, "size": int, "sha256": str}],
        }
    ],
}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PASSED_OVER = (tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE)
_MOST_FILES, _MOST_MANIFEST_BYTES, _BLOCK_BYTES = 4096, 1 << 20, 1 << 22
# Nothing that another tool would run.
PACKABLE = re.compile(
    r"config\.json|(LICEN[CS]E|README)(\.(md|txt|rst|pdf))?|[\w.-]+\.(safetensors|bin|pth|pt)", re.IGNORECASE
)
_COMMIT, _SHA256 = re.compile("([0-9a-f]{40})?"), re.compile("[0-9a-f]{64}")
_REVISION = re.compile(r"(?!main/)\w[\w.-]*(/\w[\w.-]*)*")


@dataclass(frozen=True)
class PackedFile:
    """A file of a repository: its path there, its size in bytes, and the hex sha256 of its bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Packed:
    """The weights of a backbone in a bundle.

    Attributes:
        name: of the backbone.
        repo: owner/repo on the hub.
        revision: what the backbone's row asks for, such as "main".
        commit: what that was, 40 hex digits; "" where not known.
        licence: of the weights.
        derivatives: what that says of what is made with them.
        gated: whether the page must be visited before a download; None where not known.
        files: what is packed of the repository.
    """

    name: str
    repo: str
    revision: str
    commit: str
    licence: str
    derivatives: str
    gated: bool | None
    files: tuple[PackedFile, ...]


@dataclass(frozen=True)
class Member:
    """Where the bytes of a file lie: from an offset in another, or all of one."""

    path: Path
    offset: int
    size: int

    def blocks(self, stated: PackedFile) -> Iterator[bytes]:
        """The bytes, some at a time.

        Raises:
            WeightsDamagedError: at their end, where they are not those that are stated.
        """
        digest, left = hashlib.sha256(), self.size
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
                yield block
        if left or digest.hexdigest() != stated.sha256:
            raise _damaged(self.path, f"has a {stated.path} that does not match its digest")


def manifest_bytes(packed: list[Packed]) -> bytes:
    """What `open_bundle` reads as the manifest."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "pathfm_version": __version__}
    return (json.dumps(head | {"backbones": [asdict(one) for one in packed]}, indent=2) + "\n").encode()


def open_bundle(bundle: Path) -> tuple[list[Packed], dict[str, Member]]:
    """What a bundle holds, after its whole structure is proven: names, kinds and sizes, but not yet the digests.

    Args:
        bundle: a folder, or an uncompressed tar file.

    Returns:
        What is packed, and each file by "owner/repo/path".

    Raises:
        InputError: there is no bundle, or one that a newer pathfm wrote.
        WeightsDamagedError: it has a link, a device, a file that is not listed, or lacks one; or its manifest says what
            no manifest says.
    """
    members = _members_of_folder(bundle) if bundle.is_dir() else _members_of_tar(bundle)
    manifest = members.pop(MANIFEST, None)
    if manifest is None:
        message = f"{bundle} has no {MANIFEST} at its top, so it is no bundle; pass what `pathfm weights pack` wrote"
        raise InputError(message)
    packed = _read_manifest(bundle, manifest)
    listed = _listed(bundle, packed)
    for name in sorted(listed.keys() | members.keys()):
        if name not in listed or name not in members:
            what = "holds {}, which its manifest does not list" if name in members else "lacks {}"
            raise _damaged(bundle, what.format(name))
        if members[name].size != listed[name].size:
            said = f"{members[name].size} bytes where its manifest states {listed[name].size}"
            raise _damaged(bundle, f"has a {name} of {said}")
    return packed, members


def prove(bundle: Path, packed: list[Packed], members: dict[str, Member]) -> None:
    """Reads every byte of a bundle and holds it against the manifest.

    Raises:
        WeightsDamagedError: names the first file that differs.
    """
    listed = _listed(bundle, packed)
    for name, stated in progress(listed.items(), "prove", "file"):
        for _ in members[name].blocks(stated):
            pass


def _read_manifest(bundle: Path, member: Member) -> list[Packed]:
    if member.size > _MOST_MANIFEST_BYTES:
        raise _damaged(bundle, f"has a {MANIFEST} of {member.size} bytes")
    with member.path.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(bundle, f"has a {MANIFEST} that is not JSON ({first_line(error)})") from error
    what = misfit(document, {"format": FORMAT, "format_version": int})
    if not what and document["format_version"] > FORMAT_VERSION:
        version = document["format_version"]
        message = f"{bundle} has format_version {version}, this pathfm reads up to {FORMAT_VERSION}; upgrade pathfm"
        raise InputError(message)
    if what := what or misfit(document, SHAPE):
        raise _damaged(bundle, f"has a {MANIFEST} that {what if what.startswith('is') else 'is odd: ' + what}")
    fields = Packed.__match_args__
    return [
        Packed(
            **{key: one[key] for key in fields if key != "files"},
            files=tuple(PackedFile(file["path"], file["size"], file["sha256"]) for file in one["files"]),
        )
        for one in document["backbones"]
    ]


def _listed(bundle: Path, packed: list[Packed]) -> dict[str, PackedFile]:
    """Every file of a manifest by its name in the bundle, after whatever could lead elsewhere is refused."""
    listed: dict[str, PackedFile] = {}
    commits: dict[str, str] = {}
    for one in packed:
        _require_names(bundle, one)
        if commits.setdefault(one.repo.lower(), one.commit) != one.commit:
            raise _damaged(bundle, f"has two commits of {one.repo}")
        for file in one.files:
            if listed.setdefault(f"{one.repo}/{file.path}", file) != file:
                raise _damaged(bundle, f"states {one.repo}/{file.path} twice, and not alike")
    return listed


def _require_names(bundle: Path, one: Packed) -> None:
    if not all(text.isprintable() for text in (one.name, one.licence, one.derivatives)):
        raise _damaged(bundle, f"names a backbone {one.name!r} under {one.licence!r}, which no terminal should show")
    if not (REPO.fullmatch(one.repo) and _COMMIT.fullmatch(one.commit) and _REVISION.fullmatch(one.revision)):
        raise _damaged(bundle, f"names repository {one.repo!r}, revision {one.revision!r}, commit {one.commit!r}")
    for file in one.files:
        *folders, name = PurePosixPath(file.path).parts or ("",)
        is_path = "/".join([*folders, name]) == file.path and all(re.fullmatch(r"\w[\w.-]*", part) for part in folders)
        if not (is_path and PACKABLE.fullmatch(name)):
            raise _damaged(bundle, f"lists {file.path!r}, which is no place for weights")
        if not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise _damaged(bundle, f"states no size and sha256 of {file.path}")


def _members_of_folder(bundle: Path) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for folder, folders, names in os.walk(bundle):
        for name in (*folders, *names):
            path = Path(folder, name)
            state = path.lstat()
            relative = path.relative_to(bundle).as_posix()
            if stat.S_ISREG(state.st_mode):
                members[relative] = Member(path, 0, state.st_size)
            elif not stat.S_ISDIR(state.st_mode):
                raise _damaged(bundle, f"holds {relative}, which is a link or a device")
            if len(members) > _MOST_FILES:
                raise _damaged(bundle, f"holds more than {_MOST_FILES} files")
    return members


def _members_of_tar(bundle: Path) -> dict[str, Member]:
    """By the plain headers alone, 512 bytes each: what an extended one says otherwise of a file is not read."""
    if not bundle.is_file():
        message = f"{bundle} is neither a folder nor a file; pass what `pathfm weights pack` wrote"
        raise InputError(message)
    members: dict[str, Member] = {}
    end = bundle.stat().st_size
    with bundle.open("rb") as file:
        while (header := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.TarError, ValueError) as error:
                raise _damaged(bundle, f"is not a plain tar file ({first_line(error)})") from error
            name, offset = info.name.removeprefix("./"), file.tell()
            if info.type not in (*_FILES, *_PASSED_OVER):
                raise _damaged(bundle, f"holds {name!r}, which is a link, a device or of another kind of tar")
            if not 0 <= info.size <= end - offset or name in members or len(members) > _MOST_FILES:
                raise _damaged(bundle, f"is cut short at {name!r}, or holds it twice")
            if info.type in _FILES:
                members[name] = Member(bundle, offset, info.size)
            file.seek(offset + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return members


def _damaged(bundle: Path, what: str) -> WeightsDamagedError:
    message = f"{bundle} {what}; nothing of it is taken, copy it again or pack it again"
    return WeightsDamagedError(message)
