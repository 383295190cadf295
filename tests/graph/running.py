"""Run networks and their graphs on a CPU, inspect graphs, and compare results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.nn.fdat_rd import FdatRd
from vsfdatrd.options import Precision

type Array = NDArray[Any]
type Make = Callable[..., Any]
type Tensors = dict[str, Array]

FRAME = (540, 720)
TOKENS = 97200
"""Of such a frame, unshuffled by 2."""
HALF: tuple[Precision, ...] = ("fp16", "bf16", "mixed")
tiny = pytest.mark.usefixtures("one_thread")  # threads cost small networks more than they save


def run_onnxruntime(model: onnx.ModelProto, x: Array, threads: int = 1) -> Array:
    """Run a model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out: Array = session.run(["output"], {"input": x})[0]
    return out


def run_torch(network: torch.nn.Module, x: Array) -> Array:
    with torch.inference_mode():
        out: Array = network(torch.from_numpy(x)).numpy()
    return out


def build_network(config: FdatRdConfig, tensors: Tensors) -> FdatRd:
    network = FdatRd(config).eval()
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return network


def noise(config: FdatRdConfig, tokens: int = 60) -> Array:
    """Return a random frame with `tokens` tokens per side."""
    side = tokens * config.unshuffle
    return np.random.default_rng(2).random((1, config.in_channels, side, side), np.float32)


def graph_for(x: Array, config: FdatRdConfig, tensors: Tensors, target: GraphTarget) -> onnx.ModelProto:
    _, _, height, width = x.shape
    return fdat_rd_graph(config, tensors, (height, width), target)


def relative_error(out: Array, expected: Array) -> float:
    """Return the largest difference divided by the largest value."""
    assert out.shape == expected.shape
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    return float(np.abs(out - expected).max() / np.abs(expected).max())


def rms_error(out: Array, expected: Array) -> float:
    """Return the RMS error divided by the standard deviation."""
    assert out.shape == expected.shape
    return float(np.sqrt(np.mean((out - expected) ** 2, dtype=np.float64)) / expected.std())


def infer_types(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every tensor of a graph, by the rules of ONNX."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    result = {
        value.name: (value.type.tensor_type.elem_type, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return result | {constant.name: (constant.data_type, tuple(constant.dims)) for constant in graph.initializer}


def find_divisions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Find divisions of non-constant values: products by norms in channel attention, sums in dictionary attention."""
    constants = {constant.name for constant in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "Div" and node.input[0] not in constants]


def count_reduction_parts(model: onnx.ModelProto) -> list[int]:
    """Return the number of parts of every reduction over the whole frame."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    types = infer_types(model)
    return [
        types[node.input[0]][1][0]
        for node in model.graph.node
        if node.op_type in ("ReduceSum", "ReduceMax")
        and numpy_helper.to_array(constants[node.input[1]]).tolist() == [0]
    ]
