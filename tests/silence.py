"""Networks with branches whose output weights are zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIXING = ("attn.proj.weight", "attn.proj.bias", "conv.0.weight")
FEEDING = ("ffn.fc2.weight",)

BLOCK_PATTERN = {"groups": (("spatial", "channel", "dictionary", "spatial"), ("channel", "dictionary"))}
"""Fields of a configuration for `zero_some_branches`."""

FOUR_TIMES = {"unshuffle": 2, "tail_scale": 4}
"""Fields of a configuration for `zero_half_of_tail`."""


def zero_some_branches(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Set the last weights of some branches of a network of `BLOCK_PATTERN` to zero, at least one of every kind.

    Left are the convolution of the channel block, the second spatial block, and one part of each of the last two.
    """
    idle = {
        "groups.0.blocks.0": (*MIXING, *FEEDING),
        "groups.0.blocks.1": (*MIXING[:2], *FEEDING),
        "groups.0.blocks.2": (*MIXING, *FEEDING),
        "groups.1.blocks.0": FEEDING,
        "groups.1.blocks.1": MIXING,
    }
    names = {f"{block}.{part}" for block, parts in idle.items() for part in parts}
    return {name: np.zeros_like(values) if name in names else values for name, values in tensors.items()}


def zero_half_of_tail(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Make the second transposed convolution of the tail read only half of the first one's channels."""
    reading = tensors["upsampler.2.weight"].copy()
    reading[1::2] = 0
    return {**tensors, "upsampler.2.weight": reading}
