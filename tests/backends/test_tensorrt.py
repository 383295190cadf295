"""The TensorRT engine from the script to the frame, on a GPU that is made of Python (`fake_gpu/`), with all its moods.

What only a real GPU can show is in tests/gpu; what the real library shows without one, in `test_tensorrt_build.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from tests.conftest import identity_tensors
from vsfdatrd.backends.gpu.contexts import CONTEXTS, requested

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
    """What a script saw."""

    frames: list[Any]
    """For each frame, by how much it was wrong, or what was said instead of it."""
    error: str | None
    stdout: str
    stderr: str

    @property
    def sound(self) -> bool:
        """Whether every frame is right, up to half a step of bf16, which is what another engine may compute in."""
        return self.error is None and all(isinstance(wrong, float) and wrong < 2**-9 + 1e-4 for wrong in self.frames)


type Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file: repeats every pixel, and its blocks compute something, which precisions differ in."""
    path = tmp_path_factory.mktemp("networks") / "identity.safetensors"
    save_file(identity_tensors(2, idle=False), path)
    return path


@pytest.fixture
def run(identity: Path, tmp_path: Path) -> Run:
    """Runs the script with a fake GPU. faults, and what else the GPU is like: see fake_gpu_settings.py."""

    def runner(faults: str = "", gpu: dict[str, str] | None = None, **asked: Any) -> Outcome:
        asked = {"model": str(identity), "cache": str(tmp_path / "cache")} | asked
        # Measuring takes a second; tests of it set the variable to nothing.
        given = {"PYTHONPATH": str(FAKE), "FAKE_GPU": faults, "FDATRD_GPU_CONTEXTS": "1"} | (gpu or {})
        environment = os.environ | given
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

    return runner


def engines(tmp_path: Path) -> list[dict[str, str]]:
    """Keys of the engines in the cache."""
    result = (tmp_path / "cache").glob("store-1/engines/*/manifest.json")
    return [json.loads(path.read_text())["key"] for path in result]


def state(tmp_path: Path) -> dict[str, bytes]:
    """Files beside the engines."""
    return {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("store-1/state/*/*")}


def test_auto_takes_it_builds_verifies_and_keeps_it(run: Run, tmp_path: Path) -> None:
    first = run()
    assert first.sound, first
    assert first.stdout == "", "the library's hello is in the video"
    assert "TensorRT says hello" in first.stderr
    assert "fp16 agrees with fp32 to" in first.stderr
    (key,) = engines(tmp_path)
    assert (key["engine"], key["device"]) == ("tensorrt tensorrt_rtx 9.9.9", "sm89")
    assert (key["shape"], key["precision"]) == ("90x60", "fp16")
    kept = state(tmp_path)
    assert kept["compiled for Fake RTX, driver 590.1 for CUDA 13.1"] == b"kernels"
    (verified,) = json.loads(kept["verified.json"]).items()
    assert verified[0] == "Fake RTX, driver 590.1 for CUDA 13.1, tensorrt_rtx 9.9.9"
    assert verified[1] >= 50

    again = run()
    assert again.sound
    assert "agrees with" not in again.stderr, "it was verified again"
    assert engines(tmp_path) == [key]


@pytest.mark.parametrize("newer", [{"FAKE_DRIVER": "13020"}, {"FAKE_RELEASE": "590.2"}])
def test_another_driver_verifies_again_and_builds_nothing(run: Run, tmp_path: Path, newer: dict[str, str]) -> None:
    """Also one that supports the same CUDA."""
    run()
    built = [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("store-1/engines/*/engine.trt")]
    again = run(gpu=newer)
    assert again.sound
    assert "agrees with" in again.stderr
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("store-1/engines/*/engine.trt")] == built
    assert len(json.loads(state(tmp_path)["verified.json"])) == 2
    assert len([name for name in state(tmp_path) if name.startswith("compiled for")]) == 2


def test_without_nvml_the_cuda_version_names_the_driver(run: Run, tmp_path: Path) -> None:
    assert run("unmanaged").sound
    assert "compiled for Fake RTX, driver CUDA 13.1" in state(tmp_path)


