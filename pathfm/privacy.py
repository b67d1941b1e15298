"""What pathfm may know of a slide, and pseudonyms for slides and patients. docs/privacy.md says what is promised.

A pseudonym is the first 16 bytes of HMAC-SHA256(key, id), with a key for slides and another for patients, both derived
from one key file. Ids become pseudonyms where they enter (`find_slides`, `read_cohort`), so that nothing behind these
two ever holds a true one.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pathfm.errors import InputError
from pathfm.files import write_text
from pathfm.progress import logger
from pathfm.scrub import Scrubber, scrubbing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ALLOWED_PROPERTIES = (
    "openslide.mpp-x",
    "openslide.mpp-y",
    "openslide.objective-power",
    "openslide.vendor",
    "openslide.quickhash-1",
)
"""The only properties of a slide that are ever read; the others hold users, dates, serial numbers, bar codes and free text."""

KEY_ID_FILE = "pseudonym-key-id.txt"
"""In a folder whose ids are pseudonyms: which key they are of; says nothing about the key itself."""

_KEY_BYTES, _PSEUDONYM_BYTES, _KEY_ID_BYTES = 32, 16, 8

# At DEBUG Pillow logs every tag of a TIFF that it opens, the free text with the patient's name among them.
logging.getLogger("PIL").setLevel(logging.INFO)


def allowed(properties: Mapping[str, str]) -> dict[str, str]:
    """Those properties of a slide that pathfm may read; the values of the others are not even fetched."""
    return {name: properties[name] for name in ALLOWED_PROPERTIES if name in properties}


@dataclass(frozen=True)
class Pseudonyms:
    """Names in place of the true ones; picklable.

    Attributes:
        key: the secret, at least 32 bytes.
        scrubber: learns the true names as they come in.
    """

    key: bytes = field(repr=False)
    scrubber: Scrubber = field(default_factory=Scrubber, repr=False, compare=False)

    @property
    def key_id(self) -> str:
        """16 hex digits that tell one key from another."""
        return self._hashed("key id", "")[: 2 * _KEY_ID_BYTES]

    def slide(self, slide_id: str) -> str:
        """The pseudonym of a slide, 32 hex digits."""
        return self._hashed("slide", slide_id)

    def patient(self, patient_id: str) -> str:
        """The pseudonym of a patient, 32 hex digits; another than that of a slide of the same name."""
        return self._hashed("patient", patient_id)

    def _hashed(self, domain: str, name: str) -> str:
        derived = hmac.digest(self.key, f"pathfm {domain}".encode(), "sha256")
        return hmac.digest(derived, name.encode("utf-8", "surrogateescape"), "sha256")[:_PSEUDONYM_BYTES].hex()


@contextmanager
def private_run(
    key_file: Path | None,
    out: Path | None = None,
    made_with: Sequence[Path | None] = (),
    models: Sequence[Path | None] = (),
    **true: Path | Sequence[Path] | None,
) -> Iterator[Pseudonyms | None]:
    """Pseudonyms for a run, and silence about the true names while it lasts; None, and nothing of this, without a key file.

    Args:
        key_file: 32 random bytes or more in hex; made where it is missing, unless the run goes on from pseudonyms.
        out: the folder that is written to; says from now on which key its names are of.
        made_with: folders that have to be of the same key, for their names are joined with those of this run.
        models: model directories; of another key they may be, but then nobody notices a patient whom they know.
        **true: the paths that may name people, by option: slides, cohort, outlines.

    Raises:
        InputError: a key file that is missing, too short, readable by others or among the output; a folder of another
            key, or an `out` that holds true names.
    """
    if key_file is None:
        if out is not None:
            require_no_pseudonyms(out)
        _warn_of_other_key("", models)
        yield None
        return
    joined = [folder for folder in made_with if folder is not None]
    folders = [folder for folder in (out, *joined, *models) if folder is not None]
    _require_apart(key_file, folders)
    names = Pseudonyms(_read_or_make(key_file, [*joined, *([out] if out else [])]))
    for folder in joined:
        _require_same_key(folder, names)
    for path in (key_file, *folders):
        names.scrubber.keep(path)
    _learn(names, true)
    with scrubbing(names.scrubber):
        if out is not None:
            mark(out, names)
        _warn_of_other_key(names.key_id, models)
        yield names


def mark(folder: Path, names: Pseudonyms) -> None:
    """Writes down in a folder which key its names are of; one that is not there is made for its owner alone.

    Raises:
        InputError: it is of another key, or holds files that may hold true names.
    """
    # looked at before the key's id: of two processes that start at a time, one writes that before all else
    used = folder.is_dir() and any(not _is_ours(path) for path in folder.iterdir())
    if _key_id_of(folder) is not None:
        _require_same_key(folder, names)
    elif used:
        message = f"{folder} holds files that were made without --pseudonymise; pass a new folder to --out"
        raise InputError(message)
    make_folder(folder)
    write_text(folder / KEY_ID_FILE, f"{names.key_id}\n")


def require_no_pseudonyms(folder: Path) -> None:
    """Refuses to put true names beside pseudonyms, which would say who is who.

    Raises:
        InputError: the folder holds pseudonyms.
    """
    if _key_id_of(folder) is not None:
        message = (
            f"{folder} holds pseudonyms; pass the key file to --pseudonymise that they were made with, or another --out"
        )
        raise InputError(message)


def make_folder(folder: Path) -> None:
    """Makes a folder that its owner alone may enter; one that is there stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def read_key(path: Path) -> bytes:
    """The secret of a key file.

    Raises:
        InputError: missing, no hex, shorter than 32 bytes, or readable by others than its owner.
    """
    try:
        mode, key = path.stat().st_mode, bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds something else than hex digits"
        message = (
            f"key file {path} cannot be used ({why}); pass the one to --pseudonymise that the names were made with"
        )
        raise InputError(message) from None  # the error may quote the key
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        message = f"key file {path} may be read by others than its owner; run chmod 600 on it, and ask who has read it"
        raise InputError(message)
    if len(key) < _KEY_BYTES:
        message = (
            f"key file {path} holds {len(key)} bytes, fewer than {_KEY_BYTES}; let pathfm make one: name a new file"
        )
        raise InputError(message)
    return key


