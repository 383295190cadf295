"""ONNX graph builder: operators by name, constants from arrays. Independent of any network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT32 = np.float32
IR_VERSIONS = {20: 9, 23: 11}
"""ONNX file format (IR) version for each operator set."""
_INTEGERS = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__, "Div": int.__floordiv__, "Mod": int.__mod__}
"""Functions of the operators that `Writer.dim_op` computes if both dimensions are known."""

type Name = str
type Side = int | Name
"""A dimension: an int if it is known, otherwise the name of an int64 tensor of shape (1,)."""


class Writer:
    """A graph under construction. Every method adds nodes and returns the name of their result.

    Args:
        name: Name of the graph.
        dtype: Default type of constants and results.
        opset: ONNX operator set.
    """

    def __init__(self, name: str, dtype: Any = np.float32, opset: int = 20) -> None:
        self.dtype = np.dtype(dtype)
        self._name = name
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._count = 0
        self._part = ""

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Name the nodes added inside the context ``<name>/<result>``, so that profiles show the part of the network.

        Args:
            name: Name of the part. If contexts are nested, the innermost name is used.
        """
        before, self._part = self._part, f"{name}/"
        try:
            yield
        finally:
            self._part = before

    def _unique_name(self, base_name: str) -> Name:
        self._count += 1
        return f"{base_name}_{self._count}"

    def constant(self, values: ArrayLike, dtype: Any = None) -> Name:
        """Add a constant tensor.

        Args:
            values: Its values.
            dtype: Its type; None for the default.

        Raises:
            OverflowError: A finite value becomes infinite in this type.
        """
        name = self._unique_name("constant")
        array = convert(np.asarray(values), self.dtype if dtype is None else dtype)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: Name, **attributes: Any) -> Name:
        """Add an operator with a single output."""
        output = self._unique_name(kind.lower())
        self._nodes.append(helper.make_node(kind, inputs, [output], name=self._part + output, **attributes))
        return output

    def cast(self, x: Name, source: Any, target: Any) -> Name:
        """Convert x to another type; returns x unchanged if the types are equal."""
        if np.dtype(source) == np.dtype(target):
            return x
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))

    def length(self, x: Name, axis: int) -> Name:
        """Return the size of x along an axis, which is determined when the graph runs."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def dim_op(self, kind: str, left: Side, right: Side) -> Side:
        """Apply Add, Sub, Mul, Div (integer) or Mod to two dimensions; returns an int if both are known."""
        if isinstance(left, int) and isinstance(right, int):
            return _INTEGERS[kind](left, right)
        return self.op(kind, self.shape_tensor(left), self.shape_tensor(right))

    def shape_tensor(self, *lengths: Side) -> Name:
        """Concatenate dimensions into one int64 tensor."""
        if all(isinstance(length, int) for length in lengths):
            return self.constant(lengths, np.int64)
        named = [self.constant([v], np.int64) if isinstance(v, int) else v for v in lengths]
        return named[0] if len(named) == 1 else self.op("Concat", *named, axis=0)

    def reshape(self, x: Name, *shape: Side) -> Name:
        """Reshape x; 0 copies a dimension, -1 infers it."""
        return self.op("Reshape", x, self.shape_tensor(*shape))

    def slice(self, x: Name, axis: int, start: Side, end: Side, step: int | None = None) -> Name:
        """Slice x along an axis: every `step`-th value from `start` up to, but not including, `end`."""
        bounds = (start, end, axis) if step is None else (start, end, axis, step)
        return self.op("Slice", x, *map(self.shape_tensor, bounds))

    def crop(self, x: Name, axis: int, height: Side, width: Side) -> Name:
        """Take the first `height` × `width` values along an axis and the one after it."""
        return self.op(
            "Slice", x, self.shape_tensor(0, 0), self.shape_tensor(height, width), self.shape_tensor(axis, axis + 1)
        )

    def transpose(self, x: Name, *order: int) -> Name:
        """Permute the axes of x."""
        return self.op("Transpose", x, perm=order)

    def matmul(self, x: Name, weight: NDArray[Any]) -> Name:
        """Multiply x (..., I) by a constant in the layout of a linear layer, (O, I) -> (..., O)."""
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
        dtype: Any = None,
    ) -> Name:
        """Add a convolution with a square kernel.

        Args:
            x: Input (1, I, H, W).
            weight: (O, I / groups, k, k).
            bias: (O,), or None.
            stride: Stride in both directions.
            pad: Zero padding on every side; None keeps the size at stride 1.
            groups: Number of groups.
            dtype: Type of the constants; None for the default.
        """
        side = weight.shape[-1]
        border = side // 2 if pad is None else pad
        inputs = [x, self.constant(weight, dtype)] + ([] if bias is None else [self.constant(bias, dtype)])
        return self.op(
            "Conv", *inputs, kernel_shape=[side, side], strides=[stride, stride], pads=[border] * 4, group=groups
        )

    def layer_norm(
        self, x: Name, weight: NDArray[Any], bias: NDArray[Any], eps: float = 1e-5, dtype: Any = None
    ) -> Name:
        """Add a LayerNorm over the last axis.

        Args:
            x: Input (..., C).
            weight: Scale (C,).
            bias: Shift (C,).
            eps: Added to the variance.
            dtype: Type of x; None for the default. Mean and variance are always fp32.
        """
        scale, shift = self.constant(weight, dtype), self.constant(bias, dtype)
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)

    def model(
        self, input_shape: Sequence[int | str], output: Name, output_shape: Sequence[int | str]
    ) -> onnx.ModelProto:
        """Finish the model from ``input`` to ``output``, both float32.

        Args:
            input_shape: Dimensions of the input; strings name dynamic dimensions.
            output: Name of the value to output.
            output_shape: Dimensions of the output, likewise.
        """
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
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=IR_VERSIONS[self._opset],
            producer_name="vsfdatrd",
        )


def convert(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Convert an array to another type, contiguous.

    Raises:
        OverflowError: A finite value becomes infinite in this type.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(values.astype(dtype))
    if array.dtype.itemsize == 2:
        finite = np.isfinite(values)
        if (np.isinf(array.astype(np.float32)) & finite).any():
            largest = np.abs(values[finite]).max()
            raise OverflowError(f"a weight of {largest:.3g} is beyond the range of {array.dtype}")
    return array


def replace_ends(
    graph: onnx.GraphProto,
    before: Sequence[onnx.NodeProto],
    after: Sequence[onnx.NodeProto],
    input_shape: Sequence[int | None],
    output_shape: Sequence[int | None],
) -> None:
    """Add nodes before and after those of a graph, so that its input is ``input`` and its output ``output`` (float32).

    Args:
        graph: The graph; changed in place.
        before: Nodes from ``input`` to the graph's former inputs.
        after: Nodes from its former outputs to ``output``.
        input_shape: Dimensions of ``input``.
        output_shape: Dimensions of ``output``; None for unknown ones.
    """
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape))
    graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape))
