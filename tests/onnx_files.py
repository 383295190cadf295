"""Small ONNX files of every kind, written node by node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def mostly_identity_kernel(given: int, taken: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A 3×3 kernel that mostly keeps the middle, so that results look like pictures."""
    weight = np.random.default_rng(seed).standard_normal((given, taken, 3, 3)) * 0.05
    for i in range(given):
        weight[i, i % taken, 1, 1] += 0.8
    return weight.astype(np.float32)


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    constants: dict[str, Any],
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        list(inputs),
        [output],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def write_doubler(
    path: Path,
    *,
    channels: int = 3,
    scale: int = 2,
    kind: str = "fp32",
    nhwc: bool = False,
    size: tuple[int, int] | None = None,
    multiple: int = 1,
    white: float = 1,
    given: int | None = None,
) -> Path:
    """A convolution and a pixel shuffle. multiple: sizes are folded by it on the way, so others do not run."""
    import ml_dtypes

    given = channels if given is None else given
    dtype: Any = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
    weight = np.repeat(mostly_identity_kernel(given, channels), scale**2, 0)
    weight += np.float32(0.01) * np.random.default_rng(1).standard_normal(weight.shape, np.float32)
    constants: dict[str, Any] = {"w": weight.astype(dtype), "b": np.full(len(weight), 0.01 * white).astype(dtype)}
    nodes, x = [], "x"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [x], ["planes"], perm=[0, 3, 1, 2]))
        x = "planes"
    if multiple > 1:
        nodes.append(helper.make_node("SpaceToDepth", [x], ["folded"], blocksize=multiple))
        nodes.append(helper.make_node("DepthToSpace", ["folded"], ["unfolded"], blocksize=multiple))
        x = "unfolded"
    nodes.append(helper.make_node("Conv", [x, "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4))
    nodes.append(helper.make_node("DepthToSpace", ["c"], ["s"], blocksize=scale, mode="CRD"))
    last = (
        helper.make_node("Transpose", ["s"], ["y"], perm=[0, 2, 3, 1])
        if nhwc
        else helper.make_node("Identity", ["s"], ["y"])
    )
    h, w = size or ("h", "w")
    out: list[Any] = [1, given, "oh", "ow"] if not size else [1, given, size[0] * scale, size[1] * scale]
    taken: list[Any] = [1, channels, h, w]
    if nhwc:
        taken, out = [taken[i] for i in (0, 2, 3, 1)], [out[i] for i in (0, 2, 3, 1)]
    value = helper.make_tensor_value_info
    return write_onnx(path, [*nodes, last], [value("x", KINDS[kind], taken)], value("y", KINDS[kind], out), constants)


def double_in_numpy(
    picture: np.ndarray[Any, np.dtype[np.float32]], scale: int = 2, white: float = 1, kind: str = "fp32"
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Compute the result of `write_doubler` for (C, H, W) in NumPy. white: factor applied to the picture first."""
    import ml_dtypes

    dtype: Any = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
    c, h, w = picture.shape
    weight = np.repeat(mostly_identity_kernel(c, c), scale**2, 0)
    weight += np.float32(0.01) * np.random.default_rng(1).standard_normal(weight.shape, np.float32)
    weight = weight.astype(dtype).astype(np.float32)
    padded = np.pad(picture * white, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), h, w), np.float32)
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + h, j : j + w])
    out += np.float32(np.asarray(0.01 * white).astype(dtype))
    out = out.reshape(c, scale, scale, h, w).transpose(0, 3, 1, 4, 2).reshape(c, h * scale, w * scale)
    result: np.ndarray[Any, np.dtype[np.float32]] = (out / white).astype(np.float32)
    return result
