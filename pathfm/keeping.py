"""Where bags lie between the epochs of a training: on disk, in memory, or on the accelerator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pathfm.progress import logger

if TYPE_CHECKING:
    from pathfm.bags import BagDataset
    from pathfm.settings import TrainSettings

_SHARE = 0.5  # of the free room that bags may take: the training and others need some too
_CPU = torch.device("cpu")
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**63


def keep_bags(bags: BagDataset, device: torch.device, settings: TrainSettings) -> None:
    """Has bags stay where the settings say; the log says where that is.

    Auto takes the accelerator where the bags fill at most half of its free memory, else the memory under the same
    condition, else each epoch reads them from disk. Bags that lie somewhere already stay there: what they fill is not free,
    so that the next fit would send them elsewhere. Of several processes each holds bags of its own, in memory.

    Args:
        bags: the dataset.
        device: on which the training runs.
        settings: say where.
    """
    if settings.devices > 1:
        device = _CPU
    places = {"disk": None, "memory": _CPU, "device": device}
    if settings.keep != "auto":
        place = places[settings.keep]
    elif bags.place is not None:
        return
    else:
        size = bags.size_bytes * settings.devices
        place = next((one for one in dict.fromkeys([device, _CPU]) if size <= _SHARE * free_bytes(one)), None)
    if place != bags.place:
        named = "on disk" if place is None else "in memory" if place == _CPU else f"on the device {place}"
        each = f", by each of {settings.devices} processes" if place and settings.devices > 1 else ""
        logger.info("bags of %.1f GiB are kept %s%s", bags.size_bytes / 2**30, named, each)
    bags.keep_on(place)


def free_bytes(place: torch.device) -> int:
    """Memory that is free on a device, the CPU being one; that of a container where it has less than the machine."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    return min(_machine_bytes(), _container_bytes())


def total_bytes(place: torch.device) -> int:
    """Memory of a device, whatever is in use of it, the CPU being one; that of a container where it has less."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[1])
    if place.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return min(_physical_bytes(), _container("max"))


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: half of all that there is stands for what is free
        return _physical_bytes() // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> int:
    most = _container("max")
    return max(most - _container("current"), 0) if most < _NO_LIMIT else _NO_LIMIT


def _container(what: str) -> int:
    try:
        return int((_CGROUP / f"memory.{what}").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one without a limit
        return _NO_LIMIT
