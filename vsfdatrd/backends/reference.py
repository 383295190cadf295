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


def compute(graph: Path, target: Path) -> None:
    """Write what a graph makes of `verify.drawing` in fp32, as float16, which is exact enough to judge half precisions.

    Runs in a process that ends with it.

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
        worker.ask("reference", graph=str(graph), target=str(target))
    finally:
        worker.close()
