"""What the PyTorch network makes of a picture, and how near something else comes to it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.base import FramePlanes


def of_network(config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes) -> FramePlanes:
    """What the PyTorch network makes of a picture."""
    import torch

    from vsfdatrd.nn.fdat_rd import FdatRd

    network = FdatRd(config).eval()
    network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()})
    with torch.inference_mode():
        result: FramePlanes = network(torch.from_numpy(picture)[None])[0].numpy()
    return result


def decibels(result: FramePlanes, reference: FramePlanes) -> float:
    """Signal to noise: the reference's deviation over the error's."""
    return float(20 * np.log10(reference.std() / np.sqrt(np.mean((result.astype(np.float64) - reference) ** 2))))
