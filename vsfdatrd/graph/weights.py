"""Access to a checkpoint's tensors by module prefix."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.weights.files import Array as Array


class Weights:
    """A checkpoint's tensors under a prefix, as float64, so that folding constants loses no precision."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self._tensors[self._prefix + name], np.float64)

    def below(self, name: str) -> "Weights":
        """Return the tensors below a module, such as ``attn``.

        Args:
            name: Name of the module, relative to this prefix.
        """
        return Weights(self._tensors, f"{self._prefix}{name}.")
