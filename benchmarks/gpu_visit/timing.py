"""Measure time on PyTorch's device, waiting for the GPU, which executes calls asynchronously."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def device() -> torch.device:
    """The first GPU, or the processor in a rehearsal."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the GPU has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], count: int, turns: int, warm: int = 3) -> list[float]:
    """Seconds that a call takes when `count` of them follow each other, for each of some turns.

    The first calls, `warm` of them, are not counted: they choose and load kernels.
    """
    for _ in range(warm):
        run()
    result = []
    for _ in range(turns):
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        synchronize()
        result.append((time.perf_counter() - start) / count)
    return result


def median_and_range(rates: list[float]) -> dict[str, float]:
    """Median, lowest and highest of some rates."""
    return {name: round(pick(rates), 2) for name, pick in (("median", statistics.median), ("min", min), ("max", max))}
