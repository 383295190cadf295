"""The body of FDAT-RD and FDAT for TensorRT-RTX, in the form that moves the least memory.

The library generates kernels for pointwise operators, reductions and transposes. It fuses what follows a matrix product
or convolution (bias, GELU, gates, sums) into the same kernel, but not what precedes it. Consequences:

- Tokens stay a map (1, C, H, W), which convolutions read without a copy. The library stores maps with channels last, so
  the map and (N, C) are the same memory. Otherwise, the result of a product is copied before a convolution reads it.
- A norm before a single layer becomes a factor per token after the layer, and the norm's weights are folded into those
  of the layer.
- Elsewhere, the operators that compute the statistics of a norm share no intermediate values with the operators that
  apply them, because the library would write shared values to memory in float32 and read them again.
- Windows are rearranged to (positions, windows, C). Windows and heads are then one axis with one stride in the products
  and results of attention, and nothing is transposed. With a mask, `Attention` transposes anyway. It is therefore
  written as products with a softmax in float32, which the library fuses.
- When the dictionary attends to the frame, keys and values are the normalized tokens themselves: the key weights are
  folded into the queries, and the value weights are applied to the result.

The library decides which operators it fuses into one kernel. The memory traffic of this form was therefore measured
(`python -m benchmarks.builds`), and `tests/benchmarks/test_traffic.py` fails if it grows.
"""

import math

import numpy as np

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import Kind
from vsfdatrd.graph.attention import MAX_CHUNK_TOKENS
from vsfdatrd.graph.builder import FLOAT32, Name
from vsfdatrd.graph.fdat_body import Network, norm_bound
from vsfdatrd.graph.weights import Array, Weights

EPS = 1e-5
MAX_SAMPLES = 32
"""Largest number of sampled keys in a chunk when the dictionary attends to the frame."""
SAMPLE_MARK = 256
"""Value of the channel that marks samples; it keeps small shares out of fp16's denormal numbers."""
MAX_QUERY_NORM = 16
"""Largest norm of a query for which chunks of attention are merged by means of samples.

The norm is about the standard deviation of the query's scores. With norms above 23, precision was lost, because the
samples' share of a chunk underflows.
"""
MAX_SUMMED = 16384
"""Largest number of values that the library sums in one kernel."""
EXTRA_CHANNELS = 8
"""Channels added to the tokens to which the dictionary attends; fused attention needs a multiple of 8."""


