"""Run the PyTorch network on a picture, and compare results in dB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.base import FramePlanes


def run_network(config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes) -> FramePlanes:
    """Run the PyTorch network on a picture."""
    import torch

    from vsfdatrd.nn.fdat_rd import FdatRd

    network = FdatRd(config).eval()
    network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()})
    with torch.inference_mode():
        result: FramePlanes = network(torch.from_numpy(picture)[None])[0].numpy()
    return result


def decibels(result: FramePlanes, reference: FramePlanes) -> float:
    """Return the signal-to-noise ratio in dB: standard deviation of the reference over RMS error."""
    return float(20 * np.log10(reference.std() / np.sqrt(np.mean((result.astype(np.float64) - reference) ** 2))))
