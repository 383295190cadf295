"""Run an ONNX graph operator by operator with PyTorch, each in exactly the type that the graph specifies.

This is the result of a GPU in fp16 or bf16 without a library that fuses or reorders: products accumulate in fp32,
as tensor cores do, and every result is rounded to the graph's type. Knows the operators of the graphs written here.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import onnx

type Attributes = Mapping[str, Any]
type Operator = Callable[..., Tensor | tuple[Tensor, ...]]


@torch.inference_mode()
def execute(model: "onnx.ModelProto", feeds: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """Compute a graph's outputs.

    Args:
        model: The graph; its subgraphs and functions are not run.
        feeds: The graph's inputs by name, on the device.
        device: Where floating-point tensors are. Integers, such as shapes, stay on the CPU.

    Raises:
        NotImplementedError: The graph has an unsupported operator; the message names it.
    """
    import onnx
    from onnx import numpy_helper

    values: dict[str, Tensor] = {name: tensor.to(device) for name, tensor in feeds.items()}
    for constant in model.graph.initializer:
        values[constant.name] = _constant(numpy_helper.to_array(constant), device)
    expected = [output.name for output in model.graph.output]
    uses = Counter(name for node in model.graph.node for name in node.input) + Counter(expected)
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            values[node.output[0]] = _constant(numpy_helper.to_array(attributes["value"]), device)
            continue
        operator = OPERATORS.get(node.op_type)
        if operator is None or node.domain not in ("", "ai.onnx"):
            raise NotImplementedError(f"the operator {node.op_type} ({node.name}) is not known to this runner")
        outcome = operator(attributes, *(values[name] if name else None for name in node.input))
        results = outcome if isinstance(outcome, tuple) else (outcome,)
        values.update({name: result for name, result in zip(node.output, results, strict=False) if name})
        for name in node.input:  # free intermediate frames as early as possible
            uses[name] -= 1
            if not uses[name]:
                values.pop(name, None)
    return [values[name] for name in expected]


def _constant(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(device, torch.bfloat16)
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(device) if tensor.is_floating_point() else tensor


def _to_integers(tensor: Tensor | None) -> list[int] | None:
    """Integers that an operator takes as a tensor."""
    return None if tensor is None else [int(value) for value in tensor.reshape(-1).tolist()]


def _cast(a: Attributes, x: Tensor) -> Tensor:
    from onnx import TensorProto

    types = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.BOOL: torch.bool,
    }
    return x.to(types[a["to"]])


def _padded(x: Tensor, pads: Sequence[int], dims: int) -> tuple[Tensor, list[int]]:
    """Pad a tensor unless a convolution can do it: ONNX pads each end separately, PyTorch both alike.

    Args:
        x: The tensor.
        pads: Of the last `dims` axes, the beginnings before the ends.
        dims: Number of these axes.

    Returns:
        The tensor, and the padding that is left for the convolution.
    """
    before, after = list(pads[:dims]), list(pads[dims:])
    if before == after:
        return x, before
    flat = [side for low, high in zip(reversed(before), reversed(after), strict=True) for side in (low, high)]
    return F.pad(x, flat), [0] * dims


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = weight.dim() - 2
    x, padding = _padded(x, a.get("pads", [0] * 2 * dims), dims)
    stride, dilation = list(a.get("strides", [1] * dims)), list(a.get("dilations", [1] * dims))
    convolve: Any = {1: F.conv1d, 2: F.conv2d}[dims]
    result: Tensor = convolve(x, weight, bias, stride, padding, dilation, a.get("group", 1))
    return result


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = weight.dim() - 2
    pads = list(a.get("pads", [0] * 2 * dims))
    if pads[:dims] != pads[dims:] or dims != 2:
        raise NotImplementedError("ConvTranspose with uneven pads is not known to this runner")
    extra = list(a.get("output_padding", [0] * dims))
    stride, dilation = list(a.get("strides", [1] * dims)), list(a.get("dilations", [1] * dims))
    return F.conv_transpose2d(x, weight, bias, stride, pads[:dims], extra, a.get("group", 1), dilation)


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = a["blocksize"], x.shape
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = a["blocksize"], x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    x, y = (x.mT if a.get("transA") else x), (y.mT if a.get("transB") else y)
    product = x @ y
    if (alpha := a.get("alpha", 1.0)) != 1:
        product = product * alpha
    return product if z is None else product + a.get("beta", 1.0) * z


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.dim()
    shape = list(x.shape[axis:])
    # Statistics in fp32 (`stash_type`), whatever the tensors are.
    normal = F.layer_norm(x.float(), shape, None, None, a.get("epsilon", 1e-5)).to(x.dtype)
    return normal * scale if shift is None else normal * scale + shift


def _attention(a: Attributes, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *more: Tensor) -> Tensor:
    if q.dim() != 4 or any(tensor is not None for tensor in more) or a.get("is_causal"):
        raise NotImplementedError("Attention other than over (batch, heads, places, channels) is not known here")
    scale = a.get("scale") or q.shape[-1] ** -0.5
    scores = (q * scale**0.5) @ (k * scale**0.5).mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts = _to_integers(pads) or []
    chosen = [axis % x.dim() for axis in (_to_integers(axes) or range(x.dim()))]
    half = len(amounts) // 2
    sides = {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(chosen)}
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        flat = [side for axis in reversed(range(x.dim())) for side in sides.get(axis, (0, 0))]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    for axis, (before, after) in sides.items():  # one axis at a time, by indices: PyTorch can only pad the last axes
        if before or after:
            x = x.index_select(axis, _resolve_index(x.shape[axis], before, after, mode).to(x.device))
    return x


def _resolve_index(size: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "reflect":
        places = places.abs()
        return torch.where(places >= size, 2 * (size - 1) - places, places)
    if mode == "edge":
        return places.clamp(0, size - 1)
    raise NotImplementedError(f"Pad in mode {mode} is not known to this runner")


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begin, end = _to_integers(starts) or [], _to_integers(ends) or []
    which, step = _to_integers(axes) or list(range(len(begin))), _to_integers(steps) or [1] * len(begin)
    index: list[slice] = [slice(None)] * x.dim()
    for axis, low, high, each in zip(which, begin, end, step, strict=True):
        index[axis % x.dim()] = slice(low, high, each)
    return x[tuple(index)]


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sides = _to_integers(shape) or []
    return x.reshape([x.shape[i] if side == 0 and not a.get("allowzero") else side for i, side in enumerate(sides)])


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is None:
        return torch.split(x, -(-x.shape[axis] // a["num_outputs"]), axis)
    return torch.split(x, _to_integers(sizes) or [], axis)


def _reduction(name: str) -> Operator:
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _to_integers(axes) or a.get("axes") or list(range(x.dim()))
        result: Tensor = getattr(torch, name)(x, dim=list(dims), keepdim=bool(a.get("keepdims", 1)))
        return result

    return reduce


def _squeezed(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(_to_integers(axes) or [i for i, side in enumerate(x.shape) if side == 1])


def _unsqueezed(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    dims = x.dim() + axes.numel()
    for axis in sorted(axis % dims for axis in _to_integers(axes) or []):
        x = x.unsqueeze(axis)
    return x


def _without_attributes(function: Callable[..., Tensor]) -> Operator:
    """Wrap a function as an operator without attributes."""
    return lambda a, *tensors: function(*tensors)


def _over_all_inputs(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Wrap a binary function as an operator on any number of tensors."""

    def fold(a: Attributes, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return fold


OPERATORS: dict[str, Operator] = {
    "Add": _without_attributes(torch.add),
    "Attention": _attention,
    "Cast": _cast,
    "Clip": lambda a, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda a, *tensors: torch.cat(tensors, a["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _without_attributes(lambda x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")),
    "Erf": _without_attributes(torch.erf),
    "Exp": _without_attributes(torch.exp),
    "Expand": lambda a, x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_to_integers(shape) or ()))),
    "Gather": lambda a, x, index: x[(slice(None),) * (a.get("axis", 0) % x.dim()) + (index.to(x.device),)],
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "Identity": _without_attributes(lambda x: x),
    "LayerNormalization": _layer_norm,
    "Log": _without_attributes(torch.log),
    "MatMul": _without_attributes(torch.matmul),
    "Max": _over_all_inputs(torch.maximum),
    "Min": _over_all_inputs(torch.minimum),
    "Mul": _without_attributes(torch.mul),
    "Neg": _without_attributes(torch.neg),
    "Pad": _pad,
    "Pow": _without_attributes(torch.pow),
    "Reciprocal": _without_attributes(torch.reciprocal),
    "ReduceMax": _reduction("amax"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("amin"),
    "ReduceSum": _reduction("sum"),
    "Relu": _without_attributes(torch.relu),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(list(x.shape[a.get("start", 0) : a.get("end")])),
    "Sigmoid": _without_attributes(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _without_attributes(torch.sqrt),
    "Squeeze": _squeezed,
    "Sub": _without_attributes(torch.sub),
    "Sum": _over_all_inputs(torch.add),
    "Tanh": _without_attributes(torch.tanh),
    "Transpose": lambda a, x: x.permute(list(a.get("perm", range(x.dim())[::-1]))),
    "Unsqueeze": _unsqueezed,
    "Where": lambda a, condition, x, y: torch.where(condition.to(x.device), x, y),
}
"""Functions by ONNX name, from attributes and input tensors (None for an omitted one) to the result."""
