"""Every kernel that ships: for which channels and precision, with which tiles, and the types of its arguments."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vsfdatrd.kernels import channel, dictionary, ends, maps, sampling, tokens, windows

CHANNELS = (96, 128, 192)
"""Embedding dimensions: those of the published variants."""
PRECISIONS = {"fp16": "*fp16", "bf16": "*bf16"}
"""Precisions, with Triton's name of a pointer to them."""
BLOCKS = {96: 32, 128: 128, 192: 64}
"""Channels in a block: the largest power of two that divides the channels, and whose sums fit registers."""
PLACES = 300
"""Tokens in a window."""

_INTEGERS = frozenset(
    [
        *("height", "width", "window_height", "window_width", "unshuffle", "terms", "padded_terms", "middle"),
        *("count", "tiles", "parts", "part_tokens", "words", "hidden_width"),
        *("inputs", "outputs", "side", "step", "gated", "channels", "part"),
    ]
)
MULTIPLES = frozenset(["inputs", "outputs", "middle"])
"""Integers that are multiples of 16, so that several values of a row can be loaded at once."""
_FULL = {  # the arguments that are fp32 in every precision
    "first_convolution": ("image", "weight", "bias", "shallow", "stats"),
    "convolve_group": ("stats",),
    "convolve_after": ("skip",),
    "spread": ("bias", "taps"),
    "gather": ("taps", "bias", "weight", "last_bias", "image"),
    "convolve_maps": ("bias", "slopes"),
    "convolve_pixels": ("bias", "planes"),
    "convolve_planes": ("planes", "weight", "bias", "image"),
    "sample_pixels": ("planes", "start", "bias", "image"),
    "normalize_maps": (),
    "move_queries": ("planes", "weight", "scale", "shift"),
    "attend_positions": ("planes", "offsets", "table"),
    "norm_qkv": ("stats", "bias"),
    "mix_local": ("stats", "weight", "shift", "sums"),
    "gate_pool": ("sums", "narrow", "wide", "gate"),
    "feed_in": ("stats", "bias"),
    "feed_out": ("mix", "stats"),
    "attend_windows": ("projection_bias", "gate", "stats"),
    "second_moment": ("stats", "moments", "sums", "references"),
    "merge_moments": ("moments", "sums", "references", "covariance", "mean"),
    "mix_channels": ("covariance", "mean", "weight", "shift", "temperature", "mixed", "mixed_shift"),
    "channel_matrix": ("mixed", "mixed_shift", "projection", "projection_bias", "bias"),
    "apply_channel": ("stats", "bias", "weight", "shift", "gate", "out_stats"),
    "read_frame": ("stats", "scale", "shift", "found", "top", "total"),
    "join_words": ("found", "top", "total", "base", "refined"),
    "refine_words": ("refined", "weight"),
    "consult_words": ("stats", "query_bias", "projection_bias", "out_stats"),
}
_TAIL = {
    "convolve_after": ("out",),
    "spread": ("maps", "weight", "last"),
    "convolve_maps": ("maps", "weight", "out"),
    "convolve_pixels": ("maps", "weight"),
    "normalize_maps": ("maps", "out"),
    "move_queries": ("out",),
    "attend_positions": ("maps", "out"),
}
"""Arguments of the tail's type: in bf16 the image would have bands, so that its tail is fp32, with products in tf32."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel for a number of channels and a precision."""

    function: Any
    """The kernel's `triton.JITFunction`."""
    channels: int
    precision: str
    constants: dict[str, int]
    """Its compile-time constants: channels and tiles."""
    warps: int
    stages: int
    """How many steps of a loop are in flight while their operands are loaded."""

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        return str(self.function.__name__)

    @property
    def signature(self) -> dict[str, str]:
        """The type of every argument but the constants, by its name, in order."""
        full, tail = _FULL[self.kernel], _TAIL.get(self.kernel, ())
        half = PRECISIONS[self.precision]
        types = {}
        for name in self.function.arg_names:
            if name in self.constants:
                continue
            if name in _INTEGERS:
                types[name] = "i32"
            elif name in full or (name in tail and self.precision == "bf16"):
                types[name] = "*fp32"
            elif self.kernel == "attend_windows" and name == "bias":
                types[name] = "*fp16"  # bf16 has too few digits for a bias
            else:
                types[name] = half
        return types