class MapNetwork(Network):
    """Writes the body for maps of known size."""

    _marks: Name = ""
    """Constant with the added channels in `_attend_to_frame`; empty until it is written."""

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width of the map."""
        if not isinstance(self.height, int) or not isinstance(self.width, int):
            raise TypeError("this form needs a frame of known size")
        return self.height, self.width

    def _group(self, maps: Name, blocks: list[tuple[Kind, tuple[int, int]]], weights: Weights) -> Name:
        t = maps
        for i, (kind, window) in enumerate(blocks):
            t = self._block(t, kind, window, weights.below(f"blocks.{i}"))
        with self.g.name_scope("group"):
            return self.g.op("Add", self._to_stream(self.g.conv(self._to_compute(t), weights["conv.weight"])), maps)

    def _block(self, t: Name, kind: Kind, window: tuple[int, int], weights: Weights) -> Name:
        if zero_branches.attention_active(weights, kind):
            with self.g.name_scope(kind):
                match kind:
                    case "spatial":
                        t = self._spatial(t, window, weights)
                    case "channel":
                        t = self._channel(t, weights)
                    case _:
                        t = self._dictionary(t, weights)
        if zero_branches.ffn_active(weights):
            with self.g.name_scope("feed-forward"):
                t = self.g.op("Add", t, self._to_stream(self._feed_forward_maps(t, weights)))
        return t

    # Layouts: in memory, maps are (H, W, C), so these are views

    def _channels_last(self, maps: Name) -> Name:
        """(1, C, H, W) -> (1, H, W, C)."""
        return self.g.transpose(maps, 0, 2, 3, 1)

    def _per_channel(self, values: Array) -> Name:
        """Constant (1, C, 1, 1) in float32."""
        return self.g.constant(values.reshape(1, -1, 1, 1), FLOAT32)

    def _to_float32(self, x: Name) -> Name:
        return self.g.cast(x, self.target.compute_dtype, FLOAT32)

    def _stream_to_float32(self, t: Name) -> Name:
        return self.g.cast(t, self.target.stream_dtype, FLOAT32)

    def _from_float32(self, x: Name) -> Name:
        return self.g.cast(x, FLOAT32, self.target.compute_dtype)

    # Norms

    def _moments(self, x: Name) -> tuple[Name, Name, Name]:
        """Return the mean over channels of a float32 map x, 1 / its standard deviation, and x - mean."""
        g = self.g
        channels = g.constant([1], np.int64)
        mean = g.op("ReduceMean", x, channels, keepdims=1)
        centered = g.op("Sub", x, mean)
        variance = g.op("ReduceMean", g.op("Mul", centered, centered), channels, keepdims=1)
        deviation = g.op("Sqrt", g.op("Add", variance, g.constant(EPS, FLOAT32)))
        return mean, g.op("Div", g.constant(1, FLOAT32), deviation), centered

    def _second_moments(self, centered: Name, factor: Name, scale: Array, shift: Array) -> tuple[Name, Name]:
        """Return the mean and 1 / standard deviation over channels of centered · factor · scale + shift.

        They are computed from sums that do not depend on `factor`, so the library can compute these in one kernel with
        the sums for `factor`.
        """
        g = self.g
        channels = g.constant([1], np.int64)
        x = g.op("Mul", centered, self._per_channel(scale))
        mean = g.op("ReduceMean", x, channels, keepdims=1)
        square = g.op("ReduceMean", g.op("Mul", x, x), channels, keepdims=1)
        mixed = g.op("ReduceMean", g.op("Mul", x, self._per_channel(shift - shift.mean())), channels, keepdims=1)
        variance = g.op("Sub", square, g.op("Mul", mean, mean))
        variance = g.op("Mul", g.op("Mul", variance, factor), factor)
        variance = g.op("Add", variance, g.op("Mul", g.op("Mul", mixed, factor), g.constant(2, FLOAT32)))
        variance = g.op("Max", g.op("Add", variance, g.constant(shift.var(), FLOAT32)), g.constant(0, FLOAT32))
        deviation = g.op("Sqrt", g.op("Add", variance, g.constant(EPS, FLOAT32)))
        mean = g.op("Add", g.op("Mul", mean, factor), g.constant(shift.mean(), FLOAT32))
        return mean, g.op("Div", g.constant(1, FLOAT32), deviation)

    def _normalize(self, t: Name, mean: Name, factor: Name, disguise: float = -1) -> Name:
        """(t - mean) · factor in float32, from maps t (1, C, H, W) and mean and factor (1, 1, H, W).

        It is computed as (t · disguise) · (factor / disguise) - mean · factor. This shares neither t in float32 nor t -
        mean with `_moments`, nor with a call that has another `disguise`. `disguise` is a power of two, so multiplying
        by it is exact.
        """
        g = self.g
        disguised = self._stream_to_float32(g.op("Mul", t, g.constant(disguise, self.target.stream_dtype)))
        product = g.op("Mul", disguised, g.op("Mul", factor, g.constant(1 / disguise, FLOAT32)))
        return g.op("Sub", product, g.op("Mul", mean, factor))

    def _norm_maps(self, t: Name, weights: Weights, name: str) -> Name:
        """Normalize a map, for products."""
        g = self.g
        with g.name_scope("norm"):
            mean, factor, _ = self._moments(self._stream_to_float32(t))
            n = g.op("Mul", self._normalize(t, mean, factor), self._per_channel(weights[f"{name}.weight"]))
            return self._from_float32(g.op("Add", n, self._per_channel(weights[f"{name}.bias"])))

    def _feed_forward_maps(self, t: Name, weights: Weights) -> Name:
        """fc2(depthwise(GELU(fc1(norm(t)))))."""
        g, hidden = self.g, self.config.ffn_dim
        fc1 = weights["ffn.fc1.weight"]
        if self.target.stream_dtype == self.target.compute_dtype:
            with g.name_scope("norm"):
                _, factor, _ = self._moments(self._stream_to_float32(t))
            # The norm's subtraction of the mean is folded into the weights: each row minus its mean.
            scaled = _subtract_row_means(fc1 * weights["n2.weight"])
            x = g.op("Mul", self._to_float32(g.conv(t, scaled[:, :, None, None])), factor)
            x = g.op("Add", x, self._per_channel(fc1 @ weights["n2.bias"]))
        else:  # tokens may exceed the range of half precision
            x = self._to_float32(g.conv(self._norm_maps(t, weights, "n2"), fc1[:, :, None, None]))
        wide = self._from_float32(g.op("Gelu", x))
        mixed = g.conv(wide, weights["ffn.smix.weight"], groups=hidden)
        return g.conv(mixed, weights["ffn.fc2.weight"][:, :, None, None])

    def _depthwise_gelu_map(self, n: Name, weights: Weights) -> Name:
        """GELU of a depthwise convolution of a normalized map."""
        with self.g.name_scope("local"):
            return self.g.op("Gelu", self.g.conv(n, weights["conv.0.weight"], groups=self.config.embed_dim))

    # Blocks: attention and the parallel convolution, added to t

    def _spatial(self, t: Name, window: tuple[int, int], weights: Weights) -> Name:
        """t + attention · gate(local) + local."""
        g = self.g
        attention = self._windows(t, window, weights)
        with g.name_scope("norm"):
            n = self._norm(self._channels_last(t), weights, "n1")
        local = self._depthwise_gelu_map(g.transpose(n, 0, 3, 1, 2), weights)
        gate = self._from_float32(self._pool_gate(local, weights.below("inter.cg")))
        return g.op("Add", t, self._to_stream(g.op("Add", g.op("Mul", attention, gate), local)))

    def _pool_gate(self, local: Name, weights: Weights) -> Name:
        """sigmoid(W3 GELU(W1 mean(local))) (1, C, 1, 1) in float32, of a map."""
        g, (height, width) = self.g, self._size
        # A mean over all tokens, or over too many parts, would take two kernels, because the library adds partial sums
        # to memory that another kernel sets to zero. So the tokens are divided into parts, and the mean of the parts'
        # means is computed in the same sum as the product with W1.
        tokens, channels = height * width, self.config.embed_dim
        parts = max(p for p in range(1, MAX_SUMMED // channels + 1) if tokens % p == 0)
        means = g.reshape(self._to_float32(self._channels_last(local)), parts, tokens // parts, channels)
        means = g.reshape(g.op("ReduceMean", means, g.constant([1], np.int64), keepdims=1), 1, parts, -1)  # (1, P, C)
        first = g.constant(weights["1.weight"][:, :, 0].transpose(0, 2, 1) / parts, FLOAT32)  # (O, 1, C)
        hidden = g.op("ReduceSum", g.op("Mul", means, first), g.constant([1, 2], np.int64), keepdims=0)
        hidden = g.reshape(g.op("Gelu", hidden), 1, -1)
        logits = g.op("Mul", hidden, g.constant(weights["3.weight"][:, :, 0, 0], FLOAT32))
        logits = g.op("ReduceSum", logits, g.constant([1], np.int64), keepdims=0)
        return g.reshape(g.op("Sigmoid", logits), 1, -1, 1, 1)

    def _windows(self, t: Name, window: tuple[int, int], weights: Weights) -> Name:
        """Norm, window attention with a relative position bias, and output projection."""
        g, attention, c, (wh, ww) = self.g, self.attention, self.config.embed_dim, window
        heads, depth = attention.heads, attention.padded_depth
        height, width = self._size
        rows, cols, positions = -(-height // wh), -(-width // ww), wh * ww
        below, right = rows * wh - height, cols * ww - width  # zero padding, as in `Attention.windows`
        x = self._channels_last(t)
        if below or right:
            x = g.op("Pad", x, g.shape_tensor(0, 0, 0, 0, 0, below, right, 0))
        # (1, H, W, C) -> (rows, wh, cols, ww, C) -> (wh, ww, rows, cols, C) -> (positions, windows, C)
        x = g.transpose(g.reshape(x, rows, wh, cols, ww, c), 1, 3, 0, 2, 4)
        x = g.reshape(x, positions, rows * cols, c)
        with g.name_scope("norm"):
            x = self._norm(x, weights, "n1")
            if below or right:
                inside = np.pad(np.ones((height, width)), ((0, below), (0, right))).reshape(rows, wh, cols, ww)
                x = g.op("Mul", x, g.constant(inside.transpose(1, 3, 0, 2).reshape(positions, rows * cols, 1)))
        wq, wk, wv = np.split(weights["attn.qkv.weight"], 3)
        q, k, v = (
            g.reshape(g.matmul(x, attention.padded_heads(w)), positions, rows * cols, heads, depth)
            for w in (wq * attention.depth**-0.5, wk, wv)
        )
        # (windows, h, positions, positions)
        scores = g.op("MatMul", g.transpose(q, 1, 2, 0, 3), g.transpose(k, 1, 2, 3, 0))
        bias = g.constant(weights["attn." + self.config.windows_bias][None], FLOAT32)
        probs = self._from_float32(g.op("Softmax", g.op("Add", self._to_float32(scores), bias), axis=-1))
        out = g.op("MatMul", probs, g.transpose(v, 1, 2, 0, 3))
        # (windows, h, positions, d) -> (positions, windows, h, d) -> (positions, windows, h·d)
        out = g.reshape(g.transpose(out, 2, 0, 1, 3), positions, rows * cols, heads * depth)
        projection = attention.padded_heads(weights["attn.proj.weight"].T).T
        out = g.op("Add", g.matmul(out, projection), g.constant(weights["attn.proj.bias"]))
        out = g.transpose(g.reshape(out, wh, ww, rows, cols, c), 2, 0, 3, 1, 4)
        out = g.reshape(out, 1, rows * wh, cols * ww, c)
        if below or right:
            out = g.crop(out, 1, height, width)
        return g.transpose(out, 0, 3, 1, 2)

    def _channel(self, t: Name, weights: Weights) -> Name:
        """t + attention + local · sigmoid(w · attention), with attention as in `Attention.channels`."""
        g, c = self.g, self.config.embed_dim
        n = self._norm_maps(t, weights, "n1")
        local = self._depthwise_gelu_map(n, weights)
        mean = g.op("ReduceMean", self._to_float32(n), g.constant([2, 3], np.int64), keepdims=1)  # (1, C, 1, 1)
        centered = self._to_tokens(g.op("Sub", n, self._from_float32(mean)), c)
        bound = 2 * norm_bound(weights["n1.weight"], weights["n1.bias"], c)
        matrix = self.attention.channel_matrix(centered, g.reshape(mean, 1, c), weights.below("attn"), bound)
        kernel, bias = g.reshape(self._from_float32(matrix), c, c, 1, 1), g.constant(weights["attn.proj.bias"])
        attention = g.op("Conv", n, kernel, bias, kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4, group=1)
        by_channel = g.op("Mul", attention, g.constant(weights["inter.sg.0.weight"]))
        total = g.op("ReduceSum", self._to_float32(by_channel), g.constant([1], np.int64), keepdims=1)
        gate = self._from_float32(g.op("Sigmoid", total))
        return g.op("Add", t, self._to_stream(g.op("Add", attention, g.op("Mul", local, gate))))

    def _dictionary(self, t: Name, weights: Weights) -> Name:
        """t + dictionary attention: see `Attention.dictionary`."""
        g, attention, (height, width) = self.g, self.attention, self._size
        scale, shift = (weights[f"n1.{name}"].astype(np.float64) for name in ("weight", "bias"))
        with g.name_scope("norm"):
            mean, factor, centered = self._moments(self._stream_to_float32(t))
            again, refactor = self._second_moments(centered, factor, scale, shift)
            # n, and n normalized once more without weights: x = ((n - shift) + (shift - again)) · refactor
            n = g.op("Mul", self._normalize(t, mean, factor), self._per_channel(scale))
            n = self._from_float32(g.op("Add", n, self._per_channel(shift)))
            x = g.op("Mul", self._normalize(t, mean, g.op("Mul", factor, refactor), 0.5), self._per_channel(scale))
            offset = g.op("Mul", g.op("Sub", self._per_channel(shift), again), refactor)
            x = self._from_float32(g.op("Add", x, offset))
        keys, values = self._refine_dictionary(x, weights.below("attn"))

        wq = attention.padded_heads(weights["attn.e_q.weight"] * attention.depth**-0.5)
        q = g.matmul(g.reshape(self._channels_last(n), 1, height * width, -1), wq)
        q = g.reshape(q, 1, height * width, attention.heads, attention.padded_depth)
        out = g.op("Attention", g.transpose(q, 0, 2, 1, 3), keys, values, scale=1.0)  # (1, h, N, padded)
        out = g.reshape(g.transpose(out, 0, 2, 1, 3), 1, height * width, attention.heads * attention.padded_depth)
        wp = attention.padded_heads(weights["attn.proj.weight"].T).T
        out = g.op("Add", g.matmul(out, wp), g.constant(weights["attn.proj.bias"]))
        return g.op("Add", t, self._to_stream(self._to_maps(out, self.config.embed_dim)))

    def _refine_dictionary(self, x: Name, weights: Weights) -> tuple[Name, Name]:
        """Refine the dictionary by attention to the frame.

        Args:
            x: Map of tokens after the dictionary's norm, without the weights of this norm.
            weights: Tensors of the attention module.

        Returns:
            Keys and values of the refined dictionary, (1, h, M, padded) each.
        """
        g, c, attention = self.g, self.config.embed_dim, self.attention
        h, d, padded = attention.heads, attention.depth, attention.padded_depth
        dictionary = weights["dictionary"].astype(np.float64)
        scale, shift = (weights[f"r_norm.{name}"].astype(np.float64) for name in ("weight", "bias"))
        wk, wv = (w.reshape(h, d, c) for w in np.split(weights["r_kv.weight"].astype(np.float64), 2))
        # The scores of dictionary token m and head h are queries · x. The norm's shift adds the same constant to all
        # scores of a query, which the softmax cancels.
        queries = (dictionary @ weights["r_q.weight"].T * d**-0.5).reshape(-1, h, d)
        moved = dictionary + wv.reshape(-1, c) @ shift
        folded = np.einsum("mhd,hdc->mhc", queries, wk * scale).reshape(-1, c)  # (M·h, C)
        if np.linalg.norm(_subtract_row_means(folded), axis=1).max() > MAX_QUERY_NORM:
            height, width = self._size
            tokens = g.reshape(self._channels_last(x), 1, height * width, c)
            by_head = queries.transpose(1, 0, 2)[None]  # (1, h, M, d)
            read = attention.attend_to_frame(by_head, tokens, (wk * scale).reshape(-1, c), (wv * scale).reshape(-1, c))
            refined = g.op("Add", read, g.constant(moved[None]))
        else:
            found = self._attend_to_frame(x, folded)  # (M·h, C): softmax(queries · x) x
            # The value weights of all heads as one product.
            dense = np.zeros((h, d, h, c))
            for head in range(h):
                dense[head, :, head] = wv[head] * scale
            refined = g.matmul(g.reshape(found, len(dictionary), h * c), dense.reshape(c, h * c))
            refined = g.op("Add", refined, g.constant(moved))
        refined = g.reshape(refined, 1, len(dictionary), c)
        wk, wv = (attention.padded_heads(w) for w in np.split(weights["e_kv.weight"], 2))
        keys, values = (g.reshape(g.matmul(refined, w), 1, len(dictionary), h, padded) for w in (wk, wv))
        return g.transpose(keys, 0, 2, 1, 3), g.transpose(values, 0, 2, 1, 3)

    def _attend_to_frame(self, x: Name, queries: Array) -> Name:
        """Compute softmax(queries · x) x over all tokens, for queries (Q, C) and a map x -> (Q, C).

        Attention is computed in chunks. The weight of a chunk is the sum Z of the exponentials of its scores, which
        `Attention` does not return. So some tokens of a chunk are samples, marked by a channel that is added to the
        values. In that channel, attention returns the samples' share of Z. The samples' own sum of exponentials is
        computed here in float32, and Z is this sum divided by the share. If one score exceeds the sampled scores by so
        much that their share underflows in half precision, Z is taken to be the exponential of that score.
        """
        g, c, compute = self.g, self.config.embed_dim, self.target.compute_dtype
        height, width = self._size
        length = self.attention.chunk(2 * MAX_CHUNK_TOKENS) or height * width
        chunks = height * width // length
        samples = max(k for k in range(1, MAX_SAMPLES + 1) if length % k == 0)
        tokens = g.reshape(self._channels_last(x), chunks, length, c)
        with np.errstate(over="ignore"):  # `Writer.constant` raises OverflowError
            queries = queries.astype(compute).astype(np.float64)

        if not self._marks:  # the same in all blocks
            marks = np.zeros((chunks, length, EXTRA_CHANNELS))
            marks[:, :: length // samples, 0] = SAMPLE_MARK
            marks[..., 1] = 1  # sums the weights of chunks
            self._marks = g.constant(marks)
        extended = g.reshape(g.op("Concat", tokens, self._marks, axis=2), chunks, 1, length, c + EXTRA_CHANNELS)
        query = g.constant(np.pad(queries, ((0, 0), (0, EXTRA_CHANNELS)))[None, None])
        query = g.op("Expand", query, g.shape_tensor(chunks, 1, len(queries), c + EXTRA_CHANNELS))
        out = g.op("Attention", query, extended, extended, scale=1.0)
        out = g.reshape(out, chunks, len(queries), c + EXTRA_CHANNELS)

        sampled = g.slice(g.reshape(extended, chunks, samples, -1, c + EXTRA_CHANNELS), 2, 0, 1)
        sampled = self._to_float32(g.reshape(sampled, chunks * samples, c + EXTRA_CHANNELS))
        scores = g.op("MatMul", sampled, g.constant(np.pad(queries.T, ((0, EXTRA_CHANNELS), (0, 0))), FLOAT32))
        scores = g.reshape(scores, chunks, samples, len(queries))
        positions, first = g.constant([1], np.int64), g.constant([0], np.int64)
        top = g.op("ReduceMax", scores, positions, keepdims=1)  # (chunks, 1, Q)
        sums = g.op("ReduceSum", g.op("Exp", g.op("Sub", scores, top)), positions, keepdims=1)
        logarithm = g.op("Add", g.op("Log", sums), top)
        share = g.op("Max", self._to_float32(g.slice(out, 2, c, c + 1)), g.constant(1e-4, FLOAT32))
        # log Z - log SAMPLE_MARK, from the samples
        exact = g.op("Sub", g.reshape(logarithm, chunks, len(queries), 1), g.op("Log", share))
        # The mean score, queries · result, is at most log Z, and equals log Z if a single key has all the weight. It is
        # computed from -result, so that it shares no float32 values with the sum over chunks below.
        padded = g.constant(-np.pad(queries, ((0, 0), (0, EXTRA_CHANNELS)))[None], FLOAT32)
        negative = self._to_float32(g.op("Mul", out, g.constant(-1)))
        sharp = g.op("ReduceSum", g.op("Mul", negative, padded), g.constant([2], np.int64), keepdims=1)
        estimate = g.op("Max", exact, g.op("Sub", sharp, g.constant(math.log(SAMPLE_MARK), FLOAT32)))
        reference = g.slice(estimate, 0, 0, 1)
        weight = g.op("Exp", g.op("Min", g.op("Sub", estimate, reference), g.constant(80, FLOAT32)))
        total = g.op(
            "ReduceSum", g.op("Mul", self._to_float32(out), weight), first, keepdims=0
        )  # (Q, C + EXTRA_CHANNELS)
        return self._from_float32(g.op("Div", g.slice(total, 1, 0, c), g.slice(total, 1, c + 1, c + 2)))


def _subtract_row_means(weight: Array) -> Array:
    """Subtract the mean of each row from a matrix (O, I)."""
    centered: Array = weight - weight.mean(1, keepdims=True)
    return centered
