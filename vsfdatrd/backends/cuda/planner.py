"""Plan how the CUDA kernels compute an FDAT-RD: a list of launches, and a place in memory for every buffer.

A plan depends on the configuration, the parts of the network that are active, and the size of the frame; not on the
GPU, nor on the weights otherwise. The kernels are described in `vsfdatrd.kernels`; here are their order, their
arguments and their grids. Kernels that write tokens also write the mean and the reciprocal standard deviation of each,
so that no normalization is a pass over memory of its own.

N is the number of tokens, C that of their channels, F = `FFN_EXPANSION` · C that of the hidden channels in a part of a
feed-forward network, h the number of heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, Kind, blocks_with_windows
from vsfdatrd.backends.cuda.arena import BufferLife, assign_offsets
from vsfdatrd.backends.cuda.packing import HEAD_DIM, StoredTypes
from vsfdatrd.backends.cuda.plan import (
    FFN_EXPANSION,
    TAIL_SCALE,
    TAPS_PER_PIXEL,
    ActiveParts,
    Constant,
    Frame,
    Kernels,
    Launch,
    Plan,
    Region,
)

WINDOW_TOKENS = math.prod(WINDOW)
"""Tokens of a window."""
PARTIAL_SUMS = 192
"""About as many partial sums are computed of a large frame, so that every multiprocessor of a GPU has some."""

_FLOAT = np.dtype(np.float32)


def make_plan(
    config: FdatRdConfig, active: ActiveParts, kernels: Kernels, height: int, width: int, types: StoredTypes
) -> Plan:
    """Plan a network.

    Args:
        config: The network, for which `plan.unsupported_config_reason` is None.
        active: Its active parts.
        kernels: Compile-time constants of the kernels.
        height: Height of the padded frame in pixels, a multiple of `config.multiple`.
        width: Width of the padded frame in pixels, a multiple of `config.multiple`.
        types: Types of the buffers.

    Returns:
        The plan.
    """
    planner = _Planner(config, active, kernels, height // config.unshuffle, width // config.unshuffle, types)
    planner.plan_network()
    return planner.finish()


class _Buffer:
    """A buffer without a place yet."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self.first = self.last = -1  # numbers of launches

    def mark_used(self, step: int) -> None:
        """Note that a launch reads or writes the buffer."""
        self.first, self.last = (step if self.first < 0 else self.first), step

    @property
    def span(self) -> BufferLife:
        return BufferLife(math.prod(self.shape) * self.dtype.itemsize, self.first, self.last)


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
        self, config: FdatRdConfig, active: ActiveParts, kernels: Kernels, height: int, width: int, types: StoredTypes
    ) -> None:
        self._config, self._active, self._kernels, self._types = config, active, kernels, types
        self._height, self._width, self._count = height, width, height * width
        self._launches: list[tuple[str, str, tuple[int, int, int], tuple[_Argument, ...], int]] = []

    def finish(self) -> Plan:
        """Assign every buffer its offset in the arena."""
        buffers: dict[_Buffer, None] = {}  # keeps their order
        for step, (_, _, _, arguments, _) in enumerate(self._launches):
            for argument in arguments:
                if isinstance(argument, _Buffer):
                    argument.mark_used(step)
                    buffers[argument] = None
        offsets, size = assign_offsets([buffer.span for buffer in buffers])
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

    def _add_launch(
        self, kernel: str, module: str, grid: tuple[int, ...], *arguments: _Argument, part: int = 0
    ) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._launches.append((kernel, module, (x, y, z), arguments, part))

    def _new_constant(self, kernel: str, name: str) -> int:
        return self._kernels[kernel][name]

    def _count_row_blocks(self, kernel: str) -> int:
        """Number of programs of a kernel that processes ROWS tokens each."""
        return -(-self._count // self._new_constant(kernel, "ROWS"))

    def _divide_tokens(self, kernel: str, beside: int) -> tuple[int, int]:
        """Divide the tokens into parts for partial sums.

        Args:
            kernel: A kernel that processes `tiles` times ROWS tokens in a program.
            beside: Number of programs for each part.

        Returns:
            `tiles` and the number of parts.
        """
        blocks = self._count_row_blocks(kernel)
        tiles = -(-blocks // max(1, PARTIAL_SUMS // beside))
        return tiles, -(-blocks // tiles)

    def _new_floats(self, *shape: int) -> _Buffer:
        return _Buffer(_FLOAT, shape)

    def _new_values(self, *shape: int) -> _Buffer:
        return _Buffer(self._types.tokens, shape)

    def _new_tokens(self) -> _Tokens:
        return _Tokens(self._new_values(self._count, self._config.embed_dim), self._new_floats(self._count, 2))

    # The network

    def plan_network(self) -> None:
        """Plan everything from the padded frame to the padded output."""
        config = self._config
        shallow = self._new_floats(self._count, config.embed_dim)
        deep = self._plan_first_convolution(shallow)
        for g, blocks in enumerate(blocks_with_windows(config.groups, config.windows)):
            deep = self._plan_group(deep, g, blocks)
        maps = _Buffer(self._types.tail, (self._count, config.embed_dim))
        grid = (self._count_row_blocks("convolve_after"),)
        size = self._height, self._width
        self._add_launch("convolve_after", "conv_after", grid, deep.values, "weight", shallow, maps, *size)
        self._plan_tail(maps)

    def _plan_first_convolution(self, shallow: _Buffer) -> _Tokens:
        config, out = self._config, self._new_tokens()
        u, depth = config.unshuffle, self._new_constant("first_convolution", "DEPTH")
        terms = config.in_channels * 9 * u * u
        self._add_launch(
            "first_convolution",
            "conv_first" if u == 1 else "conv_first.1",
            (self._count_row_blocks("first_convolution"),),
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

    def _plan_group(self, deep: _Tokens, group: int, blocks: list[tuple[Kind, tuple[int, int]]]) -> _Tokens:
        t = deep
        for b, (kind, window) in enumerate(blocks):
            module = f"groups.{group}.blocks.{b}"
            if (group, b) in self._active.attention:
                match kind:
                    case "spatial":
                        t = self._plan_spatial_block(t, module, window)
                    case "channel":
                        t = self._plan_channel_block(t, module)
                    case _:
                        t = self._plan_dictionary_block(t, module)
            if (group, b) in self._active.ffn:
                t = self._plan_feed_forward(t, module)
        out = self._new_tokens()
        arguments = (t.values, "weight", deep.values, out.values, out.stats, self._height, self._width)
        self._add_launch(
            "convolve_group", f"groups.{group}.conv", (self._count_row_blocks("convolve_group"),), *arguments
        )
        return out

    def _plan_tail(self, maps: _Buffer) -> None:
        columns, module = self._new_constant("spread", "COLUMNS"), "upsampler"
        middle = -(-self._active.middle // columns) * columns
        taps = self._new_floats(4 * self._count, TAPS_PER_PIXEL)
        size = self._height, self._width
        grid = (self._count_row_blocks("spread"), 4)
        self._add_launch("spread", module, grid, maps, "weight", "bias", "last", taps, *size, middle)
        pixels = TAIL_SCALE**2 * self._count
        grid = (-(-pixels // self._new_constant("gather", "PIXELS")), 1)
        out = Frame(is_output=True)
        self._add_launch("gather", module, grid, taps, "bias", "weight", "last_bias", out, *size)

    # Blocks: each adds something to the tokens t

    def _plan_spatial_block(self, t: _Tokens, module: str, window: tuple[int, int]) -> _Tokens:
        c, size = self._config.embed_dim, (self._height, self._width)
        qkv, local = self._new_values(self._count, 3 * c), self._new_values(self._count, c)
        grid: tuple[int, ...] = (self._count_row_blocks("norm_qkv"),)
        self._add_launch("norm_qkv", module, grid, t.values, t.stats, "weight", "bias", qkv, *size, *window)
        gate = self._plan_pooled_gate(t, local, module)
        out = self._new_tokens()
        grid = (-(-WINDOW_TOKENS // self._new_constant("attend_windows", "ROWS")), self._count // WINDOW_TOKENS)
        self._add_launch(
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

    def _plan_pooled_gate(self, t: _Tokens, local: _Buffer, module: str) -> _Buffer:
        """Write the parallel convolution to `local`; return the gate (C) computed from its mean."""
        c, hidden = self._config.embed_dim, self._config.gate_dim
        blocks = c // self._new_constant("mix_local", "BLOCK")
        tiles, parts = self._divide_tokens("mix_local", blocks)
        sums, gate = self._new_floats(parts, c), self._new_floats(c)
        arguments = (t.values, t.stats, "weight", "shift", local, sums, self._height, self._width, tiles)
        self._add_launch("mix_local", module, (parts, blocks), *arguments)
        self._add_launch("gate_pool", module, (1,), sums, "narrow", "wide", gate, self._count, parts, hidden)
        return gate

    def _plan_channel_block(self, t: _Tokens, module: str) -> _Tokens:
        c, count = self._config.embed_dim, self._count
        blocks = c // self._new_constant("second_moment", "BLOCK")
        tiles, parts = self._divide_tokens("second_moment", blocks)
        moments, sums, references = (
            self._new_floats(parts, c, c),
            self._new_floats(parts, c),
            self._new_floats(parts, c),
        )
        grid: tuple[int, ...] = (parts, blocks)
        self._add_launch("second_moment", module, grid, t.values, t.stats, moments, sums, references, count, tiles)
        covariance, mean = self._new_floats(c, c), self._new_floats(c)
        side = c // self._new_constant("merge_moments", "SIDE")
        length = tiles * self._new_constant("second_moment", "ROWS")
        arguments = (moments, sums, references, covariance, mean, count, parts, length)
        self._add_launch("merge_moments", module, (side, side), *arguments)
        mixed, mixed_shift = self._new_floats(c, c), self._new_floats(c)
        weights = ("weight", "shift", "temperature")
        grid = (self._config.heads,)
        self._add_launch("mix_channels", module, grid, covariance, mean, *weights, mixed, mixed_shift, count)
        matrix, bias = self._new_values(c, c), self._new_floats(c)
        side = c // self._new_constant("channel_matrix", "SIDE")
        projection = ("projection", "projection_bias")
        self._add_launch("channel_matrix", module, (side, side), mixed, mixed_shift, *projection, matrix, bias)
        out = self._new_tokens()
        self._add_launch(
            "apply_channel",
            module,
            (self._count_row_blocks("apply_channel"),),
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

    def _plan_dictionary_block(self, t: _Tokens, module: str) -> _Tokens:
        c, h, words, count = self._config.embed_dim, self._config.heads, self._config.dict_tokens, self._count
        blocks = -(-words // self._new_constant("read_frame", "WORDS"))
        tiles, parts = self._divide_tokens("read_frame", h * blocks)
        found, top, total = (
            self._new_floats(parts, h, words, HEAD_DIM),
            self._new_floats(parts, h, words),
            self._new_floats(parts, h, words),
        )
        weights = ("scale", "shift", "queries", "keys", "values")
        grid: tuple[int, ...] = (parts, h, blocks)
        arguments: tuple[_Argument, ...] = (t.values, t.stats, *weights, found, top, total, count, tiles, words)
        self._add_launch("read_frame", module, grid, *arguments)
        refined = self._new_floats(words, c)
        self._add_launch("join_words", module, (words, h), found, top, total, "base", refined, parts, words)
        keys, values = self._new_values(words, c), self._new_values(words, c)
        grid = (
            -(-words // self._new_constant("refine_words", "WORDS")),
            2 * c // self._new_constant("refine_words", "COLUMNS"),
        )
        self._add_launch("refine_words", module, grid, refined, "weight", keys, values, words)
        out = self._new_tokens()
        self._add_launch(
            "consult_words",
            module,
            (self._count_row_blocks("consult_words"),),
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

    def _plan_feed_forward(self, t: _Tokens, module: str) -> _Tokens:
        """Plan the parts of a feed-forward network. All read the same normalized tokens; each adds to the sum."""
        width, out = FFN_EXPANSION * self._config.embed_dim, t
        for part in range(-(-self._config.ffn_dim // width)):
            hidden, before, out = self._new_values(self._count, width), out, self._new_tokens()
            grid = (self._count_row_blocks("feed_in"),)
            self._add_launch(
                "feed_in", module, grid, t.values, t.stats, "weight", "bias", hidden, self._count, part=part
            )
            grid = (self._count_row_blocks("feed_out"),)
            arguments = (hidden, "mix", "weight", before.values, out.values, out.stats, self._height, self._width)
            self._add_launch("feed_out", module, grid, *arguments, part=part)
        return out
