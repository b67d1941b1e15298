"""Where weights come from: a mirror folder, the Hugging Face hub and its cache, or a local folder; and their digests."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from pathfm.backbones.hub import COMMIT, above, cached, fetch_if_there, fetched
from pathfm.backbones.mirror import mirrored, noted_commit
from pathfm.errors import WeightsDamagedError, WeightsMissingError
from pathfm.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pathfm.backbones.row import Backbone

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def weights_folder(row: Backbone, *, config_only: bool = False) -> Path:
    """The local folder with a row's weights and, unless it is a bare file that the row names, its config.json.

    Looked for in the mirror that PATHFM_WEIGHTS names, then in the hub's cache, then on the hub, which fetches them into
    the cache. Both files are of one commit.

    Args:
        row: its source is "hf-hub:owner/repo" or "local-dir:/folder".
        config_only: for the config.json alone; do not fetch the weights.

    Raises:
        WeightsMissingError: gated, unknown, offline and not in the cache, or a folder without them.
        WeightsDamagedError: the file with the weights is not the one that the row pins.
    """
    if row.repo is None:
        folder = _local_folder(row)
    else:
        folder = _mirror_folder(row, config_only=config_only) or _hub_folder(row, config_only=config_only)
    if not config_only:
        _require_pinned(row, folder)
    return folder


def weights_file(row: Backbone) -> Path:
    """The file with a row's weights in its `weights_folder`, fetched and held against the row's pin.

    Its ending says what it is; all but .safetensors is to be read by torch.load(..., weights_only=True) and never else.

    Raises:
        WeightsMissingError: as `weights_folder`.
        WeightsDamagedError: as `weights_folder`.
    """
    folder = weights_folder(row)
    return folder / _weights_name(row, folder)


def weights_available(row: Backbone) -> bool:
    """Whether the weights of a backbone are here, so that it needs no network; looks at file names only."""
    if row.library == "python":
        return True
    if row.repo is None:
        folder = _folder(row)
        return bool(_weights_name(row, folder)) and _has_config(row, folder)
    return (_mirror_folder(row) or _cached_folder(row)) is not None


def resolved_revision(row: Backbone) -> str:
    """The commit of the hub that a row's weights here are from: 40 hex digits; "" where nothing says so.

    A branch such as "main" moves on the hub; this says what it was when the weights came here. Asks nobody.
    """
    if row.repo is None:
        return ""
    if folder := _mirror_folder(row):
        commit = noted_commit(folder, _weights_name(row, folder))
    else:
        folder = _cached_folder(row)
        commit = folder.name if folder else ""
    return commit if COMMIT.fullmatch(commit) else ""


def read_tensors(file: Path) -> dict[str, Any]:
    """What a file of weights holds: tensors by name, on the CPU, and what else a training saved; nothing in it is run.

    Raises:
        SafetensorError: it is damaged.
        UnpicklingError: it holds more than tensors.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    read: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return read


def state_sha256(model: torch.nn.Module) -> str:
    """`tensors_sha256` of the weights of a model."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """Hex digest of weights: name, type, shape and bytes of every tensor, in the order of the names.

    The same whatever file they came from; "" for a model without weights. Expects them on the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest() if tensors else ""


def proven_sha256(file: Path) -> str:
    """Hex sha256 of a file's bytes, computed once per state of the file."""
    state = file.stat()
    return _prove(file, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=1024)
def _prove(file: Path, _mtime_ns: int, _size: int, _inode: int) -> str:
    return sha256_file(file)


def _require_pinned(row: Backbone, folder: Path) -> None:
    name = _weights_name(row, folder)
    if not row.weights_sha256 or (found := proven_sha256(folder / name)) == row.weights_sha256.lower():
        return
    message = (
        f"{folder / name} is not the file that backbone {row.name} was pinned to: its sha256 is {found[:16]}...,"
        f" not {row.weights_sha256[:16]}...; delete it and fetch it again, or take the pin from the row if you trust it"
    )
    raise WeightsDamagedError(message)


def _mirror_folder(row: Backbone, *, config_only: bool = False) -> Path | None:
    """The folder in the mirror if it has what is needed, and of the commit that is asked for.

    Where nothing notes its commit it serves the rows as they are, and a revision that somebody asks for is not guessed.
    """
    folder = mirrored(row) if row.repo else None
    if folder is None or not _has_config(row, folder, always=config_only):
        return None
    name = _weights_name(row, folder)
    commit = noted_commit(folder, name or CONFIG)
    if commit != row.revision and ("@" in row.name or (commit and COMMIT.fullmatch(row.revision))):
        return None
    return folder if name or config_only else None


def _hub_folder(row: Backbone, *, config_only: bool) -> Path:
    if config_only:
        return fetched(row, [CONFIG]).parent
    if COMMIT.fullmatch(row.revision) and (there := _cached_folder(row)):
        return there
    # a branch may move on between two files: the second is that of the commit of the first
    commit = fetched(row, [CONFIG]).parent.name if _needs_config(row) else ""
    file = fetched(row, _names(row), commit if COMMIT.fullmatch(commit) else "")
    folder = _folder_of(row, file)
    if not _needs_config(row):
        fetch_if_there(row, CONFIG, folder.name if COMMIT.fullmatch(folder.name) else row.revision)
    return folder


def _cached_folder(row: Backbone) -> Path | None:
    """The folder in the hub's cache that has all that is needed."""
    file = cached(row, _names(row))
    folder = _folder_of(row, file) if file else None
    return folder if folder and _has_config(row, folder) else None


def _folder_of(row: Backbone, file: Path) -> Path:
    """The folder of the commit that a file of weights is from; its name may have folders in it."""
    return next(above(file, name) for name in _names(row) if file.as_posix().endswith(f"/{name}"))


def _local_folder(row: Backbone) -> Path:
    folder = _folder(row)
    if not _has_config(row, folder):
        message = f"{folder} has no {CONFIG}; pass --backbone local-dir: and a folder with {CONFIG} and {WEIGHTS[0]}"
        raise WeightsMissingError(message)
    if not _weights_name(row, folder):
        name = row.weights_file or WEIGHTS[0]
        message = f"{folder} has no {name}, the weights of {row.name}; put it there, beside its {CONFIG} if it has one"
        raise WeightsMissingError(message)
    return folder


def _folder(row: Backbone) -> Path:
    return Path(row.source.removeprefix("local-dir:")).expanduser()


def _names(row: Backbone) -> tuple[str, ...]:
    """What the weights are called on the hub, the best first."""
    return (row.weights_file,) if row.weights_file else WEIGHTS


def _weights_name(row: Backbone, folder: Path) -> str:
    """The name of the weights in a folder; "" where there are none."""
    names = list(_names(row))
    if row.repo is None and not row.weights_file:  # a user's own folder may call them anything
        names += [
            path.name for ending in ("safetensors", "pth", "bin", "pt") for path in sorted(folder.glob(f"*.{ending}"))
        ]
    return next((name for name in names if (folder / name).is_file()), "")


def _needs_config(row: Backbone) -> bool:
    """Whether a config.json belongs to the weights: where it, and not the row, says how the network is built."""
    return row.library == "transformers" or (row.library == "timm" and not row.arch)


def _has_config(row: Backbone, folder: Path, *, always: bool = False) -> bool:
    return (folder / CONFIG).is_file() or not (always or _needs_config(row))
