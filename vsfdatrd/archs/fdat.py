"""FDAT configuration. Needs neither torch nor the weights.

FDAT, as implemented in spandrel, is the predecessor of FDAT-RD: the same blocks, groups and tails, but no dictionary
attention, and square attention windows of any size. Maps that do not fit the window are padded with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vsfdatrd.archs.config import SMALLEST_PERIOD
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatFamilyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FdatConfig(FdatFamilyConfig):
    """Hyper-parameters that determine the tensors of an FDAT."""

    window: int
    """Height and width of an attention window in tokens."""

    name: ClassVar[str] = "FDAT"
    graph_name: ClassVar[str] = "fdat"
    windows_bias: ClassVar[str] = "bias"
    dict_tokens: ClassVar[int] = 0

    @property
    def multiple(self) -> int:
        """Height and width of the input are padded to a multiple of this, in pixels."""
        return self.unshuffle

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Attention windows (height, width) in tokens; spatial blocks cycle through them."""
        return ((self.window, self.window),)

    @property
    def period(self) -> int:
        """See `NetworkConfig.period`: a multiple of a window's side, since the network pads maps to whole windows."""
        pixels = self.unshuffle * self.window
        return pixels * -(-SMALLEST_PERIOD // pixels)

    @property
    def largest_in_body(self) -> int:
        """Elements of the largest tensor before the tail, per token.

        It is q, k and v together, an FFN's hidden layer, or the attention scores.
        """
        return max(3 * self.embed_dim, self.ffn_dim, self.heads * self.window**2)

    def _body_activations(self) -> Mapping[str, int]:
        """See `FdatFamilyConfig`. PyTorch's memory depends on the largest tensor, that of graphs on the channels."""
        return {"fdat.channels": self.embed_dim, "fdat.largest": self.largest_in_body}


def is_fdat(names: Mapping[str, object]) -> bool:
    """Return whether tensors with these names may belong to an FDAT."""
    return META_UPSAMPLE in names and "groups.0.blocks.0.attn.bias" in names
