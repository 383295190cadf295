"""Plan how the CUDA kernels compute an FDAT-RD: a list of launches, and an offset in memory for every buffer.

A plan depends on the configuration, the active parts of the network and the size of the frame, but not on the GPU or
the values of the weights. `vsfdatrd.kernels` describes the kernels; this module defines their order, arguments and
grids. Kernels that write tokens also write the mean and the reciprocal standard deviation of each token, so that
normalization needs no separate pass over memory.

N: tokens. C: channels per token. h: heads. M: dictionary tokens. F = `FFN_EXPANSION` · C: hidden channels that one
launch of a feed-forward network computes; networks with more hidden channels take several launches.
"""

import math
from dataclasses import dataclass

from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, Kind, blocks_with_windows
from vsfdatrd.backends.cuda.launches import Argument, Buffer, LaunchList
from vsfdatrd.backends.cuda.packing import HEAD_DIM, StoredTypes
from vsfdatrd.backends.cuda.plan import FFN_EXPANSION, ActiveParts, Frame, Plan, TileSizes
from vsfdatrd.backends.cuda.tail_planner import plan_tail

WINDOW_TOKENS = math.prod(WINDOW)
"""Number of tokens in a window."""
PARTIAL_SUMS = 192
"""Approximate number of programs that compute partial sums of a large frame, enough for every multiprocessor."""


