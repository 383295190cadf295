"""The PyTorch engine on an NVIDIA GPU, against the same network in float32 on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.torch import backend as engine_module
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError

from .conftest import SIDES, panned_clip, panned_picture, run_on_cpu

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def _torch() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is built without CUDA")


def load(spec: EngineSpec, directory: Path) -> Engine:
    engine_module.build(spec, directory)
    return engine_module.load(spec, directory)


def test_the_gpu_is_what_the_engine_runs_on(medium: Checkpoint) -> None:
    import torch

    spec = EngineSpec(medium, *SIDES, "fp16")
    assert engine_module.device_name(spec) == torch.cuda.get_device_name(0)
    assert engine_module.precisions(medium)[0] == "fp16"
    needed, free = engine_module.memory_estimate(spec)
    assert 0 < needed < free <= torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_it_computes_what_the_cpu_computes(
    medium: Checkpoint, reference: FramePlanes, tmp_path: Path, precision: Any
) -> None:
    if precision not in engine_module.precisions(medium):
        pytest.skip(f"this GPU does not compute in {precision}")
    engine = load(EngineSpec(medium, *SIDES, precision), tmp_path)
    np.copyto(engine.input(0), draw_line_art(*SIDES))
    engine.submit(0)
    result = engine.collect(0).copy()
    engine.close()
    assert result.shape == (3, 2 * SIDES[0], 2 * SIDES[1])
    assert result.dtype == np.float32
    assert check_psnr(reference, result, precision) >= 50
    difference = np.abs(result - reference).max()
    if precision == "fp32":
        assert difference <= 1e-3
    else:
        assert difference > 1e-6, "it was computed in fp32 after all"


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_frames_in_flight_do_not_meet(medium: Checkpoint, tmp_path: Path, streams: int) -> None:
    """Alone and together, in turn and again, every frame comes out as it should."""
    pictures = [np.roll(draw_line_art(*SIDES), 31 * i, 2) for i in range(6)]
    alone = load(EngineSpec(medium, *SIDES, "fp16", streams=1), tmp_path)
    expected = []
    for picture in pictures:
        np.copyto(alone.input(0), picture)
        alone.submit(0)
        expected.append(alone.collect(0).copy())
    alone.close()
    assert np.abs(expected[0] - expected[1]).max() > 0.1

    engine = load(EngineSpec(medium, *SIDES, "fp16", streams=streams), tmp_path)
    assert engine.slots == streams
    for start in range(0, 6, streams):
        for slot, picture in enumerate(pictures[start : start + streams]):
            np.copyto(engine.input(slot), picture)
            engine.submit(slot)
        for slot, requested in enumerate(expected[start : start + streams]):
            assert check_psnr(requested, engine.collect(slot), "fp16") >= 60
    engine.close()


def test_the_weights_stay_where_the_graph_reads_them(tiny_model: Path, tmp_path: Path) -> None:
    """A CUDA graph knows addresses only: memory that others take in the meantime must not be the network's."""
    import torch

    checkpoint = open_checkpoint(tiny_model)
    picture = draw_line_art(60, 90)
    engine = load(EngineSpec(checkpoint, 60, 90, "fp32"), tmp_path)
    others = [torch.full((size,), float("nan"), device="cuda") for size in (64, 1024, 4096, 16384, 90000) * 50]
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    expected = run_on_cpu(checkpoint, picture)
    np.testing.assert_allclose(engine.collect(0), expected, atol=1e-3 * np.abs(expected).max())
    engine.close()
    del others


def test_memory_returns_when_an_engine_is_closed(medium: Checkpoint, tmp_path: Path) -> None:
    import gc

    import torch

    def used() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    spec = EngineSpec(medium, *SIDES, "fp16", streams=2)
    load(spec, tmp_path).close()  # workspaces of cuBLAS and cuDNN stay, and serve every engine after it
    before = used()
    engine = load(spec, tmp_path)
    assert used() - before > 2 * medium.descriptor.parameters, "the weights are not where this test looks"
    engine.close()
    del engine
    assert used() <= before + (1 << 20)


def test_closing_twice_and_sending_afterwards(tiny_model: Path, tmp_path: Path) -> None:
    engine = load(EngineSpec(open_checkpoint(tiny_model), 60, 90, "fp16"), tmp_path)
    engine.submit(0)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.submit(0)
    with pytest.raises(EngineError, match="closed before the frame was collected"):
        engine.collect(0)


def test_a_gpu_that_is_full_is_an_engine_error(medium: Checkpoint, tmp_path: Path) -> None:
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (reserved + (64 << 20)) / total))
    try:
        assert free > 1 << 30
        with pytest.raises(EngineError, match=r"could not prepare the network for 720×540: .*out of memory"):
            load(replace(EngineSpec(medium, 540, 720, "fp32"), streams=3), tmp_path)
        assert torch.cuda.memory_reserved() <= reserved + (2 << 20), "a failure holds on to memory"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    load(EngineSpec(medium, *SIDES, "fp16"), tmp_path).close()  # nothing is spoilt


@pytest.mark.parametrize("streams", [1, 3])
def test_through_the_plugin(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    clip = panned_clip(8)
    import vapoursynth as vs

    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "cache"))
    out = vs.core.fdatrd.upscale(clip, model=str(tiny_model), backend="torch", precision="fp32", streams=streams)
    checkpoint = open_checkpoint(tiny_model)
    for n, frame in enumerate(out.frames(prefetch=6)):
        assert (frame.width, frame.height) == (166, 114)
        expected = run_on_cpu(checkpoint, panned_picture(n))
        result = np.stack([np.asarray(frame[i]) for i in range(3)])
        np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=2e-3)
