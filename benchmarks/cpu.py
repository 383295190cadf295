"""Compare forms of the graph and settings of OpenVINO on this CPU with the ones in use.

    python -m benchmarks.cpu [--model medium] [--size 240x240] [--rounds 5]

One frame on all cores, forms taking turns. CPU seconds are reported along with wall time: they
distinguish forms even if other programs run.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
from tqdm import tqdm

from benchmarks.layers import padded_picture
from benchmarks.report import save
from benchmarks.speed.exports import exported
from benchmarks.weights import weights_file
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.openvino.worker import settings
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import OPENVINO, GraphTarget


@dataclass(frozen=True, slots=True)
class Form:
    """One graph form with its OpenVINO settings."""

    dialect: GraphTarget | None = OPENVINO
    """None means PyTorch's own export."""
    settings: dict[str, Any] = field(default_factory=dict)
    """OpenVINO settings, in addition to the usual ones."""


FORMS: dict[str, Form] = {
    "as used": Form(),
    "PyTorch's export": Form(None),
    "ONNX's attention operator": Form(GraphTarget(attention=True)),
    "sums over the frame in parts": Form(GraphTarget(parts=True)),
    "the same, depthwise convolutions as sums": Form(GraphTarget(parts=True, turing=True)),
    "without fused kernels (snippets)": Form(settings={"SNIPPETS_MODE": "DISABLE"}),
    "denormals flushed": Form(settings={"CPU_DENORMALS_OPTIMIZATION": True}),
    "throughput hint": Form(settings={"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "1"}),
    "performance, not accuracy": Form(settings={"EXECUTION_MODE_HINT": "PERFORMANCE"}),
    "threads not pinned": Form(settings={"ENABLE_CPU_PINNING": False}),
}


def compiled(form: Form, checkpoint: Checkpoint, picture: "np.ndarray[Any, Any]", folder: Path) -> Callable[[], Any]:
    """A function that computes one frame. Raises RuntimeError if OpenVINO rejects the form."""
    core = openvino.Core()
    _, height, width = picture.shape
    if form.dialect is None:
        model = core.read_model(exported("plain", checkpoint.path, (width, height), folder))
    else:
        config = checkpoint.description.config
        if not isinstance(config, FdatRdConfig):
            raise SystemExit(f"{checkpoint.path.name} is no FDAT-RD; only that has forms to choose from")
        graph = fdat_rd_graph(config, checkpoint.tensors(), (height, width), form.dialect)
        model = core.read_model(io.BytesIO(graph.SerializeToString()))
    network = core.compile_model(model, "CPU", settings("fp32", 1) | form.settings)
    request = network.create_infer_request()
    return lambda: np.array(request.infer([picture[None]])[0])


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--size", default="240x240")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=FORMS, metavar="FORM")
    a = parser.parse_args()
    width, height = map(int, a.size.split("x"))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint = open_checkpoint(weights_file(a.model, Path(folder))[0])
        picture = padded_picture(checkpoint, width, height)
        networks: dict[str, Callable[[], Any]] = {}
        for name in tqdm(a.only or FORMS, desc="compiling", leave=False):
            try:
                networks[name] = compiled(FORMS[name], checkpoint, picture, Path(folder))
            except RuntimeError as error:
                rows[name] = {"error": str(error).strip().splitlines()[-1]}
        results = {name: network() for name, network in networks.items()}  # warms up as well
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
        for _ in tqdm(range(a.rounds), desc="rounds", leave=False):
            for name, network in networks.items():
                taken[name].append(_timed(network))
    base = next(iter(networks))
    for name, times in taken.items():
        wall, cpu = (median(column) for column in zip(*times, strict=True))
        psnr = float(-10 * np.log10(max(np.mean((results[name] - results[base]) ** 2), 1e-20)))
        rows[name] = {"seconds": wall, "cpu_seconds": cpu, "psnr_db": psnr}
    for name, row in rows.items():
        if "error" in row:
            print(f"{name:<34} {row['error']}")
        else:
            ratio = rows[base]["cpu_seconds"] / row["cpu_seconds"]
            print(
                f"{name:<34} {row['seconds']:.3f} s, CPU {row['cpu_seconds']:.3f} s, {ratio:.2f}× as fast by CPU time"
            )
    save(f"cpu_forms_{width}x{height}", {"model": a.model, "size": [width, height], "forms": rows})
    return 0


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads)."""
    usage, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
