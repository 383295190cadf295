"""Seconds from starting Python to the first frame at 120×120, with an empty cache and with a warm one.

python -m benchmarks.startup [--model medium] [--rounds 3]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.command_line import positive_int, run
from benchmarks.errors import BenchmarkError
from benchmarks.report import save

SCRIPT = """\
import sys
import vapoursynth as vs
clip = vs.core.std.BlankClip(width=120, height=120, format=vs.YUV420P8, length=1, color=[120, 90, 160])
vs.core.fdatrd.upscale(clip, model={model!r}, cache={cache!r}).get_frame(0)
print("torch" if "torch" in sys.modules else "no torch")
"""


def time_script(model: str, cache: str) -> tuple[float, bool]:
    """Run the script in a separate process.

    Args:
        model: A name of the catalog, or a weights file.
        cache: Folder of built engines.

    Returns:
        Seconds, and whether it imported torch.

    Raises:
        BenchmarkError: The script fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(model=model, cache=cache)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BenchmarkError(f"the script fails: {(done.stderr.strip().splitlines() or ['it does not say why'])[-1]}")
    return seconds, "no torch" not in done.stdout


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--rounds", type=positive_int, default=3)
    a = parser.parse_args()
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as cache:
        time_script(a.model, cache)  # reads the packages from the disk, which counts for nothing
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(time_script(a.model, cache))
            warm.append(time_script(a.model, cache))
    for name, times in (("empty cache", cold), ("warm cache", warm)):
        torch = "torch imported" if any(t for _, t in times) else "torch not imported"
        print(f"{name}: {median(s for s, _ in times):.2f} s (of {len(times)}; {torch})")
    save(
        "startup_120x120",
        {
            "model": Path(a.model).name,
            "seconds_empty_cache": [s for s, _ in cold],
            "seconds_warm_cache": [s for s, _ in warm],
            "torch_imported": {"empty": any(t for _, t in cold), "warm": any(t for _, t in warm)},
        },
    )
    return 0


if __name__ == "__main__":
    run(main)
