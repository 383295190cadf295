"""Profile one frame: steps from clip to clip, layers of the network, and the share of the hardware ceiling."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import vapoursynth as vs

from benchmarks import native_work
from benchmarks.ceiling import measure_ceiling
from benchmarks.errors import BenchmarkError
from benchmarks.layers import Layer, layers, padded_picture, sum_by_kind
from benchmarks.report import save
from benchmarks.speed.material import drawn_clip
from benchmarks.weights import weights_file
from vsfdatrd import inference
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.base import FramePlanes, SlotPool
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.selection import open_engine, unavailable_reasons
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.options import Options
from vsfdatrd.video import color, tiling

RUNS = 5


class IdleEngine:
    """An engine that computes nothing; the remaining time is copying, padding and cropping."""

    slots = 1

    def __init__(self, height: int, width: int, scale: int) -> None:
        self._input: FramePlanes = np.zeros((3, height, width), np.float32)
        self._output: FramePlanes = np.zeros((3, height * scale, width * scale), np.float32)

    def input(self, slot: int) -> FramePlanes:
        """The padded frame."""
        return self._input

    def submit(self, slot: int) -> None:
        """Nothing."""

    def collect(self, slot: int) -> FramePlanes:
        """Zeros."""
        return self._output

    def close(self) -> None:
        """Nothing."""


def measure_steps(checkpoint: Checkpoint, width: int, height: int) -> dict[str, float]:
    """Seconds per frame of each step, measured separately, one frame at a time; and of all steps together."""
    scale = checkpoint.descriptor.scale
    rgb = drawn_clip(width, height, RUNS)
    source = color.inspect_clip(_cached_clip(rgb.resize.Spline36(format=vs.YUV420P8, matrix=6)))
    whole_frame = tiling.single_tile(height, width, scale)
    tall, wide = checkpoint.descriptor.size.padded(height, width)
    host = inference.upscale_frames(rgb, SlotPool(IdleEngine(tall, wide, scale)), whole_frame, scale)
    large = _cached_clip(rgb.resize.Point(width * scale, height * scale))
    with tempfile.TemporaryDirectory() as folder:
        pool = open_engine(checkpoint, height, width, Options(streams=1), EngineCache(Path(folder)))

        def infer() -> None:
            pool.engine.submit(0)
            pool.engine.collect(0)

        np.copyto(pool.engine.input(0), padded_picture(checkpoint, width, height))
        infer()  # the first frame takes longer
        found = {
            "color: YUV to RGB": _seconds_per_frame(color.to_rgb(source)),
            "copy in, pad, crop, copy out": _seconds_per_frame(host),
            "network": median(_time_call(infer) for _ in range(RUNS)),
            "color: RGB to YUV": _seconds_per_frame(
                color.convert_output(large, color.output_spec(source, scale, None, None))
            ),
        }
        whole = vs.core.fdatrd.upscale(source.clip, model=str(checkpoint.path), streams=1, cache=folder, reuse="off")
        found["the whole filter"] = _seconds_per_frame(whole)
    return found


def _cached_clip(clip: vs.VideoNode) -> vs.VideoNode:
    """The clip with its frames computed once and cached."""
    vs.core.std.SetVideoCache(clip, mode=1, fixedsize=clip.num_frames)
    for frame in clip.frames(close=True):
        del frame
    return clip


def _seconds_per_frame(clip: vs.VideoNode) -> float:
    """Median seconds per frame, requested one at a time; the first frame is excluded."""
    vs.core.std.SetVideoCache(clip, mode=0)
    return median([_time_call(partial(_get, clip, n)) for n in range(clip.num_frames)][1:])


def _get(clip: vs.VideoNode, n: int) -> None:
    clip.get_frame(n).close()


def _time_call(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(model: str, size: tuple[int, int] | None, out: str | None = None) -> int:
    """Measure, print and save.

    Args:
        model: A name of the catalog, or a weights file.
        size: Width and height of the frame; None for the usual one.
        out: Name of the result; None is ``profile_`` and the size.

    Raises:
        BenchmarkError: PyTorch is missing, or the model is not an FDAT-RD.
    """
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkError("PyTorch, which measures the ceiling, is not installed: pip install vsfdatrd[torch]")
    width, height = size or ((720, 540) if list_gpus() else (240, 240))
    with tempfile.TemporaryDirectory() as folder:
        weights, _ = weights_file(model, Path(folder))
        checkpoint = open_checkpoint(weights)
        config = checkpoint.descriptor.config
        if not isinstance(config, FdatRdConfig):
            raise BenchmarkError(f"{model} is not an FDAT-RD, the only network that is profiled")
        top = measure_ceiling(gpu=bool(list_gpus()))
        work = config.flops(height, width)
        print(f"ceiling ({top.how}): {top.flops / 1e9:,.0f} GFLOP/s, {top.bandwidth / 2**30:.1f} GiB/s")
        print(f"{model}, {width}×{height}: {work / 1e9:,.0f} GFLOP a frame\n")
        steps = measure_steps(checkpoint, width, height)
        whole = steps["the whole filter"]
        for name, seconds in steps.items():
            print(f"{name:<30} {seconds * 1000:>10.1f} ms {seconds / whole:>7.1%}")
        share = work / steps["network"] / top.flops
        print(f"\nthe network runs at {work / steps['network'] / 1e9:,.0f} GFLOP/s, {share:.0%} of the ceiling")
        taken: dict[str, Any] = {}
        for name, reason in unavailable_reasons().items():
            if reason is None:
                try:
                    taken[name] = _print_layers(name, layers(name, weights, width, height))
                except EngineError as error:
                    taken[name] = {"error": str(error)}
                    print(f"\n{name}: {error}")
        kernels = native_work.measure_shares(weights, width, height) if "seconds" in taken.get("native", {}) else None
        if kernels:
            print(f"\nnative, {native_work.format_table(kernels)}")
    result = {
        "model": Path(model).name,
        "size": [width, height],
        "gflop_per_frame": work / 1e9,
        "ceiling": {"gflops": top.flops / 1e9, "gib_per_s": top.bandwidth / 2**30, "how": top.how},
        "seconds": steps,
        "share_of_ceiling": share,
        "layers": taken,
        "native_kernels": kernels,
    }
    save(out or f"profile_{width}x{height}{'_gpu' if list_gpus() else ''}", result)
    return 0


def _print_layers(library: str, found: list[Layer]) -> dict[str, Any]:
    """Print the layers of a library by kind, and the ten longest; return the same data for the JSON file."""
    total = sum(seconds for *_, seconds in found)
    kinds = sum_by_kind(found)
    print(f"\n{library}: {total * 1000:,.0f} ms in {len(found)} layers")
    for kind, count, seconds in kinds[:12]:
        print(f"  {kind[:40]:<40} {count:>4} × {seconds * 1000:>9.1f} ms {seconds / total:>7.1%}")
    return {
        "seconds": total,
        "kinds": [{"kind": kind, "layers": count, "seconds": seconds} for kind, count, seconds in kinds],
        "longest": [{"layer": name, "kind": kind, "seconds": seconds} for name, kind, seconds in found[:10]],
    }
