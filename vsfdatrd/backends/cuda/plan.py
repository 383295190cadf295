"""Plans of the CUDA backend: launches of kernels and their buffers, and which networks can be planned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda.packing import HEAD_DIM
from vsfdatrd.backends.cuda.tails import is_fused, largest_buffer
from vsfdatrd.graph.weights import Weights

MAX_OFFSET = 2**31
"""Limit of the number of values in a buffer: kernels compute offsets in 32 bits."""
FFN_EXPANSION = 2
"""Ratio of hidden channels to channels of a token in the kernels of feed-forward networks.

Networks with fewer hidden channels are padded with zeros. Those with more are computed in parts.
"""

type TileSizes = Mapping[str, Mapping[str, int]]
"""Compile-time constants (tile sizes) by kernel name and constant name, for one number of channels and precision."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Packed weights."""

    module: str
    """Prefix of the tensors in the checkpoint."""
    kernel: str
    name: str
    """Parameter of the kernel."""
    part: int = 0
    """Number of the part of a feed-forward network; see `FFN_EXPANSION`."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A buffer in the arena. Buffers whose lifetimes do not overlap may share memory."""

    offset: int
    """Offset in the arena in bytes."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Frame:
    """The network's input or output buffer, float32."""

    is_output: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch."""

    kernel: str
    module: str
    """Prefix of its weights in the checkpoint."""
    grid: tuple[int, int, int]
    """Number of programs along x, y and z."""
    arguments: tuple[Region | Constant | Frame | int, ...]
    part: int = 0
    """The `Constant.part` of its weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All launches of a network for frames of one size."""

    launches: tuple[Launch, ...]
    arena: int
    """Size of the arena, the memory that holds all buffers, in bytes."""


@dataclass(frozen=True, slots=True)
class ActiveParts:
    """The branches of a network that contribute to its output; the others are left out (see `zero_branches`)."""

    attention: frozenset[tuple[int, int]]
    """(group, block) of every active attention branch, which includes the parallel convolution."""
    ffn: frozenset[tuple[int, int]]
    """(group, block) of every active feed-forward network."""
    mid_channels: int
    """Number of channels between the tail's two transposed convolutions that the second one uses."""


def find_active(config: FdatRdConfig, weights: Weights) -> ActiveParts:
    """Find the active parts of a network.

    Args:
        config: The network.
        weights: All its tensors.
    """
    attention, ffn = set(), set()
    for g, group in enumerate(config.groups):
        for b, kind in enumerate(group):
            block = weights.below(f"groups.{g}").below(f"blocks.{b}")
            if zero_branches.attention_active(block, kind):
                attention.add((g, b))
            if zero_branches.ffn_active(block):
                ffn.add((g, b))
    mid_channels = int(zero_branches.used_channels(weights.below("upsampler")).sum()) if is_fused(config) else 0
    return ActiveParts(frozenset(attention), frozenset(ffn), mid_channels)


def assume_all_active(config: FdatRdConfig) -> ActiveParts:
    """Return `ActiveParts` with every branch of a network, for an estimate without its weights."""
    every = frozenset((g, b) for g, group in enumerate(config.groups) for b in range(len(group)))
    return ActiveParts(every, every, config.embed_dim)


def unsupported_config_reason(config: FdatRdConfig) -> str | None:
    """Explain why the kernels cannot run a network, apart from its number of channels; None if they can.

    Args:
        config: The network.
    """
    if config.embed_dim != config.heads * HEAD_DIM:
        return f"its heads have {config.embed_dim // config.heads} channels, not {HEAD_DIM}"
    if config.gate_dim > HEAD_DIM:
        return f"its gates have {config.gate_dim} channels, and {HEAD_DIM} are the most"
    if config.in_channels != 3 or config.out_channels != 3:
        return "it is not for RGB"
    return None


def offsets_fit(config: FdatRdConfig, height: int, width: int) -> bool:
    """Return whether every buffer for a padded frame of height × width pixels has fewer than `MAX_OFFSET` values.

    Args:
        config: The network.
        height: Height of the padded frame in pixels.
        width: Width of the padded frame in pixels.
    """
    tokens = height * width // config.unshuffle**2
    return tokens * max(3 * config.embed_dim, largest_buffer(config)) < MAX_OFFSET
