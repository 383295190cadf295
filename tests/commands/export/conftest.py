"""Where to export to, what others make of the file, and exports that must fail."""

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
    """Where to export to; at the end there must be nothing beside it that a test did not put there."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "x.onnx"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def noise(height: int, width: int) -> Array:
    """A picture (3, H, W) that is none of those an export is verified with."""
    return np.random.default_rng(height * 1000 + width).random((3, height, width), np.float32)


def by_torch(model: Path, picture: Array) -> Array:
    with torch.inference_mode():
        out: Array = load_model(model)(torch.from_numpy(picture[None]))[0].numpy()
    return out


def by_onnxruntime(graph: Path | bytes, picture: Array) -> Array:
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    out: Array = session.run(["output"], {"input": picture[None]})[0][0]
    return out


def off(out: Array, expected: Array) -> float:
    """The largest difference, as a part of the expected values' standard deviation. Nothing is clipped."""
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


def widened(path: Path) -> bytes:
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


def refuses(
    error: type[FdatrdError], match: str, target: Path, model: str | Path, **arguments: Any
) -> pytest.ExceptionInfo[FdatrdError]:
    """Exporting fails so, over an existing file and without one, and changes nothing."""
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
