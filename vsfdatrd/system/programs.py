"""The programs beside us: where vspipe and ffmpeg are, and running them."""

import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vsfdatrd.errors import EncodeError
from vsfdatrd.workers.spawn import no_window


@cache
def ffmpeg() -> str:
    """ffmpeg from PATH, else the one in the imageio-ffmpeg wheel. Raises EncodeError if there is neither."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise EncodeError("there is no ffmpeg on PATH; install it, or pip install imageio-ffmpeg") from error


@cache
def vspipe() -> str:
    """The vspipe of this Python's VapourSynth, else the one on PATH. Raises EncodeError if there is neither."""
    # The program itself: the one in bin/ is a Python script that starts it, and does not end it when it is ended.
    package = find_spec("vapoursynth")
    inside = package and package.origin and shutil.which("vspipe", path=str(Path(package.origin).parent))
    if found := inside or shutil.which("vspipe"):
        return found
    raise EncodeError("vspipe was not found; it comes with pip install vapoursynth")


def run(command: list[str], data: bytes | None = None) -> bytes:
    """Run a program to its end and return its standard output. Raises EncodeError with its last words."""
    done = subprocess.run(command, input=data, capture_output=True, check=False, creationflags=no_window())
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-2000:]
        raise EncodeError(f"{Path(command[0]).name} ended with {done.returncode}: {words}")
    return done.stdout
