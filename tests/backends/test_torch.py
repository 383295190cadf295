"""The PyTorch engine on a CPU: the network itself, a slot for every stream, errors as sentences."""

import importlib.util
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file
from torch import nn

from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.torch import backend as engine_module
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError

pytestmark = pytest.mark.usefixtures("one_thread", "without_gpu")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the CPU even if there is a GPU (tests/gpu has the rest)."""
    monkeypatch.setattr(engine_module, "gpu_count", lambda: 0)


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> EngineSpec:
    return EngineSpec(open_checkpoint(tiny_model), 60, 90, "fp32")


def load(spec: EngineSpec, directory: Path) -> Engine:
    engine_module.build(spec, directory)
    return engine_module.load(spec, directory)


def expected(checkpoint: Checkpoint, picture: FramePlanes) -> FramePlanes:
    import torch

    with torch.inference_mode():
        result: FramePlanes = checkpoint.network()(torch.from_numpy(picture.copy())[None])[0].numpy()
    return result


def test_it_computes_what_the_network_computes(spec: EngineSpec, tmp_path: Path) -> None:
    engine = load(spec, tmp_path)
    assert engine.slots == 1
    assert engine.input(0).shape == (3, 60, 90)
    assert engine.input(0).dtype == np.float32
    assert engine.input(0).flags.c_contiguous
    for picture in (draw_line_art(60, 90), draw_line_art(60, 90)[:, ::-1]):
        np.copyto(engine.input(0), picture)
        engine.submit(0)
        reference = expected(spec.checkpoint, picture)
        assert reference.std() > 0.1
        np.testing.assert_allclose(engine.collect(0), reference, atol=1e-5 * np.abs(reference).max())
    engine.close()


def test_two_streams_at_once(spec: EngineSpec, tmp_path: Path) -> None:
    engine = load(replace(spec, streams=2), tmp_path)
    assert engine.slots == 2
    pictures = [draw_line_art(60, 90), draw_line_art(60, 90)[:, :, ::-1]]
    for slot, picture in enumerate(pictures):
        np.copyto(engine.input(slot), picture)
        engine.submit(slot)
    for slot in (1, 0):
        reference = expected(spec.checkpoint, pictures[slot])
        np.testing.assert_allclose(engine.collect(slot), reference, atol=1e-5 * np.abs(reference).max())
    engine.close()


def test_streams_share_the_threads(spec: EngineSpec, tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(4)
    engine: Any = load(replace(spec, streams=2), tmp_path)
    assert engine._pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 4, "the script's own threads are its own"
    engine.close()


class Failing(nn.Module):
    """A network that raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> NoReturn:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("the size of tensor a must match"), IndexError("out of range")])
def test_a_network_that_fails_fails_its_frame(spec: EngineSpec, tmp_path: Path, error: Exception) -> None:
    failing: Any = SimpleNamespace(descriptor=spec.checkpoint.descriptor, network=lambda: Failing(error))
    engine = load(replace(spec, checkpoint=failing), tmp_path)
    for _ in range(2):  # the engine itself lives on
        engine.submit(0)
        with pytest.raises(EngineError, match=f"PyTorch failed on it: {error}"):
            engine.collect(0)
    engine.close()


def test_a_network_that_does_not_load_is_an_engine_error(spec: EngineSpec, tmp_path: Path) -> None:
    def network() -> NoReturn:
        raise RuntimeError("not enough memory: you tried to allocate 99 bytes")

    failing: Any = SimpleNamespace(descriptor=spec.checkpoint.descriptor, network=network)
    with pytest.raises(EngineError, match="could not prepare the network for 90×60: not enough memory"):
        load(replace(spec, checkpoint=failing), tmp_path)


def test_closing_waits_for_frames_and_ends_the_threads(spec: EngineSpec, tmp_path: Path) -> None:
    engine = load(spec, tmp_path)
    np.copyto(engine.input(0), draw_line_art(60, 90))
    engine.submit(0)
    assert any(thread.name.startswith("fdatrd-torch") for thread in threading.enumerate())
    engine.close()
    assert not any(thread.name.startswith("fdatrd-torch") for thread in threading.enumerate())
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; no frame can be sent to it"):
        engine.submit(0)
    with pytest.raises(EngineError, match="closed"):
        engine.collect(0)


def test_nothing_is_collected_that_was_not_submitted(spec: EngineSpec, tmp_path: Path) -> None:
    engine = load(spec, tmp_path)
    with pytest.raises(EngineError, match="nothing was submitted to slot 0"):
        engine.collect(0)
    engine.close()


