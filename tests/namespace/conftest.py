"""The filter is replaced by a stand-in, so that only the call path to it is tested."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import vapoursynth as vs

from vsfdatrd.errors import ClipError

STAND_IN = """
import sys, types
def stand_in(clip, **arguments):
    if "model" in arguments:
        raise RuntimeError(arguments["model"])
    return clip.resize.Bilinear(clip.width * 2, clip.height * 2)
sys.modules["vsfdatrd.filter"] = types.ModuleType("vsfdatrd.filter")
sys.modules["vsfdatrd.filter"].upscale = stand_in
"""

type Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A stand-in for vsfdatrd.filter: the arguments that arrive; model= names an exception to raise."""
    arrived: Calls = []
    raised: dict[Any, Callable[[], BaseException]] = {
        "clip error": lambda: ClipError("the clip is upside down"),
        "own error": lambda: vs.Error("fdatrd.upscale: the clip is upside down"),
        "vapoursynth": lambda: vs.Error("Resize error: upside down"),
        "unexpected": lambda: KeyError("upside down"),
        "nothing to say": lambda: MemoryError(),
        "not utf-8": lambda: ClipError("\udcff.pth is not there"),
        "ctrl-c": lambda: KeyboardInterrupt(),
    }

    def stand_in(clip: vs.VideoNode, **arguments: Any) -> vs.VideoNode:
        arrived.append(arguments)
        if error := raised.get(arguments.get("model")):
            raise error()
        return clip.resize.Bilinear(clip.width * 2, clip.height * 2)

    module = ModuleType("vsfdatrd.filter")
    module.upscale = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vsfdatrd.filter", module)
    return arrived


@pytest.fixture
def clip() -> vs.VideoNode:
    return vs.core.std.BlankClip(format=vs.YUV420P8, width=64, height=48, length=3)


def upscale(clip: vs.VideoNode, **arguments: Any) -> vs.VideoNode:
    return clip.fdatrd.upscale(**arguments)


def run(script: str, **environment: str) -> str:
    """What a fresh Python prints; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | environment,
        cwd=Path.home(),
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout
