"""TensorRT-RTX engines built for several GPUs, without one: seconds, memory for activations, size.

python -m benchmarks.builds [--quick]

Weights other than the shipped ones are random; neither time nor memory depends on them.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.report import save
from benchmarks.weights import random_weights
from vsfdatrd.engines.process import Worker
from vsfdatrd.engines.tensorrt_library import RTX
from vsfdatrd.graph import fdat_rd_graph
from vsfdatrd.graph.dialect import Dialect, tensorrt
from vsfdatrd.nn.config import FdatRdConfig, variant
from vsfdatrd.options import Precision

MODELS = ("small", "medium", "large")
TARGETS = ("sm75", "sm86", "sm89", "sm120")
SIZES = ((720, 540), (720, 480))


def measure(
    config: FdatRdConfig, weights: Mapping[str, Any], size: tuple[int, int], target: str, dialect: Dialect
) -> dict[str, Any]:
    """Write the graph and build it once."""
    width, height = size
    start = time.perf_counter()
    graph = fdat_rd_graph(config, weights, height, width, dialect).SerializeToString()
    writing = time.perf_counter() - start
    worker = Worker("vsfdatrd.engines.tensorrt_process")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        path.write_bytes(graph)
        try:
            facts = worker.ask(
                "build", library=RTX.module, graph=str(path), directory=folder, targets=[target], how={},
                log=str(Path(folder, "log")),
            )  # fmt: skip
            size_on_disk = Path(folder, "engine.trt").stat().st_size
        finally:
            worker.close()
    tokens = width * height / config.unshuffle**2
    return {
        "graph_seconds": round(writing, 2),
        "build_seconds": facts["seconds"],
        "activation_bytes": facts["activation_bytes"],
        "activation_bytes_per_token_and_channel": round(facts["activation_bytes"] / tokens / config.ffn_dim, 2),
        "engine_bytes": size_on_disk,
    }


def cases(quick: bool) -> list[tuple[str, tuple[int, int], str, Precision, str]]:
    """Model, size, target, precision, and whether it is the graph for TensorRT or the plain one."""
    found: list[tuple[str, tuple[int, int], str, Precision, str]] = []
    precisions: tuple[Precision, ...] = ("fp16", "bf16")
    for model, size, target, precision in itertools.product(MODELS, SIZES, TARGETS, precisions):
        if (target, precision) == ("sm75", "bf16") or (quick and (model != "medium" or size != SIZES[0])):
            continue
        found.append((model, size, target, precision, "deploy"))
    others: tuple[Precision, ...] = ("mixed", "fp32")
    chosen = MODELS[1:2] if quick else MODELS
    found += [(model, SIZES[0], "sm89", precision, "deploy") for model in chosen for precision in others]
    found += [("medium", SIZES[0], "sm89", precision, "plain") for precision in ("fp16", "fp32")]
    return found


def main() -> int:
    """Build everything; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="medium at 720×540 only")
    quick = parser.parse_args().quick
    if not RTX.installed:
        raise SystemExit("tensorrt_rtx is not installed; pip install vsfdatrd[rtx]")
    weights = {name: random_weights(variant(name)) for name in MODELS}
    rows = []
    for model, size, target, precision, graph in tqdm(cases(quick), unit="engine"):
        config = variant(model)
        dialect = tensorrt(precision, turing=target == "sm75") if graph == "deploy" else Dialect(precision)
        row = {"model": model, "size": list(size), "target": target, "precision": precision, "graph": graph}
        rows.append(row | measure(config, weights[model], size, target, dialect))
        tqdm.write(
            f"{model:6} {size[0]}x{size[1]} {target:5} {precision:5} {graph:6} {rows[-1]['build_seconds']:5.1f} s, "
            f"activations {rows[-1]['activation_bytes'] / 2**20:5.0f} MiB, engine {rows[-1]['engine_bytes'] >> 20} MiB"
        )
    save("tensorrt_builds", {"library": f"{RTX.module} {RTX.version}", "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
