"""Compare the cost of `vsfdatrd encode` with a single `vspipe | ffmpeg` of the same script, in turns.

    python -m benchmarks.encode [--model medium] [--size 120x90] [--frames 1200] [--parts 2] [--rounds 2]

Both read and index the film, upscale every frame and encode it with the same options; engines are built beforehand.
`encode` does more: it analyzes fields and borders, computes one trial frame, restarts both programs for each chunk,
decodes every chunk to verify that it is complete, joins the chunks, and reads the output back. That costs some seconds
per chunk, whatever its length, so the relative overhead falls with the length; it is reported for the measured length.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cartoon import drawing
from benchmarks.report import save
from vsfdatrd.system.programs import ffmpeg, run, vspipe

RATE = 24
_CODER = ("-c:v", "libx265", "-preset", "medium", "-tune", "animation", "-crf", "16", "-x265-params", "log-level=error")


def write(path: Path, width: int, height: int, frames: int) -> None:
    """Write a synthetic film as on a disc: MPEG-2, a key frame every half second."""
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(RATE), "-i", "-"]
    tags = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
    coder = ["-vf", "scale=out_color_matrix=bt601,setsar=1", "-pix_fmt", "yuv420p", "-c:v", "mpeg2video", "-q:v", "3"]
    run(
        [ffmpeg(), "-v", "error", "-y", *form, *coder, *tags, "-g", "12", str(path)],
        b"".join(drawing(n, width, height).tobytes() for n in range(frames)),
    )


def straight(script: Path, output: Path) -> dict[str, float]:
    """Wall and CPU seconds of a single vspipe | ffmpeg."""
    start, used = time.perf_counter(), _used()
    coder = [ffmpeg(), "-v", "error", "-y", "-i", "-", *_CODER, str(output)]
    source = [vspipe(), "-c", "y4m", str(script), "-"]
    with subprocess.Popen(source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as pipe:
        done = subprocess.run(coder, stdin=pipe.stdout, check=False)
    if pipe.returncode or done.returncode:
        raise RuntimeError(f"vspipe ended with {pipe.returncode}, ffmpeg with {done.returncode}")
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": _used() - used}
    output.unlink()
    return seconds


def in_parts(words: list[str], output: Path) -> dict[str, float]:
    """Seconds of `vsfdatrd encode`: wall time, CPU time, until the first frame, and for joining the chunks."""
    start, used = time.perf_counter(), _used()
    at: dict[str, float] = {}
    with subprocess.Popen([*words, "--json"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            event: dict[str, Any] = json.loads(line)
            at.setdefault(event["event"], time.perf_counter() - start)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} ended with {process.returncode}")
    whole = time.perf_counter() - start
    output.unlink()
    return {
        "seconds": whole,
        "cpu_seconds": _used() - used,
        "until_first_frame": at["progress"],
        "joining": whole - at["joining"],
    }


def _used() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="medium")
    parser.add_argument("--size", default="120x90", metavar="WxH")
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args(argv)
    width, height = map(int, a.size.split("x"))
    minutes = a.frames / a.parts / RATE / 60
    both: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        film, output, script = (Path(folder) / name for name in ("film.mkv", "out.mkv", "straight.vpy"))
        write(film, width, height, a.frames)
        words = [
            sys.executable,
            "-m",
            "vsfdatrd.cli",
            "encode",
            str(film),
            str(output),
            "--model",
            a.model,
            "--chunk",
            f"{minutes:.4f}",
        ]
        text = subprocess.run([*words, "--script"], check=True, capture_output=True, text=True).stdout
        script.write_text(text.replace("showprogress=0)", "showprogress=0, cachemode=0)"))  # an index of its own
        run([vspipe(), "-e", "0", str(script), "."])  # builds the engine if it is not cached
        for number in range(a.rounds):
            turns = {
                "straight": lambda: straight(script, output),
                "parts": lambda: in_parts(words, output),
            }
            order = list(turns) if number % 2 == 0 else list(reversed(turns))
            both.append({name: turns[name]() for name in order})
            print(f"round {number + 1}: {both[-1]}", file=sys.stderr, flush=True)
    once = median(turn["straight"]["seconds"] for turn in both)
    whole, until, joining = (
        median(turn["parts"][name] for turn in both) for name in ("seconds", "until_first_frame", "joining")
    )
    share, work = (
        median(turn["parts"][name] / turn["straight"][name] for turn in both) - 1 for name in ("seconds", "cpu_seconds")
    )
    print(f"straight: {once:.1f} s ({a.frames / once:.2f} fps)")
    lasts = (whole - until - joining) / a.parts
    print(
        f"in {a.parts} parts of {lasts:.0f} s: {whole:.1f} s, {100 * share:+.1f} % time, {100 * work:+.1f} % work "
        f"(until the first frame {until:.1f} s, joining {joining:.1f} s)"
    )
    save(
        "encode_" + a.size,
        {
            "model": a.model,
            "frames": a.frames,
            "parts": a.parts,
            "rounds": both,
            "more_time": round(share, 4),
            "more_work": round(work, 4),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
