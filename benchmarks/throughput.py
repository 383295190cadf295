"""Frames per second through VapourSynth, ours beside the peer's, on the same weights and frames, in one run.

    python -m benchmarks.throughput [--model medium] [--size 240x240] [--frames 4] [--rounds 5]

The peer is vapoursynth-mlrt-ov with its defaults on PyTorch's own ONNX export of the same network. Rounds alternate
between the two, so that whatever else the machine does meets both; the ratio is that of the medians.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import vapoursynth as vs

from benchmarks.cartoon import drawing
from benchmarks.report import save
from vsfdatrd.catalog import resolve
from vsfdatrd.checkpoint import open_checkpoint


def clip_of_drawings(width: int, height: int, frames: int) -> vs.VideoNode:
    """An RGBS clip of the drawn animation, (height, width), every frame different."""
    planes = [
        np.ascontiguousarray(drawing(2 * n, width, height).transpose(2, 0, 1), np.float32) / 255 for n in range(frames)
    ]
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=frames)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i in range(3):
            np.copyto(np.asarray(out[i]), planes[n][i])
        return out

    return vs.core.std.ModifyFrame(blank, blank, fill)


def export_for_peer(weights: Path, height: int, width: int, file: Path) -> None:
    """PyTorch's own export, as the peer's users make it."""
    import torch

    network = open_checkpoint(weights).network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every size it takes as fixed, which is what we want
        torch.onnx.export(
            network, (torch.zeros(1, 3, height, width),), str(file), dynamo=False, opset_version=17,
            input_names=["input"], output_names=["output"],
        )  # fmt: skip


def seconds_per_frame(clip: vs.VideoNode) -> float:
    """Mean time of a frame, as many being requested at once as VapourSynth has threads."""
    start = time.perf_counter()
    for _ in clip.frames(close=True):
        pass
    return (time.perf_counter() - start) / clip.num_frames


def main() -> int:
    """Run the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--size", default="240x240")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int)
    a = parser.parse_args()
    width, height = map(int, a.size.split("x"))
    weights = resolve(a.model)
    source = clip_of_drawings(width, height, a.frames)
    vs.core.std.SetVideoCache(source, mode=1, fixedsize=a.frames)
    seconds_per_frame(source)

    ours = vs.core.fdatrd.upscale(source, model=str(weights), streams=a.streams, reuse="off")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "peer.onnx")
        export_for_peer(weights, height, width, exported)
        peer = vs.core.ov.Model([source], network_path=str(exported), device="CPU")
    clips = {"vsfdatrd": ours, "vapoursynth-mlrt-ov": peer}
    for clip in clips.values():
        vs.core.std.SetVideoCache(clip, mode=0)

    times: dict[str, list[float]] = {name: [] for name in clips}
    for turn in range(a.rounds + 1):
        for name, clip in clips.items():
            seconds = seconds_per_frame(clip)
            if turn:  # the first round warms up
                times[name].append(seconds)
                print(f"round {turn}/{a.rounds} {name}: {1 / seconds:.3f} fps", file=sys.stderr)
    difference = [
        float(np.mean((np.asarray(p[i]) - np.clip(np.asarray(q[i]), 0, 1)) ** 2))  # the peer does not clamp
        for p, q in zip(ours.frames(close=False), peer.frames(close=False), strict=True)
        for i in range(3)
    ]
    rates = {name: [1 / t for t in sorted(values)] for name, values in times.items()}
    ratio = median(times["vapoursynth-mlrt-ov"]) / median(times["vsfdatrd"])
    result = {
        "size": [width, height],
        "model": weights.name,
        "frames_per_round": a.frames,
        "fps": {name: {"median": median(r), "min": min(r), "max": max(r)} for name, r in rates.items()},
        "ratio": ratio,
        "psnr_between_db": float(-10 * np.log10(max(np.mean(difference), 1e-20))),
    }
    for name, rate in rates.items():
        print(f"{name:<22} {median(rate):.3f} fps (min {min(rate):.3f}, max {max(rate):.3f})")
    print(f"ratio {ratio:.2f}, the two pictures agree to {result['psnr_between_db']:.1f} dB")
    save(f"throughput_{width}x{height}", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
