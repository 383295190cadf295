"""Frames through an engine, one at a time."""

import numpy as np

from vsfdatrd.backends.base import Engine, FramePlanes


def run(engine: Engine, picture: FramePlanes, slot: int = 0) -> FramePlanes:
    """A copy of the engine's output for a picture (C, H, W)."""
    np.copyto(engine.input(slot), picture)
    engine.submit(slot)
    return engine.collect(slot).copy()
