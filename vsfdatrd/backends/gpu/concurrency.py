"""Choose from short measurements how many frames of an engine are computed at once, and how many are in flight.

A kernel that is too small for a GPU leaves multiprocessors idle. A second execution context, which computes another
frame at the same time, can use them, but it takes memory and shares the GPU's cache.

While one frame is copied and converted, the GPU needs other frames to compute. The less time the network takes for a
frame, the more of them are needed.
"""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Protocol

MIN_GAIN = 1.03
"""Smallest speedup for which a second context, which takes memory, is kept."""
MEASUREMENT_ROUNDS = 5
TURN_SECONDS = 0.1
"""Approximate length of a turn in seconds.

The candidates are measured in turns, and the median of each is used, because clock rates rise and fall.
"""
BRIEF_SECONDS = 0.05
"""Approximate duration of `measure_rate` in seconds."""
LATENCY, BYTES_PER_SECOND = 0.001, 4.8e9
"""Model of the seconds that a frame spends outside the network: LATENCY + (input and output bytes) / BYTES_PER_SECOND.

With two threads on two cores, 720×540 → 1440×1080 took 5.9 ms, including 1.2 ms for the copies to and from a GPU at 20
GB/s (`benchmarks.host_path`).
"""
MAX_SLOTS = 8
"""Maximum number of frames in flight on a GPU; each takes memory on the GPU and in the machine."""
MAX_SECONDS = 2.0
"""Seconds after which no further round of a measurement starts."""


class Context(Protocol):
    """An execution context with a stream of its own; see `execution_context.ExecutionContext`."""

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
    frames = count * max(1, round(TURN_SECONDS * warm / count))  # the same number of frames for every context
    alone, together = [], []
    start = time.perf_counter()
    for _ in range(MEASUREMENT_ROUNDS):
        alone.append(run_in_turns(contexts[:1], frames))
        together.append(run_in_turns(contexts, frames))
        if time.perf_counter() - start > MAX_SECONDS:
            break
    return statistics.median(alone), statistics.median(together)


def measure_rate(contexts: Sequence[Context]) -> float:
    """Return the frames per second of all contexts together, measured like `measure_gain`, but only briefly.

    Args:
        contexts: At least one context.

    Raises:
        EngineError: A run fails.
    """
    first = run_in_turns(contexts, len(contexts))
    frames = round(first * BRIEF_SECONDS)
    return run_in_turns(contexts, frames) if frames > len(contexts) else first


def needed_slots(contexts: int, rate: float, frame_bytes: int) -> int:
    """Return the number of frames in flight that keeps a GPU busy, at most `MAX_SLOTS`.

    It is the number of frames being computed, plus those being copied and converted at the same time, plus one that
    waits for the network.

    Args:
        contexts: Number of execution contexts on the GPU.
        rate: Frames per second of all contexts together.
        frame_bytes: Bytes of a frame's input and output.
    """
    seconds_outside = LATENCY + frame_bytes / BYTES_PER_SECOND
    return min(MAX_SLOTS, contexts + 1 + math.ceil(seconds_outside * rate))


def run_in_turns(contexts: Sequence[Context], frames: int) -> float:
    """Queue frames on the contexts in turn, back to back and without copies; return the frames per second."""
    start = time.perf_counter()
    for n in range(frames):
        contexts[n % len(contexts)].run()
    for context in contexts:
        context.synchronize()
    return frames / max(time.perf_counter() - start, 1e-9)