def make_key(path: Path) -> None:
    """Makes a key file that its owner alone may read; one that is there stays.

    Raises:
        InputError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
    except FileExistsError:  # another process of the same job was quicker
        return
    except OSError as error:
        message = (
            f"key file {path} cannot be made ({error.strerror}); pass a path to --pseudonymise where you may write"
        )
        raise InputError(message) from error
    logger.warning("key file %s was made: keep it, apart from the results; without it no name is found again", path)


def _read_or_make(key_file: Path, folders: Sequence[Path]) -> bytes:
    """A new key would give new names: no run that goes on from others wants it, and a typing error must not make one."""
    if not key_file.exists():
        before = next((folder for folder in folders if _key_id_of(folder) is not None), None)
        if before is not None:
            message = (
                f"no key file at {key_file}; pass the one to --pseudonymise that the names in {before} were made with"
            )
            raise InputError(message)
        make_key(key_file)
    return read_key(key_file)


def _require_apart(key_file: Path, folders: Sequence[Path]) -> None:
    """Whoever is given the results must not be given the key with them."""
    for folder in folders:
        if key_file.resolve().is_relative_to(folder.resolve()):
            message = f"key file {key_file} lies in {folder}, with the names that it is to protect; keep it elsewhere"
            raise InputError(message)


def _require_same_key(folder: Path, names: Pseudonyms) -> None:
    found = _key_id_of(folder)
    if found != names.key_id:
        made = "without --pseudonymise" if found is None else "with another key file"
        message = (
            f"{folder} was made {made}, so its names are others than those of this run; pass what it was made with"
        )
        raise InputError(message)


def _warn_of_other_key(key_id: str, models: Sequence[Path | None]) -> None:
    for model in models:
        if model is not None and (_key_id_of(model) or "") != key_id:
            logger.warning("the ids in %s are of another key than those here: a patient in both is not noticed", model)


def _key_id_of(folder: Path) -> str | None:
    """The key of the names in a folder, which it or one of the two folders above it states; None for true names."""
    for place in (folder, *list(folder.absolute().parents)[:2]):
        if (place / KEY_ID_FILE).is_file():
            return (place / KEY_ID_FILE).read_text(encoding="utf-8").strip()
    return None


def _is_ours(path: Path) -> bool:
    """Written by the command line just before: the resolved settings, without the true paths."""
    return path.name.startswith(".") or (path.name.startswith("pathfm-") and path.suffix == ".yaml")


def _learn(names: Pseudonyms, true: Mapping[str, Path | Sequence[Path] | None]) -> None:
    """Teaches the paths that were given; what is found below them is learned where it is found."""
    for option, given in true.items():
        for path in [given] if isinstance(given, Path) else given or []:
            if path.is_dir():
                names.scrubber.learn_folder(path, f"--{option}")
            else:
                names.scrubber.learn_folder(path.parent, f"the folder of --{option}")
                names.scrubber.learn_file(path, f"--{option}")
            for outline in path.glob("*.geojson") if option in ("outlines", "annotations") else ():
                names.scrubber.learn_file(outline, f"--{option}/{names.slide(outline.stem)}.geojson")
