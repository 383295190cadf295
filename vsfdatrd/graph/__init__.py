"""ONNX graphs of FDAT-RD and FDAT, written node by node from the weights. Needs no torch; takes about a second.

A graph computes the same function as `nn.fdat_rd.FdatRd`, or spandrel's FDAT, in a form suited to inference engines:
batch size one, and everything that depends on the weights alone is precomputed in float64.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vsfdatrd.archs.fdat import Config
from vsfdatrd.graph.target import OPENVINO, GraphTarget

if TYPE_CHECKING:
    import onnx

# Part of the cache key of engines: increment it with every change of the graphs.
GRAPH_VERSION = "8"


def fdat_rd_graph(
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    height: int,
    width: int,
    dialect: GraphTarget = OPENVINO,
) -> "onnx.ModelProto":
    """Write the network for frames of one size.

    Args:
        config: The configuration.
        tensors: The checkpoint's tensors by the network's names, float32.
        height: Height of the frame in pixels; a multiple of `config.multiple` unless the target pads.
        width: Width of the frame in pixels, likewise.
        dialect: The engine to write for.

    Returns:
        A model from ``input`` (1, C, H, W) to ``output`` (1, C, H·scale, W·scale), both float32.

    Raises:
        ValueError: The size is not a multiple of `config.multiple`.
        OverflowError: A weight exceeds the range of the target's half precision.
    """
    from vsfdatrd.graph.fdat import write

    if height <= 0 or width <= 0 or (not dialect.padding and (height % config.multiple or width % config.multiple)):
        raise ValueError(f"{width}×{height} is no multiple of {config.multiple}; pad the frame first")
    return write(config, tensors, (height, width), dialect)


def open_graph(config: Config, tensors: Mapping[str, NDArray[Any]], dialect: GraphTarget) -> "onnx.ModelProto":
    """Write the network for frames of any size: like `fdat_rd_graph`, with dynamic H and W. The graph pads and crops.

    Args:
        config: The configuration.
        tensors: The checkpoint's tensors by the network's names, float32.
        dialect: The engine to write for.

    Returns:
        A model from ``input`` (1, C, H, W) to ``output`` (1, C, H·scale, W·scale), both float32.
    """
    from dataclasses import replace

    from vsfdatrd.graph.fdat import write

    return write(config, tensors, None, replace(dialect, padding=True))
