"""A network that exists as a PyTorch module alone -> an ONNX graph, by tracing it over one frame.

When a trace at a small size will do is up to `engines.traced`.
"""

import io
import warnings
from functools import lru_cache

import onnx
import torch
from torch import Tensor, nn

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.graph.export_patches import ExportPatches
from vsfdatrd.nn.spandrel_network import OtherNetwork

OPSET = 20
"""The first operator set with Gelu, which engines have kernels for."""


def traced(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """A checkpoint's module as a float32 graph for frames of a size it takes without padding.

    One forward pass in PyTorch on the CPU, with its time and memory: the graph is what was computed for this one size,
    so that whatever a network decides by size is decided as PyTorch decides it.

    -> as `graph.of_checkpoint.graph_of`. Raises EngineError if PyTorch cannot run the network or write a part of it.
    """
    return _traced(checkpoint, height, width)


def traced_open(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """As `traced`, with the sides left open. Whatever the network decided by this one size stays decided: whether the
    graph is right for others has to be tried. Raises EngineError as `traced` does."""
    return _traced(checkpoint, height, width, sides_open=True)


def for_size(model: onnx.ModelProto, checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """An open graph for frames of one size; the given one stays as it is."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    about = checkpoint.description
    for values, scale, channels in (
        (result.graph.input, 1, about.frame_channels[0]), (result.graph.output, about.scale, about.frame_channels[1]),
    ):  # fmt: skip
        shape = values[0].type.tensor_type.shape
        del shape.dim[:]
        for side in (1, channels, height * scale, width * scale):
            shape.dim.add(dim_value=side)
    del result.graph.value_info[:]
    return result


@lru_cache(maxsize=1)  # an engine's precisions and its reference come from one graph
def _traced(checkpoint: Checkpoint, height: int, width: int, sides_open: bool = False) -> onnx.ModelProto:
    network = checkpoint.network()
    if not isinstance(network, OtherNetwork):
        raise TypeError(f"{type(network).__name__} is written, not traced")
    picture = torch.zeros(1, checkpoint.description.frame_channels[0], height, width)
    ends = ("input", "output")
    names = {end: {2: f"{end}_height", 3: f"{end}_width"} for end in ends} if sides_open else None
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad(), ExportPatches():
            warnings.simplefilter("ignore")  # of values that are fixed with the size, which is what is wanted
            # PyTorch's newer exporter needs another package, and takes longer for small frames.
            torch.onnx.export(
                _Bare(network), (picture,), file,  # type: ignore[arg-type]  # this exporter takes it
                input_names=ends[:1], output_names=ends[1:], opset_version=OPSET, dynamo=False, dynamic_axes=names,
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
