"""All kernels that ship: numbers of channels, precisions, tile sizes and types of arguments."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vsfdatrd.kernels import (
    channel_attention,
    convolutions,
    dictionary_attention,
    feed_forward,
    sampling,
    upsampler,
    window_attention,
)

CHANNELS = (96, 128, 192)
"""Numbers of channels (embedding dimensions) of the published variants."""
PRECISIONS = {"fp16": "*fp16", "bf16": "*bf16"}
"""Precisions, with Triton's name for the pointer type."""
BLOCKS = {96: 32, 128: 128, 192: 64}
"""Channels in a block by number of channels: a power of two that divides it and whose accumulators fit registers."""
WINDOW_TOKENS = 300
"""Number of tokens in a window."""

_INTEGERS = frozenset(
    [
        *("height", "width", "window_height", "window_width", "unshuffle", "in_features", "padded_in_features"),
        *("num_tokens", "tiles_per_part", "num_parts", "tokens_per_part", "dict_tokens", "gate_dim"),
        *("in_channels", "out_channels", "mid_channels", "used_channels", "kernel_size", "upscale", "gated"),
        *("channels", "group_channels", "padded_channels"),
    ]
)
MULTIPLES = frozenset(["in_channels", "out_channels", "mid_channels", "padded_channels"])
"""Integer arguments that are multiples of 16, which allows vectorized loads."""
_FLOAT32 = {  # the arguments that are fp32 in every precision
    "conv_first": ("image", "weight", "bias", "shallow", "out_stats"),
    "conv_group": ("out_stats",),
    "conv_after": ("skip",),
    "conv_transpose_products": ("bias", "products"),
    "sum_products_conv_last": ("products", "transpose_bias", "conv_weight", "conv_bias", "image"),
    "conv_maps": ("bias", "negative_slopes"),
    "conv_pixel_shuffle": ("bias", "planes"),
    "conv_rgb": ("planes", "weight", "bias", "image"),
    "dysample": ("planes", "init_positions", "bias", "image"),
    "normalize_maps": (),
    "lda_offset_features": ("planes", "weight", "norm_weight", "norm_bias"),
    "lda_attention": ("planes", "offsets", "position_bias"),
    "norm_qkv": ("stats", "bias"),
    "depthwise_gelu": ("stats", "depthwise_weight", "tap_bias", "part_sums"),
    "pooled_gate": ("part_sums", "reduce_weight", "expand_weight", "gate"),
    "window_attention": ("proj_bias", "gate", "out_stats"),
    "ffn_fc1": ("stats", "bias"),
    "ffn_smix_fc2": ("smix_weight", "out_stats"),
    "partial_moments": ("stats", "part_moments", "part_sums", "part_references"),
    "merge_moments": ("part_moments", "part_sums", "part_references", "covariance", "mean"),
    "attend_value_weight": (
        *("covariance", "mean", "qkv_weight", "qkv_bias", "temperature", "attended_weight", "attended_bias"),
    ),
    "channel_attention_matrix": ("attended_weight", "attended_bias", "proj_weight", "proj_bias", "bias"),
    "apply_channel_attention": ("stats", "bias", "depthwise_weight", "tap_bias", "gate_weight", "out_stats"),
    "refine_dictionary_parts": ("stats", "norm_weight", "norm_bias", "part_values", "part_max", "part_sum"),
    "refine_dictionary": ("part_values", "part_max", "part_sum", "dictionary", "refined"),
    "dictionary_keys_values": ("refined", "weight"),
    "dictionary_attention": ("stats", "query_bias", "proj_bias", "out_stats"),
}
_TAIL = {
    "conv_after": ("out",),
    "conv_transpose_products": ("maps", "weight", "second_weight"),
    "conv_maps": ("maps", "weight", "out"),
    "conv_pixel_shuffle": ("maps", "weight"),
    "normalize_maps": ("maps", "out"),
    "lda_offset_features": ("out",),
    "lda_attention": ("maps", "out"),
}
"""Arguments of the tail's type.

In bf16 networks the tail is fp32 with products in tf32, because a bf16 tail would cause banding in the image.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel for a number of channels and a precision."""

    function: Any
    """The kernel's `triton.JITFunction`."""
    channels: int
    precision: str
    constants: dict[str, int]
    """Its compile-time constants: number of channels and tile sizes."""
    warps: int
    stages: int
    """Number of loop iterations whose operands are loaded ahead (Triton's ``num_stages``)."""

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        return str(self.function.__name__)

    @property
    def signature(self) -> dict[str, str]:
        """Types of all arguments except the constants, by name and in order."""
        float32, tail = _FLOAT32[self.kernel], _TAIL.get(self.kernel, ())
        half = PRECISIONS[self.precision]
        types = {}
        for name in self.function.arg_names:
            if name in self.constants:
                continue
            if name in _INTEGERS:
                types[name] = "i32"
            elif name in float32 or (name in tail and self.precision == "bf16"):
                types[name] = "*fp32"
            elif self.kernel == "window_attention" and name == "position_bias":
                types[name] = "*fp16"  # bf16 is too coarse for this bias
            else:
                types[name] = half
        return types


