"""What engines are held against: a graph computed in fp32 by OpenVINO, a library independent of theirs."""

from pathlib import Path

from vsfdatrd.workers.client import Worker


def compute(graph: Path, target: Path) -> None:
    """Write what a graph makes of `verify.drawing` in fp32, as float16, which is exact enough to judge half precisions.

    In a process that ends with it. Raises EngineError.
    """
    worker = Worker("vsfdatrd.backends.openvino.worker")
    try:
        worker.ask("reference", graph=str(graph), target=str(target))
    finally:
        worker.close()
