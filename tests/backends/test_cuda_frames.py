"""Frames through the CUDA backend, on the GPU made of Python, where NumPy stands in for the kernels.

In one test they are the kernels themselves, in Triton's interpreter.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.backends.closeness import run_network
from tests.backends.cuda_network import FIELDS
from tests.backends.on_fake_gpu import FAKE, engines, run_with_fake_gpu
from tests.backends.tail_networks import calmed, tail_network
from tests.conftest import tiny_config
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.upsamplers import Upsampler
from vsfdatrd.checkpoint import open_checkpoint

ROOT = FAKE.parents[2]

# Frames of noise through the plugin, saved; prints what was said as JSON.
SCRIPT = """
import json, logging, sys
import numpy as np
import vapoursynth as vs
from vsfdatrd.backends import weights_file

weights_file.VERIFICATION_SIZE = 60, 60  # NumPy is slow
asked = json.loads(sys.argv[1])
logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.INFO)
width, height, length = asked.pop("width"), asked.pop("height"), asked.pop("length")
blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)

def draw(n, f):
    out = f.copy()
    for plane, values in enumerate(np.random.default_rng(n).random((3, height, width), np.float32)):
        np.copyto(np.asarray(out[plane]), values)
    return out

said = {"error": None, "failed": []}
try:
    out = vs.core.fdatrd.upscale(vs.core.std.ModifyFrame(blank, blank, draw), **asked)
    requests = [out.get_frame_async(n) for n in range(length)]
    for n, request in enumerate(requests):
        try:
            frame = request.result()
        except vs.Error as error:
            said["failed"].append(str(error))
        else:
            np.save(f"{sys.argv[2]}/{n}.npy", np.stack([np.asarray(frame[i]) for i in range(3)]))
except vs.Error as error:
    said["error"] = str(error)
print("\\n" + json.dumps(said))
"""


@pytest.fixture
def run(cuda_model: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Runs the script on a fake GPU. Returns what was said, stderr, and by how much the worst frame is wrong."""

    def runner(
        faults: str = "",
        gpus: str = "Fake RTX 8.9",
        contexts: str = "1",
        kernels: str = "numpy",
        config: FdatRdConfig | None = None,
        **asked: Any,
    ) -> SimpleNamespace:
        clip = {"width": 50, "height": 44, "length": 3}
        clip |= {key: asked.pop(key) for key in clip if key in asked}
        asked = {"model": str(cuda_model), "cache": str(tmp_path / "cache"), "backend": "cuda"} | asked
        environment = os.environ | {"PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}", "FAKE_GPU": faults, "FAKE_GPUS": gpus}
        environment["FAKE_KERNELS"] = kernels
        environment["FDATRD_GPU_CONTEXTS"] = contexts  # measuring takes seconds with NumPy
        environment["OPENBLAS_NUM_THREADS"] = "1"  # there are few cores, and threads that wait for work take them
        environment.pop("FDATRD_CACHE", None)
        for old in tmp_path.glob("*.npy"):
            old.unlink()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(clip | asked), str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        *before, last = done.stdout.strip().splitlines()
        assert before == [], "something is printed into the video"
        wrong = []
        for path in tmp_path.glob("*.npy"):
            picture = np.random.default_rng(int(path.stem)).random((3, clip["height"], clip["width"]), np.float32)
            tensors = open_checkpoint(Path(asked["model"])).tensors()
            expected = run_network(config or tiny_config(**FIELDS), tensors, picture).clip(0, 1)
            wrong.append(np.abs(np.load(path) - expected).max())
        return SimpleNamespace(**json.loads(last), stderr=done.stderr, wrong=max(wrong, default=None))

    return runner


type Run = Callable[..., SimpleNamespace]


def test_frames_are_what_the_network_computes(run: Run, tmp_path: Path) -> None:
    """On two GPUs of different kinds; and for another size there is nothing to build, but something to verify."""
    first = run(gpus="Fake RTX 8.9,Fake H100 9.0", device=[0, 1])
    assert first.error is None
    assert first.failed == []
    assert first.wrong < 2e-3, first.stderr
    assert "fp16 agrees with fp32 to" in first.stderr
    assert "without a CUDA graph" not in first.stderr
    (key,) = engines(tmp_path)
    assert key["engine"].startswith("cuda kernels ")
    assert (key["shape"], key["precision"], key["device"]) == ("any", "fp16", "CUDA")

    other = run(width=110, length=2, contexts="2")  # each frame in an execution context of its own
    assert other.wrong < 2e-3
    assert "agrees with" in other.stderr
    assert "no memory" not in other.stderr
    assert engines(tmp_path) == [key]
    (note,) = (tmp_path / "cache").glob("store-1/state/*/verified.json")
    assert list(json.loads(note.read_text())) == [
        "Fake RTX, Fake H100, driver 590.1 for CUDA 13.1, 60×60",
        "Fake RTX, driver 590.1 for CUDA 13.1, 120×60",
    ]


