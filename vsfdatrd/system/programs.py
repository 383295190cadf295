"""Locate and run vspipe and ffmpeg."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vsfdatrd.errors import EncodeError
from vsfdatrd.workers.spawn import creation_flags, describe_exit


@cache
def find_ffmpegs() -> tuple[str, ...]:
    """Return every ffmpeg found, in order of preference: those on PATH, then the one from imageio-ffmpeg.

    Raises:
        EncodeError: There is none.
    """
    result = [shutil.which("ffmpeg", path=folder) for folder in os.get_exec_path() if folder]
    reason: Exception | None = None
    try:
        import imageio_ffmpeg

        result.append(shutil.which(imageio_ffmpeg.get_ffmpeg_exe()))
    except (ImportError, RuntimeError, OSError) as error:
        reason = error
    # Of several paths to the same program, keep the first.
    programs = {os.path.realpath(path): path for path in reversed(result) if path}
    if not programs:
        raise EncodeError("there is no ffmpeg on PATH; install it, or pip install imageio-ffmpeg") from reason
    return tuple(reversed(programs.values()))


@cache
def ffmpeg(encoder: str = "") -> str:
    """Return the first ffmpeg that runs and has the encoder.

    Args:
        encoder: Name of an encoder; empty accepts any ffmpeg that runs.

    Raises:
        EncodeError: There is none; the message gives the reason for each ffmpeg.
    """
    lacking = []
    for program in find_ffmpegs():
        try:
            if not encoder or encoder in _encoders(program):
                ffmpeg_version(program)
                return program
            lacking.append(f"{program} has no encoder {encoder}")
        except EncodeError as error:
            lacking.append(str(error))
    advice = "install an ffmpeg that has it, or choose another --preset" if encoder else "install another"
    raise EncodeError(f"{'; '.join(lacking)}; {advice} (pip install imageio-ffmpeg installs one)")


@cache
def ffmpeg_version(program: str) -> str:
    """Return the version line of an ffmpeg.

    Raises:
        EncodeError: It does not run.
    """
    return _output_of(program, "-version").partition("\n")[0].strip()


@cache
def _encoders(program: str) -> frozenset[str]:
    return frozenset(re.findall(r"^ \S{6} +(\S+) ", _output_of(program, "-encoders"), re.MULTILINE))


def _output_of(program: str, options: str) -> str:
    try:
        done = run_unchecked([program, "-hide_banner", options], timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EncodeError(f"{program} cannot be run ({getattr(error, 'strerror', None) or error})") from error
    if done.returncode:
        raise EncodeError(
            f"{program} does not run ({describe_exit(done.returncode)}: {main_reason(stderr_lines(done))})"
        )
    return done.stdout.decode(errors="replace")


@cache
def vspipe() -> str:
    """Return the vspipe of this Python's VapourSynth, else the one on PATH.

    Raises:
        EncodeError: There is neither.
    """
    # The binary itself: bin/vspipe is a Python script that starts it and does not stop it when the script is killed.
    package = find_spec("vapoursynth")
    inside = package and package.origin and shutil.which("vspipe", path=str(Path(package.origin).parent))
    if result := inside or shutil.which("vspipe"):
        return result
    raise EncodeError("vspipe was not found; it comes with pip install vapoursynth")


def utf8_environment() -> dict[str, str] | None:
    """Return the environment for vspipe with which its Python can use any file name; None to inherit this process's.

    In the C locale (cron jobs, systemd timers) Python itself decodes file names as UTF-8, but a Python embedded in a
    program such as vspipe is limited to ASCII (and ignores PYTHONUTF8).
    """
    if os.name == "nt" or (sys.getfilesystemencoding() == "utf-8" and not sys.flags.utf8_mode):
        return None
    return os.environ | {"LC_ALL": "C.UTF-8"}


# Lines that ffmpeg adds after the actual error, which only say that something failed.
_CONSEQUENCES = re.compile(
    r"(Error (while opening encoder|sending frames|while filtering|initializing|reinitializing|muxing|writing trailer|"
    r"submitting a packet|closing file)|Task finished with error|Terminating thread|Nothing was written|"
    r"Could not open encoder before EOF|Conversion failed|Exiting (normally|with)|Last message repeated|"
    r"Error opening output files?|maybe incorrect parameters|Finishing stream|Error encoding a frame)",
)
_LOG_ADDRESS = re.compile(r"^(?:\[([^\]@]+?) @ (?:0x)?[0-9a-fA-F]+\] ?)+")


def main_reason(lines: Sequence[str]) -> str:
    """Return the lines of a program's output that say why it failed: up to three, without follow-on errors."""
    messages = [line.strip() for line in lines if line.strip()]
    causes = [line for line in messages if not _CONSEQUENCES.search(line)] or messages
    plain = dict.fromkeys(_LOG_ADDRESS.sub(lambda match: f"{match[1]}: ", line) for line in causes)
    return "; ".join(list(plain)[:3]) or "it printed no message"


def run(command: list[str], data: bytes | None = None) -> bytes:
    """Run a program to completion.

    Args:
        command: The program and its arguments.
        data: Bytes for its standard input.

    Returns:
        Its standard output.

    Raises:
        EncodeError: It failed; the message quotes its stderr.
    """
    done = run_unchecked(command, data)
    if done.returncode:
        words = main_reason(stderr_lines(done))[:2000]
        raise EncodeError(f"{Path(command[0]).name} ended with {describe_exit(done.returncode)}: {words}")
    return done.stdout


def run_unchecked(
    command: list[str], data: bytes | None = None, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to completion, whether it succeeds or not.

    Args:
        command: The program and its arguments.
        data: Bytes for its standard input, which is empty by default.
        timeout: Seconds after which it is killed.
        options: Keyword arguments of `subprocess.run`.

    Raises:
        OSError: The program cannot be started.
        subprocess.TimeoutExpired: It did not end in time.
    """
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
    return subprocess.run(
        command, capture_output=True, check=False, timeout=timeout, creationflags=creation_flags(), **source, **options
    )


def stderr_lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return the lines that a program has written to stderr, without empty ones."""
    return [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