def test_the_note_names_the_weights(spec: EngineSpec, tmp_path: Path) -> None:
    engine_module.build(spec, tmp_path)
    assert spec.checkpoint.descriptor.sha256 in (tmp_path / "torch.json").read_text()


def test_precisions_are_those_of_the_processor(spec: EngineSpec, tmp_path: Path) -> None:
    import torch

    possible = engine_module.precisions(spec.checkpoint)
    assert possible[-1] == "fp32"
    assert ("bf16" in possible) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    results = {}
    for precision in possible:
        engine = engine_module.load(replace(spec, precision=precision), tmp_path)
        np.copyto(engine.input(0), draw_line_art(60, 90))
        engine.submit(0)
        results[precision] = engine.collect(0).copy()
        assert np.isfinite(results[precision]).all()
        engine.close()
    for precision in possible[:-1]:
        assert np.abs(results[precision] - results["fp32"]).max() > 0, "it was computed in fp32 after all"


def test_there_is_no_bf16_in_builds_without_mkldnn(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # builds for Macs with ARM have no such operator
    assert engine_module.precisions(spec.checkpoint) == ("fp32",)


def test_a_network_that_fails_in_bf16_is_a_build_error(spec: EngineSpec, tmp_path: Path) -> None:
    failing: Any = SimpleNamespace(
        descriptor=spec.checkpoint.descriptor, network=lambda: Failing(TypeError("unsupported type BFloat16"))
    )
    with pytest.raises(EngineBuildError, match="could not compute the network in fp32: unsupported type BFloat16"):
        engine_module.build(replace(spec, precision="bf16", checkpoint=failing), tmp_path)


def test_bf16_is_close_to_fp32_in_a_trained_network(shared: Path, tmp_path: Path) -> None:
    medium = open_checkpoint(shared / "weights/fdat_rd_medium_2x_standin.safetensors")
    if "bf16" not in engine_module.precisions(medium):
        pytest.skip("PyTorch does not compute in bf16 on this CPU")
    picture = draw_line_art(60, 60)
    engine = load(EngineSpec(medium, 60, 60, "bf16"), tmp_path)
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    result = engine.collect(0).copy()
    engine.close()
    try:
        assert check_psnr(expected(medium, picture), result, "bf16") >= 50
    except EngineBuildError as error:
        pytest.fail(str(error))


def test_it_runs_weights_of_five_dimensions(make_tensors: Any, tmp_path: Path) -> None:
    """The lda tail has some."""
    save_file(make_tensors(upsampler="lda"), path := tmp_path / "lda.safetensors")
    spec, picture = EngineSpec(open_checkpoint(path), 30, 30, "fp32"), draw_line_art(30, 30)
    engine = load(spec, tmp_path)
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    np.testing.assert_allclose(engine.collect(0), expected(spec.checkpoint, picture), atol=1e-4)
    engine.close()


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", ["IPT", "ATD"])
def test_it_runs_networks_that_look_at_memory_in_order(tmp_path: Path, name: str) -> None:
    """IPT's views are impossible with channels last."""
    pytest.importorskip("spandrel")
    from benchmarks.architectures import save_network

    spec, picture = EngineSpec(save_network(name, tmp_path), 40, 48, "fp32"), draw_line_art(40, 48)
    engine = load(spec, tmp_path)
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    np.testing.assert_allclose(engine.collect(0), expected(spec.checkpoint, picture), atol=1e-4)
    engine.close()


def test_it_says_what_it_is(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert engine_module.version() == torch.__version__.split("+")[0] or engine_module.version() == torch.__version__
    assert engine_module.device_name(spec) == "CPU"
    assert engine_module.unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert engine_module.unavailable() == "PyTorch is not installed; pip install 'vsfdatrd[torch]'"


def test_memory_grows_with_frame_and_streams(spec: EngineSpec) -> None:
    def needed(**change: Any) -> int:
        return engine_module.memory_estimate(replace(spec, **change))[0]

    assert engine_module.memory_estimate(spec)[1] <= psutil.virtual_memory().total
    assert needed(height=600, width=900) == pytest.approx(100 * needed(), rel=1e-3)
    assert needed(streams=3) == pytest.approx(3 * needed(), rel=1e-6)
    assert needed(precision="bf16") < needed()
    assert needed() >= 12 * 60 * 90 * 5, "its frames at least"
