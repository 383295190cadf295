"""Graphs operator by operator in PyTorch, compared with ONNX Runtime and with ONNX's own reference."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks.gpu_visit.onnx_operators import execute
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.graph.target import GraphTarget, tensorrt_target

CPU = torch.device("cpu")


@pytest.mark.parametrize("turing", [False, True])
def test_our_graph_in_fp32(tiny_model: Path, turing: bool, one_thread: None) -> None:
    graph = open_checkpoint(tiny_model).graph(60, 90, tensorrt_target("fp32", turing))
    picture = draw_line_art(60, 90)[None]
    (result,) = execute(graph, {"input": torch.from_numpy(picture)}, CPU)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": picture})[0]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_our_graph_in_half_precision_is_computed_in_it(tiny_model: Path, one_thread: None) -> None:
    checkpoint = open_checkpoint(tiny_model)
    picture = torch.from_numpy(draw_line_art(60, 60)[None])
    (exact,) = execute(checkpoint.graph(60, 60, GraphTarget()), {"input": picture}, CPU)
    (half,) = execute(checkpoint.graph(60, 60, tensorrt_target("bf16")), {"input": picture}, CPU)
    assert half.dtype == torch.float32
    error = float((half - exact).abs().max() / exact.abs().max())
    assert 1e-4 < error < 0.2


def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "attention": ("Attention", [random(2, 3, 7, 8), random(2, 3, 5, 8), random(2, 3, 5, 8)], {"scale": 0.3}),
    "attention with a mask": (
        "Attention",
        [random(1, 2, 4, 8), random(1, 2, 5, 8), random(1, 2, 5, 8), random(1, 2, 4, 5)],
        {},
    ),
    "pixels out of channels": ("DepthToSpace", [random(1, 12, 3, 4)], {"blocksize": 2}),
    "pixels out of channels, the other way": ("DepthToSpace", [random(1, 12, 3, 4)], {"blocksize": 2, "mode": "CRD"}),
    "channels out of pixels": ("SpaceToDepth", [random(1, 3, 4, 6)], {"blocksize": 2}),
    "reflected": ("Pad", [random(1, 2, 5, 6), whole(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "edges": ("Pad", [random(1, 2, 5, 6), whole(2, 3), np.empty(0, np.float32), whole(-1)], {"mode": "edge"}),
    "zeros": ("Pad", [random(1, 2, 5, 6), whole(0, 1, 1, 2, 0, 0, 3, 0)], {}),
    "every second": ("Slice", [random(4, 9), whole(1, 0), whole(9, 3), whole(1, 0), whole(2, 1)], {}),
    "to the end": ("Slice", [random(4, 9), whole(-3), whole(2**62), whole(1)], {}),
    "product of transposed": ("Gemm", [random(5, 3), random(5, 4), random(4)], {"transA": 1, "alpha": 0.5, "beta": 2}),
    "norm": ("LayerNormalization", [random(2, 5, 8), random(8), random(8)], {"axis": -1, "epsilon": 1e-3}),
    "largest": ("ReduceMax", [random(2, 5, 8), whole(1, 2)], {"keepdims": 0}),
    "mean of all": ("ReduceMean", [random(2, 5, 8)], {}),
    "spread": (
        "ConvTranspose",
        [random(1, 4, 3, 5), random(4, 2, 4, 4), random(2)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [4, 4]},
    ),
    "uneven": (
        "Conv",
        [random(1, 4, 7, 9), random(4, 1, 3, 3), random(4)],
        {"group": 4, "pads": [0, 1, 2, 1], "strides": [2, 1], "kernel_shape": [3, 3]},
    ),
    "shape that keeps": ("Reshape", [random(2, 6, 4), whole(0, 3, -1)], {}),
    "gathered": ("Gather", [random(4, 5), whole(3, 0)], {"axis": 1}),
    "softened": ("Softmax", [random(3, 4, 5)], {"axis": 1}),
    "unsqueezed": ("Unsqueeze", [random(3, 4), whole(0, 3)], {}),
    "expanded": ("Expand", [random(3, 1), whole(2, 1, 4)], {}),
    "rounded to tanh": ("Gelu", [random(3, 4)], {"approximate": "tanh"}),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str) -> None:
    operator, tensors, attributes = CASES[case]
    names = [f"in{i}" if tensor.size else "" for i, tensor in enumerate(tensors)]
    node = helper.make_node(operator, names, ["out"], **attributes)
    constants = [numpy_helper.from_array(t, n) for t, n in zip(tensors[1:], names[1:], strict=True) if n]
    source = helper.make_tensor_value_info("in0", TensorProto.FLOAT, tensors[0].shape)
    target = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [source], [target], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    results: Any = ReferenceEvaluator(model).run(None, {"in0": tensors[0]})
    expected = results[0]
    (result,) = execute(model, {"in0": torch.from_numpy(tensors[0])}, CPU)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_operator_is_named() -> None:
    source, target = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (2,)) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Hardmax", ["x"], ["y"], "odd")], "one", [source], [target])
    with pytest.raises(NotImplementedError, match=r"the operator Hardmax \(odd\) is not known"):
        execute(helper.make_model(graph), {"x": torch.zeros(2)}, CPU)
