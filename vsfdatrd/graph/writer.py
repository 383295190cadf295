"""Writes ONNX graphs: operators by name, constants from arrays. Knows nothing of any network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
"""ONNX operator set: the first with Gelu."""
IR_VERSION = 9

type Name = str


class Writer:
    """A graph being written. Every method adds nodes and returns the name of their result."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._count = 0

    def _fresh(self, what: str) -> Name:
        self._count += 1
        return f"{what}_{self._count}"

    def constant(self, values: ArrayLike, dtype: Any = np.float32) -> Name:
        """A constant tensor."""
        name = self._fresh("constant")
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: Name, **attributes: Any) -> Name:
        """One operator with one result."""
        output = self._fresh(kind.lower())
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def reshape(self, x: Name, *shape: int) -> Name:
        """x with another shape; 0 copies a side, -1 is what is left."""
        return self.op("Reshape", x, self.constant(shape, np.int64))

    def transpose(self, x: Name, *order: int) -> Name:
        """x with its axes in another order."""
        return self.op("Transpose", x, perm=order)

    def slice(self, x: Name, axis: int, start: int, stop: int) -> Name:
        """Part of x along one axis."""
        starts, stops, axes = (self.constant([v], np.int64) for v in (start, stop, axis))
        return self.op("Slice", x, starts, stops, axes)

    def matmul(self, x: Name, weight: NDArray[Any]) -> Name:
        """x (..., I) by a constant (O, I), as a linear layer stores it -> (..., O)."""
        return self.op("MatMul", x, self.constant(np.ascontiguousarray(weight.T)))

    def conv(
        self,
        x: Name,
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
    ) -> Name:
        """A convolution with a square kernel, by default padded to keep the size."""
        side = weight.shape[-1]
        border = side // 2 if pad is None else pad
        inputs = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.op(
            "Conv", *inputs, kernel_shape=[side, side], strides=[stride, stride], pads=[border] * 4, group=groups
        )

    def layer_norm(self, x: Name, weight: NDArray[Any], bias: NDArray[Any], eps: float = 1e-5) -> Name:
        """LayerNorm over the last axis."""
        return self.op("LayerNormalization", x, self.constant(weight), self.constant(bias), axis=-1, epsilon=eps)

    def model(self, input_shape: Sequence[int], output: Name, output_shape: Sequence[int]) -> onnx.ModelProto:
        """The finished model from ``input`` to ``output``."""
        self._nodes.append(helper.make_node("Identity", [output], ["output"], name="output"))
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape)],
            self._constants,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="vsfdatrd",
        )
