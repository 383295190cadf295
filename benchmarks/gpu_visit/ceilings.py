"""Measure the ceilings of the GPU: copies, matrix products, transfers to and from the host."""

import mmap
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device, seconds
from vsfdatrd.backends.gpu import cuda


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Measure each ceiling; the first that fails leaves the ones before it on record."""
    result: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        result[name] = round(value, 2)
        record({"ceilings": result})

    count = sizes.copy_bytes // 4
    add("copy_gbs", 2 * sizes.copy_bytes / time_copy(count, sizes.turns) / 1e9)  # read and written
    for name, dtype in (("fp16_tf", torch.float16), ("bf16_tf", torch.bfloat16)):
        add(name, 2 * sizes.matrix**3 / time_product(sizes.matrix, dtype, sizes.turns) / 1e12)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    time_transfers(sizes, add)


def time_copy(count: int, turns: int) -> float:
    """Seconds for copying `count` float32 values within the device memory."""
    source, target = (torch.ones(count, dtype=torch.float32, device=device()) for _ in range(2))
    return statistics.median(seconds(lambda: target.copy_(source), 10, turns))


def time_product(side: int, dtype: torch.dtype, turns: int) -> float:
    """Seconds for a product of square matrices.

    Their values are random: zeros draw less power, and run faster than any network's.
    """
    a, b = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))
    return statistics.median(seconds(lambda: a @ b, 5, turns))


def time_transfers(sizes: Sizes, add: Callable[[str, float], None]) -> None:
    """Host to device, back, and both at once, with shared memory pinned in place, as in the engines."""
    cuda.require_driver()
    cuda.set_device(0)
    size = sizes.transfer_bytes
    with ExitStack() as held:
        memory = mmap.mmap(-1, 2 * size)
        memory[::4096] = b"\1" * len(range(0, 2 * size, 4096))  # touch every page
        start = time.perf_counter()
        held.enter_context(cuda.PinnedMemory(cuda.host_address(memory), len(memory)))
        add("pinning_ms", 1000 * (time.perf_counter() - start))
        there, back = (held.enter_context(cuda.Stream()) for _ in range(2))
        target, source = (held.enter_context(cuda.DeviceMemory(size)) for _ in range(2))
        base = cuda.host_address(memory)

        def up() -> None:
            there.upload(target, base)

        def down() -> None:
            back.download(base + size, source)

        for name, directions in (("h2d_gbs", (up,)), ("d2h_gbs", (down,)), ("both_gbs", (up, down))):
            turns = []
            for _ in range(1 + sizes.turns):
                start = time.perf_counter()
                for go in directions:
                    go()
                there.synchronize()
                back.synchronize()
                turns.append(time.perf_counter() - start)
            add(name, len(directions) * size / statistics.median(turns[1:]) / 1e9)
