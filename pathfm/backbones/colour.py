"""`colour`: a backbone without weights, so that the whole road runs anywhere and every model has a humble rival.

Colour and texture statistics of a tile in optical-density (OD) space. The `colour_` features say which stain and how
much; the `texture_` features are taken from the haematoxylin image divided by the tile's own contrast, so that two
scanners' tints of one tissue give nearly the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001) 291-299: OD of red, green, blue per unit of stain.
_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)

_QUANTILES = (0.1, 0.5, 0.9)
_POOLS = (1, 2, 4, 8, 16)
_DARK_SIEVES = 4
_PALE_SIEVES = 3
_PEAK_POOLS = (2, 4)
_FRACTION_POOLS = (1, 4, 8)
_COHERENCE_POOLS = (4, 16)
# OD below which contrast is noise: it keeps white and black tiles finite and near zero.
_NOISE_OD = 0.02
_GLASS_OD = 0.1


def _names() -> tuple[str, ...]:
    """The features in order, as `forward` gives them."""
    od = [f"colour_od_{what}_{c}" for what in ("mean", "std", "q10", "q50", "q90") for c in "rgb"]
    stain = [f"colour_{stain}_{what}" for what in ("mean", "std") for stain in ("h", "e", "rest")]
    shape = [f"texture_{what}_{k}" for what in ("skew", "tail") for k in _POOLS[:-1]]
    bands = [f"texture_{image}_band_{k}" for image in ("h", "od") for k in (*_POOLS[:-1], "rest")]
    grains = [
        f"texture_{what}_{k + 1}" for what, n in (("dark", _DARK_SIEVES), ("pale", _PALE_SIEVES)) for k in range(n)
    ]
    peaks = [f"texture_peaks_{k}" for k in _PEAK_POOLS]
    dark = [f"texture_above_{k}_{z}" for k in _FRACTION_POOLS for z in (1, 2)]
    lines = ["texture_coherence_all", *(f"texture_coherence_{k}" for k in _COHERENCE_POOLS), "texture_gradient"]
    return (*od, *stain, "colour_glass", "colour_h_e_correlation", *shape, *bands, *grains, *peaks, *dark, *lines)


FEATURES = _names()
"""What each dimension is: `colour_...` moves with the stain, `texture_...` is relative to the tile's own contrast."""


