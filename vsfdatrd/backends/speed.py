"""Measure the speed of engines on this machine, in turns, to select the fastest."""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import Engine, SlotPool

MEASURE_SECONDS = 1.0
"""Approximate time for which each engine is run; at least two turns."""
TURN_SECONDS = 0.25
"""Length of a turn in seconds.

The load of a machine varies, so engines run in turns and the best turn of each counts.
"""


def measure_rates(engines: Mapping[str, SlotPool]) -> dict[str, float]:
    """Measure engines in turns, with all their slots busy. Other filters that share an engine wait meanwhile.

    Args:
        engines: Open engines for frames of one size, by backend name.

    Returns:
        Frames per second of each engine.

    Raises:
        EngineError: An engine fails.
    """
    with contextlib.ExitStack() as stack:
        slots = {
            name: [stack.enter_context(pool.slot()) for _ in range(pool.engine.slots)] for name, pool in engines.items()
        }
        for name, pool in engines.items():
            for slot in slots[name]:
                frame = pool.engine.input(slot)
                np.copyto(frame, draw_line_art(*frame.shape[1:])[: len(frame)])
        best = dict.fromkeys(engines, 0.0)
        spent = dict.fromkeys(engines, 0.0)
        turns = 0  # at least two, since initialization slows down the first one
        while turns < 2 or max(spent.values()) < MEASURE_SECONDS:
            for name, pool in engines.items():
                frames, seconds = run_turn(pool.engine, slots[name], TURN_SECONDS)
                best[name] = max(best[name], frames / seconds)
                spent[name] += seconds
            turns += 1
    return best


def run_turn(engine: Engine, slots: Sequence[int], seconds: float) -> tuple[int, float]:
    """Run the frames in an engine's inputs repeatedly for about `seconds`, at least once in every slot.

    Args:
        engine: The engine.
        slots: Numbers of its slots.
        seconds: Time after which no more frames are submitted.

    Returns:
        (number of frames, seconds they took).
    """
    start = time.perf_counter()
    running = deque(slots)
    for slot in slots:
        engine.submit(slot)
    frames = 0
    while running:
        slot = running.popleft()
        engine.collect(slot)
        frames += 1
        if time.perf_counter() - start < seconds:
            engine.submit(slot)
            running.append(slot)
    return frames, max(time.perf_counter() - start, 1e-9)
