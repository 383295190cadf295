"""Blocks of FDAT-RD with the kernels of `_native/cpu_*.c`.

Feature maps are (N, C), row-major; h is the number of heads, and M the number of dictionary tokens. Small matrices that
depend on the complete frame are computed in float64 with NumPy.
"""

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, Kind
from vsfdatrd.backends.native.kernels import (
    KEY_STRIDE,
    MAX_QUANTIZED,
    TOKENS_PER_BLOCK,
    Floats,
    KernelArrays,
    KeyValue,
    c_function,
)
from vsfdatrd.backends.native.threads import RowThreads, Scratch
from vsfdatrd.graph.weights import Weights as Tensors

HEAD_DIM = 32
"""Channels of a head; the kernels support no other number."""
WINDOW_TOKENS = math.prod(WINDOW)
LOG2E = math.log2(math.e)
PADDING_SCORE = -1e30
"""Score of padded keys, which gives them a weight of zero."""

type Doubles = NDArray[np.float64]


class Block:
    """Base class of the transformer blocks."""

    kind: ClassVar[Kind]
    depthwise: Floats

    def __init__(self, config: FdatRdConfig, weights: Tensors, arrays: KernelArrays, window: tuple[int, int]) -> None:
        """Pack the block's weights.

        Args:
            config: The network.
            weights: Tensors of this block.
            arrays: Owner of the packed arrays.
            window: Height and width of a window in tokens.
        """
        self.arrays, self.config, self.window = arrays, config, window
        self.has_attention = zero_branches.attention_active(weights, self.kind)
        self.has_ffn = zero_branches.ffn_active(weights)
        if self.has_attention:
            self.n1 = arrays.norm(weights["n1.weight"], weights["n1.bias"])
            self.pack_weights(weights, weights.below("attn"))
        if self.has_ffn:
            self.n2 = arrays.norm(weights["n2.weight"], weights["n2.bias"])
            ffn = weights.below("ffn")
            self.fc1, self.fc2 = arrays.matrix(ffn["fc1.weight"]), arrays.matrix(ffn["fc2.weight"])
            self.smix = arrays.floats(_flatten_depthwise(ffn["smix.weight"]))

    def run(self, threads: RowThreads, source: Floats, out: Floats, buffer: Floats) -> None:
        """Apply the block.

        Args:
            threads: The threads.
            source: Input, (N, C).
            out: Output, (N, C); may be the input.
            buffer: Scratch memory, (N, C).
        """
        if self.has_attention:
            self.attend(threads, source, out, buffer)
        elif source is not out:
            out[:] = source
        if self.has_ffn:
            self.feed_forward(threads, out)

    def pack_weights(self, weights: Tensors, attn: Tensors) -> None:
        """Pack the weights that are specific to a kind of block.

        Args:
            weights: Tensors of the block.
            attn: Tensors of its attention.
        """
        raise NotImplementedError

    def attend(self, threads: RowThreads, source: Floats, out: Floats, buffer: Floats) -> None:
        """Compute out = source + attention(source) + the output of the parallel convolution, if any.

        Args:
            threads: The threads.
            source: Input, (N, C).
            out: Output, (N, C); may be the input.
            buffer: Scratch memory, (N, C).
        """
        raise NotImplementedError

    def feed_forward(self, threads: RowThreads, tokens: Floats) -> None:
        """Compute tokens += FFN(tokens), in place.

        Args:
            threads: The threads.
            tokens: Feature map, (N, C).
        """
        run = c_function("feed_forward")
        rows = tokens.reshape(threads.height, -1)
        # Copy the rows next to each thread's range, because another thread overwrites them.
        edges = {
            y: rows[y].copy()
            for part in threads.ranges(threads.height)
            for y in (part[0] - 1, part[1])
            if 0 <= y < threads.height
        }
        threads.run_rows(
            lambda a, b, s: run(
                tokens, edges.get(a - 1), edges.get(b), *threads.size, a, b, self.n2, self.fc1, self.smix, self.fc2, s
            )
        )

    def depthwise_gelu(
        self, threads: RowThreads, tokens: Floats, out: Floats, center: Floats | None = None
    ) -> tuple[Doubles, ...]:
        """Compute out = GELU(depthwise(n1(tokens))).

        Args:
            threads: The threads.
            tokens: Feature map, (N, C).
            out: Output, (N, C); overwritten.
            center: Vector (C) to subtract from n1(tokens) before its moments are summed; None to skip the moments.

        Returns:
            Sums of out over the tokens (C); with `center` also the second moments (C, C) and sums (C) of n1(tokens) -
            center.
        """
        run, channels = c_function("local"), self.config.embed_dim

        def work(first: int, last: int, s: Scratch) -> tuple[Doubles, ...]:
            sums = np.zeros(channels)
            more = () if center is None else (np.zeros((channels, channels)), np.zeros(channels))
            moments = center, *(more or (None, None))
            run(tokens, out, *threads.size, channels, first, last, self.n1, self.depthwise, sums, *moments, s)
            return sums, *more

        return tuple(np.sum(parts, axis=0) for parts in zip(*threads.run_rows(work), strict=True))


