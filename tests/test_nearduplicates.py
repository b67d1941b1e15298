from __future__ import annotations

import io
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from runs import OPTIONS, files_below, write_slides
from test_embeddings import embeddings, reseal

from pathfm.cli import main
from pathfm.contents import metadata_sha256
from pathfm.embeddings import find_embeddings, read_embeddings, write_embeddings
from pathfm.errors import EmbeddingsDamagedError
from pathfm.joined import facts_of
from pathfm.nearduplicates import CLOSE_BITS, MOST_BITS, near_duplicates, without_hash
from pathfm.reference import Reference
from pathfm.slide import open_slide
from pathfm.thumbnailhash import is_thumbnail_hash, thumbnail_hash, turned_hashes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

REAL = os.environ.get("PATHFM_TEST_SLIDES")


def overview(seed: int, size: tuple[int, int] = (360, 300)) -> Picture:
    """A ragged piece of uneven tissue somewhere on glass, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    centre, radius = rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.2, 0.35, 2) * size
    away = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    tissue = away + 0.5 * smooth(rng, size, 40) < 1
    amount = np.clip(0.6 + 0.4 * smooth(rng, size, 25), 0.15, 1.5)[..., None]
    stained = 240 * np.exp(-amount * np.array([0.25, 0.75, 0.35]))
    return np.where(tissue[..., None], stained, 240).astype(np.uint8)


def smooth(rng: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float32]:
    noise = cv2.GaussianBlur(rng.standard_normal(size[::-1]).astype(np.float32), (0, 0), scale)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def hash_of(picture: Picture) -> str:
    return thumbnail_hash(np.ascontiguousarray(picture), np.ones(picture.shape[:2], bool))


def bits_between(one: str, other: str) -> int:
    first, second = turned_hashes([one, other])
    return int(np.bitwise_count(first[0] ^ second).min())


def compressed(picture: Picture) -> Picture:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "JPEG", quality=30)
    return np.asarray(Image.open(held).convert("RGB"))


def rescanned(picture: Picture) -> Picture:
    """Laid a degree and a half askew under a warmer lamp and a softer lens."""
    height, width = picture.shape[:2]
    moved = cv2.warpAffine(
        picture,
        cv2.getRotationMatrix2D((width / 2, height / 2), 1.5, 1.0),
        (width, height),
        borderValue=(240, 240, 240),
    )
    return np.asarray(cv2.GaussianBlur(moved, (0, 0), 1) * np.array([0.97, 0.93, 0.9]), np.uint8)


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "compressed": compressed,
    "cropped by some pixels": lambda picture: picture[5:, 7:],
    "half as large": lambda picture: np.asarray(Image.fromarray(picture).reduce(2)),
    "twice as large": lambda picture: np.repeat(np.repeat(picture, 2, 0), 2, 1),
    "mirrored": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
    "turned": lambda picture: np.rot90(picture),
    "turned the other way": lambda picture: np.rot90(picture, 3),
    "turned and mirrored": lambda picture: np.rot90(picture)[::-1],
    "with more glass": lambda picture: np.pad(picture, ((40, 0), (0, 60), (0, 0)), constant_values=240),
    "scanned again": rescanned,
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_a_scan_have_nearly_its_hash(copy: str) -> None:
    for seed in range(6):
        picture = overview(seed)
        assert bits_between(hash_of(picture), hash_of(COPIES[copy](picture))) <= MOST_BITS


def test_hashes_of_different_tissue_are_mostly_far_apart_though_not_all() -> None:
    hashes = [hash_of(overview(seed)) for seed in range(40)]
    bits = [bits_between(one, other) for one, other in itertools.combinations(hashes, 2)]
    assert np.mean(np.array(bits) <= MOST_BITS) < 0.02
    assert np.median(bits) > 18


@pytest.mark.parametrize("way", range(8))
def test_the_hashes_of_all_ways_to_lay_a_slide_follow_from_one(way: int) -> None:
    picture = overview(3)
    laid = np.rot90(picture, way % 4)[:, :: -1 if way > 3 else 1]
    found = turned_hashes([hash_of(picture)])[0]
    assert int(hash_of(laid), 16) in found.tolist()
    assert found[0] == int(hash_of(picture), 16)


def test_an_empty_slide_has_no_hash_and_what_was_not_scanned_counts_as_glass() -> None:
    glass = np.full((200, 300, 3), 243, np.uint8)
    assert hash_of(glass) == ""
    picture = overview(1)
    opaque = np.ones(picture.shape[:2], bool)
    opaque[:20] = False
    black = picture.copy()
    black[:20] = 0
    assert thumbnail_hash(black, opaque) == thumbnail_hash(picture, opaque)
    assert thumbnail_hash(picture, np.zeros_like(opaque)) == ""


def test_a_hash_is_sixteen_digits_or_nothing() -> None:
    assert is_thumbnail_hash(hash_of(overview(0)))
    assert is_thumbnail_hash("")
    for wrong in ("A" * 16, "0" * 15, "0" * 17, "0" * 16 + "\n", 5, None, np.zeros(3), b"0" * 16):
        assert not is_thumbnail_hash(wrong)


def reference(n: int = 12, dim: int = 24, seed: int = 0, prefix: str = "s") -> Reference:
    """Different slides of one stain: raw, their embeddings are all nearly parallel."""
    rng = np.random.default_rng(seed)
    means = 50 + rng.normal(size=(n, dim))
    hashes = tuple(f"{value:016x}" for value in rng.integers(0, 1 << 63, n, dtype=np.int64))
    names = tuple(f"{prefix}{place:02d}" for place in range(n))
    return Reference(names, names, means.astype(np.float32), np.full((n, 3), np.nan, np.float32), np.ones(n), hashes)


def with_copy(of: Reference, noise: float = 0.1, bits: int = 3, name: str = "copy") -> Reference:
    """And a copy of its fifth slide: some bits of the hash differ, and the embedding by some noise."""
    rng = np.random.default_rng(9)
    hashed = f"{int(of.thumbnail_hashes[4], 16) ^ ((1 << bits) - 1):016x}"
    means = of.embeddings[4] + noise * rng.normal(size=of.embeddings.shape[1])
    return Reference(
        (*of.slide_ids, name),
        (*of.patient_ids, name),
        np.vstack([of.embeddings, means]).astype(np.float32),
        np.vstack([of.mean_rgb, of.mean_rgb[:1]]),
        np.append(of.mpp, 1.0),
        (*of.thumbnail_hashes, hashed),
    )


def test_a_copy_is_found_and_nothing_else_is() -> None:
    plain = reference()
    raw = plain.embeddings / np.linalg.norm(plain.embeddings, axis=1, keepdims=True)
    assert ((raw @ raw.T) > 0.999).all()  # which is why they are standardised
    assert near_duplicates(plain) == []
    (pair,) = near_duplicates(with_copy(plain))
    assert (pair.first, pair.second, pair.bits) == ("s04", "copy", 3)
    assert pair.cosine > 0.98


def test_either_condition_alone_is_not_enough() -> None:
    assert near_duplicates(with_copy(reference(), bits=MOST_BITS)) != []
    assert near_duplicates(with_copy(reference(), bits=MOST_BITS + 1)) == []
    assert near_duplicates(with_copy(reference(), noise=0.8, bits=CLOSE_BITS)) != []
    assert near_duplicates(with_copy(reference(), noise=0.8, bits=CLOSE_BITS + 1)) == []
    assert near_duplicates(with_copy(reference(), noise=4.0)) == []


def test_a_copy_is_found_among_other_slides_however_it_was_laid() -> None:
    seen = reference(n=30, seed=1)
    new = with_copy(reference(n=5, seed=2, prefix="q"), name="q99")
    assert near_duplicates(seen, new) == []
    for way in range(8):
        turned = int(turned_hashes([seen.thumbnail_hashes[7]])[0, way])
        hashes = (*new.thumbnail_hashes[:-1], f"{turned:016x}")
        means = np.vstack([new.embeddings[:-1], seen.embeddings[7:8]])
        copied = Reference(new.slide_ids, new.patient_ids, means, new.mean_rgb, new.mpp, hashes)
        (pair,) = near_duplicates(seen, copied)
        assert (pair.first, pair.second, pair.bits) == ("s07", "q99", 0)


def test_slides_without_a_hash_are_counted_and_in_no_pair() -> None:
    copied = with_copy(reference())
    hashes = (*copied.thumbnail_hashes[:-1], "")
    blind = Reference(copied.slide_ids, copied.patient_ids, copied.embeddings, copied.mean_rgb, copied.mpp, hashes)
    assert (without_hash(copied), without_hash(blind)) == (0, 1)
    assert near_duplicates(blind) == []


def test_embeddings_that_do_not_vary_and_few_slides_are_no_trouble() -> None:
    copied = with_copy(reference(), noise=0.0)
    flat = np.hstack([copied.embeddings, np.full((len(copied.slide_ids), 3), 0.1, np.float32)])
    one = Reference(copied.slide_ids, copied.patient_ids, flat, copied.mean_rgb, copied.mpp, copied.thumbnail_hashes)
    assert near_duplicates(one) == near_duplicates(copied)
    assert near_duplicates(copied.at([4, 12])) == []
    assert [pair.second for pair in near_duplicates(copied.at([4, 12, 0]))] == ["copy"]
    assert near_duplicates(copied.at([])) == []


def test_many_slides_are_compared_in_blocks() -> None:
    many = with_copy(reference(n=2500, dim=4))
    assert ("s04", "copy") in [(pair.first, pair.second) for pair in near_duplicates(many)]


def test_extraction_stores_the_hash_of_the_overview_also_under_hand_made_outlines(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    rest = ["--slides", str(slides), "--backbone", "colour", *OPTIONS]
    assert main(["tile", "--slides", str(slides), "--out", str(tmp_path / "tiled"), *OPTIONS[:4]]) == 0
    outlines = next((tmp_path / "tiled").rglob("*.geojson")).parent
    assert main(["extract", "--out", str(tmp_path / "a"), *rest]) == 0
    assert main(["extract", "--out", str(tmp_path / "b"), "--outlines", str(outlines), *rest]) == 0
    found = [read_embeddings(find_embeddings(tmp_path / name)["s0"]).thumbnail_hash for name in "ab"]
    with open_slide(slides / "s0.tiff") as slide:
        wanted = thumbnail_hash(*slide.read_overview(8.0))
    assert len(wanted) == 16
    assert found == [wanted, wanted]
    before = files_below(tmp_path / "a", "*.h5")
    assert main(["extract", "--out", str(tmp_path / "a"), *rest]) == 0
    assert files_below(tmp_path / "a", "*.h5") == before


@pytest.mark.parametrize(
    "forged", ["x" * 16, "0" * 15, "0" * 400_000, 5, np.zeros(4), b"\xff" * 16], ids=lambda v: str(v)[:12]
)
def test_a_forged_hash_is_refused_even_behind_a_right_digest(tmp_path: Path, forged: Any) -> None:
    path = tmp_path / "a.h5"
    write_embeddings(path, embeddings())
    with h5py.File(path, "a") as file:
        file.attrs["thumbnail_hash"] = forged
        attributes = {name: file.attrs[name] for name in file.attrs}
        file.attrs["metadata_sha256"] = metadata_sha256(attributes, file["failed"][:])
    reseal(path)
    for check in ("shape", "digests"):
        with pytest.raises(
            EmbeddingsDamagedError, match=r"a\.h5 states a thumbnail_hash|a\.h5 cannot be read"
        ) as caught:
            read_embeddings(path, check)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_file_without_a_hash_has_none_and_another_cache_may_know_it(tmp_path: Path) -> None:
    path, known = tmp_path / "a.h5", replace(embeddings(), thumbnail_hash="0123456789abcdef")
    write_embeddings(path, embeddings())
    with h5py.File(path) as file:
        assert "thumbnail_hash" not in file.attrs
    assert read_embeddings(path).thumbnail_hash == ""
    write_embeddings(path, known)
    assert read_embeddings(path).thumbnail_hash == known.thumbnail_hash
    assert facts_of([embeddings(), known]).thumbnail_hash == known.thumbnail_hash


@pytest.mark.long
@pytest.mark.skipif(not REAL, reason="PATHFM_TEST_SLIDES is not set")
def test_real_scans_are_told_apart_and_their_copies_are_not() -> None:
    root = Path(str(REAL))
    table = pd.read_csv(root / "cohort.csv")
    pictures = []
    for path, mpp in zip(table["path"], table["mpp"], strict=True):
        with open_slide(root / path, mpp_override=None if np.isnan(mpp) else float(mpp)) as slide:
            pictures.append(slide.read_overview(8.0)[0])
    hashes = [hash_of(picture) for picture in pictures]
    apart = [bits_between(one, other) for one, other in itertools.combinations(hashes, 2)]
    print(f"least bits between {len(apart)} pairs of {len(hashes)} scans: {min(apart)}")
    assert min(apart) > MOST_BITS
    for name, copied in COPIES.items():
        bits = [bits_between(known, hash_of(copied(one))) for known, one in zip(hashes, pictures, strict=True)]
        print(f"{name}: most bits {max(bits)}")
        assert max(bits) <= MOST_BITS
