"""Measure the hardware ceiling: multiply-adds in matrix products, and memory bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDE, SIDE_GPU = 2048, 8192
BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Highest measured rates."""

    flops: float
    """Operations a second (two for a multiply-add) in a product of large matrices."""
    bandwidth: float
    """Bytes a second, read and written, when copying more than the caches hold."""
    how: str
    """The method of measurement."""


def measure_ceiling(*, gpu: bool) -> Ceiling:
    """Measure through PyTorch: fp32 on a CPU with all cores, fp16 on a GPU."""
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    dtype, side = (torch.float16, SIDE_GPU) if gpu else (torch.float32, SIDE)
    a, b = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    wait = torch.cuda.synchronize if gpu else (lambda: None)
    products = 2 * side**3 / shortest_time(lambda: torch.mm(a, b), wait)
    source = torch.ones(BYTES // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * BYTES / shortest_time(lambda: target.copy_(source), wait)
    return Ceiling(products, copied, f"PyTorch {torch.__version__}, {side}×{side} {str(dtype).removeprefix('torch.')}")


def shortest_time(work: Callable[[], object], wait: Callable[[], object], times: int = 7) -> float:
    """Shortest time of several runs in seconds: a ceiling is reached only without interference."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return float(np.min(taken))
