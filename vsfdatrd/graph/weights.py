"""A checkpoint's tensors, as the parts of the graph ask for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Array = NDArray[Any]


class Weights:
    """A checkpoint's tensors below a prefix, as float64 so that folded constants lose nothing."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self._tensors[self._prefix + name], np.float64)

    def below(self, name: str) -> "Weights":
        """The tensors one level down."""
        return Weights(self._tensors, f"{self._prefix}{name}.")
