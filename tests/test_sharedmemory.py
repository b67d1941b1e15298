"""Memory that is shared with other processes: lent, written to from there, lent again when nobody has it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

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


def test_a_block_is_not_lent_again_while_a_call_may_write_to_it(memory: SharedMemory) -> None:
    calls: list[Future[None]] = [Future(), Future(), Future()]
    block = memory.lend(1000)
    where = address(block.pixels)
    for call in calls:
        block.written_by(call)
    del block
    calls[0].set_result(None)
    calls[1].set_exception(ValueError())
    assert address(memory.lend(1000).pixels) != where
    calls[2].cancel()
    assert where in {address(lent.pixels) for lent in [memory.lend(1000) for _ in range(2)]}


def test_memory_does_not_grow_where_blocks_are_given_back(memory: SharedMemory) -> None:
    for value in range(1000):
        memory.lend(10_000).pixels[:] = value % 256
    assert os.fstat(memory.descriptor).st_size <= 20_000
