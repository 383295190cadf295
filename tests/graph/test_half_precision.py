"""Conversion of any graph to half precision: converted types, exceptions, and the same results."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.onnx_files import mostly_identity_kernel, write_onnx
from vsfdatrd.errors import EngineBuildError
from vsfdatrd.graph.half_precision import convert_precision
from vsfdatrd.graph.target import GraphTarget

value, node = helper.make_tensor_value_info, helper.make_node
FRAME = value("x", TensorProto.FLOAT, [1, 3, 16, 16])
RESULT = value("y", TensorProto.FLOAT, [1, 3, 32, 32])


def network(path: Path, **constants: Any) -> onnx.ModelProto:
    """Create a network of operators that are converted in different ways.

    Two convolutions, a residual, a softmax, sizes computed from the frame's shape, a resize to them, and a convolution.
    """
    nodes = [
        node("Conv", ["x", "w"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Conv", ["p", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Add", ["c", "x"], ["r"]),
        node("Softmax", ["r"], ["s"], axis=1),
        node("Transpose", ["s"], ["t"], perm=[0, 1, 3, 2]),
        node("Mul", ["t", "gain"], ["m"]),
        node("Shape", ["x"], ["shape"]),
        node("Cast", ["shape"], ["fractions"], to=TensorProto.FLOAT),
        node("Mul", ["fractions", "factors"], ["large"]),
        node("Cast", ["large"], ["sizes"], to=TensorProto.INT64),
        node("Resize", ["m", "", "", "sizes"], ["e"], mode="nearest"),
        node("Conv", ["e", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4),
    ]
    given = {
        "w": mostly_identity_kernel(3, 3),
        "gain": np.float32(2),
        "factors": np.array([1, 1, 2, 2], np.float32),
    } | constants
    return onnx.load(write_onnx(path, nodes, [FRAME], RESULT, given))


def run(model: onnx.ModelProto, picture: Any) -> Any:
    """Run a model with ONNX's reference evaluator."""
    results: Any = ReferenceEvaluator(model).run(None, {"x": picture})
    return results[0]


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for values in (graph.value_info, graph.output) for v in values}


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-3), ("mixed", 3e-3), ("bf16", 3e-2)])
def test_it_computes_the_same(tmp_path: Path, precision: Any, bound: float) -> None:
    model = network(tmp_path / "x.onnx")
    picture = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    before: Any = run(model, picture)
    if precision == "bf16":  # for which the evaluator has no resize; its types are what there is to see
        assert kinds(convert_precision(model, GraphTarget(precision)))["c"] == TensorProto.BFLOAT16
        return
    after = run(convert_precision(model, GraphTarget(precision)), picture)
    assert after.dtype == np.float32
    assert 0 < np.abs(after - before).max() < bound, "nothing is computed in half precision, or too much"


def test_what_is_lowered(tmp_path: Path) -> None:
    model = network(tmp_path / "x.onnx")
    half, mixed = (kinds(convert_precision(model, GraphTarget(precision))) for precision in ("fp16", "mixed"))
    assert {half[name] for name in "crstme"} == {TensorProto.FLOAT16}
    assert {half["p"], mixed["p"]} == {TensorProto.FLOAT}, "the first layer"
    narrow = kinds(convert_precision(model, GraphTarget("bf16")))
    assert narrow["c"] == TensorProto.BFLOAT16
    assert {narrow[name] for name in "prstme"} == {TensorProto.FLOAT}, "what passes by the layers between"
    assert mixed["c"] == TensorProto.FLOAT16
    assert {mixed[name] for name in "rstm"} == {TensorProto.FLOAT}
    for result in (half, mixed):
        assert result["large"] == TensorProto.FLOAT, "sizes beyond 2048 are not whole in fp16"
        assert result["y"] == TensorProto.FLOAT
    assert convert_precision(model, GraphTarget("fp32")) is model
    assert kinds(model)["c"] == TensorProto.FLOAT, "the graph that was given has changed"


def test_no_value_is_cast_twice(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Add", ["a", "x"], ["b"]),
        node("Mul", ["b", "x"], ["y"]),
    ]
    result = value("y", TensorProto.FLOAT, [1, 3, 16, 16])
    model = onnx.load(write_onnx(tmp_path / "x.onnx", nodes, [FRAME], result, {}))
    results = Counter(each.op_type for each in convert_precision(model, GraphTarget("fp16")).graph.node)
    assert results["Cast"] == 2, "once for x, and once for the result"


def test_a_weight_beyond_fp16_is_not_made_infinite(tmp_path: Path) -> None:
    model = network(tmp_path / "x.onnx", gain=np.float32(7e4))
    with pytest.raises(OverflowError, match=r"a weight of 7e\+04 is beyond the range of float16"):
        convert_precision(model, GraphTarget("fp16"))
    convert_precision(model, GraphTarget("mixed"))
    convert_precision(model, GraphTarget("bf16"))


def test_branches_stay_in_fp32(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Identity", ["x"], ["z"])], "b", [], [value("z", TensorProto.FLOAT, None)])
    nodes = [node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    model = onnx.load(write_onnx(tmp_path / "x.onnx", nodes, [FRAME], RESULT, {"yes": np.array(True)}))
    with pytest.raises(EngineBuildError, match="with loops, branches or functions is not computed in fp16"):
        convert_precision(model, GraphTarget("fp16"))
