"""Memory that two processes map."""

import os
from pathlib import Path

import numpy as np
import pytest

from vsfdatrd.workers.shared_memory import SharedMemory, map_shared, slot_buffers


def test_buffers_lie_apart_in_one_memory() -> None:
    memory = SharedMemory()
    size = 4 * 2 * (3 * 4 * 5 + 3 * 8 * 10)
    result = slot_buffers(memory.resize(size), 2, [3, 4, 5], [3, 8, 10])
    for i, array in enumerate(array for pair in result for array in pair):
        array.fill(i + 1)
    assert memory.map is not None
    values = np.frombuffer(memory.map, np.float32).copy()
    np.testing.assert_array_equal(values, np.repeat([1, 2, 3, 4], [60, 240, 60, 240]).astype(np.float32))
    del result, array
    memory.close()
    assert memory.fd == -1


def test_shared_memory_without_memfd_is_a_file_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory()
    assert isinstance(memory.address, str)
    memory.resize(4096)
    assert Path(memory.address).stat().st_size == 4096
    path = Path(memory.address)
    memory.close()
    assert not path.exists()


def test_a_killed_process_leaves_no_file_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory()
    ours = memory.resize(4096)
    theirs = map_shared(memory.address, 4096)
    assert not Path(str(memory.address)).exists()
    ours[:5] = b"frame"
    assert theirs[:5] == b"frame"
    theirs.close()
    memory.close()
