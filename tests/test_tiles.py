from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathfm.errors import InputError, MppError
from pathfm.tiles import TileSpec, tile_slide
from pathfm.tissue import TissueMask


class Scan:
    """What the grid asks of a slide: its size and its scale."""

    def __init__(self, size_px0: tuple[int, int], mpp: float) -> None:
        self.size_px0, self.mpp, self.path = size_px0, mpp, "scan.tiff"
        self.unreadable_px0: tuple[tuple[float, float, float, float], ...] = ()


def all_tissue(size_px0: tuple[int, int], mpp: float) -> TissueMask:
    return TissueMask(np.ones((int(size_px0[1] * mpp / 8) + 1, int(size_px0[0] * mpp / 8) + 1), bool), 8.0)


def grid(size_px0: tuple[int, int], mpp: float, spec: TileSpec, mask: TissueMask | None = None) -> Any:
    scan: Any = Scan(size_px0, mpp)
    return tile_slide(scan, mask or all_tissue(size_px0, mpp), spec)


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    mpp=st.floats(0.2, 1.1),
    tile_mpp=st.floats(1.0, 2.0),
    size_px=st.integers(32, 300),
    stride_share=st.floats(0.4, 1.6),
)
def test_the_grid_is_whole_tiles_in_order_without_drift(
    width: int, height: int, mpp: float, tile_mpp: float, size_px: int, stride_share: float
) -> None:
    stride_px = max(1, round(size_px * stride_share))
    tiles = grid((width, height), mpp, TileSpec(size_px, tile_mpp, stride_px, 0.0))
    extent_px0, stride_px0 = size_px * tile_mpp / mpp, stride_px * tile_mpp / mpp
    assert tiles.extent_px0 == pytest.approx(extent_px0)
    assert tiles.coords.dtype == np.int32
    assert [tuple(c) for c in tiles.coords[:, ::-1]] == sorted(tuple(c) for c in tiles.coords[:, ::-1])
    for axis, length in ((0, width), (1, height)):
        starts = np.unique(tiles.coords[:, axis])
        assert (np.abs(starts - np.arange(len(starts)) * stride_px0) <= 0.5 + 1e-6).all()
        assert (starts + extent_px0 <= length + 1e-6).all()
        if len(tiles):
            # One more column would not fit.
            assert np.floor(len(starts) * stride_px0 + 0.5) + extent_px0 > length
    if min(width, height) >= extent_px0:
        assert len(tiles) == len(np.unique(tiles.coords[:, 0])) * len(np.unique(tiles.coords[:, 1])) > 0


@pytest.mark.parametrize("size_px0", [(223, 5000), (5000, 223), (16, 16), (1, 1)])
def test_a_slide_smaller_than_a_tile_has_none(size_px0: tuple[int, int]) -> None:
    tiles = grid(size_px0, 0.5, TileSpec(224, 0.5, min_tissue=0.0))
    assert tiles.coords.shape == (0, 2)


def test_only_tiles_with_enough_tissue_are_kept() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, 16:] = True
    mask[32:, 8:16] = True
    kept = {
        least: grid((1024, 1024), 0.5, TileSpec(256, 0.5, min_tissue=least), TissueMask(mask, 8.0))
        for least in (0.0, 0.3, 0.5, 0.51, 1.0)
    }
    assert {least: len(tiles) for least, tiles in kept.items()} == {0.0: 16, 0.3: 14, 0.5: 14, 0.51: 12, 1.0: 12}
    assert sorted(set(kept[0.0].coverage.tolist())) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("mpp", "tile_mpp", "fine"),
    [(0.5, 0.5, True), (0.263, 0.25, True), (1.052, 1.0, True), (0.5, 0.4, False), (1.0, 0.5, False)],
)
def test_tiles_finer_than_the_scan_by_over_ten_percent_are_refused(mpp: float, tile_mpp: float, fine: bool) -> None:
    if fine:
        assert len(grid((2000, 2000), mpp, TileSpec(64, tile_mpp)))
        return
    with pytest.raises(MppError, match=r"--tiles\.allow_upsampling true") as caught:
        grid((2000, 2000), mpp, TileSpec(64, tile_mpp))
    assert caught.value.reason == "upsampling"
    assert len(grid((2000, 2000), mpp, TileSpec(64, tile_mpp, allow_upsampling=True)))


def test_a_stride_below_a_pixel_of_the_scan_is_refused_for_its_tiles_would_coincide() -> None:
    spec = TileSpec(64, 0.25, 3, allow_upsampling=True)
    with pytest.raises(InputError, match=r"--tiles\.stride_px"):
        grid((500, 500), 1.0, spec)
    assert len(np.unique(grid((90, 90), 0.75, spec).coords, axis=0)) == len(grid((90, 90), 0.75, spec)) > 1000


def test_a_grid_too_large_for_memory_is_refused_before_it_is_laid() -> None:
    small = TissueMask(np.ones((8, 8), bool), 8.0)
    with pytest.raises(InputError, match=r"--tiles\.stride_px"):
        grid((2_000_000, 2_000_000), 0.5, TileSpec(224, 0.5, 1), small)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size_px", 0), ("size_px", 100_000), ("mpp", 0.0), ("mpp", float("nan")), ("stride_px", 0), ("min_tissue", 1.5)],
)
def test_a_tile_spec_out_of_range_is_refused_by_its_flag(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--tiles.{field}"):
        TileSpec(**{field: value})


def test_what_a_spec_leaves_open_comes_from_the_backbone() -> None:
    assert TileSpec().resolved(224, 0.5) == TileSpec(224, 0.5, 224)
    assert TileSpec(mpp=1.0, min_tissue=0.1).resolved(256, 0.5) == TileSpec(256, 1.0, 256, 0.1)
    assert TileSpec(128, 1.0, 64).resolved(224, 0.5) == TileSpec(128, 1.0, 64)
    with pytest.raises(InputError, match=r"--tiles\.size_px"):
        grid((2000, 2000), 0.5, TileSpec())


def test_tiles_where_the_slide_could_not_be_read_are_kept_to_be_tried() -> None:
    scan: Any = Scan((1024, 1024), 0.5)
    scan.unreadable_px0 = ((256.0, 512.0, 512.0, 768.0), (700.0, 0.0, 730.0, 40.0))
    nothing = TissueMask(np.zeros((65, 65), bool), 8.0)
    tiles = tile_slide(scan, nothing, TileSpec(128, 0.5, 128))
    assert tiles.coords.tolist() == [[256, 512], [384, 512], [256, 640], [384, 640]]
