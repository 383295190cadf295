"""Choose how many frames of an engine are computed, and how many are in flight, from short measurements.

A network leaves multiprocessors of a GPU idle wherever a kernel is smaller than the GPU. A second network, computing
another frame at the same time, can use them, but it takes memory and shares the GPU's cache.

While a frame is copied, converted and replaced by the next one, the GPU needs others to compute: the cheaper a frame,
the more of them.
"""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Protocol

MIN_GAIN = 1.03
"""A second context is kept if it makes the engine faster by this factor, since it takes memory."""
MEASUREMENT_ROUNDS = 5
TURN_SECONDS = 0.1
"""Approximate length of a turn. The candidates run in turns, and the median of each counts: clocks rise and fall."""
BRIEF_SECONDS = 0.05
"""Approximate length of `measure_rate` in seconds."""
LATENCY, BYTES_PER_SECOND = 0.001, 4.8e9
"""Time that a frame spends outside the network, for a latency and for the bytes of its input and output.

On two threads of two cores at 720×540 → 1440×1080 it was 5.9 ms, of which 1.2 ms are the copies to and from a GPU at 20
GB/s (`benchmarks.host_path`).
"""
MAX_SLOTS = 8
"""Most frames in flight on a GPU, since each takes memory on the GPU and in the machine."""
MAX_SECONDS = 2.0
"""Seconds after which no further round starts, however slow the network is."""


class Context(Protocol):
    """An execution context with a stream of its own; see `server.GpuNetwork`."""

    def run(self) -> None:
        """Queue one run of the network and return at once."""

    def synchronize(self) -> None:
        """Wait until all queued runs are done."""


def measure_gain(contexts: Sequence[Context]) -> tuple[float, float]:
    """Measure the first context alone and all of them together, without copies of frames.

    Args:
        contexts: Execution contexts of one engine on one GPU; each has run before.

    Returns:
        (frames per second of the first context, frames per second of all contexts together), medians.

    Raises:
        EngineError: A run fails.
    """
    count = len(contexts)
    warm = run_in_turns(contexts[:1], count)  # also raises the GPU's clocks
    frames = count * max(1, round(TURN_SECONDS * warm / count))  # a multiple of `count`: each computes the same number
    alone, together = [], []
    start = time.perf_counter()
    for _ in range(MEASUREMENT_ROUNDS):
        alone.append(run_in_turns(contexts[:1], frames))
        together.append(run_in_turns(contexts, frames))
        if time.perf_counter() - start > MAX_SECONDS:
            break
    return statistics.median(alone), statistics.median(together)


def measure_rate(contexts: Sequence[Context]) -> float:
    """Return the frames per second of all contexts together, measured briefly as in `measure_gain`.

    Args:
        contexts: At least one context.

    Raises:
        EngineError: A run fails.
    """
    first = run_in_turns(contexts, len(contexts))
    frames = round(first * BRIEF_SECONDS)
    return run_in_turns(contexts, frames) if frames > len(contexts) else first


def needed_slots(contexts: int, rate: float, frame_bytes: int) -> int:
    """Return the number of frames in flight with which a GPU is always busy, at most `MAX_SLOTS`.

    They are the frames that are computed, those that are copied and converted meanwhile, and one that waits.

    Args:
        contexts: Execution contexts on the GPU.
        rate: Frames per second of all of them together.
        frame_bytes: Bytes of a frame's input and output.
    """
    seconds_outside = LATENCY + frame_bytes / BYTES_PER_SECOND
    return min(MAX_SLOTS, contexts + 1 + math.ceil(seconds_outside * rate))


def run_in_turns(contexts: Sequence[Context], frames: int) -> float:
    """Return the frames per second of contexts that compute frames in turn, queued back to back, without copies."""
    start = time.perf_counter()
    for n in range(frames):
        contexts[n % len(contexts)].run()
    for context in contexts:
        context.synchronize()
    return frames / max(time.perf_counter() - start, 1e-9)
