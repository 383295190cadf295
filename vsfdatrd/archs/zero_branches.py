"""Detect branches whose output projection is zero, so that graphs can omit them.

Training starts with such branches, and after a short training some remain. Omitting them changes no output.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import FdatRdConfig, Kind


class Tensors(Protocol):
    """The tensors of a block or a tail, by their names relative to it."""

    def __getitem__(self, name: str) -> NDArray[Any]: ...


def attention_active(block: Tensors, kind: Kind) -> bool:
    """Return whether attention, or the parallel convolution, contributes to the tokens of a block.

    GELU(0) is 0 and gates are finite, so zero weights give a zero contribution.

    Args:
        block: Tensors of the block.
        kind: Its kind.
    """
    if block["attn.proj.weight"].any() or block["attn.proj.bias"].any():
        return True
    return kind != "dictionary" and bool(block["conv.0.weight"].any())


def ffn_active(block: Tensors) -> bool:
    """Return whether the feed-forward network contributes to the tokens of a block."""
    return bool(block["ffn.fc2.weight"].any())


def used_channels(tail: Tensors) -> NDArray[np.bool_]:
    """Return which channels between the two transposed convolutions of ``transpose+conv`` the second one uses.

    Args:
        tail: The tensors of the tail.

    Returns:
        Mask (C,). All True if no channel is used, because a map must have at least one channel.
    """
    used: NDArray[np.bool_] = tail["2.weight"].any(axis=(1, 2, 3))
    return used if used.any() else ~used


def describe_active_branches(config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Count the attention and feed-forward branches of an FDAT-RD that have a nonzero output projection.

    Args:
        config: The network.
        tensors: All its tensors by name.
    """
    attention = networks = 0
    for i, group in enumerate(config.groups):
        for j, kind in enumerate(group):
            prefix = f"groups.{i}.blocks.{j}."
            block = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
            attention += attention_active(block, kind)
            networks += ffn_active(block)
    return f"attention in {attention}, feed-forward networks in {networks} of {config.blocks} blocks"
