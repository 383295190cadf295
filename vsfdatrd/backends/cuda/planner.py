"""Plan how the CUDA kernels compute an FDAT-RD: a list of launches, and a place in memory for every buffer.

A plan depends on the configuration, the parts of the network that are active, and the size of the frame; not on the
GPU, nor on the weights otherwise. The kernels are described in `vsfdatrd.kernels`; here are their order, their
arguments and their grids. Kernels that write tokens also write the mean and the reciprocal standard deviation of each,
so that no normalization is a pass over memory of its own.

N is the number of tokens, C that of their channels, F = `FFN` · C that of the hidden channels in a part of a
feed-forward network, h the number of heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, Kind, blocks_with_windows
from vsfdatrd.backends.cuda.arena import Span, place
from vsfdatrd.backends.cuda.packing import HEAD, Types
from vsfdatrd.backends.cuda.plan import (
    FFN,
    TAIL_SCALE,
    TAPS,
    ActiveParts,
    Constant,
    Frame,
    Kernels,
    Launch,
    Plan,
    Region,
)

PLACES = math.prod(WINDOW)
"""Tokens of a window."""
PARTS = 192
"""About as many partial sums are computed of a large frame, so that every multiprocessor of a GPU has some."""

_FLOAT = np.dtype(np.float32)


def make_plan(
    config: FdatRdConfig, active: ActiveParts, kernels: Kernels, height: int, width: int, types: Types
) -> Plan:
    """Plan a network.

    Args:
        config: The network, which must not be `unsuitable`.
        active: Its active parts.
        kernels: Compile-time constants of the kernels.
        height: Height of the padded frame in pixels, a multiple of `config.multiple`.
        width: Width of the padded frame in pixels, a multiple of `config.multiple`.
        types: Types of the buffers.

    Returns:
        The plan.
    """
    planner = _Planner(config, active, kernels, height // config.unshuffle, width // config.unshuffle, types)
    planner.network()
    return planner.finish()


class _Buffer:
    """A buffer without a place yet."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self.first = self.last = -1  # numbers of launches

    def used(self, step: int) -> None:
        """Note that a launch reads or writes the buffer."""
        self.first, self.last = (step if self.first < 0 else self.first), step

    @property
    def span(self) -> Span:
        return Span(math.prod(self.shape) * self.dtype.itemsize, self.first, self.last)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens and their statistics."""

    values: _Buffer
    stats: _Buffer


type _Argument = _Buffer | Frame | str | int
"""What a method of `_Planner` passes to a kernel; a text is the name of a constant."""


class _Planner:
    """Collects launches. Methods take and return buffers, in the order of the network."""

    def __init__(
        self, config: FdatRdConfig, active: ActiveParts, kernels: Kernels, height: int, width: int, types: Types
    ) -> None:
        self._config, self._active, self._kernels, self._types = config, active, kernels, types
        self._height, self._width, self._count = height, width, height * width
        self._launches: list[tuple[str, str, tuple[int, int, int], tuple[_Argument, ...], int]] = []

    def finish(self) -> Plan:
        """Give every buffer its place."""
        buffers: dict[_Buffer, None] = {}  # keeps their order
        for step, (_, _, _, arguments, _) in enumerate(self._launches):
            for argument in arguments:
                if isinstance(argument, _Buffer):
                    argument.used(step)
                    buffers[argument] = None
        offsets, size = place([buffer.span for buffer in buffers])
        regions = {
            buffer: Region(offset, buffer.shape, buffer.dtype) for buffer, offset in zip(buffers, offsets, strict=True)
        }

        def resolved(argument: _Argument, kernel: str, module: str, part: int) -> Region | Constant | Frame | int:
            match argument:
                case _Buffer():
                    return regions[argument]
                case str():
                    return Constant(module, kernel, argument, part)
                case _:
                    return argument

        launches = (
            Launch(kernel, module, grid, tuple(resolved(each, kernel, module, part) for each in arguments), part)
            for kernel, module, grid, arguments, part in self._launches
        )
        return Plan(tuple(launches), size)

    # Building blocks

    def _launch(self, kernel: str, module: str, grid: tuple[int, ...], *arguments: _Argument, part: int = 0) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._launches.append((kernel, module, (x, y, z), arguments, part))

    def _constant(self, kernel: str, name: str) -> int:
        return self._kernels[kernel][name]

    def _row_blocks(self, kernel: str) -> int:
        """Number of programs of a kernel that processes ROWS tokens each."""
        return -(-self._count // self._constant(kernel, "ROWS"))

    def _parts(self, kernel: str, beside: int) -> tuple[int, int]:
        """Divide the tokens into parts for partial sums.

        Args:
            kernel: A kernel that processes `tiles` times ROWS tokens in a program.
            beside: Number of programs for each part.

        Returns:
            `tiles` and the number of parts.
        """
        blocks = self._row_blocks(kernel)
        tiles = -(-blocks // max(1, PARTS // beside))
        return tiles, -(-blocks // tiles)

    def _floats(self, *shape: int) -> _Buffer:
        return _Buffer(_FLOAT, shape)

    def _values(self, *shape: int) -> _Buffer:
        return _Buffer(self._types.tokens, shape)

    def _tokens(self) -> _Tokens:
        return _Tokens(self._values(self._count, self._config.embed_dim), self._floats(self._count, 2))

    # The network

    def network(self) -> None:
        """Plan everything from the padded frame to the padded output."""
        config = self._config
        shallow = self._floats(self._count, config.embed_dim)
        deep = self._first(shallow)
        for g, blocks in enumerate(blocks_with_windows(config.groups, config.windows)):
            deep = self._group(deep, g, blocks)
        maps = _Buffer(self._types.tail, (self._count, config.embed_dim))
        grid = (self._row_blocks("convolve_after"),)
        size = self._height, self._width
        self._launch("convolve_after", "conv_after", grid, deep.values, "weight", shallow, maps, *size)
        self._tail(maps)

    def _first(self, shallow: _Buffer) -> _Tokens:
        config, out = self._config, self._tokens()
        u, depth = config.unshuffle, self._constant("first_convolution", "DEPTH")
        terms = config.in_channels * 9 * u * u
        self._launch(
            "first_convolution",
            "conv_first" if u == 1 else "conv_first.1",
            (self._row_blocks("first_convolution"),),
            Frame(is_output=False),
            "weight",
            "bias",
            shallow,
            out.values,
            out.stats,
            self._height,
            self._width,
            u,
            terms,
            -(-terms // depth) * depth,
        )
        return out

    def _group(self, deep: _Tokens, group: int, blocks: list[tuple[Kind, tuple[int, int]]]) -> _Tokens:
        t = deep
        for b, (kind, window) in enumerate(blocks):
            module = f"groups.{group}.blocks.{b}"
            if (group, b) in self._active.attention:
                match kind:
                    case "spatial":
                        t = self._spatial(t, module, window)
                    case "channel":
                        t = self._channel_attention(t, module)
                    case _:
                        t = self._dictionary(t, module)
            if (group, b) in self._active.ffn:
                t = self._feed_forward(t, module)
        out = self._tokens()
        arguments = (t.values, "weight", deep.values, out.values, out.stats, self._height, self._width)
        self._launch("convolve_group", f"groups.{group}.conv", (self._row_blocks("convolve_group"),), *arguments)
        return out

    def _tail(self, maps: _Buffer) -> None:
        columns, module = self._constant("spread", "COLUMNS"), "upsampler"
        middle = -(-self._active.middle // columns) * columns
        taps = self._floats(4 * self._count, TAPS)
        size = self._height, self._width
        grid = (self._row_blocks("spread"), 4)
        self._launch("spread", module, grid, maps, "weight", "bias", "last", taps, *size, middle)
        pixels = TAIL_SCALE**2 * self._count
        grid = (-(-pixels // self._constant("gather", "PIXELS")), 1)
        out = Frame(is_output=True)
        self._launch("gather", module, grid, taps, "bias", "weight", "last_bias", out, *size)

    # Blocks: each adds something to the tokens t

    def _spatial(self, t: _Tokens, module: str, window: tuple[int, int]) -> _Tokens:
        c, size = self._config.embed_dim, (self._height, self._width)
        qkv, local = self._values(self._count, 3 * c), self._values(self._count, c)
        grid: tuple[int, ...] = (self._row_blocks("norm_qkv"),)
        self._launch("norm_qkv", module, grid, t.values, t.stats, "weight", "bias", qkv, *size, *window)
        gate = self._pooled_gate(t, local, module)
        out = self._tokens()
        grid = (-(-PLACES // self._constant("attend_windows", "ROWS")), self._count // PLACES)
        self._launch(
            "attend_windows",
            module,
            grid,
            qkv,
            "bias",
            "projection",
            "projection_bias",
            gate,
            local,
            t.values,
            out.values,
            out.stats,
            *size,
            *window,
        )
        return out

    def _pooled_gate(self, t: _Tokens, local: _Buffer, module: str) -> _Buffer:
        """Write the parallel convolution to `local`; return the gate (C) computed from its mean."""
        c, hidden = self._config.embed_dim, self._config.gate_dim
        blocks = c // self._constant("mix_local", "BLOCK")
        tiles, parts = self._parts("mix_local", blocks)
        sums, gate = self._floats(parts, c), self._floats(c)
        arguments = (t.values, t.stats, "weight", "shift", local, sums, self._height, self._width, tiles)
        self._launch("mix_local", module, (parts, blocks), *arguments)
        self._launch("gate_pool", module, (1,), sums, "narrow", "wide", gate, self._count, parts, hidden)
        return gate

    def _channel_attention(self, t: _Tokens, module: str) -> _Tokens:
        c, count = self._config.embed_dim, self._count
        blocks = c // self._constant("second_moment", "BLOCK")
        tiles, parts = self._parts("second_moment", blocks)
        moments, sums, references = self._floats(parts, c, c), self._floats(parts, c), self._floats(parts, c)
        grid: tuple[int, ...] = (parts, blocks)
        self._launch("second_moment", module, grid, t.values, t.stats, moments, sums, references, count, tiles)
        covariance, mean = self._floats(c, c), self._floats(c)
        side = c // self._constant("merge_moments", "SIDE")
        length = tiles * self._constant("second_moment", "ROWS")
        arguments = (moments, sums, references, covariance, mean, count, parts, length)
        self._launch("merge_moments", module, (side, side), *arguments)
        mixed, mixed_shift = self._floats(c, c), self._floats(c)
        weights = ("weight", "shift", "temperature")
        grid = (self._config.heads,)
        self._launch("mix_channels", module, grid, covariance, mean, *weights, mixed, mixed_shift, count)
        matrix, bias = self._values(c, c), self._floats(c)
        side = c // self._constant("channel_matrix", "SIDE")
        projection = ("projection", "projection_bias")
        self._launch("channel_matrix", module, (side, side), mixed, mixed_shift, *projection, matrix, bias)
        out = self._tokens()
        self._launch(
            "apply_channel",
            module,
            (self._row_blocks("apply_channel"),),
            t.values,
            t.stats,
            matrix,
            bias,
            "weight",
            "shift",
            "gate",
            out.values,
            out.stats,
            self._height,
            self._width,
        )
        return out

    def _dictionary(self, t: _Tokens, module: str) -> _Tokens:
        c, h, words, count = self._config.embed_dim, self._config.heads, self._config.dict_tokens, self._count
        blocks = -(-words // self._constant("read_frame", "WORDS"))
        tiles, parts = self._parts("read_frame", h * blocks)
        found, top, total = (
            self._floats(parts, h, words, HEAD),
            self._floats(parts, h, words),
            self._floats(parts, h, words),
        )
        weights = ("scale", "shift", "queries", "keys", "values")
        grid: tuple[int, ...] = (parts, h, blocks)
        arguments: tuple[_Argument, ...] = (t.values, t.stats, *weights, found, top, total, count, tiles, words)
        self._launch("read_frame", module, grid, *arguments)
        refined = self._floats(words, c)
        self._launch("join_words", module, (words, h), found, top, total, "base", refined, parts, words)
        keys, values = self._values(words, c), self._values(words, c)
        grid = (
            -(-words // self._constant("refine_words", "WORDS")),
            2 * c // self._constant("refine_words", "COLUMNS"),
        )
        self._launch("refine_words", module, grid, refined, "weight", keys, values, words)
        out = self._tokens()
        self._launch(
            "consult_words",
            module,
            (self._row_blocks("consult_words"),),
            t.values,
            t.stats,
            "query",
            "query_bias",
            keys,
            values,
            "projection",
            "projection_bias",
            out.values,
            out.stats,
            count,
            words,
        )
        return out

    def _feed_forward(self, t: _Tokens, module: str) -> _Tokens:
        """All parts read the same normalized tokens. Each adds to what the one before it has written."""
        width, out = FFN * self._config.embed_dim, t
        for part in range(-(-self._config.ffn_dim // width)):
            hidden, before, out = self._values(self._count, width), out, self._tokens()
            grid = (self._row_blocks("feed_in"),)
            self._launch("feed_in", module, grid, t.values, t.stats, "weight", "bias", hidden, self._count, part=part)
            grid = (self._row_blocks("feed_out"),)
            arguments = (hidden, "mix", "weight", before.values, out.values, out.stats, self._height, self._width)
            self._launch("feed_out", module, grid, *arguments, part=part)
        return out
