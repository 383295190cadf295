"""The value of white is derived from the first operators of a graph, and only if they are unambiguous."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from tests.onnx_files import write_onnx
from vsfdatrd.archs.onnx_range import white_value

node = helper.make_node
SHIFT = np.eye(3)[:, :, None, None]


def conv(weight: Any, bias: Any) -> tuple[list[NodeProto], dict[str, Any]]:
    return [node("Conv", ["x", "c", "d"], ["y"])], {"c": np.float32(weight), "d": np.float32(bias)}


def one(kind: str, constant: Any, *, reverse: bool = False) -> tuple[list[NodeProto], dict[str, Any]]:
    return [node(kind, ["c", "x"] if reverse else ["x", "c"], ["y"])], {"c": np.float32(constant)}


def planes(*values: float) -> Any:
    return np.reshape(values, (1, 3, 1, 1))


def graph(path: Path, nodes: Sequence[NodeProto], constants: dict[str, Any], kind: int = TensorProto.FLOAT) -> Any:
    value = helper.make_tensor_value_info
    taken, given = value("x", kind, [1, 3, "h", "w"]), value("y", TensorProto.FLOAT, [1, 3, "h", "w"])
    return onnx.load(write_onnx(path, nodes, [taken], given, constants)).graph


BYTES = {
    "divided by 255": one("Div", 255),
    "times 1/255": one("Mul", 1 / 255, reverse=True),
    "to -1 to 1": one("Div", planes(127.5, 127.5, 127.5)),
    "less ImageNet's mean": one("Sub", planes(123.68, 116.78, 103.94)),
    "plus a negative mean": one("Add", -127.5),
    "EDSR's mean": conv(SHIFT, [-114.4, -111.5, -103.0]),
    "EDSR's mean and gain": conv(SHIFT / 58, np.array([-114.4, -111.5, -103.0]) / 58),
    "cut off at 255": ([node("Clip", ["x", "a", "b"], ["y"])], {"a": np.float32(0), "b": np.float32(255)}),
    "behind a transpose and a cast": (
        [
            node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
            node("Cast", ["t"], ["u"], to=1),
            node("Constant", [], ["c"], value_float=255.0),
            node("Div", ["u", "c"], ["y"]),
        ],
        {},
    ),
}

FRACTIONS = {
    "times 255": one("Mul", 255),
    "less a mean": one("Sub", planes(0.485, 0.456, 0.406)),
    "cut off at 1": ([node("Clip", ["x", "a", "b"], ["y"])], {"a": np.float32(0), "b": np.float32(1)}),
    "EDSR's mean": conv(SHIFT, [-0.4488, -0.4371, -0.404]),
}

NOTHING = {
    "a convolution": conv(np.ones((3, 3, 3, 3)), [-114, -111, -103]),
    "a mix of channels": conv(SHIFT + 0.1, [-114, -111, -103]),
    "another gain": one("Mul", 0.2),
    "another divisor": one("Div", planes(255, 255, 2)),
    "255 divided by it": one("Div", 255, reverse=True),
    "its negative": one("Sub", 127, reverse=True),
    "divided by nothing": one("Div", 0),
    "after a convolution": (
        [node("Conv", ["x", "w"], ["f"]), node("Div", ["f", "c"], ["y"])],
        {"w": np.float32(SHIFT), "c": np.float32(255)},
    ),
    "a contradiction": (
        [node("Div", ["x", "c"], ["a"]), node("Mul", ["x", "c"], ["b"]), node("Add", ["a", "b"], ["y"])],
        {"c": np.float32(255)},
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_white_is_255(tmp_path: Path, case: str) -> None:
    assert white_value(graph(tmp_path / "x.onnx", *BYTES[case]), "x") == "255"


@pytest.mark.parametrize("case", FRACTIONS)
def test_white_is_1(tmp_path: Path, case: str) -> None:
    assert white_value(graph(tmp_path / "x.onnx", *FRACTIONS[case]), "x") == "1"


@pytest.mark.parametrize("case", NOTHING)
def test_what_leaves_doubt_tells_nothing(tmp_path: Path, case: str) -> None:
    assert white_value(graph(tmp_path / "x.onnx", *NOTHING[case]), "x") is None


def test_bytes_go_to_255(tmp_path: Path) -> None:
    cast = [node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    assert white_value(graph(tmp_path / "x.onnx", cast, {}, TensorProto.UINT8), "x") == "255"
    assert white_value(graph(tmp_path / "y.onnx", cast, {}), "x") is None
