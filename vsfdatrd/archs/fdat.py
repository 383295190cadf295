"""FDAT configuration. Needs neither torch nor the weights.

FDAT, as implemented in spandrel, is the predecessor of FDAT-RD: the same blocks, groups and tails, but no dictionary
attention, and square attention windows of any size. Maps that do not fit the window are padded with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vsfdatrd.archs.fdat_rd import META, FdatRdConfig, Kind, Upsampler, largest_in_tail


@dataclass(frozen=True, slots=True)
class FdatConfig:
    """Hyper-parameters that determine the tensors of an FDAT. Undocumented fields mean the same as in
    `FdatRdConfig`.
    """

    embed_dim: int
    heads: int
    groups: tuple[tuple[Kind, ...], ...]
    window: int
    """Height and width of an attention window in tokens."""
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
        """Height and width of the input are padded to a multiple of this, in pixels."""
        return self.unshuffle

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Attention windows (height, width) in tokens; spatial blocks cycle through them."""
        return ((self.window, self.window),)

    @property
    def largest(self) -> int:
        """Elements of the largest intermediate tensor of spandrel's implementation, per input pixel."""
        return -(-max(self.largest_in_body, self.largest_in_tail) // self.unshuffle**2)

    @property
    def largest_in_body(self) -> int:
        """Elements of the largest tensor before the tail, per token: q, k and v; an FFN's hidden layer; attention
        scores.
        """
        return max(3 * self.embed_dim, self.ffn_dim, self.heads * self.window**2)

    @property
    def largest_in_tail(self) -> int:
        """Elements of the largest tensor of the tail, per token."""
        return largest_in_tail(self.upsampler, self.tail_scale, self.embed_dim, self.mid_dim, self.out_channels)


type Config = FdatRdConfig | FdatConfig
"""Configurations of networks that `vsfdatrd.graph.fdat` writes as ONNX."""


def is_fdat(names: Mapping[str, object]) -> bool:
    """Return whether tensors with these names may belong to an FDAT."""
    return META in names and "groups.0.blocks.0.attn.bias" in names
