"""Forty words and two colours that must not come out of pathfm, where they are planted, and a nose that finds them again."""

from __future__ import annotations

import base64
import binascii
import gzip
import html
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np
import tifffile
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Aperio's description of a scan: free text, which OpenSlide gives as aperio.* and openslide.comment.
APERIO = {
    "User": "zqaa01user",
    "Filename": "zqaa02filename",
    "Date": "zqaa03date",
    "Time": "zqaa04time",
    "Time Zone": "zqaa05zone",
    "ScanScope ID": "zqaa06scanner",
    "ImageID": "zqaa07image",
    "Title": "zqaa08title",
    "Barcode": "zqaa09barcode",
    "DSR ID": "zqaa10dsr",
    "Description": "zqaa11ümlaut",
    "Operator": "zqaa12operator",
    "Patient": "zqaa13patient",
    "Parmset": "zqaa14parmset",
}
# TIFF tags, by number.
TAGS = {
    269: "zqab01document",
    271: "zqab02make",
    272: "zqab03model",
    285: "zqab04page",
    305: "zqab05software",
    306: "1931:07:09 24:61:61",  # a date has 19 characters; this one is no time of any log
    315: "zqab07artist",
    316: "zqab08host",
    33432: "zqab09copyright",
    65427: "zqab10reference",
}
ASSOCIATED = {"label": "zqac01label", "macro": "zqac02macro", "thumbnail": "zqac03thumbnail"}
# Columns of the cohort table that no command asks for.
COLUMNS = {
    "name": "zqad01 müller",
    "mrn": "7734510093",
    "accession": "zqad03-accession",
    "dob": "zqad04dob",
    "referring": "zqad05doctor",
    "notes": "zqad06, with a comma",
    "credit": "zqad07credit",
    "source": "zqad08source",
}
OUTLINE, FOREIGN = "zqae01outline", "zqae02savetodir"
"""What a doctor wrote beside an outline, and what another tool writes beside its features."""
# What a user asks to keep, unless they say --pseudonymise.
NAMES = {
    "folder": "zqaf01 ward",
    "subfolder": "zqaf02o'brien",
    "file": "zqaf03 ärger's",
    "slide_id": "zqaf04slide",
    "patient_id": "zqaf05patient",
    "truncated": "zqaf06truncated",
    "missing": "zqaf07missing",
    "foreign": "zqaf08foreign",
    "cohort": "zqaf09cohort",
    "outlines": "zqaf10outlines",
    "other cohort": "zqaf11other",
}
COLOURS = {"label pixels": (1, 254, 253), "macro pixels": (254, 2, 251)}
"""No tissue, plot or overlay of pathfm has these."""

SECRETS = [*APERIO.values(), *TAGS.values(), *ASSOCIATED.values(), *COLUMNS.values(), OUTLINE, FOREIGN]
"""Words that never come out."""
_NEAR, _LEAST_PIXELS = 40, 4


class Hit(NamedTuple):
    """A marker that came out: which, in what disguise, and where."""

    marker: str
    disguise: str
    place: str


