"""Estimate the memory that a frame takes in a network, from bytes measured for each kind of tensor."""

from collections.abc import Mapping

import psutil

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.registry.base import ModelDescriptor


def activation_bytes(network: NetworkConfig, measured: Mapping[str, float]) -> float:
    """Estimate the memory of the activations of one frame, per pixel of the padded input.

    Args:
        network: The network.
        measured: Bytes per value, by kind (see `NetworkConfig.peak_values_per_pixel`). The entry ``x`` is also that of
            every kind ``x.y`` without an entry of its own. Kinds without any are part of another kind on this backend.

    Returns:
        Bytes per pixel.
    """

    def rate(kind: str) -> float:
        return measured.get(kind, measured.get(kind.partition(".")[0], 0))

    return max(
        sum(values * rate(kind) for kind, values in moment.items()) for moment in network.peak_values_per_pixel()
    )


def frame_bytes(network: ModelDescriptor) -> int:
    """Return the bytes of a frame's input and output in float32 RGB, per pixel of the input."""
    return 12 * (1 + network.scale**2)


def free_bytes() -> int:
    """Return the bytes of main memory that are free, or would be if the system dropped its file cache."""
    return int(psutil.virtual_memory().available)
