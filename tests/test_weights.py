"""Where weights come from: mirror, cache, bundle; what is not what it was said to be is refused, and leaves nothing."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from hostile import pickles
from runs import files_below, start, wait_for
from safetensors.torch import load_file

from pathfm.backbones import BACKBONES, Backbone, load_backbone, register_backbone
from pathfm.backbones import weights as weights_module
from pathfm.backbones.bundle import Member
from pathfm.backbones.unpacking import unpack_into_cache
from pathfm.backbones.weights import resolved_revision, weights_available, weights_file, weights_folder
from pathfm.cli import main
from pathfm.errors import BackboneError, WeightsDamagedError, WeightsMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pathfm.backbones.bundle import PackedFile

COMMIT, OTHER_COMMIT = "ab" * 20, "cd" * 20
NAME = "hf-hub:owner/tiny"
ROW = Backbone(
    name="tiny",
    source=NAME,
    arch="test_vit",
    prefix_tokens=1,
    dim=64,
    gated=True,
    licence="CC-BY-NC-ND-4.0",
)
REPO = "models--owner--tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights, as its makers publish it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), folder, safe_serialization=True)
    (folder / "LICENSE.md").write_text("Ask first.\n")
    (folder / "README.md").write_text("# Tiny\n")
    (folder / "modeling_tiny.py").write_text("raise SystemExit\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, offline, without a mirror."""
    monkeypatch.delenv("PATHFM_WEIGHTS", raising=False)
    return use_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def filled(cache: Path, tiny: Path) -> Path:
    return fill(cache, tiny)


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("PATHFM_WEIGHTS", raising=False)
        fill(use_cache(folder / "cache", patched), tiny)
        assert main(["weights", "pack", NAME, "--out", str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.fixture
def bundle(packed: Path, cache: Path, tmp_path: Path) -> Path:
    """A bundle of the network, and an empty cache."""
    assert not cache.exists()
    return shutil.copytree(packed, tmp_path / "bundle")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathfm.backbones.table.BACKBONES", dict(BACKBONES))


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, whose main branch moves on after the first file."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> bytes:
        _, _, _, _, revision, name = self.path.split("/", 5)
        self.asked.append(f"{self.command} {revision} {name}")
        there = (self.folder / name).is_file()
        body = (self.folder / name).read_bytes() if there else b""
        main = COMMIT if self.asked[0] == self.asked[-1] else OTHER_COMMIT
        self.send_response(200 if there else 404)
        for key, value in {
            "X-Error-Code": "" if there else "EntryNotFound",
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": main if revision == "main" else revision,
            "Content-Length": len(body),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        return body


@pytest.fixture
def asked(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a hub on this machine was asked for."""
    assert not cache.exists()
    handler = type("Handler", (Hub,), {"folder": tiny, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield handler.asked
        server.shutdown()


def test_what_is_packed_is_fetched_with_its_licence_and_all_of_one_commit(asked: list[str], tmp_path: Path) -> None:
    row = Backbone(name="new", source=NAME)  # a row that needs its config.json
    assert weights_folder(row).name == resolved_revision(row) == COMMIT
    assert asked[0] == "HEAD main config.json"
    assert {line.split()[1] for line in asked if line.endswith("model.safetensors")} == {COMMIT}
    asked.clear()
    for out in ("first", "second.tar"):
        assert main(["weights", "pack", f"{NAME}@{COMMIT}", "--out", str(tmp_path / out)]) == 0
    names = [path.name for path in (tmp_path / "first" / "owner" / "tiny").iterdir()]
    assert sorted(names) == ["LICENSE.md", "README.md", "config.json", "model.safetensors"]
    assert not [line for line in asked if line.endswith((".safetensors", "config.json"))]
    assert len(asked) == len(set(asked))  # what is not there is asked for once


# What a machine without network does, and every attempt to reach one ends it.
OFFLINE = """
import os, socket, sys

def refuse(*_):
    print("the network was asked for", flush=True)
    os._exit(3)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import hashlib
import numpy as np
import timm
from pathfm.backbones import load_backbone
from pathfm.cli import main

assert main(["weights", "unpack", sys.argv[1]]) == 0
loaded = load_backbone("hf-hub:owner/tiny", "cpu")
tiles = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
print(loaded.identity["weights_sha256"], hashlib.sha256(loaded.embed(tiles).tobytes()).hexdigest())
assert timm.create_model("hf-hub:owner/tiny", pretrained=True).num_features == 64
"""


def test_a_bundle_takes_a_backbone_to_a_machine_without_network(tmp_path: Path, tiny: Path, bundle: Path) -> None:
    cache = tmp_path / "there" / "hub"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", OFFLINE, str(bundle)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | offline)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = load_backbone(f"local-dir:{tiny}", "cpu")
    embedded = hashlib.sha256(loaded.embed(random_tiles(2)).tobytes()).hexdigest()
    assert done.stdout.splitlines()[-1].split() == [loaded.identity["weights_sha256"], embedded]
    snapshot = cache / REPO / "snapshots" / COMMIT
    assert (snapshot / "model.safetensors").readlink().parts[:3] == ("..", "..", "blobs")
    assert (cache / REPO / "refs" / "main").read_text() == COMMIT
    assert sorted(path.name for path in snapshot.iterdir()) == [
        "LICENSE.md",
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_tar_is_the_same_bundle_and_any_plain_tar_of_the_folder_too(
    tmp_path: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in ("bundle", "bundle.tar", "again.tar"):
        assert main(["weights", "pack", NAME, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "bundle.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    with tarfile.open(tmp_path / "bundle.tar") as archive:
        held = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert held == files_below(tmp_path / "bundle")
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "bundle", "./")
    before = files_below(filled / REPO / "snapshots")
    del before[f"{COMMIT}/modeling_tiny.py"]
    for name in ("bundle.tar", "theirs.tar"):
        cache = use_cache(tmp_path / f"cache of {name}", monkeypatch)
        assert main(["weights", "unpack", str(tmp_path / name)]) == 0
        assert files_below(cache / REPO / "snapshots") == before
        assert weights_available(ROW)


def test_the_manifest_says_what_is_in_a_bundle_and_on_which_terms(
    tmp_path: Path, filled: Path, capsys: pytest.CaptureFixture[str], registered: None
) -> None:
    assert filled.exists()
    register_backbone(ROW)
    assert main(["weights", "pack", "tiny", NAME, "--out", str(tmp_path / "bundle")]) == 0
    said = capsys.readouterr()
    assert "not to be passed on outside of your institution" in said.err
    assert "tiny: CC-BY-NC-ND-4.0, gated, https://huggingface.co/owner/tiny" in said.err
    assert f"pathfm weights unpack {tmp_path / 'bundle'}" in said.out
    document = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (document["format"], document["format_version"]) == ("pathfm-weights", 1)
    first, second = document["backbones"]
    assert first["files"] == second["files"]
    assert {key: first[key] for key in ("name", "repo", "revision", "commit", "licence", "gated")} == {
        "name": "tiny",
        "repo": "owner/tiny",
        "revision": "main",
        "commit": COMMIT,
        "licence": "CC-BY-NC-ND-4.0",
        "gated": True,
    }
    for file in first["files"]:
        data = (tmp_path / "bundle" / "owner" / "tiny" / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_bundle_goes_on_where_it_was_left_and_takes_no_folder_with_other_files(
    tmp_path: Path, bundle: Path, cache: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cache, tiny)
    weights = bundle / "owner" / "tiny" / "model.safetensors"
    (bundle / "manifest.json").unlink()
    (bundle / "owner" / "tiny" / "config.json").write_text("{")
    inode = weights.stat().st_ino
    assert main(["weights", "pack", NAME, "--out", str(bundle)]) == 0
    assert weights.stat().st_ino == inode
    assert main(["weights", "unpack", str(bundle), "--out", str(tmp_path / "mirror")]) == 0
    (bundle / "notes.txt").touch()
    assert "notes.txt, which this bundle would not list" in error_of(capsys, "pack", NAME, "--out", str(bundle))


def flip(bundle: Path) -> None:
    data = bytearray((bundle / "owner/tiny/model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "owner/tiny/model.safetensors").write_bytes(data)


def state(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def in_file(key: str, value: object) -> Callable[[Path], None]:
    return lambda bundle: state(bundle, lambda it: it["backbones"][0]["files"][0].update({key: value}))


def in_backbone(key: str, value: object) -> Callable[[Path], None]:
    return lambda bundle: state(bundle, lambda it: it["backbones"][0].update({key: value}))


def linked(bundle: Path) -> None:
    real = (bundle / "owner/tiny/config.json").rename(bundle.parent / "config.json")
    (bundle / "owner/tiny/config.json").symlink_to(real)


def elsewhere(bundle: Path) -> None:
    (bundle / "owner").rename(bundle.parent / "elsewhere")
    (bundle / "owner").symlink_to(bundle.parent / "elsewhere")


def listed_twice(bundle: Path) -> None:
    state(bundle, lambda it: it["backbones"].append(it["backbones"][0] | {"commit": OTHER_COMMIT}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (flip, "model.safetensors that does not match its digest"),
    "a longer file": (
        lambda bundle: (bundle / "owner/tiny/config.json").write_text("{}" * 1000),
        "config.json of .* bytes where its manifest states",
    ),
    "a missing file": (lambda bundle: (bundle / "owner/tiny/config.json").unlink(), "lacks owner/tiny/config.json"),
    "an unlisted file": (lambda bundle: (bundle / "owner/x.py").touch(), r"holds owner/x\.py, which its manifest"),
    "a link": (linked, "config.json'?, which is a link"),
    "a linked folder": (elsewhere, "holds '?owner'?, which is a link"),
    "a pipe": (lambda bundle: os.mkfifo(bundle / "owner/p"), "owner/p'?, which is a link"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), "has no manifest.json"),
    "half a manifest": (lambda bundle: (bundle / "manifest.json").write_text('{"format": '), "is not JSON"),
    "a deep manifest": (lambda bundle: (bundle / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    "a huge manifest": (lambda bundle: (bundle / "manifest.json").write_text(" " * 2_000_000), "2000000 bytes"),
    "a list": (lambda bundle: (bundle / "manifest.json").write_text("[]"), "is no object"),
    "a newer format": (lambda bundle: state(bundle, lambda it: it.update(format_version=2)), "upgrade pathfm"),
    "no backbones": (lambda bundle: state(bundle, lambda it: it.pop("backbones")), "lacks the key 'backbones'"),
    "a way out": (in_file("path", "../../../evil.bin"), "no place for weights"),
    "a way out in the middle": (in_file("path", "a/../../evil.bin"), "no place for weights"),
    "an absolute path": (in_file("path", "/tmp/evil.bin"), "no place for weights"),
    "a hidden folder": (in_file("path", ".git/evil.bin"), "no place for weights"),
    "code": (in_file("path", "modeling.py"), "no place for weights"),
    "no path": (in_file("path", ""), "no place for weights"),
    "a repository above": (in_backbone("repo", "../evil"), r"repository '\.\./evil'"),
    "a repository of one word": (in_backbone("repo", "evil"), "repository 'evil'"),
    "a commit that is a path": (in_backbone("commit", "../../evil"), r"commit '\.\./\.\./evil'"),
    "a revision that is a path": (in_backbone("revision", "../../evil"), r"revision '\.\./\.\./evil'"),
    "no commit": (in_backbone("commit", ""), "PATHFM_WEIGHTS"),
    "two commits": (listed_twice, "two commits of owner/tiny"),
    "no digest": (in_file("sha256", "0"), "no size and sha256"),
    "less than nothing": (in_file("size", -1), "no size and sha256"),
    "a size in words": (in_file("size", "1"), "holds str"),
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("what", WRONG)
def test_a_bundle_that_is_not_what_it_says_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], what: str, kind: str
) -> None:
    make, says = WRONG[what]
    make(bundle)
    if kind == "tar":
        with tarfile.open(tmp_path / "bundle.tar", "w") as archive:
            archive.add(bundle, "")
        bundle = tmp_path / "bundle.tar"
    said = error_of(capsys, "unpack", str(bundle))
    assert_says(said, says)
    assert files_below(cache) == {}
    assert not list(tmp_path.rglob("evil*"))


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, to, size
    return info.tobuf(tarfile.GNU_FORMAT)


TARS = {
    "a way out": (member("../../evil"), r"holds \.\./\.\./evil, which its manifest does not list"),
    "an absolute path": (member("/tmp/evil"), "holds /tmp/evil, which"),
    "a symbolic link": (member("owner/evil", tarfile.SYMTYPE, "/etc/passwd"), "'owner/evil', which is a link"),
    "a hard link": (member("owner/evil", tarfile.LNKTYPE, "/etc/passwd"), "'owner/evil', which is a link"),
    "a device": (member("owner/evil", tarfile.CHRTYPE), "a device"),
    "another manifest": (member("manifest.json"), "or holds it twice"),
    "more than there is": (member("owner/evil", size=1 << 60), "is cut short at 'owner/evil'"),
    "less than nothing": (member("owner/evil", size=-512), "is cut short at 'owner/evil'"),
    "a long header": (member("x" * 200, size=0), "of another kind of tar"),
    "no header": (b"evil" * 128, "is not a plain tar file"),
    "half a header": (b"evil", "is not a plain tar file"),
}


@pytest.mark.parametrize("what", TARS)
def test_a_tar_that_holds_more_than_files_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    header, says = TARS[what]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(bundle, "")
        end = archive.offset
    (tmp_path / "evil.tar").write_bytes(buffer.getvalue()[:end] + header)
    assert_says(error_of(capsys, "unpack", str(tmp_path / "evil.tar")), says)
    assert files_below(cache) == {}


def test_a_compressed_tar_or_a_folder_of_anything_is_no_bundle(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "bundle.tgz", "w:gz") as archive:
        archive.add(bundle, "")
    assert "is not a plain tar file" in error_of(capsys, "unpack", str(tmp_path / "bundle.tgz"))
    assert "neither a folder nor a file" in error_of(capsys, "unpack", str(tmp_path / "nowhere"))
    assert "has no manifest.json" in error_of(capsys, "unpack", str(tmp_path))


def test_files_that_are_there_are_left_and_others_are_never_replaced(
    bundle: Path, cache: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cache, tiny)  # as the hub's own download leaves it: other names of blobs
    before = {path: path.lstat().st_ino for path in cache.rglob("*")}
    assert main(["weights", "unpack", str(bundle)]) == 0
    assert {path: path.lstat().st_ino for path in before} == before
    config = cache / REPO / "snapshots" / COMMIT / "config.json"
    config.resolve().write_text("{}")
    shutil.rmtree(cache / REPO / "refs")
    left = files_below(cache)
    assert "is there already and is another file" in error_of(capsys, "unpack", str(bundle))
    assert files_below(cache) == left


@pytest.mark.parametrize("method", ["replace", "symlink_to"])
def test_an_unpack_that_ends_at_any_step_leaves_nothing_half(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = {f"{COMMIT}/{name.removeprefix('owner/tiny/')}": data for name, data in files_below(bundle).items()}
    step_of, ended = getattr(Path, method), []
    for step in range(100):
        cache, calls = tmp_path / f"cache-{step}", []

        def until(path: Path, target: Path, step: int = step, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) > step:
                raise KeyboardInterrupt
            return step_of(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, method, until)
            try:
                unpack_into_cache(bundle, cache)
            except KeyboardInterrupt:
                ended.append(step)
        assert files_below(cache / REPO / "snapshots").items() <= whole.items()
        use_cache(cache, monkeypatch)
        assert weights_available(ROW) == (step not in ended)
        assert (cache / REPO / "refs" / "main").exists() == (step not in ended)
        unpack_into_cache(bundle, cache)
        assert weights_available(ROW)
        if step not in ended:
            break
    assert len(ended) == {"replace": 4 + 1, "symlink_to": 4}[method]  # for each file, and for the branch


def test_a_disk_that_knows_no_links_gets_the_files_themselves(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        assert main(["weights", "unpack", str(bundle)]) == 0
    assert weights_available(ROW)
    assert list((cache / REPO / "blobs").iterdir()) == []
    assert resolved_revision(ROW) == COMMIT


def unpack_slowly(bundle: Path, cache: Path, begun: Path) -> int:
    """Stops in the middle of the first blob."""
    blocks = Member.blocks
    unproven = []

    def slow(one: Member, stated: PackedFile) -> Iterator[bytes]:
        for block in blocks(one, stated):
            yield block[: len(block) // 2]
            if stated.path in unproven:
                begun.touch()
                time.sleep(600)
            yield block[len(block) // 2 :]
        unproven.append(stated.path)

    Member.blocks = slow  # type: ignore[method-assign]
    unpack_into_cache(bundle, cache)
    return 0


def test_an_unpack_that_is_killed_is_done_by_the_next(tmp_path: Path, bundle: Path, cache: Path) -> None:
    process = start(tmp_path / "said", unpack_slowly, bundle, cache, tmp_path / "begun")
    assert wait_for((tmp_path / "begun").exists), (tmp_path / "said").read_text()
    process.kill()
    process.join()
    assert list(cache.rglob("*.tmp"))
    assert not weights_available(ROW)
    assert main(["weights", "unpack", str(bundle)]) == 0
    assert weights_available(ROW)
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize("words", [["unpack"], ["unpack", "--out"], ["pack", NAME, "--out"]])
def test_a_full_disk_is_one_line_and_the_same_command_ends_what_it_began(
    tmp_path: Path,
    bundle: Path,
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    if words[0] == "pack":
        fill(use_cache(tmp_path / "source", monkeypatch), tiny)
    write, ended = os.write, 0
    for step in range(0, 100, 3):
        cache, out, calls = tmp_path / f"cache-{step}", tmp_path / f"out-{step}", []
        if words[0] == "unpack":
            use_cache(cache, monkeypatch)
        command = [words[0], *([str(bundle)] if words[0] == "unpack" else []), *words[1:]]
        command += [str(out)] if words[-1] == "--out" else []

        def until(descriptor: int, data: bytes, step: int = step, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) > step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[: max(1, len(data) // 2)])

        with monkeypatch.context() as patched:
            patched.setattr("pathfm.files.os.write", until)
            code = main(["weights", *command])
        said = capsys.readouterr().err.splitlines()
        if code == 0:
            break
        ended += 1
        assert code == 2
        assert said[-1].startswith("pathfm: no space left to write ")
        assert not list(tmp_path.rglob("*.tmp"))
        assert main(["weights", *command]) == 0
    assert ended > 5


def test_a_mirror_is_looked_at_first_and_never_written_to(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "mirror" / "owner" / "tiny")
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    before = files_below(tmp_path / "mirror")
    assert (weights_folder(ROW), weights_file(ROW)) == (folder, folder / "model.safetensors")
    assert weights_available(ROW)
    assert resolved_revision(ROW) == ""  # nothing notes it
    loaded = load_backbone(NAME, "cpu")
    assert loaded.identity["weights_sha256"] == load_backbone(f"local-dir:{tiny}", "cpu").identity["weights_sha256"]
    assert files_below(tmp_path / "mirror") == before
    assert files_below(cache) == {}


def test_a_bundle_unpacks_into_a_mirror_which_knows_its_commit(
    tmp_path: Path, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    assert not weights_available(ROW)
    for _ in range(2):  # the second time it is all there
        assert main(["weights", "unpack", str(bundle), "--out", str(tmp_path / "mirror")]) == 0
    assert weights_available(ROW)
    assert resolved_revision(ROW) == COMMIT
    assert weights_available(pinned(revision=COMMIT))
    assert not weights_available(pinned(revision=OTHER_COMMIT))
    assert files_below(cache) == {}
    assert main(["weights", "pack", NAME, "--out", str(tmp_path / "again")]) == 0
    assert files_below(tmp_path / "again") == files_below(bundle)
    monkeypatch.setenv("PATHFM_WEIGHTS", str(bundle))
    assert weights_available(ROW)


def test_a_pinned_file_in_the_cache_is_taken_under_whatever_commit_it_came(filled: Path) -> None:
    """As in a cache that was filled before somebody edited a README."""
    digest = next(path.name for path in (filled / REPO / "blobs").iterdir() if len(path.name) == 64)
    row = dataclasses.replace(ROW, revision=OTHER_COMMIT, weights_sha256=digest)
    assert weights_available(row)
    assert resolved_revision(row) == COMMIT
    assert weights_file(row).resolve().name == digest
    other = dataclasses.replace(row, weights_sha256="ef" * 32)
    assert not weights_available(other)
    with pytest.raises(WeightsMissingError):
        weights_folder(other)


def test_what_a_mirror_lacks_comes_from_the_cache(
    tmp_path: Path, filled: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    assert weights_folder(ROW).is_relative_to(filled)
    folder = tmp_path / "mirror" / "owner" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(tiny / "config.json", folder)
    assert weights_folder(ROW).is_relative_to(filled)
    assert resolved_revision(ROW) == COMMIT
    shutil.copy(tiny / "model.safetensors", folder)
    assert weights_folder(ROW) == folder
    assert resolved_revision(ROW) == ""  # nothing notes it


def test_a_name_never_leads_out_of_a_mirror(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "secret" / "net")
    (tmp_path / "mirror" / "owner").mkdir(parents=True)
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    for repo in ("../secret/net", "owner/../../secret/net", str(tmp_path / "secret" / "net"), ".."):
        with pytest.raises(WeightsMissingError):
            load_backbone(f"hf-hub:{repo}", "cpu")
        assert not weights_available(pinned(source=f"hf-hub:{repo}"))
    assert files_below(cache) == {}


def test_what_is_missing_says_the_mirror_the_cache_the_page_and_the_bundle(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHFM_WEIGHTS", str(tmp_path / "mirror"))
    with pytest.raises(WeightsMissingError) as caught:
        weights_folder(ROW)
    for words in (
        str(cache),
        str(tmp_path / "mirror"),
        "https://huggingface.co/owner/tiny",
        "hf auth login",
        "pathfm weights pack tiny",
        "pathfm weights unpack",
        "hf download owner/tiny",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("place", ["local-dir", "mirror", "cache"])
def test_weights_that_are_not_those_of_the_pin_are_refused(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    right = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    source = put(place, tmp_path, tiny, cache, monkeypatch)
    assert weights_file(pinned(source=source, weights_sha256=right.upper())).name == "model.safetensors"
    with pytest.raises(WeightsDamagedError, match=rf"tiny was pinned to: its sha256 is {right[:16]}\.\.\., not 0000"):
        weights_folder(pinned(source=source, weights_sha256="0" * 64))


def test_a_pin_is_proven_once_per_state_of_the_file(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "own")
    file = folder / "model.safetensors"
    row = pinned(source=f"local-dir:{folder}", weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    read, hashed = weights_module.sha256_file, []

    def counted(path: Path) -> str:
        hashed.append(path)
        return read(path)

    monkeypatch.setattr(weights_module, "sha256_file", counted)
    for _ in range(3):
        weights_file(row)
    assert hashed == [file]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    with pytest.raises(WeightsDamagedError):
        weights_file(row)


def test_a_bare_file_of_weights_needs_no_config(tiny: Path, cache: Path, tmp_path: Path, registered: None) -> None:
    wraps: dict[str, Callable[[Any], Any]] = {"bare.pth": dict, "teacher.pt": lambda state: {"teacher": state}}
    for name, wrap in wraps.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(wrap(load_file(tiny / "model.safetensors")), folder / name)
        fill(cache, folder, f"owner/{folder.stem}")
        row = pinned(name=f"our-{folder.stem}", source=f"hf-hub:owner/{folder.stem}", weights_file=name)
        assert weights_available(row)
        assert weights_file(row).name == name
        register_backbone(row)
        sha256 = load_backbone(row.name, "cpu").identity["weights_sha256"]
        assert sha256 == load_backbone(f"local-dir:{tiny}", "cpu").identity["weights_sha256"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth"])
@pytest.mark.parametrize("place", ["local-dir", "mirror", "cache"])
def test_weights_that_run_code_when_unpickled_are_refused_in_one_line_and_run_none(
    tmp_path: Path,
    tiny: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    registered: None,
    place: str,
    name: str,
) -> None:
    for kind, data in pickles(tmp_path / "canary").items():
        folder = tmp_path / kind
        folder.mkdir()
        shutil.copy(tiny / "config.json", folder)
        (folder / name).write_bytes(data)
        source = put(place, folder, folder, cache / kind, monkeypatch)
        named = name if name == "weights.pth" else ""
        row = pinned(name=kind.replace(" ", "-"), source=source, weights_file=named)
        register_backbone(row)
        for asked in (row.name, source) if not named or place == "local-dir" else (row.name,):
            with pytest.raises(BackboneError) as caught:
                load_backbone(asked, "cpu")
            assert "\n" not in str(caught.value)
            assert not isinstance(caught.value, WeightsMissingError)
        assert not (tmp_path / "canary").exists()


def test_what_has_no_weights_on_the_hub_cannot_be_packed(
    tmp_path: Path, tiny: Path, filled: Path, capsys: pytest.CaptureFixture[str], registered: None
) -> None:
    register_backbone(pinned(name="theirs", library="remote"))
    out = ["--out", str(tmp_path / "bundle")]
    for name, says in {
        "colour": "it is code, and has no weights",
        f"local-dir:{tiny}": "a folder of your own",
        "theirs": "pathfm does not load it",
        "virchov2": "near: virchow2",
        "uni": "accept the licence at https://huggingface.co/MahmoodLab/UNI first",
    }.items():
        assert says in error_of(capsys, "pack", NAME, name, *out)
    assert not (tmp_path / "bundle").exists()
    register_backbone(pinned(name="older", revision=OTHER_COMMIT))
    shutil.copytree(filled / REPO / "snapshots" / COMMIT, filled / REPO / "snapshots" / OTHER_COMMIT)
    assert "two commits of owner/tiny" in error_of(capsys, "pack", NAME, "older", *out)
    assert "no backbones are named" in error_of(capsys, "pack", "--names", "[]", *out)
    for odd in ("b.tar.gz", "b.zip"):
        assert "pass a new folder or NAME.tar" in error_of(capsys, "pack", NAME, "--out", str(tmp_path / odd))


def test_the_two_words_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for words, tells_all in ((["weights"], False), (["weights", "--help"], False), (["--help"], True)):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "weights pack " in said
        assert "weights unpack " in said
        assert ("extract" in said) == tells_all
    assert "unknown command 'weights pakc'; near: weights pack, weights unpack" in error_of(capsys, "pakc")
    assert "required: out" in error_of(capsys, "pack", "uni")


def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def fill(cache: Path, folder: Path, repo: str = "owner/tiny") -> Path:
    """A cache as the hub's download leaves it: blobs by their names on the hub, links to them, and what main is."""
    place = cache / f"models--{repo.replace('/', '--')}"
    for name in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (place / name).mkdir(parents=True, exist_ok=True)
    for file in (path for path in folder.iterdir() if path.is_file()):
        is_large = file.suffix in (".safetensors", ".bin", ".pth", ".pt")
        kind = "sha256" if is_large else "sha1"
        blob = place / "blobs" / hashlib.new(kind, file.read_bytes(), usedforsecurity=False).hexdigest()
        shutil.copy(file, blob)
        (place / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{blob.name}")
    (place / "refs" / "main").write_text(COMMIT)
    return cache


def put(place: str, root: Path, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts a model's folder where backbones are looked for; gives the source that names it."""
    if place == "local-dir":
        return f"local-dir:{folder}"
    if place == "mirror":
        shutil.copytree(folder, root / "mirror" / "owner" / "tiny")
        monkeypatch.setenv("PATHFM_WEIGHTS", str(root / "mirror"))
    else:
        fill(use_cache(cache, monkeypatch), folder)
    return NAME


def pinned(**fields: Any) -> Backbone:
    """The row, with other fields."""
    return dataclasses.replace(ROW, **fields)


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of `pathfm weights ...` that must fail."""
    capsys.readouterr()
    assert main(["weights", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("pathfm: ")]
    assert len(lines) == 1
    return lines[0]


def assert_says(said: str, pattern: str) -> None:
    assert re.search(pattern, said), said


def random_tiles(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 160, 160, 3), dtype=np.uint8)
