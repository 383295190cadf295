"""Time engines on this machine, by turns, so that the fastest can be chosen."""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from vsfdatrd.backends.accuracy import drawing
from vsfdatrd.backends.base import Engine, SlotPool

SECONDS = 1.0
"""Time that each engine is run for, about; two turns at least."""
TURN = 0.25
"""Seconds of a turn. A machine is busier at one time than at another: engines take turns, and the best one counts."""


def rates(engines: Mapping[str, SlotPool]) -> dict[str, float]:
    """Run engines with all their slots busy; other filters that share one wait meanwhile.

    Args:
        engines: Open engines for frames of one size, by their backends' names.

    Returns:
        Frames a second of each.

    Raises:
        EngineError: An engine fails.
    """
    with contextlib.ExitStack() as stack:
        slots = {
            name: [stack.enter_context(lanes.slot()) for _ in range(lanes.count)] for name, lanes in engines.items()
        }
        for name, lanes in engines.items():
            for slot in slots[name]:
                frame = lanes.engine.input(slot)
                np.copyto(frame, drawing(*frame.shape[1:])[: len(frame)])
        best = dict.fromkeys(engines, 0.0)
        spent = dict.fromkeys(engines, 0.0)
        first = True  # what is made ready with the first frames makes that turn slower, so it seldom counts
        while first or max(spent.values()) < SECONDS:
            for _ in range(2 if first else 1):
                for name, lanes in engines.items():
                    frames, seconds = _turn(lanes.engine, slots[name], TURN)
                    best[name] = max(best[name], frames / seconds)
                    spent[name] += seconds
            first = False
    return best


def _turn(engine: Engine, slots: Sequence[int], seconds: float) -> tuple[int, float]:
    """Run frames for so long, one in every slot at least. -> how many were done, in how many seconds."""
    start = time.perf_counter()
    running = deque(slots)
    for slot in slots:
        engine.submit(slot)
    done = 0
    while running:
        slot = running.popleft()
        engine.collect(slot)
        done += 1
        if time.perf_counter() - start < seconds:
            engine.submit(slot)
            running.append(slot)
    return done, max(time.perf_counter() - start, 1e-9)
