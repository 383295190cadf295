"""The TensorRT engine on a real NVIDIA GPU, against the network in float32 on the CPU."""

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.engines import run
from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.options import Options, Precision
from vsfdatrd.workers.client import Worker

from .conftest import SIDES, Open, assert_disc_frame_agrees, panned_clip, panned_picture, run_on_cpu

pytestmark = pytest.mark.gpu

BACKEND = "tensorrt"
"""What the fixture `opened` opens."""


@pytest.fixture(autouse=True, scope="module")
def _tensorrt(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip with TensorRT's message if it does not run on this GPU."""
    if reason := tensorrt.unavailable():
        pytest.skip(reason)
    store = EngineCache(tmp_path_factory.mktemp("first"))
    try:
        selection.open_engine(
            open_checkpoint(tiny_model), 60, 60, Options(model=str(tiny_model), backend="tensorrt"), store
        )
    except EngineError as error:
        if "cannot run on this GPU" in str(error):
            pytest.skip(str(error))
        raise


def free_memory() -> int:
    """Return the free bytes of the GPU, queried in another process."""
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    try:
        return int(worker.ask("free", devices=[0])[0])
    finally:
        worker.close()


@pytest.mark.parametrize("precision", ["fp16", "mixed", "bf16", "fp32"])
def test_it_computes_what_the_network_computes(
    opened: Open, medium: Checkpoint, reference: FramePlanes, precision: Precision
) -> None:
    if precision not in tensorrt.precisions(medium):
        pytest.skip(f"this GPU has no engines in {precision}")
    result = run(opened(medium, precision=precision), draw_line_art(*SIDES))
    psnr = check_psnr(reference, result, precision)
    print(f"{precision}: {psnr:.1f} dB")
    assert psnr >= (80 if precision == "fp32" else 50)


def test_a_whole_disc_frame_in_fp16(opened: Open, medium: Checkpoint) -> None:
    """97,200 tokens: sums over the frame neither overflow nor drown."""
    assert_disc_frame_agrees(opened, medium)


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_frames_in_flight_do_not_meet(opened: Open, medium: Checkpoint, streams: int) -> None:
    pictures = [np.roll(draw_line_art(*SIDES), 31 * i, 2) for i in range(8)]
    alone = opened(medium, streams=1, precision="fp16")
    expected = [run(alone, picture) for picture in pictures]
    engine = opened(medium, streams=streams, precision="fp16")
    assert engine.slots == streams
    for start in range(0, 8, streams):
        part = list(enumerate(zip(pictures[start : start + streams], expected[start : start + streams], strict=True)))
        for slot, (picture, _) in part:
            np.copyto(engine.input(slot), picture)
            engine.submit(slot)
        for slot, (_, requested) in part:
            assert check_psnr(requested, engine.collect(slot), "fp16") >= 60


def test_gpu_memory_is_flat_and_comes_back(opened: Open, tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    before = free_memory()
    engine = opened(checkpoint, (120, 120), precision="fp16", streams=3)
    picture = draw_line_art(120, 120)
    levels = []
    for n in range(2000):
        run(engine, picture, n % 3)
        if n % 400 == 100:
            levels.append(free_memory())
    assert before - levels[0] > 50 << 20, "the engine is not where this test looks"
    assert abs(levels[-1] - levels[0]) <= 4 << 20
    engine.close()
    deadline = time.monotonic() + 10
    while before - free_memory() > 16 << 20:
        assert time.monotonic() < deadline, "GPU memory is still held"
        time.sleep(0.2)


def test_the_second_start_neither_builds_nor_verifies(
    medium: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vsfdatrd")
    options, store = Options(model=str(medium.path), backend="tensorrt"), EngineCache(tmp_path)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        pool = selection.open_engine(medium, *SIDES, options, store)
        seconds.append(time.perf_counter() - start)
        pool.engine.close()
        del pool
        gc.collect()
    print(f"first {seconds[0]:.1f} s, second {seconds[1]:.1f} s")
    assert caplog.text.count("agrees with fp32") == 1
    assert seconds[1] < seconds[0]
    (notes,) = tmp_path.glob("store-1/state/*/verified.json")
    assert min(json.loads(notes.read_text()).values()) >= 50


# Takes all memory of the GPU but 500 MiB, and keeps it until its input ends.
HOG = """
import sys
from vsfdatrd.backends.gpu import cuda
held = cuda.DeviceMemory(cuda.free_memory(0) - (500 << 20))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_gpu_that_is_full_is_a_sentence(medium: Checkpoint, tmp_path: Path) -> None:
    """Where the estimate is wrong, or others come in between, the failure must still be an error and no crash."""
    spec = EngineSpec(medium, 540, 720, "fp16", state=tmp_path / "state")
    folder = tmp_path / "engine"
    folder.mkdir()
    tensorrt.build(spec, folder)
    tensorrt.shutdown()  # it may have memory of its own by now
    with subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        assert hog.stdout
        assert hog.stdout.readline() == b"held\n"
        with pytest.raises(EngineError) as caught:
            tensorrt.load(spec, folder)
        print(caught.value)
        assert "ended unexpectedly" not in str(caught.value), "it crashed"
        hog.communicate()
    tensorrt.load(spec, folder).close()


@pytest.mark.parametrize("streams", [1, 3])
def test_through_the_plugin(tiny_model: Path, tmp_path: Path, streams: int) -> None:
    clip = panned_clip(24)
    import vapoursynth as vs

    out = vs.core.fdatrd.upscale(
        clip, model=str(tiny_model), backend="tensorrt", precision="mixed", streams=streams, cache=str(tmp_path)
    )
    checkpoint = open_checkpoint(tiny_model)
    for n, frame in enumerate(out.frames(prefetch=6)):
        expected = np.clip(run_on_cpu(checkpoint, panned_picture(n)), 0, 1)
        result = np.stack([np.asarray(frame[i]) for i in range(3)])
        assert check_psnr(expected, result, "mixed") >= 50
