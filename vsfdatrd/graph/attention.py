"""The attention variants of FDAT-RD and FDAT as ONNX. Input and output are tokens (N, C); h heads of d channels.

If the target has `split_reductions` set, reductions over the whole frame (97,200 tokens at 720×540) are computed in
parallel over chunks of tokens and combined in fp32. Otherwise, a sum of products can overflow fp16, the weights of a
softmax can be denormal numbers in fp16, and most of the GPU's multiprocessors are idle.
"""

import math

import numpy as np

from vsfdatrd.archs.fdat_rd import FdatFamilyConfig
from vsfdatrd.graph.builder import FLOAT32, Name, Side, Writer
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.graph.weights import Array, Weights

MAX_CHUNK_TOKENS = 1536
"""Largest number of tokens in a chunk."""
MAX_FP16_SUM = 60000.0
"""Largest sum allowed in fp16, whose maximum is 65,504."""


class Attention:
    """Writes attention over the tokens of a map, whose height and width are in tokens."""

    def __init__(self, g: Writer, config: FdatFamilyConfig, target: GraphTarget, height: Side, width: Side) -> None:
        self.g, self.config, self.target = g, config, target
        self.height, self.width = height, width
        self.tokens = height * width if isinstance(height, int) and isinstance(width, int) else None
        """Number of tokens N; None if the size is dynamic."""
        self.heads, self.depth = config.heads, config.embed_dim // config.heads
        self.padded_depth = -(-self.depth // target.head_multiple) * target.head_multiple
        """Channels per head in attention over tokens, padded with zeros to the multiple that the target needs."""

    def windows(self, n: Name, weights: Weights, window: tuple[int, int]) -> Name:
        """Write window attention with a relative position bias.

        A map whose size is not a multiple of the window is padded with zero tokens, which take part in attention.

        Args:
            n: Normalized tokens (N, C).
            weights: Tensors of the attention module.
            window: (height, width) of the window in tokens.
        """
        g, c = self.g, self.config.embed_dim
        wh, ww = window
        padded_height, padded_width = self._round_up(self.height, wh), self._round_up(self.width, ww)
        if continued := (padded_height, padded_width) != (self.height, self.width):
            below, right = g.dim_op("Sub", padded_height, self.height), g.dim_op("Sub", padded_width, self.width)
            ends = g.shape_tensor(0, 0, 0, below, right, 0)
            n = g.op("Pad", g.reshape(n, self.height, self.width, c), ends)
        rows, cols, tokens = g.dim_op("Div", padded_height, wh), g.dim_op("Div", padded_width, ww), wh * ww
        # (N, C) -> (rows, wh, cols, ww, C) -> (rows, cols, wh, ww, C) -> (windows, T, C)
        x = g.transpose(g.reshape(n, rows, wh, cols, ww, c), 0, 2, 1, 3, 4)
        x = g.reshape(x, rows * cols if isinstance(rows, int) and isinstance(cols, int) else -1, tokens, c)
        wq, wk, wv = np.split(weights["qkv.weight"], 3)
        bias = weights[self.config.windows_bias][None]  # (1, h, T, T)
        out = self._apply_projection(self._attend(x, wq * self.depth**-0.5, x, wk, wv, bias), weights)
        # back: (windows, T, C) -> (rows, cols, wh, ww, C) -> (rows, wh, cols, ww, C) -> (N, C)
        out = g.transpose(g.reshape(out, rows, cols, wh, ww, c), 0, 2, 1, 3, 4)
        if continued:
            out = g.crop(g.reshape(out, padded_height, padded_width, c), 0, self.height, self.width)
        return g.reshape(out, self.tokens or -1, c)

    def _round_up(self, side: Side, window: int) -> Side:
        """Round the height or width of the map up to a multiple of the window's."""
        g = self.g
        if self.config.multiple // self.config.unshuffle % window == 0:
            return side  # frames are padded to a multiple of the window already
        return g.dim_op("Mul", g.dim_op("Div", g.dim_op("Add", side, window - 1), window), window)

    def channels(self, n: Name, weights: Weights, largest: float) -> Name:
        """Write channel attention as one second moment matrix S and one product of the tokens with a C × C matrix.

        With S = xᵀx, q kᵀ of a head is Wq S Wkᵀ, the squared norms of q and k over the frame are the diagonals of Wq S
        Wqᵀ and Wk S Wkᵀ, and the branch is x · (Wproj · blockdiag(A) · Wv)ᵀ + b. The small matrices are fp32.

        Args:
            n: Normalized tokens x (N, C).
            weights: Tensors of the attention module.
            largest: Upper bound of the absolute values in n.
        """
        g, c, h, d = self.g, self.config.embed_dim, self.heads, self.depth
        # S is computed from tokens minus their mean m, and the contribution of m is added to products and norms
        # afterwards. In a uniform frame (such as black) nothing else contributes, and without this step cancellation in
        # Wq S Wkᵀ would leave only rounding errors.
        mean = g.op("ReduceMean", g.cast(n, self.target.compute_dtype, FLOAT32), g.constant([0], np.int64), keepdims=1)
        centered = g.op("Sub", n, g.cast(mean, FLOAT32, self.target.compute_dtype))  # (N, C) - (1, C)
        s = self._second_moment(centered, 2 * largest)  # (C, C)
        wq, wk, wv = (w.reshape(h, d, c) for w in np.split(weights["qkv.weight"], 3))
        small = _Convolutions(g) if self.target.sm75 else _Products(g)
        qs, ks = (small.multiply_matrix(w, s) for w in (wq, wk))  # (h, d, C)
        norms, means = [], []
        for ws, w in ((qs, wq), (ks, wk)):
            # w m: (C, C), (1, C) -> (h, d, 1); in 2-D, as TensorRT-RTX 1.7 fails on the 3-D form for sm75 with one head
            by_mean = g.op("Mul", g.constant(w.reshape(c, c), FLOAT32), mean)
            means.append(g.reshape(g.op("ReduceSum", by_mean, g.constant([1], np.int64), keepdims=1), h, d, 1))
            squares = g.op("ReduceSum", g.op("Mul", ws, g.constant(w, FLOAT32)), g.constant([2], np.int64), keepdims=1)
            squares = g.op("Add", squares, g.op("Mul", means[-1], means[-1]))
            # Rounding may make this sum of squares negative; the floor corresponds to eps=1e-12 of F.normalize.
            floor = g.constant(1e-24 / self._count(), FLOAT32)
            norms.append(g.op("Sqrt", g.op("Max", squares, floor)))  # (h, d, 1)
        products = small.multiply_heads_transposed(qs, wk)  # (h, d, d)
        products = g.op("Add", products, g.op("Mul", means[0], g.transpose(means[1], 0, 2, 1)))
        scale = g.op("Mul", norms[0], g.transpose(norms[1], 0, 2, 1))  # (h, d, d)
        logits = g.op("Mul", g.op("Div", products, scale), g.constant(weights["temp"], FLOAT32))
        mixed = small.multiply_heads(g.op("Softmax", logits, axis=-1), wv)  # (h, d, C)
        matrix = small.transposed_product(mixed, weights["proj.weight"])  # (C, C)
        out = g.op("MatMul", n, g.cast(matrix, FLOAT32, self.target.compute_dtype))
        return g.op("Add", out, g.constant(weights["proj.bias"]))

    def channel_matrix(self, centered: Name, mean: Name, weights: Weights, largest: float) -> Name:
        """Write channel attention as one C × C matrix, as in `channels`, with one product for queries and keys.

        Args:
            centered: Normalized tokens minus their mean (N, C); N must be known.
            mean: Their mean (1, C), in fp32.
            weights: Tensors of the attention module.
            largest: Upper bound of the absolute values in `centered`.

        Returns:
            Wproj · blockdiag(A) · Wv (C, C) in fp32.
        """
        g, c, h, d = self.g, self.config.embed_dim, self.heads, self.depth
        total, factor = self._products_of_channels(centered, largest)

        w = weights["qkv.weight"][: 2 * c]
        by_matrix = g.op("MatMul", g.constant(w.astype(np.float64) * factor, FLOAT32), total)  # W S (2C, C)
        moments = g.op("MatMul", by_matrix, g.constant(w.T, FLOAT32))  # W S Wᵀ (2C, 2C)
        means = g.op("ReduceSum", g.op("Mul", g.constant(w, FLOAT32), mean), g.constant([1], np.int64), keepdims=0)
        means = g.reshape(means, 1, 2 * c)
        flat = g.reshape(moments, 4 * c * c)
        squares = g.reshape(g.slice(flat, 0, 0, 4 * c * c, 2 * c + 1), 1, 2 * c)  # the diagonal
        squares = g.op("Add", squares, g.op("Mul", means, means))
        # As in `channels`: rounding may make the sum negative.
        norms = g.op("Sqrt", g.op("Max", squares, g.constant(1e-24 / self._count(), FLOAT32)))  # (1, 2C)

        def by_head(x: Name) -> Name:
            """Multiply the values of all queries and keys of a head: (1, 2C) -> (h, d, d)."""
            queries = g.reshape(g.slice(x, 1, 0, c, 1), h, d, 1)
            return g.op("Mul", queries, g.reshape(g.slice(x, 1, c, 2 * c, 1), h, 1, d))

        # Products of queries and keys of each head: d × d blocks along a diagonal of the upper right quadrant.
        step = d * (2 * c + 1)
        products = g.reshape(g.slice(flat, 0, c, c + h * step, 1), h, step)
        products = g.reshape(g.slice(products, 1, 0, d * 2 * c, 1), h, d, 2 * c)
        products = g.slice(products, 2, 0, d, 1)
        products = g.op("Add", products, by_head(means))
        logits = g.op("Mul", g.op("Div", products, by_head(norms)), g.constant(weights["temp"], FLOAT32))
        values = g.constant(weights["qkv.weight"][2 * c :].reshape(h, d, c), FLOAT32)
        mixed = g.reshape(g.op("MatMul", g.op("Softmax", logits, axis=-1), values), c, c)
        return g.op("MatMul", g.constant(weights["proj.weight"], FLOAT32), mixed)

    def dictionary(self, n: Name, weights: Weights) -> Name:
        """Write dictionary attention: the dictionary attends to the frame, then every token to the refined dictionary.

        Args:
            n: Normalized tokens (N, C).
            weights: Tensors of the attention module.
        """
        g, c = self.g, self.config.embed_dim
        dictionary = weights["dictionary"]
        # The dictionary's queries depend on the weights alone, so they are precomputed: (M, C) -> (1, h, M, d)
        q = ((dictionary @ weights["r_q.weight"].T) * self.depth**-0.5).reshape(
            1, len(dictionary), self.heads, self.depth
        )
        tokens = self.tokens or -1
        n = g.reshape(n, 1, tokens, c)
        x = g.layer_norm(n, weights["r_norm.weight"], weights["r_norm.bias"])
        wk, wv = np.split(weights["r_kv.weight"], 2)
        read = self.attend_to_frame(q.transpose(0, 2, 1, 3), x, wk, wv)  # (1, M, C)
        refined = g.op("Add", read, g.constant(dictionary[None]))

        wk, wv = np.split(weights["e_kv.weight"], 2)
        out = self._attend(n, weights["e_q.weight"] * self.depth**-0.5, refined, wk, wv)
        return g.reshape(self._apply_projection(out, weights), tokens, c)

    # Scaled dot-product attention

    def _attend(self, x: Name, wq: Array, y: Name, wk: Array, wv: Array, bias: Array | None = None) -> Name:
        """softmax(q k + bias) v of B windows: q from x (B, T, C), k and v from y (B, K, C). Returns (B, T, h·D)."""
        wq, wk, wv = (self.padded_heads(w) for w in (wq, wk, wv))
        if not self.target.attention:
            return self._products(
                self._split_heads(x, wq), self._keys(y, wk), self._split_heads(y, wv), self.padded_depth, bias
            )
        g = self.g
        inputs = [self._split_heads(x, wq), self._split_heads(y, wk), self._split_heads(y, wv)]  # (B, h, T or K, D)
        if bias is not None:
            inputs.append(g.constant(bias))
        out = g.op("Attention", *inputs, scale=1.0)  # 1/√d is folded into the query weights
        return self._merge_heads(out, self.padded_depth)

    def padded_heads(self, weight: Array) -> Array:
        """Pad each head of query, key or value weights with zeros: (h·d, C) -> (h·D, C)."""
        by_head = weight.reshape(self.heads, self.depth, -1)
        padded = np.pad(by_head, ((0, 0), (0, self.padded_depth - self.depth), (0, 0)))
        return padded.reshape(self.heads * self.padded_depth, -1)

    def _apply_projection(self, out: Name, weights: Weights) -> Name:
        """Apply the output projection: (B, T, h·D) -> (B, T, C)."""
        weight = self.padded_heads(weights["proj.weight"].T).T
        return self.g.op("Add", self.g.matmul(out, weight), self.g.constant(weights["proj.bias"]))

    # OpenVINO's CPU plugin fuses everything between the four products into one kernel if they are written in this form.
    # It requires all four dimensions, even if B is 1.

    def _split_heads(self, x: Name, weight: Array) -> Name:
        """Project to queries or values and split into heads: (B, T, C) -> (B, h, T, d), with weight (h·d, C)."""
        depth = len(weight) // self.heads
        return self.g.transpose(self.g.reshape(self.g.matmul(x, weight), 0, 0, self.heads, depth), 0, 2, 1, 3)

    def _keys(self, x: Name, weight: Array) -> Name:
        """Project to keys, transposed for the product with the queries: (B, T, C) -> (B, h, d, T)."""
        k = self.g.op("MatMul", self.g.constant(weight), self.g.transpose(x, 0, 2, 1))  # (B, C, T)
        return self.g.reshape(k, 0, self.heads, len(weight) // self.heads, -1)

    def _products(self, q: Name, k: Name, v: Name, depth: int, bias: Array | None = None) -> Name:
        """softmax(q k + bias) v as separate operators.

        q: (B, h, T, d), k: (B, h, d, K), v: (B, h, K, d) -> (B, T, h·d). depth: d.
        """
        g = self.g
        scores = g.op("MatMul", q, k)
        if bias is not None:
            scores = g.op("Add", scores, g.constant(bias))
        return self._merge_heads(g.op("MatMul", g.op("Softmax", scores, axis=-1), v), depth)

    def _merge_heads(self, out: Name, depth: int) -> Name:
        """Merge the heads: (B, h, T, d) -> (B, T, h·d)."""
        return self.g.reshape(self.g.transpose(out, 0, 2, 1, 3), 0, 0, self.heads * depth)

    # Reductions over the whole frame

    def _second_moment(self, n: Name, largest: float) -> Name:
        """Compute xᵀx / N in fp32: (N, C) -> (C, C). Division by N keeps it small for every frame size."""
        g = self.g
        total, factor = self._products_of_channels(n, largest)
        if self.tokens is not None:
            return g.op("Mul", total, g.constant(factor, FLOAT32))
        return g.op("Div", total, g.cast(g.length(n, 0), np.int64, FLOAT32))

    def _products_of_channels(self, n: Name, largest: float) -> tuple[Name, float]:
        """Compute xᵀx in fp32 up to a factor: (N, C) -> (C, C).

        Returns:
            The product, and the factor by which it has to be multiplied to give xᵀx / N if N is known.
        """
        g, c, compute = self.g, self.config.embed_dim, self.target.compute_dtype
        # The sum over a chunk must not exceed the range of fp16, whatever the content. Values are halved, which is
        # exact, until chunks can be long enough that the partial sums together take less memory than the tokens.
        halvings = 0
        if self.target.split_reductions:
            halvings = max(0, math.ceil(math.log2(largest / math.sqrt(MAX_FP16_SUM / (3 * c)))))
        if halvings:
            n = g.op("Mul", n, g.constant(0.5**halvings))
        if not self.target.split_reductions or self.tokens is None:
            n = g.cast(n, compute, FLOAT32)
            total = g.op("MatMul", g.transpose(n, 1, 0), n)
        else:
            most = min(MAX_CHUNK_TOKENS, int(MAX_FP16_SUM * 4**halvings / largest**2))
            length = self.chunk(most) or 0
            if length < most // 4:  # no suitable divisor: pad with zero tokens, which do not change the sum
                length = most // 8 * 8
                n = g.op("Pad", n, g.shape_tensor(0, 0, -self.tokens % length, 0))
            x = g.reshape(n, -(-self.tokens // length), length, c)  # (N, C) -> (P, T, C)
            sums = g.cast(g.op("MatMul", g.transpose(x, 0, 2, 1), x), compute, FLOAT32)  # (P, C, C)
            total = g.op("ReduceSum", sums, g.constant([0], np.int64), keepdims=0)
        return total, 4**halvings / self._count()

    def attend_to_frame(self, queries: Array, x: Name, wk: Array, wv: Array) -> Name:
        """Write attention of constant queries (1, h, M, d) over the frame's tokens x (1, N, C) -> (1, M, C)."""
        g, h, d, compute = self.g, self.heads, self.depth, self.target.compute_dtype
        length = self.chunk(MAX_CHUNK_TOKENS) if self.target.split_reductions else None
        if length is None:
            return self._products(g.constant(queries), self._keys(x, wk), self._split_heads(x, wv), d)
        # A softmax over each chunk of keys; the results are weighted by the chunks' shares of the total (as in flash
        # decoding, Dao et al. 2023). If m is the largest score of a chunk and l = Σ exp(s - m), its weight is
        # l · exp(m).
        parts = self._count() // length
        # (1, N, C) -> (P, T, h, d) -> (P, h, T, d), and keys (P, h, d, T)
        k = g.transpose(g.reshape(g.matmul(x, wk), parts, length, h, d), 0, 2, 3, 1)
        v = g.transpose(g.reshape(g.matmul(x, wv), parts, length, h, d), 0, 2, 1, 3)
        scores = g.op("MatMul", g.constant(queries), k)  # (P, h, M, T)
        last, first = g.constant([3], np.int64), g.constant([0], np.int64)
        top = g.op("ReduceMax", scores, last, keepdims=1)  # (P, h, M, 1)
        exponentials = g.cast(g.op("Exp", g.op("Sub", scores, top)), compute, FLOAT32)
        total = g.op("ReduceSum", exponentials, last, keepdims=1)
        found = g.op("MatMul", g.cast(g.op("Div", exponentials, total), FLOAT32, compute), v)  # (P, h, M, d)
        top = g.cast(top, compute, FLOAT32)
        highest = g.op("ReduceMax", top, first, keepdims=1)  # (1, h, M, 1)
        share = g.op("Mul", total, g.op("Exp", g.op("Sub", top, highest)))
        share = g.op("Div", share, g.op("ReduceSum", share, first, keepdims=1))  # (P, h, M, 1)
        # (P, h, M, d) -> (1, h, M, d) -> (1, M, C)
        found = g.op("ReduceSum", g.op("Mul", g.cast(found, compute, FLOAT32), share), first, keepdims=1)
        return self._merge_heads(g.cast(found, FLOAT32, compute), d)

    def _count(self) -> int:
        """Return N. For dynamic sizes N is only a scale, and that of a 720×540 frame unshuffled by 2 is returned."""
        return self.tokens or 97200

    def chunk(self, most: int) -> int | None:
        """Return the length in tokens of the longest chunk that divides N; None if there is none.

        Multiples of 8 are preferred.

        Args:
            most: Largest permitted length.
        """
        if self.tokens is None:
            return None
        found = [t for t in range(8, most + 1) if self.tokens % t == 0]
        return max(found, key=lambda t: (t % 8 == 0, t), default=None)


class _Products:
    """Writes the small fp32 products of channel attention with constants (h, d, C) as MatMul."""

    def __init__(self, g: Writer) -> None:
        self.g = g

    def multiply_matrix(self, w: Array, s: Name) -> Name:
        """w s: (h, d, C) · (C, C) -> (h, d, C)."""
        return self.g.op("MatMul", self.g.constant(w, FLOAT32), s)

    def multiply_heads_transposed(self, x: Name, w: Array) -> Name:
        """x wᵀ per head: (h, d, C) · (h, C, d) -> (h, d, d)."""
        return self.g.op("MatMul", x, self.g.constant(w.transpose(0, 2, 1), FLOAT32))

    def multiply_heads(self, x: Name, w: Array) -> Name:
        """x w per head: (h, d, d) · (h, d, C) -> (h, d, C)."""
        return self.g.op("MatMul", x, self.g.constant(w, FLOAT32))

    def transposed_product(self, x: Name, w: Array) -> Name:
        """Return (w·x)ᵀ (C, C), for a constant w (C, C) and x (h, d, C), whose heads are concatenated to (C, C)."""
        c = len(w)
        return self.g.op("Gemm", self.g.reshape(x, c, c), self.g.constant(w.T, FLOAT32), transA=1)


class _Convolutions(_Products):
    """Writes the same products as 1×1 convolutions, for GPUs without fp32 matrix products. Heads become groups."""

    def multiply_matrix(self, w: Array, s: Name) -> Name:
        h, d, c = w.shape
        s = self.g.reshape(s, 1, c, c, 1)  # rows are channels
        return self.g.reshape(self.g.conv(s, w.reshape(h * d, c, 1, 1), dtype=FLOAT32), h, d, c)

    def multiply_heads_transposed(self, x: Name, w: Array) -> Name:
        g, (h, d, c) = self.g, w.shape
        # (h, d, C) -> (h, C, d) -> (1, h·C, d, 1); a group gives w xᵀ: (1, h·d, d, 1) -> (h, d, d), transposed back
        x = g.reshape(g.transpose(x, 0, 2, 1), 1, h * c, d, 1)
        x = g.conv(x, w.reshape(h * d, c, 1, 1), groups=h, dtype=FLOAT32)
        return g.transpose(g.reshape(x, h, d, d), 0, 2, 1)

    def multiply_heads(self, x: Name, w: Array) -> Name:
        g, (h, d, c) = self.g, w.shape
        # (h, q, k) -> (h, k, q) -> (1, h·k, q, 1); a group gives wᵀ xᵀ: (1, h·C, q, 1) -> (h, C, q), transposed back
        x = g.reshape(g.transpose(x, 0, 2, 1), 1, h * d, d, 1)
        x = g.conv(x, w.transpose(0, 2, 1).reshape(h * c, d, 1, 1), groups=h, dtype=FLOAT32)
        return g.transpose(g.reshape(x, h, c, d), 0, 2, 1)

    def transposed_product(self, x: Name, w: Array) -> Name:
        g, c = self.g, len(w)
        x = g.conv(g.reshape(x, 1, c, c, 1), w.reshape(c, c, 1, 1), dtype=FLOAT32)  # (1, C, C, 1)
        return g.transpose(g.reshape(x, c, c), 1, 0)