def write_scan(path: Path, seed: int, *, dark: bool, side_px: int = 512) -> Path:
    """An Aperio scan at 0.5 mpp: a disc of tissue, holed, a label, a macro image, and all of `APERIO`, `TAGS`, `ASSOCIATED`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side_px, :side_px] - side_px / 2
    pixels = np.full((side_px, side_px, 3), 244, np.int16)
    inside = np.hypot(x, y) < side_px * 0.45
    holes = np.random.default_rng([seed, 1])
    for _ in range(3):  # else all scans would look like copies of one
        left, top = holes.uniform(-0.4, 0.4, 2) * side_px
        inside &= np.hypot(x - left, y - top) > side_px * holes.uniform(0.05, 0.16)
    pixels[inside] = (150, 70, 130) if dark else (215, 140, 175)
    pixels[::4] += rng.integers(-6, 6, pixels[::4].shape, dtype=np.int16)
    said = "|".join(["AppMag = 20", "MPP = 0.5", *(f"{key} = {word}" for key, word in APERIO.items())])
    tags: list[Any] = [(tag, "s", 0, word, True) for tag, word in TAGS.items() if tag not in (305, 306)]
    with tifffile.TiffWriter(path) as file:
        plain: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": TAGS[305], "datetime": TAGS[306]}
        head = f"Aperio Image Library v11.2.1\r\n{side_px}x{side_px} [0,0 {side_px}x{side_px}]"
        full = pixels.clip(0, 255).astype(np.uint8)
        file.write(
            full, tile=(64, 64), compression="zlib", description=f"{head}|{said}".encode(), extratags=tags, **plain
        )
        pictures = {"thumbnail": full[::8, ::8], "label": painted("label pixels"), "macro": painted("macro pixels")}
        for name, picture in pictures.items():  # told by their place, and by the second line of their description
            described = f"Aperio {ASSOCIATED[name]}\r\n{name} 96x64 {ASSOCIATED[name]}"
            file.write(picture, description=described, subfiletype=9 if name == "macro" else 1, **plain)
    return path


def write_foreign(path: Path, slide_id: str) -> None:
    """Features as TRIDENT writes them: with the folder that it wrote to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coords = np.array([[128 * (i % 3), 128 * (i // 3)] for i in range(6)])
    cut = {"patch_size": 64, "patch_size_level0": 128, "overlap": 0, "target_magnification": 10}
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((6, 4), np.float32)
        file["coords"] = coords
        file["coords"].attrs.update(cut | {"name": slide_id, "savetodir": FOREIGN, "filename": FOREIGN})


def painted(colour: str) -> NDArray[np.uint8]:
    """A label or a macro image, uint8 (64, 96, 3): flat, with a strip of noise that is the same on every slide."""
    picture = np.full((64, 96, 3), COLOURS[colour], np.uint8)
    picture[20:40] = np.random.default_rng(list(COLOURS).index(colour)).integers(60, 200, (20, 96, 3), dtype=np.uint8)
    return picture


def sniff(root: Path, markers: Iterable[str]) -> list[Hit]:
    """Every marker and every colour in what lies below a folder: names, contents, and contents of contents."""
    needles = {marker: _needles(marker) for marker in markers}
    hits = []
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root).as_posix()
        hits += _hits(f"name of {place}", place.encode(), needles)
        if path.is_symlink():
            hits += _hits(f"target of {place}", str(path.readlink()).encode(), needles)
        elif path.is_file():
            hits += [hit for data in _unpacked(path.read_bytes()) for hit in _hits(place, data, needles)]
    return list(dict.fromkeys(hits))


def _hits(place: str, data: bytes | NDArray[np.uint8], needles: dict[str, dict[str, bytes]]) -> Iterator[Hit]:
    """What is in some bytes, or in a decoded picture, where words have no place."""
    if isinstance(data, bytes):
        small = data.lower()
        for marker, disguises in needles.items():
            for disguise, needle in disguises.items():
                if needle in (data if disguise.startswith("base64") else small):
                    yield Hit(marker, disguise, place)
    for name, colour in COLOURS.items():
        if painted(name)[30, 30:38].tobytes() in (data if isinstance(data, bytes) else data.tobytes()):
            yield Hit(name, "pixels", place)
        if not isinstance(data, bytes):
            least, most = (np.clip(np.add(colour, by), 0, 255).astype(np.uint8) for by in (-_NEAR, _NEAR))
            if ((data >= least) & (data <= most)).all(axis=-1).sum() >= _LEAST_PIXELS:
                yield Hit(name, "colour", place)


def _needles(marker: str) -> dict[str, bytes]:
    """The bytes that a marker may be written as, by the name of the disguise; all but base64 in lower case."""
    raw = marker.encode()
    found = {
        "utf-8": raw,
        "latin-1": marker.encode("latin-1"),
        "utf-16-le": marker.encode("utf-16-le"),
        "utf-16-be": marker.encode("utf-16-be"),
        "json": json.dumps(marker)[1:-1].encode(),
        "python": ascii(marker)[1:-1].encode(),
        "url": quote(marker, safe="").encode(),
        "html": html.escape(marker).encode(),
        "hex": binascii.hexlify(raw),
    }
    if core := re.match("zq[a-z0-9]{4,}", marker):  # however the rest of it was escaped
        found["core"] = core[0].encode()
    found = {name: needle.lower() for name, needle in found.items()}
    for shift in range(3):
        # what no byte before or after has a part in
        inner = base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] : (shift + len(raw)) * 8 // 6]
        found |= {f"base64+{shift}": inner, f"base64url+{shift}": inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return {disguise: needle for needle, disguise in {needle: disguise for disguise, needle in found.items()}.items()}


def _unpacked(data: bytes, depth: int = 0) -> Iterator[bytes | NDArray[np.uint8]]:
    """The data, and all that is packed in it: archives, HDF5, pictures, data addresses."""
    yield data
    if depth > 4:
        return
    inner: Iterable[bytes | NDArray[np.uint8]] = ()
    if data[:2] == b"\x1f\x8b":
        inner = [gzip.decompress(data)]
    elif data[:4] == b"PK\3\4":
        inner = _of_zip(data)
    elif data[:8] == b"\x89HDF\r\n\x1a\n":
        inner = _of_hdf5(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
        inner = _of_picture(data)
    else:
        inner = [base64.b64decode(found[1]) for found in re.finditer(rb"data:[^;,\s]+;base64,([A-Za-z0-9+/=]+)", data)]
    for one in inner:
        if isinstance(one, bytes):
            yield from _unpacked(one, depth + 1)
        else:
            yield one


def _of_zip(data: bytes) -> Iterator[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield name.encode()
            yield archive.read(name)


def _of_hdf5(data: bytes) -> Iterator[bytes]:
    found: list[bytes] = []

    def visit(name: str, item: Any) -> None:
        found.append(name.encode())
        for key, value in item.attrs.items():
            found.append(f"{key} ".encode() + _plain(value))
        if isinstance(item, h5py.Dataset):
            found.append(_plain(item[()]))

    with h5py.File(io.BytesIO(data), "r") as file:
        visit("", file)
        file.visititems(visit)
    yield from found


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    array = np.asarray(value)
    return str(array.tolist()).encode() if array.dtype.kind in "OSU" else array.tobytes()


def _of_picture(data: bytes) -> Iterator[bytes | NDArray[np.uint8]]:
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        for value in picture.info.values():
            yield value if isinstance(value, bytes) else str(value).encode()
        yield np.asarray(picture.convert("RGB"))
