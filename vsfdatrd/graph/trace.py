"""Export a network that only exists as a PyTorch module to ONNX, by tracing it with one frame.

`backends.network_graphs` decides when a trace at a small size is sufficient.
"""

import io
import warnings
from collections.abc import Callable

import onnx
import torch
from torch import Tensor, nn

from vsfdatrd.errors import EngineError
from vsfdatrd.graph.export_patches import ExportPatches

OPSET = 20
"""The first ONNX operator set with Gelu, for which engines have kernels."""


def trace_module(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    input_shape: tuple[int, int, int, int],
    network_name: str,
    dynamic: bool = False,
) -> onnx.ModelProto:
    """Trace a module as a float32 graph from ``input`` to ``output``.

    This runs one forward pass in PyTorch on the CPU, with its time and memory. The graph contains the operators that
    were executed for this size, so every size-dependent decision of the network is the same as in PyTorch.

    Args:
        network: The module with all weights of the graph.
        forward: Runs the module on (1, C, H, W).
        input_shape: (1, C, H, W) of the frame to trace it with.
        network_name: Name of the network for error messages.
        dynamic: Whether height and width of the graph are dynamic. Size-dependent decisions of the network stay as they
            were at this size, so the result has to be verified at other sizes.

    Raises:
        EngineError: PyTorch cannot run the network or cannot export one of its operators.
    """
    ends = ("input", "output")
    names = {end: {2: f"{end}_height", 3: f"{end}_width"} for end in ends} if dynamic else None
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad(), ExportPatches():
            warnings.simplefilter("ignore")  # about values that become constants for this size, as intended
            # dynamo=False: the newer exporter needs another package, and is slower for small frames.
            torch.onnx.export(
                _Traced(network, forward),
                (torch.zeros(input_shape),),
                file,  # type: ignore[arg-type]  # this exporter takes it
                input_names=ends[:1],
                output_names=ends[1:],
                opset_version=OPSET,
                dynamo=False,
                dynamic_axes=names,
            )
    except Exception as error:  # networks and the exporter raise errors of any type
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(f"{network_name} cannot be written as a graph: {reason[:160].rstrip('.')}") from error
    return onnx.load_from_string(file.getvalue())


def fix_shape(
    model: onnx.ModelProto, channels: tuple[int, int], scale: int, height: int, width: int
) -> onnx.ModelProto:
    """Copy a dynamic model with a fixed frame size.

    Args:
        model: The dynamic model; not modified.
        channels: Channels of its input and output.
        scale: Output pixels per input pixel, along each side.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for values, factor, count in zip((result.graph.input, result.graph.output), (1, scale), channels, strict=True):
        shape = values[0].type.tensor_type.shape
        del shape.dim[:]
        for side in (1, count, height * factor, width * factor):
            shape.dim.add(dim_value=side)
    del result.graph.value_info[:]
    return result


class _Traced(nn.Module):
    """A module whose forward pass is the function given to `trace_module`."""

    def __init__(self, network: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
