"""FDAT-RD and a frame size -> an ONNX graph, written node by node from the weights. Needs no torch, takes a second.

The same function as `nn.fdat_rd.FdatRd`, shaped for engines: static sizes, batch of one, everything that depends on
weights alone computed here, in float64. `GRAPH_VERSION` is part of an engine's identity; raise it with every change.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vsfdatrd.nn.config import FdatRdConfig

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION = "3"


def fdat_rd_graph(
    config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]], height: int, width: int
) -> "onnx.ModelProto":
    """The network for frames of one size.

    tensors: the checkpoint's, by the network's names for them, float32.
    height, width: of the padded frame, multiples of `config.multiple`. Raises ValueError if they are not.
    -> a model from ``input`` (1, C, H, W) to ``output`` (1, C, H·scale, W·scale), both float32.
    """
    from vsfdatrd.graph.network import write

    if height % config.multiple or width % config.multiple or height <= 0 or width <= 0:
        raise ValueError(f"{width}×{height} is no multiple of {config.multiple}; pad the frame first")
    return write(config, tensors, height, width)
