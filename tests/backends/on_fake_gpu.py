"""Frames through the plugin on an NVIDIA GPU that is made of Python (`fake_gpu/`)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAKE = Path(__file__).parent / "fake_gpu"

# Frames of noise through the plugin; each must come back as its own pixels, repeated. Prints what happened as JSON.
SCRIPT = """
import json, logging, sys
import numpy as np
import vapoursynth as vs

asked = json.loads(sys.argv[1])
logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.INFO)
width, height, length = asked.pop("width", 83), asked.pop("height", 57), asked.pop("length", 12)
blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)

def noise(n):
    return np.random.default_rng(n).random((3, height, width), np.float32)

def draw(n, f):
    out = f.copy()
    for plane, values in enumerate(noise(n)):
        np.copyto(np.asarray(out[plane]), values)
    return out

said = {"frames": [], "error": None}
try:
    out = vs.core.fdatrd.upscale(vs.core.std.ModifyFrame(blank, blank, draw), **asked)
    for n in range(length):
        try:
            frame = out.get_frame(n) if asked.get("streams") == 1 else None
        except vs.Error as error:
            said["frames"].append(str(error))
    if asked.get("streams") != 1:
        requests = [out.get_frame_async(n) for n in range(length)]
        for n, request in enumerate(requests):
            try:
                frame = request.result()
            except vs.Error as error:
                said["frames"].append(str(error))
                continue
            found = np.stack([np.asarray(frame[i]) for i in range(3)])
            said["frames"].append(float(np.abs(found - noise(n).repeat(2, 1).repeat(2, 2)).max()))
except vs.Error as error:
    said["error"] = str(error)
print("\\n" + json.dumps(said))
"""


@dataclass
class Outcome:
    """Result of a script."""

    frames: list[Any]
    """Largest error of each frame, or the message of the error that VapourSynth raised instead of it."""
    error: str | None
    stdout: str
    stderr: str

    @property
    def sound(self) -> bool:
        """Whether every frame is right, up to half a step of bf16, which is what another engine may compute in."""
        return self.error is None and all(isinstance(wrong, float) and wrong < 2**-9 + 1e-4 for wrong in self.frames)

    def assert_frames_fail(self, message: str) -> None:
        """Assert that the script starts, and that frames fail later with errors that contain a message."""
        assert self.error is None
        failed = [frame for frame in self.frames if isinstance(frame, str)]
        assert failed
        assert all(message in frame and frame.startswith("fdatrd.upscale: frame ") for frame in failed)


type Upscale = Callable[..., Outcome]


def upscale_on_fake_gpu(faults: str, gpu: dict[str, str], asked: dict[str, Any]) -> Outcome:
    """Upscale a clip on the fake GPU in another process.

    Args:
        faults: What goes wrong; see fake_gpu_settings.py.
        gpu: Environment variables that describe the GPU; see there.
        asked: Arguments of `upscale`, and width, height and length of the clip.
    """
    # Measuring takes a second; tests of it set the variable to nothing.
    environment = os.environ | {"PYTHONPATH": str(FAKE), "FAKE_GPU": faults, "FDATRD_GPU_CONTEXTS": "1"} | gpu
    environment.pop("FDATRD_CACHE", None)
    if not environment["FDATRD_GPU_CONTEXTS"]:
        del environment["FDATRD_GPU_CONTEXTS"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.strip().splitlines()
    said = json.loads(last)
    return Outcome(said["frames"], said["error"], "\n".join(before), done.stderr)


def run_with_fake_gpu(script: str, *arguments: str, **variables: str) -> None:
    """Run Python code that imports the libraries of the fake GPU. It must not fail."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(FAKE)} | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def engines(tmp_path: Path) -> list[dict[str, str]]:
    """Keys of the engines in the cache."""
    result = (tmp_path / "cache").glob("store-1/engines/*/manifest.json")
    return [json.loads(path.read_text())["key"] for path in result]


def state(tmp_path: Path) -> dict[str, bytes]:
    """Return the files in the folders of the engines' state, by name."""
    return {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("store-1/state/*/*")}
