"""Graphs of other architectures in OpenVINO and TensorRT equal the PyTorch network."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("spandrel")
from spandrel.architectures.Compact import Compact

from benchmarks.architectures import save_network as made
from tests.engines import run_in_openvino
from tests.fdats import case_id, fdat
from vsfdatrd.archs.registry import base
from vsfdatrd.archs.registry.spandrel import SpandrelConfig
from vsfdatrd.backends import selection
from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.backends.torch import backend as torch_engine
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.options import Options

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


def saved(network: nn.Module, path: Path) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return open_checkpoint(path)


def through_torch(checkpoint: Checkpoint, picture: FramePlanes) -> FramePlanes:
    network: Any = checkpoint.network()
    with torch.inference_mode():
        return cast(FramePlanes, network.forward_unpadded(torch.from_numpy(picture)[None])[0].numpy())


@pytest.mark.parametrize("changes", [{}, {"unshuffle_mod": True}, {"upsampler_type": "lda"}], ids=case_id)
def test_fdat_in_openvino_is_what_spandrel_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """All of them, in ONNX Runtime: test_fdat.py."""
    checkpoint = fdat(tmp_path / "fdat.safetensors", **changes)
    picture = np.random.default_rng(0).random((3, 36, 44), np.float32)
    expected = through_torch(checkpoint, picture)
    result = run_in_openvino(checkpoint, picture, tmp_path / "engine")
    assert result.shape == expected.shape == (3, 72, 88)
    assert np.abs(result - expected).max() <= 1e-4 * float(expected.std())


def test_a_network_of_one_channel_gets_one(tmp_path: Path) -> None:
    make: Any = Compact
    checkpoint = saved(make(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=3), tmp_path / "one.safetensors")
    picture = np.random.default_rng(0).random((1, 20, 24), np.float32)
    result = run_in_openvino(checkpoint, picture, tmp_path / "engine")
    assert result.shape == (1, 60, 72)
    np.testing.assert_allclose(result, through_torch(checkpoint, picture), atol=1e-5)


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("precision", ["fp16", "mixed", "bf16", "fp32"])
def test_tensorrt_builds_other_networks_in_every_precision(tmp_path: Path, precision: Any) -> None:
    checkpoint = made("DAT", tmp_path)
    spec = EngineSpec(checkpoint, 200, 240, precision)
    facts = tensorrt.build_for(spec, tmp_path, RTX, ["sm89"])
    config = replace(cast(SpandrelConfig, checkpoint.descriptor.config), largest=0)
    largest = replace(checkpoint.descriptor, config=config)
    estimate = tensorrt.needed_bytes(spec) - tensorrt.needed_bytes(
        replace(spec, checkpoint=Checkpoint(checkpoint.path, largest))
    )
    assert 0.8 * facts["activation_bytes"] < estimate < 8 * facts["activation_bytes"]
    assert np.load(tmp_path / "reference.npy").shape == (3, 400, 480)


def test_the_graph_is_the_same_each_time(tmp_path: Path) -> None:
    checkpoint = made("DAT", tmp_path)
    graphs = []
    for _ in range(2):
        base.trace_checkpoint.cache_clear()
        graphs.append(checkpoint.graph(40, 48).SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]


def test_a_network_that_cannot_be_traced_says_so_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = made("DAT", tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unsupported: operator\nand a page about it")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        EngineError, match=r"DAT.safetensors \(DAT\) cannot be written as a graph: Unsupported: operator$"
    ):
        checkpoint.graph(48, 48)


def test_the_torch_engine_takes_over_from_what_cannot_be_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = made("DAT", tmp_path)
    base.trace_checkpoint.cache_clear()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unsupported: operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(selection, "gpu_count", lambda: 0)
    with caplog.at_level("WARNING", "vsfdatrd"):
        pool = selection.open_engine(checkpoint, 40, 48, Options(precision="fp32"), EngineCache(tmp_path / "cache"))
    assert type(pool.engine).__module__ == "vsfdatrd.backends.torch.engine"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vsfdatrd.backends.selection"]
    assert line == (
        "The openvino engine cannot be used: DAT.safetensors (DAT) cannot be written as a graph: "
        "Unsupported: operator. Trying the next one."
    )


def test_what_a_network_holds_is_told_by_its_largest_tensor(tmp_path: Path) -> None:
    make: Any = Compact
    checkpoint = saved(make(num_feat=24, num_conv=2, upscale=2), tmp_path / "compact.safetensors")
    assert checkpoint.descriptor.config.peak_values_per_pixel() == ({"largest": 24},)
    spec = EngineSpec(checkpoint, 400, 600, "fp32", streams=1)
    for engine in (openvino, torch_engine):
        assert engine.memory_estimate(spec)[0] > 4 * 24 * 400 * 600
