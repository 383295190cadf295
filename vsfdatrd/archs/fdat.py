"""What makes one FDAT different from another, as numbers. Needs neither torch nor the weights themselves.

FDAT is FDAT-RD's ancestor, as the package spandrel has it: the same blocks, groups and tails, without dictionaries, and
with square attention windows of any size, over whose edge a map is continued with zeros.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vsfdatrd.archs.fdat_rd import META, UPSAMPLERS, FdatRdConfig, Kind, Upsampler, largest_in_tail
from vsfdatrd.archs.fdat_shapes import tensor_shapes


@dataclass(frozen=True, slots=True)
class FdatConfig:
    """Hyper-parameters of one FDAT, as far as they shape its tensors. Where nothing is said, as in `FdatRdConfig`."""

    embed_dim: int
    heads: int
    groups: tuple[tuple[Kind, ...], ...]
    window: int
    """Side of an attention window in tokens."""
    ffn_dim: int
    gate_dim: int
    upsampler: Upsampler
    tail_scale: int
    unshuffle: int
    mid_dim: int = 64
    in_channels: int = 3
    out_channels: int = 3

    windows_bias: ClassVar[str] = "bias"
    dict_tokens: ClassVar[int] = 0

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each side."""
        return self.tail_scale // self.unshuffle

    @property
    def multiple(self) -> int:
        """Both sides of the input are padded to a multiple of this many pixels."""
        return self.unshuffle

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the attention windows that spatial blocks have in turn."""
        return ((self.window, self.window),)

    @property
    def largest(self) -> int:
        """Values in the largest tensor on the way through the network as spandrel runs it, per pixel of the frame."""
        return -(-max(self.largest_in_body, self.largest_in_tail) // self.unshuffle**2)

    @property
    def largest_in_body(self) -> int:
        """Values in the largest tensor before the tail, per token: q, k and v; a hidden layer; scores."""
        return max(3 * self.embed_dim, self.ffn_dim, self.heads * self.window**2)

    @property
    def largest_in_tail(self) -> int:
        """Values in the largest tensor of the tail, per token."""
        return largest_in_tail(self.upsampler, self.tail_scale, self.embed_dim, self.mid_dim, self.out_channels)


type Config = FdatRdConfig | FdatConfig
"""A network that `vsfdatrd.graph` writes."""


def from_shapes(shapes: Mapping[str, tuple[int, ...]], meta: list[int]) -> FdatConfig | None:
    """Find the configuration from a checkpoint's tensor shapes and its `MetaUpsample` numbers.

    None for everything that is not exactly an FDAT as spandrel builds it: spandrel may still know what it is.
    """
    try:
        config = _read(shapes, meta)
        return config if tensor_shapes(config) == dict(shapes) else None
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return None


def _read(shapes: Mapping[str, tuple[int, ...]], meta: list[int]) -> FdatConfig:
    """As `from_shapes`; raises one of several errors where a shape is missing or odd."""
    _, index, tail_scale, _, out_channels, mid_dim, _ = meta
    unshuffled = "conv_first.1.weight" in shapes
    embed_dim, first_in, _, _ = shapes["conv_first.1.weight" if unshuffled else "conv_first.weight"]
    unshuffle = math.isqrt(first_in // out_channels) if unshuffled else 1
    if unshuffled and (unshuffle not in (2, 4) or tail_scale != 4):
        raise ValueError("spandrel unshuffles by 2 or 4, before a tail of 4")
    heads, tokens, _ = shapes["groups.0.blocks.0.attn.bias"]
    groups: list[tuple[Kind, ...]] = []
    while (first := f"groups.{len(groups)}.blocks.0.n1.weight") in shapes:
        prefix, blocks = first.removesuffix("0.n1.weight"), 0
        while f"{prefix}{blocks}.n1.weight" in shapes:
            blocks += 1
        groups.append(("spatial", "channel") * (blocks // 2))
    if embed_dim % heads or len(set(groups)) != 1:
        raise ValueError("channels are split evenly over heads, and all groups are alike")
    return FdatConfig(
        embed_dim=embed_dim,
        heads=heads,
        groups=tuple(groups),
        window=math.isqrt(tokens),
        ffn_dim=shapes["groups.0.blocks.0.ffn.fc1.weight"][0],
        gate_dim=shapes["groups.0.blocks.0.inter.cg.1.weight"][0],
        upsampler="conv" if tail_scale == 1 else UPSAMPLERS[index],
        tail_scale=tail_scale,
        unshuffle=unshuffle,
        mid_dim=mid_dim,
        in_channels=first_in // unshuffle**2,
        out_channels=out_channels,
    )


def is_fdat(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names may be an FDAT's."""
    return META in names and "groups.0.blocks.0.attn.bias" in names
