"""The files that make up a slide: which they are, their digest, and why a file does not open."""

from __future__ import annotations

import re
import stat
import struct
import warnings
import zlib
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import openslide
from PIL import Image

from pathfm.errors import Reason, SlideUnreadableError
from pathfm.files import sha256_file, sha256_text
from pathfm.privacy import allowed

if TYPE_CHECKING:
    from pathlib import Path

DigestKind = Literal["sha256", "quick"]

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Images that Pillow reads where OpenSlide does not; they state no mpp."""

_PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
HOSTILE = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError),
    *(RuntimeError, AssertionError, struct.error, zlib.error),
)
"""What decoders raise when a file lies about itself."""

_MOST_POINTER_BYTES = 1 << 28
_TIFF_HEADS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_TIFF_TYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_STRIPS, _TILES = (273, 279), (324, 325)  # tag numbers of offsets and byte counts
_DICOM_HEAD_BYTES = 1 << 16
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_UNDEFINED = 0xFFFFFFFF


def series_files(path: Path) -> list[Path]:
    """The files that OpenSlide reads as one slide, sorted; the path alone for formats of one file.

    A DICOM series is every `.dcm` beside it with the same SeriesInstanceUID, `.mrxs` comes with its folder, `.vms` and
    `.vmu` with the files that they name.
    """
    suffix = path.suffix.lower()
    if suffix == ".dcm" and (uid := dicom_series(path)):
        return sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".dcm" and dicom_series(p) == uid)
    if suffix == ".mrxs":
        return [path, *sorted(p for p in path.with_suffix("").glob("**/*") if p.is_file())]
    if suffix in (".vms", ".vmu"):
        return [path, *_named_files(path)]
    return [path]


def slide_digest(path: Path, kind: DigestKind = "sha256") -> str:
    """What a slide is known by, whatever it is called and wherever it lies.

    Args:
        path: the slide.
        kind: "sha256" reads every byte and sees any change. "quick" is the size of its files and OpenSlide's
            quickhash-1, which covers the metadata and the smallest level: it costs no pass over the file, and misses a
            change of the same size in the pixels of a larger level, bit rot above all.

    Returns:
        `sha256:<hex>`, of the sorted digests of its files where it has several; or `quick:<bytes>:<hex>`, `sha256:`
        also for "quick" where OpenSlide has no quickhash for the format, as for a plain image.

    Raises:
        OSError: it cannot be read.
        SlideUnreadableError: it cannot be opened for its quickhash.
    """
    if kind == "quick" and (quickhash := _quickhash(path)):
        return f"quick:{_bytes_of(path)}:{quickhash}"
    digests = sorted(sha256_file(file) for file in series_files(path))
    return "sha256:" + (digests[0] if len(digests) == 1 else sha256_text("\n".join(digests)))


def digest_kind(digest: str) -> DigestKind:
    """The kind that a digest is of, so that a slide can be compared with it."""
    return "quick" if digest.startswith("quick:") else "sha256"


def slide_changed(path: Path, digest: str) -> bool:
    """Whether a slide is another than the one that a digest was taken of.

    Raises:
        OSError: it cannot be read.
        SlideUnreadableError: as by `slide_digest`; not for a quick digest where the size alone tells.
    """
    if digest_kind(digest) == "quick" and int(digest.split(":")[1]) != _bytes_of(path):
        return True
    return slide_digest(path, digest_kind(digest)) != digest


def slide_state(path: Path) -> tuple[tuple[int, int, int], ...]:
    """(inode, bytes, time of change in ns) of each of its files: another after it was written to or replaced.

    Raises:
        OSError: it cannot be looked up.
    """
    found = [file.stat() for file in series_files(path)]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in series_files(path))


def _quickhash(path: Path) -> str:
    """OpenSlide's own digest, "" where it has none."""
    with open_handle(path) as handle:
        return allowed(handle.properties).get(openslide.PROPERTY_NAME_QUICKHASH1, "")


