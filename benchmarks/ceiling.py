"""What the machine can do at most: multiply-adds in matrix products, and bytes to and from memory, measured once."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDE, SIDE_GPU = 2048, 8192
BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Highest rates seen."""

    flops: float
    """Operations a second (two for a multiply-add) in a product of large matrices."""
    bandwidth: float
    """Bytes a second, read and written, copying what no cache holds."""
    how: str
    """What they were measured with."""


def ceiling(*, gpu: bool) -> Ceiling:
    """Measure through PyTorch: fp32 on a CPU with all cores, fp16 on a GPU."""
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    dtype, side = (torch.float16, SIDE_GPU) if gpu else (torch.float32, SIDE)
    a, b = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    wait = torch.cuda.synchronize if gpu else (lambda: None)
    products = 2 * side**3 / best(lambda: torch.mm(a, b), wait)
    source = torch.ones(BYTES // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * BYTES / best(lambda: target.copy_(source), wait)
    return Ceiling(products, copied, f"PyTorch {torch.__version__}, {side}×{side} {str(dtype).removeprefix('torch.')}")


def best(work: Callable[[], object], wait: Callable[[], object], times: int = 7) -> float:
    """Shortest seconds of some runs; a ceiling is what is reached when nothing disturbs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return float(np.min(taken))
