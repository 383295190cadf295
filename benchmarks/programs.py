"""The programs beside us: where vspipe and ffmpeg are, and running them."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path


@cache
def ffmpeg() -> str:
    """ffmpeg from PATH, else the one in the imageio-ffmpeg wheel."""
    if found := shutil.which("ffmpeg"):
        return found
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


@cache
def vspipe() -> str:
    """The vspipe of this Python's environment, else the one on PATH. Raises FileNotFoundError."""
    beside = shutil.which("vspipe", path=str(Path(sys.executable).parent))
    if found := beside or shutil.which("vspipe"):
        return found
    raise FileNotFoundError("vspipe was not found; it comes with pip install vapoursynth")


def run(command: list[str], data: bytes | None = None) -> bytes:
    """Run a program to its end and return its standard output. Raises RuntimeError with its last words."""
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {words}")
    return done.stdout
