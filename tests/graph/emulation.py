"""Emulate graphs on the CPU as a GPU with strongly typed half precision computes them.

Every operator is computed in float32 from inputs that are rounded already, and its result is rounded to the type it has
in the graph: the type of its inputs, which must agree. That is how tensor cores work; sums inside of an operator are
float32, and a float16 beyond 65,504 is infinite. `EmulationResult.first_bad` is the first such operator.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

type Array = NDArray[Any]
type Attributes = dict[str, Any]
type Operator = Callable[[list[Tensor], Attributes], Tensor]

TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
}
CHUNK = 16
"""Windows whose attention is computed at once."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed values of one operator's result. Operators that only move values are not recorded."""

    name: str
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    largest: float
    """Largest magnitude of those values that are finite."""
    finite: bool
    """Whether all values are."""


@dataclass(frozen=True, slots=True)
class EmulationResult:
    """A graph's output, the observations of every operator in order, and requested results as float32."""

    output: Array
    seen: dict[str, Observed]
    kept: dict[str, Array]

    @property
    def first_bad(self) -> Observed | None:
        """The first operator with a result that is not finite."""
        return next((seen for seen in self.seen.values() if not seen.finite), None)


def emulate(model: onnx.ModelProto, x: Array, *, keep: Collection[str] = (), tf32: bool = False) -> EmulationResult:
    """Run a graph on an input. Raises TypeError where an operator's inputs are not of one type.

    keep: names of results to return. tf32: products and convolutions of float32 take factors of 11 significant bits, as
    GPUs may from Ampere on.
    """
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    values: dict[str, Tensor] = {graph.input[0].name: torch.from_numpy(np.ascontiguousarray(x))}
    seen: dict[str, Observed] = {}
    kept: dict[str, Array] = {}
    with torch.inference_mode():
        for i, node in enumerate(graph.node):
            inputs = [values[n] if n in values else _tensor(constants[n]) for n in node.input if n]
            (name,) = node.output
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            values[name] = result = _compute(node.op_type, inputs, attributes, tf32)
            moved = node.op_type in MOVING and node.op_type != "Cast"
            seen[name] = _look(name, node.op_type, result[:0] if moved else result, tuple(result.shape))
            if name in keep:
                kept[name] = result.float().numpy()
            del inputs, result
            for n in node.input:
                if last[n] == i:
                    values.pop(n, None)
        return EmulationResult(values[graph.output[0].name].numpy(), seen, kept)


def _tensor(constant: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(constant)
    kind = TYPES[constant.data_type]
    return torch.from_numpy(np.array(array, np.float32 if kind.is_floating_point else np.int64)).to(kind)


def _look(name: str, kind: str, x: Tensor, shape: tuple[int, ...]) -> Observed:
    if not x.is_floating_point() or not x.numel():
        return Observed(name, kind, x.dtype, shape, 0, True)
    low, high = (float(side) for side in x.aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return Observed(name, kind, x.dtype, shape, max(-low, high), True)
    rest = x[x.isfinite()].float()
    return Observed(name, kind, x.dtype, shape, float(rest.abs().max()) if rest.numel() else 0.0, False)


def _compute(kind: str, inputs: list[Tensor], attributes: Attributes, tf32: bool) -> Tensor:
    if kind in MOVING:
        return MOVING[kind](inputs, attributes)
    dtype = inputs[0].dtype
    if not dtype.is_floating_point:
        return LENGTHS[kind](inputs, attributes)
    numbers = inputs[:1] if kind == "Resize" else [v for v in inputs if v.is_floating_point()]
    if any(v.dtype != dtype for v in numbers):
        raise TypeError(f"{kind} of {', '.join(str(v.dtype) for v in numbers)}")
    if kind == "Attention":
        return _attention(inputs, attributes)
    wide = [v.float() if v.is_floating_point() else v for v in inputs]
    if tf32 and dtype == torch.float32 and kind in PRODUCTS:
        wide = [_tf32(v) for v in wide[:2]] + wide[2:]
    return (PRODUCTS | ARITHMETIC)[kind](wide, attributes).to(dtype)


def _tf32(x: Tensor) -> Tensor:
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


# Operators that move values and change none


def _reshape(inputs: list[Tensor], _: Attributes) -> Tensor:
    x, shape = inputs
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape.tolist())])


