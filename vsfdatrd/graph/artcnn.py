"""ArtCNN as an ONNX graph. `archs.artcnn` describes the network; `nn.artcnn` is the same function in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from vsfdatrd.archs.artcnn import ArtCnnConfig, layers
from vsfdatrd.graph.builder import Name, Writer
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.graph.weights import Array, Weights

FULL = np.float32


def write(
    config: ArtCnnConfig, tensors: Mapping[str, Array], size: tuple[int, int] | None, target: GraphTarget
) -> onnx.ModelProto:
    """Write the network for frames of one size, or of any size.

    Args:
        config: The configuration.
        tensors: The tensors by the names in `archs.artcnn.layers`.
        size: (height, width) of the frame in pixels, without restrictions; None for dynamic sizes.
        target: The engine to write for.

    Returns:
        A model from ``input`` (1, in_channels, H, W) to ``output`` (1, out_channels, H·scale, W·scale), both float32.

    Raises:
        OverflowError: A weight exceeds the range of the target's half precision.
    """
    g = Writer("artcnn", target.compute, target.opset)
    out = _body(g, config, Weights(tensors), target)
    sides = [(n, n * config.scale) for n in size] if size else [("height", "height_out"), ("width", "width_out")]
    (h, h_out), (w, w_out) = sides
    return g.model((1, config.in_channels, h, w), out, (1, config.out_channels, h_out, w_out))


def _body(g: Writer, config: ArtCnnConfig, weights: Weights, target: GraphTarget) -> Name:
    """Write all layers, with float32 input and output.

    The first and the last layer, and the skip connection around the others, are float32, too.
    """
    compute, stream = target.compute, target.stream

    def conv(x: Name, layer: str, dtype: Any = None) -> Name:
        return g.conv(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], dtype=dtype)

    first, *body, closing, last = layers(config)
    start = conv("input", first, FULL)
    if config.residual:
        total = g.cast(start, FULL, stream)
        for i in range(0, len(body), 3):
            inner = g.cast(total, stream, compute)
            inner = g.op("Relu", conv(inner, body[i]))
            inner = g.op("Relu", conv(inner, body[i + 1]))
            total = g.op("Add", total, g.cast(conv(inner, body[i + 2]), compute, stream))
        y = g.cast(total, stream, compute)
    else:
        y = g.cast(start, FULL, compute)
        for layer in body:
            y = g.op("Relu", conv(y, layer))
    features = conv(g.op("Add", start, g.cast(conv(y, closing), compute, FULL)), last, FULL)
    if config.scale > 1:
        features = g.op("DepthToSpace", features, blocksize=config.scale, mode="CRD")
    return features
