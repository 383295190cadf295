"""Frames a second on an NVIDIA GPU: the engine alone, through VapourSynth, other forms of the graph, and PyTorch.

    python -m benchmarks.gpu [--size 720x540] [--models small medium large] [--frames 200]

What does not run is a row that says why. Weights of small and large are random until they are trained; speed does not
depend on them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from safetensors.numpy import save_file

from benchmarks.builds import random_weights
from benchmarks.report import save
from benchmarks.throughput import clip_of_drawings
from vsfdatrd.catalog import resolve
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.engines.devices import gpus
from vsfdatrd.engines.process import Worker
from vsfdatrd.engines.tensorrt_library import choose
from vsfdatrd.errors import FdatrdError
from vsfdatrd.graph import fdat_rd_graph
from vsfdatrd.graph.dialect import Dialect
from vsfdatrd.graph.dialect import tensorrt as deploy
from vsfdatrd.nn.config import META as META_NAME
from vsfdatrd.nn.config import UPSAMPLERS, FdatRdConfig, variant

GRAPHS: dict[str, Dialect] = {
    "deploy fp16": deploy("fp16"),
    "deploy bf16": deploy("bf16"),
    "deploy mixed": deploy("mixed"),
    "plain fp16": Dialect("fp16"),
    "fp16, whole sums": Dialect("fp16", attention=True),
    "fp16, products": Dialect("fp16", parts=True),
}


def weights_of(model: str, folder: Path) -> Checkpoint:
    """The shipped weights, or random ones where none are trained yet."""
    try:
        return open_checkpoint(resolve(model))
    except FdatrdError:
        config = variant(model)
        tensors: dict[str, Any] = dict(random_weights(config)) | {META_NAME: _meta(config)}
        path = folder / f"{model}.safetensors"
        save_file(tensors, path)
        return open_checkpoint(path)


def _meta(config: FdatRdConfig) -> Any:
    kind = UPSAMPLERS.index(config.upsampler)
    return np.array([3, kind, config.tail_scale, config.embed_dim, 3, config.mid_dim, 4], np.uint8)


def engine_alone(checkpoint: Checkpoint, height: int, width: int, dialect: Dialect, frames: int) -> dict[str, Any]:
    """TensorRT and nothing else: build, load, run."""
    config = checkpoint.description.config
    library = choose(gpus()[0].capability)
    if config is None or library is None:
        raise SystemExit("TensorRT is not installed; pip install vsfdatrd[rtx]")
    worker = Worker("vsfdatrd.engines.tensorrt_process")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.onnx")
        graph.write_bytes(fdat_rd_graph(config, checkpoint.tensors(), height, width, dialect).SerializeToString())
        major, minor = gpus()[0].capability
        try:
            facts = worker.ask(
                "build", library=library.module, graph=str(graph), directory=folder, targets=[f"sm{major}{minor}"],
                how={}, log=str(Path(folder, "log")),
            )  # fmt: skip
            start = time.perf_counter()
            worker.ask("load", library=library.module, directory=folder, devices=[0], streams=1, state=None)
            loading = time.perf_counter() - start
            fps = worker.ask("rate", runs=frames)
        finally:
            worker.close()
    work = config.work(height, width)
    return {
        "fps": round(fps, 2),
        "tflops": round(work * fps / 1e12, 1),
        "build_seconds": facts["seconds"],
        "load_seconds": round(loading, 2),
        "activation_bytes": facts["activation_bytes"],
    }


def through_vapoursynth(
    checkpoint: Checkpoint, height: int, width: int, *, backend: str, streams: int | None, frames: int, cache: Path
) -> dict[str, Any]:
    """A clip through the filter, copies and all."""
    loop = 16
    source = clip_of_drawings(width, height, loop)
    vs.core.std.SetVideoCache(source, mode=1, fixedsize=loop)
    for frame in source.frames(close=True):
        del frame
    clip = vs.core.std.Loop(source, times=-(-frames // loop))[:frames]
    start = time.perf_counter()
    out = vs.core.fdatrd.upscale(
        clip,
        model=str(checkpoint.path),
        backend=backend,
        precision="fp16",
        streams=streams,
        cache=str(cache),
        reuse="off",
    )
    ready = time.perf_counter() - start
    times = []
    for _ in out.frames(close=True):
        times.append(time.perf_counter())
    warm = frames // 4
    return {"fps": round((frames - 1 - warm) / (times[-1] - times[warm]), 2), "ready_seconds": round(ready, 2)}


def pytorch(checkpoint: Checkpoint, height: int, width: int, compiled: bool, frames: int) -> dict[str, Any]:
    """PyTorch in fp16, one frame after the other, nothing copied."""
    import torch

    network: Any = checkpoint.network().half().cuda().to(memory_format=torch.channels_last)
    if compiled:
        network = torch.compile(network, mode="max-autotune")
    picture = torch.rand(1, 3, height, width, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        for _ in range(5):
            network(picture)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(frames):
            network(picture)
        torch.cuda.synchronize()
    return {"fps": round(frames / (time.perf_counter() - start), 2)}


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="720x540")
    parser.add_argument("--models", nargs="+", default=["medium", "small", "large"])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    a = parser.parse_args()
    if not gpus():
        raise SystemExit("there is no NVIDIA GPU here, or no driver for it")
    width, height = map(int, a.size.split("x"))
    sides = (height, width)
    rows: list[dict[str, Any]] = []

    def measure(model: str, what: str, run: Callable[[], dict[str, Any]]) -> None:
        try:
            found = run()
        except Exception as error:  # a row that says why; the others go on
            found = {"error": f"{type(error).__name__}: {error}"}
        rows.append({"model": model, "case": what} | found)
        print(model, what, found, file=sys.stderr, flush=True)
        save(f"gpu_{width}x{height}", {"gpu": gpus()[0].name, "size": [width, height], "rows": rows})

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in a.models:
            checkpoint = weights_of(model, folder)
            for name, dialect in GRAPHS.items():
                measure(model, f"engine alone, {name}", partial(engine_alone, checkpoint, *sides, dialect, a.frames))
            plugin = partial(through_vapoursynth, checkpoint, *sides, frames=a.frames, cache=folder)
            for streams in (1, 2, 3, 4):
                run = partial(plugin, backend="tensorrt", streams=streams)
                measure(model, f"through VapourSynth, streams={streams}", run)
            measure(model, "through VapourSynth, torch engine", partial(plugin, backend="torch", streams=None))
            measure(model, "PyTorch eager", partial(pytorch, checkpoint, *sides, False, a.frames))
            if not a.no_compile:
                measure(model, "torch.compile", partial(pytorch, checkpoint, *sides, True, a.frames))
    return 0


if __name__ == "__main__":
    sys.exit(main())
