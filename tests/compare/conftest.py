"""Small videos, written as y4m so that every sample is what the test says."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from benchmarks.cartoon import draw_frame
from benchmarks.quality_methods import as_clip
from tests.compare.browser import Browser, chromium

type Drawing = NDArray[np.uint8]
type Writer = Callable[..., Path]

SIZE = (240, 160)


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index of BestSource's outlives a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))


def scenes(count: int, length: int, size: tuple[int, int] = SIZE) -> list[Drawing]:
    """`count` scenes of `length` frames that differ from each other: drawings, mirrored, and in other colors."""
    frames = []
    for scene in range(count):
        for n in range(length):
            picture = draw_frame(40 * scene + n, *size)
            picture = picture[:, ::-1] if scene % 2 else picture
            frames.append(np.ascontiguousarray(255 - picture if scene % 4 > 1 else picture))
    return frames


def clip_of(pictures: Sequence[Drawing], form: vs.PresetVideoFormat = vs.YUV444P8, **to: Any) -> vs.VideoNode:
    """RGB drawings as YUV; SD's matrix and limited range unless `to` (matrix=, range=) says otherwise."""
    return as_clip(pictures).resize.Spline36(format=form, **({"matrix": 6, "range": 0} | to))


def write_y4m(path: Path, clip: vs.VideoNode, rate: str = "24:1", tags: str = "Ip A1:1") -> Path:
    """Write a clip as y4m; rate and tags are in the syntax of its header."""
    samples = {"YUV420P8": "420jpeg", "YUV444P8": "444", "YUV411P8": "411"}[clip.format.name]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{clip.width} H{clip.height} F{rate} {tags} C{samples}\n".encode())
        for frame in clip.frames(close=True):
            file.write(b"FRAME\n" + b"".join(np.asarray(frame[i]).tobytes() for i in range(3)))
    return path


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """(name, clip, rate, tags) to the path of a y4m file."""

    def named(name: str, clip: vs.VideoNode, rate: str = "24:1", tags: str = "Ip A1:1") -> Path:
        return write_y4m(tmp_path / name, clip, rate, tags)

    return named


@pytest.fixture(scope="session")
def film() -> list[Drawing]:
    """Three scenes of 20 frames."""
    return scenes(3, 20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; without one, tests are skipped."""
    if (program := chromium()) is None:
        pytest.skip("there is no Chromium on this machine")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
