"""TensorRT on the first GPU and nothing else: a graph built, loaded and ready to be asked."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsfdatrd.backends.gpus import gpus
from vsfdatrd.backends.tensorrt.library import choose
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.graph import fdat_rd_graph
from vsfdatrd.graph.target import Dialect
from vsfdatrd.workers.client import Worker


@contextmanager
def on_gpu(
    checkpoint: Checkpoint, height: int, width: int, dialect: Dialect
) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """The engine's process, and what is known of the build: its own facts and `load_seconds`.

    height, width: of the padded frame. Raises EngineUnavailable without a GPU or TensorRT.
    """
    config = checkpoint.description.config
    library = choose(gpus()[0].capability) if gpus() else None
    if config is None or library is None:
        raise EngineUnavailable("this needs an FDAT-RD, an NVIDIA GPU and TensorRT (pip install vsfdatrd[rtx])")
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.onnx")
        graph.write_bytes(fdat_rd_graph(config, checkpoint.tensors(), height, width, dialect).SerializeToString())
        major, minor = gpus()[0].capability
        try:
            facts: dict[str, Any] = worker.ask(
                "build", library=library.module, graph=str(graph), directory=folder, targets=[f"sm{major}{minor}"],
                how={}, log=str(Path(folder, "log")),
            )  # fmt: skip
            start = time.perf_counter()
            worker.ask("load", library=library.module, directory=folder, devices=[0], streams=1, state=None)
            yield worker, facts | {"load_seconds": round(time.perf_counter() - start, 2)}
        finally:
            worker.close()
