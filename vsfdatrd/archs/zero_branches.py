"""Parts of a network that add nothing, because their last weights are zero: engines leave them out.

Trainings begin with such parts, and where one was short it ends with them. What is left out changes no output.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import Kind


class Tensors(Protocol):
    """The tensors of a block, or of a tail, by their names in a checkpoint."""

    def __getitem__(self, name: str) -> NDArray[Any]: ...


def mixes(block: Tensors, kind: Kind) -> bool:
    """Whether attention, or the convolution beside it, adds anything to the tokens; GELU(0) is 0, gates are finite."""
    if block["attn.proj.weight"].any() or block["attn.proj.bias"].any():
        return True
    return kind != "dictionary" and bool(block["conv.0.weight"].any())


def feeds(block: Tensors) -> bool:
    """Whether the feed-forward network adds anything to the tokens."""
    return bool(block["ffn.fc2.weight"].any())


def heard(tail: Tensors) -> NDArray[np.bool_]:
    """Which channels of the map between the two transposed convolutions of `transpose+conv` the second one reads: (C).

    All, if it reads none: a map without channels is none.
    """
    found: NDArray[np.bool_] = tail["2.weight"].any(axis=(1, 2, 3))
    return found if found.any() else ~found