def test_a_context_that_asking_makes_is_not_counted_twice(run: Run) -> None:
    """What TensorRT's process needs contains it."""
    size = {"width": 360, "height": 240, "length": 3, "streams": 1, "backend": "tensorrt"}
    assert run("context", gpu={"FAKE_FREE": str(700 << 20)}, **size).error is None
    assert "needs about" in (run("context unmanaged", gpu={"FAKE_FREE": str(700 << 20)}, **size).error or "")


@pytest.mark.parametrize("streams", [2, 5])
def test_streams(run: Run, streams: int) -> None:
    assert run(streams=streams, length=24).sound


def test_two_gpus_share_the_frames(run: Run) -> None:
    outcome = run(gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=24)
    assert outcome.sound, outcome


def test_the_gpu_that_is_asked_for_decides(run: Run, tmp_path: Path) -> None:
    """An old card beside it, in the first slot, is no hindrance, for `auto` neither."""
    gpus = {"FAKE_GPUS": "GTX 1080 6.1,Old RTX 7.5,Fake RTX 8.9"}
    outcome = run(gpu=gpus, device=[2])
    assert outcome.sound, outcome
    assert run(gpu=gpus, device=[1], precision="fp16").sound
    assert sorted((key["engine"], key["device"]) for key in engines(tmp_path)) == [
        ("tensorrt tensorrt_rtx 9.9.9", "sm75"),
        ("tensorrt tensorrt_rtx 9.9.9", "sm89"),
    ]
    assert "GTX 1080 is older" in (run(gpu=gpus, backend="tensorrt").error or "")
    assert "precision='bf16' is not possible" in (
        run(gpu=gpus, device=[1], precision="bf16", backend="tensorrt").error or ""
    )


def test_gpus_of_different_kinds_are_refused(run: Run) -> None:
    outcome = run(gpu={"FAKE_GPUS": "Fake RTX 8.9,Old RTX 7.5"}, device=[0, 1])
    assert outcome.error is not None
    assert "device=[0, 1] are GPUs of different kinds (Fake RTX, Old RTX)" in outcome.error


def test_the_next_precision_when_one_strays(run: Run, tmp_path: Path) -> None:
    outcome = run("wrong-fp16")
    assert outcome.sound, outcome
    assert "tensorrt with fp16 did not pass: the fp16 engine agrees with fp32 to 34" in outcome.stderr
    assert [key["precision"] for key in engines(tmp_path)] == ["mixed"]


def test_a_precision_that_was_asked_for_is_not_replaced(run: Run, tmp_path: Path) -> None:
    outcome = run("wrong-bf16", precision="bf16", backend="tensorrt")
    assert outcome.error is not None
    assert outcome.error.startswith("fdatrd.upscale: the bf16 engine agrees with fp32 to 34")
    assert engines(tmp_path) == []


def test_an_engine_that_turns_bad_with_a_new_driver_is_replaced(run: Run, tmp_path: Path) -> None:
    run()
    outcome = run("wrong-fp16", gpu={"FAKE_DRIVER": "13020"})
    assert outcome.sound, outcome
    assert [key["precision"] for key in engines(tmp_path)] == ["mixed"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("register", "frames go through pinned buffers, which takes a copy more"),
        ("register hostalloc", "copies wait for each other and for the network, which costs speed"),
        ("capture", "fdatrd: without a CUDA graph: capturing a graph failed: "),
        ("dynamic", ""),
        ("dynamic own-replay", "fdatrd: without a CUDA graph: it computes something else"),
        ("nocache", "the library takes no cache of what it compiles"),
        ("replay", "fdatrd: without a CUDA graph: it computes something else"),
        ("rejected", ""),
        ("uncached", ""),
    ],
)
def test_what_only_costs_time_is_no_error(run: Run, fault: str, said: str) -> None:
    outcome = run(fault)
    assert outcome.sound, outcome
    assert said in outcome.stderr
    assert ("without a CUDA graph" in outcome.stderr) == ("graph" in said)
    assert ("pinn" in outcome.stderr) == ("register" in fault)