def dicom_series(path: Path) -> str:
    """The SeriesInstanceUID (0020,000E) of a DICOM file, "" where the file has none or is no DICOM."""
    try:
        found = path.stat()
        return _series_uid(path, found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else ""
    except OSError:
        return ""


def require_readable(path: Path) -> None:
    """Checks what can be said without decoding.

    Raises:
        SlideUnreadableError: no such file, no regular file, no permission, empty, or a TIFF that ends before its own
            pixels do.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise _unreadable(path, "unreadable", "is no regular file; name a slide in --slides or the cohort")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            claimed = _tiff_end(file, size)
    except FileNotFoundError as error:
        raise _unreadable(path, "unreadable", "does not exist; correct the path in --slides or the cohort") from error
    except PermissionError as error:
        raise _unreadable(path, "permission", "may not be read by this user; grant read permission") from error
    except OSError as error:
        raise _unreadable(
            path, "unreadable", f"cannot be read ({error.strerror}); check the file and its disk"
        ) from error
    if size == 0:
        raise _unreadable(path, "empty file", "is empty (0 bytes); copy it again")
    if claimed > size:
        problem = f"is truncated: it has {size} bytes and its own index points to byte {claimed}; copy it again"
        raise _unreadable(path, "truncated", problem)


def open_handle(path: Path) -> openslide.AbstractSlide:
    """Opens a slide by OpenSlide, or a plain image by Pillow where OpenSlide does not know it.

    Raises:
        SlideUnreadableError: neither can; the reason is typed.
    """
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        if path.suffix.lower() not in PLAIN_SUFFIXES:
            raise _refusal(path, error) from error
    except openslide.OpenSlideError as error:
        raise _refusal(path, error) from error
    try:
        return _open_plain(path)
    except Image.DecompressionBombError as error:
        problem = f"is an unsupported plain image, too large to be read whole ({error}); convert it to a pyramidal TIFF"
        raise _unreadable(path, "unsupported", problem) from error
    except HOSTILE as error:
        raise _refusal(path, error) from error


def _open_plain(path: Path) -> openslide.ImageSlide:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.mode not in _PLAIN_MODES:
                message = f"has pixels of the mode {image.mode}; save it as 8-bit RGB"
                raise _unreadable(path, "unsupported", message)
            return openslide.ImageSlide(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _refusal(path: Path, error: Exception) -> SlideUnreadableError:
    """The typed error for what OpenSlide or Pillow said when it would not open a file."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in said.lower():
        return _unreadable(path, "truncated", f"is truncated ({said}); copy it again")
    if "unsupported" in said.lower() or "cannot identify" in said.lower():
        remedy = "convert it to a pyramidal TIFF, or leave it out of --slides"
        return _unreadable(path, "unsupported", f"is no slide that OpenSlide or Pillow reads ({said}); {remedy}")
    return _unreadable(path, "unreadable", f"does not open ({said}); copy it again, or leave it out of --slides")


def _unreadable(path: Path, reason: Reason, problem: str) -> SlideUnreadableError:
    return SlideUnreadableError(path, reason, f"{path} {problem}")


@lru_cache(maxsize=1 << 16)  # each file of a series asks for all of them
def _series_uid(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        head = file.read(_DICOM_HEAD_BYTES)
    return _find_uid(head) if head[128:132] == b"DICM" else ""


def _named_files(index: Path) -> list[Path]:
    """Siblings that an INI-like index names as the value of a key."""
    lines = index.read_text(encoding="latin-1").splitlines()
    values = {line.partition("=")[2].strip() for line in lines} - {""}
    siblings = {p.name: p for p in index.parent.iterdir() if p.is_file()}
    return sorted(siblings[value] for value in values if value in siblings)


def _tiff_end(file: IO[bytes], size: int) -> int:
    """The last byte that a TIFF's directories point to, 0 where the file is no TIFF.

    Classic TIFF over 4 GiB is NDPI with offsets of its own kind: not judged.
    """
    file.seek(0)
    head = file.read(16)
    if head[:4] not in _TIFF_HEADS or len(head) < 16:
        return 0
    order, big = _TIFF_HEADS[head[:4]]
    if size >= 1 << 32 and not big:
        return 0
    end, seen = 0, set[int]()
    offset = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    while offset and offset not in seen:
        seen.add(offset)
        directory_end, claimed, offset = _tiff_directory(file, offset, order, big, size)
        end = max(end, directory_end, claimed)
        if directory_end > size:
            break
    return end


def _tiff_directory(file: IO[bytes], offset: int, order: str, big: bool, size: int) -> tuple[int, int, int]:
    """(end of the directory, end of the pixels it points to, offset of the next directory)."""
    count_format, entry_bytes, next_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    count_bytes = struct.calcsize(order + count_format)
    if offset + count_bytes > size:
        return offset + count_bytes, 0, 0
    file.seek(offset)
    head = file.read(count_bytes)
    length = struct.unpack(order + count_format, head)[0] * entry_bytes + struct.calcsize(order + next_format)
    end = offset + count_bytes + length
    body = file.read(min(length, 1 << 20))
    if len(body) < length:
        return end, 0, 0
    tags, claimed = _tiff_pointers(file, body, order, big, size)
    return (
        end,
        max(claimed, _pixels_end(tags)),
        struct.unpack(order + next_format, body[-struct.calcsize(order + next_format) :])[0],
    )


def _tiff_pointers(file: IO[bytes], body: bytes, order: str, big: bool, size: int) -> tuple[dict[int, np.ndarray], int]:
    """(values of the four tags that point to pixels, where the last of them ends); none is read from past the file."""
    entry_format, entry_bytes = (order + "HHQ", 20) if big else (order + "HHI", 12)
    inline, end = 8 if big else 4, 0
    tags: dict[int, np.ndarray] = {}
    for start in range(0, len(body) - inline, entry_bytes):
        tag, kind, count = struct.unpack_from(entry_format, body, start)
        if tag not in (*_STRIPS, *_TILES) or kind not in _TIFF_TYPES:
            continue
        dtype = np.dtype(order + _TIFF_TYPES[kind])
        raw = body[start + entry_bytes - inline : start + entry_bytes]
        if count * dtype.itemsize > inline:
            at = struct.unpack(order + ("Q" if big else "I"), raw)[0]
            end = max(end, at + count * dtype.itemsize)
            if end > size or count * dtype.itemsize > _MOST_POINTER_BYTES:
                continue
            file.seek(at)
            raw = file.read(count * dtype.itemsize)
        values = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
        tags[tag] = values[:count].astype(np.uint64)
    return tags, end


def _pixels_end(tags: dict[int, np.ndarray]) -> int:
    ends = [0]
    for offsets, counts in (_STRIPS, _TILES):
        if offsets in tags and counts in tags and tags[offsets].size == tags[counts].size > 0:
            pixel_ends = tags[offsets] + tags[counts]
            wrapped = bool((pixel_ends < tags[offsets]).any())
            ends.append(1 << 64 if wrapped else int(pixel_ends.max()))
    return max(ends)


def _find_uid(head: bytes) -> str:
    """Walks little-endian data elements to (0020,000E) outside of any sequence; stops where it cannot follow."""
    at, depth = 132, 0
    while at + 12 <= len(head):
        group, element, length, start = _element(head, at)
        if (group, element) == (0x0020, 0x000E) and depth == 0:
            uid = head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
            return uid if re.fullmatch(r"[0-9.]+", uid) else ""
        if (group, element) == (0xFFFE, 0xE0DD):
            depth -= 1
        elif group != 0xFFFE and length == _UNDEFINED:
            depth += 1
        # Items are entered, defined or not; whatever else has a length is stepped over.
        at = start if group == 0xFFFE or length == _UNDEFINED else start + length
    return ""


def _element(head: bytes, at: int) -> tuple[int, int, int, int]:
    """(group, element, length of the value, where it starts), explicit or implicit VR."""
    group, element = struct.unpack_from("<HH", head, at)
    vr = head[at + 4 : at + 6]
    if group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
        return group, element, struct.unpack_from("<I", head, at + 4)[0], at + 8
    if vr in _LONG_VRS:
        return group, element, struct.unpack_from("<I", head, at + 8)[0], at + 12
    return group, element, struct.unpack_from("<H", head, at + 6)[0], at + 8
