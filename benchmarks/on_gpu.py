"""Build and load a graph with TensorRT on the first GPU."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.tensorrt.library import choose_library
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineError, EngineUnavailable
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.workers.client import Worker


def refusal_reason() -> str | None:
    """The reason why TensorRT cannot run on the first GPU; None if it can.

    Tested with an engine of one layer, because building a full engine only to have it refused takes seconds.
    """
    if not list_gpus():
        return "there is no NVIDIA GPU here, or no driver for it"
    library = choose_library(list_gpus()[0].capability)
    if library is None:
        return "TensorRT is not installed; pip install vsfdatrd[rtx]"
    major, minor = list_gpus()[0].capability
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    try:
        why: str | None = worker.ask(
            "refusal_reason", library=library.module, devices=[0], targets=[f"sm{major}{minor}"]
        )
        return why
    except EngineError as error:
        return str(error)
    finally:
        worker.close()


@contextmanager
def open_on_gpu(
    checkpoint: Checkpoint, height: int, width: int, target: GraphTarget
) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Build and load an engine; yield its worker, and the facts of the build with ``load_seconds``.

    Args:
        checkpoint: The network.
        height: Of the padded frame.
        width: Of the padded frame.
        target: The target of the graph.

    Raises:
        EngineUnavailable: There is no GPU or no TensorRT, or TensorRT does not support the GPU.
    """
    config = checkpoint.descriptor.config
    if not isinstance(config, FdatRdConfig):
        raise EngineUnavailable(f"{checkpoint.path.name} is not an FDAT-RD")
    if why := refusal_reason():
        raise EngineUnavailable(why)
    library = choose_library(list_gpus()[0].capability)
    assert library is not None
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.onnx")
        graph.write_bytes(fdat_rd_graph(config, checkpoint.tensors(), (height, width), target).SerializeToString())
        major, minor = list_gpus()[0].capability
        try:
            facts: dict[str, Any] = worker.ask(
                "build",
                library=library.module,
                graph=str(graph),
                directory=folder,
                targets=[f"sm{major}{minor}"],
                how={},
                log=str(Path(folder, "log")),
            )
            start = time.perf_counter()
            worker.ask("load", library=library.module, directory=folder, devices=[0], streams=1, state=None)
            yield worker, facts | {"load_seconds": round(time.perf_counter() - start, 2)}
        finally:
            worker.close()
