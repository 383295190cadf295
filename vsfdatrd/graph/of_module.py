"""A network that exists as a PyTorch module alone -> an ONNX graph, by tracing it over one frame."""

import io
import warnings
from functools import lru_cache

import onnx
import torch
from torch import Tensor, nn

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.nn.other_archs import OtherNetwork

OPSET = 20
"""The first operator set with Gelu, which engines have kernels for."""


def traced(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """A checkpoint's module as a float32 graph for frames of a size it takes without padding.

    One forward pass in PyTorch on the CPU, with its time and memory: the graph is what was computed for this one size,
    so that whatever a network decides by size is decided as PyTorch decides it.

    -> as `graph.of_checkpoint.graph_of`. Raises EngineError if PyTorch cannot run the network or write a part of it.
    """
    return _traced(checkpoint, height, width)


@lru_cache(maxsize=1)  # an engine's precisions and its reference come from one graph
def _traced(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    network = checkpoint.network()
    if not isinstance(network, OtherNetwork):
        raise TypeError(f"{type(network).__name__} is written, not traced")
    picture = torch.zeros(1, checkpoint.description.frame_channels[0], height, width)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of values that are fixed with the size, which is what is wanted
            # PyTorch's newer exporter needs another package, and takes longer for small frames.
            torch.onnx.export(
                _Bare(network), (picture,), file,  # type: ignore[arg-type]  # this exporter takes it
                input_names=["input"], output_names=["output"], opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except Exception as error:  # networks and the exporter raise whatever they like
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(
            f"{checkpoint.path.name} ({checkpoint.description.architecture}) cannot be written as a graph: "
            f"{reason[:160].rstrip('.')}"
        ) from error
    return onnx.load_from_string(file.getvalue())


class _Bare(nn.Module):
    """What is traced: the network itself, without padding to sizes and clamping of values."""

    def __init__(self, network: OtherNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.bare(x)
