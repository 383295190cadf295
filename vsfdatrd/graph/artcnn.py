"""ArtCNN as an ONNX graph. `archs.artcnn` describes the network; `nn.artcnn` is the same function in PyTorch.

The first and the last layer, and the skip connection around the others, are float32 in every precision. Everything
around the body is linear: last(first(image) + closing(body)). It can be merged into two convolutions, one of the image
and one of the body's result. These neither write nor read float32 features, which are half of the memory traffic of a
small network. Only pixels at the border of the frame differ, because the last layer pads its input with zeros; they are
computed with the original layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from vsfdatrd.archs.artcnn import ArtCnnConfig, layer_names
from vsfdatrd.graph.builder import FLOAT32, Name, Writer
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.graph.weights import Array, Weights


def write(
    config: ArtCnnConfig, tensors: Mapping[str, Array], size: tuple[int, int] | None, target: GraphTarget
) -> onnx.ModelProto:
    """Write the network for frames of one size, or of any size.

    Args:
        config: The configuration.
        tensors: The tensors by the names in `archs.artcnn.layer_names`.
        size: (height, width) of the frame in pixels, without restrictions; None for dynamic sizes.
        target: The engine to write for.

    Returns:
        A model from ``input`` (1, in_channels, H, W) to ``output`` (1, out_channels, H·scale, W·scale), both float32.

    Raises:
        OverflowError: A weight exceeds the range of the target's half precision.
    """
    g = Writer("artcnn", target.compute_dtype, target.opset)
    out = _Network(g, config, Weights(tensors), target).write(size)
    sides = [(n, n * config.scale) for n in size] if size else [("height", "height_out"), ("width", "width_out")]
    (h, h_out), (w, w_out) = sides
    return g.model((1, config.in_channels, h, w), out, (1, config.out_channels, h_out, w_out))


class _Network:
    def __init__(self, g: Writer, config: ArtCnnConfig, weights: Weights, target: GraphTarget) -> None:
        self.g, self.config, self.weights, self.target = g, config, weights, target
        self.first, *self.inner, self.closing, self.last = layer_names(config)
        self.radius = config.kernel // 2

    def write(self, size: tuple[int, int] | None) -> Name:
        """Write all layers, with float32 input and output."""
        if self.target.joined_layers and size and min(size) >= 6 * self.radius:
            features = self._merged(*size)
        else:
            start = self._start("input")
            features = self._end(start, self._body(start))
        if self.config.scale > 1:
            features = self.g.op("DepthToSpace", features, blocksize=self.config.scale, mode="CRD")
        return features

    def _conv(self, x: Name, layer: str, dtype: Any = None) -> Name:
        return self.g.conv(x, self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"], dtype=dtype)

    def _to_float32(self, x: Name) -> Name:
        return self.g.cast(x, self.target.compute_dtype, FLOAT32)

    def _start(self, image: Name) -> Name:
        """First layer, float32."""
        return self._conv(image, self.first, FLOAT32)

    def _body(self, start: Name) -> Name:
        """All layers except the first and the last two."""
        g, compute, stream = self.g, self.target.compute_dtype, self.target.stream_dtype
        if not self.config.residual:
            y = g.cast(start, FLOAT32, compute)
            for layer in self.inner:
                y = g.op("Relu", self._conv(y, layer))
            return y
        total = g.cast(start, FLOAT32, stream)
        for i in range(0, len(self.inner), 3):
            y = g.cast(total, stream, compute)
            y = g.op("Relu", self._conv(y, self.inner[i]))
            y = g.op("Relu", self._conv(y, self.inner[i + 1]))
            total = g.op("Add", total, g.cast(self._conv(y, self.inner[i + 2]), compute, stream))
        return g.cast(total, stream, compute)

    def _end(self, start: Name, y: Name) -> Name:
        """last(start + closing(y)), float32."""
        return self._conv(self.g.op("Add", start, self._to_float32(self._conv(y, self.closing))), self.last, FLOAT32)

    def _merged(self, height: int, width: int) -> Name:
        """All layers, with the linear layers merged."""
        g = self.g
        with g.name_scope("first"):
            start = self._start("input")
        with g.name_scope("body"):
            y = self._body(start)
        with g.name_scope("last"):
            last = self.weights[f"{self.last}.weight"]
            biases = self.weights[f"{self.first}.bias"] + self.weights[f"{self.closing}.bias"]
            bias = self.weights[f"{self.last}.bias"] + last.sum((2, 3)) @ biases
            first = _compose_kernels(self.weights[f"{self.first}.weight"], last)
            of_image = g.conv("input", first, bias, dtype=FLOAT32)
            of_body = g.conv(y, _compose_kernels(self.weights[f"{self.closing}.weight"], last))
            out = g.op("Add", of_image, self._to_float32(of_body))
        with g.name_scope("border"):
            for axis, side in ((3, width), (2, height)) if self.radius else ():
                out = self._replace_border(out, self._border(y, axis, side), axis, side)
        return out

    def _border(self, y: Name, axis: int, side: int) -> Name:
        """Compute the outermost rows or columns of the output with the original layers.

        Only the strips of the frame on which they depend are computed.

        Returns:
            A batch of two strips of 3·radius rows or columns. Only the outermost `radius` of each are correct.
        """
        reach = 3 * self.radius
        image, y = (
            self.g.op("Concat", self.g.slice(x, axis, 0, reach), self.g.slice(x, axis, side - reach, side), axis=0)
            for x in ("input", y)
        )
        return self._end(self._start(image), y)

    def _replace_border(self, out: Name, strips: Name, axis: int, side: int) -> Name:
        """Replace the outermost rows or columns of a map with those of `_border`."""
        g, r = self.g, self.radius
        low, high = (g.slice(strips, 0, i, i + 1) for i in (0, 1))
        parts = g.slice(low, axis, 0, r), g.slice(out, axis, r, side - r), g.slice(high, axis, 2 * r, 3 * r)
        return g.op("Concat", *parts, axis=axis)


def _compose_kernels(first: Array, second: Array) -> Array:
    """Combine the kernels of two consecutive convolutions: (F, I, k, k), (O, F, k, k) -> (O, I, 2k - 1, 2k - 1)."""
    side = first.shape[-1]
    result = np.zeros((len(second), first.shape[1], 2 * side - 1, 2 * side - 1))
    for i, j in np.ndindex(second.shape[2:]):
        result[:, :, i : i + side, j : j + side] += np.tensordot(second[:, :, i, j], first, 1)
    return result