class Spatial(Block):
    """Window attention, gated by the mean of a convolution over the complete frame."""

    kind = "spatial"

    def pack_weights(self, weights: Tensors, attn: Tensors) -> None:
        """See `Block.pack_weights`."""
        arrays, heads = self.arrays, self.config.heads
        self.depthwise = arrays.floats(_flatten_depthwise(weights["conv.0.weight"]))
        q, k, v = attn["qkv.weight"].reshape(3, heads, HEAD_DIM, -1)
        self.qkv = arrays.matrices(
            [np.concatenate([q[i] * (LOG2E / math.sqrt(HEAD_DIM)), k[i], v[i]]) for i in range(heads)]
        )
        position_bias = np.full((heads, WINDOW_TOKENS, KEY_STRIDE), PADDING_SCORE, np.float32)
        position_bias[:, :, :WINDOW_TOKENS] = attn["rel_pos_bias"] * LOG2E
        self.position_bias = arrays.floats(position_bias)
        self.proj, self.bias = arrays.matrix(attn["proj.weight"]), arrays.floats(attn["proj.bias"])
        self.gate_in, self.gate_out = (weights[f"inter.cg.{i}.weight"][:, :, 0, 0] for i in (1, 3))

    def attend(self, threads: RowThreads, source: Floats, out: Floats, buffer: Floats) -> None:
        """See `Block.attend`."""
        (sums,) = self.depthwise_gelu(threads, source, buffer)
        pooled = self.gate_in @ (sums / threads.count)
        pooled *= 0.5 * (1 + np.array([math.erf(x / math.sqrt(2)) for x in pooled]))
        gate = np.ascontiguousarray(1 / (1 + np.exp(-(self.gate_out @ pooled))), np.float32)
        run, size = c_function("windows"), (threads.width, *self.window)
        weights = (self.n1, self.qkv, self.config.heads, self.position_bias, self.proj, self.bias)
        threads.run_ranges(
            threads.count // WINDOW_TOKENS, lambda a, b, s: run(source, out, buffer, *size, a, b, *weights, gate, s)
        )


class Channel(Block):
    """Channel attention over the complete frame, and a convolution gated by it."""

    kind = "channel"

    def pack_weights(self, weights: Tensors, attn: Tensors) -> None:
        """See `Block.pack_weights`."""
        arrays, heads = self.arrays, self.config.heads
        self.depthwise = arrays.floats(_flatten_depthwise(weights["conv.0.weight"]))
        self.scale, self.shift = weights["n1.weight"], weights["n1.bias"]
        self.q, self.k, self.v = attn["qkv.weight"].reshape(3, heads, HEAD_DIM, -1)
        self.temp, self.proj = attn["temp"], attn["proj.weight"]
        self.bias = arrays.floats(attn["proj.bias"])
        self.gate = arrays.floats(weights["inter.sg.0.weight"][0, :, 0, 0])

    def attend(self, threads: RowThreads, source: Floats, out: Floats, buffer: Floats) -> None:
        """See `Block.attend`."""
        if source is not out:
            out[:] = source
        token = out[0].astype(np.float64)
        token = (token - token.mean()) / np.sqrt(token.var() + 1e-5) * self.scale + self.shift
        center = token.astype(np.float32)
        _, moments, sums = self.depthwise_gelu(threads, out, buffer, center)
        own = KernelArrays()
        matrix = own.matrix(self.fold_attention(moments, sums, center.astype(np.float64), threads.count))
        run, weights = c_function("channels"), (self.n1, matrix, self.bias, self.gate)
        threads.run_ranges(threads.count, lambda a, b, s: run(out, buffer, a, b, *weights, s), TOKENS_PER_BLOCK)

    def fold_attention(self, moments: Doubles, sums: Doubles, center: Doubles, count: int) -> Doubles:
        """Compute channel attention and its projections as one matrix.

        As in `graph.attention`, the matrix is computed from the covariance, and the contribution of the mean is added
        separately. This avoids cancellation if all tokens are nearly equal.

        Args:
            moments: Sum of the outer products of n - center over the tokens, (C, C); only its upper triangle is used.
            sums: Sum of n - center over the tokens, (C).
            center: A vector close to the mean of the normalized tokens n, (C).
            count: Number of tokens.

        Returns:
            The matrix, (C, C).
        """
        upper = np.triu(moments)
        offset = sums / count
        spread = (upper + np.triu(upper, 1).T) / count - np.outer(offset, offset)  # (C, C)
        mean = center + offset
        qs, ks = self.q @ spread, self.k @ spread  # (h, d, C)
        qm, km = self.q @ mean, self.k @ mean  # (h, d)
        floor = 1e-24 / count  # the norm itself is limited to 1e-12
        q_norm = np.sqrt(np.maximum((qs * self.q).sum(2) + qm**2, floor))
        k_norm = np.sqrt(np.maximum((ks * self.k).sum(2) + km**2, floor))
        products = qs @ self.k.transpose(0, 2, 1) + qm[:, :, None] * km[:, None]  # (h, d, d)
        logits = products / (q_norm[:, :, None] * k_norm[:, None]) * self.temp
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = (exponentials / exponentials.sum(-1, keepdims=True)) @ self.v  # (h, d, C)
        matrix: Doubles = self.proj @ mixed.reshape(len(self.proj), -1)
        return matrix


