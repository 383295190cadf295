"""INT8 and FP8 in TensorRT-RTX, evaluated without a GPU: memory traffic, kernels, and the emulated PSNR of FDAT-RD.

python -m benchmarks.quantized PICTURE [PICTURE ...] [--model medium] [--size 720x540]

The input and the weights of fc1, fc2, and the queries, keys and values of window attention are quantized explicitly
(QuantizeLinear, DequantizeLinear): weights per output channel, activations per tensor, each with the scale that has
the least mean square error on the first picture. ONNX Runtime computes the same graph in fp32 otherwise, so that the
PSNR is that of quantization alone. The engine's own fp16 comes on top.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.report import save
from benchmarks.traffic import build
from benchmarks.weights import random_weights
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant_config
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.graph.builder import Name, Writer
from vsfdatrd.graph.fdat import write
from vsfdatrd.graph.fdat_rd_maps import MapNetwork
from vsfdatrd.graph.target import tensorrt_target
from vsfdatrd.graph.weights import Weights
from vsfdatrd.weights.catalog import resolve_model

type Array = NDArray[Any]

TYPES = {
    # name: (type, largest value)
    "int8": (np.int8, 127.0),
    "fp8": (ml_dtypes.float8_e4m3fn, 448.0),
}
CLIPPING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of the largest magnitude that are tried as the end of the scale."""
SAMPLES = 200_000
"""Values of an activation that its scale is chosen by."""


class _Products(MapNetwork):
    """The form for TensorRT-RTX with feed-forward networks that can be quantized.

    Their norm is applied, since the tokens themselves have too wide a range, and fc1 and fc2 are products: quantized
    1×1 convolutions are computed in fp16 by the library, of values converted back.
    """

    def _feed(self, t: Name, weights: Weights) -> Name:
        g = self.g
        with g.name_scope("norm"):
            n = g.layer_norm(self._channels_last(t), weights["n2.weight"], weights["n2.bias"])
        wide = g.transpose(g.op("Gelu", g.matmul(n, weights["ffn.fc1.weight"])), 0, 3, 1, 2)
        mixed = g.conv(wide, weights["ffn.smix.weight"], groups=self.config.ffn_dim)
        return g.transpose(g.matmul(self._channels_last(mixed), weights["ffn.fc2.weight"]), 0, 3, 1, 2)


def graph(config: FdatRdConfig, tensors: Mapping[str, Array], size: tuple[int, int], half: bool) -> onnx.ModelProto:
    """Write the graph whose products are quantized.

    Args:
        config: The configuration.
        tensors: The checkpoint's tensors.
        size: (width, height) of the frame, multiples of `config.multiple`.
        half: As for an engine in fp16; otherwise fp32.
    """
    width, height = size
    target = tensorrt_target("fp16") if half else replace(tensorrt_target("fp16"), precision="fp32")
    g = Writer(config.graph_name, target.compute_dtype, target.opset)
    out = _Products(config, Weights(tensors), height, width, target, g).body("input")
    return g.model((1, 3, height, width), out, (1, 3, height * config.scale, width * config.scale))


def find_products(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """fc1, fc2, and the queries, keys and values of window attention, which share the norm's result as input."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            attention = node.name.startswith("spatial/") and node.input[0].startswith("layernormalization")
            if attention or node.name.startswith("feed-forward/"):
                yield node


def collect_activations(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """Return the values of the inputs of all products to quantize (`find_products`) for a frame."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(dict.fromkeys(node.input[0] for node in find_products(model)))
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return dict(zip(names, run_graph(watched, x)[1:], strict=True))


def run_graph(model: onnx.ModelProto, x: Array) -> list[Array]:
    """All outputs of a graph, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    # Higher levels replace quantized products by kernels that saturate sums on processors without VNNI.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"input": x}))


def choose_scale(values: Array, kind: str) -> float:
    """The scale with the least mean square error."""
    dtype, largest = TYPES[kind]
    values = np.random.default_rng(0).choice(values.ravel(), min(SAMPLES, values.size), replace=False)
    top = float(np.abs(values).max()) or 1.0

    def error(end: float) -> float:
        return float(np.mean((round_to_type(values, end / largest, dtype, largest) * (end / largest) - values) ** 2))

    return min((share * top for share in CLIPPING), key=error) / largest


def round_to_type(values: Array, scales: Any, dtype: Any, largest: float) -> Array:
    """Round to a type, as float32."""
    scaled = np.clip(values / scales, -largest, largest)
    rounded: Array = (np.rint(scaled) if dtype is np.int8 else scaled).astype(dtype).astype(np.float32)
    return rounded


def quantize(model: onnx.ModelProto, kind: str, scales: Mapping[int, float]) -> onnx.ModelProto:
    """Quantize the products of a graph.

    Args:
        model: The graph.
        kind: One of `TYPES`.
        scales: Scale of the input of each product, in order.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    dtype, largest = TYPES[kind]
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    order = {node.name: i for i, node in enumerate(find_products(result))}
    done: set[str] = set()
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: Array, like: onnx.TensorProto | None = None) -> str:
        array = values if like is None else values.astype(numpy_helper.to_array(like).dtype)
        result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    for node in result.graph.node:
        if node.name in order:
            part, source, weight = node.name.rpartition("/")[0], node.input[0], constants[node.input[1]]
            back = f"{source}/from_{kind}"
            if source not in done:
                scale = constant(f"{source}/scale", np.asarray(scales[order[node.name]]), weight)
                zero = constant(f"{source}/zero", np.zeros((), dtype))
                narrow = f"{source}/{kind}"
                nodes += [
                    helper.make_node("QuantizeLinear", [source, scale, zero], [narrow], name=f"{part}/{narrow}"),
                    helper.make_node("DequantizeLinear", [narrow, scale, zero], [back], name=f"{part}/{back}"),
                ]
                done.add(source)
            values = numpy_helper.to_array(weight)  # (I, O)
            steps = (np.abs(values.astype(np.float32)).max(0) / largest).astype(values.dtype)
            steps = np.maximum(steps, np.finfo(values.dtype).tiny)
            whole = round_to_type(values.astype(np.float32), steps.astype(np.float32), dtype, largest)
            inputs = [
                constant(f"{weight.name}/{kind}", whole.astype(dtype)),
                constant(f"{weight.name}/scale", steps),
                constant(f"{weight.name}/zero", np.zeros(steps.size, dtype)),
            ]
            outputs = [f"{weight.name}/from_{kind}"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, outputs, name=f"{part}/{outputs[0]}", axis=1))
            node.input[:] = [back, *outputs]
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def scaled_weights(config: FdatRdConfig) -> dict[str, Array]:
    """Random weights of about the size that training gives them, without zero branches."""
    random = np.random.default_rng(1)
    tensors: dict[str, Array] = dict(random_weights(config))
    for name, values in tensors.items():
        if name.endswith(("n1.weight", "n2.weight", "r_norm.weight")):
            tensors[name] = 1 + 0.2 * random.standard_normal(values.shape)
        elif name.endswith(("n1.bias", "n2.bias", "r_norm.bias")):
            tensors[name] = 0.2 * random.standard_normal(values.shape)
        elif name.endswith("attn.temp"):
            tensors[name] = np.full_like(values, 8)
        elif name.endswith("attn.dictionary"):
            tensors[name] = 12 * values
    return tensors


