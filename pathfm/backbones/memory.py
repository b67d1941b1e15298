"""How a CPU's memory is laid out and handed out, which decides how fast a network runs there."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    import torch

# Numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def channels_last_pays(model: nn.Module, device: torch.device) -> bool:
    """Whether a network runs faster with the channels of a pixel side by side: on a CPU, with windows that overlap.

    Each window of such a convolution is then gathered from a few runs of memory. Windows that do not overlap, as the
    patch embedding of a ViT, are a product of matrices in either layout.
    """
    return device.type == "cpu" and any(_overlaps(layer) for layer in model.modules())


def keep_activations_mapped() -> bool:
    """Has this process keep the memory of activations instead of giving it back after every layer; for CPUs.

    As set up, glibc maps each large block afresh and unmaps it when it is freed, so that every activation of every
    batch costs a page fault for each of its 4 KiB: half of the time of a ResNet. Here large blocks come from the heap
    too, the heap is never given back, and there is one heap, since those of further threads are too small for
    activations. The process keeps the largest amount it ever needed. This holds for all that the process allocates.

    Returns:
        Whether it was done; only on Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # older ones refuse such a threshold, and then never map at all
    from_heap = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_MAX, 0)
    return bool(from_heap and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_ARENA_MAX, 1))


def _overlaps(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return False
    return any(width > step for width, step in zip(layer.kernel_size, layer.stride, strict=True))
