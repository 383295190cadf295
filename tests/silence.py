"""Networks parts of which add nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIXING = ("attn.proj.weight", "attn.proj.bias", "conv.0.weight")
FEEDING = ("ffn.fc2.weight",)

PATTERN = {"groups": (("spatial", "channel", "dictionary", "spatial"), ("channel", "dictionary"))}
"""Changes of a configuration that `silence` fits."""

FOUR_TIMES = {"unshuffle": 2, "tail_scale": 4}
"""Changes of a configuration that `unheard` fits."""


def silence(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """With zeros in the last weights of some parts of a network of `PATTERN`, so that every kind of part is among them.

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


def unheard(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """With a tail whose second transposed convolution reads only a half of the first one's channels."""
    reading = tensors["upsampler.2.weight"].copy()
    reading[1::2] = 0
    return {**tensors, "upsampler.2.weight": reading}
