"""Convert any ONNX network to the form engines read: float32 planes in [0, 1] at input and output, one fixed size."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vsfdatrd.archs.onnx import Layout, OnnxConfig
from vsfdatrd.archs.onnx_checks import FLOAT_TYPES, iter_graphs, iter_tensors
from vsfdatrd.graph.builder import replace_ends


def wrap_io(model: onnx.ModelProto, config: OnnxConfig, height: int, width: int) -> onnx.ModelProto:
    """Wrap the network so that its input and output are as engines expect, with all values in float32.

    The added layers adapt layout, data type, value range and padding, and extract the second picture.

    Args:
        model: Result of `onnx_checks.read_model`; not modified.
        config: Its inputs and outputs.
        height: Height of the padded frame in pixels.
        width: Width of the padded frame in pixels.

    Returns:
        A model from ``input`` (1, C, H + `OnnxConfig.style_rows`, W) to ``output`` (1, C, H·scale, W·scale).
    """
    inner = _in_float32(model)
    graph = inner.graph
    _rename(graph, "net/")
    by_name = {value.name: value for value in graph.input}
    before: list[NodeProto] = []
    constants: list[TensorProto] = []

    def constant(values: Any, dtype: Any = np.int64) -> str:
        name = f"end/{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(nodes: list[NodeProto], kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def into(x: str, value: onnx.ValueInfoProto, layout: Layout) -> None:
        """Convert (1, C, H, W) in [0, 1] to the form that an input of the network takes."""
        end, kind = value.name, value.type.tensor_type.elem_type
        if config.margin:
            around = [0, 0, config.margin, config.margin]
            x = op(before, "Pad", (x, constant(around * 2)), f"{end}/padded", mode="edge")
        if config.range == "255":
            x = op(before, "Mul", (x, constant(255, np.float32)), f"{end}/scaled")
        if kind != TensorProto.FLOAT:
            if kind == TensorProto.UINT8:
                x = op(before, "Clip", (x, constant(0, np.float32), constant(255, np.float32)), f"{end}/limited")
                x = op(before, "Round", (x,), f"{end}/rounded")
            x = op(before, "Cast", (x,), f"{end}/cast", to=kind)
        if layout == "NHWC":
            op(before, "Transpose", (x,), end, perm=[0, 2, 3, 1])
        else:
            op(before, "Identity", (x,), end)

    x, channels = "input", 1 if config.channels == 1 else 3
    rows = config.style_rows(height, width)
    if size := config.style_size(height, width):
        x = op(before, "Slice", ("input", *map(constant, ([0], [height], [2]))), "end/frame")
        style = op(before, "Slice", ("input", *map(constant, ([height], [height + rows], [2]))), "end/below")
        style = op(before, "Reshape", (style, constant([1, channels, rows * width])), "end/flat")
        style = op(before, "Slice", (style, *map(constant, ([0], [math.prod(size)], [2]))), "end/pixels")
        style = op(before, "Reshape", (style, constant([1, channels, *size])), "end/style")
        into(style, by_name[f"net/{config.style}"], config.style_layout)
    if config.channels == 2:  # the network takes U and V only: drop Y
        x = op(before, "Slice", (x, constant([1]), constant([3]), constant([1])), "end/chroma")
    into(x, by_name[f"net/{config.input}"], config.layout)

    after: list[NodeProto] = []
    y = f"net/{config.output}"
    output = next(value for value in graph.output if value.name == y)
    if output.type.tensor_type.elem_type != TensorProto.FLOAT:
        y = op(after, "Cast", (y,), "end/out", to=TensorProto.FLOAT)
    if config.output_layout == "NHWC":
        y = op(after, "Transpose", (y,), "end/planes", perm=[0, 3, 1, 2])
    if config.crop or config.crop_end:
        stop = -config.crop_end or 2**31
        y = op(after, "Slice", (y, constant([config.crop] * 2), constant([stop] * 2), constant([2, 3])), "end/cropped")
    if config.output_range == "255":
        y = op(after, "Mul", (y, constant(1 / 255, np.float32)), "end/unscaled")
    op(after, "Identity", (y,), "output")

    graph.initializer.extend(constants)
    replace_ends(graph, before, after, (1, channels, height + rows, width), (1, None, None, None))
    return inner


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Prefix every value and node name, also in subgraphs, which refer to values of the enclosing graph."""
    for part in iter_graphs(graph):
        for value in (*part.input, *part.output, *part.value_info, *part.initializer):
            value.name = prefix + value.name
        for sparse in part.sparse_initializer:
            sparse.values.name = prefix + sparse.values.name
        for annotation in part.quantization_annotation:
            annotation.tensor_name = prefix + annotation.tensor_name
            for entry in annotation.quant_parameter_tensor_names:
                entry.value = prefix + entry.value
        for node in part.node:
            node.input[:] = [name and prefix + name for name in node.input]
            node.output[:] = [name and prefix + name for name in node.output]
            node.name = prefix + node.name


def _in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with all floating-point tensors and values converted to float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in iter_tensors(copy.graph):
        if tensor.data_type in FLOAT_TYPES[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for graph in iter_graphs(copy.graph):
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                if value.type.tensor_type.elem_type in FLOAT_TYPES[1:]:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in FLOAT_TYPES[1:]:
                    attribute.i = TensorProto.FLOAT
    return copy
