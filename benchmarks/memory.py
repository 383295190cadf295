"""Memory over 500 frames at 120×120: flat after the first 50, or something leaks.

python -m benchmarks.memory [--model medium] [--frames 500]
"""

import argparse
import sys

import psutil
import vapoursynth as vs
from tqdm import tqdm

from benchmarks.report import save


def main() -> int:
    """Measure; see the module's docstring. Status 1 if memory grew by more than 2 % after frame 50."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--settle", type=int, default=50, help="frames after which memory must be flat")
    a = parser.parse_args()
    clip = vs.core.std.BlankClip(width=120, height=120, format=vs.YUV420P8, length=a.frames, color=[120, 90, 160])
    process = psutil.Process()
    used = []
    for _ in tqdm(vs.core.fdatrd.upscale(clip, model=a.model).frames(close=True), total=a.frames, unit="frame"):
        used.append(process.memory_info().rss)
    settled, last = used[a.settle], max(used[a.settle :])
    growth = last / settled - 1
    print(f"{settled / 2**20:.0f} MiB at frame {a.settle}, at most {last / 2**20:.0f} MiB after it: {growth:+.2%}")
    save("memory_120x120", {"frames": a.frames, "rss_bytes": used[:: max(1, a.frames // 100)], "growth": growth})
    return int(growth > 0.02)


if __name__ == "__main__":
    sys.exit(main())
