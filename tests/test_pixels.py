from __future__ import annotations

import numpy as np
import pytest

from pathfm.pixels import on_white


@pytest.mark.parametrize("size", [(0, 5), (1, 1), (63, 9), (64, 3), (200, 70)])
def test_a_pixel_on_white_is_its_colour_and_white_by_their_shares(size: tuple[int, int]) -> None:
    rgba = np.random.default_rng(size[0]).integers(0, 256, (*size, 4), dtype=np.uint8)
    rgba[:1] = 0  # as OpenSlide gives what the slide does not have
    share = rgba[..., 3:] / 255.0
    wanted = np.rint(share * rgba[..., :3] + (1 - share) * 255)  # of 255ths, so never a half
    rgb, opaque = on_white(rgba)
    assert rgb.dtype == np.uint8
    assert np.array_equal(rgb, wanted)
    if rgba.size:
        assert opaque is not None
        assert np.array_equal(opaque, rgba[..., 3] >= 128)
    filled = np.zeros((size[0], 2 * size[1], 3), np.uint8)[:, ::2]  # not contiguous, as a tile's place need not be
    assert on_white(rgba, filled)[0] is filled
    assert np.array_equal(filled, wanted)


def test_a_picture_without_missing_pixels_is_itself_and_says_so() -> None:
    rgba = np.full((70, 3, 4), 255, np.uint8)
    rgba[..., :3] = np.random.default_rng(0).integers(0, 256, (70, 3, 3), dtype=np.uint8)
    rgb, opaque = on_white(rgba)
    assert opaque is None
    assert np.array_equal(rgb, rgba[..., :3])
