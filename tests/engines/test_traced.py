"""What is traced is tried before it is trusted; what is written is not tried."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

pytest.importorskip("spandrel")

from benchmarks.architectures import saved
from tests.artcnns import C_LUMA, random_tensors
from tests.fdats import fdat
from tests.onnx_files import doubler
from vsfdatrd import ahead
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.engines import choice, traced
from vsfdatrd.engines.tensorrt_library import RTX
from vsfdatrd.errors import EngineError
from vsfdatrd.graph import of_module
from vsfdatrd.options import Options
from vsfdatrd.store import Store

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Nothing is known from another test."""
    traced._agreement.cache_clear()
    yield
    traced._agreement.cache_clear()


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that gets the last convolution wrong."""
    trace = of_module.traced

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(trace(*arguments))
        name = [node for node in model.graph.node if node.op_type == "Conv"][-1].input[1]
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = np.flip(numpy_helper.to_array(weight), 0) + np.float32(0.01)
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return model

    monkeypatch.setattr(of_module, "traced", wrong)


@pytest.mark.parametrize("name", ["Compact", "DAT", "SAFMN"])
def test_networks_that_agree(tmp_path: Path, name: str) -> None:
    found = traced.check(saved(name, tmp_path))
    assert found is not None
    assert found > 70


def test_a_graph_that_is_wrong(tmp_path: Path, spoilt: None) -> None:
    with pytest.raises(
        EngineError,
        match=r"Compact.safetensors \(Compact\) as a graph is not what PyTorch computes: on a small picture the traced "
        r"engine agrees with fp32 to \d+\.\d dB only, 50 are needed; backend='torch' runs it$",
    ):
        traced.check(saved("Compact", tmp_path))


def test_torch_takes_over(
    tmp_path: Path, spoilt: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = saved("Compact", tmp_path)
    monkeypatch.setattr(choice, "gpu_count", lambda: 0)
    with caplog.at_level("WARNING", "vsfdatrd"):
        lanes = choice.open_engine(checkpoint, 40, 48, Options(precision="fp32"), Store(tmp_path / "cache"))
    assert type(lanes.engine).__module__ == "vsfdatrd.engines.torch"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vsfdatrd.engines.choice"]
    assert line.startswith("The openvino engine cannot be used: Compact.safetensors (Compact) as a graph is not what ")
    assert line.endswith(". Trying the next one.")


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
def test_nothing_is_built_for_other_gpus(tmp_path: Path, spoilt: None) -> None:
    options = Options(model=str(saved("Compact", tmp_path).path), cache=tmp_path / "cache")
    with pytest.raises(EngineError, match="as a graph is not what PyTorch computes"):
        ahead.build_for(options, 48, 40, ["sm89"])
    assert not Store(tmp_path / "cache").entries()


def test_it_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved("Compact", tmp_path)
    first = traced.check(checkpoint)
    monkeypatch.setattr(traced, "graph_of", None)
    assert traced.check(open_checkpoint(checkpoint.path)) == first


def test_what_is_written_is_not_tried(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(random_tensors(C_LUMA), tmp_path / "art.safetensors")
    written = [
        open_checkpoint(tiny_model), fdat(tmp_path / "fdat.safetensors"), open_checkpoint(tmp_path / "art.safetensors"),
        open_checkpoint(doubler(tmp_path / "given.onnx")),
    ]  # fmt: skip
    monkeypatch.setattr(traced, "graph_of", None)
    assert [traced.check(checkpoint) for checkpoint in written] == [None] * 4
