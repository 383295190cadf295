"""Measure whether two execution contexts of an engine are faster together than one.

A network leaves multiprocessors of a GPU idle wherever a kernel is smaller than the GPU. A second network, computing
another frame at the same time, can use them, but it takes memory and shares the GPU's cache.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

GAIN = 1.03
"""A second context is kept if it makes the engine faster by this factor, since it takes memory."""
ROUNDS = 5
SECONDS = 0.1
"""Approximate length of a turn.

The two candidates run in turns, and the median of each counts, because clocks rise and fall.
"""
LONGEST = 2.0
"""Seconds after which no further round starts, however slow the network is."""


class Context(Protocol):
    """An execution context with a stream of its own; see `gpu_worker.GpuNetwork`."""

    def run(self) -> None:
        """Queue one run of the network and return at once."""

    def synchronize(self) -> None:
        """Wait until all queued runs are done."""


def measure(contexts: Sequence[Context], clock: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """Measure the first context alone and all of them together, without copies of frames.

    Args:
        contexts: Execution contexts of one engine on one GPU; each has run before.
        clock: Returns the time in seconds.

    Returns:
        (frames per second of the first context, frames per second of all contexts together), medians.

    Raises:
        EngineError: A run fails.
    """

    def rate(taking_part: Sequence[Context], frames: int) -> float:
        start = clock()
        for n in range(frames):
            taking_part[n % len(taking_part)].run()
        for context in taking_part:
            context.synchronize()
        return frames / max(clock() - start, 1e-9)

    count = len(contexts)
    warm = rate(contexts[:1], count)  # also raises the GPU's clocks
    frames = count * max(1, round(SECONDS * warm / count))  # a multiple of `count`: each computes the same number
    alone, together = [], []
    start = clock()
    for _ in range(ROUNDS):
        alone.append(rate(contexts[:1], frames))
        together.append(rate(contexts, frames))
        if clock() - start > LONGEST:
            break
    return statistics.median(alone), statistics.median(together)
