"""Compute what engines are compared with: a graph in fp32, by a library independent of theirs."""

import importlib.util
from pathlib import Path

from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.workers.client import Worker

_PROCESSES = {
    "openvino": "vsfdatrd.backends.openvino.worker",
    "onnxruntime": "vsfdatrd.backends.onnxruntime_worker",
}
"""Libraries that can compute a reference, the preferred one first, and the processes in which they run."""


def library() -> str | None:
    """The library that computes references here; None if there is none."""
    return next((name for name in _PROCESSES if importlib.util.find_spec(name) is not None), None)


def compute(graph: Path, target: Path, sky: Path | None = None) -> int:
    """Write what a graph makes of `accuracy.drawing` in fp32, as float16, which is exact enough to judge half
    precisions. In a process that ends with it.

    Args:
        graph: An ONNX file in fp32.
        target: The file to write, (C, H·scale, W·scale).
        sky: The same network's graph for `accuracy.sky`, which may be the same file; None for none.

    Returns:
        The steps that fp32 leaves of the sky; 0 without its graph.

    Raises:
        EngineUnavailable: Neither OpenVINO nor ONNX Runtime is installed.
        EngineError: The library does not run the graph.
    """
    chosen = library()
    if chosen is None:
        raise EngineUnavailable(
            "the fp32 reference that engines are compared with needs OpenVINO or ONNX Runtime; pip install openvino"
        )
    worker = Worker(_PROCESSES[chosen])
    try:
        return int(worker.ask("reference", graph=str(graph), target=str(target), sky=sky and str(sky)))
    finally:
        worker.close()
