"""The body of FDAT-RD and FDAT as ONNX: first convolution, groups and blocks.

Attention and tails are in `attention` and `upsamplers`. Tokens are a matrix (N, C), in row-major order of the map
(1, C, H, W). Shapes in comments are as in `nn.fdat_rd`: h heads of d channels, M dictionary tokens. H and W may be
unknown until the graph runs. `fdat_rd_maps` writes the same body in another form.
"""

import numpy as np

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatFamilyConfig, Kind, blocks_with_windows
from vsfdatrd.graph.attention import Attention
from vsfdatrd.graph.builder import FLOAT32, Name, Side, Writer
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.graph.upsamplers import write_tail
from vsfdatrd.graph.weights import Array, Weights


class Network:
    """Writes the body of a network. Tokens are (N, C)."""

    def __init__(
        self, config: FdatFamilyConfig, weights: Weights, height: Side, width: Side, target: GraphTarget, g: Writer
    ) -> None:
        self.config, self.weights, self.g, self.target = config, weights, g, target
        self.height, self.width = (g.dim_op("Div", side, config.unshuffle) for side in (height, width))
        self.attention = Attention(g, config, target, self.height, self.width)

    def body(self, x: Name) -> Name:
        """Write everything from the padded frame to the padded result, with float32 input and output.

        The output of the first convolution stays float32 until the last sum, because the 8 bits of bf16 would cause
        banding in smooth gradients.
        """
        config, g, target = self.config, self.g, self.target
        with g.name_scope("first"):
            shallow = self._first(x)
            deep = g.cast(shallow, FLOAT32, target.stream_dtype)
        for i, blocks in enumerate(blocks_with_windows(config.groups, config.windows)):
            deep = self._group(deep, blocks, self.weights.below(f"groups.{i}"))
        with g.name_scope("tail"):
            mixed = g.cast(
                g.conv(self._to_compute(deep), self.weights["conv_after.weight"]), target.compute_dtype, FLOAT32
            )
            total = g.op("Add", mixed, shallow)
            return write_tail(g, config, self.weights.below("upsampler"), total, self.height, self.width)

    def _to_stream(self, x: Name) -> Name:
        return self.g.cast(x, self.target.compute_dtype, self.target.stream_dtype)

    def _to_compute(self, x: Name) -> Name:
        return self.g.cast(x, self.target.stream_dtype, self.target.compute_dtype)

    def _first(self, x: Name) -> Name:
        u, c = self.config.unshuffle, self.config.in_channels
        if u == 1:
            return self.g.conv(x, self.weights["conv_first.weight"], self.weights["conv_first.bias"], dtype=FLOAT32)
        # Pixel unshuffle and a 3×3 kernel are one 3u × 3u kernel with stride u: channel (c, y, x) of the
        # unshuffled image at tap (i, j) is pixel (u·i + y, u·j + x) in the large kernel.
        weight = self.weights["conv_first.1.weight"].reshape(-1, c, u, u, 3, 3)
        large = weight.transpose(0, 1, 4, 2, 5, 3).reshape(-1, c, 3 * u, 3 * u)
        return self.g.conv(x, large, self.weights["conv_first.1.bias"], stride=u, pad=u, dtype=FLOAT32)

    def _to_tokens(self, maps: Name, channels: int) -> Name:
        # (1, C, H, W) -> (N, C)
        return self.g.reshape(self.g.transpose(maps, 0, 2, 3, 1), self.attention.tokens or -1, channels)

    def _to_maps(self, tokens: Name, channels: int) -> Name:
        # (N, C) -> (1, H, W, C) -> (1, C, H, W)
        return self.g.transpose(self.g.reshape(tokens, 1, self.height, self.width, channels), 0, 3, 1, 2)

    def _group(self, maps: Name, blocks: list[tuple[Kind, tuple[int, int]]], weights: Weights) -> Name:
        c = self.config.embed_dim
        with self.g.name_scope("group"):
            t = self._to_tokens(maps, c)
        for i, (kind, window) in enumerate(blocks):
            t = self._block(t, kind, window, weights.below(f"blocks.{i}"))
        with self.g.name_scope("group"):
            mixed = self.g.conv(self._to_maps(self._to_compute(t), c), weights["conv.weight"])
            return self.g.op("Add", self._to_stream(mixed), maps)

    def _block(self, t: Name, kind: Kind, window: tuple[int, int], weights: Weights) -> Name:
        g, c = self.g, self.config.embed_dim
        if zero_branches.attention_active(weights, kind):
            with g.name_scope(kind):
                mixed = self._mix_tokens(self._norm(t, weights, "n1"), kind, window, weights)
                t = g.op("Add", t, self._to_stream(mixed))
        if zero_branches.ffn_active(weights):
            with g.name_scope("feed-forward"):
                n = self._norm(t, weights, "n2")
                t = g.op("Add", t, self._to_stream(self._feed_forward(n, weights.below("ffn"), c)))
        return t

    def _mix_tokens(self, n: Name, kind: Kind, window: tuple[int, int], weights: Weights) -> Name:
        """Attention of normalized tokens, combined with the gated parallel convolution."""
        attn = weights.below("attn")
        match kind:
            case "spatial":
                mixed = self.attention.windows(n, attn, window)
                return self._gate_by_pool(mixed, self._depthwise_gelu(n, weights), weights)
            case "channel":
                bound = norm_bound(weights["n1.weight"], weights["n1.bias"], self.config.embed_dim)
                mixed = self.attention.channels(n, attn, bound)
                return self._gate_by_token(mixed, self._depthwise_gelu(n, weights), weights)
            case _:
                return self.attention.dictionary(n, attn)

    def _norm(self, t: Name, weights: Weights, name: str) -> Name:
        stream = self.target.stream_dtype
        with self.g.name_scope("norm"):
            return self._to_compute(
                self.g.layer_norm(t, weights[f"{name}.weight"], weights[f"{name}.bias"], dtype=stream)
            )

    def _feed_forward(self, n: Name, weights: Weights, c: int) -> Name:
        g, hidden = self.g, self.config.ffn_dim
        wide = g.op("Gelu", g.matmul(n, weights["fc1.weight"]))
        mixed = self._depthwise(wide, weights["smix.weight"], hidden)
        return g.matmul(self._to_tokens(mixed, hidden), weights["fc2.weight"])

    def _depthwise_gelu(self, n: Name, weights: Weights) -> Name:
        """GELU of a depthwise convolution, as a map (1, C, H, W)."""
        with self.g.name_scope("local"):
            return self.g.op("Gelu", self._depthwise(n, weights["conv.0.weight"], self.config.embed_dim))

    def _depthwise(self, tokens: Name, weight: Array, channels: int) -> Name:
        """Depthwise 3×3 convolution. tokens: (N, C), weight: (C, 1, 3, 3) -> (1, C, H, W)."""
        g = self.g
        if not self.target.sm75:
            return g.conv(self._to_maps(tokens, channels), weight, groups=channels)
        # (N, C) -> (1, H, W, C), padded -> nine shifted maps, weighted and added
        maps = g.reshape(tokens, 1, self.height, self.width, channels)
        maps = g.op("Pad", maps, g.shape_tensor(0, 1, 1, 0, 0, 1, 1, 0))
        total = ""
        for i in range(3):
            for j in range(3):
                ends = g.shape_tensor(g.dim_op("Add", self.height, i), g.dim_op("Add", self.width, j))
                shifted = g.op("Slice", maps, g.shape_tensor(i, j), ends, g.shape_tensor(1, 2))
                term = g.op("Mul", shifted, g.constant(weight[:, 0, i, j]))
                total = g.op("Add", total, term) if total else term
        return g.transpose(total, 0, 3, 1, 2)

    def _gate_by_pool(self, attn: Name, local: Name, weights: Weights) -> Name:
        """attn · sigmoid(W3 GELU(W1 mean(local))) + local."""
        g, c, compute = self.g, self.config.embed_dim, self.target.compute_dtype
        # 1×1 convolutions instead of products: OpenVINO 2026.4 fuses a chain of small products as an MLP, and crashes
        # on this one with a single thread.
        axes = g.constant([2, 3], np.int64)
        mean = g.op("ReduceMean", g.cast(local, compute, FLOAT32), axes, keepdims=1)  # (1, C, H, W) -> (1, C, 1, 1)
        hidden = g.op("Gelu", g.conv(mean, weights["inter.cg.1.weight"], dtype=FLOAT32))
        gate = g.reshape(g.op("Sigmoid", g.conv(hidden, weights["inter.cg.3.weight"], dtype=FLOAT32)), 1, c)
        return g.op("Add", g.op("Mul", attn, g.cast(gate, FLOAT32, compute)), self._to_tokens(local, c))

    def _gate_by_token(self, attn: Name, local: Name, weights: Weights) -> Name:
        """attn + local · sigmoid(w · attn)."""
        g, c = self.g, self.config.embed_dim
        gate = g.op("Sigmoid", g.matmul(attn, weights["inter.sg.0.weight"][:, :, 0, 0]))  # (N, 1)
        return g.op("Add", attn, g.op("Mul", self._to_tokens(local, c), gate))


def norm_bound(scale: Array, shift: Array, channels: int) -> float:
    """Upper bound of the absolute values that a LayerNorm over `channels` channels can output; never 0."""
    return max(1e-3, float(np.max(np.abs(scale) * np.sqrt(channels) + np.abs(shift))))
