"""The TensorRT engine from the script to the frame, on a GPU that is made of Python (`fake_gpu/`).

What only a real GPU can show is in tests/gpu; what the real library shows without one, in `test_tensorrt_build.py`.
"""

import json
from pathlib import Path

import pytest

from tests.backends.on_fake_gpu import Upscale, engines, run_with_fake_gpu, state


def test_auto_takes_it_builds_verifies_and_keeps_it(upscale: Upscale, tmp_path: Path) -> None:
    first = upscale()
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

    again = upscale()
    assert again.sound
    assert "agrees with" not in again.stderr, "it was verified again"
    assert engines(tmp_path) == [key]


@pytest.mark.parametrize("newer", [{"FAKE_DRIVER": "13020"}, {"FAKE_RELEASE": "590.2"}])
def test_another_driver_verifies_again_and_builds_nothing(
    upscale: Upscale, tmp_path: Path, newer: dict[str, str]
) -> None:
    """Also one that supports the same CUDA."""
    upscale()
    built = [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("store-1/engines/*/engine.trt")]
    again = upscale(gpu=newer)
    assert again.sound
    assert "agrees with" in again.stderr
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("store-1/engines/*/engine.trt")] == built
    assert len(json.loads(state(tmp_path)["verified.json"])) == 2
    assert len([name for name in state(tmp_path) if name.startswith("compiled for")]) == 2


def test_without_nvml_the_cuda_version_names_the_driver(upscale: Upscale, tmp_path: Path) -> None:
    assert upscale("unmanaged").sound
    assert "compiled for Fake RTX, driver CUDA 13.1" in state(tmp_path)


def test_a_context_that_asking_makes_is_not_counted_twice(upscale: Upscale) -> None:
    """What TensorRT's process needs contains it."""
    size = {"width": 360, "height": 240, "length": 3, "streams": 1, "backend": "tensorrt"}
    assert upscale("context", gpu={"FAKE_FREE": str(700 << 20)}, **size).error is None
    assert "needs about" in (upscale("context unmanaged", gpu={"FAKE_FREE": str(700 << 20)}, **size).error or "")


def test_the_gpu_that_is_asked_for_decides(upscale: Upscale, tmp_path: Path) -> None:
    """An old card beside it, in the first slot, is no hindrance, for ``auto`` neither."""
    gpus = {"FAKE_GPUS": "GTX 1080 6.1,Old RTX 7.5,Fake RTX 8.9"}
    outcome = upscale(gpu=gpus, device=[2])
    assert outcome.sound, outcome
    assert upscale(gpu=gpus, device=[1], precision="fp16").sound
    assert sorted((key["engine"], key["device"]) for key in engines(tmp_path)) == [
        ("tensorrt tensorrt_rtx 9.9.9", "sm75"),
        ("tensorrt tensorrt_rtx 9.9.9", "sm89"),
    ]
    assert "GTX 1080 is older" in (upscale(gpu=gpus, backend="tensorrt").error or "")
    assert "precision='bf16' is not possible" in (
        upscale(gpu=gpus, device=[1], precision="bf16", backend="tensorrt").error or ""
    )


def test_gpus_of_different_kinds_are_refused(upscale: Upscale) -> None:
    outcome = upscale(gpu={"FAKE_GPUS": "Fake RTX 8.9,Old RTX 7.5"}, device=[0, 1])
    assert outcome.error is not None
    assert "device=[0, 1] are GPUs of different kinds (Fake RTX, Old RTX)" in outcome.error


def test_the_next_precision_when_one_strays(upscale: Upscale, tmp_path: Path) -> None:
    outcome = upscale("wrong-fp16")
    assert outcome.sound, outcome
    assert "tensorrt with fp16 did not pass: the fp16 engine agrees with fp32 to 34" in outcome.stderr
    assert [key["precision"] for key in engines(tmp_path)] == ["mixed"]


def test_a_precision_that_was_asked_for_is_not_replaced(upscale: Upscale, tmp_path: Path) -> None:
    outcome = upscale("wrong-bf16", precision="bf16", backend="tensorrt")
    assert outcome.error is not None
    assert outcome.error.startswith("fdatrd.upscale: the bf16 engine agrees with fp32 to 34")
    assert engines(tmp_path) == []


def test_an_engine_that_turns_bad_with_a_new_driver_is_replaced(upscale: Upscale, tmp_path: Path) -> None:
    upscale()
    outcome = upscale("wrong-fp16", gpu={"FAKE_DRIVER": "13020"})
    assert outcome.sound, outcome
    assert [key["precision"] for key in engines(tmp_path)] == ["mixed"]


def test_layers_are_measured_apart_from_frames(upscale: Upscale, tmp_path: Path, identity_2x: Path) -> None:
    """No profiler stays with the context that computes frames, and its graph is as before."""
    upscale()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*")
    script = (
        "import sys\n"
        "from vsfdatrd.backends.tensorrt.worker import TensorRtServer\n"
        "side = TensorRtServer(sys.stdout)\n"
        "side.do_load('tensorrt_rtx', sys.argv[1], [0], 1, None)\n"
        "device = side._contexts[0]\n"
        "before = device._context, device._graph\n"
        "assert set(side.do_layers(2)) == {'conv_1', 'attention_2', 'conv_3'}\n"
        "assert (device._context, device._graph) == before\n"
        "assert device._context.profiler is None\n"
        "assert side.do_verify(sys.argv[1], 'fp16') >= 50\n"
    )
    run_with_fake_gpu(script, str(engine))
