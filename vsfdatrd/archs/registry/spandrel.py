"""Any other image network that spandrel supports (the optional extra ``vsfdatrd[spandrel]``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, override

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.registry.base import Architecture, Checkpoint, TensorIndex
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.errors import first_line
from vsfdatrd.weights.files import refusal, require_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vsfdatrd.nn.spandrel_network import SpandrelNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class SpandrelConfig(NetworkConfig):
    """Properties of a network that spandrel builds, found by running it."""

    name: str
    """spandrel's name of the architecture."""
    scale: int
    in_channels: int
    out_channels: int
    size: SizeRequirements
    largest: int
    """Elements of the largest intermediate tensor per input pixel; 0 if it was not run."""
    parameters: int
    """Number of trained parameters."""

    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        """See `NetworkConfig.peak_values_per_pixel`."""
        return ({"largest": self.largest},)


class SpandrelModule[C: NetworkConfig](Architecture[C]):
    """An architecture whose module spandrel builds."""

    @override
    def module(self, config: C, checkpoint: Checkpoint) -> "nn.Module":
        require_torch(checkpoint.path, "can be inspected without PyTorch, but running it as a module")
        from vsfdatrd.nn.spandrel_network import load_network

        return load_network(checkpoint.path, checkpoint.tensors())

    @override
    def run(self, network: "nn.Module", x: "torch.Tensor") -> "torch.Tensor":
        return cast("SpandrelNetwork", network).forward_unpadded(x)


class Spandrel(SpandrelModule[SpandrelConfig]):
    """Loads the module through spandrel, and traces its graphs."""

    name = "spandrel"
    config = SpandrelConfig
    needs_torch = True

    @override
    def detect(self, tensors: TensorIndex) -> bool:
        require_torch(tensors.path, "is not an FDAT-RD; identifying it")
        from vsfdatrd.nn.spandrel_network import is_known

        return is_known(tensors.path, tensors.shapes)

    @override
    def configure(self, tensors: TensorIndex) -> SpandrelConfig:
        from vsfdatrd.nn.spandrel_network import load_network

        network = load_network(tensors.path, tensors.read())
        channels = network.channels
        try:
            largest = network.largest() if channels in ((3, 3), (1, 1)) else 0
        except Exception as error:  # architectures raise errors of any type
            reason = first_line(error)[:160]
            raise refusal(
                tensors.path, f"is {network.architecture}, which does not run with these weights: {reason}"
            ) from error
        return SpandrelConfig(
            name=network.architecture,
            scale=network.scale,
            in_channels=channels[0],
            out_channels=channels[1],
            size=network.size,
            largest=largest,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
        )

    @override
    def parameters(self, config: SpandrelConfig, tensors: TensorIndex) -> int:
        return config.parameters
