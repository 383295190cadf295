"""Image networks other than FDAT-RD, loaded through spandrel (the optional extra ``vsfdatrd[spandrel]``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsfdatrd.weights_file import refuse


class OtherNetwork(nn.Module):
    """A network of another architecture, called like an FDAT-RD.

    spandrel pads to the network's smallest side and multiple, crops after, and clamps to [0, 1]. A network of one
    channel gets the planes of an RGB picture one after the other.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model: nn.Module = descriptor.model.requires_grad_(False)
        self._descriptor = descriptor
        self.architecture = str(descriptor.architecture.id)
        self.scale = int(descriptor.scale)
        self.channels = (int(descriptor.input_channels), int(descriptor.output_channels))
        self.multiple = int(descriptor.size_requirements.multiple_of)
        self.minimum = int(descriptor.size_requirements.minimum)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) in [0, 1] -> (B, C, H·scale, W·scale)."""
        b, c, height, width = x.shape
        if self.channels[0] == 1 and c > 1:
            planes: Tensor = self._descriptor(x.reshape(b * c, 1, height, width))
            return planes.view(b, c, height * self.scale, width * self.scale)
        out: Tensor = self._descriptor(x)
        return out


def load(path: Path, tensors: Mapping[str, NDArray[Any]]) -> OtherNetwork:
    """The network these tensors are the weights of. path: the file they are from, for messages.

    Raises CheckpointError if spandrel is not installed or knows no image network with these tensors.
    """
    try:
        from spandrel import MAIN_REGISTRY, ImageModelDescriptor, UnsupportedModelError
    except ImportError as error:
        raise refuse(
            path, "is not an FDAT-RD; other image networks need the package spandrel: pip install vsfdatrd[spandrel]"
        ) from error  # fmt: skip
    from vsfdatrd.nn.spandrel_arch import register

    register()
    state = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in tensors.items()}
    try:
        descriptor = MAIN_REGISTRY.load(state)
    except UnsupportedModelError as error:
        some = ", ".join(sorted(tensors)[:3])
        raise refuse(
            path, f"is no image network that is known here (its tensors are {some}, ...); "
            "give the weights of an FDAT-RD or of an architecture spandrel supports"
        ) from error  # fmt: skip
    except Exception as error:  # every architecture fails in its own way on tensors it did not expect
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refuse(path, f"resembles a known network but does not load ({reason[:99]}); download it again") from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise refuse(path, f"is {descriptor.architecture.name}, which needs a mask beside the picture; give another")
    return OtherNetwork(descriptor)
