"""Traced graphs are compared with PyTorch before they are used; written graphs are not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file
from torch import nn

pytest.importorskip("spandrel")

from benchmarks.architectures import save_network
from tests.artcnns import C_LUMA, random_tensors
from tests.fdats import fdat
from tests.onnx_files import write_doubler
from vsfdatrd.archs.registry import base
from vsfdatrd.backends import accuracy, network_graphs, reference, selection
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.commands import build
from vsfdatrd.errors import EngineError
from vsfdatrd.nn.spandrel_network import SpandrelNetwork
from vsfdatrd.options import Options

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Clear the results of other tests."""
    caches = (network_graphs.check_trace, network_graphs._is_size_independent, base.trace_checkpoint)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the exporter write a wrong last convolution."""
    trace = base.trace_checkpoint

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(trace(*arguments))
        name = [node for node in model.graph.node if node.op_type == "Conv"][-1].input[1]
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = np.flip(numpy_helper.to_array(weight), 0) + np.float32(0.01)
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return model

    monkeypatch.setattr(base, "trace_checkpoint", wrong)


@pytest.mark.parametrize("name", ["Compact", "DAT", "SAFMN"])
def test_networks_that_agree(tmp_path: Path, name: str) -> None:
    found = network_graphs.check_trace(save_network(name, tmp_path))
    assert found is not None
    assert found > 70


def test_a_graph_that_is_wrong(tmp_path: Path, spoilt: None) -> None:
    with pytest.raises(
        EngineError,
        match=r"Compact.safetensors \(Compact\) computes something different as a graph than in PyTorch: on a "
        r"small picture the traced engine agrees with fp32 to \d+\.\d dB only, 50 are needed; backend='torch' runs it$",
    ):
        network_graphs.check_trace(save_network("Compact", tmp_path))


def test_torch_takes_over(
    tmp_path: Path, spoilt: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = save_network("Compact", tmp_path)
    monkeypatch.setattr(selection, "gpu_count", lambda: 0)
    with caplog.at_level("WARNING", "vsfdatrd"):
        pool = selection.open_engine(checkpoint, 40, 48, Options(precision="fp32"), EngineCache(tmp_path / "cache"))
    assert type(pool.engine).__module__ == "vsfdatrd.backends.torch.engine"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vsfdatrd.backends.selection"]
    assert line.startswith("The openvino engine cannot be used: Compact.safetensors (Compact) computes something ")
    assert line.endswith(". Trying the next one.")


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
def test_nothing_is_built_for_other_gpus(tmp_path: Path, spoilt: None) -> None:
    options = Options(model=str(save_network("Compact", tmp_path).path), cache=tmp_path / "cache")
    with pytest.raises(EngineError, match="computes something different as a graph than in PyTorch"):
        build.build_for(options, 48, 40, ["sm89"])
    assert not EngineCache(tmp_path / "cache").entries()


def test_it_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_network("Compact", tmp_path)
    first = network_graphs.check_trace(checkpoint)
    monkeypatch.setattr(Checkpoint, "graph", None)
    assert network_graphs.check_trace(open_checkpoint(checkpoint.path)) == first


def test_what_is_written_is_not_tried(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(random_tensors(C_LUMA), tmp_path / "art.safetensors")
    written = [
        open_checkpoint(tiny_model),
        fdat(tmp_path / "fdat.safetensors"),
        open_checkpoint(tmp_path / "art.safetensors"),
        open_checkpoint(write_doubler(tmp_path / "given.onnx")),
    ]
    monkeypatch.setattr(Checkpoint, "graph", None)
    assert [network_graphs.check_trace(checkpoint) for checkpoint in written] == [None] * 4


# ---- traces at a small size ----------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record height and width of every frame that PyTorch computes."""
    found: list[tuple[int, int]] = []
    bare = SpandrelNetwork.forward_unpadded

    def watched(self: SpandrelNetwork, x: torch.Tensor) -> torch.Tensor:
        found.append((int(x.shape[2]), int(x.shape[3])))
        return bare(self, x)

    monkeypatch.setattr(SpandrelNetwork, "forward_unpadded", watched)
    return found


