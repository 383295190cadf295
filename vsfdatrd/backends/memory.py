"""Estimate the memory that a frame takes in a network, from the network's largest tensors and measured factors."""

from collections.abc import Callable

import psutil

from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import FdatRdConfig


def activation_bytes(
    network: ModelDescriptor,
    *,
    fdat_rd: Callable[[FdatRdConfig], float],
    fdat: Callable[[FdatConfig], float],
    tail: Callable[[str], float],
    held: float,
    other: float,
) -> float:
    """Estimate the memory of the activations of one frame, per pixel of the padded input.

    Args:
        network: The network.
        fdat_rd: Bytes per token before FDAT-RD's upsampler.
        fdat: Bytes per token before FDAT's upsampler.
        tail: Memory of an upsampler by its name, in multiples of its largest float32 tensor.
        held: Bytes per value that `ArtCnnConfig.held` counts.
        other: Memory of other networks, in multiples of their largest float32 tensor.

    Returns:
        Bytes per pixel.
    """
    if config := network.written:
        body = fdat(config) if isinstance(config, FdatConfig) else fdat_rd(config)
        return max(body, 4 * config.largest_in_tail * tail(config.upsampler)) / config.unshuffle**2
    if network.artcnn:
        return held * network.artcnn.held
    return 4 * network.largest * other


def frame_bytes(network: ModelDescriptor) -> int:
    """Return the bytes of a frame's input and output in float32 RGB, per pixel of the input."""
    return 12 * (1 + network.scale**2)


def free() -> int:
    """Return the bytes of main memory that are free, or would be if the system dropped its file cache."""
    return int(psutil.virtual_memory().available)