def read_picture(file: Path, side: int) -> Array:
    """The center of a picture, (1, 3, side, side) in [0, 1]."""
    with Image.open(file) as opened:
        width, height = opened.size
        left, top = (width - side) // 2, (height - side) // 2
        cut = opened.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(cut, np.float32).transpose(2, 0, 1)[None] / 255


def compute_errors(out: Array, exact: Array) -> dict[str, float]:
    """The error in dB below white, as engines are judged, and below the standard deviation of the exact result."""
    clipped = np.mean((np.clip(out, 0, 1) - np.clip(exact, 0, 1)) ** 2, dtype=np.float64)
    error = np.mean((out - exact) ** 2, dtype=np.float64)
    return {
        "psnr": round(-10 * float(np.log10(max(clipped, 1e-20))), 1),
        "below_deviation": round(10 * float(np.log10(exact.var() / max(error, 1e-20))), 1),
    }


def main() -> None:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantized", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path, help="the first one chooses scales if there are others")
    parser.add_argument("--model", default="medium")
    parser.add_argument("--weights", nargs="+", default=["shipped", "whole"], choices=["shipped", "whole"])
    parser.add_argument("--size", default="720x540", help="size to build engines for")
    parser.add_argument("--side", type=int, default=240, help="side of the squares that the PSNR is computed on")
    parser.add_argument("--target", default="sm89")
    given = parser.parse_args()
    config = variant_config(given.model)
    width, height = map(int, given.size.split("x"))
    pictures = [read_picture(file, given.side) for file in given.pictures]
    shown = pictures[1:] or pictures
    rows = []
    for weights in given.weights:
        tensors = (
            open_checkpoint(resolve_model(given.model)).tensors() if weights == "shipped" else scaled_weights(config)
        )
        exact = graph(config, tensors, (given.side, given.side), half=False)
        seen = collect_activations(exact, pictures[0])
        inputs = [seen[node.input[0]] for node in find_products(exact)]
        results = [run_graph(exact, x)[0] for x in shown]
        engine = graph(config, tensors, (width, height), half=True)
        for kind in ("fp16", *TYPES):
            row: dict[str, Any] = {"weights": weights, "kind": kind, "products": len(inputs)}
            if kind == "fp16":
                row |= _describe_build(write(config, tensors, (height, width), tensorrt_target("fp16")), given.target)
                row |= {"as_products": _describe_build(engine, given.target)}
            else:
                scales = {i: choose_scale(values, kind) for i, values in enumerate(inputs)}
                changed = quantize(exact, kind, scales)
                found = [compute_errors(run_graph(changed, x)[0], one) for x, one in zip(shown, results, strict=True)]
                row |= {name: [one[name] for one in found] for name in found[0]}
                row |= _describe_build(quantize(engine, kind, scales), given.target)
            rows.append(row)
            print(row, flush=True)
    save("quantized", {"model": given.model, "size": given.size, "target": given.target, "rows": rows}, quiet=True)


def _describe_build(model: onnx.ModelProto, target: str) -> dict[str, Any]:
    """What the builder reports, or why it does not build."""
    try:
        traffic = build(model, target)
    except EngineError as error:
        return {"error": str(error).splitlines()[0]}
    return {
        "kernels": len(traffic.kernels),
        "traffic_bytes": traffic.moved,
        "activation_bytes": traffic.activation_bytes,
        "build_seconds": traffic.build_seconds,
    }


if __name__ == "__main__":
    main()
