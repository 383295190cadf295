"""References where OpenVINO is missing, and the version of a library of which only parts are installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vsfdatrd.backends import reference
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.tensorrt.library import Library
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError, EngineUnavailable


def without(*names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else result(name))


def test_onnx_runtime_computes_what_openvino_computes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(serialize(open_checkpoint(tiny_model).graph(60, 90)))
    assert reference.reference_library() == "openvino"
    reference.compute_reference(graph, tmp_path / "openvino.npy")
    without("openvino", monkeypatch=monkeypatch)
    assert reference.reference_library() == "onnxruntime"
    reference.compute_reference(graph, tmp_path / "onnxruntime.npy")
    one, other = (np.load(tmp_path / f"{name}.npy") for name in ("openvino", "onnxruntime"))
    assert one.shape == other.shape == (3, 120, 180)
    np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=1e-3, atol=2e-3)  # fp16
    graph.write_bytes(b"nothing")
    with pytest.raises(EngineError, match="ONNX Runtime could not compute the reference: "):
        reference.compute_reference(graph, tmp_path / "none.npy")


def test_neither_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("openvino", "onnxruntime", monkeypatch=monkeypatch)
    with pytest.raises(EngineUnavailable, match="needs OpenVINO or ONNX Runtime; pip install openvino"):
        reference.compute_reference(tmp_path / "graph.onnx", tmp_path / "result.npy")


@pytest.mark.parametrize("package", ["partial_rtx", "partial_rtx_cu13", "partial_rtx_cu13_bindings"])
def test_the_version_is_that_of_whatever_part_is_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"{package}-1.7.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.7.9\n")
    library = Library("partial_rtx", "rtx", portable=True)
    with pytest.raises(EngineUnavailable, match="not installed"):
        _ = library.version
    monkeypatch.syspath_prepend(tmp_path)
    assert library.version == "1.7.9"
