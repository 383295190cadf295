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

from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, Kind, blocks_with_windows
from vsfdatrd.backends.cuda.launches import Argument, Buffer, LaunchList
from vsfdatrd.backends.cuda.packing import HEAD_DIM, StoredTypes
from vsfdatrd.backends.cuda.plan import FFN_EXPANSION, ActiveParts, Frame, Kernels, Plan
from vsfdatrd.backends.cuda.tail_planner import plan_tail

WINDOW_TOKENS = math.prod(WINDOW)
"""Tokens of a window."""
PARTIAL_SUMS = 192
"""About as many partial sums are computed of a large frame, so that every multiprocessor of a GPU has some."""


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


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens and their statistics."""

    values: Buffer
    stats: Buffer


class _Planner(LaunchList):
    """Collects launches. Methods take and return buffers, in the order of the network."""

    def __init__(
        self, config: FdatRdConfig, active: ActiveParts, kernels: Kernels, height: int, width: int, types: StoredTypes
    ) -> None:
        super().__init__(kernels, types)
        self._config, self._active = config, active
        self._height, self._width, self._count = height, width, height * width

    # Building blocks

    def _count_row_blocks(self, kernel: str) -> int:
        """Number of programs of a kernel that processes ROWS tokens each."""
        return self.count_blocks(kernel, "ROWS", self._count)

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

    def _new_tokens(self) -> _Tokens:
        return _Tokens(self.new_values(self._count, self._config.embed_dim), self.new_floats(self._count, 2))

    # The network

    def plan_network(self) -> None:
        """Plan everything from the padded frame to the padded output."""
        config = self._config
        shallow = self.new_floats(self._count, config.embed_dim)
        deep = self._plan_first_convolution(shallow)
        for g, blocks in enumerate(blocks_with_windows(config.groups, config.windows)):
            deep = self._plan_group(deep, g, blocks)
        maps = self.new_map(self._count, config.embed_dim)
        grid = (self._count_row_blocks("convolve_after"),)
        size = self._height, self._width
        self.add_launch("convolve_after", "conv_after", grid, deep.values, "weight", shallow, maps, *size)
        plan_tail(self, config, self._active, maps, *size)

    def _plan_first_convolution(self, shallow: Buffer) -> _Tokens:
        config, out = self._config, self._new_tokens()
        u, depth = config.unshuffle, self.tile_size("first_convolution", "DEPTH")
        terms = config.in_channels * 9 * u * u
        self.add_launch(
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
        self.add_launch(
            "convolve_group", f"groups.{group}.conv", (self._count_row_blocks("convolve_group"),), *arguments
        )
        return out

    # Blocks: each adds something to the tokens t

    def _plan_spatial_block(self, t: _Tokens, module: str, window: tuple[int, int]) -> _Tokens:
        c, size = self._config.embed_dim, (self._height, self._width)
        qkv, local = self.new_values(self._count, 3 * c), self.new_values(self._count, c)
        grid: tuple[int, ...] = (self._count_row_blocks("norm_qkv"),)
        self.add_launch("norm_qkv", module, grid, t.values, t.stats, "weight", "bias", qkv, *size, *window)
        gate = self._plan_pooled_gate(t, local, module)
        out = self._new_tokens()
        grid = (-(-WINDOW_TOKENS // self.tile_size("attend_windows", "ROWS")), self._count // WINDOW_TOKENS)
        self.add_launch(
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

    def _plan_pooled_gate(self, t: _Tokens, local: Buffer, module: str) -> Buffer:
        """Write the parallel convolution to `local`; return the gate (C) computed from its mean."""
        c, hidden = self._config.embed_dim, self._config.gate_dim
        blocks = c // self.tile_size("mix_local", "BLOCK")
        tiles, parts = self._divide_tokens("mix_local", blocks)
        sums, gate = self.new_floats(parts, c), self.new_floats(c)
        arguments = (t.values, t.stats, "weight", "shift", local, sums, self._height, self._width, tiles)
        self.add_launch("mix_local", module, (parts, blocks), *arguments)
        self.add_launch("gate_pool", module, (1,), sums, "narrow", "wide", gate, self._count, parts, hidden)
        return gate

    def _plan_channel_block(self, t: _Tokens, module: str) -> _Tokens:
        c, count = self._config.embed_dim, self._count
        blocks = c // self.tile_size("second_moment", "BLOCK")
        tiles, parts = self._divide_tokens("second_moment", blocks)
        moments, sums, references = (
            self.new_floats(parts, c, c),
            self.new_floats(parts, c),
            self.new_floats(parts, c),
        )
        grid: tuple[int, ...] = (parts, blocks)
        self.add_launch("second_moment", module, grid, t.values, t.stats, moments, sums, references, count, tiles)
        covariance, mean = self.new_floats(c, c), self.new_floats(c)
        side = c // self.tile_size("merge_moments", "SIDE")
        length = tiles * self.tile_size("second_moment", "ROWS")
        arguments = (moments, sums, references, covariance, mean, count, parts, length)
        self.add_launch("merge_moments", module, (side, side), *arguments)
        mixed, mixed_shift = self.new_floats(c, c), self.new_floats(c)
        weights = ("weight", "shift", "temperature")
        grid = (self._config.heads,)
        self.add_launch("mix_channels", module, grid, covariance, mean, *weights, mixed, mixed_shift, count)
        matrix, bias = self.new_values(c, c), self.new_floats(c)
        side = c // self.tile_size("channel_matrix", "SIDE")
        projection = ("projection", "projection_bias")
        self.add_launch("channel_matrix", module, (side, side), mixed, mixed_shift, *projection, matrix, bias)
        out = self._new_tokens()
        self.add_launch(
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
        blocks = -(-words // self.tile_size("read_frame", "WORDS"))
        tiles, parts = self._divide_tokens("read_frame", h * blocks)
        found, top, total = (
            self.new_floats(parts, h, words, HEAD_DIM),
            self.new_floats(parts, h, words),
            self.new_floats(parts, h, words),
        )
        weights = ("scale", "shift", "queries", "keys", "values")
        grid: tuple[int, ...] = (parts, h, blocks)
        arguments: tuple[Argument, ...] = (t.values, t.stats, *weights, found, top, total, count, tiles, words)
        self.add_launch("read_frame", module, grid, *arguments)
        refined = self.new_floats(words, c)
        self.add_launch("join_words", module, (words, h), found, top, total, "base", refined, parts, words)
        keys, values = self.new_values(words, c), self.new_values(words, c)
        grid = (
            -(-words // self.tile_size("refine_words", "WORDS")),
            2 * c // self.tile_size("refine_words", "COLUMNS"),
        )
        self.add_launch("refine_words", module, grid, refined, "weight", keys, values, words)
        out = self._new_tokens()
        self.add_launch(
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
            hidden, before, out = self.new_values(self._count, width), out, self._new_tokens()
            grid = (self._count_row_blocks("feed_in"),)
            self.add_launch(
                "feed_in", module, grid, t.values, t.stats, "weight", "bias", hidden, self._count, part=part
            )
            grid = (self._count_row_blocks("feed_out"),)
            arguments = (hidden, "mix", "weight", before.values, out.values, out.stats, self._height, self._width)
            self.add_launch("feed_out", module, grid, *arguments, part=part)
        return out
