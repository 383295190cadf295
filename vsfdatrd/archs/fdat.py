"""What makes one FDAT different from another, as numbers. Needs neither torch nor the weights themselves.

FDAT is FDAT-RD's ancestor, as the package spandrel has it: the same blocks, groups and tails, without dictionaries, and
with square attention windows of any size, over whose edge a map is continued with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vsfdatrd.archs.fdat_rd import META, FdatRdConfig, Kind, Upsampler, largest_in_tail


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


def is_fdat(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names may be an FDAT's."""
    return META in names and "groups.0.blocks.0.attn.bias" in names