def test_frames_are_what_the_kernels_themselves_compute(run: Run) -> None:
    """Every launch in Triton's interpreter: the first run, that of the CUDA graph, and a frame of the script."""
    pytest.importorskip("triton")
    assert run(length=1).wrong < 2e-3  # the size is verified with NumPy, which is faster
    outcome = run(length=1, streams=1, kernels="interpreted")
    assert outcome.error is None
    assert outcome.failed == []
    assert outcome.wrong < 2e-3, outcome.stderr
    assert outcome.stderr.count("a frame computed by Triton's interpreter") == 3
    assert "without a CUDA graph" not in outcome.stderr
    assert "agrees with fp32" not in outcome.stderr, "it is verified again, which takes long"


@pytest.mark.parametrize(
    ("upsampler", "scale", "unshuffle"),
    [
        ("conv", 1, 1),
        ("pixelshuffledirect", 3, 1),
        ("transpose+conv", 2, 1),
        ("transpose+conv", 3, 1),
        ("pixelshuffle", 4, 2),
        ("nearest+conv", 2, 1),
        ("pa_up", 2, 2),
        ("dysample", 3, 1),
        ("lda", 2, 1),
    ],
)
def test_frames_of_every_tail(run: Run, tmp_path: Path, upsampler: Upsampler, scale: int, unshuffle: int) -> None:
    config, tensors = tail_network(upsampler, scale, unshuffle=unshuffle, mid_dim=16)
    path = tmp_path / "network.safetensors"
    save_file(calmed(config, tensors), path)
    outcome = run(config=config, model=str(path), width=30, height=28, length=2)
    assert outcome.error is None
    assert outcome.failed == []
    # In noise, positions that are off by a hundredth of a pixel make a difference.
    assert outcome.wrong < (2e-2 if upsampler == "lda" else 2e-3), outcome.stderr
    assert "fp16 agrees with fp32 to" in outcome.stderr
    assert "without a CUDA graph" not in outcome.stderr


def test_the_other_precision_when_one_strays(run: Run, tmp_path: Path) -> None:
    """And without a graph that computes the same, launches one by one."""
    outcome = run("wrong-fp16 replay register")
    assert outcome.error is None
    assert "cuda with fp16 did not pass: the fp16 engine agrees with fp32 to 34" in outcome.stderr
    assert "without a CUDA graph: it computes something else" in outcome.stderr
    assert outcome.wrong < 2e-2
    assert [key["precision"] for key in engines(tmp_path)] == ["bf16"]


def test_a_gpu_that_fails_in_the_middle_fails_frames(run: Run) -> None:
    outcome = run("launch", length=5)  # of the frames, the first eight in all run
    assert outcome.error is None
    assert outcome.failed
    assert all("unspecified launch failure" in text for text in outcome.failed)
    assert all(text.startswith("fdatrd.upscale: frame ") for text in outcome.failed)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("ptx", "the NVIDIA driver (590.1 for CUDA 13.1) is too old for the CUDA kernels; install a current driver"),
        ("nan", "the fp16 engine's output has 1 values that are not finite"),
    ],
)
def test_what_cannot_work_is_a_sentence(run: Run, tmp_path: Path, fault: str, message: str) -> None:
    outcome = run(fault, precision="fp16")
    assert message in (outcome.error or "")
    # The files serve as soon as there is another driver.
    assert len(engines(tmp_path)) == (fault == "ptx")


CONTEXTS_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from cuda.bindings import runtime
from vsfdatrd.backends import weights_file
from vsfdatrd.backends.cuda.worker import CudaServer
from vsfdatrd.backends.gpu import concurrency, cuda
from vsfdatrd.checkpoint import open_checkpoint

weights_file.write_weights(Path(sys.argv[2]), open_checkpoint(Path(sys.argv[1])).tensors())
measured = []
concurrency.measure_gain = lambda contexts: measured.append(len(contexts)) or rates
concurrency.measure_rate = lambda contexts: 30.0
side = CudaServer(sys.stdout)

def load(*more):
    return side.do_load(sys.argv[2], 60, 60, "fp16", [0], *more)

loaded = load(None, 2)
assert (loaded["contexts"], loaded["measured"], len(side._contexts)) == (2, None, 2), loaded
picture = np.random.default_rng(0).random((3, 60, 60), np.float32)
first, second = (device.run_once(picture) for device in side._contexts)
assert np.array_equal(first, second) and side._contexts[0]._arena.address != side._contexts[1]._arena.address
before = len(runtime._memory)
side._remove_contexts(1)
assert len(runtime._memory) == before - 3, "arena and two buffers of frames"

side._remove_contexts(0)
for rates, contexts in (((10, 10.2), 1), ((10, 10.4), 2)):
    loaded = load(None, None)
    assert (loaded["contexts"], loaded["measured"], len(side._contexts)) == (contexts, rates, contexts), loaded
    side._remove_contexts(0)
assert measured == [2, 2]
assert load(1, 2)["slots"] == 1 and len(side._contexts) == 1
side._remove_contexts(0)
cuda.free_memory = lambda index: 1 << 20
loaded = load(None, None)
assert (loaded["contexts"], loaded["slots"], measured) == (1, 3, [2, 2]), "there is no memory for two"
"""


def test_two_frames_at_a_time(cuda_model: Path, tmp_path: Path) -> None:
    """As for TensorRT: measured if there is memory, and kept if it is faster."""
    path = f"{FAKE}{os.pathsep}{ROOT}"
    run_with_fake_gpu(CONTEXTS_SCRIPT, str(cuda_model), str(tmp_path), PYTHONPATH=path, OPENBLAS_NUM_THREADS="1")