def test_what_another_driver_compiled_is_told_and_compiled_again(run: Run, tmp_path: Path) -> None:
    run()
    (kept,) = (path for path in (tmp_path / "cache").glob("store-1/state/*/*") if path.name.startswith("compiled for"))
    kept.write_bytes(b"of another one")
    outcome = run("rejected")
    assert outcome.sound, outcome
    assert "what was compiled before is not taken; it is compiled again" in outcome.stderr
    assert kept.read_bytes() == b"kernels"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "build",
            r"TensorRT could not build the network: Error Code 9: the builder has no kernel for that; its full log",
        ),
        ("parse", "TensorRT does not read the network: Gelu: node 7 is a mystery; its full log is "),
        ("load", "TensorRT does not load the engine: the engine is not for this version"),
        ("invalid", "the engine cannot run on this GPU: unsupported cc"),
        ("unreadable", "the engine cannot run on this GPU: the GPU's properties cannot be read"),
        ("allocate", "failed: out of memory (cudaErrorMemoryAllocation)"),
        ("address", "TensorRT does not take the memory of its input"),
        ("nan", "engine's output has 1 values that are not finite"),
    ],
)
def test_what_cannot_work_is_a_sentence(run: Run, tmp_path: Path, fault: str, said: str) -> None:
    outcome = run(fault, backend="tensorrt", precision="fp16")
    assert outcome.error is not None
    assert outcome.error.startswith("fdatrd.upscale: ")
    assert said in outcome.error
    assert "Traceback" not in outcome.error
    assert engines(tmp_path) == [], "a useless engine is in the cache"
    if fault in ("build", "parse"):
        log = Path(outcome.error.rpartition("full log is ")[2])
        assert log.exists()
        log.unlink()


def test_a_gpu_that_is_refused_costs_no_build(run: Run, tmp_path: Path) -> None:
    outcome = run("invalid build", backend="tensorrt")
    assert outcome.error == (
        "fdatrd.upscale: tensorrt_rtx 9.9.9 on Fake RTX: the engine cannot run on this GPU: unsupported cc"
    )
    assert "did not pass" not in outcome.stderr, "other precisions were tried"
    assert run("invalid build").sound, "another engine was not taken"


def test_auto_takes_another_engine_when_this_one_fails(run: Run) -> None:
    outcome = run("build")
    assert outcome.sound, outcome
    assert "The tensorrt engine cannot be used: TensorRT could not build the network" in outcome.stderr


@pytest.mark.parametrize(("fault", "said"), [("launch", "unspecified launch failure"), ("crash", "ended unexpectedly")])
def test_a_gpu_that_fails_in_the_middle_fails_frames(run: Run, fault: str, said: str) -> None:
    run()  # builds and verifies
    outcome = run(fault, backend="tensorrt", streams=3)  # measuring how many would lose the GPU before the first frame
    assert outcome.error is None
    failed = [frame for frame in outcome.frames if isinstance(frame, str)]
    assert failed
    assert all(said in frame and frame.startswith("fdatrd.upscale: frame ") for frame in failed)


def test_a_damaged_engine_is_built_again(run: Run, tmp_path: Path) -> None:
    run()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*/engine.trt")
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    outcome = run()
    assert outcome.sound
    assert "removed and built again: engine.trt has changed" in outcome.stderr
    engine.write_bytes(engine.read_bytes()[:20])
    assert run().sound


def test_little_memory_means_fewer_streams_then_tiles_then_an_error(run: Run) -> None:
    size = {"width": 360, "height": 240}
    fewer = run(gpu={"FAKE_FREE": str(660 << 20)}, **size, length=3)
    assert fewer.sound, fewer
    tiles = run(gpu={"FAKE_FREE": str(627 << 20)}, **size, length=3)
    assert "upscaling in" in tiles.stderr, (fewer.stderr, tiles)
    assert tiles.sound, tiles
    none = run(gpu={"FAKE_FREE": str(500 << 20)}, **size)
    assert none.error is not None
    assert "a frame of 360×240 pixels (padded) needs about 0." in none.error


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"FAKE_GPUS": ""}, "backend='tensorrt' cannot be used here: there is no NVIDIA GPU here, or no driver for it"),
        ({"FAKE_GPUS": "GTX 1080 6.1"}, "GTX 1080 is older than TensorRT supports"),
        ({"FAKE_DRIVER": "12040"}, "the NVIDIA driver is missing or too old (it supports CUDA 12.4, and 13 is needed)"),
    ],
)
def test_machines_that_cannot_run_it(run: Run, gpu: dict[str, str], said: str) -> None:
    outcome = run(gpu=gpu, backend="tensorrt")
    assert outcome.error is not None
    assert said in outcome.error


