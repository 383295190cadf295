"""Check that memory stays flat over many frames, and measure how much an engine takes.

python -m benchmarks.memory [--model medium] [--frames 500]
python -m benchmarks.memory --sizes 240x240 480x480 720x540
"""

import argparse
import contextlib
import os
from typing import Any

import psutil
import vapoursynth as vs
from tqdm import tqdm

from benchmarks.command_line import frame_size, positive_int, run
from benchmarks.errors import BenchmarkError
from benchmarks.report import save
from benchmarks.speed.meter import family, peak_of_process
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.selection import open_engine
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.options import Options
from vsfdatrd.weights.catalog import resolve_model


def resident_bytes() -> int:
    """Resident bytes of this process and of the engine workers."""
    total = 0
    for process in family(os.getpid()):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            total += process.memory_info().rss
    return total


def check_flat(model: str, frames: int, settle: int) -> int:
    """Upscale many frames of 120×120.

    Args:
        model: A name of the catalog, or a weights file.
        frames: Number of frames.
        settle: Frames after which memory must be flat, fewer than `frames`.

    Returns:
        1 if memory grows by more than 2 % after them, else 0.
    """
    clip = vs.core.std.BlankClip(width=120, height=120, format=vs.YUV420P8, length=frames, color=[120, 90, 160])
    used = []
    for _ in tqdm(
        vs.core.fdatrd.upscale(clip, model=model, reuse="off").frames(close=True), total=frames, unit="frame"
    ):
        used.append(resident_bytes())
    settled, last = used[settle], max(used[settle:])
    growth = last / settled - 1
    print(f"{settled / 2**20:.0f} MiB at frame {settle}, at most {last / 2**20:.0f} MiB after it: {growth:+.2%}")
    save(
        "memory_120x120",
        {"model": model, "frames": frames, "rss_bytes": used[:: max(1, frames // 100)], "growth": growth},
    )
    return int(growth > 0.02)


def compare_with_estimate(model: str, sizes: list[tuple[int, int]]) -> int:
    """Compare the peak memory of the OpenVINO worker with its estimate.

    Args:
        model: A name of the catalog, or a weights file.
        sizes: Widths and heights of frames.

    Raises:
        BenchmarkError: The model is not an FDAT-RD.
    """
    checkpoint = open_checkpoint(resolve_model(model))
    config = checkpoint.descriptor.config
    if not isinstance(config, FdatRdConfig):
        raise BenchmarkError(f"{model} is not an FDAT-RD, the only network that this is measured with")
    rows: list[dict[str, Any]] = []
    for width, height in sizes:
        engine = open_engine(checkpoint, height, width, Options(backend="openvino", streams=1), EngineCache()).engine
        child = psutil.Process().children()[-1]
        before = child.memory_info().rss
        engine.submit(0)
        engine.collect(0)
        peak = peak_of_process(child.pid)
        _, padded_height, padded_width = engine.input(0).shape
        spec = EngineSpec(checkpoint, padded_height, padded_width, "fp32")
        tokens = spec.height * spec.width / config.unshuffle**2
        row = {
            "size": [width, height],
            "peak_bytes": peak,
            "bytes_per_token_and_channel": (peak - before) / tokens / config.ffn_dim,
            "estimated_bytes": openvino.memory_estimate(spec)[0],
        }
        print(f"{width}x{height}: {peak / 2**20:.0f} MiB, estimated {row['estimated_bytes'] / 2**20:.0f} MiB")
        rows.append(row)
        engine.close()
    save("memory_by_size", {"model": model, "engine": "openvino fp32", "rows": rows})
    return 0


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--frames", type=positive_int, default=500)
    parser.add_argument("--settle", type=positive_int, default=50, help="frames after which memory must be flat")
    parser.add_argument("--sizes", nargs="+", type=frame_size, help="measure engines for these sizes instead")
    a = parser.parse_args()
    if not a.sizes and a.settle >= a.frames:
        parser.error(f"--settle {a.settle} must be less than --frames {a.frames}")
    return compare_with_estimate(a.model, a.sizes) if a.sizes else check_flat(a.model, a.frames, a.settle)


if __name__ == "__main__":
    run(main)
