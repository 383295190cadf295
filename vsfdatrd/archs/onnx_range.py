"""Value range of an ONNX network's input, [0, 1] or [0, 255], derived from its first operators."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from vsfdatrd.archs.onnx import Range

type Constants = Mapping[str, NDArray[Any]]

PASSTHROUGH_OPS = ("Identity", "Cast", "Transpose", "Pad", "Unsqueeze", "Squeeze")
"""Operators that do not change pixel values."""


def white_value(graph: onnx.GraphProto, input_name: str) -> Range | None:
    """Determine the value of white at an input.

    uint8 means [0, 255]. A division by 255, a mean of 80 to 150, or a clip at 255 implies [0, 255]; a multiplication by
    255 or a mean of 0.3 to 0.6 implies [0, 1].

    Args:
        graph: The graph.
        input_name: Name of the input.

    Returns:
        ``"1"`` or ``"255"``; None if the operators are inconclusive or contradict each other.
    """
    if any(value.name == input_name and value.type.tensor_type.elem_type == TensorProto.UINT8 for value in graph.input):
        return "255"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute[0].name == "value_float":
            constants[node.output[0]] = np.array(node.attribute[0].f)
    result: set[Range] = set()
    names = {input_name}
    for node in graph.node:  # in topological order
        if node.input and node.input[0] in names and node.op_type in PASSTHROUGH_OPS:
            names.update(node.output)
        elif not names.isdisjoint(node.input) and (messages := _implied_range(node, names, constants)):
            result.add(messages)
    return result.pop() if len(result) == 1 else None


def _implied_range(node: NodeProto, names: set[str], constants: Constants) -> Range | None:
    """Return the range implied by an operator that is applied to unmodified pixel values; None if it implies none."""
    operands = [np.asarray(constants[i], np.float64) for i in node.input if i in constants and constants[i].size]
    first = node.input[0] in names
    match node.op_type, operands:
        case "Mul", [factor]:
            return _range_from_gain(255 * factor) or ("1" if _all_between(factor, 250, 260) else None)
        case "Div", [divisor] if first and divisor.all():
            return _range_from_gain(255 / divisor)
        case "Sub", [mean] if first:
            return _range_from_mean(mean)
        case "Add", [mean]:
            return _range_from_mean(-mean)
        case "Clip", [*_, most] if first and len(node.input) == 3 and node.input[2] in constants:
            return "255" if _all_between(most, 250, 256) else "1" if _all_between(most, 1, 1) else None
        case "Conv", [weight, bias] if first and weight.shape[2:] == (1, 1) and weight.shape[0] == weight.shape[1]:
            gains = weight[:, :, 0, 0].diagonal()
            alone = np.count_nonzero(weight) == len(gains) and gains.all()
            return _range_from_mean(-bias / gains) if alone else None  # mean subtraction as in EDSR (MeanShift)
    return None


def _range_from_gain(gain: NDArray[np.float64]) -> Range | None:
    """Return "255" if a byte range is scaled to a width of 1 ([0, 1]) or 2 ([-1, 1], by 127.5 or 128); otherwise None.

    gain: Width of the scaled range, 255 times the factor.
    """
    return "255" if _all_between(gain, 0.98, 1.02) or _all_between(gain, 1.96, 2.04) else None


def _range_from_mean(values: NDArray[np.float64]) -> Range | None:
    return "255" if _all_between(values, 80, 150) else "1" if _all_between(values, 0.3, 0.6) else None


def _all_between(values: NDArray[np.float64], least: float, most: float) -> bool:
    return bool(values.min() >= least and values.max() <= most)