def make_plan(
    config: FdatRdConfig, active: ActiveParts, tile_sizes: TileSizes, height: int, width: int, types: StoredTypes
) -> Plan:
    """Plan a network.

    Args:
        config: The network, for which `plan.unsupported_config_reason` is None.
        active: Its active parts.
        tile_sizes: Tile sizes of each kernel; see `plan.TileSizes`.
        height: Height of the padded frame in pixels, a multiple of `config.multiple`.
        width: Width of the padded frame in pixels, a multiple of `config.multiple`.
        types: Types of the buffers.
    """
    planner = _Planner(config, active, tile_sizes, height // config.unshuffle, width // config.unshuffle, types)
    planner.plan_network()
    return planner.finish()


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Buffers of tokens (N, C) and their statistics (N, 2): mean and reciprocal standard deviation."""

    values: Buffer
    stats: Buffer


class _Planner(LaunchList):
    """Collects launches. Methods take and return buffers, in the order of the network."""

    def __init__(
        self,
        config: FdatRdConfig,
        active: ActiveParts,
        tile_sizes: TileSizes,
        height: int,
        width: int,
        types: StoredTypes,
    ) -> None:
        super().__init__(tile_sizes, types)
        self._config, self._active = config, active
        self._height, self._width, self._count = height, width, height * width

    # Building blocks

    def _add_row_launch(self, kernel: str, module: str, *arguments: Argument, part: int = 0) -> None:
        """Add a launch of a kernel that processes BLOCK_ROWS tokens in each program."""
        grid = (self.count_blocks(kernel, "BLOCK_ROWS", self._count),)
        self.add_launch(kernel, module, grid, *arguments, part=part)

    def _divide_tokens(self, kernel: str, programs: int) -> tuple[int, int]:
        """Divide the tokens into parts for partial sums, each computed by a number of programs of a kernel.

        Returns:
            Tiles of BLOCK_ROWS tokens in a part, and the number of parts.
        """
        blocks = self.count_blocks(kernel, "BLOCK_ROWS", self._count)
        tiles = -(-blocks // max(1, PARTIAL_SUMS // programs))
        return tiles, -(-blocks // tiles)

    def _new_tokens(self) -> _Tokens:
        return _Tokens(self.new_values(self._count, self._config.embed_dim), self.new_floats(self._count, 2))

    # The network

    def plan_network(self) -> None:
        """Plan everything from the padded frame to the padded output."""
        config = self._config
        shallow = self.new_floats(self._count, config.embed_dim)
        deep = self._plan_conv_first(shallow)
        for g, blocks in enumerate(blocks_with_windows(config.groups, config.windows)):
            deep = self._plan_group(deep, g, blocks)
        maps = self.new_map(self._count, config.embed_dim)
        size = self._height, self._width
        self._add_row_launch("conv_after", "conv_after", deep.values, "weight", shallow, maps, *size)
        plan_tail(self, config, self._active, maps, *size)

    def _plan_conv_first(self, shallow: Buffer) -> _Tokens:
        config, out = self._config, self._new_tokens()
        u, block = config.unshuffle, self.tile_size("conv_first", "BLOCK_K")
        in_features = config.in_channels * 9 * u * u
        features = (in_features, -(-in_features // block) * block)
        outputs = (shallow, out.values, out.stats)
        arguments = (Frame(is_output=False), "weight", "bias", *outputs, self._height, self._width, u, *features)
        self._add_row_launch("conv_first", "conv_first" if u == 1 else "conv_first.1", *arguments)
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
        self._add_row_launch("conv_group", f"groups.{group}.conv", *arguments)
        return out

    # Blocks: each adds something to the tokens t

    def _plan_spatial_block(self, t: _Tokens, module: str, window: tuple[int, int]) -> _Tokens:
        c, size = self._config.embed_dim, (self._height, self._width)
        qkv, conv = self.new_values(self._count, 3 * c), self.new_values(self._count, c)
        self._add_row_launch("norm_qkv", module, t.values, t.stats, "weight", "bias", qkv, *size, *window)
        gate = self._plan_pooled_gate(t, conv, module)
        out = self._new_tokens()
        grid = (-(-WINDOW_TOKENS // self.tile_size("window_attention", "BLOCK_QUERIES")), self._count // WINDOW_TOKENS)
        weights = ("position_bias", "proj_weight", "proj_bias")
        arguments = (qkv, *weights, gate, conv, t.values, out.values, out.stats, *size, *window)
        self.add_launch("window_attention", module, grid, *arguments)
        return out

    def _plan_pooled_gate(self, t: _Tokens, conv: Buffer, module: str) -> Buffer:
        """Write the parallel convolution to `conv`; return the gate (C) computed from its mean."""
        c, gate_dim = self._config.embed_dim, self._config.gate_dim
        blocks = c // self.tile_size("depthwise_gelu", "BLOCK_C")
        tiles, parts = self._divide_tokens("depthwise_gelu", blocks)
        part_sums, gate = self.new_floats(parts, c), self.new_floats(c)
        weights = ("depthwise_weight", "tap_bias")
        arguments = (t.values, t.stats, *weights, conv, part_sums, self._height, self._width, tiles)
        self.add_launch("depthwise_gelu", module, (parts, blocks), *arguments)
        weights = ("reduce_weight", "expand_weight")
        self.add_launch("pooled_gate", module, (1,), part_sums, *weights, gate, self._count, parts, gate_dim)
        return gate

    def _plan_channel_block(self, t: _Tokens, module: str) -> _Tokens:
        c, count = self._config.embed_dim, self._count
        blocks = c // self.tile_size("partial_moments", "BLOCK_C")
        tiles, parts = self._divide_tokens("partial_moments", blocks)
        moments = self.new_floats(parts, c, c)
        sums, references = self.new_floats(parts, c), self.new_floats(parts, c)
        grid: tuple[int, ...] = (parts, blocks)
        self.add_launch("partial_moments", module, grid, t.values, t.stats, moments, sums, references, count, tiles)
        covariance, mean = self.new_floats(c, c), self.new_floats(c)
        blocks = c // self.tile_size("merge_moments", "BLOCK_C")
        tokens_per_part = tiles * self.tile_size("partial_moments", "BLOCK_ROWS")
        arguments = (moments, sums, references, covariance, mean, count, parts, tokens_per_part)
        self.add_launch("merge_moments", module, (blocks, blocks), *arguments)
        attended = self.new_floats(c, c), self.new_floats(c)
        weights = ("qkv_weight", "qkv_bias", "temperature")
        grid = (self._config.heads,)
        self.add_launch("attend_value_weight", module, grid, covariance, mean, *weights, *attended, count)
        matrix, bias = self.new_values(c, c), self.new_floats(c)
        blocks = c // self.tile_size("channel_attention_matrix", "BLOCK_C")
        proj = ("proj_weight", "proj_bias")
        self.add_launch("channel_attention_matrix", module, (blocks, blocks), *attended, *proj, matrix, bias)
        out = self._new_tokens()
        inputs = (t.values, t.stats, matrix, bias, "depthwise_weight", "tap_bias", "gate_weight")
        size = self._height, self._width
        self._add_row_launch("apply_channel_attention", module, *inputs, out.values, out.stats, *size)
        return out

    def _plan_dictionary_block(self, t: _Tokens, module: str) -> _Tokens:
        c, h, m, count = self._config.embed_dim, self._config.heads, self._config.dict_tokens, self._count
        blocks = self.count_blocks("refine_dictionary_parts", "BLOCK_DICT", m)
        tiles, parts = self._divide_tokens("refine_dictionary_parts", h * blocks)
        partial = (
            self.new_floats(parts, h, m, HEAD_DIM),
            self.new_floats(parts, h, m),
            self.new_floats(parts, h, m),
        )
        weights = ("norm_weight", "norm_bias", "queries", "key_weight", "value_weight")
        grid: tuple[int, ...] = (parts, h, blocks)
        arguments: tuple[Argument, ...] = (t.values, t.stats, *weights, *partial, count, tiles, m)
        self.add_launch("refine_dictionary_parts", module, grid, *arguments)
        refined = self.new_floats(m, c)
        self.add_launch("refine_dictionary", module, (m, h), *partial, "dictionary", refined, parts, m)
        keys, values = self.new_values(m, c), self.new_values(m, c)
        grid = (
            self.count_blocks("dictionary_keys_values", "BLOCK_DICT", m),
            2 * c // self.tile_size("dictionary_keys_values", "BLOCK_COLUMNS"),
        )
        self.add_launch("dictionary_keys_values", module, grid, refined, "weight", keys, values, m)
        out = self._new_tokens()
        queries, proj = ("query_weight", "query_bias"), ("proj_weight", "proj_bias")
        inputs = (t.values, t.stats, *queries, keys, values, *proj)
        self._add_row_launch("dictionary_attention", module, *inputs, out.values, out.stats, count, m)
        return out

    def _plan_feed_forward(self, t: _Tokens, module: str) -> _Tokens:
        """Plan the parts of a feed-forward network. All read the same normalized tokens; each adds to the sum."""
        width, size, out = FFN_EXPANSION * self._config.embed_dim, (self._height, self._width), t
        for part in range(-(-self._config.ffn_dim // width)):
            hidden, before, out = self.new_values(self._count, width), out, self._new_tokens()
            arguments = (t.values, t.stats, "weight", "bias", hidden, self._count)
            self._add_row_launch("ffn_fc1", module, *arguments, part=part)
            weights = ("smix_weight", "fc2_weight")
            outputs = (out.values, out.stats)
            self._add_row_launch("ffn_smix_fc2", module, hidden, *weights, before.values, *outputs, *size, part=part)
        return out
