"""Memory that is shared with other processes: lent, written to from there, lent again when nobody has it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from runs import wait_for

from pathfm.isolation import Limits, isolated_on, lent_block
from pathfm.sharedmemory import SharedMemory, mapped

if TYPE_CHECKING:
    from numpy.typing import NDArray


def address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory()


def test_what_another_process_writes_is_seen_here(memory: SharedMemory) -> None:
    memory.lend(5000)
    block = memory.lend(5000)
    program = (
        "import sys; from pathfm.sharedmemory import Place, mapped;"
        " fd, *place = map(int, sys.argv[1:]); mapped(fd, Place(*place))[:] = 7"
    )
    words = [str(memory.descriptor), str(block.place.offset), str(block.place.n_bytes)]
    subprocess.run([sys.executable, "-c", program, *words], check=True, pass_fds=[memory.descriptor])
    assert (block.pixels == 7).all()


def test_blocks_that_are_lent_at_a_time_never_overlap(memory: SharedMemory) -> None:
    blocks = [memory.lend(n_bytes) for n_bytes in (1, 4096, 4097, 100_000, 1)]
    for value, block in enumerate(blocks):
        block.pixels[:] = value
    for value, block in enumerate(blocks):
        assert (block.pixels == value).all()
        assert (mapped(memory.descriptor, block.place) == value).all()


@pytest.mark.parametrize("view", [lambda a: a[3:].reshape(-1, 1), lambda a: a.view(np.int8), lambda a: a.T])
def test_a_block_is_lent_again_only_after_the_last_view_of_it(memory: SharedMemory, view: Any) -> None:
    block = memory.lend(1000)
    where, kept = address(block.pixels), view(block.pixels)
    del block
    gc.collect()
    other = memory.lend(1000)
    assert address(other.pixels) != where
    del kept
    gc.collect()
    assert address(memory.lend(1000).pixels) == where


def test_a_block_is_not_lent_again_while_a_call_may_write_to_it() -> None:
    limits = Limits(60.0, 1.0625)
    block = lent_block(limits, 2, 1000)
    where = address(block.pixels)
    call = isolated_on(0, block, Path("slide.tiff"), limits, 2, time.sleep, 0.5)
    del block
    assert address(lent_block(limits, 2, 1000).pixels) != where
    call.result()
    del call
    assert wait_for(lambda: where in {address(lent_block(limits, 2, 1000).pixels) for _ in range(2)})


def test_blocks_that_python_clears_away_while_another_is_lent_come_back(memory: SharedMemory) -> None:
    """In a circle, as an error makes one, a block is given back by whatever sets the garbage collector off."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(2000):
            circle: list[Any] = [memory.lend(5000)]
            circle.append(circle)
            del circle
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    memory.lend(5000)
    assert os.fstat(memory.descriptor).st_size < 100 * 8192


def test_memory_does_not_grow_where_blocks_are_given_back(memory: SharedMemory) -> None:
    for value in range(1000):
        memory.lend(10_000).pixels[:] = value % 256
    assert os.fstat(memory.descriptor).st_size <= 20_000
