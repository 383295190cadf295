"""ArtCNN out of ONNX graphs as converters write them, and graphs that are nearly ArtCNN."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.artcnns import C_LUMA, KINDS, R_LUMA, R_RGB, Tensors, by_hand, picture, random_tensors, run_graph
from vsfdatrd.archs.artcnn import ArtCnnConfig, layers
from vsfdatrd.archs.artcnn_onnx import tensors_of
from vsfdatrd.graph.artcnn import write
from vsfdatrd.graph.target import OPENVINO
from vsfdatrd.nn.artcnn import ArtCnn


def exported(config: ArtCnnConfig, tensors: Tensors) -> onnx.ModelProto:
    """As PyTorch exports it."""
    network = ArtCnn(config).eval()
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    file = io.BytesIO()
    x = torch.zeros(1, config.in_channels, 16, 16)
    torch.onnx.export(
        network,
        (x,),
        file,  # type: ignore[arg-type]
        dynamo=False,
        dynamic_axes={"input": {2: "h", 3: "w"}},
        input_names=["input"],
    )
    return onnx.load_from_string(file.getvalue())


def converted(config: ArtCnnConfig, tensors: Tensors, dtype: type = np.float32) -> onnx.ModelProto:
    """As converters from Keras write it: transposes outside, biases by themselves, a pixel's channels first, a clip."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def constant(name: str, values: NDArray[Any]) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name))
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{kind}{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def conv(x: str, name: str) -> str:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if name == layers(config)[-1]:  # (c, y, x) -> (y, x, c)
            order = np.arange(len(weight)).reshape(config.out_channels, -1).T.reshape(-1)
            weight, bias = weight[order], bias[order]
        out = op("Conv", x, constant(f"{name}.w", weight), auto_pad=b"SAME_UPPER", strides=[1, 1])
        return op("Add", constant(f"{name}.b", bias.reshape(1, -1, 1, 1)), out)

    first, *body, closing, last = layers(config)
    a = y = conv(op("Transpose", "picture", perm=[0, 3, 1, 2]), first)
    if config.residual:
        for i in range(0, len(body), 3):
            inner = op("Relu", conv(op("Relu", conv(y, body[i])), body[i + 1]))
            y = op("Add", conv(inner, body[i + 2]), y)
    else:
        for name in body:
            y = op("Relu", conv(y, name))
    out = conv(op("Add", conv(y, closing), a), last)
    if config.scale > 1:
        out = op("DepthToSpace", out, blocksize=config.scale)
    out = op("Min", op("Max", out, constant("zero", np.zeros(()))), constant("one", np.ones((1,))))
    out = op("Clip", out, "zero", "one")
    nodes.append(helper.make_node("Transpose", [out], ["result"], perm=[0, 2, 3, 1]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes, "converted",
        [helper.make_tensor_value_info("picture", kind, ["n", "h", "w", config.in_channels])],
        [helper.make_tensor_value_info("result", kind, None)], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("maker", [exported, converted])
def test_the_weights_are_found(config: ArtCnnConfig, maker: Callable[..., onnx.ModelProto]) -> None:
    tensors = random_tensors(config)
    found = tensors_of(maker(config, tensors).graph)
    assert found is not None
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_our_own_graph_is_read_back() -> None:
    tensors = random_tensors(R_LUMA)
    found = tensors_of(write(R_LUMA, tensors, None, OPENVINO).graph)
    assert found is not None
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_a_pixels_channels_are_sorted() -> None:
    """The test's own converter is held against the formula, since it decides what the reader should do."""
    tensors, x = random_tensors(R_RGB), picture(R_RGB)
    model = converted(R_RGB, tensors)
    out = run_graph(model, x.transpose(1, 2, 0))
    np.testing.assert_allclose(out.transpose(2, 0, 1), by_hand(R_RGB, tensors, x).clip(0, 1), atol=2e-6)


def test_half_precision_is_widened() -> None:
    tensors = random_tensors(C_LUMA)
    found = tensors_of(converted(C_LUMA, tensors, np.float16).graph)
    assert found is not None
    for name, values in tensors.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values.astype(np.float16))


def changed(change: str) -> onnx.GraphProto:
    model = converted(C_LUMA, random_tensors(C_LUMA))
    graph = model.graph
    relus = [node for node in graph.node if node.op_type == "Relu"]
    convs = [node for node in graph.node if node.op_type == "Conv"]
    match change:
        case "another activation":
            relus[1].op_type = "Sigmoid"
        case "no activation":
            relus[1].op_type = "Identity"
        case "one more activation":
            relus[0].input[0], convs[0].output[0] = "extra", "Conv1"
            graph.node.insert(0, helper.make_node("Relu", ["picture"], ["extra"]))
        case "no skip":
            sums = [node for node in graph.node if node.op_type == "Add"]
            sums[-2].input[1] = sums[-2].input[0]
        case "strides":
            convs[2].attribute.append(helper.make_attribute("dilations", [2, 2]))
        case "groups":
            convs[2].attribute.append(helper.make_attribute("group", 8))
        case "no padding":
            del convs[2].attribute[:]
        case "unknown weight":
            convs[2].input[1] = "nowhere"
        case "no inputs":
            del convs[2].input[:]
        case "two inputs":
            graph.input.append(helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 1, 8, 8]))
        case "a cycle":
            convs[0].input[0] = "result"
        case "external weight":
            graph.initializer[0].data_location = TensorProto.EXTERNAL
        case "a broken weight":
            graph.initializer[0].raw_data = b"123"
        case "a flat weight":
            graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), "conv0.w"))
        case "another range":
            graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full((1,), 255, np.float32), "one"))
        case "a clamp inside":
            relus[1].op_type = "Clip"
            relus[1].input.extend(["zero", "one"])
        case "nothing":
            del graph.node[:]
    return graph


@pytest.mark.parametrize("change", [
    "another activation", "no activation", "one more activation", "no skip", "strides", "groups", "no padding",
    "unknown weight", "no inputs", "two inputs", "a cycle", "external weight", "a broken weight", "a flat weight",
    "another range", "a clamp inside", "nothing",
])  # fmt: skip
def test_what_differs_is_left_to_others(change: str) -> None:
    assert tensors_of(changed("none")) is not None
    assert tensors_of(changed(change)) is None
