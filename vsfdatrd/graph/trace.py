"""Export a network that only exists as a PyTorch module to ONNX, by tracing it with one frame.

`backends.traced_graphs` decides when a trace at a small size is sufficient.
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
"""The first ONNX operator set with Gelu, for which engines have kernels."""


def traced(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """Trace a checkpoint's module as a float32 graph for one frame size.

    This runs one forward pass in PyTorch on the CPU, with its time and memory. The graph is what was computed for this
    size, so every size-dependent decision of the network is the same as in PyTorch.

    Args:
        checkpoint: The network.
        height: Height of the frame in pixels; the network must accept the size without padding.
        width: Width of the frame in pixels, likewise.

    Returns:
        A model as from `backends.graphs.graph_of`.

    Raises:
        EngineError: PyTorch cannot run the network or cannot export one of its operators.
    """
    return _traced(checkpoint, height, width)


def traced_open(checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """Trace like `traced`, with dynamic height and width.

    Size-dependent decisions of the network stay as they were at this size, so the result has to be verified at others.

    Args:
        checkpoint: The network.
        height: Height in pixels of the frame used for tracing.
        width: Width in pixels of that frame.

    Returns:
        A model with dynamic sizes.

    Raises:
        EngineError: As for `traced`.
    """
    return _traced(checkpoint, height, width, sides_open=True)


def for_size(model: onnx.ModelProto, checkpoint: Checkpoint, height: int, width: int) -> onnx.ModelProto:
    """Copy a dynamic model with a fixed frame size.

    Args:
        model: The dynamic model; not modified.
        checkpoint: Its network.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    about = checkpoint.description
    for values, scale, channels in (
        (result.graph.input, 1, about.frame_channels[0]),
        (result.graph.output, about.scale, about.frame_channels[1]),
    ):
        shape = values[0].type.tensor_type.shape
        del shape.dim[:]
        for side in (1, channels, height * scale, width * scale):
            shape.dim.add(dim_value=side)
    del result.graph.value_info[:]
    return result


@lru_cache(maxsize=1)  # the precisions of an engine and its reference use the same graph
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
            warnings.simplefilter("ignore")  # about values that become constants for this size, as intended
            # dynamo=False: the newer exporter needs another package, and is slower for small frames.
            torch.onnx.export(
                _Bare(network),
                (picture,),
                file,  # type: ignore[arg-type]  # this exporter takes it
                input_names=ends[:1],
                output_names=ends[1:],
                opset_version=OPSET,
                dynamo=False,
                dynamic_axes=names,
            )
    except Exception as error:  # networks and the exporter raise errors of any type
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(
            f"{checkpoint.path.name} ({checkpoint.description.architecture}) cannot be written as a graph: "
            f"{reason[:160].rstrip('.')}"
        ) from error
    return onnx.load_from_string(file.getvalue())


class _Bare(nn.Module):
    """The module to trace: the network without padding and clamping."""

    def __init__(self, network: OtherNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.bare(x)
