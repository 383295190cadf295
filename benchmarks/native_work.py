"""Work of the native kernels per frame, and their shares of the processor's product rate and memory bandwidth.

python -m benchmarks.native_work WEIGHTS 720x540

This prints JSON: the rates of one core, and for each kernel its seconds per frame on one thread, its multiply-adds of
16-bit integers, and the bytes of the maps that it reads and writes. For a frame of the synthetic animation.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the native worker

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.ceiling import BYTES, shortest_time
from benchmarks.command_line import frame_size, run
from benchmarks.layers import padded_picture
from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig
from vsfdatrd.backends.native import backend, blocks, network
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.backends.native.kernels import COLUMN_ALIGNMENT, KEY_STRIDE, MAX_QUANTIZED, KernelArrays, Matrix
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError, EngineUnavailable

RUNS = 3
TOKENS = WINDOW[0] * WINDOW[1]
HEAD = blocks.HEAD_DIM
ROWS, INNER, WIDE = 120, 512, 512
"""The product whose rate counts as the highest: within the second cache, with little besides multiply-adds."""


def measure_ceilings() -> dict[str, float]:
    """Highest rates of one core: multiply-adds a second in a product within the cache, and bytes a second copied."""
    random, own = np.random.default_rng(0), KernelArrays()
    matrix = own.matrix(random.standard_normal((WIDE, INNER)))
    a = random.integers(-MAX_QUANTIZED, MAX_QUANTIZED, (ROWS, INNER)).astype(np.int16)
    steps, out = np.ones(ROWS, np.float32), np.empty((ROWS, WIDE), np.float32)
    multiply = native_kernels.c_function("multiply")
    seconds = shortest_time(lambda: multiply(a, steps, ROWS, matrix, out), lambda: None, 500)
    source = np.ones(BYTES // 4, np.float32)
    target = np.empty_like(source)
    copied = shortest_time(lambda: np.copyto(target, source), lambda: None)
    return {"macs_per_s": ROWS * INNER * WIDE / seconds, "bytes_per_s": 2 * BYTES / copied}


def _nonzero_weights(matrices: Any) -> int:
    """Weights of one or several packed matrices that products do not leave out."""
    if not isinstance(matrices, Matrix):
        return sum(_nonzero_weights(matrix) for matrix in matrices)
    panels = matrices.columns // COLUMN_ALIGNMENT
    spans: int = ctypes.cast(matrices.bounds, ctypes.POINTER(ctypes.c_int32))[panels]
    lengths: list[int] = ctypes.cast(matrices.spans, ctypes.POINTER(ctypes.c_int32))[1 : 2 * spans : 2]
    return COLUMN_ALIGNMENT * sum(lengths)


def _first(*a: Any) -> tuple[float, float]:
    n = a[3] * (a[6] - a[5])
    return n * _nonzero_weights(a[7]), 4 * n * (a[7].columns + 3 * a[4] ** 2)


def _local(*a: Any) -> tuple[float, float]:
    return 0, 8 * a[4] * a[3] * (a[6] - a[5])


def _feed_forward(*a: Any) -> tuple[float, float]:
    n = a[4] * (a[6] - a[5])
    return n * (_nonzero_weights(a[8]) + _nonzero_weights(a[10])), 8 * n * a[8].inner


def _windows(*a: Any) -> tuple[float, float]:
    n, channels = TOKENS * (a[7] - a[6]), a[12].inner
    return n * (_nonzero_weights(a[9]) + 2 * KEY_STRIDE * channels + _nonzero_weights(a[12])), 12 * n * channels


def _channels(*a: Any) -> tuple[float, float]:
    n = a[3] - a[2]
    return n * _nonzero_weights(a[5]), 12 * n * a[5].inner


def _read(*a: Any) -> tuple[float, float]:
    stretches = a[2] - a[1]
    attention = stretches * a[6] * a[7] * 2 * KEY_STRIDE * HEAD
    return stretches * TOKENS * _nonzero_weights(a[5]) + attention, 4 * stretches * TOKENS * a[5][0].inner


def _look_up(*a: Any) -> tuple[float, float]:
    n, channels = a[2] - a[1], a[7].inner
    return n * (_nonzero_weights(a[4]) + _nonzero_weights(a[7]) + 2 * a[5][0].padded * channels), 8 * n * channels


def _conv(*a: Any) -> tuple[float, float]:
    n = a[4] * (a[6] - a[5])
    return n * _nonzero_weights(a[7]), 12 * n * a[7][0].inner


def _winograd(*a: Any) -> tuple[float, float]:
    n = 2 * a[4] * (a[6] - a[5])
    return n / 4 * _nonzero_weights(a[7]), 12 * n * a[7][0].inner


def _twice(*a: Any) -> tuple[float, float]:
    n = a[3] * (a[5] - a[4])
    return n * _nonzero_weights(a[6]), 4 * n * (a[6][0].inner + 12)


def _four_times(*a: Any) -> tuple[float, float]:
    n = a[3] * (a[5] - a[4])
    return n * (_nonzero_weights(a[6]) + 4 * _nonzero_weights(a[8])), 4 * n * (a[6][0].inner + 48)


def _last(*a: Any) -> tuple[float, float]:
    return 0, 24 * a[3] * (a[5] - a[4])


WORK: dict[str, Callable[..., tuple[float, float]]] = {
    "first": _first,
    "local": _local,
    "feed_forward": _feed_forward,
    "windows": _windows,
    "channels": _channels,
    "read": _read,
    "look_up": _look_up,
    "conv": _conv,
    "winograd": _winograd,
    "twice": _twice,
    "four_times": _four_times,
    "last": _last,
}
"""By kernel: the multiply-adds and the bytes of maps of a call with these arguments."""


def measure(checkpoint: Checkpoint, width: int, height: int) -> list[dict[str, Any]]:
    """Measure the kernels of a frame on one thread.

    Args:
        checkpoint: The network.
        width: Of the frame.
        height: Of the frame.

    Returns:
        Seconds, multiply-adds and bytes of each kernel, slowest first; ``between`` is the NumPy code between them.

    Raises:
        EngineError: The kernels do not run this network.
    """
    config = checkpoint.descriptor.config
    reason = network.unsupported_config_reason(config) if isinstance(config, FdatRdConfig) else "it is not an FDAT-RD"
    if reason or not isinstance(config, FdatRdConfig):
        raise EngineError(f"the native engine does not run it: {reason}")
    picture = padded_picture(checkpoint, width, height)
    _, tall, wide = picture.shape
    result = np.empty((3, tall * config.scale, wide * config.scale), np.float32)
    context = network.FrameContext(network.Weights(config, checkpoint.tensors()), tall, wide, 1)
    context.run(picture, result)
    found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def measured(name: str) -> Callable[..., None]:
        kernel = native_kernels.c_function(name)

        def call(*arguments: Any) -> None:
            start = time.thread_time()
            kernel(*arguments)
            taken = time.thread_time() - start
            macs, moved = WORK[name](*arguments) if name in WORK else (0, 0)
            for i, value in enumerate((taken, macs, moved)):
                found[name][i] += value / RUNS

        return call

    start = time.thread_time()
    with patch.object(network, "c_function", measured), patch.object(blocks, "c_function", measured):
        for _ in range(RUNS):
            context.run(picture, result)
    whole = (time.thread_time() - start) / RUNS
    found["between"][0] = whole - sum(seconds for seconds, *_ in found.values())
    rows = [{"kernel": name, "seconds": s, "macs": macs, "bytes": moved} for name, (s, macs, moved) in found.items()]
    return sorted(rows, key=lambda row: -float(row["seconds"]))


def measure_shares(weights: Path, width: int, height: int) -> dict[str, Any]:
    """What `main` prints, measured in another process."""
    command = [sys.executable, "-m", __spec__.name, str(weights), f"{width}x{height}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def format_table(known: dict[str, Any]) -> str:
    """The result of `main` as text: milliseconds, and shares of the core's rates."""
    macs, moved = known["macs_per_s"], known["bytes_per_s"]
    rows = known["kernels"]
    total = {name: sum(row[name] for row in rows) for name in ("seconds", "macs", "bytes")}
    lines = [f"one core: {macs / 1e9:.0f} GMAC/s in products, {moved / 1e9:.1f} GB/s copied"]
    for row in (*rows, {"kernel": "together", **total}):
        s = row["seconds"]
        lines.append(
            f"  {row['kernel']:<14} {s * 1000:>8.1f} ms {s / total['seconds']:>6.1%}"
            f" {row['macs'] / 1e9:>7.2f} GMAC, {row['macs'] / s / macs:>4.0%} of the rate;"
            f" {row['bytes'] / 1e6:>7.1f} MB, {row['bytes'] / s / moved:>4.0%} of the bandwidth"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the kernels; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.native_work", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("weights")
    parser.add_argument("size", type=frame_size)
    given = parser.parse_args()
    if reason := backend.unavailable():
        raise EngineUnavailable(reason)
    kernels = measure(open_checkpoint(given.weights), *given.size)
    print(json.dumps({**measure_ceilings(), "kernels": kernels}))
    return 0


if __name__ == "__main__":
    run(main)
