"""The Hugging Face hub and its cache: what is there is taken, what is not is fetched, and errors say what to do."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

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
from huggingface_hub.file_download import repo_folder_name

from pathfm.backbones.mirror import mirror
from pathfm.errors import WeightsMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pathfm.backbones.row import Backbone

COMMIT = re.compile("[0-9a-f]{40}")
# The hub's own error derives from that of its HTTP library, of which there have been three.
_TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


def hub_cache() -> Path:
    """The one place where weights are kept on this machine: the hub's own cache, which other tools share."""
    return Path(constants.HF_HUB_CACHE)


def fetched(row: Backbone, names: Sequence[str], revision: str = "") -> Path:
    """The first of several names that the repository of a row has, fetched into the cache where it is not there.

    Args:
        row: its source is "hf-hub:owner/repo".
        names: files, the best first.
        revision: in place of the row's own.

    Returns:
        The file in the folder of its commit.

    Raises:
        WeightsMissingError: gated, unknown, without such a file, or offline and not in the cache.
    """
    try:
        return _first(str(row.repo), names, revision or row.revision)
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


def fetch_if_there(row: Backbone, name: str, revision: str) -> None:
    """Has a file come along that is of use and not needed; a repository that is known not to have it is not asked."""
    if try_to_load_from_cache(str(row.repo), name, revision=revision) is None:
        with suppress(WeightsMissingError):
            fetched(row, [name], revision)


def cached(row: Backbone, names: Sequence[str]) -> Path | None:
    """The first of several names that lies in the cache at the row's revision; asks nobody.

    Where the row pins the file by its digest, the same file of another commit is as good: a cache that was filled before
    a page was edited goes on to be of use.
    """
    try:
        found = [try_to_load_from_cache(str(row.repo), name, revision=row.revision) for name in names]
    except HFValidationError:
        return None
    return next((Path(one) for one in found if isinstance(one, str)), None) or _of_another_commit(row, names)


def _of_another_commit(row: Backbone, names: Sequence[str]) -> Path | None:
    """A file that the cache, which calls large files by their sha256, has under the digest that the row pins."""
    if not row.weights_sha256 or not COMMIT.fullmatch(row.revision):
        return None
    commits = hub_cache() / repo_folder_name(repo_id=str(row.repo), repo_type="model") / "snapshots"
    files = (folder / name for folder in sorted(commits.glob("*")) for name in names)
    return next((file for file in files if file.resolve().name == row.weights_sha256 and file.is_file()), None)


def above(file: Path, name: str) -> Path:
    """The folder in which a file has this name, which may have folders in it."""
    return file.parents[len(PurePosixPath(name).parts) - 1]


def _first(repo: str, names: Sequence[str], revision: str) -> Path:
    *early, last = names
    for name in early:
        with suppress(EntryNotFoundError):
            return Path(hf_hub_download(repo, name, revision=revision))
    return Path(hf_hub_download(repo, last, revision=revision))


def _offline(row: Backbone, name: str) -> str:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    beside = f", nor in the mirror {folder}" if (folder := mirror()) else ""
    gate = f" (accept the licence at {row.page} first, and run `hf auth login`)" if row.gated else ""
    at = f" --revision {row.revision}" if row.revision != "main" else ""
    return (
        f"{name} of {row.repo} ({row.name}) is not in the cache {hub_cache()}{beside} and {why};"
        f" run `pathfm weights pack {row.name} --out bundle`, or `hf download {row.repo}{at}`, where there is network{gate}"
        " and `pathfm weights unpack bundle` here, or copy that cache, or pass --backbone local-dir:/folder"
    )
