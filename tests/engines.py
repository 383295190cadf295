"""Frames through an engine, one at a time."""

from pathlib import Path

import numpy as np

from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.checkpoint import Checkpoint


def run(engine: Engine, picture: FramePlanes, slot: int = 0) -> FramePlanes:
    """A copy of the engine's output for a picture (C, H, W)."""
    np.copyto(engine.input(slot), picture)
    engine.submit(slot)
    return engine.collect(slot).copy()


def run_in_openvino(checkpoint: Checkpoint, picture: FramePlanes, directory: Path) -> FramePlanes:
    """One frame through an OpenVINO engine in fp32 that is built for its size, in a new directory."""
    _, height, width = picture.shape
    spec = EngineSpec(checkpoint, height, width, "fp32", streams=1)
    directory.mkdir()
    openvino.build(spec, directory)
    engine = openvino.load(spec, directory)
    result = run(engine, picture)
    engine.close()
    return result
