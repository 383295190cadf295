"""The TensorRT engine where the GPU, its driver, the library or an argument is at fault, on a GPU made of Python."""

from pathlib import Path

import pytest

from tests.backends.on_fake_gpu import Upscale, engines


@pytest.mark.parametrize(
    ("fault", "message"),
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
def test_what_only_costs_time_is_no_error(upscale: Upscale, fault: str, message: str) -> None:
    outcome = upscale(fault)
    assert outcome.sound, outcome
    assert message in outcome.stderr
    assert ("without a CUDA graph" in outcome.stderr) == ("graph" in message)
    assert ("pinn" in outcome.stderr) == ("register" in fault)


def test_what_another_driver_compiled_is_told_and_compiled_again(upscale: Upscale, tmp_path: Path) -> None:
    upscale()
    (kept,) = (path for path in (tmp_path / "cache").glob("store-1/state/*/*") if path.name.startswith("compiled for"))
    kept.write_bytes(b"of another one")
    outcome = upscale("rejected")
    assert outcome.sound, outcome
    assert "what was compiled before is not taken; it is compiled again" in outcome.stderr
    assert kept.read_bytes() == b"kernels"


@pytest.mark.parametrize(
    ("fault", "message"),
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
def test_what_cannot_work_is_a_sentence(upscale: Upscale, tmp_path: Path, fault: str, message: str) -> None:
    outcome = upscale(fault, backend="tensorrt", precision="fp16")
    assert outcome.error is not None
    assert outcome.error.startswith("fdatrd.upscale: ")
    assert message in outcome.error
    assert "Traceback" not in outcome.error
    assert engines(tmp_path) == [], "a useless engine is in the cache"
    if fault in ("build", "parse"):
        log = Path(outcome.error.rpartition("full log is ")[2])
        assert log.exists()
        log.unlink()


def test_a_gpu_that_is_refused_costs_no_build(upscale: Upscale, tmp_path: Path) -> None:
    outcome = upscale("invalid build", backend="tensorrt")
    assert outcome.error == (
        "fdatrd.upscale: tensorrt_rtx 9.9.9 on Fake RTX: the engine cannot run on this GPU: unsupported cc"
    )
    assert "did not pass" not in outcome.stderr, "other precisions were tried"
    assert upscale("invalid build").sound, "another engine was not taken"


def test_auto_takes_another_engine_when_this_one_fails(upscale: Upscale) -> None:
    outcome = upscale("build")
    assert outcome.sound, outcome
    assert "The tensorrt engine cannot be used: TensorRT could not build the network" in outcome.stderr


@pytest.mark.parametrize(
    ("fault", "message"), [("launch", "unspecified launch failure"), ("crash", "ended unexpectedly")]
)
def test_a_gpu_that_fails_in_the_middle_fails_frames(upscale: Upscale, fault: str, message: str) -> None:
    upscale()  # builds and verifies
    outcome = upscale(
        fault, backend="tensorrt", streams=3
    )  # measuring how many would lose the GPU before the first frame
    outcome.assert_frames_fail(message)


def test_a_damaged_engine_is_built_again(upscale: Upscale, tmp_path: Path) -> None:
    upscale()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*/engine.trt")
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    outcome = upscale()
    assert outcome.sound
    assert "removed and built again: engine.trt has changed" in outcome.stderr
    engine.write_bytes(engine.read_bytes()[:20])
    assert upscale().sound


def test_little_memory_means_fewer_streams_then_tiles_then_an_error(upscale: Upscale) -> None:
    size = {"width": 360, "height": 240}
    fewer = upscale(gpu={"FAKE_FREE": str(660 << 20)}, **size, length=3)
    assert fewer.sound, fewer
    tiles = upscale(gpu={"FAKE_FREE": str(627 << 20)}, **size, length=3)
    assert "upscaling in" in tiles.stderr, (fewer.stderr, tiles)
    assert tiles.sound, tiles
    none = upscale(gpu={"FAKE_FREE": str(500 << 20)}, **size)
    assert none.error is not None
    assert "a frame of 360×240 pixels (padded) needs about 0." in none.error


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ({"FAKE_GPUS": ""}, "backend='tensorrt' cannot be used here: there is no NVIDIA GPU here, or no driver for it"),
        ({"FAKE_GPUS": "GTX 1080 6.1"}, "GTX 1080 is older than TensorRT supports"),
        ({"FAKE_DRIVER": "12040"}, "the NVIDIA driver is missing or too old (it supports CUDA 12.4, and 13 is needed)"),
    ],
)
def test_machines_that_cannot_run_it(upscale: Upscale, gpu: dict[str, str], message: str) -> None:
    outcome = upscale(gpu=gpu, backend="tensorrt")
    assert outcome.error is not None
    assert message in outcome.error


def test_a_device_that_is_not_there(upscale: Upscale) -> None:
    outcome = upscale(device=[3], backend="tensorrt")
    assert outcome.error is not None
    assert "device=[3] does not exist" in outcome.error


def test_a_wrong_level(upscale: Upscale) -> None:
    outcome = upscale(gpu={"FDATRD_TENSORRT_LEVEL": "9"}, backend="tensorrt")
    assert outcome.error is not None
    assert "FDATRD_TENSORRT_LEVEL='9' is no level" in outcome.error


def test_an_unwritable_cache_is_an_error_and_a_filled_one_serves(upscale: Upscale, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = upscale(cache=str(tmp_path / "file"), backend="tensorrt")
    assert outcome.error is not None
    assert "is a file" in outcome.error
