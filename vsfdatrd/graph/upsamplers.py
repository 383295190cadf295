"""The eight tails as ONNX; the same functions as `nn.upsamplers`, layer by layer.

Tails that sample at computed positions (dysample, lda) are entirely fp32, because in half precision a position at the
right edge of a wide frame would be off by a third of a pixel.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatFamilyConfig
from vsfdatrd.archs.upsamplers import GROUPS, upscaling_steps
from vsfdatrd.graph.builder import FLOAT32, Name, Side, Writer
from vsfdatrd.graph.weights import Weights

type Channels = NDArray[np.bool_] | slice
ALL_CHANNELS = slice(None)


def write_tail(g: Writer, config: FdatFamilyConfig, weights: Weights, x: Name, height: Side, width: Side) -> Name:
    """Add the tail to a graph: x (1, C, H, W) -> image (1, O, H·s, W·s), both float32.

    Its last layer is fp32 in every precision. In bf16 the entire tail is fp32: no fp32 residual is added after it, so
    the 8 bits of bf16 would cause banding (124 of the 477 10-bit levels of a gradient were left).

    Args:
        g: The graph.
        config: The configuration.
        weights: Tensors of the tail.
        x: Map (1, C, H, W), float32.
        height: H.
        width: W.

    Raises:
        ValueError: The size is dynamic, and the tail needs to know it.
    """
    compute = g.dtype
    moving = config.upsampler in ("dysample", "lda") and config.tail_scale > 1
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if moving and not size:
        raise ValueError(f"its {config.upsampler} tail needs a fixed frame size")
    if moving or compute.name == "bfloat16":
        g.dtype = np.dtype(FLOAT32)
    try:
        return _Tail(g, config, weights, size or (0, 0)).write(g.cast(x, FLOAT32, g.dtype))
    finally:
        g.dtype = compute


class _Tail:
    def __init__(self, g: Writer, config: FdatFamilyConfig, weights: Weights, size: tuple[int, int]) -> None:
        self.g, self.config, self.weights = g, config, weights
        self.height, self.width = size
        self.layer = 0

    def write(self, x: Name) -> Name:
        g, config, s = self.g, self.config, self.config.tail_scale
        match "conv" if s == 1 else config.upsampler:
            case "conv":
                return self._last(x)
            case "pixelshuffledirect":
                return self._shuffle(self._last(x), s)
            case "pixelshuffle":
                x = self._leaky(self._conv(x), 0.01)
                for step in upscaling_steps(s, config.upsampler):
                    x = self._shuffle(self._conv(x), step)
                return self._last(x)
            case "nearest+conv":
                for step in upscaling_steps(s, config.upsampler):
                    x = self._leaky(self._nearest(self._conv(x), step))
                return self._last(self._leaky(self._conv(x)))
            case "transpose+conv":
                if s == 4:
                    used = zero_branches.used_channels(self.weights)
                    x = g.op("Gelu", self._transposed(x, 2, out=used))
                    self.layer += 1
                    x = self._transposed(x, 2, into=used)
                else:
                    x = self._transposed(x, s)
                return self._last(x)
            case "pa_up":
                for step in upscaling_steps(s, config.upsampler):
                    x = self._conv(self._nearest(x, step))
                    w = self.weights.below(f"{self.layer}.conv.0")
                    self.layer += 1
                    x = g.op("Mul", x, g.op("Sigmoid", g.conv(x, w["weight"], w["bias"])))
                    x = self._leaky(self._conv(self._leaky(x)))
                return self._last(x)
            case "dysample" | "lda" as moving:
                if config.mid_dim != config.embed_dim:
                    x = self._leaky(self._conv(x), 0.01)
                w = self._next()
                return self._dysample(x, w) if moving == "dysample" else self._last(self._lda(x, w))

    def _next(self) -> Weights:
        """Return the tensors of the next layer, by its index in the `torch.nn.Sequential`."""
        self.layer += 1
        return self.weights.below(str(self.layer - 1))

    def _conv(self, x: Name) -> Name:
        w = self._next()
        return self.g.conv(x, w["weight"], w["bias"])

    def _last(self, x: Name) -> Name:
        """Write the last layer, whose outputs are pixel values, in fp32."""
        w = self._next()
        return self.g.conv(self.g.cast(x, self.g.dtype, FLOAT32), w["weight"], w["bias"], dtype=FLOAT32)

    def _leaky(self, x: Name, slope: float = 0.2) -> Name:
        self.layer += 1
        return self.g.op("LeakyRelu", x, alpha=slope)

    def _shuffle(self, x: Name, step: int) -> Name:
        self.layer += 1
        return self.g.op("DepthToSpace", x, blocksize=step, mode="CRD")

    def _nearest(self, x: Name, step: int) -> Name:
        self.layer += 1
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.g.op("Resize", x, "", self.g.constant([1, 1, step, step], FLOAT32), **how)

    def _transposed(self, x: Name, step: int, into: Channels = ALL_CHANNELS, out: Channels = ALL_CHANNELS) -> Name:
        """Transposed convolution that upscales by `step`.

        `into` is a mask of the input channels that are present in x, and `out` of the output channels that are needed.
        """
        w = self._next()
        weight, bias = self.g.constant(w["weight"][into][:, out]), self.g.constant(w["bias"][out])
        side, pad = (3, 0) if step == 3 else (4, 1)
        shape = {"kernel_shape": [side, side], "strides": [step, step], "pads": [pad] * 4}
        return self.g.op("ConvTranspose", x, weight, bias, **shape)

    def _dysample(self, x: Name, weights: Weights) -> Name:
        g, s, c = self.g, self.config.tail_scale, self.config.mid_dim
        height, width = self.height, self.width
        size = np.array([width, height], np.float64).reshape(2, 1, 1, 1)
        # Independent of the image: 2 (pixel center + initial position) / size - 1, (1, 2·g·s², H, W)
        start = weights["init_pos"].reshape(2, GROUPS * s * s, 1, 1)
        centers = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))[:, None]  # (2, 1, H, W)
        base = (2 * (centers + start) / size - 1).reshape(1, -1, height, width)
        reach = np.repeat(1 / size.ravel(), GROUPS * s * s)  # 2 · 0.5 / size, folded into the offset's weights
        moved = g.conv(x, weights["offset.weight"] * reach[:, None, None, None], weights["offset.bias"] * reach)
        scope = g.op("Sigmoid", g.conv(x, weights["scope.weight"]))
        grid = g.op("Add", g.op("Mul", moved, scope), g.constant(base))
        # (1, 2·g·s², H, W) -> (1, 2·g, H·s, W·s) -> (2, g, H·s, W·s) -> (g, H·s, W·s, 2)
        grid = g.op("DepthToSpace", grid, blocksize=s, mode="CRD")
        grid = g.transpose(g.reshape(grid, 2, GROUPS, height * s, width * s), 1, 2, 3, 0)
        maps = g.reshape(x, GROUPS, c // GROUPS, height, width)  # (1, C, H, W) -> (g, C/g, H, W)
        out = g.op("GridSample", maps, grid, mode="linear", padding_mode="border", align_corners=0)
        return g.conv(g.reshape(out, 1, c, height * s, width * s), weights["end_conv.weight"], weights["end_conv.bias"])

    def _lda(self, x: Name, weights: Weights) -> Name:
        g, s, c = self.g, self.config.tail_scale, self.config.mid_dim
        height, width, groups, reach = self.height, self.width, 2, 11
        ho, wo, hidden = height * s, width * s, c // 4
        part = hidden // groups
        n = self._channel_norm(x, weights.below("layer_norm"))
        q, size = g.conv(n, weights["proj_q.weight"]), g.constant([1, hidden, ho, wo], np.int64)
        q = g.op("Resize", q, "", "", size, mode="linear", coordinate_transformation_mode="align_corners")
        k = g.conv(n, weights["proj_k.weight"])
        # Offsets of the nine sampling positions: (1, hidden, Ho, Wo) -> (g, hidden/g, Ho, Wo) -> (g, 18, Ho, Wo)
        w = weights.below("conv_offset")
        y = g.conv(g.reshape(q, groups, part, ho, wo), w["0.weight"], groups=part)
        y = self._channel_norm(y, w.below("1"))
        y = g.conv(g.op("Mul", y, g.op("Sigmoid", y)), w["3.weight"], w["3.bias"])
        # 2 (reach · tanh + place + pixel) / (size - 1) - 1, y before x; the constant terms are combined
        distance = np.array([ho - 1, wo - 1], np.float64)
        place = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(9, 2, 1, 1)
        pixel = np.stack(np.meshgrid(np.arange(ho), np.arange(wo), indexing="ij"))  # (2, Ho, Wo)
        base = 2 * (place + pixel) / distance.reshape(2, 1, 1) - 1  # (9, 2, Ho, Wo)
        factor = np.tile(2 * reach / distance, 9).reshape(1, 18, 1, 1)
        y = g.op("Add", g.op("Mul", g.op("Tanh", y), g.constant(factor)), g.constant(base.reshape(1, 18, ho, wo)))
        # (g, 3, 3, 2, Ho, Wo) -> (g, 3, Ho, 3, Wo, 2), x first -> (g, 3·Ho, 3·Wo, 2)
        y = g.transpose(g.reshape(y, groups, 3, 3, 2, ho, wo), 0, 1, 4, 2, 5, 3)
        y = g.op("Gather", y, g.constant([1, 0], np.int64), axis=5)
        grid = g.reshape(y, groups, 3 * ho, 3 * wo, 2)

        def sample(maps: Name, channels: int) -> Name:
            """Sample (g, K, H, W) at the nine positions of every pixel -> (Ho·Wo, 9, g·K)."""
            z = g.op("GridSample", maps, grid, mode="linear", padding_mode="zeros", align_corners=1)
            # (g, K, 3·Ho, 3·Wo) -> (g, K, 3, Ho, 3, Wo) -> (Ho, Wo, 3, 3, g, K)
            z = g.transpose(g.reshape(z, groups, channels, 3, ho, 3, wo), 3, 5, 2, 4, 0, 1)
            return g.reshape(z, ho * wo, 9, groups * channels)

        keys = sample(g.reshape(k, groups, part, height, width), part)
        bias = weights["relative_position_bias_table"].reshape(1, 9, hidden)
        keys = g.transpose(g.op("Add", keys, g.constant(bias)), 0, 2, 1)  # (Ho·Wo, hidden, 9)
        values = sample(g.reshape(x, groups, c // groups, height, width), c // groups)
        # (1, hidden, Ho, Wo) -> (1, Ho, Wo, hidden) -> (Ho·Wo, 1, hidden)
        queries = g.reshape(g.transpose(q, 0, 2, 3, 1), ho * wo, 1, hidden)
        scores = g.op("Mul", g.op("MatMul", queries, keys), g.constant(1 / math.sqrt(hidden)))
        out = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)  # (Ho·Wo, 1, C)
        return g.transpose(g.reshape(out, 1, ho, wo, c), 0, 3, 1, 2)

    def _channel_norm(self, x: Name, weights: Weights) -> Name:
        g = self.g
        y = g.layer_norm(g.transpose(x, 0, 2, 3, 1), weights["weight"], weights["bias"], 1e-6)
        return g.transpose(y, 0, 3, 1, 2)
