"""Seconds per layer of a network, as reported by the library that runs it, in a separate process.

python -m benchmarks.layers tensorrt|native|openvino|torch WEIGHTS 720x540

This prints JSON: [layer, kind, seconds per frame], the longest first, for a frame of the synthetic animation.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import frame_size, run
from benchmarks.on_gpu import open_on_gpu
from benchmarks.speed.material import drawings
from vsfdatrd.archs.size import round_up
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.graph.target import tensorrt_target
from vsfdatrd.video.tiling import fill_padding

type Layer = tuple[str, str, float]

RUNS = 3


def layers(library: str, weights: Path, width: int, height: int) -> list[Layer]:
    """Measure the layers of a network in a library.

    In a child process, because VapourSynth plugins may have loaded another build of the library into this one.

    Args:
        library: ``tensorrt``, ``native``, ``openvino`` or ``torch``.
        weights: Path of the weights file.
        width: Of the frame.
        height: Of the frame.

    Raises:
        EngineError: The library does not report them.
    """
    command = [sys.executable, "-m", __spec__.name, library, str(weights), f"{width}x{height}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "its process ended")
    return [(name, kind, seconds) for name, kind, seconds in json.loads(done.stdout.splitlines()[-1])]


def padded_picture(checkpoint: Checkpoint, width: int, height: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The first drawing, padded for the network, (3, H, W)."""
    multiple = checkpoint.descriptor.size.multiple_of
    picture = np.zeros((3, round_up(height, multiple), round_up(width, multiple)), np.float32)
    for plane, source in zip(picture, drawings(width, height, 1)[0], strict=True):
        plane[:height, :width] = source
        fill_padding(plane, height, width)
    return picture


def openvino_layers(checkpoint: Checkpoint, width: int, height: int) -> list[Layer]:
    """OpenVINO's own counters, fp32, one frame on all cores; layers that were fused into others took no time."""
    import openvino

    from vsfdatrd.backends.openvino.worker import compile_settings

    picture = padded_picture(checkpoint, width, height)
    graph = checkpoint.graph(*picture.shape[1:])
    core = openvino.Core()
    model = core.read_model(io.BytesIO(graph.SerializeToString()))
    request = core.compile_model(
        model, "CPU", compile_settings("fp32", 1) | {"PERF_COUNT": True}
    ).create_infer_request()
    request.infer([picture[None]])
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for _ in range(RUNS):
        request.infer([picture[None]])
        for layer in request.profiling_info:
            if seconds := layer.real_time.total_seconds():
                found[layer.node_name, layer.node_type] += seconds / RUNS
    return _longest((name, kind, seconds) for (name, kind), seconds in found.items())


def native_layers(checkpoint: Checkpoint, width: int, height: int) -> list[Layer]:
    """Time of the native kernels on one thread; one layer stands for all calls of one kernel."""
    from benchmarks.native_work import measure

    return _longest((row["kernel"], row["kernel"], row["seconds"]) for row in measure(checkpoint, width, height))


def torch_layers(checkpoint: Checkpoint, width: int, height: int) -> list[Layer]:
    """PyTorch's profiler: operators of the PyTorch network, on the GPU if there is one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    network, picture = checkpoint.network(), torch.from_numpy(padded_picture(checkpoint, width, height))[None]
    if gpu:
        network, picture = network.cuda().half(), picture.cuda().half()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.inference_mode():
        network(picture)
        with profile(activities=activities) as profiler:
            for _ in range(RUNS):
                network(picture)
            if gpu:
                torch.cuda.synchronize()
    return _longest(
        (event.key, event.key, (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6 / RUNS)
        for event in profiler.key_averages()
    )


def tensorrt_layers(checkpoint: Checkpoint, width: int, height: int) -> list[Layer]:
    """TensorRT's own profiler, fp16: layers of the built engine. Needs a GPU."""
    _, tall, wide = padded_picture(checkpoint, width, height).shape
    with open_on_gpu(checkpoint, tall, wide, tensorrt_target("fp16")) as (worker, _):
        found: dict[str, float] = worker.ask("layers", runs=RUNS)
    return _longest((name, _kind(name), seconds) for name, seconds in found.items())


def _kind(name: str) -> str:
    """The kind of a layer: the operators in its name, without their numbers."""
    return re.sub(r"[\d_.]+", " ", name).strip()[:60] or name


def sum_by_kind(layers: Iterable[Layer]) -> list[tuple[str, int, float]]:
    """Add up layers of a kind.

    Args:
        layers: Name, kind and seconds of each.

    Returns:
        Kind, number of layers and seconds, the longest first.
    """
    count: defaultdict[str, int] = defaultdict(int)
    total: defaultdict[str, float] = defaultdict(float)
    for _, kind, seconds in layers:
        count[kind] += 1
        total[kind] += seconds
    return sorted(((kind, count[kind], total[kind]) for kind in total), key=lambda found: -found[2])


def _longest(layers: Iterable[Layer]) -> list[Layer]:
    return sorted((layer for layer in layers if layer[2] > 0), key=lambda layer: -layer[2])


LIBRARIES = {"tensorrt": tensorrt_layers, "native": native_layers, "openvino": openvino_layers, "torch": torch_layers}


def main() -> int:
    """Print the layers; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("weights")
    parser.add_argument("size", type=frame_size)
    given = parser.parse_args()
    print(json.dumps(LIBRARIES[given.library](open_checkpoint(given.weights), *given.size)))
    return 0


if __name__ == "__main__":
    run(main)
