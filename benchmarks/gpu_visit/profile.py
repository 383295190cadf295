"""Profile a frame on the GPU: time of each kernel of the PyTorch network, by name."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_visit.engines import DTYPES, checkpoints, load_network, padded_drawing
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import synchronize

KERNELS = 40
"""That are listed, those with most time first."""


@torch.inference_mode()
def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Profile a few frames of the network with all branches active."""
    gpu = torch.cuda.is_available()
    dtype = DTYPES[sizes.precisions[0]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints(Path(folder), sizes)["whole"]
        module = load_network(checkpoint, sizes.precisions[0])
        frame = padded_drawing(checkpoint, sizes.height, sizes.width).to(dtype)
        for _ in range(3):
            module(frame)
        synchronize()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
            for _ in range(sizes.turns):
                module(frame)
            synchronize()
    record({"profile": kernel_rows(profiler, sizes.turns)})


def kernel_rows(profiler: Any, frames: int) -> list[dict[str, Any]]:
    """Kernels (operators in a rehearsal) with their calls and milliseconds a frame."""
    gpu = torch.cuda.is_available()
    spent = []
    for event in profiler.key_averages():
        if gpu and event.device_type.name != "CUDA":
            continue  # operators of the host, whose kernels are events of their own
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        if microseconds:
            spent.append(
                {
                    "name": event.key[:160],
                    "calls": event.count / frames,
                    "ms": round(microseconds / 1000 / frames, 4),
                }
            )
    return sorted(spent, key=lambda row: -row["ms"])[:KERNELS]
