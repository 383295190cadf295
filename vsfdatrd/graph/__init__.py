"""FDAT-RD (or FDAT) and a frame size -> an ONNX graph, written node by node from the weights. Needs no torch, takes a
second.

The same function as `nn.fdat_rd.FdatRd`, or spandrel's FDAT, shaped for engines: batch of one, everything that depends
on weights alone computed here, in float64. `GRAPH_VERSION` is part of an engine's identity; raise it with every change.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vsfdatrd.archs.fdat import Config
from vsfdatrd.graph.target import OPENVINO, GraphTarget

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION = "8"


def fdat_rd_graph(
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    height: int,
    width: int,
    dialect: GraphTarget = OPENVINO,
) -> "onnx.ModelProto":
    """The network for frames of one size.

    tensors: the checkpoint's, by the network's names for them, float32.
    height, width: of the frame in pixels; unless the dialect pads, multiples of `config.multiple`. Raises ValueError
        if they are not.
    -> a model from ``input`` (1, C, H, W) to ``output`` (1, C, H·scale, W·scale), both float32.
    Raises OverflowError if a weight is beyond the range of the dialect's half precision.
    """
    from vsfdatrd.graph.fdat import write

    if height <= 0 or width <= 0 or (not dialect.padding and (height % config.multiple or width % config.multiple)):
        raise ValueError(f"{width}×{height} is no multiple of {config.multiple}; pad the frame first")
    return write(config, tensors, (height, width), dialect)


def open_graph(config: Config, tensors: Mapping[str, NDArray[Any]], dialect: GraphTarget) -> "onnx.ModelProto":
    """The network for frames of any size: as `fdat_rd_graph`, with H and W open. Padding is part of it."""
    from dataclasses import replace

    from vsfdatrd.graph.fdat import write

    return write(config, tensors, None, replace(dialect, padding=True))
