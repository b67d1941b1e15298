from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pyramids import spoil_tile, waves, write_pyramid

import pathfm.slidefiles
from pathfm.errors import SlideUnreadableError
from pathfm.slide import open_slide
from pathfm.slidefiles import dicom_series, digest_kind, require_readable, series_files, slide_digest

if TYPE_CHECKING:
    from pathlib import Path


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


_HEAD = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        _png((b"IHDR", b"\0\0")),
        _png((b"IHDR", _HEAD), (b"iCCP", b"")),
        _png((b"IHDR", _HEAD), (b"pHYs", b"\1")),
        _png((b"IHDR", _HEAD), (b"gAMA", b"")),
        _png((b"IHDR", _HEAD), (b"zTXt", b"a\0\0" + zlib.compress(b"x" * (1 << 21)))),
        _png((b"IHDR", _HEAD), (b"IDAT", b"junk"), (b"IEND", b"")),
        _png((b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")),
    ],
)
def test_a_hostile_png_is_a_slide_that_does_not_open(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hostile.png").write_bytes(content)
    with pytest.raises(SlideUnreadableError, match=r"hostile\.png"):
        open_slide(tmp_path / "hostile.png", 0.5)


def test_a_plain_image_too_large_to_be_read_whole_is_to_be_converted(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (tmp_path / "large.png").write_bytes(_png((b"IHDR", head), (b"IDAT", b"")))
    with pytest.raises(SlideUnreadableError, match="convert it to a pyramidal TIFF") as caught:
        open_slide(tmp_path / "large.png", 0.5)
    assert caught.value.reason == "unsupported"


def test_a_large_plain_image_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (9500, 9500)).save(path)
    with open_slide(path, 0.5) as slide:
        assert slide.size_px0 == (9500, 9500)


_FAR = (1 << 64) - 8


@pytest.mark.parametrize(
    ("first", "n_entries", "kind", "count", "where"),
    [
        (_FAR, 2, 16, 1, 0),  # the directory is past the file
        (16, 1 << 62, 16, 1, 0),  # more entries than bytes
        (16, 2, 16, 2, _FAR),  # an array past the file
        (16, 2, 16, 1 << 62, 16),  # an array longer than the file
        (16, 2, 16, 1, _FAR),  # a pixel past the file, whose end is past 64 bits
    ],
)
def test_a_bigtiff_that_points_past_its_end_is_truncated(
    tmp_path: Path, first: int, n_entries: int, kind: int, count: int, where: int
) -> None:
    entries = b"".join(struct.pack("<HHQQ", tag, kind, count, where) for tag in (324, 325))
    path = tmp_path / "hostile.tiff"
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, first, n_entries) + entries + b"\0" * 8)
    with pytest.raises(SlideUnreadableError) as caught:
        require_readable(path)
    assert caught.value.reason == "truncated"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe.svs", "pipe.dcm"):
        os.mkfifo(tmp_path / name)
        assert dicom_series(tmp_path / name) == ""
        with pytest.raises(SlideUnreadableError, match="no regular file"):
            open_slide(tmp_path / name)


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def _dicom(uid: bytes) -> bytes:
    """A head whose nested sequence names another series first."""
    nested = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + _element(0x0020, 0x000E, b"UI", b"9.9.9\0")
    nested += struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + nested
    known = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 14) + _element(0x0020, 0x000E, b"UI", b"8.8.8\0")
    return (
        b"\0" * 128
        + b"DICM"
        + _element(0x0002, 0x0010, b"UI", b"1.2\0")
        + sequence
        + known
        + _element(0x0020, 0x000E, b"UI", uid)
    )


def test_a_dicom_series_is_one_slide_of_many_files(tmp_path: Path) -> None:
    for name, uid in (("a0", b"1.2.3\0"), ("a1", b"1.2.3\0"), ("b0", b"1.2.4\0")):
        (tmp_path / f"{name}.dcm").write_bytes(_dicom(uid) + name.encode() + b"\0" * 64)
    (tmp_path / "junk.dcm").write_bytes(b"no DICOM")
    assert dicom_series(tmp_path / "a1.dcm") == "1.2.3"
    assert dicom_series(tmp_path / "junk.dcm") == ""
    assert [p.name for p in series_files(tmp_path / "a1.dcm")] == ["a0.dcm", "a1.dcm"]
    assert slide_digest(tmp_path / "a0.dcm") == slide_digest(tmp_path / "a1.dcm") != slide_digest(tmp_path / "b0.dcm")


def test_the_head_of_a_dicom_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        (tmp_path / f"{index:02}.dcm").write_bytes(_dicom(b"1.2.3\0"))
    reads = []
    find = pathfm.slidefiles._find_uid
    monkeypatch.setattr(pathfm.slidefiles, "_find_uid", lambda head: reads.append(head) or find(head))
    for path in tmp_path.iterdir():
        assert len(series_files(path)) == 20
    assert len(reads) == 20
    (tmp_path / "00.dcm").write_bytes(_dicom(b"1.2.3.4\0"))
    assert dicom_series(tmp_path / "00.dcm") == "1.2.3.4"


@pytest.mark.parametrize("length", range(0, 260, 7))
def test_a_cut_dicom_head_is_no_series_and_no_crash(tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.dcm").write_bytes(_dicom(b"1.2.3\0")[:length])
    assert dicom_series(tmp_path / "cut.dcm") in ("", "1.2.3", "1.2")


def test_the_digest_is_of_all_bytes_and_of_no_name(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tiff", waves(64, 64, 0.5))
    before = slide_digest(path)
    moved = path.rename(tmp_path / "b.tiff")
    assert slide_digest(moved) == before
    spoil_tile(moved, 0)
    assert slide_digest(moved) != before
    index, folder = tmp_path / "m.mrxs", tmp_path / "m"
    index.write_bytes(b"index")
    folder.mkdir()
    (folder / "Data0000.dat").write_bytes(b"0")
    alone = slide_digest(index)
    (folder / "Data0001.dat").write_bytes(b"1")
    assert slide_digest(index) != alone
    assert len(series_files(index)) == 3


def test_the_quick_digest_sees_another_size_or_overview_and_not_a_bit_of_the_largest_level(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tiff", waves(512, 512, 0.5), levels=(4,))
    quick, whole = slide_digest(path, "quick"), slide_digest(path)
    assert quick.startswith(f"quick:{path.stat().st_size}:")
    assert (digest_kind(quick), digest_kind(whole)) == ("quick", "sha256")
    spoil_tile(path, 3)
    assert slide_digest(path, "quick") == quick
    assert slide_digest(path) != whole
    spoil_tile(path, 0, level=1)
    assert slide_digest(path, "quick") != quick


def test_a_plain_image_has_no_quickhash_and_is_read_whole(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    assert slide_digest(tmp_path / "a.png", "quick") == slide_digest(tmp_path / "a.png")