def _cast(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    return inputs[0].to(TYPES[attributes["to"]])


def _slice(inputs: list[Tensor], _: Attributes) -> Tensor:
    x, *values = inputs
    starts, ends, axes, *steps = (value.tolist() for value in values)
    places = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps[0] if steps else [1] * len(axes), strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _depth_to_space(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    x, s = inputs[0], attributes["blocksize"]
    if attributes["mode"] == b"CRD":
        return F.pixel_shuffle(x, s)
    b, c, height, width = x.shape
    x = x.reshape(b, s, s, c // s**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // s**2, height * s, width * s)


def _pad(inputs: list[Tensor], attributes: Attributes) -> Tensor:
    x, pads = inputs
    sides = pads.reshape(2, -1).flip(1).T.flatten().tolist()  # all befores, all afters -> pairs from the last axis on
    if attributes.get("mode", b"constant") == b"constant":
        return F.pad(x, sides)
    assert not any(sides[4:])
    return F.pad(x, sides[:4], attributes["mode"].decode())


MOVING: dict[str, Operator] = {
    "Cast": _cast,
    "Concat": lambda v, a: torch.cat(v, a["axis"]),
    "Expand": lambda v, _: v[0].expand(v[1].tolist()),
    "DepthToSpace": _depth_to_space,
    "Gather": lambda v, a: v[0].index_select(a["axis"], v[1]),
    "Identity": lambda v, _: v[0],
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": lambda v, a: torch.tensor(v[0].shape[a["start"] : a["end"]]),
    "Slice": _slice,
    "Transpose": lambda v, a: v[0].permute(*a["perm"]),
}

# Whole numbers, of which lengths are made

LENGTHS: dict[str, Operator] = {
    "Add": lambda v, _: v[0] + v[1],
    "Div": lambda v, _: v[0] // v[1],
    "Mod": lambda v, _: v[0] % v[1],
    "Mul": lambda v, _: v[0] * v[1],
    "Sub": lambda v, _: v[0] - v[1],
}

# Arithmetic: float32 in, float32 out


def _border(attributes: Attributes) -> int:
    (border,) = set(attributes["pads"])
    return int(border)


def _conv(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, weight, *bias = inputs
    return F.conv2d(x, weight, bias[0] if bias else None, a["strides"], _border(a), groups=a["group"])


def _conv_transpose(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, weight, bias = inputs
    return F.conv_transpose2d(x, weight, bias, a["strides"], _border(a))


def _layer_norm(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, weight, bias = inputs
    assert a["axis"] == -1
    return F.layer_norm(x, x.shape[-1:], weight, bias, a["epsilon"])


def _resize(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, last = inputs
    if last.is_floating_point():
        assert (a["mode"], a["nearest_mode"], a["coordinate_transformation_mode"]) == (
            b"nearest",
            b"floor",
            b"asymmetric",
        )
        return F.interpolate(x, scale_factor=last.tolist()[2:], mode="nearest")
    assert (a["mode"], a["coordinate_transformation_mode"]) == (b"linear", b"align_corners")
    return F.interpolate(x, last.tolist()[2:], mode="bilinear", align_corners=True)


def _grid_sample(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, grid = inputs
    assert a["mode"] == b"linear"
    return F.grid_sample(x, grid, "bilinear", a["padding_mode"].decode(), bool(a["align_corners"]))


def _attention(inputs: list[Tensor], a: Attributes) -> Tensor:
    """Attention as in fused kernels: scores and sums in float32, exp(score - largest) rounded for the product."""
    q, k, v = inputs[:3]
    bias = inputs[3].float() if len(inputs) > 3 else None
    out = torch.empty_like(q)
    for start in range(0, len(q), CHUNK):
        some = slice(start, start + CHUNK)
        scores = q[some].float() @ k[some].float().mT * a["scale"]
        if bias is not None:
            scores += bias
        shares = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
        total = shares.sum(-1, keepdim=True)
        out[some] = (shares.to(q.dtype).float() @ v[some].float() / total).to(q.dtype)
    return out


PRODUCTS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": lambda v, a: (v[0].mT if a.get("transA") else v[0]) @ v[1],
    "MatMul": lambda v, _: v[0] @ v[1],
}
ARITHMETIC: dict[str, Operator] = {
    "Add": lambda v, _: v[0] + v[1],
    "Div": lambda v, _: v[0] / v[1],
    "Exp": lambda v, _: v[0].exp(),
    "Gelu": lambda v, _: F.gelu(v[0]),
    "GridSample": _grid_sample,
    "LayerNormalization": _layer_norm,
    "Log": lambda v, _: v[0].log(),
    "LeakyRelu": lambda v, a: F.leaky_relu(v[0], a["alpha"]),
    "Max": lambda v, _: torch.maximum(v[0], v[1]),
    "Min": lambda v, _: torch.minimum(v[0], v[1]),
    "Mul": lambda v, _: v[0] * v[1],
    "ReduceMax": lambda v, a: v[0].amax(v[1].tolist(), bool(a["keepdims"])),
    "ReduceMean": lambda v, a: v[0].mean(v[1].tolist(), bool(a["keepdims"])),
    "Relu": lambda v, _: v[0].relu(),
    "ReduceSum": lambda v, a: v[0].sum(v[1].tolist(), bool(a["keepdims"])),
    "Resize": _resize,
    "Sigmoid": lambda v, _: v[0].sigmoid(),
    "Softmax": lambda v, a: v[0].softmax(a["axis"]),
    "Sqrt": lambda v, _: v[0].sqrt(),
    "Sub": lambda v, _: v[0] - v[1],
    "Tanh": lambda v, _: v[0].tanh(),
}
