"""Target files of exports, results of exported files in other programs, and exports that must fail."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from vsfdatrd.checkpoint import load_model
from vsfdatrd.commands.export import export
from vsfdatrd.errors import FdatrdError

type Array = NDArray[Any]
type Make = Callable[..., dict[str, Array]]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Target file in an empty folder, which must contain no temporary files at the end."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "x.onnx"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def noise(height: int, width: int) -> Array:
    """Random picture (3, H, W), different from those with which exports are verified."""
    return np.random.default_rng(height * 1000 + width).random((3, height, width), np.float32)


def run_torch(model: Path, picture: Array) -> Array:
    with torch.inference_mode():
        out: Array = load_model(model)(torch.from_numpy(picture[None]))[0].numpy()
    return out


def run_onnxruntime(graph: Path | bytes, picture: Array) -> Array:
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    out: Array = session.run(["output"], {"input": picture[None]})[0][0]
    return out


def relative_error(out: Array, expected: Array) -> float:
    """Return the largest difference divided by the standard deviation of the expected values. Nothing is clipped."""
    assert out.shape == expected.shape
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    return float(np.abs(out - expected).max() / expected.std())


def interface(path: Path) -> list[tuple[str, list[int | str], int]]:
    """Name, shape and type of the input and of the output."""
    model = onnx.load(path)
    return [
        (
            value.name,
            [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
            value.type.tensor_type.elem_type,
        )
        for value in (*model.graph.input, *model.graph.output)
    ]


def convert_to_fp32(path: Path) -> bytes:
    """A bf16 graph with everything that is bf16 made fp32, its weights' values as they are."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    content: bytes = model.SerializeToString()
    return content


def assert_refused(
    error: type[FdatrdError], match: str, target: Path, model: str | Path, **arguments: Any
) -> pytest.ExceptionInfo[FdatrdError]:
    """Check that exporting fails with this error, with and without an existing file, and changes nothing."""
    beside = set(target.parent.iterdir())
    target.write_bytes(b"what was there")
    with pytest.raises(error, match=match):
        export(model, target, **arguments)
    assert target.read_bytes() == b"what was there"
    target.unlink()
    with pytest.raises(error, match=match) as caught:
        export(model, target, **arguments)
    assert set(target.parent.iterdir()) == beside
    return caught
