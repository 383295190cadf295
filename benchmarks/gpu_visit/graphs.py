"""Compute TensorRT's graphs operator by operator on the GPU: the best precision that TensorRT can reach."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_visit.engines import checkpoints, compute_in_fp32, compute_psnr, padded_drawing, without_tf32
from benchmarks.gpu_visit.onnx_operators import execute
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device, synchronize
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import first_line
from vsfdatrd.graph.target import GraphTarget, tensorrt_target

GRAPHS: dict[str, GraphTarget] = {
    "fp32": GraphTarget(),
    "deploy fp16": tensorrt_target("fp16"),
    "deploy mixed": tensorrt_target("mixed"),
    "deploy bf16": tensorrt_target("bf16"),
    "plain fp16": GraphTarget("fp16"),
}


def measure_row(checkpoint: Checkpoint, target: GraphTarget, sizes: Sizes, reference: torch.Tensor) -> dict[str, Any]:
    """PSNR of one form of the graph against the network in fp32."""
    frame = padded_drawing(checkpoint, sizes.height, sizes.width)
    height, width = frame.shape[2:]
    graph = checkpoint.graph(height, width, target)
    start = time.perf_counter()
    with without_tf32():
        (result,) = execute(graph, {graph.graph.input[0].name: frame}, device())
    synchronize()
    decibels, wrong = compute_psnr(result, reference)
    return {"psnr_db": decibels, "nan": wrong, "seconds": round(time.perf_counter() - start, 2)}


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Measure every form of the graph with the shipped weights and with those without zero branches."""
    rows: list[dict[str, Any]] = []
    graphs = {name: GRAPHS[name] for name in ("fp32", "deploy bf16")} if sizes.small else GRAPHS
    with tempfile.TemporaryDirectory() as folder:
        for weights, checkpoint in checkpoints(Path(folder), sizes).items():
            reference = compute_in_fp32(checkpoint, sizes)
            for name, target in graphs.items():
                about = {"graph": name, "precision": target.precision, "weights": weights}
                try:
                    found = measure_row(checkpoint, target, sizes, reference)
                except (RuntimeError, NotImplementedError) as error:  # recorded as a row; the others continue
                    found = {"error": first_line(error)}
                rows.append(about | {"size": [sizes.width, sizes.height]} | found)
                record({"graphs": rows})
