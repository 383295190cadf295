"""Build TensorRT-RTX engines for several GPUs on a machine without one: seconds, activation memory, size.

python -m benchmarks.builds [--quick]

Networks without zero branches have random weights; neither time nor memory depends on their values. With the shipped
weights, branches that add nothing are left out (`vsfdatrd.archs.zero_branches`).
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.report import save
from benchmarks.speed.exports import exported
from benchmarks.speed.peers import in_fp16
from benchmarks.weights import random_weights, weights_file
from vsfdatrd.archs.fdat_rd import variant
from vsfdatrd.backends.graphs import graph_of
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.graph import fdat_rd_graph
from vsfdatrd.graph.target import GraphTarget, tensorrt
from vsfdatrd.options import Precision
from vsfdatrd.weights.catalog import CATALOGUE, resolve
from vsfdatrd.workers.client import Worker

if TYPE_CHECKING:
    import onnx

MODELS = ("small", "medium", "large")
TARGETS = ("sm75", "sm86", "sm89", "sm120")
SIZES = ((720, 540), (720, 480))
PLAIN: tuple[Precision, ...] = ("fp16", "fp32")
"""Precisions of graphs that are not specialized for TensorRT."""


@dataclass(frozen=True, slots=True)
class Case:
    """One engine to build."""

    model: str
    size: tuple[int, int]
    target: str
    precision: Precision
    graph: str = "deploy"
    """``deploy``: the graph for TensorRT; ``plain``: without its specializations; ``export``: PyTorch's own export."""
    weights: str = "whole"
    """``whole``: random weights without zero branches; ``shipped``: the weights as they are."""

    @property
    def dialect(self) -> GraphTarget:
        """The target of its graph."""
        if self.graph == "plain":
            return GraphTarget(self.precision)
        return tensorrt(self.precision, turing=self.target == "sm75")


type Write = Callable[[Case], "onnx.ModelProto"]
"""Writes a network's graph."""


def measure(case: Case, write: Write) -> dict[str, Any]:
    """Write the graph and build it once."""
    width, height = case.size
    config = variant(case.model)
    start = time.perf_counter()
    graph = write(case).SerializeToString()
    writing = time.perf_counter() - start
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        path.write_bytes(graph)
        try:
            facts = worker.ask(
                "build",
                library=RTX.module,
                graph=str(path),
                directory=folder,
                targets=[case.target],
                how={},
                log=str(Path(folder, "log")),
            )
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


def cases(quick: bool) -> list[Case]:
    """The engines to build."""
    found: list[Case] = []
    half: tuple[Precision, ...] = ("fp16", "bf16")
    for weights, model, size, target, precision in itertools.product(
        ("whole", "shipped"), MODELS, SIZES, TARGETS, half
    ):
        if (target, precision) == ("sm75", "bf16") or (quick and (model != "medium" or size != SIZES[0])):
            continue
        if weights == "shipped" and model not in CATALOGUE:
            continue
        found.append(Case(model, size, target, precision, weights=weights))
    others: tuple[Precision, ...] = ("mixed", "fp32")
    chosen = MODELS[1:2] if quick else MODELS
    found += [Case(model, SIZES[0], "sm89", precision) for model in chosen for precision in others]
    found += [
        Case("medium", SIZES[0], "sm89", precision, graph) for graph in ("plain", "export") for precision in PLAIN
    ]
    return found


def writer(model: str, weights: str, folder: Path) -> Write:
    """Return a function that writes the graphs of a model. folder: cache for exports."""
    if weights == "shipped":
        checkpoint = open_checkpoint(resolve(model))
        return lambda case: graph_of(checkpoint, case.size[1], case.size[0], case.dialect)
    config = variant(model)
    values = random_weights(config)

    def write(case: Case) -> "onnx.ModelProto":
        if case.graph == "export":
            return _export(case, folder)
        return fdat_rd_graph(config, values, case.size[1], case.size[0], case.dialect)

    return write


def _export(case: Case, folder: Path) -> "onnx.ModelProto":
    """The network exported by PyTorch, as the users of other plugins build it."""
    import onnx

    file = exported("plain", weights_file(case.model, folder)[0], case.size, folder)
    if case.precision == "fp16":
        half = file.with_suffix(".fp16.onnx")
        in_fp16(file, half)
        file = half
    return onnx.load(file)


def main() -> int:
    """Build everything; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="medium at 720×540 only")
    quick = parser.parse_args().quick
    if not RTX.installed:
        raise SystemExit("tensorrt_rtx is not installed; pip install vsfdatrd[rtx]")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        writers = {
            (model, weights): writer(model, weights, Path(folder))
            for model in MODELS
            for weights in ("whole", "shipped")
            if weights == "whole" or model in CATALOGUE
        }
        for case in tqdm(cases(quick), unit="engine"):
            rows.append(_row(case, writers[case.model, case.weights]))
            save("tensorrt_builds", {"library": f"{RTX.module} {RTX.version}", "rows": rows}, quiet=True)
    return 0


def _row(case: Case, write: Write) -> dict[str, Any]:
    """The result row of one engine."""
    row = {
        "model": case.model,
        "weights": case.weights,
        "size": list(case.size),
        "target": case.target,
        "precision": case.precision,
        "graph": case.graph,
    }
    said = (
        f"{case.model:6} {case.weights:7} {case.size[0]}x{case.size[1]} {case.target:5} {case.precision:5} {case.graph}"
    )
    try:
        found = measure(case, write)
    except EngineError as error:  # recorded as a row with the reason; the others continue
        tqdm.write(f"{said}: {error}")
        return row | {"error": str(error).splitlines()[0]}
    tqdm.write(
        f"{said}: {found['build_seconds']:.1f} s, activations {found['activation_bytes'] / 2**20:.0f} MiB, "
        f"engine {found['engine_bytes'] >> 20} MiB"
    )
    return row | found


if __name__ == "__main__":
    sys.exit(main())
