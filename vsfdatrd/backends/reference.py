"""Compute fp32 reference outputs with a library independent of the engine under test."""

import importlib.util
from pathlib import Path

from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.workers.client import Worker

_WORKER_MODULES = {
    "openvino": "vsfdatrd.backends.openvino.worker",
    "onnxruntime": "vsfdatrd.backends.onnxruntime_worker",
}
"""Libraries that can compute a reference, preferred first, and the worker modules in which they run."""


def reference_library() -> str | None:
    """Return the library that computes references; None if neither OpenVINO nor ONNX Runtime is installed."""
    return next((name for name in _WORKER_MODULES if importlib.util.find_spec(name) is not None), None)


def compute_reference(graph: Path, target: Path, sky: Path | None = None) -> int:
    """Run a graph on `accuracy.draw_line_art` in fp32 and save the output, in a worker process that ends afterwards.

    The output is stored as float16, which is precise enough to judge half precisions.

    Args:
        graph: An ONNX file in fp32.
        target: The .npy file to write, (C, H·scale, W·scale).
        sky: Graph of the same network for `accuracy.draw_sky`, which may be the same file; None to skip the sky.

    Returns:
        `accuracy.count_levels` of the sky in fp32; 0 without `sky`.

    Raises:
        EngineUnavailable: Neither OpenVINO nor ONNX Runtime is installed.
        EngineError: The library does not run the graph.
    """
    module = reference_library()
    if module is None:
        raise EngineUnavailable(
            "the fp32 reference that engines are compared with needs OpenVINO or ONNX Runtime; pip install openvino"
        )
    worker = Worker(_WORKER_MODULES[module])
    try:
        return int(worker.ask("reference", graph=str(graph), target=str(target), smooth=sky and str(sky)))
    finally:
        worker.close()