def test_a_device_that_is_not_there(run: Run) -> None:
    outcome = run(device=[3], backend="tensorrt")
    assert outcome.error is not None
    assert "device=[3] does not exist" in outcome.error


def test_a_wrong_level(run: Run) -> None:
    outcome = run(gpu={"FDATRD_TENSORRT_LEVEL": "9"}, backend="tensorrt")
    assert outcome.error is not None
    assert "FDATRD_TENSORRT_LEVEL='9' is no level" in outcome.error


def test_an_unwritable_cache_is_an_error_and_a_filled_one_serves(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run(cache=str(tmp_path / "file"), backend="tensorrt")
    assert outcome.error is not None
    assert "is a file" in outcome.error


def test_frames_through_pinned_buffers_keep_apart(run: Run) -> None:
    """And it is said once, however many GPUs there are."""
    assert run("register", streams=4, length=40).sound
    two = run("register hostalloc", gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1])
    assert two.sound, two
    assert two.stderr.count("copies wait for each other") == two.stderr.count("pinning") == 1
    assert run("register", gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=24).sound


@pytest.mark.parametrize("gpus", ["Fake RTX 8.9", "Fake RTX 8.9,Fake RTX 8.9"])
def test_two_networks_at_the_same_time(run: Run, gpus: str) -> None:
    """Each with a context, stream, graph and places of its own: frames do not meet."""
    gpu = {"FAKE_GPUS": gpus, "FDATRD_GPU_CONTEXTS": "2"}
    outcome = run(gpu=gpu, device=[0, 1][: gpus.count("RTX")], streams=4, length=40)
    assert outcome.sound, outcome
    assert "no memory" not in outcome.stderr


def test_a_second_network_needs_memory(run: Run) -> None:
    outcome = run("large", gpu={"FDATRD_GPU_CONTEXTS": "2"})
    assert outcome.sound, outcome
    assert "fdatrd: GPU 0 has no memory for one more network at the same time" in outcome.stderr


MEASURED = {"FDATRD_GPU_CONTEXTS": "", "FAKE_MS": "4"}
TWO_FIT = MEASURED | {"FAKE_AT_ONCE": "2"}
"""A GPU that computes two networks in the time of one."""


def contexts(tmp_path: Path) -> list[int]:
    """How many execution contexts were chosen, on each GPU that was measured."""
    content = state(tmp_path).get("contexts.json", b"{}")
    return [entry["contexts"] for entry in json.loads(content).values()]


def test_two_networks_that_are_faster_are_measured_once_and_kept(run: Run, tmp_path: Path) -> None:
    first = run(gpu=TWO_FIT, length=40)
    assert first.sound, first
    assert "; used on Fake RTX, driver 590.1" in first.stderr
    assert contexts(tmp_path) == [2]

    again = run(gpu=MEASURED, length=40)  # would lose now
    assert again.sound, again
    assert "two frames at a time" not in again.stderr, "it was measured again"

    alone = run("second", gpu=MEASURED)
    assert alone.sound, alone
    assert "GPU 0 computes one network less at the same time: TensorRT cannot prepare the engine" in alone.stderr
    assert contexts(tmp_path) == [2], "what was chosen is forgotten for one failure"

    other = run(gpu=MEASURED | {"FAKE_GPUS": "Other RTX 8.9"})
    assert "; not used on Other RTX" in other.stderr
    assert contexts(tmp_path) == [2, 1]


def test_two_networks_that_are_no_faster_are_not_kept(run: Run, tmp_path: Path) -> None:
    first = run(gpu=MEASURED, length=40)
    assert first.sound, first
    assert "; not used on Fake RTX" in first.stderr
    assert contexts(tmp_path) == [1]
    again = run("second", gpu=MEASURED)
    assert again.sound, again
    assert "at a time" not in again.stderr
    assert "one network less" not in again.stderr, "a second one was tried"


@pytest.mark.parametrize(("fault", "said"), [("second", "computes one network less at the same time"), ("large", "")])
def test_one_network_where_a_second_cannot_be(run: Run, tmp_path: Path, fault: str, said: str) -> None:
    """Nothing is measured, and nothing remembered that free memory may change."""
    outcome = run(fault, gpu=TWO_FIT)
    assert outcome.sound, outcome
    assert said in outcome.stderr
    assert ("network" in outcome.stderr) == bool(said)
    assert contexts(tmp_path) == []