def in_openvino(model: onnx.ModelProto, folder: Path) -> Any:
    graph, result = folder / "graph.onnx", folder / "result.npy"
    graph.write_bytes(model.SerializeToString())
    reference.compute_reference(graph, result)
    return np.load(result).astype(np.float32)


def expected_of(checkpoint: Checkpoint, height: int, width: int) -> Any:
    network: Any = checkpoint.network()
    with torch.inference_mode():
        return network.forward_unpadded(torch.from_numpy(accuracy.draw_line_art(height, width)[None]))[0].numpy()


@pytest.mark.parametrize("name", ["Compact", "NAFNet", "DAT"])
def test_convolutions_are_traced_once_for_all_sizes(tmp_path: Path, passes: list[tuple[int, int]], name: str) -> None:
    checkpoint = save_network(name, tmp_path)
    passes.clear()
    model = network_graphs.create_graph(checkpoint, 300, 404)
    assert passes
    assert max(height * width for height, width in passes) < 200 * 200
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 300, 404]
    expected = expected_of(checkpoint, 300, 404)
    assert np.abs(in_openvino(model, tmp_path) - expected.clip(-10, 10)).max() < 1e-3
    passes.clear()
    network_graphs.create_graph(checkpoint, 364, 468)  # with the same remainders
    assert not passes


@pytest.mark.parametrize("name", ["SwinIR"])
def test_masks_are_right_for_one_size(tmp_path: Path, passes: list[tuple[int, int]], name: str) -> None:
    checkpoint = save_network(name, tmp_path)
    model = network_graphs.create_graph(checkpoint, 272, 256)
    assert (272, 256) in passes
    assert np.abs(in_openvino(model, tmp_path) - expected_of(checkpoint, 272, 256)).max() < 1e-3


class SizeDependent(nn.Module):
    """A network that computes something else where the sides have these remainders."""

    def __init__(self, below: int, right: int) -> None:
        super().__init__()
        self.below, self.right = below, right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odd = int(x.shape[2]) % 64 == self.below and int(x.shape[3]) % 64 == self.right
        return nn.functional.interpolate(1 - x if odd else x, scale_factor=2, mode="nearest")


@pytest.mark.parametrize(("size", "open_to_all"), [((300, 404), True), ((320, 384), False)], ids=str)
def test_a_network_that_decides_by_remainders(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int]],
    size: tuple[int, int],
    open_to_all: bool,
) -> None:
    """320 and 384 leave nothing, divided by 64; 300 and 404 do."""
    checkpoint = save_network("Compact", tmp_path)
    loaded: Any = checkpoint.network()
    loaded.model = SizeDependent(0, 0)
    loaded._descriptor._call_fn = lambda model, x: model(x)
    monkeypatch.setattr(Checkpoint, "network", lambda _: loaded)
    model = network_graphs.create_graph(checkpoint, *size)
    assert (size in passes) is not open_to_all
    assert np.abs(in_openvino(model, tmp_path) - expected_of(checkpoint, *size)).max() < 1e-3


def test_small_frames_are_traced_as_they_are(tmp_path: Path, passes: list[tuple[int, int]]) -> None:
    checkpoint = save_network("Compact", tmp_path)
    passes.clear()
    network_graphs.create_graph(checkpoint, 100, 120)
    assert set(passes) == {(100, 120)}


def test_the_sizes_tried_differ_from_the_traced_one(tmp_path: Path) -> None:
    for name in ("Compact", "SAFMN", "Uformer"):
        about = save_network(name, tmp_path).descriptor
        small = network_graphs._small_size(about)
        for more in ((27, 53), (64, 64), (127, 127)):
            tried = network_graphs._small_size(about, *more)
            assert tried[0] > small[0]
            assert tried[1] > small[1]


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_tensorrt_builds_an_open_trace(tmp_path: Path, passes: list[tuple[int, int]], precision: Any) -> None:
    checkpoint = save_network("DAT", tmp_path)
    passes.clear()
    facts = tensorrt.build_for(EngineSpec(checkpoint, 264, 260, precision), tmp_path, RTX, ["sm89"])
    assert (264, 260) not in passes
    assert facts["activation_bytes"] > 0
    assert np.load(tmp_path / "reference.npy").shape == (3, 528, 520)
    tensorrt.shutdown()
