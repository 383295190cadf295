"""Milliseconds for copying an engine's result into a VapourSynth frame: clamp, copy and finiteness check of RGBS.

python -m benchmarks.host_copy [--sizes 1440x1080 1438x1080] [--rounds 60]

The former three NumPy passes (minimum, maximum, clip) and the single pass in C take turns on the same memory.
If the width is not a multiple of 16, rows have padding in VapourSynth.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from benchmarks.report import save
from vsfdatrd.video.clamp import clamp_copy

type Planes = NDArray[np.float32]
type Copy = Callable[[Planes, list[Planes]], bool]


def three_passes(result: Planes, targets: list[Planes]) -> bool:
    """Clamp and copy with NumPy; return whether all of `result` is finite."""
    finite = bool(np.isfinite(result.min()) and np.isfinite(result.max()))
    for target, plane in zip(targets, result, strict=True):
        np.clip(plane, 0, 1, out=target)
    return finite


def one_pass(result: Planes, targets: list[Planes]) -> bool:
    """The same by the plugin's C function."""
    return not any([clamp_copy(plane, target) for target, plane in zip(targets, result, strict=True)])


COPIES: dict[str, Copy] = {"three NumPy passes": three_passes, "one C pass": one_pass}


def measure(width: int, height: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, by copying method. Frames alternate, so that none stays in a cache."""
    frames = [vs.core.create_video_frame(vs.core.get_video_format(vs.RGBS), width, height) for _ in range(3)]
    targets = [[np.asarray(frame[i]) for i in range(3)] for frame in frames]
    result = np.random.default_rng(0).uniform(-0.1, 1.1, (3, height, width)).astype(np.float32)
    results: dict[str, list[float]] = {name: [] for name in COPIES}
    for turn in range(rounds + len(frames)):
        for name, copy in COPIES.items():
            start = time.perf_counter()
            if not copy(result, targets[turn % len(frames)]):
                raise AssertionError(f"{name} finds values that are not finite")
            if turn >= len(frames):  # the first turns include page faults of fresh memory
                results[name].append(1000 * (time.perf_counter() - start))
    return results


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_copy", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1440x1080", "1438x1080"])
    parser.add_argument("--rounds", type=int, default=60)
    a = parser.parse_args()
    sizes: dict[str, Any] = {}
    for size in a.sizes:
        width, height = map(int, size.split("x"))
        sizes[size] = measure(width, height, a.rounds)
        for name, times in sizes[size].items():
            print(f"{size}  {name:<20} {median(times):6.2f} ms  (fastest {min(times):.2f})")
    save("host_copy", {"milliseconds": sizes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