def test_few_streams_mean_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured for more streams does not matter then, and an explicit number matters more than either."""
    assert [requested(streams, None) for streams in (1, 3, 4, None)] == [1, 1, None, None]
    kept = {"contexts": 2, "fps": [1.0, 2.0]}
    assert [requested(streams, kept) for streams in (3, 4, None)] == [1, 2, 2]
    assert requested(None, {"contexts": "many"}) is None, "a damaged note is believed"
    monkeypatch.setenv(CONTEXTS, "3")
    assert requested(2, kept) == 3


def test_two_networks_on_each_of_two_gpus(run: Run, tmp_path: Path) -> None:
    outcome = run(gpu=TWO_FIT | {"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=40)
    assert outcome.sound, outcome
    assert contexts(tmp_path) == [2]


def test_a_gpu_that_is_lost_while_it_is_measured_is_left(run: Run, tmp_path: Path) -> None:
    outcome = run("launch", gpu=TWO_FIT)
    assert outcome.sound, outcome
    assert (
        "The tensorrt engine cannot be used: computing on the GPU failed: unspecified launch failure" in outcome.stderr
    )
    assert contexts(tmp_path) == []


@pytest.mark.parametrize(("fault", "said"), [("launch", "unspecified launch failure"), ("crash", "ended unexpectedly")])
def test_two_networks_on_a_gpu_that_is_lost_fail_frames(run: Run, fault: str, said: str) -> None:
    two = {"FDATRD_GPU_CONTEXTS": "2"}
    run(gpu=two)  # builds and verifies
    outcome = run(fault, gpu=two, backend="tensorrt", streams=4, length=40)
    assert outcome.error is None
    failed = [frame for frame in outcome.frames if isinstance(frame, str)]
    assert failed
    assert all(said in frame and frame.startswith("fdatrd.upscale: frame ") for frame in failed)


def test_a_network_that_is_not_kept_frees_its_memory(run: Run, tmp_path: Path) -> None:
    run()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*")
    script = (
        "import sys\n"
        "from cuda.bindings import runtime\n"
        "from vsfdatrd.backends.tensorrt.worker import TensorRt\n"
        "side = TensorRt(print, lambda: None)\n"
        "given = 'tensorrt_rtx', sys.argv[1], [0], None, None\n"
        "assert side.do_load(*given, 2)['slots'] == 4\n"
        "assert (len(side._devices), len(runtime._memory), runtime._contexts[0]) == (2, 4, 2)\n"
        "side._remove_contexts(0)\n"
        "assert (len(runtime._memory), runtime._contexts[0]) == (0, 0)\n"
        "loaded = side.do_load(*given, None)\n"
        "assert (loaded['contexts'], loaded['slots'], len(side._devices)) == (1, 3, 1), loaded\n"
        "assert (len(runtime._memory), runtime._contexts[0]) == (2, 1)\n"
        "assert side.do_verify(sys.argv[1], 'fp16') >= 50\n"
        "assert side.do_load(*given, 1, [2000, 3000])['slots'] == 5, 'the rate was not taken from before'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(engine)],
        env=os.environ | {"PYTHONPATH": str(FAKE), "FAKE_MS": "4"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_number_of_networks(run: Run) -> None:
    outcome = run(gpu={"FDATRD_GPU_CONTEXTS": "two"}, backend="tensorrt")
    assert "FDATRD_GPU_CONTEXTS='two' is not a number of execution contexts" in (outcome.error or "")


def test_layers_are_measured_apart_from_frames(run: Run, tmp_path: Path, identity_2x: Path) -> None:
    """No profiler stays with the context that computes frames, and its graph is as before."""
    run()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*")
    script = (
        "import sys\n"
        "from vsfdatrd.backends.tensorrt.worker import TensorRt\n"
        "side = TensorRt(print, lambda: None)\n"
        "side.do_load('tensorrt_rtx', sys.argv[1], [0], 1, None)\n"
        "device = side._devices[0]\n"
        "before = device._context, device._graph\n"
        "assert set(side.do_layers(2)) == {'conv_1', 'attention_2', 'conv_3'}\n"
        "assert (device._context, device._graph) == before\n"
        "assert device._context.profiler is None\n"
        "assert side.do_verify(sys.argv[1], 'fp16') >= 50\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(engine)],
        env=os.environ | {"PYTHONPATH": str(FAKE)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
