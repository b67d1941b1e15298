"""Every file operation of a piece of work, recorded while it really happens, and every state a crash can leave of it.

What is recorded is what Python asks the system for: the functions of `os`, which `pathlib` calls as well. On leaving
`recorded`, the log is replayed and held against the folder, so a write that went another way (`open`, a C library) is an
error of the test and not a gap in it.

The model of a kill (`kills`): what was asked for has happened, in order, up to any operation; the last write may be
torn, half of it there.

The model of a power loss (`power_losses`), harder than the journalled file systems that people use:

- A file's data (writes and truncations) is safe from the fsync or fdatasync of that file on. Of what came later any
  subset is there, each write whole or cut at any byte. Where a lost write would have made the file longer, it may have
  been made longer all the same, and then holds zeros or the bytes of somebody else.
- A folder's entries (a file or folder made, renamed or removed) are safe from the fsync of that folder on. Of what came
  later either the first few are there, as with a file system that has a journal, or any subset. A rename is one step: it
  is there or not, and both names never point nowhere. To sync a file does not make its name safe. Where the entry of a
  folder is lost, all below it is lost.
- What was there before the recording is safe.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["mkdir", "create", "rename", "unlink", "sync folder", "write", "truncate", "sync"]
_ENTRIES = ("mkdir", "create", "rename", "unlink")
_DATA = ("write", "truncate")
_UNKNOWN = ("link", "symlink", "truncate", "rmdir", "writev", "pwritev", "sendfile", "copy_file_range")


@dataclass(frozen=True)
class Operation:
    """One thing that was asked of the system.

    Attributes:
        kind: what.
        path: of the entry or folder, relative to the root; "" for data.
        inode: the file whose data or name it is; 0 for folders.
        at: offset of a write, or length after a truncation.
        data: what was written.
        to: the new name.
    """

    kind: Kind
    path: str = ""
    inode: int = 0
    at: int = 0
    data: bytes = b""
    to: str = ""


@dataclass
class Tree:
    """Folders, and files whose names point at numbered contents."""

    folders: set[str] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)
    data: dict[int, bytearray] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Tree:
        tree = cls()
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                tree.folders.add(_name(root, path))
            else:
                tree.names[_name(root, path)] = number = len(tree.names) + 1
                tree.data[number] = bytearray(path.read_bytes())
        return tree

    def files(self) -> dict[str, bytes]:
        """What a program would see: the files that hang together with the root."""
        return {name: bytes(self.data.get(i, b"")) for name, i in self.names.items() if self._hangs(name)}

    def copy(self) -> Tree:
        return Tree(set(self.folders), dict(self.names), {i: bytearray(data) for i, data in self.data.items()})

    def write_to(self, folder: Path) -> Path:
        for name in sorted(self.folders):
            if self._hangs(name):
                (folder / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)
        return folder

    def apply(self, one: Operation) -> None:
        if one.kind == "mkdir":
            self.folders.add(one.path)
        elif one.kind == "create":
            self.names[one.path] = one.inode
        elif one.kind in ("rename", "unlink"):
            if self.names.get(one.path) == one.inode:
                del self.names[one.path]
            if one.kind == "rename":
                self.names[one.to] = one.inode
        elif one.kind == "write":
            self._lengthen(one.inode, one.at)
            self.data[one.inode][one.at : one.at + len(one.data)] = one.data
        elif one.kind == "truncate":
            self._lengthen(one.inode, one.at)
            del self.data[one.inode][one.at :]

    def _lengthen(self, inode: int, size: int) -> None:
        held = self.data.setdefault(inode, bytearray())
        held.extend(bytes(max(0, size - len(held))))

    def _hangs(self, name: str) -> bool:
        return all(parent in self.folders for parent in map(str, Path(name).parents) if parent != ".")


@dataclass
class Recording:
    """A piece of work: what was there before, and every operation in order."""

    root: Path
    start: Tree
    operations: list[Operation] = field(default_factory=list)

    def tree_after(self, count: int) -> Tree:
        """What is there after so many operations."""
        tree = self.start.copy()
        for one in self.operations[:count]:
            tree.apply(one)
        return tree


@dataclass(frozen=True)
class State:
    """What a crash left.

    Attributes:
        what: how it came about, for messages.
        after: how many operations had been asked for.
        tree: what is there.
        is_kill: else power was lost.
    """

    what: str
    after: int
    tree: Tree
    is_kill: bool


@contextmanager
def recorded(
    root: Path, most_bytes: int | None = None, full_from: int | None = None, but: str = ""
) -> Iterator[Recording]:
    """Records what is done below a folder while it really happens.

    Args:
        root: an existing folder.
        most_bytes: the system takes no more than so many bytes at a time, as it may.
        full_from: from this operation on (0 is the first) the disk is full: half of a write is taken, then ENOSPC for
            all that needs space.
        but: suffix of files that are written another way, and left out.
    """
    recording = Recording(root, Tree.of(root))
    recorder = _Recorder(recording, most_bytes, full_from)
    with recorder.patched():
        yield recording
    found, replayed = Tree.of(root), recording.tree_after(len(recording.operations))
    files = {name: data for name, data in found.files().items() if not but or not name.endswith(but)}
    logged = replayed.files()
    differing = sorted(name for name in files.keys() | logged.keys() if files.get(name) != logged.get(name))
    assert not differing, f"{differing} were written past the log: {recording.operations[-20:]}"[:2000]
    assert found.folders == replayed.folders, "a folder was made past the log"


def kills(recording: Recording) -> Iterator[State]:
    """Every state that a kill leaves: after each operation, and in the middle of each write."""
    tree = recording.start.copy()
    yield State("killed before the first operation", 0, tree.copy(), is_kill=True)
    for count, one in enumerate(recording.operations, 1):
        if one.kind == "write" and len(one.data) > 1:
            torn = tree.copy()
            torn.apply(replace(one, data=one.data[: len(one.data) // 2]))
            yield State(f"killed within operation {count} ({one.kind})", count - 1, torn, is_kill=True)
        tree.apply(one)
        yield State(f"killed after operation {count} ({one.kind} {one.path})", count, tree.copy(), is_kill=True)


def power_losses(recording: Recording, each: int, rng: np.random.Generator) -> Iterator[State]:
    """States that a power loss leaves, so many after each operation."""
    for count in range(1, len(recording.operations) + 1):
        for draw in range(each):
            yield State(
                f"power lost after operation {count}, draw {draw}", count, _lost(recording, count, rng), is_kill=False
            )


def _lost(recording: Recording, count: int, rng: np.random.Generator) -> Tree:
    done = recording.operations[:count]
    safe_until = {_what(one): at for at, one in enumerate(done) if one.kind in ("sync", "sync folder")}
    safe = [at < safe_until.get(_what(one), -1) for at, one in enumerate(done)]
    loose = [at for at, one in enumerate(done) if one.kind in _ENTRIES and not safe[at]]
    some = rng.random(len(loose)) < rng.random()
    if rng.random() < 0.5:
        some = np.arange(len(loose)) < some.sum()
    kept = {at for at, keep in zip(loose, some, strict=True) if keep}
    tree, share = recording.start.copy(), rng.random()
    for at, one in enumerate(done):
        if safe[at] or at in kept:
            tree.apply(one)
        elif one.kind in _DATA:
            _apply_loose(tree, one, rng, share)
    return tree


def _what(one: Operation) -> int | str:
    """What a sync makes safe: a file's data by its number, a folder's entries by its name."""
    if one.kind in _ENTRIES:
        return str(Path(one.path).parent)
    return one.path if one.kind == "sync folder" else one.inode


def _apply_loose(tree: Tree, one: Operation, rng: np.random.Generator, share: float) -> None:
    """Applies a write or a truncation with a probability, whole or cut; or makes room for it and leaves it out."""
    if rng.random() < share:
        whole = one.kind != "write" or rng.random() < 0.75
        tree.apply(one if whole else replace(one, data=one.data[: rng.integers(len(one.data) + 1)]))
    elif one.kind == "write" and rng.random() < 0.5:
        held, end = len(tree.data.get(one.inode, b"")), one.at + len(one.data)
        room = max(0, end - max(held, one.at))
        filled = rng.bytes(room) if rng.random() < 0.5 else bytes(room)
        tree.apply(replace(one, at=end - room, data=filled))


class _Recorder:
    """Stands in for the functions of `os` that change files, does what they do, and writes it down."""

    def __init__(self, recording: Recording, most_bytes: int | None, full_from: int | None) -> None:
        self._recording, self._most_bytes, self._full_from = recording, most_bytes, full_from
        self._names, self._next = dict(recording.start.names), len(recording.start.names) + 1
        self._files: dict[int, int] = {}
        self._folders: dict[int, str] = {}

    @contextmanager
    def patched(self) -> Iterator[None]:
        mine = ("open", "close", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "mkdir")
        real = {name: getattr(os, name) for name in (*mine, "replace", "rename", "unlink", "remove", "lseek")}
        self._os: dict[str, Any] = real
        own = {name: getattr(self, f"_{name}") for name in mine}
        moves = {"replace": self._rename, "rename": self._rename, "unlink": self._unlink, "remove": self._unlink}
        unknown = {name: _unknown(name) for name in _UNKNOWN if hasattr(os, name)}
        with patch.multiple(os, **own, **moves, **unknown):
            yield

    def _note(self, *done: Operation) -> None:
        self._recording.operations.extend(done)

    def _need_space(self) -> None:
        if self._is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def _is_full(self) -> bool:
        return self._full_from is not None and len(self._recording.operations) >= self._full_from

    def _inside(self, path: Any) -> str | None:
        """The name below the root; None for what is none of ours."""
        if not isinstance(path, str | os.PathLike):
            return None
        whole = Path(os.path.abspath(path))  # noqa: PTH100 - to resolve links would follow the last one too
        return _name(self._recording.root, whole) if whole.is_relative_to(self._recording.root) else None

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        name = self._inside(path)
        if name is None:
            return int(self._os["open"](path, flags, mode, **more))
        assert not flags & os.O_APPEND, "appending is not modelled"
        is_new = name not in self._names and not Path(path).is_dir()
        if is_new and flags & os.O_CREAT:
            self._need_space()
        descriptor = int(self._os["open"](path, flags, mode, **more))
        if Path(path).is_dir():
            self._folders[descriptor] = name
            return descriptor
        if is_new:
            self._names[name], self._next = self._next, self._next + 1
            self._note(Operation("create", name, self._names[name]))
        elif flags & os.O_TRUNC:
            self._note(Operation("truncate", inode=self._names[name]))
        self._files[descriptor] = self._names[name]
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        self._folders.pop(descriptor, None)
        self._os["close"](descriptor)

    def _write(self, descriptor: int, data: Any) -> int:
        if descriptor not in self._files:
            return int(self._os["write"](descriptor, data))
        return self._written(descriptor, data, self._os["lseek"](descriptor, 0, os.SEEK_CUR), seek=True)

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        if descriptor not in self._files:
            return int(self._os["pwrite"](descriptor, data, offset))
        return self._written(descriptor, data, offset, seek=False)

    def _written(self, descriptor: int, data: Any, offset: int, *, seek: bool) -> int:
        some = bytes(data)[: self._most_bytes]
        if self._is_full:
            some = some[: len(some) // 2]
            if not some or len(self._recording.operations) > (self._full_from or 0):
                self._need_space()
        done = int(self._os["pwrite"](descriptor, some, offset))
        if seek:
            self._os["lseek"](descriptor, offset + done, os.SEEK_SET)
        self._note(Operation("write", inode=self._files[descriptor], at=offset, data=some[:done]))
        return done

    def _ftruncate(self, descriptor: int, length: int) -> None:
        self._os["ftruncate"](descriptor, length)
        if descriptor in self._files:
            self._note(Operation("truncate", inode=self._files[descriptor], at=length))

    def _fsync(self, descriptor: int) -> None:
        self._synced("fsync", descriptor)

    def _fdatasync(self, descriptor: int) -> None:
        self._synced("fdatasync", descriptor)

    def _synced(self, how: str, descriptor: int) -> None:
        ours = descriptor in self._files or descriptor in self._folders
        if ours:
            self._need_space()
        self._os[how](descriptor)
        if descriptor in self._files:
            self._note(Operation("sync", inode=self._files[descriptor]))
        elif ours:
            self._note(Operation("sync folder", self._folders[descriptor]))

    def _mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        name = self._inside(path)
        if name is not None and not Path(path).exists():
            self._need_space()
        self._os["mkdir"](path, mode, **more)
        if name is not None:
            self._note(Operation("mkdir", name))

    def _rename(self, source: Any, target: Any, **more: Any) -> None:
        name, to = self._inside(source), self._inside(target)
        if name is not None:
            self._need_space()
        self._os["replace"](source, target, **more)
        if name is not None:
            assert to is not None, "a file left the folder that is recorded"
            assert Path(name).parent == Path(to).parent, "a rename between two folders is not modelled"
            self._names[to] = self._names.pop(name)
            self._note(Operation("rename", name, self._names[to], to=to))

    def _unlink(self, path: Any, **more: Any) -> None:
        self._os["unlink"](path, **more)
        name = self._inside(path)
        if name is not None:
            self._note(Operation("unlink", name, self._names.pop(name)))


def _unknown(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        message = f"os.{name} is not modelled; add it to tests/crashes.py"
        raise AssertionError(message)

    return refuse


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root))