def variants(channels: int, precision: str) -> Iterator[Variant]:
    """Yield every kernel of a network.

    Args:
        channels: One of `CHANNELS`.
        precision: One of `PRECISIONS`.
    """
    c, block = channels, BLOCKS[channels]
    narrow = min(block, 64)
    keys, words = 32 if c == 192 else 64, 64 if c == 96 else 128

    def one(module: ModuleType, name: str, warps: int, stages: int = 1, **constants: int) -> Variant:
        return Variant(getattr(module, name), c, precision, constants, warps, stages)

    yield one(ends, "first_convolution", 4, C=c, BLOCK=block, ROWS=32, DEPTH=32)
    yield one(ends, "convolve_group", 8, 3, C=c, BLOCK=block, ROWS=128, DEPTH=32)
    yield one(ends, "convolve_after", 8, 3, C=c, BLOCK=block, ROWS=128, DEPTH=32)
    yield one(ends, "spread", 8, 3, C=c, ROWS=128, COLUMNS=64, DEPTH=32)
    yield one(ends, "gather", 4, PIXELS=128)
    yield one(maps, "convolve_maps", 8, 3, ROWS=128, COLUMNS=32 if c == 96 else 64, DEPTH=32)
    yield one(maps, "convolve_pixels", 4, 3, ROWS=128, COLUMNS=16, DEPTH=32)
    yield one(maps, "convolve_planes", 4, PIXELS=128)
    yield one(sampling, "sample_pixels", 4, PIXELS=128)
    yield one(sampling, "normalize_maps", 4, ROWS=64, DEPTH=32)
    yield one(sampling, "move_queries", 4, PIXELS=32, LANES=32)
    yield one(sampling, "attend_positions", 8, PIXELS=16, PLACES=16, CHANNELS=8)
    yield one(tokens, "norm_qkv", 4, C=c, BLOCK=block, ROWS=64, COLUMNS=32 if c == 96 else 64)
    yield one(tokens, "mix_local", 4, C=c, BLOCK=narrow, ROWS=32)
    yield one(tokens, "gate_pool", 8, C=c, BLOCK=narrow, ROWS=64, HIDDEN=32)
    yield one(tokens, "feed_in", 4, C=c, F=2 * c, BLOCK=block, ROWS=64, COLUMNS=64)
    yield one(tokens, "feed_out", 4, C=c, F=2 * c, BLOCK=block, ROWS=32, DEPTH=32)
    yield one(windows, "attend_windows", 4, 2, C=c, BLOCK=block, PLACES=PLACES, PADDED=320, ROWS=64, KEYS=keys)
    yield one(channel, "second_moment", 8, C=c, BLOCK=narrow, ROWS=32 if c == 192 else 64)
    yield one(channel, "merge_moments", 4, C=c, SIDE=16, PARTS=8)
    yield one(channel, "mix_channels", 4, C=c, SIDE=32)
    yield one(channel, "channel_matrix", 4, C=c, SIDE=32)
    yield one(channel, "apply_channel", 8, C=c, BLOCK=block, ROWS=32)
    yield one(dictionary, "read_frame", words // 16, C=c, BLOCK=block, ROWS=64, WORDS=words)
    yield one(dictionary, "join_words", 2, C=c, PARTS=32)
    yield one(dictionary, "refine_words", 4, C=c, WORDS=32, COLUMNS=32)
    yield one(dictionary, "consult_words", 4, C=c, BLOCK=block, ROWS=keys, WORDS=64)
