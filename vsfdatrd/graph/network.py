"""The body of FDAT-RD as a graph: first convolution, groups, blocks. Tails are in `tails.py`.

Tokens are a matrix (N, C), row-major from the map (1, C, H, W). Shapes in comments as in `nn.fdat_rd`: h heads of d
channels, M dictionary tokens.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from vsfdatrd.graph.tails import write_tail
from vsfdatrd.graph.weights import Array, Weights
from vsfdatrd.graph.writer import Name, Writer
from vsfdatrd.nn.config import WINDOW, FdatRdConfig, Kind


def write(config: FdatRdConfig, tensors: Mapping[str, Array], height: int, width: int) -> onnx.ModelProto:
    """The whole network for padded frames of height × width pixels."""
    return _Network(config, Weights(tensors), height, width).model()


class _Network:
    def __init__(self, config: FdatRdConfig, weights: Weights, height: int, width: int) -> None:
        self.config, self.weights = config, weights
        self.g = Writer("fdat_rd")
        self.frame = (height, width)
        self.height, self.width = height // config.unshuffle, width // config.unshuffle
        self.tokens = self.height * self.width
        self.spatial = 0

    def model(self) -> onnx.ModelProto:
        config, g = self.config, self.g
        shallow = self._first()
        deep = shallow
        for i, kinds in enumerate(config.groups):
            deep = self._group(deep, kinds, self.weights.below(f"groups.{i}"))
        deep = g.op("Add", g.conv(deep, self.weights["conv_after.weight"]), shallow)
        out = write_tail(g, config, self.weights.below("upsampler"), deep, self.height, self.width)
        (height, width), s = self.frame, config.scale
        return g.model((1, config.in_channels, height, width), out, (1, config.out_channels, height * s, width * s))

    def _first(self) -> Name:
        u, c = self.config.unshuffle, self.config.in_channels
        if u == 1:
            return self.g.conv("input", self.weights["conv_first.weight"], self.weights["conv_first.bias"])
        # Unshuffling and a 3×3 kernel are one kernel of 3u × 3u pixels that steps by u: channel (c, y, x) of the
        # unshuffled picture under tap (i, j) is pixel (u·i + y, u·j + x) under the large one.
        weight = self.weights["conv_first.1.weight"].reshape(-1, c, u, u, 3, 3)
        large = weight.transpose(0, 1, 4, 2, 5, 3).reshape(-1, c, 3 * u, 3 * u)
        return self.g.conv("input", large, self.weights["conv_first.1.bias"], stride=u, pad=u)

    def _to_tokens(self, maps: Name, channels: int) -> Name:
        return self.g.reshape(self.g.transpose(maps, 0, 2, 3, 1), self.tokens, channels)  # (1, C, H, W) -> (N, C)

    def _to_maps(self, tokens: Name, channels: int) -> Name:
        # (N, C) -> (1, H, W, C) -> (1, C, H, W)
        return self.g.transpose(self.g.reshape(tokens, 1, self.height, self.width, channels), 0, 3, 1, 2)

    def _group(self, maps: Name, kinds: tuple[Kind, ...], weights: Weights) -> Name:
        c = self.config.embed_dim
        t = self._to_tokens(maps, c)
        for i, kind in enumerate(kinds):
            t = self._block(t, kind, weights.below(f"blocks.{i}"))
        return self.g.op("Add", self.g.conv(self._to_maps(t, c), weights["conv.weight"]), maps)

    def _block(self, t: Name, kind: Kind, weights: Weights) -> Name:
        g, c = self.g, self.config.embed_dim
        n = g.layer_norm(t, weights["n1.weight"], weights["n1.bias"])
        attn = weights.below("attn")
        match kind:
            case "spatial":
                mixed = self._gate_by_pool(self._windows(n, attn), self._local(n, weights), weights)
            case "channel":
                mixed = self._gate_by_token(self._channels(n, attn), self._local(n, weights), weights)
            case _:
                mixed = self._dictionary(n, attn)
        t = g.op("Add", t, mixed)
        n = g.layer_norm(t, weights["n2.weight"], weights["n2.bias"])
        return g.op("Add", t, self._feed_forward(n, weights.below("ffn"), c))

    def _feed_forward(self, n: Name, weights: Weights, c: int) -> Name:
        g, hidden = self.g, self.config.ffn_dim
        wide = g.op("Gelu", g.matmul(n, weights["fc1.weight"]))
        mixed = g.conv(self._to_maps(wide, hidden), weights["smix.weight"], groups=hidden)
        return g.matmul(self._to_tokens(mixed, hidden), weights["fc2.weight"])

    def _local(self, n: Name, weights: Weights) -> Name:
        """GELU of a depthwise convolution, as a map."""
        c = self.config.embed_dim
        return self.g.op("Gelu", self.g.conv(self._to_maps(n, c), weights["conv.0.weight"], groups=c))

    def _gate_by_pool(self, attn: Name, local: Name, weights: Weights) -> Name:
        """attn · sigmoid(W3 GELU(W1 mean(local))) + local."""
        g, c = self.g, self.config.embed_dim
        # As 1×1 convolutions, not products: OpenVINO 2026.4 takes a chain of small products for an MLP to fuse, and
        # crashes over this one when it has a single thread.
        mean = g.op("ReduceMean", local, g.constant([2, 3], np.int64), keepdims=1)  # (1, C, H, W) -> (1, C, 1, 1)
        hidden = g.op("Gelu", g.conv(mean, weights["inter.cg.1.weight"]))
        gate = g.reshape(g.op("Sigmoid", g.conv(hidden, weights["inter.cg.3.weight"])), 1, c)
        return g.op("Add", g.op("Mul", attn, gate), self._to_tokens(local, c))

    def _gate_by_token(self, attn: Name, local: Name, weights: Weights) -> Name:
        """attn + local · sigmoid(w · attn)."""
        g, c = self.g, self.config.embed_dim
        gate = g.op("Sigmoid", g.matmul(attn, weights["inter.sg.0.weight"][:, :, 0, 0]))  # (N, 1)
        return g.op("Add", attn, g.op("Mul", self._to_tokens(local, c), gate))

    def _windows(self, n: Name, weights: Weights) -> Name:
        """Window attention. n: (N, C) -> (N, C)."""
        g, c, h = self.g, self.config.embed_dim, self.config.heads
        wh, ww = WINDOW if self.spatial % 2 == 0 else WINDOW[::-1]
        self.spatial += 1
        rows, cols, d, tokens = self.height // wh, self.width // ww, c // h, wh * ww
        # (N, C) -> (rows, wh, cols, ww, C) -> (rows, cols, wh, ww, C) -> (windows, 300, C)
        x = g.transpose(g.reshape(n, rows, wh, cols, ww, c), 0, 2, 1, 3, 4)
        x = g.reshape(x, rows * cols, tokens, c)
        wq, wk, wv = np.split(weights["qkv.weight"], 3)
        q, k, v = self._heads(x, wq * d**-0.5), self._keys(x, wk), self._heads(x, wv)
        out = self._attend(q, k, v, weights["rel_pos_bias"][None])  # bias: (1, h, 300, 300)
        out = g.op("Add", g.matmul(out, weights["proj.weight"]), g.constant(weights["proj.bias"]))
        # back: (windows, 300, C) -> (rows, cols, wh, ww, C) -> (rows, wh, cols, ww, C) -> (N, C)
        out = g.transpose(g.reshape(out, rows, cols, wh, ww, c), 0, 2, 1, 3, 4)
        return g.reshape(out, self.tokens, c)

    def _channels(self, n: Name, weights: Weights) -> Name:
        """Channel attention, folded: one second moment and one C × C product a token.

        With S = xᵀx, q kᵀ of a head is Wq S Wkᵀ, the squared norms of q and k over the frame are the diagonals of
        Wq S Wqᵀ and Wk S Wkᵀ, and the branch is x · (Wproj · blockdiag(A) · Wv)ᵀ + b.
        """
        g, c, h = self.g, self.config.embed_dim, self.config.heads
        d = c // h
        # Divided by N, S stays small whatever the frame's size; q kᵀ / (|q| |k|) does not change.
        s = g.op("Mul", g.op("MatMul", g.transpose(n, 1, 0), n), g.constant(1 / self.tokens))  # (C, C)
        wq, wk, wv = (w.reshape(h, d, c) for w in np.split(weights["qkv.weight"], 3))
        qs, ks = (g.op("MatMul", g.constant(w), s) for w in (wq, wk))  # (h, d, C)
        norms = []
        for ws, w in ((qs, wq), (ks, wk)):
            squares = g.op("ReduceSum", g.op("Mul", ws, g.constant(w)), g.constant([2], np.int64), keepdims=1)
            # A sum of squares, which rounding may still put below zero; 1e-12 is the norm's own floor.
            floor = g.constant(1e-24 / self.tokens)
            norms.append(g.op("Sqrt", g.op("Max", squares, floor)))  # (h, d, 1)
        products = g.op("MatMul", qs, g.constant(wk.transpose(0, 2, 1)))  # (h, d, d)
        scale = g.op("Mul", norms[0], g.transpose(norms[1], 0, 2, 1))  # (h, d, d)
        logits = g.op("Mul", g.op("Div", products, scale), g.constant(weights["temp"]))
        mixed = g.op("MatMul", g.op("Softmax", logits, axis=-1), g.constant(wv))  # (h, d, C)
        matrix = g.op("Gemm", g.reshape(mixed, c, c), g.constant(weights["proj.weight"].T), transA=1)  # (C, C)
        return g.op("Add", g.op("MatMul", n, matrix), g.constant(weights["proj.bias"]))

    def _dictionary(self, n: Name, weights: Weights) -> Name:
        """The dictionary reads the frame; every token reads the refined dictionary. n: (N, C) -> (N, C)."""
        g, c, h = self.g, self.config.embed_dim, self.config.heads
        d, m = c // h, self.config.dict_tokens
        words = weights["dictionary"]
        # The dictionary's own queries depend on weights alone: (M, C) -> (1, h, M, d)
        q = ((words @ weights["r_q.weight"].T) * d**-0.5).reshape(1, m, h, d).transpose(0, 2, 1, 3)
        n = g.reshape(n, 1, self.tokens, c)
        x = g.layer_norm(n, weights["r_norm.weight"], weights["r_norm.bias"])
        wk, wv = np.split(weights["r_kv.weight"], 2)
        read = self._attend(g.constant(q), self._keys(x, wk), self._heads(x, wv))  # (1, M, C)
        refined = g.op("Add", read, g.constant(words[None]))

        wk, wv = np.split(weights["e_kv.weight"], 2)
        q_x = self._heads(n, weights["e_q.weight"] * d**-0.5)  # (1, h, N, d)
        out = self._attend(q_x, self._keys(refined, wk), self._heads(refined, wv))
        out = g.op("Add", g.matmul(out, weights["proj.weight"]), g.constant(weights["proj.bias"]))
        return g.reshape(out, self.tokens, c)

    # The three parts of attention over B windows of T tokens. Written so that OpenVINO's CPU plugin takes everything
    # between the four products for one kernel; that needs all four sides, even where B is 1.

    def _heads(self, x: Name, weight: Array) -> Name:
        """Queries or values: (B, T, C) -> (B, h, T, d)."""
        h, d = self.config.heads, self.config.embed_dim // self.config.heads
        return self.g.transpose(self.g.reshape(self.g.matmul(x, weight), 0, 0, h, d), 0, 2, 1, 3)

    def _keys(self, x: Name, weight: Array) -> Name:
        """Keys, made in the layout that the product with queries wants: (B, T, C) -> (B, h, d, T)."""
        g, h, d = self.g, self.config.heads, self.config.embed_dim // self.config.heads
        k = g.op("MatMul", g.constant(weight), g.transpose(x, 0, 2, 1))  # (B, C, T)
        return g.reshape(k, 0, h, d, -1)

    def _attend(self, q: Name, k: Name, v: Name, bias: Array | None = None) -> Name:
        """softmax(q k + bias) v. q: (B, h, T, d), k: (B, h, d, K), v: (B, h, K, d) -> (B, T, C)."""
        g = self.g
        scores = g.op("MatMul", q, k)
        if bias is not None:
            scores = g.op("Add", scores, g.constant(bias))
        out = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
        return g.reshape(g.transpose(out, 0, 2, 1, 3), 0, 0, self.config.embed_dim)