class ColourTexture(nn.Module):
    """Colour and texture statistics of a tile.

    Deterministic, without weights, on any device; a tile's numbers do not depend on the batch it came in.

    Attributes:
        dim: length of an embedding.
        VERSION: raised whenever a number changes, so that caches made before are told apart.
    """

    VERSION: int = 1
    dim: int = len(FEATURES)
    stains: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stains", _unmixing(), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """The statistics of each tile.

        Args:
            tiles: float32 (b, 3, h, w), RGB in [0, 1], h and w at least 32; one pixel is best 0.25 to 1 um.

        Returns:
            float32 (b, dim), finite, of order 1, in the order of `FEATURES`.
        """
        od = -torch.log10((tiles * 255 + 1) / 256)
        stains = torch.einsum("sc,bchw->bshw", self.stains, od)
        dense = torch.stack([stains[:, 0], od.mean(1)], dim=1)
        relative = (dense - _mean(dense)[..., None, None]) / (_std(dense) + _NOISE_OD)[..., None, None]
        pyramids = [relative]
        for _ in _POOLS[1:]:
            pyramids.append(functional.avg_pool2d(pyramids[-1], 2))
        haematoxylin = [level[:, :1] for level in pyramids]
        parts = [
            _colour(od, stains),
            _correlation(stains),
            _tails(haematoxylin),
            _bands(pyramids),
            _grains(haematoxylin[1]),
            _peaks(haematoxylin),
            _dark(haematoxylin),
            _lines(haematoxylin[1]),
        ]
        return torch.cat(parts, dim=1)


def _unmixing() -> Tensor:
    """(3, 3): OD of red, green, blue to amounts of haematoxylin, eosin and the rest, perpendicular to both."""
    h, e = torch.tensor(_HAEMATOXYLIN), torch.tensor(_EOSIN)
    basis = torch.stack([h, e, torch.linalg.cross(h, e)])
    unmixing: Tensor = torch.linalg.inv(functional.normalize(basis, dim=1))
    return unmixing.T.contiguous()


def _mean(image: Tensor) -> Tensor:
    """(b, c): row by row first, so that the order of summation does not follow the batch size."""
    return image.mean(3).mean(2)


def _std(image: Tensor) -> Tensor:
    centred = image - _mean(image)[..., None, None]
    return _mean(centred * centred).sqrt()


def _colour(od: Tensor, stains: Tensor) -> Tensor:
    """How much of which stain: (b, 22)."""
    ranked = functional.avg_pool2d(od, 4).flatten(2).sort(dim=2).values
    last = ranked.shape[2] - 1
    quantiles = [ranked[:, :, round(q * last)] for q in _QUANTILES]
    glass = _mean((od.amax(1, keepdim=True) < _GLASS_OD).float())
    return torch.cat([_mean(od), _std(od), *quantiles, _mean(stains), _std(stains), glass], dim=1)


def _correlation(stains: Tensor) -> Tensor:
    """Whether haematoxylin lies where eosin does: (b, 1) in [-1, 1]."""
    centred = stains[:, :2] - _mean(stains[:, :2])[..., None, None]
    both = _mean(centred[:, :1] * centred[:, 1:])
    scale = _std(stains[:, :2]) + _NOISE_OD
    return both / (scale[:, :1] * scale[:, 1:])


def _tails(levels: list[Tensor]) -> Tensor:
    """Skewness and weight of the tails at each scale: (b, 8). Roots bring moments back to order 1."""
    skews, tails = [], []
    for level in levels[:-1]:
        centred = level - _mean(level)[..., None, None]
        unit = centred / (_std(level) + _NOISE_OD)[..., None, None]
        square = unit * unit
        third = _mean(square * unit)
        skews.append(third.sign() * third.abs().pow(1 / 3))
        tails.append(_mean(square * square).pow(1 / 4))
    return torch.cat([*skews, *tails], dim=1)


def _bands(levels: list[Tensor]) -> Tensor:
    """Share of the contrast at each scale, roots of it: (b, 10).

    The variance lost from one average-pooled image to the next is the energy of the band between them.
    """
    variances = torch.stack([_std(level).square() for level in levels], dim=2)
    lost = (variances[..., :-1] - variances[..., 1:]).clamp(min=0)
    last = variances[..., -1:]
    return torch.cat([lost, last], dim=2).sqrt().flatten(1)


def _grains(image: Tensor) -> Tensor:
    """Granulometry (Matheron 1975): what is left of dark and of pale grains after sieves of growing width: (b, 7)."""
    dark, pale = image.clamp(0, 4), (-image).clamp(0, 4)
    return torch.cat([*_sieves(dark, _DARK_SIEVES), *_sieves(pale, _PALE_SIEVES)], dim=1)


def _sieves(image: Tensor, count: int) -> list[Tensor]:
    """Mean of the image opened by squares of 3, 5, 7, ... px."""
    left = []
    eroded = image
    for k in range(1, count + 1):
        eroded = -_widened(-eroded)
        opened = eroded
        for _ in range(k):
            opened = _widened(opened)
        left.append(_mean(opened))
    return left


def _widened(image: Tensor) -> Tensor:
    """Maximum over squares of 3 px, by shifts: pooling kernels of the CPU are many times slower."""
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = torch.maximum(torch.maximum(padded[..., :-2], padded[..., 1:-1]), padded[..., 2:])
    return torch.maximum(torch.maximum(rows[..., :-2, :], rows[..., 1:-1, :]), rows[..., 2:, :])


def _peaks(levels: list[Tensor]) -> Tensor:
    """Local maxima per pixel at two scales, each of the order of nuclei: (b, 2)."""
    counts = []
    for pool in _PEAK_POOLS:
        level = levels[_POOLS.index(pool)]
        peak = (level == _widened(level)) & (level > 1)
        counts.append(_mean(peak.float()) * 10)
    return torch.cat(counts, dim=1)


def _dark(levels: list[Tensor]) -> Tensor:
    """Share of pixels darker than the mean by one and two of the tile's own deviations, after blurring: (b, 6)."""
    chosen = [levels[_POOLS.index(pool)] for pool in _FRACTION_POOLS]
    return torch.cat([_mean((level > z).float()) for level in chosen for z in (1, 2)], dim=1)


def _lines(image: Tensor) -> Tensor:
    """Coherence of the gradient's orientation over the tile and in windows, and the gradient's size: (b, 4).

    Coherence is the structure tensor's anisotropy (Bigun and Granlund, ICCV 1987): 1 along straight fibres, 0 in a mess.
    """
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    tensor = torch.cat([dx * dx + dy * dy, dx * dx - dy * dy, 2 * dx * dy], dim=1)
    whole = _mean(tensor)
    windows = [whole[..., None, None]]
    windows += [functional.avg_pool2d(tensor, pool) for pool in _COHERENCE_POOLS]
    return torch.cat([*map(_anisotropy, windows), whole[:, :1].sqrt()], dim=1)


def _anisotropy(tensor: Tensor) -> Tensor:
    energy, across, diagonal = tensor.unbind(1)
    size = (across.square() + diagonal.square()).sqrt()
    return (size.mean(2).mean(1) / (energy.mean(2).mean(1) + _NOISE_OD))[:, None]
