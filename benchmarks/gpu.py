"""Compare forms of the graph in TensorRT, and PyTorch, on an NVIDIA GPU: frames per second of the engine alone.

    python -m benchmarks.gpu [--size 720x540] [--models small medium large] [--frames 200] [--out FOLDER]

A form that does not run is a row with the reason. `python -m benchmarks` measures everything else.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command_line import frame_size, positive_int, run
from benchmarks.errors import BenchmarkError
from benchmarks.gpu_visit import engines
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.on_gpu import open_on_gpu, refusal_reason
from benchmarks.report import RESULTS, save
from benchmarks.weights import weights_file
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.graph.target import tensorrt_target as deploy
from vsfdatrd.options import Precision

GRAPHS: dict[str, GraphTarget] = {
    "deploy fp16": deploy("fp16"),
    "deploy bf16": deploy("bf16"),
    "deploy mixed": deploy("mixed"),
    "tokens fp16": deploy("fp16", portable=False),
    "plain fp16": GraphTarget("fp16"),
    "fp16, whole sums": GraphTarget("fp16", attention=True),
    "fp16, products": GraphTarget("fp16", split_reductions=True),
}
TURNS = 5
PYTORCH: tuple[Precision, ...] = ("fp16", "bf16")


def measure_tensorrt(
    checkpoint: Checkpoint, height: int, width: int, target: GraphTarget, frames: int
) -> dict[str, Any]:
    """Build, load and run an engine.

    Args:
        checkpoint: The network.
        height: Of the frame.
        width: Of the frame.
        target: The form of the graph.
        frames: Frames that are timed, in turns of which the median counts.

    Returns:
        The fields of a result row.

    Raises:
        EngineError: TensorRT cannot run the engine.
    """
    turns = min(TURNS, frames)
    work = checkpoint.descriptor.config.flops(height, width)
    with open_on_gpu(checkpoint, height, width, target) as (worker, facts):
        fps = median(worker.ask("rate", runs=frames // turns) for _ in range(turns))
    return {
        "fps": round(fps, 2),
        "tflops": round(work * fps / 1e12, 1) if work else None,
        "build_seconds": facts["seconds"],
        "load_seconds": facts["load_seconds"],
        "activation_bytes": facts["activation_bytes"],
    }


def measure_torch(checkpoint: Checkpoint, height: int, width: int, precision: Precision, frames: int) -> dict[str, Any]:
    """Measure the PyTorch network as a CUDA graph; return the same fields as `measure_tensorrt`."""
    work = checkpoint.descriptor.config.flops(height, width)
    turns = min(TURNS, frames)
    sizes = Sizes(height=height, width=width, turns=turns, frames=frames // turns)
    found = engines.measure_row(checkpoint, precision, sizes, engines.compute_in_fp32(checkpoint, sizes))
    fps = found["fps_alone"]["median"]
    return {
        "fps": fps,
        "tflops": round(work * fps / 1e12, 1) if work else None,
        "load_seconds": found["load_s"],
        "psnr_db": found["psnr_db"],
        "memory_mib": found["memory_mib"],
    }


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=frame_size, default=(720, 540))
    parser.add_argument("--models", nargs="+", default=["medium", "small", "large"])
    parser.add_argument("--frames", type=positive_int, default=200)
    parser.add_argument("--engines", nargs="+", choices=("tensorrt", "pytorch"), default=["tensorrt", "pytorch"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (benchmarks/results)")
    a = parser.parse_args()
    if not list_gpus():
        raise BenchmarkError("there is no NVIDIA GPU here, or no driver for it")
    width, height = a.size
    name = f"gpu_{width}x{height}"
    rows: list[dict[str, Any]] = []
    why = refusal_reason() if "tensorrt" in a.engines else None  # checked once, so that no engine is built in vain

    def add(model: str, graph: str, found: dict[str, Any]) -> None:
        rows.append({"model": model, "graph": graph} | found)
        print(model, graph, found, file=sys.stderr, flush=True)
        save(name, {"size": [width, height], "rows": rows}, quiet=True, folder=a.out)

    if why:
        add("all", "TensorRT", {"error": why})
    with tempfile.TemporaryDirectory() as folder:
        for model in a.models:
            checkpoint = open_checkpoint(weights_file(model, Path(folder))[0])
            for graph, target in GRAPHS.items() if why is None and "tensorrt" in a.engines else ():
                try:
                    found = measure_tensorrt(checkpoint, height, width, target, a.frames)
                except Exception as error:  # recorded as a row with the reason; the others continue
                    found = {"error": f"{type(error).__name__}: {error}"}
                add(model, graph, found)
            for precision in PYTORCH if "pytorch" in a.engines else ():
                try:
                    found = measure_torch(checkpoint, height, width, precision, a.frames)
                except Exception as error:
                    found = {"error": f"{type(error).__name__}: {error}"}
                add(model, f"PyTorch {precision}", found)
    print(f"saved {a.out / f'{name}.json'}")
    return 0


if __name__ == "__main__":
    run(main)
