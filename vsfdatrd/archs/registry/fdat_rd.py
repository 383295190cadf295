"""The architecture FDAT-RD, and the base class that it shares with FDAT."""

from typing import TYPE_CHECKING, Any, override

from vsfdatrd.archs import fdat_rd, fdat_shapes, zero_branches
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatFamilyConfig, FdatRdConfig
from vsfdatrd.archs.registry.base import Architecture, Checkpoint, TensorIndex
from vsfdatrd.errors import CheckpointError
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.weights.files import refusal

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

_DOWNLOAD_ADVICE = "download it again, or save the whole state dict"


class FdatFamily[C: FdatFamilyConfig](Architecture[C]):
    """Base class of FDAT-RD and FDAT."""

    is_traced = False

    @override
    def to_half(self, network: "nn.Module", half: "torch.dtype") -> None:
        """Keep the first and last layers and the long skip connection in float32 to avoid banding."""
        inner: Any = getattr(network, "model", network)  # a network from spandrel is wrapped
        inner.groups.to(half)
        inner.conv_after.to(half)
        inner.groups[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].to(half), *inputs[1:]))

    @override
    def graph(
        self, config: C, checkpoint: Checkpoint, size: tuple[int, int] | None, target: GraphTarget
    ) -> "onnx.ModelProto":
        from vsfdatrd.graph.fdat import write

        return write(config, checkpoint.tensors(), size, target)

    @override
    def graph_identity(self, config: C) -> str:
        """Return an empty string: `graph.GRAPH_VERSION` alone identifies the graphs of this package."""
        return ""


class FdatRd(FdatFamily[FdatRdConfig]):
    """FDAT-RD."""

    name = "FDAT-RD"
    config = FdatRdConfig

    @override
    def detect(self, tensors: TensorIndex) -> bool:
        return fdat_rd.is_fdat_rd(tensors.entries)

    @override
    def configure(self, tensors: TensorIndex) -> FdatRdConfig:
        path, entries = tensors.path, tensors.entries
        for name, entry in entries.items():
            if not entry.count:
                raise refusal(
                    path, f"is damaged: its tensor {name!r} of shape {entry.shape} holds nothing; {_DOWNLOAD_ADVICE}"
                )
        try:
            config = fdat_rd.config_from_shapes(tensors.shapes, read_meta_upsample(tensors))
            fdat_shapes.check_tensors(config, entries)
        except (CheckpointError, ValueError, ArithmeticError) as error:
            raise refusal(path, f"cannot be used: {error}; {_DOWNLOAD_ADVICE}") from error
        return config

    @override
    def build(self, config: FdatRdConfig) -> "nn.Module":
        from vsfdatrd.nn import fdat_rd as modules

        return modules.FdatRd(config)

    @override
    def weights_info(self, config: FdatRdConfig, checkpoint: Checkpoint) -> dict[str, Any]:
        try:
            return {"at work": zero_branches.describe_active_branches(config, checkpoint.tensors())}
        except CheckpointError as error:
            return {"at work": str(error)}


def read_meta_upsample(tensors: TensorIndex) -> list[int]:
    """Read the ``MetaUpsample`` buffer as integers; some converters cast it to a floating-point type with the weights.

    Raises:
        ValueError: The buffer is not a list of non-negative integers.
    """
    meta = tensors.read(META_UPSAMPLE)[META_UPSAMPLE]
    if meta.ndim != 1 or (meta != meta.round()).any() or (meta < 0).any():
        raise ValueError(f"its {META_UPSAMPLE} is not a list of integers")
    return [int(value) for value in meta]
