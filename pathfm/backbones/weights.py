"""Where weights come from: the Hugging Face hub or a local folder, with errors that say what to do, and their digest."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from pathfm.errors import WeightsMissingError

if TYPE_CHECKING:
    from pathfm.backbones.row import Backbone

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# The hub's own error derives from that of its HTTP library, of which there have been three.
_TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


def weights_folder(row: Backbone, *, config_only: bool = False) -> Path:
    """The local folder with a row's config.json and weights, downloaded into the hub's cache where they are not there.

    Args:
        row: its source is "hf-hub:owner/repo" or "local-dir:/folder".
        config_only: do not fetch the weights.

    Raises:
        WeightsMissingError: gated, unknown, offline and not in the cache, or a folder without them.
    """
    if row.repo is None:
        return _local_folder(row)
    config = _download(row, CONFIG)
    if not config_only:
        _download(row, *WEIGHTS)
    return config.parent


def weights_available(row: Backbone) -> bool:
    """Whether a backbone can be loaded without network; looks at file names only."""
    if row.library == "python":
        return True
    if row.repo is None:
        folder = _folder(row)
        return (folder / CONFIG).is_file() and bool(_local_weights(folder))
    return _cached(row, CONFIG) and any(_cached(row, name) for name in WEIGHTS)


def state_sha256(model: torch.nn.Module) -> str:
    """Hex digest of the weights as loaded: name, type, shape and bytes of every tensor, in the order of the names.

    The same whatever file they came from; "" for a model without weights. Expects them on the CPU.
    """
    state = model.state_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest() if state else ""


def _download(row: Backbone, *names: str) -> Path:
    """The first of several names that the repository has."""
    try:
        return _first(str(row.repo), names, row.revision)
    except GatedRepoError as error:
        message = (
            f"the weights of {row.name} are gated: accept the licence at {row.page} with your account,"
            " then run `hf auth login` or set HF_TOKEN, and try again"
        )
        raise WeightsMissingError(message) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise WeightsMissingError(_offline(row, names[0])) from error
    except RepositoryNotFoundError as error:
        message = f"no repository {row.repo} on the Hugging Face hub that you may see; check the name, or log in with `hf auth login`"
        raise WeightsMissingError(message) from error
    except EntryNotFoundError as error:
        message = f"{row.page} has no {' or '.join(names)}, so it is no model that pathfm loads; check the name"
        raise WeightsMissingError(message) from error
    except HFValidationError as error:
        message = f"{row.repo!r} is no repository name; write hf-hub:owner/name"
        raise WeightsMissingError(message) from error
    except _TRANSPORT_ERRORS as error:
        message = (
            f"{names[0]} of {row.page} could not be fetched ({' '.join(str(error).split())});"
            " check the network and the free space, and try again"
        )
        raise WeightsMissingError(message) from error


def _first(repo: str, names: tuple[str, ...], revision: str) -> Path:
    *early, last = names
    for name in early:
        with suppress(EntryNotFoundError):
            return Path(hf_hub_download(repo, name, revision=revision))
    return Path(hf_hub_download(repo, last, revision=revision))


def _offline(row: Backbone, name: str) -> str:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    gate = f" (accept the licence at {row.page} first)" if row.gated else ""
    return (
        f"{name} of {row.repo} ({row.name}) is not in the cache {constants.HF_HUB_CACHE} and {why};"
        f" run `hf download {row.repo}` where there is network{gate} and copy that cache here,"
        " or pass --backbone local-dir:/folder"
    )


def _local_folder(row: Backbone) -> Path:
    folder = _folder(row)
    if not (folder / CONFIG).is_file():
        message = f"{folder} has no {CONFIG}; pass --backbone local-dir: and a folder with {CONFIG} and {WEIGHTS[0]}"
        raise WeightsMissingError(message)
    if not _local_weights(folder):
        message = f"{folder} has a {CONFIG} and no weights; put {WEIGHTS[0]} beside it"
        raise WeightsMissingError(message)
    return folder


def _folder(row: Backbone) -> Path:
    return Path(row.source.removeprefix("local-dir:")).expanduser()


def _local_weights(folder: Path) -> list[Path]:
    return [path for suffix in (".safetensors", ".bin", ".pth") for path in sorted(folder.glob(f"*{suffix}"))]


def _cached(row: Backbone, name: str) -> bool:
    return isinstance(try_to_load_from_cache(str(row.repo), name, revision=row.revision), str)