class Dictionary(Block):
    """Attention of tokens to a dictionary that was first refined by its own attention to the frame."""

    kind = "dictionary"

    def pack_weights(self, weights: Tensors, attn: Tensors) -> None:
        """See `Block.pack_weights`."""
        arrays, heads = self.arrays, self.config.heads
        self.dictionary = attn["dictionary"]
        self.inner = arrays.norm(attn["r_norm.weight"], attn["r_norm.bias"])
        k, v = attn["r_kv.weight"].reshape(2, heads, HEAD_DIM, -1)
        self.kv = arrays.matrices([np.concatenate([k[i], v[i]]) for i in range(heads)])
        factor = LOG2E / math.sqrt(HEAD_DIM)
        # The dictionary's queries depend on weights alone: (M, C) -> (h, M, d), padded to a multiple of 6
        queries = (self.dictionary @ attn["r_q.weight"].T * factor).reshape(-1, heads, HEAD_DIM).transpose(1, 0, 2)
        self.rows = -(-len(self.dictionary) // 6) * 6
        queries = np.pad(queries, ((0, 0), (0, self.rows - len(self.dictionary)), (0, 0)))
        query_scales = np.maximum(np.abs(queries).max(2), 1e-30) / MAX_QUANTIZED
        self.queries = arrays.keep_alive(np.ascontiguousarray(np.rint(queries / query_scales[:, :, None]), np.int16))
        self.query_scales = arrays.floats(query_scales)
        self.e_q = arrays.matrix(attn["e_q.weight"] * factor)
        self.e_k, self.e_v = np.split(attn["e_kv.weight"], 2)
        self.proj, self.bias = arrays.matrix(attn["proj.weight"]), arrays.floats(attn["proj.bias"])

    def attend(self, threads: RowThreads, source: Floats, out: Floats, buffer: Floats) -> None:
        """See `Block.attend`."""
        if source is not out:
            out[:] = source
        refined = self.dictionary + self.attend_to_frame(threads, out)
        heads, count = self.config.heads, len(self.dictionary)
        own = KernelArrays()
        keys, values = own.floats(refined @ self.e_k.T), own.floats(refined @ self.e_v.T)
        key_panels, value_panels = (own.keep_alive(np.empty((heads, count * HEAD_DIM), np.int16)) for _ in range(2))
        key_scale, value_scale = (own.keep_alive(np.empty((heads, n), np.float32)) for n in (count, HEAD_DIM))
        c_function("memorise")(keys, values, heads, count, key_panels, key_scale, value_panels, value_scale)
        arrays = (key_panels, key_scale, value_panels, value_scale)
        packed = (KeyValue * heads)(
            *(KeyValue(*(a[i].ctypes.data for a in arrays), count, count) for i in range(heads))
        )
        run, weights = c_function("look_up"), (self.n1, self.e_q, packed, heads, self.proj, self.bias)
        threads.run_ranges(threads.count, lambda a, b, s: run(out, a, b, *weights, s), TOKENS_PER_BLOCK)

    def attend_to_frame(self, threads: RowThreads, tokens: Floats) -> Doubles:
        """Compute the attention of the dictionary to the frame.

        Args:
            threads: The threads.
            tokens: Feature map, (N, C).

        Returns:
            Update of the dictionary, (M, C).
        """
        run, heads, rows = c_function("read"), self.config.heads, self.rows

        def work(first: int, last: int, s: Scratch) -> tuple[Floats, Floats, Floats]:
            result = np.empty((heads, rows, HEAD_DIM), np.float32)
            tops, sums = (np.empty((heads, rows), np.float32) for _ in range(2))
            queries = rows, self.queries, self.query_scales
            run(tokens, first, last, self.n1, self.inner, self.kv, heads, *queries, result, tops, sums, s)
            return result, tops, sums

        parts = threads.run_ranges(threads.count // WINDOW_TOKENS, work)
        result, tops, sums = (np.stack(a).astype(np.float64) for a in zip(*parts, strict=True))
        share = sums * np.exp2(tops - tops.max(0))  # (parts, h, rows), as in flash decoding (Dao et al. 2023)
        mean = (result * (share / share.sum(0))[..., None]).sum(0)
        # (h, rows, d) -> (M, h, d) -> (M, C)
        return mean[:, : len(self.dictionary)].transpose(1, 0, 2).reshape(len(self.dictionary), -1)


BLOCK_CLASSES: dict[Kind, type[Block]] = {block.kind: block for block in (Spatial, Channel, Dictionary)}


def _flatten_depthwise(weight: Doubles) -> Doubles:
    """Rearrange the weight of a depthwise convolution: (C, 1, 3, 3) -> (9, C)."""
    return weight.reshape(len(weight), 9).T
