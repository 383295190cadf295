"""Small films of every kind, made here, and the command as a user starts it."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encode.joining import LENGTH, RATE
from vsfdatrd.system.programs import ffmpeg, run

type Frames = NDArray[np.uint8]
type Popen = Callable[..., subprocess.Popen[str]]
type Encode = Callable[..., subprocess.CompletedProcess[str]]

WIDTH, HEIGHT = 96, 64
CHUNK = ("--chunk", "0.0105")
"""Parts of 15 frames, of which the film has four."""
SRT = "1\n00:00:00,500 --> 00:00:01,000\nfirst\n\n2\n00:00:02,000 --> 00:00:02,300\nsecond\n"


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of engines that all tests here share, so that each is built once."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(autouse=True)
def cache(engines: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That cache, for the programs as well."""
    monkeypatch.setenv("FDATRD_CACHE", str(engines))
    return engines


@pytest.fixture
def encode(identity_2x: Path) -> Encode:
    """Run `vsfdatrd encode` with a network that repeats every pixel, lossless by default."""

    def start(*arguments: str | Path, further: tuple[str, ...] = (), timeout: float = 200) -> Any:
        return subprocess.run(
            command(identity_2x, *arguments, further=further),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


@pytest.fixture
def popen() -> Iterator[Popen]:
    """`subprocess.Popen` in a new process group, which is killed at the end of the test."""
    processes = []

    def start(command: list[str], cwd: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=cwd
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def command(model: Path, *arguments: str | Path, further: tuple[str, ...] = ()) -> list[str]:
    """The command line."""
    words = [sys.executable, "-m", "vsfdatrd.cli", "encode", *map(str, arguments), "--model", str(model)]
    if "--preset" not in words:
        words += ["--preset", "ffv1"]
    return [*words, "--", *further] if further else words


def moving(count: int) -> Frames:
    """Frames of (height, width) in which everything moves, sideways and a scene at a time; luma 16 to 235."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frames = []
    for n in range(count):
        scene = n // 40
        bars = ((x + 5 * n) // 12 % 2) * 90 + ((y + 3 * scene) // 9 % 2) * 60
        frames.append((30 + bars + 20 * (scene % 3)).astype(np.uint8))
    return np.stack(frames)


def write(frames: Frames, path: Path, rate: str, *options: str) -> Path:
    """Encode frames of luma as 4:2:0 without color, lossless unless the options say otherwise."""
    form = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "-"]
    coder = [] if "-c:v" in options else ["-c:v", "ffv1"]
    tags = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
    filters = [option for option in options if option.startswith("vf=")]
    named = "setparams=range=tv:colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m"
    chain = ",".join([named, *(option[3:] for option in filters)])
    rest = [option for option in options if not option.startswith("vf=")]
    run(
        [ffmpeg(), "-v", "error", "-y", *form, "-vf", chain, *coder, *tags, "-color_range", "tv", *rest, str(path)],
        b"".join(frame.tobytes() + bytes([128]) * (WIDTH * HEIGHT // 2) for frame in frames),
    )
    return path


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two and a half seconds of progressive film at 24000/1001."""
    return write(moving(LENGTH), tmp_path_factory.mktemp("films") / "film.mkv", "24000/1001")


@pytest.fixture(scope="session")
def plain_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`joining.LENGTH` frames of H.264 at `joining.RATE`, without anything else: the video of a finished encode."""
    path = tmp_path_factory.mktemp("films") / "plain.mkv"
    return write(moving(LENGTH), path, str(RATE), "-c:v", "libx264", "-preset", "ultrafast", "-bf", "0")


@pytest.fixture(scope="session")
def telecined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same film, telecined to 30000/1001, top field first."""
    path = tmp_path_factory.mktemp("films") / "telecined.mkv"
    return write(
        moving(LENGTH),
        path,
        "24000/1001",
        "vf=telecine=first_field=top:pattern=23",
        "vf=setfield=tff",
        "-field_order",
        "tt",
        "-flags",
        "+ildct",
    )


def decoded(path: Path) -> list[str]:
    """A digest of every frame's luma, in the order of time."""
    with av.open(str(path)) as container:
        return [
            hashlib.md5(frame.to_ndarray()[: frame.height].tobytes()).hexdigest() for frame in container.decode(video=0)
        ]


def times(path: Path, kind: str = "video") -> list[Fraction]:
    """When each packet of the first stream of a kind is shown, in seconds, in order."""
    with av.open(str(path)) as container:
        stream: Any = getattr(container.streams, kind)[0]
        return sorted(p.pts * Fraction(p.time_base) for p in container.demux(stream) if p.size and p.pts is not None)


@pytest.fixture(scope="session")
def reference(film: Path, identity_2x: Path, tmp_path_factory: pytest.TempPathFactory, engines: Path) -> list[str]:
    """Every frame of the film, encoded here and without interruption."""
    output = tmp_path_factory.mktemp("reference") / "out.mkv"
    environment = os.environ | {"FDATRD_CACHE": str(engines)}
    subprocess.run(command(identity_2x, film, output, "--preset", "x264", *CHUNK), check=True, env=environment)
    return decoded(output)