def variants(channels: int, precision: str) -> Iterator[Variant]:
    """Yield the variants of all kernels for one number of channels and precision.

    Args:
        channels: One of `CHANNELS`.
        precision: One of `PRECISIONS`.
    """
    c, block = channels, BLOCKS[channels]
    small_block = min(block, 64)
    rows, dict_block = 32 if c == 192 else 64, 64 if c == 96 else 128

    def variant(module: ModuleType, name: str, warps: int, stages: int = 1, **constants: int) -> Variant:
        return Variant(getattr(module, name), c, precision, constants, warps, stages)

    body = {"C": c, "BLOCK_C": block}
    yield variant(convolutions, "conv_first", 4, **body, BLOCK_ROWS=32, BLOCK_K=32)
    yield variant(convolutions, "conv_group", 8, 3, **body, BLOCK_ROWS=128, BLOCK_K=32)
    yield variant(convolutions, "conv_after", 8, 3, **body, BLOCK_ROWS=128, BLOCK_K=32)
    yield variant(window_attention, "norm_qkv", 4, **body, BLOCK_ROWS=64, BLOCK_COLUMNS=32 if c == 96 else 64)
    yield variant(window_attention, "depthwise_gelu", 4, C=c, BLOCK_C=small_block, BLOCK_ROWS=32)
    yield variant(window_attention, "pooled_gate", 8, C=c, BLOCK_C=small_block, BLOCK_PARTS=64, BLOCK_GATE=32)
    window = {"WINDOW_TOKENS": WINDOW_TOKENS, "PADDED_TOKENS": 320, "BLOCK_QUERIES": 64, "BLOCK_KEYS": rows}
    yield variant(window_attention, "window_attention", 4, 2, **body, **window)
    yield variant(channel_attention, "partial_moments", 8, C=c, BLOCK_C=small_block, BLOCK_ROWS=rows)
    yield variant(channel_attention, "merge_moments", 4, C=c, BLOCK_C=16, BLOCK_PARTS=8)
    yield variant(channel_attention, "attend_value_weight", 4, C=c, BLOCK_C=32)
    yield variant(channel_attention, "channel_attention_matrix", 4, C=c, BLOCK_C=32)
    yield variant(channel_attention, "apply_channel_attention", 8, **body, BLOCK_ROWS=32)
    warps = dict_block // 16
    yield variant(dictionary_attention, "refine_dictionary_parts", warps, **body, BLOCK_ROWS=64, BLOCK_DICT=dict_block)
    yield variant(dictionary_attention, "refine_dictionary", 2, C=c, BLOCK_PARTS=32)
    yield variant(dictionary_attention, "dictionary_keys_values", 4, C=c, BLOCK_DICT=32, BLOCK_COLUMNS=32)
    yield variant(dictionary_attention, "dictionary_attention", 4, **body, BLOCK_ROWS=rows, BLOCK_DICT=64)
    ffn = body | {"F": 2 * c}
    yield variant(feed_forward, "ffn_fc1", 4, **ffn, BLOCK_ROWS=64, BLOCK_COLUMNS=64)
    yield variant(feed_forward, "ffn_smix_fc2", 4, **ffn, BLOCK_ROWS=32, BLOCK_K=32)
    tiles = {"BLOCK_ROWS": 128, "BLOCK_COLUMNS": 64, "BLOCK_K": 32}
    yield variant(upsampler, "conv_transpose_products", 8, 3, C=c, **tiles)
    yield variant(upsampler, "sum_products_conv_last", 4, BLOCK_PIXELS=128)
    yield variant(upsampler, "conv_maps", 8, 3, **tiles | {"BLOCK_COLUMNS": 32 if c == 96 else 64})
    yield variant(upsampler, "conv_pixel_shuffle", 4, 3, **tiles | {"BLOCK_COLUMNS": 16})
    yield variant(upsampler, "conv_rgb", 4, BLOCK_PIXELS=128)
    yield variant(sampling, "dysample", 4, BLOCK_PIXELS=128)
    yield variant(sampling, "normalize_maps", 4, BLOCK_ROWS=64, BLOCK_C=32)
    yield variant(sampling, "lda_offset_features", 4, BLOCK_PIXELS=32, BLOCK_C=32)
    yield variant(sampling, "lda_attention", 8, BLOCK_PIXELS=16, PADDED_POSITIONS=16, BLOCK_C=8)
